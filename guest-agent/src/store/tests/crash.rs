//! What a crash, a second agent or a disk that forgets leaves behind.

use std::os::unix::fs::symlink;

use super::*;

#[test]
fn rubbish_of_a_crash_goes_and_images_stay() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let shared = layer("a", "1");
    add(&open(root), "app", std::slice::from_ref(&shared));
    let layers = root.join("layers");
    // In the middle of unpacking, of a publication, of a removal, of a probe.
    for name in ["new-0/deep/er", "gone-0/x", "gone-7", "0123456789ab/x"] {
        fs::create_dir_all(layers.join(name)).unwrap();
    }
    fs::write(layers.join(".probe"), "").unwrap();
    symlink(root, layers.join("fedcba987654")).unwrap();
    // In the middle of writing blobs and the document.
    let blob = root.join("blobs/sha256");
    fs::write(blob.join("0".repeat(64)), "a blob that no image has").unwrap();
    fs::write(blob.join("half.new"), "half").unwrap();
    fs::write(root.join("blobs/stray"), "").unwrap();
    fs::write(root.join("images.json.new"), "{\"format\":1,\"ima").unwrap();
    fs::create_dir(root.join("containers")).unwrap();

    let store = open(root);
    assert_eq!(layer_names(&store).len(), 1);
    assert_eq!(blobs(root), 2);
    assert!(!root.join("images.json.new").exists());
    assert!(root.join("containers").exists());
    let image = store.resolve("app", &any()).unwrap();
    let file = store.layers_dir().join(&image.layers[0]).join("a");
    assert_eq!(fs::read_to_string(file).unwrap(), "1");
}

#[test]
fn a_layer_outlives_a_crash_from_its_checkpoint_on() {
    let directory = tempfile::tempdir().unwrap();
    let content = layer("a", "1");
    let diff_id = Digest::sha256(&content);
    let unpack = |store: &Store| {
        let unpacked = store.unpack_layer(content.as_slice(), &diff_id, &|| false);
        unpacked.unwrap().unwrap();
    };
    let store = open(directory.path());
    unpack(&store);
    assert!(store.has_layer(&diff_id));
    drop(store);
    let store = open(directory.path());
    assert!(!store.has_layer(&diff_id));
    assert_eq!(layer_names(&store), [""; 0]);

    unpack(&store);
    store.checkpoint().unwrap();
    drop(store);
    // A pull that is repeated soon finds it; otherwise it does not stay for ever.
    for opening in 1..=state::SPARE_OPENINGS {
        let store = open(directory.path());
        assert!(store.has_layer(&diff_id), "{opening}");
    }
    let store = open(directory.path());
    assert!(!store.has_layer(&diff_id));
    assert_eq!(layer_names(&store), [""; 0]);
}

#[test]
fn a_spare_layer_that_is_used_is_spare_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let content = layer("a", "1");
    let store = open(directory.path());
    let unpacked = store.unpack_layer(content.as_slice(), &Digest::sha256(&content), &|| false);
    unpacked.unwrap().unwrap();
    store.checkpoint().unwrap();
    drop(store);
    drop(open(directory.path()));
    add(&open(directory.path()), "app", &[content]);
    for _ in 0..2 * state::SPARE_OPENINGS {
        assert!(open(directory.path()).resolve("app", &any()).is_ok());
    }
}

#[test]
fn a_layer_that_does_not_unpack_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let content = layer("a", "1");
    let other = Digest::sha256(b"something else");
    let error = store
        .unpack_layer(content.as_slice(), &other, &|| false)
        .unwrap()
        .unwrap_err();
    assert!(matches!(error, unpack::UnpackError::DiffId { .. }));
    assert!(!store.has_layer(&other));
    assert_eq!(layer_names(&store), [""; 0]);
}

#[test]
fn a_damaged_document_is_not_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("images.json");
    add(&open(directory.path()), "app", &[layer("a", "1")]);
    let good = fs::read(&path).unwrap();
    let later = String::from_utf8(good.clone())
        .unwrap()
        .replacen(":1,", ":2,", 1);
    for bad in [&good[..good.len() / 2], b"", later.as_bytes()] {
        fs::write(&path, bad).unwrap();
        let error = Store::open(directory.path()).unwrap_err();
        assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), bad);
    }
    fs::write(&path, good).unwrap();
    assert!(open(directory.path()).resolve("app", &any()).is_ok());
}

#[test]
fn a_lost_layer_is_told_and_can_be_fetched_again() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer("a", "1"), layer("b", "2")];
    let store = open(directory.path());
    add(&store, "app", &layers);
    let lost = store.resolve("app", &any()).unwrap().layers.remove(1);
    fs::remove_dir_all(store.layers_dir().join(lost)).unwrap();
    drop(store);
    let store = open(directory.path());
    let error = store.resolve("app", &any()).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
    add(&store, "app", &layers);
    assert!(store.resolve("app", &any()).is_ok());
}

#[test]
fn a_changed_configuration_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let id = add(&store, "app", &[layer("a", "1")]);
    fs::write(directory.path().join("blobs/sha256").join(id.hex()), "{}").unwrap();
    let error = store.resolve("app", &any()).unwrap_err();
    assert!(matches!(error, ImageError::Damaged { .. }), "{error}");
}

#[test]
fn one_agent_at_a_time() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, ImageError::Locked(_)), "{error}");
    let clone = store.clone();
    drop(store);
    assert!(Store::open(directory.path()).is_err());
    drop(clone);
    open(directory.path());
}
