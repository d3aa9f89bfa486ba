//! `login`, `logout` and `auth explain`, and what the other commands make of what they keep.

mod rig;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

use nix::pty::openpty;
use rig::gate::Gate;
use rig::{User, status, stderr, stdout};
use serde_json::Value;
use vdkr_core::credentials::Credential;

/// Spaces, quotes, globs and non-ASCII: a shell would have torn it apart.
const PASSWORD: &str = "p w*\"'$é:x";

fn header(pair: &str) -> String {
    let credential = Credential::from_pair(pair).unwrap();
    credential.authorization().unwrap().expose().to_owned()
}

fn gate(behind: Option<u16>) -> Gate {
    Gate::open(&header(&format!("me:{PASSWORD}")), behind)
}

fn log_in(user: &User, gate: &Gate, password: &str) -> std::process::Output {
    let args = ["login", &gate.host(), "-u", "me", "--password-stdin"];
    user.run_with_input(args, format!("{password}\n").as_bytes())
}

#[test]
fn what_login_keeps_is_used_by_the_other_commands_and_forgotten_by_logout() {
    let user = User::with_registry();
    let gate = gate(Some(user.port));
    let layout = user.image("qemux86-64", "app");
    let layout = layout.to_str().unwrap();
    let url = gate.host();
    let push = ["--url", &url, "push", layout, "--tag", "v1"];

    let refused = user.run(push);
    status(&refused, 4);
    assert!(
        stderr(&refused).contains("container-registry login"),
        "{}",
        stderr(&refused)
    );

    let done = log_in(&user, &gate, PASSWORD);
    status(&done, 0);
    assert_eq!(stdout(&done), "Login succeeded\n");
    let config = user.path(".docker/config.json");
    assert_eq!(
        fs::metadata(&config).unwrap().permissions().mode() & 0o777,
        0o600
    );
    status(&user.run(push), 0);
    let tags = user.run(["--url", &url, "tags", "app"]);
    status(&tags, 0);
    assert_eq!(stdout(&tags), "v1\n");
    // The mode that is for no credentials sends none, and a strict mode wants its file.
    status(
        &user.run(["--url", &url, "push", layout, "--auth-mode", "none"]),
        4,
    );
    status(
        &user.run(["--url", &url, "push", layout, "--auth-mode", "home"]),
        0,
    );

    let out = user.run(["logout", &url]);
    status(&out, 0);
    assert!(stdout(&out).starts_with("Removed"), "{}", stdout(&out));
    status(&user.run(push), 4);
    let again = user.run(["logout", &url]);
    status(&again, 0);
    assert!(stdout(&again).starts_with("Not logged in"));
}

#[test]
fn a_refused_login_changes_nothing() {
    let mut user = User::new();
    let gate = gate(None);
    let config = user.write(".docker/config.json", r#"{"HttpHeaders": {"a": "b"}}"#);
    let before = fs::read_to_string(&config).unwrap();
    let wrong = log_in(&user, &gate, "wrong-password");
    status(&wrong, 4);
    assert!(stderr(&wrong).contains("nothing was stored"));
    assert!(!stderr(&wrong).contains("wrong-password"));
    status(
        &user.run_with_input(
            ["login", "localhost:1", "-u", "me", "--password-stdin"],
            b"p",
        ),
        3,
    );
    for (args, input) in [
        (&["login"][..], &b""[..]),
        (&["login", "-u", "me"], b""),
        (&["login", "--password-stdin"], b"p"),
        (&["login", "-u", "me", "--password-stdin"], b""),
        (&["login", "-u", "me", "--password-stdin"], b"two\nlines\n"),
        (&["login", "-u", "me", "--password-stdin"], b"\xff"),
        (&["login", "-u", "a:b", "--password-stdin"], b"p"),
        (
            &["login", "ghcr.io/team", "-u", "me", "--password-stdin"],
            b"p",
        ),
        (&["login", "-u", "me", "--password-stdin", "-p", "x"], b"p"),
    ] {
        let output = user.run_with_input(args, input);
        status(&output, 2);
        assert!(
            stderr(&output).starts_with("error: "),
            "{}",
            stderr(&output)
        );
    }
    assert_eq!(fs::read_to_string(&config).unwrap(), before);

    user.write(".docker/config.json", "{ torn");
    let torn = log_in(&user, &gate, PASSWORD);
    status(&torn, 1);
    assert!(stderr(&torn).contains("config.json"), "{}", stderr(&torn));
    assert_eq!(fs::read_to_string(&config).unwrap(), "{ torn");
    // The torn file is no matter where no credentials are asked for, and is named where they are.
    user.start();
    status(&user.run(["catalog"]), 0);
    let asked = user.run(["--url", &gate.host(), "catalog"]);
    status(&asked, 2);
    assert!(stderr(&asked).contains("config.json"), "{}", stderr(&asked));
}

#[test]
fn the_rest_of_the_file_stays_and_a_link_too() {
    let user = User::new();
    let gate = gate(None);
    let real = user.write(
        "dotfiles/docker.json",
        r#"{"psFormat": "x", "auths": {"other.example": {"auth": "b3RoZXI6cA=="}}}"#,
    );
    fs::create_dir(user.path(".docker")).unwrap();
    let link = user.path(".docker/config.json");
    std::os::unix::fs::symlink("../dotfiles/docker.json", &link).unwrap();
    status(&log_in(&user, &gate, PASSWORD), 0);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    let file: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
    assert_eq!(file["psFormat"], "x");
    assert_eq!(file["auths"].as_object().unwrap().len(), 2);
    status(&user.run(["logout", "--all"]), 0);
    let file: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
    assert_eq!(file["auths"].as_object().unwrap().len(), 0);
    assert_eq!(file["psFormat"], "x");
}

#[test]
fn other_files_are_written_where_they_are_named() {
    let mut user = User::new();
    let gate = gate(None);
    let own = user.path("own/auth.json");
    let args = [
        "login",
        &gate.host(),
        "-u",
        "me",
        "--password-stdin",
        "--authfile",
        "own/auth.json",
    ];
    status(&user.run_with_input(args, PASSWORD.as_bytes()), 0);
    assert!(own.is_file() && !user.path(".docker").exists());
    let podman = user.path("run/auth.json");
    user.set("REGISTRY_AUTH_FILE", podman.to_str().unwrap());
    status(&log_in(&user, &gate, PASSWORD), 0);
    assert!(podman.is_file() && !user.path(".docker").exists());
    status(&user.run(["--url", &gate.host(), "auth", "explain"]), 0);
}

#[test]
fn a_credential_store_keeps_the_secret_out_of_the_file() {
    let user = User::with_registry();
    let gate = gate(Some(user.port));
    user.write(".docker/config.json", r#"{"credsStore": "vault"}"#);
    let vault = user.path("vault");
    fs::create_dir(&vault).unwrap();
    // Keeps what it is given in files, and its arguments for the test.
    user.script(
        "docker-credential-vault",
        &format!(
            r#"cd {}; /bin/cat /proc/$$/cmdline >> argv
case $1 in
store) /bin/cat > kept ;;
get) if [ -e kept ]; then /bin/cat kept; else echo "credentials not found in native keychain"; exit 1; fi ;;
erase) /bin/rm -f kept ;;
list) [ -e kept ] && echo '{{"{}": "me"}}' || echo '{{}}' ;;
esac"#,
            vault.display(),
            gate.host()
        ),
    );
    let url = gate.host();
    status(&user.run(["--url", &url, "catalog"]), 4);
    status(&log_in(&user, &gate, PASSWORD), 0);
    let config = fs::read_to_string(user.path(".docker/config.json")).unwrap();
    assert!(
        config.contains("credsStore") && config.contains(&url),
        "{config}"
    );
    assert!(!config.contains("\"auth\""), "{config}");
    status(&user.run(["--url", &url, "catalog"]), 0);

    let explained = user.run(["--url", &url, "auth", "explain", "--json"]);
    status(&explained, 0);
    let report: Value = serde_json::from_slice(&explained.stdout).unwrap();
    assert_eq!(report["username"], "me");
    let used = report["sources"].as_array().unwrap();
    let used = used
        .iter()
        .find(|source| source["verdict"] == "used")
        .unwrap();
    assert!(
        used["source"]
            .as_str()
            .unwrap()
            .ends_with("docker-credential-vault"),
        "{used}"
    );

    status(&user.run(["logout", "--all"]), 0);
    assert!(!vault.join("kept").exists());
    status(&user.run(["--url", &url, "catalog"]), 4);
    let argv = fs::read(vault.join("argv")).unwrap();
    assert!(!String::from_utf8_lossy(&argv).contains("p w"));
    // A helper that is not installed is an error that names it.
    fs::remove_file(user.path("bin/docker-credential-vault")).unwrap();
    let missing = user.run(["--url", &url, "catalog"]);
    status(&missing, 2);
    assert!(
        stderr(&missing).contains("docker-credential-vault"),
        "{}",
        stderr(&missing)
    );
}

#[test]
fn the_password_is_asked_for_without_an_echo() {
    let user = User::new();
    let gate = gate(None);
    let pty = openpty(None, None).unwrap();
    let mut child = user
        .command(["login", &gate.host()])
        .stdin(Stdio::from(pty.slave))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut terminal = fs::File::from(pty.master);
    let mut asked = child.stderr.take().unwrap();
    let mut wait_for = |question: &str| {
        let mut seen = Vec::new();
        let mut byte = [0];
        while !String::from_utf8_lossy(&seen).contains(question) {
            assert_ne!(asked.read(&mut byte).unwrap(), 0, "ended before {question}");
            seen.push(byte[0]);
        }
    };
    wait_for("User name for");
    terminal.write_all(b"me\n").unwrap();
    wait_for("Password of me: ");
    terminal
        .write_all(format!("{PASSWORD}\n").as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    status(&output, 0);
    assert_eq!(stdout(&output), "Login succeeded\n");
    let mut echoed = vec![0; 4096];
    // The other end is closed: what is left in the terminal comes, then an error or nothing.
    let count = terminal.read(&mut echoed).unwrap_or(0);
    let echoed = String::from_utf8_lossy(&echoed[..count]);
    assert!(!echoed.contains("p w"), "{echoed}");
}

#[test]
fn explain_names_every_source_and_no_secret() {
    let mut user = User::new();
    let authfile = user.write(
        "auth.json",
        r#"{"auths":{"quay.io":{"auth":"bWU6c2VjcmV0"}}}"#,
    );
    user.write(
        ".docker/config.json",
        r#"{"auths":{"ghcr.io":{"auth":"bWU6c2VjcmV0"}}}"#,
    );
    user.set("CONTAINER_REGISTRY_TOKEN", "secret-token")
        .set("CONTAINER_REGISTRY_AUTHFILE", authfile.to_str().unwrap());
    let report = |args: &[&str], code| {
        let mut line = vec!["auth", "explain", "--json"];
        line.extend(args);
        let output = user.run(line);
        status(&output, code);
        let text = stdout(&output) + &stderr(&output);
        assert!(!text.contains("secret") && !text.contains("bWU6"), "{text}");
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };
    let sources = |report: &Value| {
        let sources = report["sources"].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let line = |s: &Value| {
            format!(
                "{}: {} ({})",
                text(&s["verdict"]),
                text(&s["source"]),
                text(&s["reason"])
            )
        };
        sources.iter().map(line).collect::<Vec<_>>()
    };
    let local = report(&[], 0);
    assert_eq!(local["credential"], "anonymous");
    let lines = sources(&local).join("\n");
    assert!(lines.contains("holds nothing for localhost"), "{lines}");
    assert!(lines.contains("no such file"), "{lines}");
    assert!(lines.contains("counts in auth mode env only"), "{lines}");
    let ghcr = report(&["ghcr.io"], 0);
    assert_eq!(ghcr["credential"], "user name and password");
    let env = report(&["--auth-mode", "env"], 0);
    assert_eq!(env["credential"], "bearer token");
    assert_eq!(env["mode_from"], "option --auth-mode");
    let foreign = report(&["ghcr.io", "--auth-mode", "env"], 0);
    assert!(sources(&foreign)[0].contains("alone"), "{foreign}");
    status(
        &user.run([
            "auth",
            "explain",
            "--auth-mode",
            "authfile",
            "--authfile",
            "missing",
        ]),
        2,
    );

    let text = user.run(["auth", "explain", "ghcr.io"]);
    status(&text, 0);
    assert!(stdout(&text).contains("Credential: user name and password, user me"));
}
