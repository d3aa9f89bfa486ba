//! Docker's own engine: it pulls from our registry and pushes to it, plain and secured, and what it
//! keeps is copied out of it.

use serde_json::Value;
use vdkr_tests::engine::{ADDRESS, Computer, RegistryThere};
use vdkr_tests::fixtures::{copy_tree, layout};
use vdkr_tests::layout::digest;

/// What a tag is: its bytes.
fn raw(registry: &RegistryThere<'_>, name: &str) -> Vec<u8> {
    registry.run(["inspect", "--raw", name]).expect(0).stdout
}

/// The digest of the configuration behind a tag, by which the engine knows images; of an index the one
/// for this machine.
fn image_id(registry: &RegistryThere<'_>, name: &str) -> String {
    let config = registry.run(["inspect", "--config", "--raw", name]);
    digest(&config.expect(0).stdout)
}

fn push(registry: &RegistryThere<'_>, name: &str, tag: &str) {
    let source = layout("qemux86-64", name);
    registry
        .run(["push", source.to_str().unwrap(), "--tag", tag])
        .expect(0);
}

/// The digest that the engine names behind a word.
fn named(text: &str, word: &str) -> String {
    let mut words = text.split_whitespace().skip_while(|known| *known != word);
    words
        .nth(1)
        .unwrap_or_else(|| panic!("no {word} in {text}"))
        .to_owned()
}

/// The engine pulls an image, has the same one, gives it back, and takes it again.
fn to_and_fro(computer: &Computer, registry: &RegistryThere<'_>) {
    let host = registry.host();
    let ours = format!("{host}/yocto/container-base:v1");
    let theirs = format!("{host}/yocto/back:v2");
    let known = |name: &str| {
        let shown = computer.docker(["image", "inspect", "--format", "{{.Id}}", name]);
        shown.expect(0).text().trim().to_owned()
    };

    let pulled = computer.docker(["pull", &ours]).expect(0).text();
    assert_eq!(
        named(&pulled, "Digest:"),
        digest(&raw(registry, "container-base:v1")),
        "{pulled}"
    );
    let id = image_id(registry, "container-base:v1");
    assert_eq!(known(&ours), id);

    computer.docker(["tag", &ours, &theirs]).expect(0);
    let pushed = computer.docker(["push", &theirs]).expect(0).text();
    assert_eq!(
        named(&pushed, "digest:"),
        digest(&raw(registry, "back:v2")),
        "{pushed}"
    );
    assert_eq!(image_id(registry, "back:v2"), id);
    computer.docker(["rmi", &ours, &theirs]).expect(0);
    computer.docker(["image", "inspect", &theirs]).expect(1);
    let pulled = computer.docker(["pull", &theirs]).expect(0).text();
    assert!(pulled.contains("Pull complete"), "{pulled}");
    assert_eq!(known(&theirs), id);

    // Out of the engine's own store.
    let from = format!("docker-daemon:{theirs}");
    let to = format!("docker://{host}/yocto/copied:v3");
    let copied = registry.run(["copy", &from, &to]).expect(0).text();
    let there = digest(&raw(registry, "copied:v3"));
    assert_eq!(copied, format!("{to} {there}\n"));
    assert_eq!(image_id(registry, "copied:v3"), id);
    computer.docker(["rmi", &theirs]).expect(0);
    let copy = format!("{host}/yocto/copied:v3");
    let pulled = computer.docker(["pull", &copy]).expect(0).text();
    assert_eq!(named(&pulled, "Digest:"), there);
    assert_eq!(known(&copy), id);
    computer.docker(["rmi", &copy]).expect(0);

    let unknown = registry.run(["copy", &from, "oci:nowhere"]).expect(5);
    assert!(unknown.stderr.contains(&theirs), "{}", unknown.stderr);
    let missing = format!("{host}/yocto/container-base:missing");
    let refused = computer.docker(["pull", &missing]).expect(1);
    assert!(refused.stderr.contains("manifest unknown") || refused.stderr.contains("not found"));
}

#[test]
fn the_engine_and_a_plain_registry() {
    let computer = Computer::start();
    let registry = computer.registry("localhost:5000", &[]);
    push(&registry, "container-base-latest-oci", "v1");
    to_and_fro(&computer, &registry);

    // Of an index it takes what runs here.
    push(&registry, "container-base-multiarch-oci", "all");
    let index: Value = serde_json::from_slice(&raw(&registry, "container-base:all")).unwrap();
    assert!(index["manifests"].as_array().unwrap().len() > 1, "{index}");
    let all = "localhost:5000/yocto/container-base:all";
    computer.docker(["pull", all]).expect(0);
    let format = [
        "image",
        "inspect",
        "--format",
        "{{.Id}} {{.Architecture}}",
        all,
    ];
    let shown = computer.docker(format).expect(0).text();
    let arch = match std::env::consts::ARCH {
        "aarch64" => "arm64",
        _ => "amd64",
    };
    let id = image_id(&registry, "container-base:all");
    assert_eq!(shown, format!("{id} {arch}\n"));
}

#[test]
fn the_engine_and_a_secured_registry() {
    let computer = Computer::start();
    let host = format!("{ADDRESS}:5001");
    let registry = computer.registry(&host, &[("CONTAINER_REGISTRY_SECURE", "1")]);
    push(&registry, "container-base-latest-oci", "v1");
    let image = format!("{host}/yocto/container-base:v1");

    let stranger = computer.docker(["pull", &image]).expect(1);
    assert!(
        stranger
            .stderr
            .contains("certificate signed by unknown authority"),
        "{}",
        stranger.stderr
    );
    // What bake writes for docker is all that it takes to be known.
    let rootfs = computer.path("rootfs");
    std::fs::create_dir(&rootfs).unwrap();
    let rootfs_text = rootfs.to_str().unwrap();
    let bake = ["bake", "--profile", "docker", "--no-translate", "--rootfs"];
    registry.run([&bake[..], &[rootfs_text]].concat()).expect(0);
    copy_tree(&rootfs.join("etc/docker/certs.d"), &computer.path("baked"));
    computer.sh("cp -r baked /etc/docker/certs.d").expect(0);

    let unknown = computer.docker(["pull", &image]).expect(1);
    assert!(
        unknown.stderr.contains("no basic auth credentials"),
        "{}",
        unknown.stderr
    );
    let login = |password: &str| {
        std::fs::write(computer.path("password"), password).unwrap();
        computer.sh(&format!(
            "docker login --username yocto --password-stdin {host} <password"
        ))
    };
    let wrong = login("wrong").expect(1);
    assert!(
        wrong.stderr.contains("401 Unauthorized"),
        "{}",
        wrong.stderr
    );
    let password = std::fs::read_to_string(registry.storage().join("auth/password")).unwrap();
    let right = login(password.trim_end()).expect(0);
    assert!(right.text().contains("Login Succeeded"), "{}", right.text());
    to_and_fro(&computer, &registry);

    computer.docker(["logout", &host]).expect(0);
    let unknown = computer.docker(["pull", &image]).expect(1);
    assert!(
        unknown.stderr.contains("no basic auth credentials"),
        "{}",
        unknown.stderr
    );
}
