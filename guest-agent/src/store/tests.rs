//! Images by name, leases and what becomes of layers.

mod crash;
mod export;

use std::{
    fs,
    path::{Path, PathBuf},
};

use vdkr_core::channel::message::{FailureCode, KeptLayer, RegistrySettings};

use super::{
    fixture::{add, layer, registry},
    *,
};
use crate::unpack::fixture::{Entry, archive};

fn open(root: &Path) -> Store {
    Store::open(root).unwrap()
}

fn any() -> RegistrySettings {
    RegistrySettings::default()
}

/// Names in `layers/`, once nothing is on its way out any more.
fn layer_names(store: &Store) -> Vec<String> {
    store.finish_removals();
    let names = fs::read_dir(store.layers_dir()).unwrap();
    let mut names: Vec<String> = names
        .map(|name| name.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn blobs(root: &Path) -> usize {
    fs::read_dir(root.join("blobs/sha256")).map_or(0, Iterator::count)
}

fn remove(store: &Store, name: &str, force: bool) -> Result<Vec<Removed>, ImageError> {
    store.remove(|state| Ok(vec![state.find(name, None)?]), force)
}

#[test]
fn an_image_is_there_after_reopening() {
    let directory = tempfile::tempdir().unwrap();
    let layers = [layer("a", "1"), layer("b", "2")];
    let id = add(&open(directory.path()), "10.0.2.2:5000/yocto/app", &layers);
    let store = open(directory.path());
    for (name, settings) in [
        ("10.0.2.2:5000/yocto/app:latest", any()),
        ("app", registry("10.0.2.2:5000/yocto")),
        ("yocto/app", any()),
        (id.hex(), any()),
        (id.short(), any()),
        (id.as_str(), any()),
    ] {
        let image = store.resolve(name, &settings).unwrap();
        assert_eq!(image.id, id, "{name}");
        assert_eq!(image.config.config.cmd, ["/bin/sh"]);
        let [a, b] = image.layers.as_slice() else {
            panic!()
        };
        assert!(a.is_relative() && a.as_os_str().len() == 12);
        let read = |layer: &PathBuf, file| {
            fs::read_to_string(store.layers_dir().join(layer).join(file)).unwrap()
        };
        assert_eq!((read(a, "a"), read(b, "b")), ("1".into(), "2".into()));
    }
    let error = store.resolve("other", &any()).unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
    let error = store
        .resolve("10.0.2.2:5001/yocto/app", &any())
        .unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
    let error = store.resolve("Foo//bar:", &any()).unwrap_err();
    assert_eq!(error.code(), FailureCode::Usage);
}

#[test]
fn the_start_of_an_id_means_its_image_unless_it_is_a_name() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    // More images than there are digits: two ids begin alike.
    let ids: Vec<Digest> = (0..17)
        .map(|at| {
            add(
                &store,
                &format!("image{at}"),
                &[layer("f", &at.to_string())],
            )
        })
        .collect();
    let alike = |start: &str| ids.iter().filter(|id| id.hex().starts_with(start)).count();
    let (mut single, mut several) = (0, 0);
    for id in &ids {
        for length in (1..=64).filter(|length| *length < 14 || *length == 64) {
            let start = &id.hex()[..length];
            for text in [start.to_owned(), format!("sha256:{start}")] {
                let found = store.resolve(&text, &any());
                if alike(start) == 1 {
                    assert_eq!(found.unwrap().id, *id, "{text}");
                    single += 1;
                } else {
                    assert_eq!(found.unwrap_err().code(), FailureCode::Usage, "{text}");
                    several += 1;
                }
            }
        }
    }
    assert!(single > 17 && several > 2, "{single} {several}");
    let none = ["dead", "0123"].into_iter().find(|start| alike(start) == 0);
    for text in [none.unwrap(), "image", "sha256:", "DEAD"] {
        assert!(store.resolve(text, &any()).is_err(), "{text}");
    }
    // A name wins, whatever ids begin with it.
    let id = &ids[0];
    let named = add(&store, &id.hex()[..3], &[layer("f", "named")]);
    assert_eq!(store.resolve(&id.hex()[..3], &any()).unwrap().id, named);
    assert_eq!(store.resolve(&id.hex()[..11], &any()).unwrap().id, *id);
    remove(&store, &id.hex()[..11], false).unwrap();
    assert!(store.resolve(id.hex(), &any()).is_err());
}

#[test]
fn a_loopback_host_means_the_gateway() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    add(&store, "10.0.2.2:5000/app", &[layer("a", "1")]);
    let settings = RegistrySettings {
        gateway: "10.0.2.2".into(),
        ..any()
    };
    assert!(store.resolve("localhost:5000/app", &settings).is_ok());
    assert!(store.resolve("localhost:5000/app", &any()).is_err());
}

#[test]
fn layers_are_needed_of_the_image_that_would_run() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let gateway = RegistrySettings {
        gateway: "10.0.2.2".into(),
        ..any()
    };
    let there = add(&store, "10.0.2.2:5000/app", &[layer("a", "1")]);
    let here = add(&store, "localhost:5001/tool", &[layer("b", "2")]);
    let under = add(&store, "10.0.2.2:5000/yocto/app", &[layer("c", "3")]);
    let with_registry = RegistrySettings {
        registry: Some("10.0.2.2:5000/yocto".into()),
        ..gateway.clone()
    };
    for (name, settings, id) in [
        ("localhost:5000/app", &gateway, &there),
        ("10.0.2.2:5001/tool", &gateway, &here),
        ("localhost:5001/tool", &gateway, &here),
        ("app", &with_registry, &under),
    ] {
        let needed = store.needed_layers(Some(name), settings).unwrap();
        assert_eq!(needed.id, id.to_string(), "{name}");
        assert_eq!(store.resolve(name, settings).unwrap().id, *id, "{name}");
    }
    for store_of in [&any(), &gateway] {
        assert!(
            store
                .needed_layers(Some("localhost:5002/app"), store_of)
                .is_err()
        );
    }
}

#[test]
fn a_registry_is_asked_before_another_ones_image_runs() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let hub = add(&store, "docker.io/library/tool", &[layer("a", "1")]);
    let foreign = add(&store, "ghcr.io/x/other", &[layer("b", "2")]);
    let settings = registry("10.0.2.2:5000/yocto");
    assert_eq!(store.resolve("tool", &settings).unwrap().id, hub);
    for text in ["other", "x/other"] {
        let error = store.resolve(text, &settings).unwrap_err();
        assert_eq!(error.code(), FailureCode::NotFound, "{text}");
        assert!(store.needed_layers(Some(text), &settings).is_err());
        assert_eq!(store.resolve(text, &any()).unwrap().id, foreign);
    }
    let own = add(&store, "10.0.2.2:5000/yocto/tool", &[layer("c", "3")]);
    assert_eq!(store.resolve("tool", &settings).unwrap().id, own);
    let needed = store.needed_layers(Some("tool"), &settings).unwrap();
    assert_eq!(needed.id, own.to_string());
    // What was given a name here is what its giver means by that name.
    let made = add(&store, "docker.io/library/made", &[layer("d", "4")]);
    let name = Reference::parse("tool:latest").unwrap();
    store.name(|_| Ok(made.clone()), &name).unwrap();
    assert_eq!(store.resolve("tool", &settings).unwrap().id, made);
}

#[test]
fn layers_go_with_their_last_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (base, own) = (layer("base", "1"), layer("own", "2"));
    add(&store, "base", std::slice::from_ref(&base));
    let app = add(&store, "app", &[base.clone(), own.clone()]);
    assert_eq!((layer_names(&store).len(), blobs(directory.path())), (2, 4));
    let removed = remove(&store, "app", false).unwrap();
    let expected = [
        Removed::Untagged("app:latest".into()),
        removed[1].clone(),
        Removed::Deleted(app.to_string()),
        Removed::Deleted(Digest::sha256(&own).to_string()),
    ];
    assert_eq!(removed, expected);
    assert!(matches!(&removed[1], Removed::Untagged(name) if name.starts_with("app@sha256:")));
    assert_eq!((layer_names(&store).len(), blobs(directory.path())), (1, 2));
    assert!(store.resolve("base", &any()).is_ok());
    remove(&store, "base", false).unwrap();
    assert_eq!((layer_names(&store).len(), blobs(directory.path())), (0, 0));
}

#[test]
fn what_a_container_uses_stays_until_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let content = layer("a", "1");
    add(&store, "app", std::slice::from_ref(&content));
    let running = store.resolve("app", &any()).unwrap();
    let error = remove(&store, "app", false).unwrap_err();
    assert!(matches!(error, ImageError::InUse(_)), "{error}");
    assert!(store.resolve("app", &any()).is_ok());
    // By force the name goes and the image stays, for the container to start once more.
    let removed = remove(&store, "app", true).unwrap();
    assert!(matches!(&removed[..], [Removed::Untagged(_), ..]));
    assert!(
        !removed
            .iter()
            .any(|step| matches!(step, Removed::Deleted(_)))
    );
    assert!(store.resolve("app", &any()).is_err());
    let id = running.id.to_string();
    assert!(store.resolve(&id, &any()).is_ok());
    // Nothing is left of it to take away.
    for force in [false, true] {
        let error = remove(&store, &id, force).unwrap_err();
        assert!(matches!(error, ImageError::InUse(_)), "{error}");
    }
    assert_eq!(layer_names(&store).len(), 1);
    drop(running);
    remove(&store, &id, false).unwrap();
    assert_eq!(layer_names(&store).len(), 0);
    assert!(!store.has_layer(&Digest::sha256(&content)));

    // Pulled again before the container ends, it has a name again.
    add(&store, "app", std::slice::from_ref(&content));
    let running = store.resolve("app", &any()).unwrap();
    remove(&store, "app", true).unwrap();
    add(&store, "again", &[content]);
    drop(running);
    assert!(store.resolve("again", &any()).is_ok());
    assert_eq!(layer_names(&store).len(), 1);
    drop(store);
    assert!(open(directory.path()).resolve("again", &any()).is_ok());
}

#[test]
fn an_overlay_gets_no_layer_twice_and_none_that_is_hidden() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let (a, b) = (layer("a", "1"), layer("b", "2"));
    add(&store, "twice", &[a.clone(), b.clone(), a.clone()]);
    let name = |content: &[u8]| Digest::sha256(content).hex()[..12].to_owned();
    let layers = |image| -> Vec<String> {
        let image = store.resolve(image, &any()).unwrap();
        let layers = image.layers.iter();
        layers
            .map(|layer| layer.to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(layers("twice"), [name(&b), name(&a)]);
    let opaque = archive(&[Entry::directory("."), Entry::whiteout(".wh..wh..opq")]);
    add(&store, "opaque", &[a, opaque.clone(), b.clone()]);
    assert_eq!(layers("opaque"), [name(&opaque), name(&b)]);
}

#[test]
fn names_of_layers_do_not_collide() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let content = layer("a", "1");
    let hex = Digest::sha256(&content).hex().to_owned();
    for length in [12, 16] {
        fs::create_dir(store.layers_dir().join(&hex[..length])).unwrap();
    }
    add(&store, "app", &[content]);
    let image = store.resolve("app", &any()).unwrap();
    assert_eq!(image.layers, [PathBuf::from(&hex[..20])]);
}

#[test]
fn a_moved_name_leaves_the_old_image() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let old = add(&store, "app", &[layer("a", "1")]);
    let new = add(&store, "app", &[layer("a", "2")]);
    let resolve = |name: &str| store.resolve(name, &any()).map(|image| image.id);
    assert_eq!(resolve("app").unwrap(), new);
    assert_eq!(resolve(old.short()).unwrap(), old);
    remove(&store, old.short(), false).unwrap();
    assert!(resolve(old.short()).is_err());
    assert_eq!(resolve("app").unwrap(), new);
}

#[test]
fn pruning_takes_what_nothing_names() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let base = layer("base", "12345");
    add(&store, "app", &[base.clone(), layer("old", "1234567")]);
    let new = add(&store, "app", &[base.clone(), layer("new", "1")]);
    // The first one is still known by its digest; it has no tag.
    let spare = layer("spare", "123");
    store
        .unpack_layer(spare.as_slice(), &Digest::sha256(&spare), &|| false)
        .unwrap()
        .unwrap();
    let usage = store.usage();
    assert_eq!(
        (usage.images, usage.layers_size, usage.spare_size),
        (2, 13, 3)
    );
    let (would, bytes) = store.prune(false, None, true).unwrap();
    assert_eq!((bytes, layer_names(&store).len()), (10, 4));
    let (removed, freed) = store.prune(false, None, false).unwrap();
    assert_eq!((&removed, freed), (&would, 10));
    assert_eq!(layer_names(&store).len(), 2);
    assert_eq!(store.prune(false, None, false).unwrap(), (vec![], 0));

    let used = store.resolve("app", &any()).unwrap();
    assert_eq!(store.usage().images_active, 1);
    assert_eq!(store.prune(true, None, false).unwrap().1, 0);
    drop(used);
    let other = [Digest::sha256(b"other")];
    assert_eq!(store.prune(true, Some(&other), false).unwrap().1, 0);
    assert_eq!(store.prune(true, Some(&[new]), false).unwrap().1, 6);
    assert_eq!(layer_names(&store), [""; 0]);
    assert_eq!(store.usage().images, 0);
}

#[test]
fn layers_that_the_host_keeps_wait_for_their_disks() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path());
    let layers = [layer("a", "1"), layer("b", "2")];
    let digests: Vec<Digest> = layers.iter().map(|layer| Digest::sha256(layer)).collect();
    let kept = KeptLayer {
        diff_id: digests[1].to_string(),
        bytes: 7,
        opaque: false,
    };
    let lease = store.keep(digests.clone());
    store.expect_layer(&digests[1], &kept).unwrap();
    store.expect_layer(&digests[1], &kept).unwrap();
    let id = add(&store, "app", &layers);
    drop(lease);
    let needed = |store: &Store| store.needed_layers(Some("app"), &any()).unwrap();
    assert_eq!(needed(&store).missing, [digests[1].to_string()]);
    assert_eq!(needed(&store).kept, [digests[1].to_string()]);
    assert_eq!(needed(&store).id, id.to_string());
    assert_eq!(needed(&store).source, "docker.io/library/app:latest");
    let image = store.resolve("app", &any()).unwrap();
    let error = image.ready().unwrap_err();
    drop(image);
    assert!(matches!(error, ImageError::NotHandedOver { .. }), "{error}");
    assert!(error.hint().is_some());
    assert!(store.needed_layers(Some("other"), &any()).is_err());
    assert_eq!(store.needed_layers(None, &any()).unwrap().kept.len(), 1);

    // A disk with something else, and one with another layer.
    let disk = directory.path().join("disk");
    fs::write(&disk, vec![0; 10_000]).unwrap();
    assert!(store.mount_layer(&digests[1], &disk).is_err());
    image_of(&layers[0], &disk);
    let error = store
        .mount_layer(&digests[1], &disk)
        .unwrap_err()
        .to_string();
    assert!(error.contains(digests[0].as_str()), "{error}");

    // It is known after a restart, and goes with its image.
    drop(store);
    let store = open(directory.path());
    assert_eq!(needed(&store).missing, [digests[1].to_string()]);
    let removed = remove(&store, "app", false).unwrap();
    assert!(removed.contains(&Removed::Deleted(digests[1].to_string())));
    assert!(layer_names(&store).is_empty());
    assert!(store.needed_layers(None, &any()).unwrap().kept.is_empty());
}

/// Writes a layer as the host does.
fn image_of(layer: &[u8], path: &Path) {
    let new = |path: &Path| {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(true);
        options.open(path).unwrap()
    };
    let (image, scratch) = (new(path), new(&path.with_extension("scratch")));
    let digest = Digest::sha256(layer);
    let limits = crate::unpack::Limits::default();
    vdkr_transfer::erofs::write_image(layer, &digest, &limits, &|| false, &image, &scratch, None)
        .unwrap();
}
