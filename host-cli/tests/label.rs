//! `container-registry label` on layouts in temporary directories.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_core::digest::Digest;

fn put(layout: &Path, value: &Value) -> Value {
    let text = value.to_string();
    let digest = Digest::sha256(text.as_bytes());
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &text).unwrap();
    json!({"digest": digest.as_str(), "size": text.len()})
}

fn typed(mut descriptor: Value, media_type: &str) -> Value {
    descriptor["mediaType"] = media_type.into();
    descriptor
}

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// A layout of one image; its configuration holds a member that nobody knows.
fn image(layout: &Path, more: &[Value]) -> Value {
    let layer = typed(
        put(layout, &json!("layer")),
        "application/vnd.oci.image.layer.v1.tar",
    );
    let config = put(
        layout,
        &json!({"architecture": "arm64", "os": "linux", "x-unknown": [1.50], "config": {"Labels": {"old": "1"}}, "created": "2026-01-12T14:30:22Z"}),
    );
    let manifest = put(
        layout,
        &json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": typed(config, CONFIG), "layers": [layer]}),
    );
    let entry = typed(manifest, MANIFEST);
    let mut entries = vec![entry.clone()];
    entries.extend_from_slice(more);
    index(layout, &entries);
    entry
}

fn index(layout: &Path, entries: &[Value]) {
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let index = json!({"schemaVersion": 2, "manifests": entries});
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
}

fn label(layout: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_container-registry"));
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if ["CONTAINER_REGISTRY_", "OCI_IMAGE_", "IMAGE_VERSION"]
            .iter()
            .any(|prefix| name_text.starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
    command
        .env("CONTAINER_REGISTRY_STORAGE", layout.with_extension("none"))
        .arg("label")
        .arg(layout)
        .args(args)
        .output()
        .unwrap()
}

#[track_caller]
fn expect(output: &Output, code: i32) -> String {
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{words}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn blob(layout: &Path, digest: &Value) -> Vec<u8> {
    let digest = Digest::parse(digest.as_str().unwrap()).unwrap();
    let bytes = std::fs::read(layout.join("blobs/sha256").join(digest.hex())).unwrap();
    assert_eq!(Digest::sha256(&bytes), digest);
    bytes
}

fn read(layout: &Path, digest: &Value) -> Value {
    serde_json::from_slice(&blob(layout, digest)).unwrap()
}

fn count(layout: &Path) -> usize {
    std::fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .count()
}

#[test]
fn a_label_goes_in_and_everything_else_stays() {
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("app-latest-oci");
    let old = image(&layout, &[]);
    // A hard link to the old manifest, as a build's own deploy directory may hold.
    let digest = Digest::parse(old["digest"].as_str().unwrap()).unwrap();
    let linked = dir.path().join("linked");
    std::fs::hard_link(layout.join("blobs/sha256").join(digest.hex()), &linked).unwrap();
    let before = std::fs::read(&linked).unwrap();

    let words = expect(&label(&layout, &["--no-auto", "--label", "a=b=c"]), 0);
    assert!(words.starts_with("labelled "), "{words}");
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest = read(&layout, &index["manifests"][0]["digest"]);
    let config = String::from_utf8(blob(&layout, &manifest["config"]["digest"])).unwrap();
    assert!(config.contains(r#""x-unknown":[1.5]"#), "{config}");
    assert!(
        config.contains(r#"{"Labels":{"old":"1","a":"b=c"}}"#),
        "{config}"
    );
    assert_eq!(manifest["config"]["size"], config.len());
    assert_eq!(count(&layout), 3, "old documents are gone");
    assert_eq!(std::fs::read(&linked).unwrap(), before);

    let inode = std::fs::metadata(layout.join("index.json")).unwrap().ino();
    let words = expect(&label(&layout, &["--no-auto", "-l", "a=b=c"]), 0);
    assert!(words.starts_with("unchanged "), "{words}");
    assert_eq!(
        std::fs::metadata(layout.join("index.json")).unwrap().ino(),
        inode
    );
}

#[test]
fn automatic_labels_are_the_same_every_time() {
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("app-latest-oci");
    image(&layout, &[]);
    let args = ["--version", "2.0.1", "--json"];
    let first: Value = serde_json::from_str(&expect(&label(&layout, &args), 0)).unwrap();
    let labels = &first["images"][0]["labels"];
    assert_eq!(labels["org.opencontainers.image.version"], "2.0.1");
    assert_eq!(
        labels["org.opencontainers.image.created"],
        "2026-01-12T14:30:22Z"
    );
    let again: Value = serde_json::from_str(&expect(&label(&layout, &args), 0)).unwrap();
    assert_eq!(again["changed"], false);
    // What is given counts more, and the last of two.
    let own = [
        "--version",
        "2.0.1",
        "-l",
        "org.opencontainers.image.version=x",
        "-l",
        "org.opencontainers.image.version=y",
        "--json",
    ];
    let own: Value = serde_json::from_str(&expect(&label(&layout, &own), 0)).unwrap();
    assert_eq!(
        own["images"][0]["labels"]["org.opencontainers.image.version"],
        "y"
    );
}

#[test]
fn none_takes_an_automatic_label_out_of_the_image() {
    const VERSION: &str = "org.opencontainers.image.version";
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("app-latest-oci");
    image(&layout, &[]);
    let labelled = |args: &[&str]| -> Value {
        let output = label(&layout, &[args, &["--json"]].concat());
        serde_json::from_str(&expect(&output, 0)).unwrap()
    };
    let first = labelled(&["--version", "2.0.1"]);
    assert_eq!(first["images"][0]["labels"][VERSION], "2.0.1");
    // Without the automatic labels nobody asks for it to go.
    let kept = labelled(&["--version", "none", "--no-auto", "-l", "a=b"]);
    assert_eq!(kept["images"][0]["labels"][VERSION], "2.0.1");
    let given = labelled(&["--version", "none", "-l", &format!("{VERSION}=mine")]);
    assert_eq!(given["images"][0]["labels"][VERSION], "mine");
    let dropped = labelled(&["--version", "none"]);
    let labels = &dropped["images"][0]["labels"];
    assert_eq!(labels[VERSION], Value::Null);
    assert_eq!(labels["old"], "1");
    assert_eq!(labelled(&["--version", "none"])["changed"], false);
}

#[test]
fn nested_indexes_follow_and_what_others_refer_to_stays() {
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("app-multiarch-oci");
    let entry = image(&layout, &[]);
    let signature_config = typed(
        put(&layout, &json!({})),
        "application/vnd.oci.empty.v1+json",
    );
    let signature = put(
        &layout,
        &json!({"schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "a/sig", "config": signature_config, "layers": [], "subject": entry}),
    );
    let inner = put(
        &layout,
        &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}),
    );
    let inner = typed(inner, INDEX);
    index(
        &layout,
        &[inner.clone(), typed(signature.clone(), MANIFEST)],
    );
    let output = label(&layout, &["--no-auto", "-l", "a=b", "--json"]);
    let report: Value = serde_json::from_str(&expect(&output, 0)).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("signature"));
    assert_eq!(report["stale"], json!([signature["digest"]]));
    assert_eq!(
        report["removed"],
        json!([inner["digest"]]),
        "the signed manifest stays"
    );
    blob(&layout, &entry["digest"]);
    let top: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    let nested = read(&layout, &top["manifests"][0]["digest"]);
    assert_eq!(
        nested["manifests"][0]["digest"],
        report["images"][0]["digest"]
    );
    assert_eq!(top["manifests"][1]["digest"], signature["digest"]);
}

#[test]
fn bad_layouts_and_arguments_are_told_apart_and_change_nothing() {
    let dir = TempDir::new().unwrap();
    let layout = dir.path().join("app-latest-oci");
    let entry = image(&layout, &[]);
    let raw = std::fs::read(layout.join("index.json")).unwrap();
    for args in [
        &["--label", "novalue"][..],
        &["--label", "=x"],
        &["--no-auto"],
        &["--auto", "--no-auto"],
    ] {
        expect(&label(&layout, args), 2);
    }
    expect(&label(&dir.path().join("none"), &[]), 5);
    // A manifest that is not what its digest says.
    let digest = Digest::parse(entry["digest"].as_str().unwrap()).unwrap();
    let path = layout.join("blobs/sha256").join(digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[10] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    expect(&label(&layout, &["-l", "a=b"]), 6);
    assert_eq!(std::fs::read(layout.join("index.json")).unwrap(), raw);
    assert_eq!(count(&layout), 3);
}
