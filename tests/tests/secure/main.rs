//! Secure mode, with other programs at the other end: openssl, curl, skopeo (Go), python, htpasswd.

mod certificates;
mod passwords;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::peers::{curl_status, skopeo};
use vdkr_tests::process::{free_port, run, run_tool, run_within, tool};
use vdkr_tests::registry::{Registry, container_registry};

const SECURE: (&str, &str) = ("CONTAINER_REGISTRY_SECURE", "1");
const OPEN: (&str, &str) = ("CONTAINER_REGISTRY_AUTH", "0");

/// A secure registry with a storage of its own.
struct Bench {
    registry: Registry,
    dir: TempDir,
}

impl Bench {
    #[track_caller]
    fn start(variables: &[(&str, &str)]) -> Self {
        let dir = TempDir::new().unwrap();
        let registry = Registry::start_with(&dir.path().join("storage"), free_port(), variables);
        Self { registry, dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.registry.storage().join(name)
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    fn password(&self) -> String {
        self.text("auth/password").trim_end().to_owned()
    }

    fn url(&self) -> String {
        format!("https://{}", self.registry.host())
    }

    fn ca(&self) -> String {
        self.file("pki/ca.crt").display().to_string()
    }

    fn restart(&self) {
        self.registry.stop();
        self.registry.run(["start"]).expect(0);
    }

    /// What curl gets from a path, with these options more.
    #[track_caller]
    fn status(&self, path: &str, options: &[&str]) -> u16 {
        let (ca, url) = (self.ca(), format!("{}{path}", self.url()));
        let mut args = vec!["--cacert", &*ca];
        args.extend(options);
        args.push(&url);
        curl_status(&args)
    }

    /// The fingerprint of the certificate that a new connection is shown.
    fn shown(&self) -> String {
        let host = self.registry.host();
        let session = run_within(
            tool("openssl").args(["s_client", "-connect", &host, "-servername", "localhost"]),
            b"Q\n",
            Duration::from_secs(20),
        );
        let print = run_within(
            tool("openssl").args(["x509", "-noout", "-fingerprint", "-sha256"]),
            &session.stdout,
            Duration::from_secs(20),
        )
        .expect(0);
        print.text().trim().replace("sha256 Fingerprint=", "")
    }

    fn pid(&self) -> i32 {
        let status = self.registry.run(["status", "--json"]).expect(0);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap();
        i32::try_from(status["pid"].as_i64().unwrap()).unwrap()
    }

    fn hang_up(&self) {
        let pid = nix::unistd::Pid::from_raw(self.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    }

    /// A small image on the disk.
    fn layout(&self, name: &str) -> PathBuf {
        let layout = self.dir.path().join(format!("{name}-latest-oci"));
        write_image(&layout, "amd64", &[noise(7, 100_000)]);
        layout
    }
}

/// Whether a file is for its owner alone.
fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).unwrap().permissions().mode();
    mode & 0o777 == 0o600
}

#[test]
fn every_command_works_unasked_and_others_need_the_password() {
    let bench = Bench::start(&[SECURE]);
    let registry = &bench.registry;
    let status = registry.run(["status"]).expect(0).text();
    for line in [
        &format!("URL: {}", bench.url()),
        "Status: healthy",
        "Mode: secure (TLS + auth)",
    ] {
        assert!(status.contains(line), "{status}");
    }
    let layout = bench.layout("app");
    let path = layout.to_str().unwrap();
    registry
        .run(["push", path, "--tag", "v1", "--tag", "v2"])
        .expect(0);
    assert_eq!(registry.run(["catalog"]).expect(0).text(), "yocto/app\n");
    assert_eq!(registry.run(["tags", "app"]).expect(0).text(), "v1\nv2\n");
    let list = registry.run(["list"]).expect(0).text();
    assert!(list.contains("yocto/app"), "{list}");
    let own = format!("{}/yocto/app:v1", registry.host());
    registry
        .run([
            "import",
            &own,
            "copied",
            "--src-creds",
            &format!("yocto:{}", bench.password()),
        ])
        .expect(0);
    registry.run(["delete", "app:v2"]).expect(0);
    assert_eq!(registry.run(["tags", "app"]).expect(0).text(), "v1\n");

    let user = format!("yocto:{}", bench.password());
    assert_eq!(bench.status("/v2/", &[]), 401);
    assert_eq!(bench.status("/v2/", &["-u", "yocto:wrong"]), 401);
    assert_eq!(bench.status("/v2/", &["-u", &user]), 200);
    assert_eq!(bench.status("/v2/", &["-X", "OPTIONS"]), 204);
    let wrong = run(registry
        .command()
        .args(["push", path, "--creds", "yocto:wrong"]));
    let wrong = wrong.expect(4);
    assert!(wrong.stderr.contains("refused"), "{}", wrong.stderr);

    for name in [
        "pki/ca.key",
        "pki/server.key",
        "auth/password",
        "auth/htpasswd",
    ] {
        assert!(is_private(&bench.file(name)), "{name}");
    }
    let log = bench.text(&format!("run/registry-{}.log", registry.port()));
    assert!(!log.contains(&bench.password()), "{log}");
    registry.run(["stop"]).expect(0);
    let status = registry.run(["status"]).expect(3).text();
    assert_eq!(status, "Registry not running\n");
}

#[test]
fn only_start_needs_to_be_told_that_the_mode_is_secure() {
    let bench = Bench::start(&[SECURE]);
    let untold = |args: &[&str]| {
        run(container_registry()
            .env("CONTAINER_REGISTRY_URL", bench.registry.host())
            .env("CONTAINER_REGISTRY_STORAGE", bench.registry.storage())
            .args(args))
    };
    let status = untold(&["status"]).expect(0).text();
    assert!(status.contains("Mode: secure (TLS + auth)"), "{status}");
    untold(&["push", bench.layout("app").to_str().unwrap()]).expect(0);
    assert_eq!(untold(&["catalog"]).expect(0).text(), "yocto/app\n");
    assert!(
        untold(&["start"])
            .expect(0)
            .text()
            .contains("already running")
    );
    // Who asks for another mode than the one that runs is told.
    let other = run(bench.registry.command().env(OPEN.0, OPEN.1).arg("start"));
    let other = other.expect(1);
    assert!(other.stderr.contains("tls+auth"), "{}", other.stderr);
}

#[test]
fn tls_alone_asks_for_no_password() {
    let bench = Bench::start(&[SECURE, OPEN]);
    let status = bench.registry.run(["status"]).expect(0).text();
    assert!(status.contains("Mode: secure (TLS only)"), "{status}");
    assert_eq!(bench.status("/v2/", &[]), 200);
    assert!(!bench.file("auth").exists());
    let layout = bench.layout("app");
    let push = bench.registry.run(["push", layout.to_str().unwrap()]);
    push.expect(0);
}

#[test]
fn plain_http_on_the_port_is_told_about_https() {
    let bench = Bench::start(&[SECURE]);
    let answer = run_tool(
        "curl",
        ["-sS", "-i", &format!("{}/v2/", bench.registry.url())],
    )
    .expect(0);
    let answer = answer.text();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(
        answer.contains(&format!("use {}/", bench.url())),
        "{answer}"
    );
}

#[test]
fn skopeo_pushes_and_pulls_with_the_ca_and_the_password() {
    let bench = Bench::start(&[SECURE]);
    let layout = bench.layout("app");
    let certs = bench.file("certs").display().to_string();
    let creds = format!("yocto:{}", bench.password());
    let target = format!("docker://{}/yocto/app:v1", bench.registry.host());
    let source = format!("oci:{}", layout.display());
    run(skopeo().args([
        "copy",
        "--quiet",
        "--dest-cert-dir",
        &certs,
        "--dest-creds",
        &creds,
        &source,
        &target,
    ]))
    .expect(0);
    let back = format!("oci:{}:v1", bench.dir.path().join("back").display());
    run(skopeo().args([
        "copy",
        "--quiet",
        "--src-cert-dir",
        &certs,
        "--src-creds",
        &creds,
        &target,
        &back,
    ]))
    .expect(0);
    let listed = run(skopeo().args([
        "list-tags",
        "--cert-dir",
        &certs,
        "--creds",
        &creds,
        &format!("docker://{}/yocto/app", bench.registry.host()),
    ]));
    assert!(listed.expect(0).text().contains("\"v1\""));
    run(skopeo().args([
        "inspect",
        "--cert-dir",
        &certs,
        "--creds",
        "yocto:wrong",
        &target,
    ]))
    .expect(1);
    let empty = bench.dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let untrusting = run(skopeo().args([
        "inspect",
        "--creds",
        &creds,
        "--cert-dir",
        empty.to_str().unwrap(),
        &target,
    ]));
    let untrusting = untrusting.expect(1);
    assert!(untrusting.stderr.contains("x509"), "{}", untrusting.stderr);
}

#[test]
fn weakness_4b_23_healthy_means_that_the_registry_answers_as_it_should() {
    let bench = Bench::start(&[SECURE]);
    // Whoever has the wrong password does not call the registry healthy.
    std::fs::write(bench.file("auth/password"), "wrong\n").unwrap();
    let status = bench.registry.run(["status"]).expect(1).text();
    assert!(status.contains("Status: not healthy"), "{status}");
    bench.registry.run(["catalog"]).expect(4);
}

#[test]
fn contradictions_are_refused_before_anything_is_done() {
    let dir = TempDir::new().unwrap();
    let long = "x".repeat(73);
    for (name, value) in [
        ("CONTAINER_REGISTRY_INSECURE", "1"),
        ("CONTAINER_REGISTRY_INSECURE", "localhost:5000"),
        ("CONTAINER_REGISTRY_URL", "http://localhost:5000"),
        ("CONTAINER_REGISTRY_CERT_DAYS", "0"),
        ("CONTAINER_REGISTRY_CERT_SAN", "email:me"),
        ("CONTAINER_REGISTRY_USERNAME", "a:b"),
        ("CONTAINER_REGISTRY_PASSWORD", &*long),
        ("CONTAINER_REGISTRY_SECURE", "perhaps"),
    ] {
        for command in ["start", "serve"] {
            let refused = run(container_registry()
                .env("CONTAINER_REGISTRY_STORAGE", dir.path())
                .env(SECURE.0, SECURE.1)
                .env(name, value)
                .arg(command));
            let refused = refused.expect(2);
            assert!(!refused.stderr.contains(&long), "{}", refused.stderr);
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    run(container_registry()
        .env("CONTAINER_REGISTRY_STORAGE", dir.path())
        .args(["pki", "show"]))
    .expect(5);
}

#[test]
fn slow_handshakes_do_not_keep_others_out() {
    let bench = Bench::start(&[SECURE, OPEN]);
    let slow: Vec<_> = (0..50)
        .map(|number| {
            let mut stream = TcpStream::connect(("127.0.0.1", bench.registry.port())).unwrap();
            stream
                .write_all(&b"\x16\x03\x01\x02"[..number % 5])
                .unwrap();
            stream
        })
        .collect();
    let began = Instant::now();
    assert_eq!(bench.status("/v2/", &[]), 200);
    assert!(began.elapsed() < Duration::from_secs(9));
    // They are given up in the end.
    let mut last = slow.into_iter().next_back().unwrap();
    last.set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    let _ = last.read_to_end(&mut Vec::new());
    assert!(began.elapsed() < Duration::from_secs(19));
}

#[test]
fn a_started_server_does_not_hold_what_its_caller_has_open() {
    let bench = Bench::start(&[SECURE, OPEN]);
    bench.registry.stop();
    let lock = bench.dir.path().join("lock");
    let mut script = bench.registry.command();
    let program = script.get_program().to_owned();
    // A script that holds a lock on descriptor 9 while it starts the registry.
    let mut shell = std::process::Command::new("sh");
    shell
        .args(["-c", "exec 9>\"$1\"; flock 9 && \"$2\" start", "sh"])
        .arg(&lock)
        .arg(program);
    for (name, value) in script.env("LANG", "C").get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    run(&mut shell).expect(0);
    run_tool("flock", ["--nonblock", lock.to_str().unwrap(), "true"]).expect(0);
    bench.registry.run(["status"]).expect(0);
}
