//! An image as it is saved, from what was unpacked and the recipes of its archives.

use super::*;

fn whole(store: &Store, digest: &Digest) -> Result<Vec<u8>, ImageError> {
    match store.part(digest)? {
        Part::Document(bytes) => Ok(bytes),
        Part::Layer(layer) => {
            let mut out = Vec::new();
            layer.restore(&mut |bytes| {
                out.extend_from_slice(bytes);
                true
            })?;
            Ok(out)
        }
    }
}

#[test]
fn an_image_comes_apart_as_it_was_put_together() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer("a", "1"), layer("b", "22")];
    let id = add(&open(directory.path()), "h:5000/app:1", &layers);
    let store = open(directory.path());
    store
        .name(|_| Ok(id.clone()), &Reference::parse("mine:2").unwrap())
        .unwrap();
    let image = store.export("mine:2").unwrap();
    assert_eq!(image.id, id);
    assert_eq!(image.name.as_deref(), Some("docker.io/library/mine:2"));
    assert_eq!(image.names, ["docker.io/library/mine:2", "h:5000/app:1"]);
    assert_eq!(image.digests.len(), 1);
    assert_eq!(store.export(id.short()).unwrap().name, None);
    for (part, plain) in image.layers.iter().zip(&layers) {
        assert_eq!(part.plain, Some(plain.len() as u64));
        assert!(whole(&store, &part.diff_id).unwrap() == *plain);
    }
    assert_eq!([image.layers[0].size, image.layers[1].size], [1, 2]);
    let config = whole(&store, &id).unwrap();
    assert_eq!(config.len() as u64, image.config_size);
    assert_eq!(Digest::sha256(&config), id);
    let manifest = whole(&store, &image.manifest.digest).unwrap();
    assert_eq!(manifest.len() as u64, image.manifest.size);
    let other = Digest::sha256(b"other");
    assert_eq!(
        whole(&store, &other).unwrap_err().code(),
        FailureCode::NotFound
    );
    assert_eq!(
        store.export("none").unwrap_err().code(),
        FailureCode::NotFound
    );
}

#[test]
fn a_layer_without_a_recipe_runs_and_is_not_saved() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let content = layer("a", "1");
    add(&store, "app", std::slice::from_ref(&content));
    fs::remove_dir_all(directory.path().join("recipes")).unwrap();
    assert!(store.resolve("app", &any()).is_ok());
    assert_eq!(store.export("app").unwrap().layers[0].plain, None);
    let error = whole(&store, &Digest::sha256(&content)).unwrap_err();
    assert!(error.hint().unwrap().contains("pull it again"), "{error}");
}

#[test]
fn recipes_go_with_their_layers() {
    let recipes = |directory: &Path| fs::read_dir(directory.join("recipes")).unwrap().count();
    let directory = tempfile::tempdir().unwrap();
    {
        let store = open(directory.path());
        add(&store, "one", &[layer("a", "1"), layer("b", "2")]);
        add(&store, "two", &[layer("a", "1")]);
        assert_eq!(recipes(directory.path()), 2);
        let bad = store.unpack_layer(&b"no archive"[..], &Digest::sha256(b"x"), &|| false);
        assert!(bad.unwrap().is_err());
        assert_eq!(recipes(directory.path()), 2);
        remove(&store, "one", false).unwrap();
        assert_eq!(recipes(directory.path()), 1);
        fs::write(directory.path().join("recipes/left-over"), "x").unwrap();
    }
    open(directory.path());
    assert_eq!(recipes(directory.path()), 1);
}
