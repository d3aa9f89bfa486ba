//! Foreign programs on the other side: skopeo, curl and Debian's docker-registry.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::process::{Background, free_port, run, tool, wait_until};

/// skopeo with a policy of its own, so that the machine's configuration does not matter.
pub fn skopeo() -> Command {
    let mut command = tool("skopeo");
    command.arg("--insecure-policy");
    command
}

/// Copies with skopeo over plain HTTP, every image of an index, and expects success.
#[track_caller]
pub fn skopeo_copy(from: &str, to: &str) {
    run(skopeo()
        .args(["copy", "--quiet", "--all", "--preserve-digests"])
        .args([
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            from,
            to,
        ]))
    .expect(0);
}

/// The raw manifest behind a reference, read by skopeo.
#[track_caller]
pub fn skopeo_raw(reference: &str) -> Vec<u8> {
    run(skopeo().args(["inspect", "--raw", "--tls-verify=false", reference]))
        .expect(0)
        .stdout
}

/// crane, over plain HTTP where the registry speaks that, with no credentials of the machine's user.
pub fn crane() -> Command {
    let mut command = tool("crane");
    command
        .arg("--insecure")
        .env("DOCKER_CONFIG", "/nonexistent")
        .env_remove("REGISTRY_AUTH_FILE");
    command
}

/// Pushes the one image of a layout with crane, and expects success.
#[track_caller]
pub fn crane_push(layout: &Path, to: &str) {
    run(crane().arg("push").arg(layout).arg(to)).expect(0);
}

/// curl that fails on HTTP errors; returns the body.
#[track_caller]
pub fn curl(url: &str) -> Vec<u8> {
    run(tool("curl").args(["-fsS", "-H", ACCEPT, url]))
        .expect(0)
        .stdout
}

/// Status that curl gets.
#[track_caller]
pub fn curl_status(args: &[&str]) -> u16 {
    let ran = run(tool("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}"])
        .args(args));
    ran.expect(0).text().parse().expect("a status")
}

/// Manifest types that a current client accepts.
pub const ACCEPT: &str = "Accept: application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Debian's docker-registry on a storage directory.
#[derive(Debug)]
pub struct DockerRegistry {
    port: u16,
    _process: Background,
}

impl DockerRegistry {
    /// Writes a configuration for this storage and port into `scratch`.
    pub fn configuration(storage: &Path, scratch: &Path, port: u16) -> PathBuf {
        let config = scratch.join(format!("docker-registry-{port}.yml"));
        std::fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n\
                 storage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\n  \
                 cache: {{blobdescriptor: inmemory}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\n",
                storage.display()
            ),
        )
        .expect("write a configuration");
        config
    }

    /// Starts it and waits until it answers.
    #[track_caller]
    pub fn start(storage: &Path, scratch: &Path) -> Self {
        Self::start_with(storage, scratch, "")
    }

    /// Starts it with a password for everything; `users` are lines of an htpasswd file.
    #[track_caller]
    pub fn start_protected(storage: &Path, scratch: &Path, users: &str) -> Self {
        let file = scratch.join("htpasswd");
        std::fs::write(&file, users).expect("write an htpasswd file");
        let auth = format!(
            "auth: {{htpasswd: {{realm: test, path: {}}}}}\n",
            file.display()
        );
        Self::start_with(storage, scratch, &auth)
    }

    /// Starts it with more lines of configuration.
    #[track_caller]
    pub fn start_with(storage: &Path, scratch: &Path, more: &str) -> Self {
        let port = free_port();
        let config = Self::configuration(storage, scratch, port);
        let mut text = std::fs::read_to_string(&config).expect("read a configuration");
        text.push_str(more);
        std::fs::write(&config, text).expect("write a configuration");
        let child = tool("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("run docker-registry");
        let process = Background(child);
        wait_until("docker-registry answers", Duration::from_secs(20), || {
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        Self {
            port,
            _process: process,
        }
    }

    /// `localhost:PORT`.
    pub fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// `http://localhost:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }
}
