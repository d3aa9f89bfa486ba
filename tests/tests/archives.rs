//! Archives and directories of images that skopeo and umoci write are read by us, and ours by them.

use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::digest;
use vdkr_tests::namespaces::as_root;
use vdkr_tests::peers::{skopeo, skopeo_copy, skopeo_raw};
use vdkr_tests::process::{run, run_tool, tool};
use vdkr_tests::registry::{Registry, container_registry};

fn oci(path: &Path) -> String {
    format!("oci:{}", path.display())
}

/// The digest of the one manifest that a layout's index.json names.
fn only_manifest(layout: &Path) -> String {
    let index = std::fs::read(layout.join("index.json")).unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

/// Copies with ours and gives the digest it says.
#[track_caller]
fn copy(home: &TempDir, from: &str, to: &str) -> String {
    let mut command = container_registry();
    command.env("HOME", home.path()).args(["copy", from, to]);
    let line = run(&mut command).expect(0).text();
    line.split_whitespace().last().unwrap().to_owned()
}

fn file(dir: &TempDir, transport: &str, name: &str) -> String {
    format!("{transport}:{}", dir.path().join(name).display())
}

#[test]
fn what_skopeo_writes_is_read_by_us() {
    let dir = TempDir::new().unwrap();
    for (machine, name) in [
        ("qemux86-64", "container-base-latest-oci"),
        ("qemux86-64", "container-base-multiarch-oci"),
    ] {
        let source = layout(machine, name);
        let wanted = only_manifest(&source);
        for transport in ["oci-archive", "dir"] {
            let made = file(&dir, transport, &format!("{name}.{transport}"));
            let named = if transport == "dir" {
                made.clone()
            } else {
                format!("{made}:v1")
            };
            skopeo_copy(&oci(&source), &named);
            let back = dir.path().join(format!("{name}.{transport}.back"));
            assert_eq!(copy(&dir, &named, &oci(&back)), wanted);
            assert_eq!(only_manifest(&back), wanted);
        }
    }
}

#[test]
fn what_we_write_is_read_by_skopeo() {
    let dir = TempDir::new().unwrap();
    for (machine, name) in [
        ("qemux86-64", "container-base-latest-oci"),
        ("qemux86-64", "container-base-multiarch-oci"),
    ] {
        let source = layout(machine, name);
        let wanted = only_manifest(&source);
        for transport in ["oci", "oci-archive", "dir"] {
            let made = file(&dir, transport, &format!("{name}.{transport}"));
            let named = if transport == "dir" {
                made.clone()
            } else {
                format!("{made}:v1")
            };
            assert_eq!(copy(&dir, &oci(&source), &named), wanted);
            assert_eq!(digest(&skopeo_raw(&named)), wanted);
            let back = dir.path().join(format!("{name}.{transport}.back"));
            skopeo_copy(&named, &format!("{}:v1", oci(&back)));
            assert_eq!(only_manifest(&back), wanted);
        }
    }
}

#[test]
fn docker_archives_go_both_ways_with_their_layers() {
    let dir = TempDir::new().unwrap();
    let source = layout("qemux86-64", "container-base-latest-oci");
    let diff_ids = |reference: &str| -> Value {
        let ran = run(skopeo().args(["inspect", "--config", "--raw", reference])).expect(0);
        let config: Value = serde_json::from_slice(&ran.stdout).unwrap();
        config["rootfs"]["diff_ids"].clone()
    };
    let wanted = diff_ids(&oci(&source));
    // Theirs has plain layers; what we read has the digests of those.
    let theirs = format!("{}:app:v1", file(&dir, "docker-archive", "theirs.tar"));
    run(skopeo().args(["copy", "--quiet", &oci(&source), &theirs])).expect(0);
    let back = dir.path().join("theirs.back");
    copy(&dir, &theirs, &format!("{}:v1", oci(&back)));
    assert_eq!(diff_ids(&format!("{}:v1", oci(&back))), wanted);
    run(skopeo().args([
        "copy",
        "--quiet",
        &format!("{}:v1", oci(&back)),
        &file(&dir, "dir", "d1"),
    ]))
    .expect(0);
    // Ours keeps the manifest, and skopeo reads it by Docker's list.
    let ours = format!("{}:app:v1", file(&dir, "docker-archive", "ours.tar"));
    assert_eq!(copy(&dir, &oci(&source), &ours), only_manifest(&source));
    assert_eq!(diff_ids(&ours), wanted);
    run(skopeo().args(["copy", "--quiet", &ours, &file(&dir, "dir", "d2")])).expect(0);
    let again = dir.path().join("ours.back");
    assert_eq!(copy(&dir, &ours, &oci(&again)), only_manifest(&source));
}

#[test]
fn layouts_of_umoci_and_archives_of_any_compression_are_pushed() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::start();
    let made = dir.path().join("made-oci");
    run_tool("umoci", ["init", "--layout", made.to_str().unwrap()]).expect(0);
    let image = format!("{}:v1", made.display());
    run_tool("umoci", ["new", "--image", &image]).expect(0);
    std::fs::write(dir.path().join("file"), "content").unwrap();
    let file = dir.path().join("file");
    run_tool(
        "umoci",
        ["insert", "--image", &image, file.to_str().unwrap(), "/file"],
    )
    .expect(0);
    let wanted = digest(&skopeo_raw(&format!("oci:{image}")));
    let tar = dir.path().join("made-oci.tar");
    run_tool(
        "tar",
        [
            "-C",
            made.to_str().unwrap(),
            "-cf",
            tar.to_str().unwrap(),
            ".",
        ],
    )
    .expect(0);
    run_tool("gzip", ["-k", tar.to_str().unwrap()]).expect(0);
    for (at, path) in [
        made.clone(),
        tar.clone(),
        dir.path().join("made-oci.tar.gz"),
    ]
    .iter()
    .enumerate()
    {
        let tag = format!("t{at}");
        registry
            .run(["push", path.to_str().unwrap(), "--tag", &tag])
            .expect(0);
        let raw = skopeo_raw(&format!("docker://{}/yocto/made:{tag}", registry.host()));
        let index: Value = serde_json::from_slice(&raw).unwrap();
        assert_eq!(index["manifests"][0]["digest"], wanted.as_str());
    }
    // And umoci unpacks what comes back.
    let back = dir.path().join("back");
    let from = format!("docker://{}/yocto/made@{wanted}", registry.host());
    let to = format!("oci:{}:v1", back.display());
    registry.run(["copy", &from, &to]).expect(0);
    let bundle = dir.path().join("bundle");
    let image = format!("{}:v1", back.display());
    run(tool("umoci")
        .args(["unpack", "--rootless", "--image", &image])
        .arg(&bundle))
    .expect(0);
    let unpacked = std::fs::read(bundle.join("rootfs/file")).unwrap();
    assert_eq!(unpacked, b"content");
}

#[test]
fn inspect_says_what_skopeo_says() {
    let registry = Registry::start();
    let source = layout("qemux86-64", "container-base-latest-oci");
    registry
        .run(["push", source.to_str().unwrap(), "--tag", "v1"])
        .expect(0);
    let reference = format!("docker://{}/yocto/container-base:v1", registry.host());
    let theirs = run(skopeo().args(["inspect", "--tls-verify=false", &reference])).expect(0);
    let theirs: Value = serde_json::from_slice(&theirs.stdout).unwrap();
    let ours = registry.run(["inspect", "container-base:v1"]).expect(0);
    let ours: Value = serde_json::from_slice(&ours.stdout).unwrap();
    for (key, value) in theirs.as_object().unwrap() {
        assert_eq!(&ours[key], value, "{key}");
    }
    assert_eq!(ours["Digest"], theirs["Digest"]);
    let ours = registry
        .run(["inspect", "--raw", "container-base:v1"])
        .expect(0);
    assert_eq!(ours.stdout, skopeo_raw(&reference));
}

#[test]
fn an_image_that_podman_keeps_is_copied() {
    let dir = TempDir::new().unwrap();
    let settings = dir.path().join("storage.conf");
    let text = format!(
        "[storage]\ndriver = \"vfs\"\ngraphroot = \"{0}/graph\"\nrunroot = \"{0}/run\"\n",
        dir.path().display()
    );
    std::fs::write(&settings, text).unwrap();
    let inside = |command: &Command| {
        let mut inside = as_root();
        inside
            .arg(command.get_program())
            .args(command.get_args())
            .envs(
                command
                    .get_envs()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .env("HOME", dir.path())
            .env("CONTAINERS_STORAGE_CONF", &settings)
            .env_remove("XDG_RUNTIME_DIR");
        inside
    };
    let podman = |arguments: &[&str]| {
        let mut command = tool("podman");
        command.args(["--events-backend", "none"]).args(arguments);
        run(&mut inside(&command)).expect(0).text()
    };
    let source = layout("qemux86-64", "container-base-latest-oci");
    let archive = dir.path().join("app.tar").display().to_string();
    skopeo_copy(
        &oci(&source),
        &format!("oci-archive:{archive}:localhost/app:v1"),
    );
    podman(&["load", "--quiet", "--input", &archive]);
    let id = podman(&[
        "image",
        "inspect",
        "--format",
        "{{.Id}}",
        "localhost/app:v1",
    ]);

    let registry = Registry::start();
    let to = format!("docker://{}/yocto/app:v1", registry.host());
    let copy = |name: &str| {
        let mut command = registry.command();
        command.args(["copy", &format!("containers-storage:localhost/{name}"), &to]);
        run(&mut inside(&command))
    };
    copy("app:v1").expect(0);
    // What podman calls the image's id is the digest of its configuration.
    let manifest: Value = serde_json::from_slice(&skopeo_raw(&to)).unwrap();
    let config = manifest["config"]["digest"].as_str().unwrap();
    assert_eq!(config, format!("sha256:{}", id.trim()));
    copy("missing:v1").expect(5);
}
