//! `push` against a registry that records every request: what arrives, at which price, and what
//! happens when something is wrong.

#[path = "double/build.rs"]
mod build;
mod double;

use std::process::Command;
use std::sync::Barrier;
use std::time::Duration;

use build::{layout, multiarch, noise, program, put_image, run};
use double::{Double, Manners};
use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::{DOCKER_CONFIG, DOCKER_MANIFEST};
use vdkr_transfer::LayoutWriter;

/// The platforms and digests of a tag's index.
fn entries(registry: &Double, name: &str, tag: &str) -> Vec<(String, String)> {
    let raw = registry.manifest(name, tag).expect("the tag exists");
    let index: Value = serde_json::from_slice(&raw).unwrap();
    let entries = index["manifests"].as_array().expect("an index");
    entries
        .iter()
        .map(|entry| {
            let platform = &entry["platform"];
            let mut text = platform["architecture"].as_str().unwrap().to_owned();
            if let Some(variant) = platform["variant"].as_str() {
                text = format!("{text}/{variant}");
            }
            (text, entry["digest"].as_str().unwrap().to_owned())
        })
        .collect()
}

fn platforms(registry: &Double, name: &str, tag: &str) -> Vec<String> {
    let mut names: Vec<_> = entries(registry, name, tag)
        .into_iter()
        .map(|e| e.0)
        .collect();
    names.sort();
    names
}

fn push(home: &TempDir, registry: &Double) -> Command {
    let mut command = program(home.path(), &registry.host());
    command.arg("push");
    command
}

fn deploy(home: &TempDir) -> std::path::PathBuf {
    home.path().join("deploy")
}

#[test]
fn weakness_4b_6_an_existing_image_of_another_architecture_is_kept() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[b"amd64"]);
    // A tag that points to one image, not to an index; Docker's, as `docker push` makes it.
    let config = registry.put_blob(
        "yocto/app",
        br#"{"architecture":"arm64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#,
    );
    let manifest = json!({
        "schemaVersion": 2, "mediaType": DOCKER_MANIFEST,
        "config": {"mediaType": DOCKER_CONFIG, "digest": config, "size": 78},
        "layers": [],
    });
    let raw = manifest.to_string();
    let old = registry.put_manifest("yocto/app", "v1", DOCKER_MANIFEST, raw.as_bytes());
    run(push(&home, &registry).arg(&app).args(["--tag", "v1"])).expect(0);
    assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64", "arm64"]);
    let kept = entries(&registry, "yocto/app", "v1");
    assert!(kept.iter().any(|(_, digest)| *digest == old.to_string()));
    // Its media type in the index is what it is.
    let index: Value =
        serde_json::from_slice(&registry.manifest("yocto/app", "v1").unwrap()).unwrap();
    let listed = index["manifests"].as_array().unwrap();
    assert!(
        listed
            .iter()
            .any(|entry| entry["mediaType"] == DOCKER_MANIFEST)
    );
}

fn concurrent_pushes(manners: &Manners) {
    let home = TempDir::new().unwrap();
    let all = ["amd64", "arm64", "riscv64", "ppc64le"];
    for platform in all {
        layout(
            &home.path().join(platform).join("app-latest-oci"),
            platform,
            &[b"x"],
        );
    }
    for _ in 0..4 {
        let registry = Double::start(manners.clone());
        let start = Barrier::new(all.len());
        std::thread::scope(|scope| {
            for platform in all {
                let (home, registry, start) = (&home, &registry, &start);
                scope.spawn(move || {
                    let path = home.path().join(platform).join("app-latest-oci");
                    let mut command = push(home, registry);
                    command.arg(path).args(["--tag", "v1"]);
                    start.wait();
                    run(&mut command).expect(0);
                });
            }
        });
        let mut expected = all.map(str::to_owned);
        expected.sort();
        assert_eq!(platforms(&registry, "yocto/app", "v1"), expected);
    }
}

#[test]
fn weakness_4b_7_concurrent_pushes_lose_nothing_with_conditional_requests() {
    concurrent_pushes(&Manners {
        conditional: true,
        ..Manners::default()
    });
}

#[test]
fn weakness_4b_7_concurrent_pushes_lose_nothing_without_conditional_requests() {
    concurrent_pushes(&Manners {
        // Writing takes long enough for everybody to have read the same.
        before_tag: Some(|| std::thread::sleep(Duration::from_millis(15))),
        ..Manners::default()
    });
}

#[test]
fn weakness_4b_8_variants_of_an_architecture_stand_side_by_side() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    for (machine, platform) in [("old", "arm/v6"), ("new", "arm/v7"), ("big", "arm64")] {
        let path = deploy(&home).join(machine).join("app-latest-oci");
        layout(&path, platform, &[platform.as_bytes()]);
    }
    let pushed = run(push(&home, &registry)
        .arg("--deploy-dir-images")
        .arg(deploy(&home))
        .args(["app", "--tag", "v1"]));
    let pushed = pushed.expect(0);
    assert_eq!(
        platforms(&registry, "yocto/app", "v1"),
        ["arm/v6", "arm/v7", "arm64"]
    );
    assert!(!pushed.stderr.contains("warning"), "{}", pushed.stderr);
}

#[test]
fn weakness_4b_9_deploy_directories_hold_images_of_several_platforms() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    multiarch(
        &deploy(&home).join("m/app-multiarch-oci"),
        &["amd64", "arm64"],
    );
    // Flat, as other tools write it.
    let flat = LayoutWriter::create(deploy(&home).join("m/flat-latest-oci")).unwrap();
    for platform in ["amd64", "riscv64"] {
        let image = put_image(&flat, platform, &[platform.as_bytes()]);
        flat.list(&image, None).unwrap();
    }
    run(push(&home, &registry)
        .env("DEPLOY_DIR_IMAGES", deploy(&home))
        .args(["--strategy", "latest arch"]))
    .expect(0);
    assert_eq!(
        platforms(&registry, "yocto/app", "latest"),
        ["amd64", "arm64"]
    );
    assert_eq!(
        platforms(&registry, "yocto/flat", "latest"),
        ["amd64", "riscv64"]
    );
}

#[test]
fn weakness_4b_10_links_and_stale_builds_make_no_second_image() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    let machine = deploy(&home).join("odd-board");
    let stale = layout(
        &machine.join("app-odd-board.rootfs-20260101000000-oci"),
        "arm64",
        &[b"1"],
    );
    let current = layout(
        &machine.join("app-odd-board.rootfs-20260112143022-oci"),
        "arm64",
        &[b"2"],
    );
    std::os::unix::fs::symlink(
        "app-odd-board.rootfs-20260112143022-oci",
        machine.join("app-latest-oci"),
    )
    .unwrap();
    let pushed = run(push(&home, &registry).env("DEPLOY_DIR_IMAGE", &machine)).expect(0);
    assert!(pushed.stderr.contains("older build"), "{}", pushed.stderr);
    let listed = entries(&registry, "yocto/app", "latest");
    assert_eq!(listed, [("arm64".to_owned(), current.to_string())]);
    assert!(registry.manifest("yocto/app", stale.as_str()).is_none());
    let repositories: std::collections::BTreeSet<_> = registry
        .take_seen()
        .into_iter()
        .filter(|seen| seen.method == "PUT" && seen.path.contains("/manifests/"))
        .map(|seen| seen.path.split("/manifests/").next().unwrap().to_owned())
        .collect();
    assert_eq!(
        repositories.into_iter().collect::<Vec<_>>(),
        ["/v2/yocto/app"]
    );
}

#[test]
fn weakness_4b_11_failed_image_in_batch_changes_exit_status() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    for name in ["bad", "good", "worse"] {
        let path = deploy(&home).join("m").join(format!("{name}-latest-oci"));
        layout(&path, "amd64", &[name.as_bytes()]);
    }
    let layer = |name: &str| {
        let digest = Digest::sha256(name.as_bytes());
        let dir = deploy(&home).join("m").join(format!("{name}-latest-oci"));
        dir.join("blobs/sha256").join(digest.hex())
    };
    std::fs::write(layer("bad"), b"BAD").unwrap();
    std::fs::remove_file(layer("worse")).unwrap();
    let mut command = push(&home, &registry);
    command
        .arg("--deploy-dir-images")
        .arg(deploy(&home))
        .args(["--strategy", "latest"]);
    let ran = run(&mut command).expect(7);
    assert!(ran.stderr.contains("error: bad (m)"), "{}", ran.stderr);
    assert!(ran.stderr.contains("error: worse (m)"), "{}", ran.stderr);
    assert!(registry.manifest("yocto/good", "latest").is_some());
    assert!(registry.manifest("yocto/bad", "latest").is_none());
    // Alone, it has the status of its own failure.
    let ran = run(push(&home, &registry).arg(deploy(&home).join("m/bad-latest-oci"))).expect(6);
    assert!(
        ran.stderr.contains("does not match its digest"),
        "{}",
        ran.stderr
    );
}

/// Methods and paths, without the questions by which a client finds out how to speak.
fn asked(registry: &Double) -> Vec<String> {
    let seen = registry.take_seen().into_iter();
    seen.filter(|seen| seen.path != "/v2/")
        .map(|seen| format!("{} {}", seen.method, seen.path))
        .collect()
}

#[test]
fn weakness_4b_12_unchanged_images_cost_two_requests_each() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    for number in 0..20 {
        let path = deploy(&home)
            .join("m")
            .join(format!("app{number}-latest-oci"));
        layout(
            &path,
            "amd64",
            &[b"shared", format!("own {number}").as_bytes()],
        );
    }
    let mut command = push(&home, &registry);
    command
        .env("DEPLOY_DIR_IMAGES", deploy(&home))
        .args(["--strategy", "latest"]);
    run(&mut command).expect(0);
    let first = asked(&registry);
    let shared = Digest::sha256(b"shared");
    let sent = first
        .iter()
        .filter(|ask| ask.starts_with("PUT") && ask.contains("/uploads/"));
    // Each own layer once, the shared layer and the configuration once and then mounted.
    assert!(sent.count() < 20 + 2 * 8, "{first:#?}");
    let again = run(&mut command).expect(0);
    assert_eq!(again.stdout.lines().count(), 20);
    let second = asked(&registry);
    assert!(second.len() <= 2 * 20, "{second:#?}");
    assert!(
        second
            .iter()
            .all(|ask| ask.starts_with("HEAD") || ask.starts_with("GET"))
    );
    assert!(!second.iter().any(|ask| ask.contains(shared.as_str())));
}

#[test]
fn weakness_4b_16_credentials_never_go_to_an_unverified_registry() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[b"x"]);
    // Not a name of this machine, and yet it leads here.
    let host = format!("0.0.0.0:{}", registry.port());
    let mut command = program(home.path(), &host);
    command
        .arg("push")
        .arg(&app)
        .args(["--tag", "v1", "--creds", "user:secret-word"]);
    let refused = run(&mut command);
    assert_ne!(refused.code, 0);
    assert!(!refused.stderr.contains("secret-word"));
    assert!(
        registry
            .take_seen()
            .iter()
            .all(|seen| seen.authorization.is_none())
    );
    assert!(registry.manifest("yocto/app", "v1").is_none());
    run(command.args(["--insecure", &host])).expect(0);
    assert!(registry.manifest("yocto/app", "v1").is_some());
}

/// As when it has expired, or somebody has changed a right meanwhile.
#[test]
fn a_token_that_is_not_taken_any_more_is_renewed_in_the_middle_of_a_push() {
    for method in ["PATCH", "PUT"] {
        let home = TempDir::new().unwrap();
        let registry = Double::start(Manners {
            token: Some(("user".to_owned(), "word".to_owned())),
            revoke_at: Some(method),
            ..Manners::default()
        });
        let app = home.path().join("app-latest-oci");
        layout(&app, "amd64", &[&noise(1, 17 << 20), b"small"]);
        let mut command = push(&home, &registry);
        command
            .arg(&app)
            .args(["--tag", "v1", "--creds", "user:word"]);
        run(&mut command).expect(0);
        registry.manners(|manners| assert_eq!(manners.revoke_at, None));
        assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64"]);
    }
}

#[test]
fn weakness_4b_17_a_registry_with_a_token_server_takes_pushes() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners {
        token: Some(("user".to_owned(), "pass word".to_owned())),
        ..Manners::default()
    });
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[&noise(1, 3_000_000), b"small"]);
    let creds = home.path().join("creds");
    std::fs::write(
        &creds,
        "CONTAINER_REGISTRY_USER=user\nCONTAINER_REGISTRY_PASSWORD=\"pass word\"\n",
    )
    .unwrap();
    let mut command = push(&home, &registry);
    command.arg(&app).args(["--tag", "v1"]);
    run(&mut command).expect(4);
    run(command.arg("--credsfile").arg(&creds)).expect(0);
    assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64"]);
    // The password went to the token server alone.
    let basic = double::basic("user", "pass word");
    for seen in registry.take_seen() {
        let shown = seen.authorization.as_deref() == Some(basic.as_str());
        assert!(!shown || seen.path == "/token", "{seen:?}");
    }
    // So did a second architecture, into the same tag.
    layout(&home.path().join("arm/app-latest-oci"), "arm64", &[b"y"]);
    let mut command = push(&home, &registry);
    command
        .arg(home.path().join("arm/app-latest-oci"))
        .args(["--tag", "v1"]);
    run(command.arg("--credsfile").arg(&creds)).expect(0);
    assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64", "arm64"]);
}

#[test]
fn archives_are_pushed_like_layouts() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    let source = home.path().join("app-latest-oci");
    let digest = layout(&source, "arm64", &[&noise(3, 100_000)]);
    let copy = |to: &str| {
        let mut command = program(home.path(), &registry.host());
        run(command.args(["copy", &format!("oci:{}", source.display()), to])).expect(0);
    };
    // The directory tells the machine, as in a deploy directory.
    std::fs::create_dir(home.path().join("m")).unwrap();
    copy("oci-archive:m/app-m.rootfs-20260112143022-oci.tar");
    copy("docker-archive:saved.tar:localhost:5000/yocto/tool:v9");
    for (file, name) in [
        ("m/app-m.rootfs-20260112143022-oci.tar", "yocto/app"),
        ("saved.tar", "yocto/tool"),
    ] {
        run(push(&home, &registry).args([&format!("./{file}"), "--tag", "v1"])).expect(0);
        let listed = entries(&registry, name, "v1");
        assert_eq!(listed, [("arm64".to_owned(), digest.to_string())]);
    }
    // A name without a slash is a file too, when there is one.
    run(push(&home, &registry).args(["saved.tar", "--tag", "v2"])).expect(0);
    assert!(registry.manifest("yocto/tool", "v2").is_some());
}

#[test]
fn what_cannot_be_pushed_is_said_before_anything_is_sent() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners::default());
    layout(&deploy(&home).join("m/app-latest-oci"), "amd64", &[b"x"]);
    layout(&deploy(&home).join("n/base-latest-oci"), "arm64", &[b"x"]);
    std::fs::write(home.path().join("text.tar"), "not an archive").unwrap();
    let two = LayoutWriter::create(home.path().join("two-oci")).unwrap();
    for content in [b"1", b"2"] {
        let image = put_image(&two, "amd64", &[content]);
        let name = String::from_utf8_lossy(content);
        two.list(&image, Some(&name)).unwrap();
    }
    let deploy_dir = deploy(&home);
    let deploy_dir = deploy_dir.to_str().unwrap();
    for (args, code, words) in [
        (
            &["nothing", "--deploy-dir-images", deploy_dir][..],
            5,
            "app (m)\n  base (n)",
        ),
        (&["./none"], 5, "no such file"),
        (&["./text.tar"], 1, "text.tar"),
        (&["./two-oci"], 1, "several images for linux/amd64"),
        (&["./deploy/m/app-latest-oci", "--tag", "a b"], 2, "tag"),
        (
            &["./deploy/m/app-latest-oci", "--strategy", "word"],
            2,
            "timestamp",
        ),
        (&["app", "--deploy-dir-images", "/none"], 5, "/none"),
    ] {
        let ran = run(push(&home, &registry).args(args)).expect(code);
        assert!(ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
    }
    let wrote = registry
        .take_seen()
        .into_iter()
        .any(|seen| seen.method != "GET");
    assert!(!wrote);
    // A machine's directory is all of its images.
    run(push(&home, &registry).args(["./deploy/m", "--tag", "v1"])).expect(0);
    assert!(registry.manifest("yocto/app", "v1").is_some());
    assert!(registry.manifest("yocto/base", "v1").is_none());
}

#[test]
fn an_upload_that_broke_goes_on_where_it_was() {
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners {
        break_patch_after: Some(20_000_000),
        ..Manners::default()
    });
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[&noise(5, 40_000_000)]);
    run(push(&home, &registry).arg(&app).args(["--tag", "v1"])).expect(0);
    let ranges: Vec<_> = registry
        .take_seen()
        .into_iter()
        .filter(|seen| seen.method == "PATCH")
        .map(|seen| seen.content_range)
        .collect();
    assert_eq!(ranges, [None, Some("20000000-39999999".to_owned())]);
    assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64"]);
}

#[test]
fn an_upload_of_a_killed_run_goes_on_in_the_next() {
    const TAKEN: usize = 20_000_000;
    let home = TempDir::new().unwrap();
    let registry = Double::start(Manners {
        stall_patch_after: Some(TAKEN),
        ..Manners::default()
    });
    let app = home.path().join("app-latest-oci");
    layout(&app, "amd64", &[&noise(5, 40_000_000)]);
    let mut first = push(&home, &registry)
        .arg(&app)
        .args(["--tag", "v1"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while registry.received() < TAKEN {
        assert!(std::time::Instant::now() < deadline, "nothing was sent");
        std::thread::sleep(Duration::from_millis(10));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    registry.take_seen();
    run(push(&home, &registry).arg(&app).args(["--tag", "v1"])).expect(0);
    let ranges: Vec<_> = registry
        .take_seen()
        .into_iter()
        .filter(|seen| seen.method == "PATCH")
        .map(|seen| seen.content_range)
        .collect();
    assert_eq!(ranges, [Some("20000000-39999999".to_owned())]);
    assert_eq!(platforms(&registry, "yocto/app", "v1"), ["amd64"]);
    // Nothing is left behind, here or there.
    assert_eq!(registry.open_sessions(), 0);
    let notes = home.path().join(".cache/container-registry/uploads");
    assert_eq!(std::fs::read_dir(notes).unwrap().count(), 0);
}
