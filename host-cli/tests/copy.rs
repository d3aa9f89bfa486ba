//! `copy`, `inspect` and `import` between registries that record every request, layouts, archives and
//! engines.

#[path = "double/build.rs"]
mod build;
mod double;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use build::{Ran, layout, multiarch, noise, program, run};
use double::{Double, Manners, basic};
use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{OCI_INDEX, OCI_MANIFEST};

/// A home, and a registry that `container-registry` is configured for.
struct Setup {
    home: TempDir,
    registry: Double,
}

impl Setup {
    fn new() -> Self {
        Self {
            home: TempDir::new().unwrap(),
            registry: Double::start(Manners::default()),
        }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = program(self.home.path(), &self.registry.host());
        command.args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Ran {
        run(&mut self.command(args))
    }

    /// An index of two platforms in the registry, as `name:tag`; gives its digest.
    fn index_in(&self, registry: &Double, name: &str, tag: &str) -> Digest {
        let dir = self.home.path().join("index-in");
        let _ = std::fs::remove_dir_all(&dir);
        multiarch(&dir, &["amd64", "arm64"]);
        let to = format!("docker://{}/{name}:{tag}", registry.host());
        let ran = self.run(&["copy", &format!("oci:{}", dir.display()), &to]);
        digest_in(&ran.expect(0).stdout)
    }
}

/// The digest at the end of a line.
#[track_caller]
fn digest_in(line: &str) -> Digest {
    let word = line.split_whitespace().last().expect("a line");
    Digest::parse(word).unwrap_or_else(|_| panic!("no digest: {line}"))
}

/// Gives an image a signature under its tag and one that refers to it.
fn sign(registry: &Double, name: &str, subject: &Digest) -> (String, Digest) {
    let config = registry.put_blob(name, b"{}");
    let manifest = |text: &str, subject: Option<Value>| {
        let layer = registry.put_blob(name, text.as_bytes());
        json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "x/signature",
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": "x/y", "digest": layer, "size": text.len()}],
            "subject": subject,
        })
        .to_string()
    };
    let tag = format!("sha256-{}.sig", subject.hex());
    registry.put_manifest(
        name,
        &tag,
        OCI_MANIFEST,
        manifest("cosign", None).as_bytes(),
    );
    let size = registry.manifest(name, subject.as_str()).unwrap().len();
    let of = json!({"mediaType": OCI_INDEX, "digest": subject, "size": size});
    let raw = manifest("referrer", Some(of));
    let list_tag = format!("sha256-{}", subject.hex());
    let referrer = Digest::sha256(raw.as_bytes());
    registry.put_manifest(name, referrer.hex(), OCI_MANIFEST, raw.as_bytes());
    let list = json!({
        "schemaVersion": 2, "mediaType": OCI_INDEX,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": referrer, "size": raw.len()}],
    });
    registry.put_manifest(name, &list_tag, OCI_INDEX, list.to_string().as_bytes());
    (tag, referrer)
}

#[test]
fn weakness_4b_24_import_takes_every_platform_and_what_refers_to_it() {
    let setup = Setup::new();
    let source = Double::start(Manners::default());
    let digest = setup.index_in(&source, "team/app", "v1");
    let (signature, referrer) = sign(&source, "team/app", &digest);
    let from = format!("{}/team/app:v1", source.host());
    let ran = setup.run(&["import", &from, "taken:v2"]).expect(0);
    assert_eq!(digest_in(&ran.stdout), digest);
    let there = |selector: &str| setup.registry.manifest("yocto/taken", selector);
    assert_eq!(there("v2"), source.manifest("team/app", "v1"));
    assert_eq!(there(&signature), source.manifest("team/app", &signature));
    assert!(there(referrer.as_str()).is_some());
    assert!(
        ran.stderr.contains("vdkr --registry 10.0.2.2:"),
        "{}",
        ran.stderr
    );

    // By digest, and without what refers to it.
    let from = format!("{}/team/app@{digest}", source.host());
    setup
        .run(&["import", &from, "bare", "--no-referrers"])
        .expect(0);
    let there = |selector: &str| setup.registry.manifest("yocto/bare", selector);
    assert_eq!(Digest::sha256(&there("latest").unwrap()), digest);
    assert!(there(&signature).is_none() && there(referrer.as_str()).is_none());

    // One platform is a new index, and that is said.
    let ran = setup.run(&[
        "import",
        &from,
        "one",
        "--platform",
        "linux/arm64",
        "--no-referrers",
    ]);
    let ran = ran.expect(0);
    assert_ne!(digest_in(&ran.stdout), digest);
    assert!(ran.stderr.contains("new index"), "{}", ran.stderr);
    let index = setup.registry.manifest("yocto/one", "latest").unwrap();
    let index: Value = serde_json::from_slice(&index).unwrap();
    assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
    assert_eq!(index["manifests"][0]["platform"]["architecture"], "arm64");

    for (args, code) in [
        (&["import"][..], 2),
        (&["import", "Bad//Name"], 2),
        (&["import", &from, "taken@sha256:00"], 2),
        (&["import", &from, "x", "--platform", "linux"], 2),
        (&["import", &format!("{}/team/none:v1", source.host())], 5),
        (&["import", &from, "x", "--platform", "linux/s390x"], 5),
    ] {
        setup.run(args).expect(code);
    }
}

#[test]
fn a_list_is_imported_at_the_digests_of_its_lock_file() {
    let setup = Setup::new();
    let source = Double::start(Manners::default());
    let first = setup.index_in(&source, "team/app", "v1");
    let list = setup.home.path().join("images.toml");
    let line = format!(
        "[[image]]\nsource = \"{}/team/app:v1\"\nname = \"app\"\n",
        source.host()
    );
    std::fs::write(&list, &line).unwrap();
    let import = ["import", "--file", "images.toml"];
    setup.run(&import).expect(0);
    let lock = std::fs::read_to_string(setup.home.path().join("images.lock")).unwrap();
    assert!(lock.contains(first.as_str()), "{lock}");

    // The tag moves; the lock does not, until it is told to.
    let other = setup.home.path().join("other");
    layout(&other, "riscv64", &[b"other"]);
    let to = format!("docker://{}/team/app:v1", source.host());
    setup
        .run(&["copy", &format!("oci:{}", other.display()), &to])
        .expect(0);
    let now = || Digest::sha256(&setup.registry.manifest("yocto/app", "v1").unwrap());
    setup.run(&import).expect(0);
    assert_eq!(now(), first);
    setup
        .run(&["import", "--file", "images.toml", "--update"])
        .expect(0);
    assert_ne!(now(), first);
    let lock = std::fs::read_to_string(setup.home.path().join("images.lock")).unwrap();
    assert!(
        lock.contains(now().as_str()) && !lock.contains(first.as_str()),
        "{lock}"
    );

    // One that fails does not stop the others, and keeps its lock.
    let more = format!(
        "{line}[[image]]\nsource = \"{}/team/gone:v1\"\n",
        source.host()
    );
    std::fs::write(&list, more).unwrap();
    let ran = setup.run(&import).expect(7);
    assert!(ran.stderr.contains("team/gone"), "{}", ran.stderr);
    assert_eq!(ran.stdout.lines().count(), 1);
    setup.run(&["import", "--file", "none.toml"]).expect(5);
}

#[test]
fn neither_sides_credentials_reach_the_other() {
    let home = TempDir::new().unwrap();
    let with = |user: &str| {
        Double::start(Manners {
            token: Some((user.to_owned(), format!("{user}-secret"))),
            ..Manners::default()
        })
    };
    let (source, registry) = (with("reader"), with("writer"));
    let app = home.path().join("app");
    let digest = layout(&app, "amd64", &[&noise(1, 100_000)]);
    let mut command = program(home.path(), &registry.host());
    let to = format!("docker://{}/team/app:v1", source.host());
    command.args(["copy", &format!("oci:{}", app.display()), &to]);
    run(command.args(["--creds", "reader:reader-secret"])).expect(0);
    source.take_seen();
    let mut command = program(home.path(), &registry.host());
    command.args(["import", &format!("{}/team/app:v1", source.host())]);
    command.args([
        "--src-creds",
        "reader:reader-secret",
        "--creds",
        "writer:writer-secret",
    ]);
    let ran = run(&mut command).expect(0);
    assert_eq!(digest_in(&ran.stdout), digest);
    for (registry, user, other) in [
        (&source, "reader", "writer"),
        (&registry, "writer", "reader"),
    ] {
        let own = basic(user, &format!("{user}-secret"));
        let foreign = basic(other, &format!("{other}-secret"));
        let seen = registry.take_seen();
        let shown = |word: &str| {
            seen.iter()
                .any(|s| s.authorization.as_deref() == Some(word))
        };
        assert!(shown(&own) && !shown(&foreign));
    }
    // Without its own, the source is asked anonymously.
    let mut command = program(home.path(), &registry.host());
    command.args(["import", &format!("{}/team/app:v1", source.host())]);
    run(command.args(["--creds", "writer:writer-secret"])).expect(4);
}

#[test]
fn a_round_through_every_format_changes_nothing() {
    let setup = Setup::new();
    let digest = setup.index_in(&setup.registry, "yocto/app", "v1");
    let here = format!("docker://{}/yocto/app", setup.registry.host());
    let mut from = format!("{here}:v1");
    for to in [
        "oci:layout:v1",
        "oci-archive:app.tar:v1",
        "dir:directory",
        "oci:again",
        &format!("{here}:v2"),
    ] {
        let ran = setup.run(&["copy", &from, to]).expect(0);
        assert_eq!(digest_in(&ran.stdout), digest, "{to}");
        assert!(ran.stdout.starts_with(to), "{}", ran.stdout);
        from = to.to_owned();
    }
    let ran = setup
        .run(&["copy", "--json", &from, &format!("{here}@{digest}")])
        .expect(0);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["digest"], digest.as_str());
    assert_eq!(report["subset"], false);

    // docker load takes one platform.
    let ran = setup
        .run(&["copy", &from, "docker-archive:all.tar"])
        .expect(1);
    assert!(ran.stderr.contains("--platform"), "{}", ran.stderr);
    assert!(!setup.home.path().join("all.tar").exists());
    let ran = setup.run(&[
        "copy",
        "--platform",
        "arm64",
        &from,
        "docker-archive:one.tar:app:v1",
    ]);
    assert!(ran.expect(0).stderr.contains("new index"));
    let config = setup
        .run(&["inspect", "--config", "docker-archive:one.tar:app:v1"])
        .expect(0);
    assert!(config.stdout.contains("\"arm64\""), "{}", config.stdout);
}

#[test]
fn what_cannot_be_copied_is_said_and_leaves_nothing() {
    let setup = Setup::new();
    let app = setup.home.path().join("app");
    layout(&app, "amd64", &[b"layer"]);
    let other = Digest::sha256(b"other");
    let to_digest = format!("docker://{}/yocto/app@{other}", setup.registry.host());
    for (args, code, words) in [
        (&["app", "oci:x"][..], 2, "docker://"),
        (&["oci:app", "oci-archive:"], 2, "oci-archive:PATH"),
        (&["oci:none", "oci:x"], 5, "none"),
        (&["oci:app:v9", "oci:x"], 1, "v9"),
        (&["oci:app", "docker-daemon:x"], 2, "docker load"),
        (&["oci:app", "dir:x", "--referrers"], 2, "--referrers"),
        (
            &["oci:app", "oci-archive:no/such/dir/x.tar"],
            5,
            "no/such/dir",
        ),
        (&["oci:app", "dir:app"], 1, "other files"),
        (&["oci:app", &to_digest], 6, "does not match"),
        (
            &["oci:app", "oci:x", "--platform", "arm64"],
            5,
            "linux/amd64",
        ),
        (
            &["oci:app", "oci:x", "--platform", "a/b/c/d"],
            2,
            "three parts",
        ),
    ] {
        let all: Vec<_> = std::iter::once("copy")
            .chain(args.iter().copied())
            .collect();
        let ran = setup.run(&all).expect(code);
        assert!(ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
    }
    let layer = Digest::sha256(b"layer");
    std::fs::write(app.join("blobs/sha256").join(layer.hex()), b"LAYER").unwrap();
    setup
        .run(&["copy", "oci:app", "oci-archive:bad.tar"])
        .expect(6);
    let names: Vec<_> = std::fs::read_dir(setup.home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("bad"))
        .collect();
    assert_eq!(names, [""; 0]);
}

#[test]
fn engines_are_read_through_their_programs() {
    let setup = Setup::new();
    layout(&setup.home.path().join("app"), "amd64", &[b"layer"]);
    setup
        .run(&["copy", "oci:app", "docker-archive:saved.tar:app:v1"])
        .expect(0);
    let bin = setup.home.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    let script = "#!/bin/sh\necho \"$0 $@\" >> calls\n\
        case \"$*\" in *missing*) echo 'Error: No such image: missing' >&2; exit 1;; esac\n\
        exec /bin/cat saved.tar\n";
    for name in ["docker", "podman"] {
        let path = bin.join(name);
        std::fs::write(&path, script).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    for (place, call) in [
        ("docker-daemon:app:v1", "docker save app:v1"),
        (
            "containers-storage:app:v1",
            "podman save --format docker-archive app:v1",
        ),
    ] {
        let to = format!("docker://{}/yocto/app:v1", setup.registry.host());
        let mut command = setup.command(&["copy", place, &to]);
        run(command.env("PATH", &bin)).expect(0);
        assert!(setup.registry.manifest("yocto/app", "v1").is_some());
        let calls = std::fs::read_to_string(setup.home.path().join("calls")).unwrap();
        assert!(calls.lines().last().unwrap().ends_with(call), "{calls}");
    }
    let mut command = setup.command(&["copy", "docker-daemon:missing", "oci:x"]);
    let ran = run(command.env("PATH", &bin)).expect(5);
    assert!(ran.stderr.contains("No such image"), "{}", ran.stderr);
    let mut command = setup.command(&["copy", "docker-daemon:app", "oci:x"]);
    let ran = run(command.env("PATH", "/none")).expect(3);
    assert!(ran.stderr.contains("install it"), "{}", ran.stderr);
}

#[test]
fn inspect_has_the_keys_of_skopeo() {
    let setup = Setup::new();
    let digest = setup.index_in(&setup.registry, "yocto/app", "v1");
    // No tag latest, but only one tag.
    let shown = setup
        .run(&["inspect", "app", "--platform", "linux/arm64"])
        .expect(0);
    let shown: Value = serde_json::from_str(&shown.stdout).unwrap();
    for key in [
        "Name",
        "Digest",
        "RepoTags",
        "Created",
        "DockerVersion",
        "Labels",
        "Architecture",
        "Os",
        "Layers",
        "LayersData",
        "Env",
    ] {
        assert!(shown.get(key).is_some(), "{key} is missing");
    }
    assert_eq!(
        shown["Name"],
        format!("{}/yocto/app", setup.registry.host())
    );
    assert_eq!(shown["Digest"], digest.as_str());
    assert_eq!(shown["RepoTags"], json!(["v1"]));
    assert_eq!(shown["Architecture"], "arm64");
    assert_eq!(shown["Labels"]["org.opencontainers.image.version"], "1.2");
    assert_eq!(shown["Env"], json!(["PATH=/bin"]));
    assert_eq!(shown["LayersData"][0]["Size"], 5);
    assert_eq!(shown["Platforms"], json!(["linux/amd64", "linux/arm64"]));

    let raw = setup.registry.manifest("yocto/app", "v1").unwrap();
    let ran = setup.run(&["inspect", "--raw", "app:v1"]).expect(0);
    assert_eq!(ran.stdout.as_bytes(), raw);
    let config = setup
        .run(&["inspect", "--config", "--raw", "app"])
        .expect(0);
    let manifest = setup
        .run(&["inspect", "--raw", "--platform", &host_platform(), "app"])
        .expect(0);
    let manifest: Value = serde_json::from_str(&manifest.stdout).unwrap();
    let expected = manifest["config"]["digest"].as_str().unwrap();
    assert_eq!(Digest::sha256(config.stdout.as_bytes()).as_str(), expected);

    // With a second tag, one has to be named.
    let to = format!("docker://{}/yocto/app:v2", setup.registry.host());
    setup.run(&["copy", &to.replace("v2", "v1"), &to]).expect(0);
    let ran = setup.run(&["inspect", "app"]).expect(5);
    assert!(ran.stderr.contains("v1, v2"), "{}", ran.stderr);
    for (args, code) in [
        (&["inspect", "none"][..], 5),
        (&["inspect", "app:none"], 5),
        (&["inspect", "app:v1", "--platform", "linux/s390x"], 5),
        (&["inspect", "./none"], 5),
        (&["inspect", "oci:"], 2),
        (&["inspect", "A B"], 2),
    ] {
        setup.run(args).expect(code);
    }
    // Paths are looked at as they are.
    let ran = setup.run(&["inspect", "./index-in"]).expect(0);
    let shown: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(shown["Digest"], digest.as_str());
}

fn host_platform() -> String {
    format!("linux/{}", std::env::consts::ARCH)
}
