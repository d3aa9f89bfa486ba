//! Credential files between us and skopeo, at a registry that lets nobody in without a password.

use std::path::Path;

use tempfile::TempDir;
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::peers::{DockerRegistry, skopeo};
use vdkr_tests::process::{Ran, run, run_within};
use vdkr_tests::registry::container_registry;

const PATIENCE: std::time::Duration = std::time::Duration::from_mins(1);
/// As `htpasswd -nbB me 'p w*'` writes it.
const USERS: &str = "me:$2y$05$QcExTy/Ts9jTd0HyolZbGeXyEqqUIKSiwJvZfYrm66nooZZ3iG2Nu\n";
const PASSWORD: &str = "p w*";

struct Peer {
    dir: TempDir,
    registry: DockerRegistry,
}

impl Peer {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let storage = dir.path().join("theirs");
        std::fs::create_dir(&storage).unwrap();
        let registry = DockerRegistry::start_protected(&storage, dir.path(), USERS);
        write_image(
            &dir.path().join("app-latest-oci"),
            "amd64",
            &[noise(1, 10_000)],
        );
        Self { dir, registry }
    }

    /// Our program, as a user without any other configuration runs it against this registry.
    fn ours(&self, args: &[&str], authfile: Option<&Path>) -> Ran {
        let mut command = container_registry();
        command
            .env("HOME", self.dir.path())
            .env("CONTAINER_REGISTRY_URL", self.registry.host())
            .env(
                "CONTAINER_REGISTRY_STORAGE",
                self.dir.path().join("storage"),
            )
            .args(args);
        if let Some(file) = authfile {
            command.env("REGISTRY_AUTH_FILE", file);
        }
        run_within(&mut command, PASSWORD.as_bytes(), PATIENCE)
    }

    fn push(&self, more: &[&str], authfile: Option<&Path>) -> Ran {
        let layout = self.dir.path().join("app-latest-oci");
        let mut args = vec!["push", layout.to_str().unwrap(), "--tag", "v1"];
        args.extend(more);
        self.ours(&args, authfile)
    }

    fn skopeo_tags(&self, authfile: &Path) -> Ran {
        let image = format!("docker://{}/yocto/app", self.registry.host());
        let file = authfile.to_str().unwrap();
        run(skopeo().args([
            "list-tags",
            "--tls-verify=false",
            "--authfile",
            file,
            &image,
        ]))
    }
}

#[test]
fn what_skopeo_login_writes_is_read_by_us() {
    let peer = Peer::new();
    let file = peer.dir.path().join("auth.json");
    let (path, host) = (file.to_str().unwrap(), peer.registry.host());
    peer.push(&[], None).expect(4);
    let login = [
        "login",
        "--tls-verify=false",
        "--authfile",
        path,
        "-u",
        "me",
        "--password-stdin",
        &host,
    ];
    run_within(skopeo().args(login), PASSWORD.as_bytes(), PATIENCE).expect(0);
    peer.push(&["--authfile", path], None).expect(0);
    peer.push(&["--auth-mode", "authfile"], None).expect(2);
    peer.push(&[], Some(&file)).expect(0);
    // A place that podman and skopeo share by themselves.
    let shared = peer.dir.path().join(".config/containers");
    std::fs::create_dir_all(&shared).unwrap();
    std::fs::copy(&file, shared.join("auth.json")).unwrap();
    peer.push(&[], None).expect(0);
    let tags = peer.ours(&["tags", "app"], None).expect(0);
    assert_eq!(tags.text(), "v1\n");
    let explained = peer.ours(&["auth", "explain"], None).expect(0).text();
    assert!(
        explained.contains("user name and password, user me"),
        "{explained}"
    );

    let logout = ["logout", "--authfile", path, &host];
    run(skopeo().args(logout)).expect(0);
    peer.push(&["--authfile", path], None).expect(4);
}

#[test]
fn what_our_login_writes_is_read_by_skopeo() {
    let peer = Peer::new();
    let file = peer.dir.path().join("ours/auth.json");
    let (path, host) = (file.to_str().unwrap(), peer.registry.host());
    let login = [
        "login",
        "--username",
        "me",
        "--password-stdin",
        "--authfile",
        path,
    ];
    peer.ours(&login, None).expect(0);
    peer.push(&["--authfile", path], None).expect(0);
    let tags = peer.skopeo_tags(&file).expect(0).text();
    assert!(tags.contains("v1"), "{tags}");
    let who = run(skopeo().args(["login", "--get-login", "--authfile", path, &host])).expect(0);
    assert_eq!(who.text().trim(), "me");
    // Docker's own file is understood by skopeo too, where nothing else is.
    peer.ours(&["login", "--username", "me", "--password-stdin"], None)
        .expect(0);
    let docker = peer.dir.path().join(".docker/config.json");
    peer.skopeo_tags(&docker).expect(0);

    peer.ours(&["logout", "--authfile", path], None).expect(0);
    assert_ne!(peer.skopeo_tags(&file).code(), 0);
    peer.ours(&["logout"], None).expect(0);
    peer.push(&[], None).expect(4);
}
