//! A storage with a server, and small images to push to it.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vdkr_core::digest::Digest;

/// A storage with a server in the foreground, gone with the test.
pub(crate) struct Site {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) port: u16,
    pub(crate) server: Option<Child>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let mut site = Self::without_server();
        site.start();
        site
    }

    pub(crate) fn without_server() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        Self {
            dir: tempfile::tempdir().unwrap(),
            port: listener.local_addr().unwrap().port(),
            server: None,
        }
    }

    pub(crate) fn start(&mut self) {
        let mut serve = self.command(&["serve"]);
        serve.stdin(Stdio::null()).stderr(Stdio::null());
        self.server = Some(serve.spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(Instant::now() < deadline, "the server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    pub(crate) fn storage(&self) -> PathBuf {
        self.dir.path().join("storage")
    }

    pub(crate) fn v2(&self) -> PathBuf {
        self.storage().join("docker/registry/v2")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_container-registry"));
        command
            .env_clear()
            .env("HOME", self.dir.path())
            .env("TZ", "UTC")
            .env("CONTAINER_REGISTRY_STORAGE", self.storage())
            .env("CONTAINER_REGISTRY_URL", format!("localhost:{}", self.port))
            .args(args);
        command
    }

    #[track_caller]
    pub(crate) fn run(&self, args: &[&str], input: &str, code: i32) -> Output {
        let mut command = self.command(args);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        // One that asks nothing may be gone already.
        let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
        output
    }

    #[track_caller]
    pub(crate) fn ok(&self, args: &[&str]) -> String {
        String::from_utf8(self.run(args, "", 0).stdout).unwrap()
    }

    #[track_caller]
    pub(crate) fn fails(&self, args: &[&str], code: i32) -> String {
        String::from_utf8(self.run(args, "", code).stderr).unwrap()
    }

    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(args)).unwrap()
    }

    /// Pushes an image with this layer under these tags.
    #[track_caller]
    pub(crate) fn push(&self, name: &str, layer: &str, tags: &[&str]) {
        let layout = self.dir.path().join(format!("{name}-latest-oci"));
        write_layout(&layout, layer);
        let mut args = vec!["push", layout.to_str().unwrap()];
        args.extend(tags.iter().flat_map(|tag| ["--tag", *tag]));
        self.ok(&args);
    }

    pub(crate) fn digest_of(&self, name: &str, tag: &str) -> String {
        let images = self.json(&["list", "--json"]);
        let fits = |image: &&Value| {
            image["repository"] == json!(format!("yocto/{name}")) && image["tag"] == json!(tag)
        };
        let found = images.as_array().unwrap().iter().find(fits).unwrap();
        found["digest"].as_str().unwrap().to_owned()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Writes a layout of one image whose label is its layer, too.
fn write_layout(layout: &Path, layer: &str) {
    let blobs = layout.join("blobs/sha256");
    let _ = std::fs::remove_dir_all(layout);
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, content: &[u8]| {
        let digest = Digest::sha256(content);
        std::fs::write(blobs.join(digest.hex()), content).unwrap();
        json!({ "mediaType": media_type, "digest": digest, "size": content.len() })
    };
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Labels": { "org.example.layer": layer } },
        "rootfs": { "type": "layers", "diff_ids": [Digest::sha256(layer.as_bytes())] },
    });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes()),
        "layers": [put("application/vnd.oci.image.layer.v1.tar", layer.as_bytes())],
    });
    let entry = put(
        "application/vnd.oci.image.manifest.v1+json",
        manifest.to_string().as_bytes(),
    );
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    std::fs::write(layout.join("index.json"), index.to_string()).unwrap();
    std::fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
}

pub(crate) fn stored_files(dir: &Path) -> usize {
    std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            if path.is_dir() {
                stored_files(&path)
            } else {
                1
            }
        })
        .sum()
}
