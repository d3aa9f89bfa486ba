//! `vdkr-agent configure` and `status` on the root file system of a full image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::{Value, json};
use tempfile::TempDir;

const CA: &str = include_str!("ca.pem");
const CONF: &str = "\
# made by the build
VDKR_DEFAULT_REGISTRY=\"registry.lab:5000/yocto\" # $(touch pwned)
VDKR_INSECURE_REGISTRIES=\"\"
touch pwned=1
";

struct Target(TempDir);

impl Target {
    /// A target with these programs.
    fn with(programs: &[&str]) -> Self {
        let target = Self(TempDir::new().unwrap());
        for program in programs {
            target.write(&format!("usr/bin/{program}"), "");
        }
        target
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap()
    }

    fn json(&self, path: &str) -> Value {
        serde_json::from_str(&self.read(path)).unwrap()
    }

    fn agent(&self, command: &str, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .arg(command)
            .arg("--root")
            .arg(self.0.path())
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    #[track_caller]
    fn run(&self, command: &str, arguments: &[&str], status: i32) -> String {
        let output = self.agent(command, arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(status), "{words}");
        String::from_utf8(output.stdout).unwrap() + &words
    }

    /// Every file with its content.
    fn all(&self) -> Vec<(PathBuf, Vec<u8>)> {
        fn walk(dir: &Path, found: &mut Vec<(PathBuf, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    found.push((path.clone(), Vec::new()));
                    walk(&path, found);
                } else {
                    found.push((path.clone(), fs::read(&path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(self.0.path(), &mut found);
        found.sort();
        found
    }
}

#[test]
fn engines_that_are_there_learn_of_the_registry_and_its_ca() {
    let target = Target::with(&["dockerd", "podman"]);
    target.write(
        "etc/vdkr/registry.conf",
        CONF.trim_end_matches("touch pwned=1\n"),
    );
    target.write("etc/vdkr/ca.crt", CA);
    target.write("etc/docker/daemon.json", r#"{"log-driver": "journald"}"#);
    let before = target.all();

    let shown = target.run("configure", &["--diff"], 0);
    assert!(shown.contains("+++") && shown.contains("ca.crt"), "{shown}");
    assert_eq!(target.all(), before, "--diff writes nothing");

    target.run("configure", &[], 0);
    for path in [
        "etc/docker/certs.d/registry.lab:5000/ca.crt",
        "etc/containers/certs.d/registry.lab:5000/ca.crt",
        "usr/local/share/ca-certificates/container-registry-ca.crt",
    ] {
        assert_eq!(target.read(path).trim(), CA.trim(), "{path}");
    }
    assert_eq!(
        target.json("etc/docker/daemon.json")["log-driver"],
        "journald"
    );
    let drop = target.read("etc/containers/registries.conf.d/50-container-registry.conf");
    assert!(drop.contains("registry.lab:5000"), "{drop}");
    assert!(!target.path("pwned").exists());

    let status = target.run("status", &[], 0);
    for line in [
        "registry: registry.lab:5000/yocto",
        "ca: /etc/vdkr/ca.crt",
        "configured: docker, podman, vdkr",
    ] {
        assert!(status.contains(line), "{status}");
    }
    let after = target.all();
    let again = target.run("configure", &[], 0);
    assert!(again.contains("nothing to change"), "{again}");
    assert_eq!(target.all(), after);

    target.run("configure", &["--undo"], 0);
    assert_eq!(target.all(), before);
}

#[test]
fn tools_of_podmans_files_are_configured_without_podman() {
    for program in ["skopeo", "buildah"] {
        let target = Target::with(&[program]);
        target.write("etc/vdkr/registry.conf", "VDKR_DEFAULT_REGISTRY=lab:5000\n");
        target.run("configure", &[], 0);
        let drop = target.read("etc/containers/registries.conf.d/50-container-registry.conf");
        assert!(drop.contains("lab:5000"), "{program}: {drop}");
        let status = target.run("status", &[], 0);
        assert!(status.contains("configured: podman"), "{status}");
    }
}

#[test]
fn an_insecure_registry_is_merged_into_what_engines_have() {
    let target = Target::with(&["dockerd"]);
    target.write(
        "etc/vdkr/registry.conf",
        "VDKR_DEFAULT_REGISTRY=10.0.2.2:5000/yocto\nVDKR_INSECURE_REGISTRIES='10.0.2.2:5000'\n",
    );
    target.write(
        "etc/docker/daemon.json",
        r#"{"insecure-registries": ["old:1"]}"#,
    );
    target.run("configure", &[], 0);
    assert_eq!(
        target.json("etc/docker/daemon.json")["insecure-registries"],
        json!(["old:1", "10.0.2.2:5000"])
    );
    // A person's later change is not lost.
    target.write("etc/docker/daemon.json", r#"{"insecure-registries": []}"#);
    let left = target.run("configure", &["--undo"], 1);
    assert!(left.contains("daemon.json"), "{left}");
    assert_eq!(
        target.json("etc/docker/daemon.json"),
        json!({"insecure-registries": []})
    );
}

#[test]
fn what_cannot_be_configured_is_said_and_nothing_is_written() {
    let target = Target::with(&["dockerd"]);
    let before = target.all();
    let words = target.run("configure", &[], 5);
    assert!(words.contains("VDKR_DEFAULT_REGISTRY"), "{words}");
    let words = target.run("configure", &["--registry", "Not A Host"], 2);
    assert!(words.contains("--registry"), "{words}");
    target.run(
        "configure",
        &["--registry", "h:1", "--ca", "/nonexistent/ca"],
        5,
    );
    target.run("configure", &["--profile", "lxc"], 2);
    assert_eq!(target.all(), before);

    target.write("etc/vdkr/registry.conf", CONF);
    let words = target.run("configure", &[], 1);
    assert!(words.contains("line 4"), "{words}");
    let status = target.run("status", &[], 1);
    assert!(status.contains("line 4"), "{status}");

    // The same as a usage mistake of `bake`.
    target.write(
        "etc/vdkr/registry.conf",
        "VDKR_DEFAULT_REGISTRY=h:1\nVDKR_INSECURE_REGISTRIES=h:1\n",
    );
    target.write("etc/vdkr/ca.crt", CA);
    target.run("configure", &[], 2);
    assert!(!target.path("etc/docker").exists());

    let output = Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
        .args(["status", "--root", "/nonexistent/root"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
}
