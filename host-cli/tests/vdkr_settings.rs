//! Settings of the configuration file and of variables, each by what it does.

mod fake_agent;
mod user;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Output,
};

use serde_json::{Value, json};
use user::{User, status, stderr, stdout};
use vdkr_core::channel::message::{RegistrySettings, Request};

const PEM: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";

/// A value by `vconfig`, or by a variable.
#[derive(Clone, Copy, Debug)]
enum By {
    Key(&'static str),
    Variable(&'static str),
}

impl User {
    /// Runs a command with this value set, which is taken back.
    fn with(&self, by: By, value: &str, args: &[&str]) -> Output {
        let mut command = self.command(args);
        match by {
            By::Variable(name) => {
                command.env(name, value);
            }
            By::Key(key) => status(&self.run(&["vconfig", key, value]), 0),
        }
        let output = command.output().unwrap();
        if let By::Key(key) = by {
            status(&self.run(&["vconfig", key, "--reset"]), 0);
        }
        output
    }

    /// What a machine is told of registries by a pull with this value set.
    fn registries(&self, by: By, value: &str) -> RegistrySettings {
        let args = ["--registry", "localhost:5000/yocto", "pull", "x"];
        status(&self.with(by, value, &args), 0);
        self.last_pull().settings
    }

    /// The machine that seems to run was started like this.
    fn machine_is(&self, more: &Value) {
        let mut told = json!({
            "pid": 1, "qemu_pid": null, "software": "vdkr", "agent": "agent", "arch": "x86_64",
            "accel": "tcg", "machine": "microvm", "cpu": "max", "cpus": 1, "memory_mib": 512,
            "kernel": "/k", "initrd": "/i", "started_unix_ms": 0, "idle_timeout": 1800,
        });
        for (key, value) in more.as_object().unwrap() {
            told[key] = value.clone();
        }
        fs::write(self.state_dir().join("monitor.json"), told.to_string()).unwrap();
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.home.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

#[test]
fn which_registries_are_trusted() {
    let user = User::with_agent();
    let ca = user.file("ca.crt", PEM);
    for by in [By::Key("ca-cert"), By::Variable("VDKR_CA_CERT")] {
        let told = user.registries(by, ca.to_str().unwrap());
        assert_eq!(told.ca_pem.as_deref(), Some(PEM), "{by:?}");
        assert!(told.secure, "{by:?}");
    }
    for by in [
        By::Key("secure-registry"),
        By::Variable("VDKR_SECURE_REGISTRY"),
    ] {
        assert!(user.registries(by, "true").secure, "{by:?}");
        assert!(!user.registries(by, "false").secure, "{by:?}");
    }
    for by in [
        By::Key("insecure-registry"),
        By::Variable("VDKR_INSECURE_REGISTRY"),
    ] {
        let told = user.registries(by, "localhost:5001,10.0.0.0/8");
        assert_eq!(told.insecure, ["10.0.2.2:5001", "10.0.0.0/8"], "{by:?}");
        assert_eq!(told.ca_pem, None);
    }
}

#[test]
fn where_the_configuration_is() {
    let user = User::with_agent();
    let dir = user.home.path().join("elsewhere");
    let dir = dir.to_str().unwrap();
    let set = ["--config-dir", dir, "vconfig", "registry", "h.example:1/x"];
    status(&user.run(&set), 0);
    assert!(Path::new(dir).join("config.toml").is_file() && !user.config().exists());
    let asked = |variable: Option<&str>, option: &[&str]| {
        let mut command = user.command(&[option, &["pull", "y"]].concat());
        command.envs(variable.map(|dir| ("VDKR_CONFIG_DIR", dir)));
        status(&command.output().unwrap(), 0);
        user.last_pull().settings.registry
    };
    let there = Some("h.example:1/x".to_owned());
    assert_eq!(asked(None, &[]), None);
    assert_eq!(asked(None, &["--config-dir", dir]), there);
    assert_eq!(asked(Some(dir), &[]), there);
    assert_eq!(asked(Some("/nonexistent"), &["--config-dir", dir]), there);
}

#[test]
fn where_states_and_images_are() {
    let user = User::new();
    for by in [By::Key("state-dir"), By::Variable("VDKR_STATE_ROOT")] {
        let root = user.home.path().join(format!("{by:?}").replace('"', ""));
        let output = user.with(by, root.to_str().unwrap(), &["memres", "status"]);
        status(&output, 3);
        let dir = root.join("x86_64").display().to_string();
        assert!(stdout(&output).contains(&dir), "{by:?}: {output:?}");
    }
    for (by, origin) in [
        (By::Key("blob-dir"), "the configuration"),
        (By::Variable("VDKR_BLOB_DIR"), "VDKR_BLOB_DIR"),
    ] {
        let output = user.with(by, "/no/blobs", &["--stateless", "images"]);
        status(&output, 1);
        let words = stderr(&output);
        let expected = format!("/no/blobs (from {origin}) holds no x86_64");
        assert!(words.contains(&expected), "{by:?}: {words}");
    }
}

#[test]
fn how_much_is_said() {
    let user = User::with_agent();
    for by in [By::Key("verbose"), By::Variable("VDKR_VERBOSE")] {
        for (value, says) in [("true", true), ("false", false)] {
            let args = ["--registry", "r.example.com:1", "pull", "x"];
            let words = stderr(&user.with(by, value, &args));
            let origin = "registry r.example.com:1 (option --registry)";
            assert_eq!(words.contains(origin), says, "{by:?}: {words}");
        }
    }
}

#[test]
fn for_how_long_an_idle_machine_stays() {
    let user = User::new();
    let script = "#!/bin/sh\ntr '\\0' ' ' </proc/$PPID/cmdline >$HOME/line\nexit 9\n";
    let program = user.file("bin/qemu-system-x86_64", script);
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let kernel = user.file("bin/kernel", "\x7fELF");
    let kernel = kernel.to_str().unwrap();
    let path = format!("{}:/usr/bin:/bin", user.home.path().join("bin").display());
    let started_with = |variable: Option<&str>| {
        let options = ["--accel", "tcg", "--kernel", kernel, "--initrd", kernel];
        let mut command = user.command(&[&options[..], &["memres", "start"]].concat());
        command.env("PATH", &path);
        if let Some(value) = variable {
            command.env("VDKR_IDLE_TIMEOUT", value);
        }
        status(&command.output().unwrap(), 3);
        fs::read_to_string(user.home.path().join("line")).unwrap()
    };
    let line = started_with(Some("71"));
    assert!(line.contains("--idle-timeout 71"), "{line}");
    status(&user.run(&["vconfig", "idle-timeout", "72"]), 0);
    let line = started_with(None);
    assert!(line.contains("--idle-timeout 72"), "{line}");
}

#[test]
fn what_a_running_machine_does_not_follow_is_told_once() {
    let user = User::with_agent();
    user.machine_is(&json!({}));
    let images = |variable: (&str, &str)| {
        let mut command = user.command(&["images"]);
        let output = command.env(variable.0, variable.1).output().unwrap();
        status(&output, 0);
        stderr(&output)
    };
    for (name, value) in [
        ("VDKR_MEMORY", "1G"),
        ("VDKR_CPUS", "2"),
        ("VDKR_CPU", "host"),
        ("VDKR_MACHINE", "q35"),
        ("VDKR_ACCEL", "kvm"),
    ] {
        let words = images((name, value));
        let expected = format!("{name} has no effect on the machine that is running");
        assert!(words.contains(&expected), "{words}");
    }
    assert_eq!(images(("VDKR_MEMORY", "512M")), "");

    let late = |args: &[&str]| {
        let output = user.run(&[&["vconfig"], args].concat());
        status(&output, 0);
        stderr(&output).contains("holds after: vdkr memres restart")
    };
    for args in [
        ["memory", "1G"],
        ["cpus", "2"],
        ["cpu", "host"],
        ["machine", "q35"],
        ["accel", "kvm"],
        ["blob-dir", "/no/blobs"],
        ["idle-timeout", "60"],
    ] {
        assert!(late(&args), "{args:?}");
    }
    // Whoever has set it knows it.
    assert_eq!(images(("VDKR_TIMEOUT", "9")), "");
    for args in [
        ["memory", "512M"],
        ["idle-timeout", "1800"],
        ["cpus", "--reset"],
        ["cpu", "--reset"],
        ["timeout", "9"],
    ] {
        assert!(!late(&args), "{args:?}");
    }
    // Nothing runs.
    let nobody = User::new();
    let output = nobody.run(&["vconfig", "memory", "1G"]);
    assert_eq!(stderr(&output), "");
}

#[test]
fn a_machine_that_takes_no_disks_pulls_by_itself_at_once() {
    let user = User::with_agent();
    *user.agent.layers.lock().unwrap() = Some(100);
    // Nobody listens there: this computer would fail.
    let args = ["-v", "--registry", "127.0.0.1:9/ns", "pull", "x", "y"];
    user.machine_is(&json!({ "hot_disks": false }));
    let output = user.run(&args);
    status(&output, 0);
    let pulls = |request: &&Request| matches!(request, Request::Pull(_));
    assert_eq!(user.requests().iter().filter(pulls).count(), 2);
    let words = stderr(&output);
    assert_eq!(words.matches("takes no disks").count(), 1, "{words}");
    user.machine_is(&json!({ "hot_disks": true }));
    let output = user.run(&args[..args.len() - 1]);
    status(&output, 3);
    assert!(Path::new(&user.state_dir()).exists());
    assert_eq!(user.requests().iter().filter(pulls).count(), 2);
}
