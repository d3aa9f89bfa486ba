//! The commands on a small store.

use serde_json::Value;
use vdkr_core::{
    channel::message::{FailureCode, ImageRow, RegistrySettings, Removed, Reply},
    digest::Digest,
};

use super::*;
use crate::store::{
    Store,
    fixture::{add, layer},
};

struct Place {
    store: Store,
    app: Digest,
    base: Digest,
    _directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path()).unwrap();
        let base = layer("base", "12345");
        Self {
            app: add(
                &store,
                "10.0.2.2:5000/yocto/app:1",
                &[base.clone(), layer("app", "678")],
            ),
            base: add(&store, "alpine", &[base]),
            store,
            _directory: directory,
        }
    }

    fn images(&self) -> Vec<ImageRow> {
        match images(&self.store).unwrap() {
            Reply::Images { images } => images,
            other => panic!("{other:?}"),
        }
    }

    fn shown(&self) -> Vec<String> {
        let rows = self.images();
        let shown = rows.iter();
        shown
            .map(|row| format!("{} {}", row.name, row.tag.as_deref().unwrap_or("-")))
            .collect()
    }

    fn remove(&self, names: &[&str], force: bool) -> Result<Vec<Removed>, FailureCode> {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        match remove(&self.store, &names, force) {
            Ok(Reply::Removed { removed }) => Ok(removed),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.code()),
        }
    }
}

fn untagged(removed: &[Removed]) -> Vec<&str> {
    let names = removed.iter().filter_map(|step| match step {
        Removed::Untagged(name) if !name.contains('@') => Some(name.as_str()),
        _ => None,
    });
    names.collect()
}

#[test]
fn names_are_listed_as_docker_does() {
    let place = Place::new();
    assert_eq!(
        place.shown(),
        ["10.0.2.2:5000/yocto/app 1", "alpine latest"]
    );
    let rows = place.images();
    assert_eq!(rows[0].id, place.app.to_string());
    assert_eq!((rows[0].size, rows[1].size), (8, 5));
    assert!(rows[0].digest.as_deref().unwrap().starts_with("sha256:"));
    assert_eq!(rows[0].created.as_deref(), Some("2026-01-12T14:30:22Z"));
}

#[test]
fn an_image_without_names_is_listed() {
    let place = Place::new();
    add(&place.store, "alpine", &[layer("new", "1")]);
    assert_eq!(
        place.shown(),
        ["10.0.2.2:5000/yocto/app 1", "alpine -", "alpine latest"]
    );
    let rows = place.images();
    assert_eq!(rows[1].id, place.base.to_string());
    assert!(rows[1].digest.is_some());
}

#[test]
fn tags() {
    let place = Place::new();
    tag(&place.store, "app:1", "mine").unwrap();
    tag(&place.store, place.app.short(), "h:5000/x/mine:2").unwrap();
    let shown = [
        "10.0.2.2:5000/yocto/app 1",
        "alpine latest",
        "h:5000/x/mine 2",
        "mine latest",
    ];
    assert_eq!(place.shown(), shown);
    for target in ["deadbeefcafe", "a//b", &format!("x@{}", place.app)] {
        let error = tag(&place.store, "alpine", target).unwrap_err();
        assert_eq!(error.code(), FailureCode::Usage, "{target}");
    }
    let error = tag(&place.store, "none", "x").unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
    // This computer and the machine call one registry by two names.
    tag(
        &place.store,
        "localhost:5000/yocto/app:1",
        "localhost:6000/x:1",
    )
    .unwrap();
    tag(&place.store, "10.0.2.2:6000/x:1", "found").unwrap();
    for missing in ["localhost:5001/yocto/app:1", "10.0.2.2:6000/y:1"] {
        let error = tag(&place.store, missing, "x").unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
    // A name given away names the other image from then on.
    tag(&place.store, "alpine", "mine").unwrap();
    let image = place
        .store
        .resolve("mine", &RegistrySettings::default())
        .unwrap();
    assert_eq!(image.id, place.base);
}

#[test]
fn removal_by_name_takes_the_name_then_the_image() {
    let place = Place::new();
    tag(&place.store, "app:1", "mine").unwrap();
    let removed = place.remove(&["app:1"], false).unwrap();
    assert_eq!(untagged(&removed), ["10.0.2.2:5000/yocto/app:1"]);
    assert!(
        !removed
            .iter()
            .any(|step| matches!(step, Removed::Deleted(_))),
        "{removed:?}"
    );
    let removed = place.remove(&["mine"], false).unwrap();
    assert_eq!(untagged(&removed), ["mine:latest"]);
    assert!(removed.contains(&Removed::Deleted(place.app.to_string())));
    assert_eq!(place.shown(), ["alpine latest"]);
}

#[test]
fn removal_by_id_wants_force_for_several_names() {
    let place = Place::new();
    tag(&place.store, "app:1", "mine").unwrap();
    let id = place.app.short();
    assert_eq!(place.remove(&[id], false), Err(FailureCode::Failed));
    let removed = place.remove(&[id], true).unwrap();
    assert_eq!(
        untagged(&removed),
        ["10.0.2.2:5000/yocto/app:1", "mine:latest"]
    );
    assert_eq!(place.shown(), ["alpine latest"]);
}

#[test]
fn removal_of_several_is_all_or_nothing() {
    let place = Place::new();
    assert_eq!(
        place.remove(&["alpine", "none"], true),
        Err(FailureCode::NotFound)
    );
    assert_eq!(place.shown().len(), 2);
    place
        .remove(&["alpine", "app:1", place.app.short(), "alpine"], false)
        .unwrap();
    assert_eq!(place.shown(), [""; 0]);
}

#[test]
fn removal_by_digest() {
    let place = Place::new();
    let digest = place.images()[1].digest.clone().unwrap();
    let name = format!("alpine@{digest}");
    let removed = place.remove(&[&name], false).unwrap();
    assert_eq!(removed, [Removed::Untagged(name)]);
    assert_eq!(place.shown().len(), 2);
}

#[test]
fn images_are_described_as_docker_does() {
    let place = Place::new();
    tag(&place.store, "alpine", "10.0.2.2:5000/a:2").unwrap();
    let names = ["alpine".to_owned(), place.app.short().to_owned()];
    let Reply::Inspected { documents } = inspect(&place.store, &names).unwrap() else {
        panic!()
    };
    let [alpine, app] = documents.as_slice() else {
        panic!()
    };
    assert_eq!(alpine["Id"], place.base.to_string());
    let tags = serde_json::json!(["10.0.2.2:5000/a:2", "alpine:latest"]);
    assert_eq!(alpine["RepoTags"], tags);
    let digest = alpine["RepoDigests"][0].as_str().unwrap();
    assert!(digest.starts_with("alpine@sha256:"), "{digest}");
    assert_eq!(alpine["Config"]["Cmd"][0], "/bin/sh");
    assert_eq!(alpine["Config"]["Entrypoint"], Value::Null);
    assert_eq!(alpine["Config"]["Labels"]["a"], "b");
    assert_eq!(
        (&alpine["Os"], &alpine["Size"]),
        (&"linux".into(), &5.into())
    );
    assert_eq!(app["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(app["RootFS"]["Layers"][0], alpine["RootFS"]["Layers"][0]);
    let missing = inspect(&place.store, &["alpine".into(), "none".into()]).unwrap_err();
    assert_eq!(missing.code(), FailureCode::NotFound);
}

/// Documents of an image with these layers.
fn documents(layers: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    use vdkr_core::manifest::{
        Descriptor, ImageManifest,
        media_type::{OCI_CONFIG, OCI_LAYER},
    };
    let config = crate::store::fixture::config(layers, "2026-01-12T14:30:22Z");
    let blob = |media_type: &str, bytes: &[u8]| {
        Descriptor::new(media_type, Digest::sha256(bytes), bytes.len() as u64)
    };
    let manifest = ImageManifest {
        artifact_type: None,
        config: blob(OCI_CONFIG, &config),
        layers: layers.iter().map(|layer| blob(OCI_LAYER, layer)).collect(),
        subject: None,
        annotations: std::collections::BTreeMap::default(),
    };
    (config, manifest.to_json().unwrap())
}

#[test]
fn an_image_is_brought_by_the_host() {
    use vdkr_core::manifest::media_type::OCI_MANIFEST;
    let place = Place::new();
    let layers = [layer("base", "12345"), layer("mine", "1")];
    let (config, manifest) = documents(&layers);
    let add = |name| add_image(&place.store, name, OCI_MANIFEST, &config, &manifest, &[]);
    // Not before all of its layers are there.
    assert_eq!(add(Some("mine")).unwrap_err().code(), FailureCode::NotFound);
    assert_eq!(place.shown().len(), 2);
    let diff_id = Digest::sha256(&layers[1]);
    let added = add_layer(&place.store, layers[1].as_slice(), &diff_id, &|| false);
    assert_eq!(added.unwrap(), Reply::LayerAdded { present: false });
    let id = Digest::sha256(&config);
    let replaced = None;
    let reply = Reply::Added {
        id: id.clone(),
        replaced,
    };
    assert_eq!(add(Some("mine")).unwrap(), reply);
    assert_eq!(add(None).unwrap(), reply);
    assert!(place.shown().contains(&"mine latest".to_owned()));
    let image = place
        .store
        .resolve("mine", &RegistrySettings::default())
        .unwrap();
    assert_eq!((image.id, image.layers.len()), (id.clone(), 2));
    drop(image.config);
    // A name that is taken over tells whose it was.
    let replaced = Some(place.base.clone());
    assert_eq!(
        add(Some("alpine:latest")).unwrap(),
        Reply::Added { id, replaced }
    );
}

#[test]
fn an_image_has_layers_that_the_host_keeps() {
    use vdkr_core::{channel::message::KeptLayer, manifest::media_type::OCI_MANIFEST};
    let place = Place::new();
    let layers = [layer("base", "12345"), layer("mine", "1")];
    let (config, manifest) = documents(&layers);
    let add = |kept: &[KeptLayer]| {
        let name = Some("mine");
        add_image(&place.store, name, OCI_MANIFEST, &config, &manifest, kept)
    };
    let kept = |bytes: &[u8]| KeptLayer {
        diff_id: Digest::sha256(bytes).to_string(),
        bytes: 1,
        opaque: false,
    };
    // Those that are none of its own, or no digests, do not count.
    let foreign = [kept(b"other"), KeptLayer::default()];
    assert_eq!(add(&foreign).unwrap_err().code(), FailureCode::NotFound);
    assert!(!place.store.has_layer(&Digest::sha256(b"other")));
    add(&[kept(b"other"), kept(&layers[1]), kept(&layers[0])]).unwrap();
    assert!(!place.store.has_layer(&Digest::sha256(b"other")));
    let settings = RegistrySettings::default();
    let needed = place.store.needed_layers(Some("mine"), &settings).unwrap();
    // The one below was unpacked here before.
    let mine = Digest::sha256(&layers[1]).to_string();
    assert_eq!(
        (&needed.missing, &needed.kept),
        (&vec![mine.clone()], &vec![mine])
    );
    // It came from nowhere, whatever it is called.
    assert_eq!(needed.source, "");
    let image = place.store.resolve("mine", &settings).unwrap();
    assert!(image.ready().is_err());
}

#[test]
fn documents_that_do_not_fit_are_refused() {
    use vdkr_core::manifest::media_type::{OCI_INDEX, OCI_MANIFEST};
    let place = Place::new();
    let layers = [layer("base", "12345")];
    let (config, manifest) = documents(&layers);
    let (other, _) = documents(&[]);
    for (name, media_type, config, manifest) in [
        (Some("a//b"), OCI_MANIFEST, &config, &manifest),
        (Some("x@sha256:00"), OCI_MANIFEST, &config, &manifest),
        (None, OCI_MANIFEST, &other, &manifest),
        (None, OCI_MANIFEST, &config, &config),
        (None, OCI_INDEX, &config, &manifest),
        (None, OCI_MANIFEST, &b"{".to_vec(), &manifest),
    ] {
        let added = add_image(&place.store, name, media_type, config, manifest, &[]);
        assert!(added.is_err(), "{name:?} {media_type}");
    }
    let wrong = add_layer(&place.store, &b"x"[..], &Digest::sha256(b"y"), &|| false);
    assert!(wrong.is_err());
    assert_eq!(place.shown().len(), 2);
}
