//! `doctor`, completions, the manual and progress.

mod rig;

use std::fs;

use rig::{User, status, stderr, stdout};
use serde_json::Value;
use vdkr_core::digest::Digest;

fn report(user: &User, code: i32) -> Vec<Value> {
    let output = user.run(["doctor", "--json"]);
    status(&output, code);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["checks"].as_array().unwrap().clone()
}

#[track_caller]
fn find<'a>(checks: &'a [Value], subject: &str) -> &'a Value {
    checks
        .iter()
        .find(|check| check["subject"] == subject)
        .unwrap_or_else(|| panic!("nothing about {subject} in {checks:?}"))
}

#[test]
fn doctor_knows_a_healthy_registry_from_a_missing_one() {
    let mut user = User::new();
    let checks = report(&user, 1);
    let server = find(&checks, "server");
    assert_eq!(server["verdict"], "fail");
    assert!(
        server["advice"]
            .as_str()
            .unwrap()
            .contains("container-registry start")
    );

    user.start();
    let checks = report(&user, 0);
    for subject in ["storage", "server", "registry", "guest", "listening"] {
        assert_eq!(find(&checks, subject)["verdict"], "ok", "{subject}");
    }
    // No emulator, no image and no registry setting of vdkr: said, but no failure of the registry.
    for subject in ["qemu", "vdkr"] {
        let check = find(&checks, subject);
        assert_eq!(check["verdict"], "warn", "{check}");
        assert!(check["advice"].is_string(), "{check}");
    }
    user.write(
        ".config/vdkr/config.toml",
        &format!("registry = \"{}/yocto\"\n", user.host()),
    );
    let text = user.run(["doctor"]);
    status(&text, 0);
    assert!(
        stdout(&text).contains("ok    vdkr        pulls from"),
        "{}",
        stdout(&text)
    );
    assert!(stderr(&text).starts_with("0 failed"), "{}", stderr(&text));
}

#[test]
fn doctor_has_vdkr_ask_with_its_own_ca_and_login() {
    let mut user = User::new();
    user.set("CONTAINER_REGISTRY_SECURE", "1");
    user.start();
    let settings = |user: &User, more: &str| {
        let text = format!("registry = \"{}/yocto\"\n{more}", user.host());
        user.write(".config/vdkr/config.toml", &text);
    };
    let vdkr = |user: &User| find(&report(user, 0), "vdkr").clone();
    let says = |check: &Value, member: &str, words: &str| {
        assert!(check[member].as_str().unwrap().contains(words), "{check}");
    };
    settings(&user, "");
    let distrusts = vdkr(&user);
    assert_eq!(distrusts["verdict"], "warn", "{distrusts}");
    let ca = user.storage().join("pki/ca.crt");
    let line = format!("vdkr vconfig ca-cert {}", ca.display());
    assert_eq!(distrusts["advice"], line.as_str());

    settings(&user, &format!("ca-cert = \"{}\"\n", ca.display()));
    let unknown = vdkr(&user);
    assert_eq!(unknown["verdict"], "warn", "{unknown}");
    says(&unknown, "found", "no login");
    says(&unknown, "advice", "vdkr login -u yocto --password-stdin");

    let password = fs::read_to_string(user.storage().join("auth/password")).unwrap();
    let login = ["login", "-u", "yocto", "--password-stdin"];
    status(&user.run_with_input(login, password.as_bytes()), 0);
    let empty = vdkr(&user);
    assert_eq!(empty["verdict"], "ok", "{empty}");
    says(&empty, "found", "there is no image to fetch yet");
    let layout = user.image("qemux86-64", "app");
    status(
        &user.run(["push", layout.to_str().unwrap(), "--tag", "v1"]),
        0,
    );
    says(&vdkr(&user), "found", "yocto/app:v1");
}

#[test]
fn doctor_looks_at_the_certificates_of_a_secure_registry() {
    let mut user = User::new();
    user.set("CONTAINER_REGISTRY_SECURE", "1");
    user.start();
    // Only `start` needs to be told that the mode is secure.
    user.set("CONTAINER_REGISTRY_SECURE", "");
    let checks = report(&user, 0);
    let certificate = find(&checks, "certificate");
    assert_eq!(certificate["verdict"], "ok", "{certificate}");
    assert!(certificate["found"].as_str().unwrap().contains("10.0.2.2"));
    for subject in ["certificate life", "ca life"] {
        let check = find(&checks, subject);
        assert_eq!(check["verdict"], "ok", "{check}");
        assert!(check["found"].as_str().unwrap().ends_with("days left"));
    }
    user.set("CONTAINER_REGISTRY_CERT_SAN", "DNS:board.example");
    let checks = report(&user, 0);
    let certificate = find(&checks, "certificate");
    assert_eq!(certificate["verdict"], "warn", "{certificate}");
    assert!(
        certificate["found"]
            .as_str()
            .unwrap()
            .contains("board.example")
    );
}

#[test]
fn doctor_says_what_to_do_about_credentials_and_other_programs() {
    let mut user = User::new();
    let gate = rig::gate::Gate::open("nothing fits", None);
    user.set("CONTAINER_REGISTRY_URL", gate.host());
    let checks = report(&user, 1);
    let server = find(&checks, "server");
    assert_eq!(server["verdict"], "warn", "{server}");
    let registry = find(&checks, "registry");
    assert_eq!(registry["verdict"], "fail");
    assert!(registry["advice"].as_str().unwrap().contains("login"));
    user.set("CONTAINER_REGISTRY_AUTH_MODE", "env");
    assert_eq!(find(&report(&user, 1), "credentials")["verdict"], "fail");
}

#[test]
fn completions_and_the_manual_come_from_the_parser() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish"] {
        for (program, word) in [("container-registry", "push"), ("vdkr", "memres")] {
            let output = user.run(["completions", shell, "--for", program]);
            status(&output, 0);
            let script = stdout(&output);
            assert!(
                script.contains(program) && script.contains(word),
                "{shell} {program}"
            );
        }
    }
    status(&user.run(["completions", "tcsh"]), 2);
    let page = user.run(["man"]);
    status(&page, 0);
    assert!(stdout(&page).contains(".SH SYNOPSIS") || stdout(&page).contains(".SH NAME"));
    // They work whatever the configuration is.
    let mut broken = User::new();
    broken.set("CONTAINER_REGISTRY_URL", "no host!");
    status(&broken.run(["man", "man1"]), 0);
    for page in [
        "container-registry.1",
        "container-registry-push.1",
        "container-registry-auth-explain.1",
        "vdkr.1",
        "vdkr-run.1",
    ] {
        let text = fs::read_to_string(broken.path("man1").join(page)).unwrap();
        assert!(text.contains(".SH"), "{page}");
    }
}

#[test]
fn progress_as_json_lines_is_versioned_and_tells_every_blob() {
    let user = User::with_registry();
    let layout = user.image("qemux86-64", "app");
    let layer = Digest::sha256(b"app");
    let args = [
        "--progress",
        "jsonl",
        "push",
        layout.to_str().unwrap(),
        "--tag",
        "v1",
    ];
    let output = user.run(args);
    status(&output, 0);
    let events: Vec<Value> = stderr(&output)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
        .collect();
    assert!(
        events
            .iter()
            .all(|event| event["v"] == 1 && event["ms"].is_u64())
    );
    let of = |kind: &str| {
        let id = |event: &&Value| event["event"] == kind && event["id"] == layer.as_str();
        events
            .iter()
            .find(id)
            .unwrap_or_else(|| panic!("no {kind}: {events:?}"))
    };
    assert_eq!(of("started")["total"], 3);
    assert_eq!(of("finished")["outcome"], "uploaded");
    assert!(events.iter().any(|event| event["event"] == "planned"));

    let plain = user.run([
        "--progress",
        "plain",
        "push",
        layout.to_str().unwrap(),
        "--tag",
        "v1",
    ]);
    status(&plain, 0);
    assert!(stderr(&plain).contains(" present"), "{}", stderr(&plain));
    let none = user.run([
        "--progress",
        "none",
        "push",
        layout.to_str().unwrap(),
        "--tag",
        "v1",
    ]);
    assert_eq!(stderr(&none), "");
}

#[test]
fn errors_and_warnings_are_said_however_progress_is_shown() {
    let user = User::with_registry();
    user.image("qemux86-64", "app");
    rig::write_layout(
        &user.path("deploy/qemux86-64/app-qemux86-64.rootfs-20260112143022-oci"),
        "newer",
    );
    user.write("deploy/qemux86-64/bad-latest-oci/index.json", "torn");
    let list = user.write(
        "images.toml",
        &format!("[[image]]\nsource = \"{}/no/such:1\"\n", user.host()),
    );
    let deploy = user.deploy_dir();
    let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
    let import = ["import", "--file", list.to_str().unwrap()];
    for mode in ["auto", "tty", "plain", "jsonl", "none"] {
        let said = |args: &[&str], code: i32| {
            let output = user.run(["--progress", mode].iter().chain(args));
            status(&output, code);
            stderr(&output)
        };
        let pushed = said(&push, 7);
        for words in ["error: bad (", "is an older build and is not pushed"] {
            assert!(pushed.contains(words), "{mode}: {pushed}");
        }
        let imported = said(&import, 5);
        assert!(imported.contains("error: "), "{mode}: {imported}");
        assert_eq!(
            imported.contains("Importing"),
            mode != "none",
            "{mode}: {imported}"
        );
        if mode == "jsonl" {
            for line in pushed.lines().chain(imported.lines()) {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"));
            }
        }
    }
}
