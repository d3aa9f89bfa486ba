//! `container-registry bake` on root file systems in temporary directories.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// A self-signed certificate; `bake` looks at its form only.
const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBdzCCAR2gAwIBAgIUQYx9mY2Qn0n2gUO1v1mQdJ8uG2kwCgYIKoZIzj0EAwIw
EjEQMA4GA1UEAwwHdGVzdCBDQTAeFw0yNjAxMDEwMDAwMDBaFw0zNjAxMDEwMDAw
-----END CERTIFICATE-----
";

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        std::fs::create_dir_all(dir.path().join("rootfs/etc")).unwrap();
        std::fs::create_dir(dir.path().join("storage")).unwrap();
        Self { dir }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("rootfs")
    }

    fn put(&self, path: &str, text: &str) {
        let path = self.root().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    fn text(&self, path: &str) -> String {
        std::fs::read_to_string(self.root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    fn mode(&self, path: &str) -> u32 {
        std::fs::metadata(self.root().join(path)).unwrap().mode() & 0o7777
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_container-registry"));
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CONTAINER_REGISTRY_") {
                command.env_remove(name);
            }
        }
        command
            .env(
                "CONTAINER_REGISTRY_STORAGE",
                self.dir.path().join("storage"),
            )
            .arg("bake")
            .arg("--rootfs")
            .arg(self.root());
        command
    }

    #[track_caller]
    fn bake(&self, args: &[&str]) -> String {
        let output = self.command().args(args).output().unwrap();
        expect(&output, 0);
        String::from_utf8(output.stdout).unwrap()
    }

    /// Every file with its content, every directory, and every link, with modes.
    fn snapshot(&self) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        walk(&self.root(), &self.root(), &mut found);
        found
    }
}

fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path
            .strip_prefix(root)
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned();
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_symlink() {
            std::fs::read_link(&path)
                .unwrap()
                .into_os_string()
                .into_encoded_bytes()
        } else if meta.is_dir() {
            walk(root, &path, found);
            Vec::new()
        } else {
            std::fs::read(&path).unwrap()
        };
        found.insert(name, (meta.mode(), content));
    }
}

#[track_caller]
fn expect(output: &Output, code: i32) {
    assert_eq!(
        output.status.code(),
        Some(code),
        "--- stdout\n{}\n--- stderr\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

const ALL: &str = "docker,podman,containerd,cri-o,vdkr";

#[test]
fn bake_again_changes_nothing_and_undo_takes_everything_back() {
    let bench = Bench::new();
    bench.put(
        "etc/docker/daemon.json",
        "{\n  \"log-level\": \"warn\"\n}\n",
    );
    bench.put("etc/passwd", "root:x:0:0:root:/home/root:/bin/sh\n");
    bench.put("etc/ssl/certs/ca-certificates.crt", "# none yet\n");
    let storage = bench.dir.path().join("storage");
    std::fs::create_dir(storage.join("pki")).unwrap();
    std::fs::write(storage.join("pki/ca.crt"), CA).unwrap();
    let authfile = bench.dir.path().join("auth.json");
    std::fs::write(
        &authfile,
        r#"{"auths":{"localhost:5000":{"auth":"eW9jdG86cHc="}}}"#,
    )
    .unwrap();
    let authfile = authfile.to_str().unwrap();
    let before = bench.snapshot();

    let run = |more: &[&str]| {
        let mut args = vec!["--profile", ALL, "--authfile", authfile];
        args.extend(more);
        let output = bench
            .command()
            .env("CONTAINER_REGISTRY_SECURE", "1")
            .args(args)
            .output()
            .unwrap();
        expect(&output, 0);
        (
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (diff, _) = run(&["--diff"]);
    assert!(
        diff.contains("+++ b/etc/docker/certs.d/10.0.2.2:5000/ca.crt"),
        "{diff}"
    );
    assert!(!diff.contains("eW9jdG86cHc="), "{diff}");
    assert_eq!(bench.snapshot(), before, "--diff writes nothing");

    let (first, notes) = run(&[]);
    assert!(
        first.contains("created   /etc/docker/certs.d/10.0.2.2:5000/ca.crt"),
        "{first}"
    );
    assert!(!notes.contains("eW9jdG86cHc="), "{notes}");
    let baked = bench.snapshot();
    assert_eq!(bench.mode("etc/docker/certs.d/10.0.2.2:5000/ca.crt"), 0o644);
    assert_eq!(bench.mode("home/root/.docker/config.json"), 0o600);
    assert_eq!(bench.mode("home/root/.docker"), 0o700);
    assert_eq!(bench.mode("etc/containers/auth.json"), 0o600);
    assert_eq!(bench.mode("etc/vdkr/baked.json"), 0o600);
    assert_eq!(
        bench.text("etc/ssl/certs/ca-certificates.crt"),
        format!("# none yet\n{CA}")
    );

    let (second, words) = run(&[]);
    assert!(
        second.lines().all(|line| line.starts_with("unchanged")),
        "{second}"
    );
    assert!(words.contains("Nothing to change"), "{words}");
    assert_eq!(bench.snapshot(), baked);

    let undone = bench.bake(&["--undo"]);
    assert!(
        undone.contains("removed   /etc/containers/auth.json"),
        "{undone}"
    );
    assert_eq!(bench.snapshot(), before);
    assert_eq!(bench.bake(&["--undo"]), "");
}

#[test]
fn weakness_4d_2_daemon_json_keeps_what_it_has_and_names_the_translated_host() {
    let bench = Bench::new();
    bench.put(
        "etc/docker/daemon.json",
        "{\"zz\": 1, \"insecure-registries\": [\"lab:5000\"], \"a\": [ ]}",
    );
    bench.bake(&["--profile", "docker"]);
    assert_eq!(
        bench.text("etc/docker/daemon.json"),
        "{\"zz\": 1, \"insecure-registries\": [\"lab:5000\", \"10.0.2.2:5000\"], \"a\": [ ]}"
    );
    bench.bake(&["--profile", "docker", "--no-translate"]);
    assert!(
        bench
            .text("etc/docker/daemon.json")
            .contains("[\"lab:5000\", \"localhost:5000\"]")
    );
    bench.bake(&["--profile", "docker", "--gateway", "192.168.7.1"]);
    assert!(
        bench
            .text("etc/docker/daemon.json")
            .contains("[\"lab:5000\", \"192.168.7.1:5000\"]")
    );
}

#[test]
fn weakness_4d_3_links_within_the_rootfs_are_followed_and_nothing_outside_is_touched() {
    let bench = Bench::new();
    let outside = bench.dir.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir_all(bench.root().join("data")).unwrap();
    symlink("/data", bench.root().join("etc/docker")).unwrap();
    symlink(&outside, bench.root().join("etc/containers")).unwrap();
    symlink("../../../../outside/x", bench.root().join("etc/vdkr")).unwrap();
    bench.bake(&["--profile", ALL]);
    assert!(bench.text("data/daemon.json").contains("10.0.2.2:5000"));
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    let before = bench.snapshot();
    bench.bake(&["--profile", ALL]);
    assert_eq!(bench.snapshot(), before);
    bench.bake(&["--undo"]);
    assert!(!bench.root().join("data/daemon.json").exists());
}

#[test]
fn what_was_changed_since_is_left_and_named() {
    let bench = Bench::new();
    bench.bake(&["--profile", "docker,vdkr"]);
    bench.put("etc/docker/daemon.json", "{}");
    let output = bench.command().arg("--undo").output().unwrap();
    expect(&output, 7);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("/etc/docker/daemon.json was changed"),
        "{words}"
    );
    assert!(!bench.root().join("etc/vdkr").exists());
    assert_eq!(bench.text("etc/docker/daemon.json"), "{}");
}

#[test]
fn json_says_what_happened() {
    let bench = Bench::new();
    let report: Value =
        serde_json::from_str(&bench.bake(&["--profile", "podman", "--alias", "app", "--json"]))
            .unwrap();
    assert_eq!(report["changed"], true);
    assert_eq!(report["profiles"], serde_json::json!(["podman"]));
    assert_eq!(report["files"][0]["action"], "create");
    assert_eq!(report["files"][0]["mode"], "0644");
    let again: Value =
        serde_json::from_str(&bench.bake(&["--profile", "podman", "--alias", "app", "--json"]))
            .unwrap();
    assert_eq!(again["changed"], false);
    assert!(
        bench
            .text("etc/containers/registries.conf.d/50-container-registry.conf")
            .contains("\"app\" = \"10.0.2.2:5000/yocto/app\"")
    );
}

#[test]
fn bad_arguments_change_nothing() {
    let bench = Bench::new();
    let key = bench.dir.path().join("key.pem");
    std::fs::write(&key, format!("{CA}-----BEGIN PRIVATE KEY-----\n")).unwrap();
    let empty = bench.dir.path().join("empty.json");
    std::fs::write(&empty, r#"{"credsStore":"pass"}"#).unwrap();
    let (key, empty) = (key.to_str().unwrap(), empty.to_str().unwrap());
    let before = bench.snapshot();
    for (args, code) in [
        (&[][..], 2),
        (&["--profile", "kubernetes"], 2),
        (&["--profile", "docker", "--registry", "not a host"], 2),
        (&["--profile", "docker", "--registry", "ftp://x/"], 2),
        (&["--profile", "docker", "--gateway", "a b"], 2),
        (
            &["--profile", "docker", "--gateway", "h", "--no-translate"],
            2,
        ),
        (&["--profile", "podman", "--alias", "Not/Legal"], 2),
        (&["--profile", "docker", "--ca", "/no/such"], 5),
        (
            &[
                "--profile",
                "docker",
                "--registry",
                "build:5000",
                "--ca",
                key,
            ],
            2,
        ),
        (
            &[
                "--profile",
                "docker",
                "--registry",
                "http://build:5000",
                "--ca",
                key,
            ],
            2,
        ),
        (&["--profile", "docker", "--authfile", empty], 2),
        (&["--undo", "--profile", "docker"], 2),
    ] {
        let output = bench.command().args(args).output().unwrap();
        expect(&output, code);
        assert_eq!(bench.snapshot(), before, "{args:?}");
    }
    bench.put("etc/docker/daemon.json", "[");
    let output = bench.command().args(["--profile", ALL]).output().unwrap();
    expect(&output, 1);
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(
        words.contains("/etc/docker/daemon.json: it is not JSON"),
        "{words}"
    );
    assert!(!bench.root().join("etc/vdkr").exists(), "nothing half-done");
    let mut gone = bench.command();
    gone.args(["--rootfs", "/no/such/rootfs", "--profile", "docker"]);
    expect(&gone.output().unwrap(), 2); // --rootfs twice
}

#[test]
fn a_memory_that_anybody_may_write_is_not_believed() {
    let bench = Bench::new();
    bench.bake(&["--profile", "docker"]);
    let state = bench.root().join("etc/vdkr/baked.json");
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o666)).unwrap();
    expect(&bench.command().arg("--undo").output().unwrap(), 1);
    assert!(bench.root().join("etc/docker/daemon.json").exists());
}
