use alloc::{string::ToString as _, vec};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::digest::Digest;
use crate::manifest::MAX_ANNOTATIONS;
use media_type::{DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};

fn descriptor(media_type: &str, content: &str) -> Value {
    json!({
        "mediaType": media_type,
        "digest": Digest::sha256(content.as_bytes()).as_str(),
        "size": content.len(),
    })
}

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(OCI_CONFIG, "{}"),
        "layers": [descriptor(OCI_LAYER, "one"), descriptor(OCI_LAYER, "two")],
    })
}

fn index() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [descriptor(OCI_MANIFEST, "one")],
    })
}

fn read(value: &Value, declared: Option<&str>) -> Result<ParsedManifest, ManifestError> {
    parse(value.to_string().as_bytes(), declared)
}

fn with(mut value: Value, key: &str, field: Value) -> Value {
    value[key] = field;
    value
}

#[test]
fn an_image_keeps_its_bytes_and_names_its_blobs() {
    let raw = serde_json::to_vec_pretty(&image()).unwrap();
    let parsed = parse(&raw, Some(OCI_MANIFEST)).unwrap();
    assert_eq!(parsed.raw, raw);
    assert_eq!(parsed.media_type, OCI_MANIFEST);
    let sizes: Vec<_> = parsed.blobs().map(|blob| blob.size).collect();
    assert_eq!(sizes, [2, 3, 3]);
    assert!(parsed.manifests().is_empty());
    assert_eq!(parsed.descriptor().digest, Digest::sha256(&raw));
    assert_eq!(parsed.artifact_type(), Some(OCI_CONFIG));
}

#[test]
fn an_index_names_its_manifests() {
    let parsed = read(&index(), None).unwrap();
    assert_eq!(parsed.manifests().len(), 1);
    assert_eq!(parsed.blobs().count(), 0);
    assert_eq!(parsed.artifact_type(), None);
    let nothing = with(index(), "manifests", Value::Null);
    assert!(
        read(&nothing, Some(OCI_INDEX))
            .unwrap()
            .manifests()
            .is_empty()
    );
}

#[test]
fn docker_types_are_accepted() {
    let docker = with(image(), "mediaType", json!(DOCKER_MANIFEST));
    let parsed = read(&docker, Some(DOCKER_MANIFEST)).unwrap();
    assert!(parsed.as_image().is_some());
    let docker = with(index(), "mediaType", json!(DOCKER_LIST));
    assert!(read(&docker, None).unwrap().as_index().is_some());
}

#[test]
fn artifacts_are_accepted() {
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.example.sbom",
        "config": {
            "mediaType": media_type::OCI_EMPTY,
            "digest": Digest::sha256(b"{}").as_str(),
            "size": 2,
            "data": "e30=",
        },
        "layers": null,
        "subject": descriptor(OCI_MANIFEST, "subject"),
        "annotations": {"a": "b"},
        "org.example.custom": {"deep": [1, 2.5, null]},
    });
    let parsed = read(&artifact, Some(OCI_MANIFEST)).unwrap();
    assert_eq!(parsed.artifact_type(), Some("application/vnd.example.sbom"));
    assert_eq!(parsed.subject().unwrap().size, 7);
    assert_eq!(parsed.annotations()["a"], "b");
    let config = &parsed.as_image().unwrap().config;
    assert_eq!(config.embedded().unwrap(), b"{}");
    let custom = with(
        image(),
        "config",
        descriptor("application/x.any+json", "{}"),
    );
    let parsed = read(&custom, Some(OCI_MANIFEST)).unwrap();
    assert_eq!(parsed.artifact_type(), Some("application/x.any+json"));
}

#[test]
fn the_type_comes_from_body_declaration_or_form() {
    let mut untyped = image();
    untyped.as_object_mut().unwrap().remove("mediaType");
    assert_eq!(read(&untyped, None).unwrap().media_type, OCI_MANIFEST);
    let parsed = read(&untyped, Some(DOCKER_MANIFEST)).unwrap();
    assert_eq!(parsed.media_type, DOCKER_MANIFEST);
    let mut untyped_index = index();
    untyped_index.as_object_mut().unwrap().remove("mediaType");
    assert_eq!(read(&untyped_index, None).unwrap().media_type, OCI_INDEX);
    let declared = "Application/vnd.OCI.image.manifest.v1+json; charset=utf-8";
    let parsed = read(&image(), Some(declared)).unwrap();
    assert_eq!(parsed.media_type, OCI_MANIFEST);

    // Declared as the other form.
    let missing = |media_type: &str, field| ManifestError::Missing {
        media_type: media_type.into(),
        field,
    };
    assert_eq!(
        read(&untyped, Some(OCI_INDEX)),
        Err(missing(OCI_INDEX, "manifests"))
    );
    assert_eq!(
        read(&untyped_index, Some(OCI_MANIFEST)),
        Err(missing(OCI_MANIFEST, "config"))
    );
    assert!(matches!(
        read(&image(), Some(OCI_INDEX)),
        Err(ManifestError::MediaTypeMismatch { .. })
    ));
    for other in ["application/json", "text/html", "x", &"y".repeat(10_000)] {
        assert!(matches!(
            read(&untyped, Some(other)),
            Err(ManifestError::UnsupportedMediaType(_))
        ));
    }
}

#[test]
fn a_body_of_both_forms_is_refused() {
    let manifests = index()["manifests"].clone();
    for both in [
        with(image(), "manifests", manifests),
        with(index(), "config", image()["config"].clone()),
        with(index(), "layers", json!([])),
        // An empty list beside an image is read as an index by some.
        with(image(), "manifests", json!([])),
    ] {
        let error = read(&both, None).unwrap_err();
        assert!(matches!(error, ManifestError::Ambiguous(_)), "{error}");
    }
}

#[test]
fn keys_that_others_read_otherwise_are_refused() {
    let body = image().to_string();
    let inner = body.strip_prefix('{').unwrap();
    for extra in [
        r#""layers":[]"#,
        r#""mediaType":"application/vnd.oci.image.index.v1+json""#,
        r#""schemaVersion":2"#,
        r#""Layers":[]"#,
        r#""MANIFESTS":[]"#,
        r#""mediatype":"x""#,
        r#""manifeſts":[]"#,
        r#""\u006cayers":[]"#,
        r#""layerS":null"#,
    ] {
        let body = format!("{{{extra},{inner}");
        let error = parse(body.as_bytes(), Some(OCI_MANIFEST)).unwrap_err();
        assert!(
            matches!(error, ManifestError::Ambiguous(_)),
            "{extra}: {error}"
        );
    }
    let body = format!(r#"{{"later":1,"later":2,{inner}"#);
    assert!(parse(body.as_bytes(), None).is_ok());
}

#[test]
fn schema_1_gets_a_plain_sentence() {
    let schema1 = "application/vnd.docker.distribution.manifest.v1+json";
    for body in [
        json!({"schemaVersion": 1, "name": "x", "fsLayers": [], "history": []}),
        with(image(), "mediaType", json!(schema1)),
        with(image(), "signatures", json!([])),
    ] {
        assert_eq!(read(&body, None), Err(ManifestError::Schema1));
    }
    let declared = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    assert_eq!(read(&image(), Some(declared)), Err(ManifestError::Schema1));
}

#[test]
fn wrong_forms_are_errors() {
    let version = |version| read(&with(image(), "schemaVersion", version), None);
    assert_eq!(version(json!(3)), Err(ManifestError::SchemaVersion(3)));
    assert!(matches!(
        version(json!("2")),
        Err(ManifestError::Malformed { .. })
    ));
    assert!(matches!(
        version(Value::Null),
        Err(ManifestError::Missing { .. })
    ));
    let body = image().to_string();
    for bad in [
        "",
        "null",
        "[]",
        "{}",
        "\"x\"",
        "{",
        "\u{feff}{}",
        "{\"schemaVersion\":2}x",
        &body[..body.len() - 1],
        &format!("{body}{body}"),
        &body.replace("sha256:", "sha256:../"),
        &body.replace("\"size\":3", "\"size\":-3"),
    ] {
        assert!(parse(bad.as_bytes(), None).is_err(), "{bad}");
    }
    assert!(parse(b"{\"schemaVersion\":2,\"x\":\"\xff\"}", None).is_err());
}

#[test]
fn caps() {
    let mut large = image().to_string().into_bytes();
    large.resize(MAX_MANIFEST, b' ');
    assert!(parse(&large, None).is_ok());
    large.push(b' ');
    let error = ManifestError::TooLarge {
        what: MANIFEST,
        length: MAX_MANIFEST + 1,
        limit: MAX_MANIFEST,
    };
    assert_eq!(parse(&large, None), Err(error));
    let layers = vec![descriptor("a/b", "x"); MAX_DESCRIPTORS + 1];
    let many = with(image(), "layers", Value::Array(layers));
    let count = MAX_DESCRIPTORS + 1;
    assert_eq!(
        read(&many, None),
        Err(ManifestError::TooManyEntries { count })
    );
    let mut notes = serde_json::Map::new();
    notes.extend((0..MAX_ANNOTATIONS).map(|n| (n.to_string(), json!(""))));
    let mut of_entry = image();
    of_entry["layers"][1]["annotations"] = Value::Object(notes.clone());
    let of_manifest = with(image(), "annotations", Value::Object(notes.clone()));
    assert!(read(&of_entry, None).is_ok() && read(&of_manifest, None).is_ok());
    notes.insert("one more".to_owned(), json!(""));
    of_entry["layers"][1]["annotations"] = Value::Object(notes.clone());
    for many in [of_entry, with(image(), "annotations", Value::Object(notes))] {
        let refused = read(&many, None).unwrap_err().to_string();
        assert!(refused.contains("more than 4096 annotations"), "{refused}");
    }
    let long = with(image(), "schemaVersion", json!("x".repeat(100_000)));
    assert!(read(&long, None).unwrap_err().to_string().len() < 400);
}

#[test]
fn deep_nesting_does_not_overflow() {
    let (open, close) = ("[".repeat(1_000_000), "]".repeat(1_000_000));
    assert!(parse(open.as_bytes(), None).is_err());
    let known = format!(r#"{{"annotations":{open}{close}}}"#);
    assert!(parse(known.as_bytes(), None).is_err());
    // In a field that nobody reads it is skipped without recursion.
    let body = image().to_string();
    let inner = body.strip_prefix('{').unwrap();
    let unknown = format!(r#"{{"later":{open}{close},{inner}"#);
    assert!(parse(unknown.as_bytes(), None).is_ok());
}

fn field() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~é]{0,12}".prop_map(Value::from),
        Just(descriptor(OCI_LAYER, "x")),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-z]{1,8}", inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(raw in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&raw, None);
    }

    #[test]
    fn one_wrong_field_never_panics(
        key in proptest::sample::select(&DECISIVE[..]),
        value in field(),
        in_index: bool,
        declared in proptest::sample::select(&[None, Some(OCI_MANIFEST), Some(OCI_INDEX)][..]),
    ) {
        let body = with(if in_index { index() } else { image() }, key, value);
        if let Ok(parsed) = read(&body, declared) {
            prop_assert_eq!(parsed.as_index().is_some(), in_index);
        }
    }

    #[test]
    fn what_is_written_reads_back(
        sizes in proptest::collection::vec(0..=i64::MAX as u64, 0..6),
        annotations in proptest::collection::btree_map(".{0,8}", ".{0,8}", 0..4),
        subject: bool,
    ) {
        let entries: Vec<_> = sizes
            .iter()
            .map(|&size| Descriptor::new(OCI_LAYER, Digest::sha256(&size.to_le_bytes()), size))
            .collect();
        let subject = subject.then(|| Descriptor::new(OCI_MANIFEST, Digest::sha256(b""), 0));
        let image = ImageManifest {
            artifact_type: None,
            config: Descriptor::new(OCI_CONFIG, Digest::sha256(b"{}"), 2),
            layers: entries.clone(),
            subject: subject.clone(),
            annotations: annotations.clone(),
        };
        let parsed = parse(&image.to_json().unwrap(), Some(OCI_MANIFEST)).unwrap();
        prop_assert_eq!(parsed.kind, ManifestKind::Image(image));
        let index = ImageIndex {
            artifact_type: Some("a/b".into()),
            manifests: entries,
            subject,
            annotations,
        };
        let parsed = parse(&index.to_json().unwrap(), None).unwrap();
        prop_assert_eq!(parsed.kind, ManifestKind::Index(index));
    }
}
