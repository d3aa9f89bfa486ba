//! A registry of others that wants the tokens of a token server, as Docker Hub, GHCR and GitLab do:
//! docker-registry checks scopes and signatures, and we are to ask for the right ones.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_tests::layout::{digest, noise, write_image};
use vdkr_tests::peers::{DockerRegistry, skopeo};
use vdkr_tests::process::{Ran, run};
use vdkr_tests::registry::container_registry;
use vdkr_tests::tokens::{Account, Asked, TokenServer};

const WRITER: Account = Account {
    user: "writer",
    password: "w: p&ss+",
    refresh_token: "refresh/writer+1=",
    actions: &["pull", "push", "*"],
};
const READER: Account = Account {
    user: "reader",
    password: "r",
    refresh_token: "refresh-reader",
    actions: &["pull"],
};

/// Such a registry, and a user with an image.
struct Place {
    dir: TempDir,
    tokens: TokenServer,
    registry: DockerRegistry,
    /// Digest of the image's manifest.
    image: String,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let tokens = TokenServer::start(dir.path(), &[WRITER, READER]);
        let storage = dir.path().join("theirs");
        std::fs::create_dir(&storage).unwrap();
        let registry = DockerRegistry::start_with(&storage, dir.path(), &tokens.configuration());
        let layers = [noise(1, 10_000), noise(2, 20_000), noise(3, 30_000)];
        let image = write_image(&dir.path().join("app-latest-oci"), "amd64", &layers);
        Self {
            dir,
            tokens,
            registry,
            image,
        }
    }

    fn ours(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args))
    }

    /// As this account, for commands without an option for it.
    fn by(&self, account: &Account, args: &[&str]) -> Ran {
        let mut command = self.command(args);
        command
            .env("CONTAINER_REGISTRY_AUTH_MODE", "env")
            .env("CONTAINER_REGISTRY_USER", account.user)
            .env("CONTAINER_REGISTRY_PASSWORD", account.password);
        run(&mut command)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = container_registry();
        command
            .env("HOME", self.dir.path())
            .env("CONTAINER_REGISTRY_URL", self.registry.host())
            .env("CONTAINER_REGISTRY_STORAGE", self.dir.path().join("none"))
            .args(args);
        command
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn push(&self, tag: &str, more: &[&str]) -> Ran {
        let layout = self.path("app-latest-oci");
        let push = ["push", layout.to_str().unwrap(), "--tag", tag];
        self.ours(&[&push[..], more].concat())
    }

    fn image(&self, name: &str) -> String {
        format!("docker://{}/yocto/{name}", self.registry.host())
    }

    /// What skopeo gets, as the reader.
    fn raw(&self, name: &str) -> Vec<u8> {
        let ran = run(skopeo()
            .args(["inspect", "--raw", "--tls-verify=false", "--creds"])
            .args([creds(&READER), self.image(name)]));
        ran.expect(0).stdout
    }
}

fn creds(account: &Account) -> String {
    format!("{}:{}", account.user, account.password)
}

/// Everybody who asked was this one, each scope was asked for once, and these were among them.
#[track_caller]
fn asked_once(asked: &[Asked], method: &str, user: &str, wanted: &[&str]) {
    let mut seen = BTreeSet::new();
    for one in asked {
        assert_eq!(
            (&*one.method, one.user.as_deref()),
            (method, Some(user)),
            "{asked:?}"
        );
        assert!(seen.insert(&one.scopes), "asked for twice: {asked:?}");
    }
    for wanted in wanted {
        let found = seen
            .iter()
            .any(|scopes| scopes.iter().any(|one| one == wanted));
        assert!(found, "{wanted} is not among {asked:?}");
    }
}

#[test]
fn images_go_in_and_out_with_the_tokens_of_those_who_may() {
    let place = Place::new();
    let (writer, reader) = (creds(&WRITER), creds(&READER));
    place.push("v1", &["--creds", &writer]).expect(0);
    asked_once(
        &place.tokens.asked(),
        "GET",
        WRITER.user,
        &["repository:yocto/app:pull,push"],
    );
    let raw = place.raw("app:v1");
    let index: Value = serde_json::from_slice(&raw).unwrap();
    assert_eq!(index["manifests"][0]["digest"], place.image.as_str());
    place.tokens.asked();

    // Out again, by who may do no more.
    let back = format!("oci:{}", place.path("back").display());
    let copied = place.ours(&[
        "copy",
        &place.image("app:v1"),
        &back,
        "--src-creds",
        &reader,
    ]);
    assert!(copied.expect(0).text().contains(&digest(&raw)));
    asked_once(
        &place.tokens.asked(),
        "GET",
        READER.user,
        &["repository:yocto/app:pull"],
    );
    let tags = place.by(&READER, &["tags", "app"]).expect(0);
    assert_eq!(tags.text(), "v1\n");
    let refused = place.push("v2", &["--creds", &reader]).expect(4);
    assert!(!refused.stderr.contains(READER.refresh_token));
    let tags = place.by(&READER, &["tags", "app"]).expect(0);
    assert_eq!(tags.text(), "v1\n");
    place.tokens.asked();

    // From one repository to another, whose layers are mounted: that takes a token for both.
    let copied = place.ours(&[
        "copy",
        "--json",
        &place.image("app:v1"),
        &place.image("other:v1"),
        "--src-creds",
        &writer,
        "--creds",
        &writer,
    ]);
    let report: Value = serde_json::from_slice(&copied.expect(0).stdout).unwrap();
    assert_eq!(report["blobs"]["written"], 0, "{report}");
    assert_eq!(report["blobs"]["mounted"], 4, "{report}");
    let asked = place.tokens.asked();
    let both = asked.iter().any(|one| {
        let has = |scope: &str| one.scopes.iter().any(|known| known == scope);
        has("repository:yocto/app:pull") && has("repository:yocto/other:pull,push")
    });
    assert!(both, "{asked:?}");
    assert!(place.raw("other:v1") == raw);

    // What skopeo has pushed.
    let layout = format!("oci:{}", place.path("app-latest-oci").display());
    run(skopeo()
        .args(["copy", "--quiet", "--dest-tls-verify=false"])
        .args(["--dest-creds", &writer, &layout, &place.image("theirs:v1")]))
    .expect(0);
    let copied = place.ours(&[
        "copy",
        &place.image("theirs:v1"),
        &format!("{back}-theirs"),
        "--src-creds",
        &reader,
    ]);
    let theirs = digest(&place.raw("theirs:v1"));
    assert!(copied.expect(0).text().contains(&theirs));

    // A list of everything is a right of its own.
    let all = place.by(&WRITER, &["catalog"]).expect(0);
    assert_eq!(all.text(), "yocto/app\nyocto/other\nyocto/theirs\n");
    place.by(&READER, &["catalog"]).expect(4);
}

#[test]
fn who_has_no_right_gets_no_further_and_is_told() {
    let place = Place::new();
    let nobody = place.push("v1", &[]).expect(4);
    assert!(
        nobody.stderr.contains("no credentials are set"),
        "{}",
        nobody.stderr
    );
    assert!(place.tokens.asked().iter().all(|one| one.user.is_none()));

    let wrong = place.push("v1", &["--creds", "writer:not-this"]).expect(4);
    assert!(!wrong.stderr.contains("not-this"), "{}", wrong.stderr);
    // A token server that locks accounts after some failures is not to be tried again and again.
    let asked = place.tokens.asked();
    assert!(!asked.is_empty() && asked.len() < 4, "{asked:?}");
    place.ours(&["tags", "app"]).expect(4);
}

#[test]
fn a_refresh_token_is_exchanged() {
    let place = Place::new();
    let login = |account: &Account| {
        let entry = json!({"identitytoken": account.refresh_token});
        let file = json!({"auths": {place.registry.host(): entry}});
        std::fs::create_dir_all(place.path(".docker")).unwrap();
        std::fs::write(place.path(".docker/config.json"), file.to_string()).unwrap();
    };
    login(&WRITER);
    place.push("v1", &[]).expect(0);
    asked_once(
        &place.tokens.asked(),
        "POST",
        WRITER.user,
        &["repository:yocto/app:pull,push"],
    );
    login(&READER);
    assert_eq!(place.ours(&["tags", "app"]).expect(0).text(), "v1\n");
    place.push("v2", &[]).expect(4);
    login(&Account {
        refresh_token: "of-nobody",
        ..READER
    });
    let refused = place.ours(&["tags", "app"]).expect(4);
    assert!(!refused.stderr.contains("of-nobody"), "{}", refused.stderr);
}
