//! What `bake` writes, read by the engines that it is for.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::fixtures::{copy_tree, layout};
use vdkr_tests::namespaces::as_root;
use vdkr_tests::peers::{skopeo, skopeo_copy};
use vdkr_tests::process::{Background, free_port, run, tool, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::target::Target;

fn push(registry: &Registry, name: &str) {
    let source = layout("qemux86-64", "container-base-latest-oci");
    let copy = TempDir::new().unwrap();
    let named = copy.path().join(format!("{name}-latest-oci"));
    copy_tree(&source, &named);
    registry
        .run(["push", named.to_str().unwrap(), "--tag", "latest"])
        .expect(0);
}

#[test]
fn weakness_4d_1_podman_pulls_a_short_name_from_the_namespace_and_keeps_its_other_registries() {
    let registry = Registry::start();
    push(&registry, "short");
    let target = Target::new();
    target.bake(&registry, &["--profile", "podman", "--no-translate"]);
    let info = run(target
        .podman()
        .args(["info", "--format", "{{json .Registries}}"]))
    .expect(0);
    let info: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(
        info["search"],
        serde_json::json!([registry.host(), "other.invalid"])
    );
    assert_eq!(info[registry.host()]["Insecure"], true, "{info}");
    run(target.podman().args(["pull", "--quiet", "short"])).expect(0);
    // Its full name means what it says.
    let full = format!("{}/yocto/short:latest", registry.host());
    run(target.podman().args(["pull", "--quiet", &full])).expect(0);
    let images = run(target
        .podman()
        .args(["images", "--format", "{{.Repository}}"]))
    .expect(0);
    assert!(
        images
            .text()
            .contains(&format!("{}/yocto/short", registry.host()))
    );

    // An alias needs no search.
    target.bake(
        &registry,
        &[
            "--profile",
            "podman",
            "--no-translate",
            "--search",
            "off",
            "--alias",
            "short",
        ],
    );
    run(target.podman().args(["rmi", "--all", "--force"])).expect(0);
    run(target.podman().args(["pull", "--quiet", "short"])).expect(0);
    let images = run(target
        .podman()
        .args(["images", "--format", "{{.Repository}}"]))
    .expect(0);
    assert_eq!(
        images.text().trim(),
        format!("{}/yocto/short", registry.host())
    );
}

#[test]
fn skopeo_takes_our_word_for_an_insecure_registry() {
    let registry = Registry::start();
    push(&registry, "plain");
    let target = Target::new();
    let image = format!("docker://{}/yocto/plain:latest", registry.host());
    let raw = |target: &Target| {
        let mut command = target.inside("skopeo");
        run(command.args(["inspect", "--raw", &image]))
    };
    assert_ne!(raw(&target).code(), 0, "without bake, skopeo wants TLS");
    target.bake(&registry, &["--profile", "cri-o", "--no-translate"]);
    raw(&target).expect(0);
    let mut undo = registry.command();
    run(undo.args(["bake", "--undo", "--rootfs"]).arg(target.root())).expect(0);
    assert_ne!(raw(&target).code(), 0);
}

#[test]
fn containerd_reads_its_configuration_and_fetches_by_hosts_toml() {
    let registry = Registry::start();
    push(&registry, "app");
    let target = Target::new();
    target.bake(&registry, &["--profile", "containerd", "--no-translate"]);
    let etc = target.root().join("etc/containerd");
    let dump = run(tool("containerd")
        .arg("--config")
        .arg(etc.join("config.toml"))
        .args(["config", "dump"]))
    .expect(0);
    assert!(
        dump.text()
            .contains("config_path = \"/etc/containerd/certs.d\"")
    );

    // What `config default` prints is merged into, and still read.
    let default = run(tool("containerd").args(["config", "default"])).expect(0);
    std::fs::write(etc.join("config.toml"), &default.stdout).unwrap();
    target.bake(&registry, &["--profile", "containerd", "--no-translate"]);
    let dump = run(tool("containerd")
        .arg("--config")
        .arg(etc.join("config.toml"))
        .args(["config", "dump"]))
    .expect(0);
    assert!(
        dump.text()
            .contains("config_path = \"/etc/containerd/certs.d\"")
    );

    let daemon = Containerd::start(target.dir());
    let image = format!("{}/yocto/app:latest", registry.host());
    let fetched = run(daemon
        .ctr()
        .args(["content", "fetch", "--hosts-dir"])
        .arg(etc.join("certs.d"))
        .arg(&image));
    let fetched = fetched.expect(0);
    assert!(
        !fetched.stderr.contains("failed to decode"),
        "{}",
        fetched.stderr
    );
    let listed = run(daemon.ctr().args(["content", "ls", "--quiet"])).expect(0);
    assert!(listed.text().contains("sha256:"));
}

/// A containerd of this test alone.
struct Containerd {
    socket: PathBuf,
    _process: Background,
}

impl Containerd {
    fn start(scratch: &Path) -> Self {
        let at = |name: &str| scratch.join(name);
        let (root, state, socket) = (at("ctd-root"), at("ctd-state"), at("ctd.sock"));
        let config = at("ctd.toml");
        let (root, state) = (root.display(), state.display());
        let (grpc, ttrpc) = (socket.display(), at("ctd-ttrpc.sock"));
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{grpc}\"\n[ttrpc]\naddress = \"{}\"\n",
            ttrpc.display()
        );
        std::fs::write(&config, text).unwrap();
        let program = tool("containerd");
        let child = as_root()
            .arg(program.get_program())
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run containerd");
        let daemon = Self {
            socket,
            _process: Background(child),
        };
        wait_until("containerd answers", Duration::from_secs(20), || {
            daemon.socket.exists() && run(daemon.ctr().arg("version")).code() == 0
        });
        daemon
    }

    fn ctr(&self) -> Command {
        let program = tool("ctr");
        let mut command = as_root();
        command
            .arg(program.get_program())
            .arg("--address")
            .arg(&self.socket);
        command
    }
}

#[test]
fn weakness_4d_4_labels_are_read_by_skopeo_and_umoci() {
    let dir = TempDir::new().unwrap();
    let plain = dir.path().join("plain");
    copy_tree(&layout("qemux86-64", "container-base-latest-oci"), &plain);
    let many = dir.path().join("many");
    copy_tree(&layout("qemux86-64", "container-base-multiarch-oci"), &many);
    let label = |path: &Path, args: &[&str]| {
        let mut command = vdkr_tests::registry::container_registry();
        command
            .env("CONTAINER_REGISTRY_STORAGE", dir.path().join("storage"))
            .env("OCI_IMAGE_REVISION", "a1b2c3d")
            .env("OCI_IMAGE_BRANCH", "none")
            .env_remove("OCI_IMAGE_AUTO_LABELS")
            .env_remove("OCI_IMAGE_BUILD_DATE")
            .arg("label")
            .arg(path)
            .args([
                "--version",
                "1.2.3",
                "--label",
                "com.example.team=core",
                "--json",
            ])
            .args(args);
        let ran = run(&mut command).expect(0);
        serde_json::from_slice::<Value>(&ran.stdout).expect("JSON")
    };
    for (path, platforms) in [(&plain, 1), (&many, 2)] {
        let first = label(path, &[]);
        assert_eq!(first["changed"], true, "{first}");
        let images = first["images"].as_array().unwrap();
        assert_eq!(images.len(), platforms, "{first}");
        for image in images {
            let labels = image["labels"].as_object().unwrap();
            assert_eq!(labels["org.opencontainers.image.revision"], "a1b2c3d");
            assert_eq!(labels["org.opencontainers.image.version"], "1.2.3");
            assert!(labels["org.opencontainers.image.created"].is_string());
            assert!(!labels.contains_key("org.opencontainers.image.ref.name"));
            assert_ne!(image["before"], image["digest"]);
        }
        // Again it changes nothing.
        let again = label(path, &[]);
        assert_eq!(again["changed"], false, "{again}");
        // skopeo verifies every digest while it copies.
        let copy = dir.path().join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        skopeo_copy(
            &format!("oci:{}", path.display()),
            &format!("oci:{}", copy.display()),
        );
        // Nothing that no image needs is left behind.
        let names = |path: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(path.join("blobs/sha256"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(path), names(&copy));
    }
    let config = run(skopeo()
        .args(["inspect", "--config"])
        .arg(format!("oci:{}", plain.display())))
    .expect(0);
    let config: Value = serde_json::from_slice(&config.stdout).unwrap();
    assert_eq!(config["config"]["Labels"]["com.example.team"], "core");
    let index: Value =
        serde_json::from_slice(&std::fs::read(plain.join("index.json")).unwrap()).unwrap();
    let name = index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"]
        .as_str()
        .expect("the layout names its image");
    let stat = run(tool("umoci")
        .args(["stat", "--json", "--image"])
        .arg(format!("{}:{name}", plain.display())))
    .expect(0);
    assert!(stat.text().contains("history"));
}

#[test]
fn podman_trusts_the_baked_ca_and_nothing_less() {
    let storage = TempDir::new().unwrap();
    let secure = [
        ("CONTAINER_REGISTRY_SECURE", "1"),
        ("CONTAINER_REGISTRY_AUTH", "0"),
    ];
    let registry = Registry::start_with(storage.path(), free_port(), &secure);
    push(&registry, "short");
    let target = Target::new();
    let full = format!("{}/yocto/short:latest", registry.host());
    let refused = run(target.podman().args(["pull", "--quiet", &full]));
    assert_ne!(refused.code(), 0);
    assert!(refused.stderr.contains("x509"), "{}", refused.stderr);
    target.bake(&registry, &["--profile", "podman", "--no-translate"]);
    run(target.podman().args(["pull", "--quiet", &full])).expect(0);
}

#[test]
fn dockerd_finds_its_merged_configuration_valid() {
    let registry = Registry::start();
    let target = Target::new();
    let file = target.root().join("etc/docker/daemon.json");
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(
        &file,
        r#"{"log-driver": "json-file", "storage-driver": "vfs"}"#,
    )
    .unwrap();
    target.bake(&registry, &["--profile", "docker"]);
    let validate = |file: &Path| {
        let mut command = tool("dockerd");
        command
            .args(["--validate", "--userland-proxy=false", "--config-file"])
            .arg(file);
        run(&mut command)
    };
    validate(&file).expect(0);
    let baked: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(baked["log-driver"], "json-file");
    assert!(baked["insecure-registries"].is_array(), "{baked}");
    // It does look at what it is given.
    let wrong = target.root().join("wrong.json");
    std::fs::write(&wrong, r#"{"insecure-registries": "x"}"#).unwrap();
    validate(&wrong).expect(1);
}

#[test]
fn openssl_and_curl_find_the_baked_ca_in_the_directory_of_authorities() {
    let storage = TempDir::new().unwrap();
    let secure = [
        ("CONTAINER_REGISTRY_SECURE", "1"),
        ("CONTAINER_REGISTRY_AUTH", "0"),
    ];
    let registry = Registry::start_with(storage.path(), free_port(), &secure);
    let target = Target::new();
    let certs = target.root().join("etc/ssl/certs");
    std::fs::create_dir_all(&certs).unwrap();
    std::fs::write(certs.join("ca-certificates.crt"), "# authorities\n").unwrap();
    let ca = storage.path().join("pki/ca.crt");
    let hash = run(tool("openssl")
        .args(["x509", "-noout", "-hash", "-in"])
        .arg(&ca))
    .expect(0)
    .text();
    // Somebody else's authority of the same subject.
    let twin = certs.join(format!("{}.0", hash.trim()));
    let subject = run(tool("openssl")
        .args(["x509", "-noout", "-subject", "-nameopt", "compat", "-in"])
        .arg(&ca))
    .expect(0)
    .text();
    let subject = subject.trim().trim_start_matches("subject=").to_owned();
    run(tool("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:P-256", "-subj", &subject])
        .arg("-keyout")
        .arg(storage.path().join("twin.key"))
        .arg("-out")
        .arg(&twin))
    .expect(0);
    let before = std::fs::read(&twin).unwrap();

    let verified = || {
        run(tool("openssl")
            .args(["verify", "-no-CAfile", "-no-CAstore", "-CApath"])
            .arg(&certs)
            .arg(storage.path().join("pki/server.crt")))
        .code()
            == 0
    };
    let fetched = || {
        let url = format!("https://{}/v2/", registry.host());
        let mut curl = tool("curl");
        curl.env_remove("SSL_CERT_FILE").env_remove("SSL_CERT_DIR");
        curl.args(["-fsS", "--capath"]);
        run(curl.arg(&certs).arg(url)).code() == 0
    };
    let spoken = || {
        let ran = run(tool("openssl")
            .args(["s_client", "-brief", "-verify_return_error"])
            .args(["-no-CAfile", "-no-CAstore", "-connect", &registry.host()])
            .arg("-CApath")
            .arg(&certs));
        ran.code() == 0
    };
    assert!(!verified() && !spoken() && !fetched());
    target.bake(&registry, &["--profile", "docker"]);
    assert!(verified() && spoken() && fetched());
    assert!(certs.join(format!("{}.1", hash.trim())).is_file());
    assert_eq!(std::fs::read(&twin).unwrap(), before);
    let mut undo = registry.command();
    run(undo.args(["bake", "--undo", "--rootfs"]).arg(target.root())).expect(0);
    assert!(!verified() && !spoken() && !fetched());
    let left = std::fs::read_dir(&certs).unwrap().count();
    assert_eq!(left, 2, "the bundle and the other authority");
}
