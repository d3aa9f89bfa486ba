//! A user of `container-registry` with a home, a storage and a port of their own.

#![allow(dead_code, reason = "each test uses a part of it")]

pub(crate) mod gate;
pub(crate) mod snapshot;

use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;
use vdkr_core::digest::Digest;

/// A user; the registry is stopped when it goes.
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) started: bool,
}

impl User {
    /// Nothing runs.
    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        Self {
            home: tempfile::tempdir().unwrap(),
            port,
            env: Vec::new(),
            started: false,
        }
    }

    /// A registry runs.
    pub(crate) fn with_registry() -> Self {
        let mut user = Self::new();
        user.start();
        user
    }

    pub(crate) fn start(&mut self) {
        self.started = true;
        status(&self.run(["--url", &self.host(), "start"]), 0);
    }

    /// Another variable for all commands.
    pub(crate) fn set(&mut self, name: &str, value: impl Into<String>) -> &mut Self {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.path("storage")
    }

    /// `localhost:PORT`.
    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The program in an environment with nothing but what this user set.
    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_container-registry"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", self.path("bin"))
            .env("CONTAINER_REGISTRY_URL", self.host())
            .env("CONTAINER_REGISTRY_STORAGE", self.storage())
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .current_dir(self.home.path())
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn run_with_input<S: AsRef<OsStr>>(
        &self,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that does not read its input is not at fault.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }

    /// A program of this user's, in their `PATH`.
    pub(crate) fn script(&self, name: &str, body: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.write(&format!("bin/{name}"), &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A layout of one small image, in a deploy directory of a machine.
    pub(crate) fn image(&self, machine: &str, name: &str) -> PathBuf {
        let layout = self.path(&format!("deploy/{machine}/{name}-latest-oci"));
        write_layout(&layout, name);
        layout
    }

    pub(crate) fn deploy_dir(&self) -> PathBuf {
        self.path("deploy")
    }
}

impl Drop for User {
    fn drop(&mut self) {
        if self.started {
            // The variable may by now name another registry.
            let _ = self.command(["--url", &self.host(), "stop"]).output();
        }
    }
}

/// Writes a layout of one amd64 image with one layer of the given content.
pub(crate) fn write_layout(layout: &Path, content: &str) {
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8], media_type: &str| {
        let digest = Digest::sha256(bytes);
        let hex = digest.as_str().trim_start_matches("sha256:");
        fs::write(blobs.join(hex), bytes).unwrap();
        json!({"mediaType": media_type, "digest": digest.as_str(), "size": bytes.len()})
    };
    let layer = put(content.as_bytes(), "application/vnd.oci.image.layer.v1.tar");
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = put(
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let manifest = put(
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails the test, with what was said, unless the exit status is this one.
#[track_caller]
pub(crate) fn status(output: &Output, expected: i32) {
    assert_eq!(
        output.status.code(),
        Some(expected),
        "stdout: {:.2000}\nstderr: {:.2000}",
        stdout(output),
        stderr(output)
    );
}
