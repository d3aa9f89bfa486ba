//! Images whose layers this computer keeps, saved and pushed: their layers become the archives again
//! that they were.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::peers::skopeo;
use vdkr_tests::process::{run, run_tool};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

const IMAGE: &str = "container-base-latest-oci";

/// Files in the user's cache of layers that end like this.
fn kept(user: &User, end: &str) -> Vec<PathBuf> {
    let directory = user.home().join(".vdkr/layers/sha256");
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.to_str().unwrap().ends_with(end))
        .collect()
}

fn sha256(path: &Path) -> String {
    let sum = run_tool("sha256sum", [path.to_str().unwrap()]);
    format!("sha256:{}", sum.text().split_whitespace().next().unwrap())
}

/// Unpacks a saved archive and looks whether each layer is what the configuration calls it; how many
/// there are.
fn verified_layers(archive: &Path) -> usize {
    let dir = TempDir::new().unwrap();
    let place = dir.path().to_str().unwrap();
    run_tool("tar", ["-C", place, "-xf", archive.to_str().unwrap()]);
    let json = |name: &str| -> Value {
        serde_json::from_slice(&fs::read(dir.path().join(name)).unwrap()).unwrap()
    };
    let list = json("manifest.json");
    let config = json(list[0]["Config"].as_str().unwrap());
    let diff_ids = config["rootfs"]["diff_ids"].as_array().unwrap();
    let layers = list[0]["Layers"].as_array().unwrap();
    assert_eq!(diff_ids.len(), layers.len());
    for (diff_id, layer) in diff_ids.iter().zip(layers) {
        let layer = dir.path().join(layer.as_str().unwrap());
        assert_eq!(sha256(&layer), diff_id.as_str().unwrap());
    }
    layers.len()
}

#[test]
fn images_pulled_on_the_host_are_saved_and_pushed() {
    let registry = Registry::start();
    let image = layout("qemux86-64", IMAGE);
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    let user = User::new("x86_64");
    user.run(["vconfig", "registry", &format!("{}/yocto", registry.host())])
        .expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user.run(["pull", "-q", "container-base"]).expect(0);
    let layers = kept(&user, ".erofs").len();
    assert!(layers > 0);
    assert_eq!(kept(&user, ".recipe").len(), layers);
    let id = user.run(["inspect", "-f", "{{.Id}}", "container-base"]);
    let id = id.expect(0).text().trim().to_owned();

    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name);
    let save = |name: &str| {
        let path = at(name);
        user.run(["save", "-o", path.to_str().unwrap(), "container-base"])
    };
    save("a.tar").expect(0);
    assert_eq!(verified_layers(&at("a.tar")), layers);
    // skopeo reads it.
    let source = format!("docker-archive:{}", at("a.tar").display());
    let copy = format!("oci:{}:x", at("copy").display());
    run(skopeo().args(["copy", &source, &copy])).expect(0);
    let config = run(skopeo().args(["inspect", "--config", "--raw", &source])).expect(0);
    fs::write(at("config"), config.stdout).unwrap();
    assert_eq!(sha256(&at("config")), id);

    // To a registry that has none of it, as an image of another name.
    let empty = Registry::start();
    let place = format!("{}/team/base:1", empty.host());
    user.run(["tag", "container-base", &place]).expect(0);
    let pushed = user.run(["push", &place]).expect(0);
    assert!(
        pushed.text().starts_with("1: digest: sha256:"),
        "{pushed:?}"
    );
    let twice = user.run(["push", &place]).expect(0);
    assert_eq!(twice.text(), pushed.text());
    let source = format!("docker://{place}");
    let theirs = run(skopeo().args([
        "inspect",
        "--config",
        "--raw",
        "--tls-verify=false",
        &source,
    ]));
    fs::write(at("config"), theirs.expect(0).stdout).unwrap();
    assert_eq!(sha256(&at("config")), id);

    // Layers that were cached without their recipes are pulled again.
    for recipe in kept(&user, ".recipe") {
        fs::remove_file(recipe).unwrap();
    }
    save("b.tar").expect(0);
    assert_eq!(kept(&user, ".recipe").len(), layers);
    assert!(fs::read(at("a.tar")).unwrap() == fs::read(at("b.tar")).unwrap());
    // Layers that are gone, too; the machine has them open all the while.
    for file in kept(&user, "") {
        fs::remove_file(file).unwrap();
    }
    save("b.tar").expect(0);
    assert!(fs::read(at("a.tar")).unwrap() == fs::read(at("b.tar")).unwrap());
    let ran = user.run(["run", "--rm", "container-base", "echo", "ok"]);
    assert_eq!(ran.expect(0).text(), "ok\n");

    // What cannot be made again is no archive.
    let recipe = kept(&user, ".recipe").remove(0);
    fs::remove_file(&recipe).unwrap();
    fs::write(&recipe, "damage").unwrap();
    registry.stop();
    let failed = save("c.tar");
    assert_ne!(failed.code(), 0, "{failed:?}");
    assert!(!at("c.tar").exists());

    // What was saved is loaded, and what was pushed is pulled in a machine that has nothing of it.
    let other = User::new("x86_64");
    other.run(["vconfig", "pull-in", "guest"]).expect(0);
    other.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let loaded = other.run(["load", "-q", "-i", at("a.tar").to_str().unwrap()]);
    loaded.expect(0);
    let shown = other.run(["inspect", "-f", "{{.Id}}", "yocto/container-base"]);
    assert_eq!(shown.code(), 0, "{shown:?}");
    assert_eq!(shown.text().trim(), id);
    other.run(["rmi", "-f", &id]).expect(0);
    let ran = other.run(["run", "--rm", &place, "echo", "ok"]);
    assert_eq!(ran.expect(0).text(), "ok\n");
}
