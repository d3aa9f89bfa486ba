//! The ways of the helper script `container-registry.sh` to give credentials, and its faults mended.

mod rig;

use rig::gate::Gate;
use rig::{User, status, stderr, stdout};
use serde_json::Value;
use vdkr_core::credentials::Credential;

#[test]
fn of_several_auth_options_the_last_counts() {
    let user = User::new();
    let explain = |args: &[&str]| {
        let mut line = vec!["auth", "explain", "--json"];
        line.extend(args);
        let output = user.run(line);
        status(&output, 0);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        report["mode"].as_str().unwrap().to_owned()
    };
    assert_eq!(explain(&["--creds", "a:b", "--token", "t"]), "token");
    assert_eq!(explain(&["--token", "t", "--creds", "a:b"]), "creds");
    user.write("creds", "CONTAINER_REGISTRY_TOKEN=t\n");
    assert_eq!(
        explain(&["--use-home-auth", "--credsfile", "creds"]),
        "credsfile"
    );
    for (args, words) in [
        (&["--auth-mode", "magic"][..], "unknown auth mode"),
        (&["--auth-mode", "authfile"], "--authfile FILE"),
        (&["--auth-mode", "credsfile"], "--credsfile FILE"),
        (&["--authfile", "missing"], "missing"),
        (&["--credsfile", "missing"], "missing"),
        (&["--use-home-auth"], "login"),
        (&["--auth-mode", "env"], "CONTAINER_REGISTRY_TOKEN"),
        (&["--creds", "no-colon"], "USER:PASSWORD"),
        (&["--token", " "], "empty"),
    ] {
        let mut line = vec!["auth", "explain"];
        line.extend(args);
        let output = user.run(line);
        status(&output, 2);
        assert!(
            stderr(&output).contains(words),
            "{args:?}: {}",
            stderr(&output)
        );
        assert!(!stderr(&output).contains("no-colon"));
    }
}

fn header(pair: &str) -> String {
    let credential = Credential::from_pair(pair).unwrap();
    credential.authorization().unwrap().expose().to_owned()
}

#[test]
fn weakness_4b_18_a_stale_token_in_the_environment_does_not_override_a_file() {
    let mut user = User::with_registry();
    let gate = Gate::open(&header("me:from file*"), Some(user.port));
    user.write(
        "creds",
        "CONTAINER_REGISTRY_USER=me\nCONTAINER_REGISTRY_PASSWORD='from file*'\n",
    );
    user.set("CONTAINER_REGISTRY_TOKEN", "stale")
        .set("CONTAINER_REGISTRY_PASSWORD", "stale");
    let layout = user.image("qemux86-64", "app");
    let args = [
        "--url",
        &gate.host(),
        "push",
        layout.to_str().unwrap(),
        "--credsfile",
        "creds",
    ];
    status(&user.run(args), 0);
    let shown = gate.shown();
    assert!(
        shown
            .iter()
            .flatten()
            .all(|header| !header.starts_with("Bearer")),
        "{shown:?}"
    );
}

#[test]
fn weakness_4b_18_source_credentials_never_reach_the_destination() {
    let mut user = User::with_registry();
    let layout = user.image("qemux86-64", "app");
    status(
        &user.run(["push", layout.to_str().unwrap(), "--tag", "v1"]),
        0,
    );
    let source = Gate::open(&header("reader:source"), Some(user.port));
    let destination = Gate::open(&header("writer:destination"), Some(user.port));
    user.write(
        "src",
        "CONTAINER_REGISTRY_USER=reader\nCONTAINER_REGISTRY_PASSWORD=source\n",
    );
    user.set("CONTAINER_REGISTRY_AUTH_MODE", "env")
        .set("CONTAINER_REGISTRY_USER", "writer")
        .set("CONTAINER_REGISTRY_PASSWORD", "destination")
        .set("CONTAINER_REGISTRY_URL", destination.host());
    let image = format!("{}/yocto/app:v1", source.host());
    status(
        &user.run(["import", &image, "copy", "--src-credsfile", "src"]),
        0,
    );
    // Without credentials of its own the source gets none, not the destination's.
    status(&user.run(["import", &image, "again"]), 4);
    let only = |gate: &Gate, wanted: &str| {
        let shown = gate.shown();
        assert!(shown.iter().flatten().count() > 0);
        assert!(
            shown.iter().flatten().all(|shown| *shown == header(wanted)),
            "{shown:?}"
        );
    };
    only(&source, "reader:source");
    only(&destination, "writer:destination");
}

#[test]
fn every_way_to_give_credentials_gives_access() {
    let user = User::with_registry();
    let layout = user.image("qemux86-64", "app");
    let layout = layout.to_str().unwrap();
    status(&user.run(["push", layout, "--tag", "v1"]), 0);
    let basic = Gate::open(&header("me:right"), Some(user.port));
    let bearer = Gate::open("Bearer tok", Some(user.port));
    let entry = r#"{"auths":{"HOST":{"auth":"bWU6cmlnaHQ="}}}"#.replace("HOST", &basic.host());
    user.write("auth.json", &entry);
    let lines = "CONTAINER_REGISTRY_USER=me\nCONTAINER_REGISTRY_PASSWORD=right\n";
    user.write("creds", lines);
    user.write("token", "CONTAINER_REGISTRY_TOKEN=tok\n");

    // The options of the source, at `import`.
    for (gate, args) in [
        (&basic, ["--src-creds", "me:right"]),
        (&basic, ["--src-authfile", "auth.json"]),
        (&basic, ["--src-credsfile", "creds"]),
        (&bearer, ["--src-token", "tok"]),
        (&bearer, ["--src-credsfile", "token"]),
    ] {
        let image = format!("{}/yocto/app:v1", gate.host());
        let before = gate.shown().iter().flatten().count();
        let without = user.run(["import", &image, "taken"]);
        status(&without, 4);
        assert_eq!(gate.shown().iter().flatten().count(), before, "{args:?}");
        let output = user.run(["import", &image, "taken", args[0], args[1]]);
        status(&output, 0);
        assert!(gate.shown().iter().flatten().count() > before, "{args:?}");
        status(&user.run(["delete", "taken:v1"]), 0);
    }

    // The options and the variables of the destination.
    user.write("home/.docker/config.json", &entry);
    let home = user.path("home").to_str().unwrap().to_owned();
    let mode = |mode: &'static str| ("CONTAINER_REGISTRY_AUTH_MODE", mode);
    type Row<'a> = (&'a Gate, &'a [(&'a str, &'a str)], &'a [&'a str]);
    let rows: &[Row<'_>] = &[
        (&basic, &[], &["--creds", "me:right"]),
        (&basic, &[], &["--authfile", "auth.json"]),
        (&basic, &[], &["--credsfile", "creds"]),
        (&basic, &[("HOME", &home)], &["--use-home-auth"]),
        (&bearer, &[], &["--token", "tok"]),
        (&bearer, &[], &["--credsfile", "token"]),
        (
            &basic,
            &[
                mode("authfile"),
                ("CONTAINER_REGISTRY_AUTHFILE", "auth.json"),
            ],
            &[],
        ),
        (
            &basic,
            &[mode("credsfile"), ("CONTAINER_REGISTRY_CREDSFILE", "creds")],
            &[],
        ),
        (
            &bearer,
            &[mode("credsfile"), ("CONTAINER_REGISTRY_CREDSFILE", "token")],
            &[],
        ),
        (&basic, &[mode("home"), ("HOME", &home)], &[]),
        (
            &basic,
            &[
                mode("env"),
                ("CONTAINER_REGISTRY_USER", "me"),
                ("CONTAINER_REGISTRY_PASSWORD", "right"),
            ],
            &[],
        ),
        (
            &bearer,
            &[mode("env"), ("CONTAINER_REGISTRY_TOKEN", "tok")],
            &[],
        ),
    ];
    for (number, (gate, env, args)) in rows.iter().enumerate() {
        let host = gate.host();
        let tag = format!("row{number}");
        let line = ["--url", &host, "push", layout, "--tag", &tag];
        status(&user.run(line), 4);
        let mut command = user.command(line);
        command.args(*args).envs(env.iter().copied());
        status(&command.output().unwrap(), 0);
        let tags = stdout(&user.run(["tags", "app"]));
        assert!(tags.lines().any(|line| line == tag), "{args:?}: {tags}");
    }
}
