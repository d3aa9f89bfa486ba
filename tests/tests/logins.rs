//! A registry with TLS and logins, and `vdkr` on both of its ways to pull: each setting holds for the
//! machine that runs, and secrets stay where their owner put them.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, free_port, run_tool};
use vdkr_tests::pty::Terminal;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

const SECURE: [(&str, &str); 1] = [("CONTAINER_REGISTRY_SECURE", "1")];
const STDIN: [&str; 5] = [
    "--registry-user",
    "yocto",
    "--registry-password-stdin",
    "pull",
    "container-base",
];

/// A password, and what it looks like on its way.
struct Password {
    plain: String,
    /// Plain, in base64, and in base64 behind the user's name as HTTP and docker's files have it.
    forms: Vec<String>,
}

impl Password {
    fn read(storage: &Path) -> Self {
        let plain = fs::read_to_string(storage.join("auth/password")).unwrap();
        let plain = plain.trim().to_owned();
        assert!(plain.len() >= 8, "too short to be looked for");
        let base64 = |text: &str| {
            let encoded = run_tool("sh", ["-c", "printf %s \"$1\" | base64 -w 0", "sh", text]);
            // The end of it depends on what follows.
            encoded.expect(0).text().trim_end_matches('=').to_owned()
        };
        let forms = vec![
            plain.clone(),
            base64(&plain),
            base64(&format!("yocto:{plain}")),
        ];
        Self { plain, forms }
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        let text = String::from_utf8_lossy(bytes);
        self.forms.iter().any(|form| text.contains(form))
    }

    /// Files below a directory that have it in any form. Only what is written of them is read: a
    /// machine's disk and memory are sparse.
    fn files_with_it(&self, directory: &Path) -> Vec<String> {
        let mut names = Vec::new();
        let mut open = vec![directory.to_owned()];
        while let Some(directory) = open.pop() {
            for entry in fs::read_dir(&directory).unwrap() {
                let entry = entry.unwrap();
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_dir() {
                    open.push(path);
                } else if kind.is_file() {
                    let script = "tar -ScC \"$1\" \"$2\" | grep -caF -e \"$3\" -e \"$4\" -e \"$5\"";
                    let (place, name) = (directory.to_str().unwrap(), entry.file_name());
                    let mut words = vec!["-c", script, "sh", place, name.to_str().unwrap()];
                    words.extend(self.forms.iter().map(String::as_str));
                    if run_tool("sh", words).text().trim() != "0" {
                        names.push(path.display().to_string());
                    }
                }
            }
        }
        names
    }

    /// Does something, and looks at the command lines and environments of all processes meanwhile.
    fn is_nobodys_argument<T>(&self, word: &str, work: impl FnOnce() -> T) -> T {
        let done = AtomicBool::new(false);
        let watch = || {
            let (mut seen, mut told) = (false, Vec::new());
            while !done.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").unwrap().flatten() {
                    let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
                    let line = read("cmdline");
                    seen |= String::from_utf8_lossy(&line).contains(word);
                    if self.is_in(&line) || self.is_in(&read("environ")) {
                        told.push(String::from_utf8_lossy(&line).into_owned());
                    }
                }
            }
            (seen, told)
        };
        thread::scope(|scope| {
            let watcher = scope.spawn(watch);
            let result = work();
            done.store(true, Ordering::Relaxed);
            let (seen, told) = watcher.join().unwrap();
            assert!(seen, "nobody saw {word}");
            assert!(told.is_empty(), "{told:?}");
            result
        })
    }
}

fn secured(dir: &TempDir) -> Registry {
    let registry = Registry::start_with(&dir.path().join("storage"), free_port(), &SECURE);
    let image = layout("qemux86-64", "container-base-latest-oci");
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    registry
}

fn every_setting_holds(pull_in: &str) {
    let dir = TempDir::new().unwrap();
    let registry = secured(&dir);
    let storage = registry.storage();
    let ca = storage.join("pki/ca.crt").to_str().unwrap().to_owned();
    let password = Password::read(storage);
    let user = User::new("x86_64");
    user.run(["vconfig", "pull-in", pull_in]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let host = registry.host();
    let prefix = format!("{host}/yocto");
    let with_ca = |ca: &str, words: &[&str], input: &str| -> Ran {
        let settings = ["--registry", &prefix, "--ca-cert", ca];
        let line: Vec<&str> = settings.iter().chain(words).copied().collect();
        let ran = user.run_with_input(line, input.as_bytes());
        assert!(!password.is_in(ran.stderr.as_bytes()), "{}", ran.stderr);
        assert!(!password.is_in(&ran.stdout), "{}", ran.text());
        ran
    };
    let with = |words: &[&str], input: &str| with_ca(&ca, words, input);
    let right = format!("{}\n", password.plain);

    // Each setting holds for the running machine, at once.
    with(&["pull", "container-base"], "").expect(4);
    let unknown = user.run([
        "--registry",
        &prefix,
        "--secure-registry",
        "pull",
        "container-base",
    ]);
    assert!(unknown.expect(3).stderr.contains("certificate"));
    // Any certificate will do where the user says so, and for that registry alone.
    let insecure = |named: &str| {
        let settings = ["--registry", &prefix, "--insecure-registry", named];
        user.run([&settings[..], &["pull", "container-base"]].concat())
    };
    insecure(&host).expect(4);
    let other = insecure("localhost:1").expect(3);
    assert!(other.stderr.contains("certificate"), "{}", other.stderr);
    // Another registry's CA is none, and whoever trusts it alone sends no password.
    let stranger = TempDir::new().unwrap();
    let stranger = secured(&stranger);
    let other_ca = stranger.storage().join("pki/ca.crt");
    let refused = with_ca(other_ca.to_str().unwrap(), &STDIN, &right).expect(3);
    assert!(
        refused.stderr.contains("invalid peer certificate"),
        "{}",
        refused.stderr
    );
    assert!(
        refused
            .stderr
            .contains(&prefix[prefix.find(':').unwrap()..])
    );
    let run = ["run", "--rm", "container-base", "true"];
    with_ca(other_ca.to_str().unwrap(), &run, "").expect(125);
    drop(stranger);
    let wrong = with(&STDIN, "wrong\n").expect(4);
    assert!(wrong.stderr.contains("refused access"), "{}", wrong.stderr);
    assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");
    let watched = STDIN[2];
    password
        .is_nobodys_argument(watched, || with(&STDIN, &right))
        .expect(0);
    let argument = [
        "--registry-user",
        "yocto",
        "--registry-password",
        &password.plain,
        "pull",
        "-q",
        "container-base",
    ];
    let warned = with(&argument, "").expect(0);
    assert!(
        warned.stderr.contains("--registry-password-stdin"),
        "{}",
        warned.stderr
    );
    // And does not stay: the next one has no password.
    with(&["pull", "container-base"], "").expect(4);

    // A login, kept where docker keeps it.
    let login = ["login", "-u", "yocto", "--password-stdin"];
    with(&login, "wrong\n").expect(4);
    with_ca(other_ca.to_str().unwrap(), &login, &right).expect(3);
    let file = user.home().join(".docker/config.json");
    assert!(!file.exists(), "a refused login was kept");
    password
        .is_nobodys_argument(login[3], || with(&login, &right))
        .expect(0);
    assert!(fs::read_to_string(&file).unwrap().contains(&host));
    assert_eq!(
        password.files_with_it(user.home()),
        [file.display().to_string()],
        "the search finds it where it is"
    );
    let again = ["pull", "container-base"];
    password
        .is_nobodys_argument("container-base", || with(&again, ""))
        .expect(0);
    with(&["tag", "container-base", "again:1"], "").expect(0);
    let pushed = with(&["push", "again:1"], "").expect(0);
    assert!(
        pushed.text().starts_with("1: digest: sha256:"),
        "{}",
        pushed.text()
    );
    let look = "cat /proc/cmdline /proc/*/cmdline /proc/*/environ | tr '\\0' '\\n'";
    let run = [
        "run",
        "--rm",
        "--pid",
        "host",
        "--privileged",
        "--pull",
        "always",
    ];
    let shown = with(
        &[&run[..], &["container-base", "sh", "-c", look]].concat(),
        "",
    );
    assert!(shown.expect(0).text().contains("console="));

    // Asked for at a terminal, which shows no password.
    let asked = |keys: &[(&str, &str)]| {
        let mut command = user.command();
        command.args(["--registry", &prefix, "--ca-cert", &ca, "login"]);
        let mut terminal = Terminal::start(&command, 24, 80);
        for (question, answer) in keys {
            terminal.until(question);
            terminal.keys(answer);
        }
        terminal
    };
    fs::remove_file(&file).unwrap();
    let stopped = asked(&[("User name", "yocto\r"), ("Password", "wro\x03")]);
    assert_ne!(stopped.ended().code(), Some(0));
    assert!(!file.exists());
    let right = format!("{}\r", password.plain);
    let mut done = asked(&[("User name", "yocto\r"), ("Password", &right)]);
    done.until("Login Succeeded");
    assert!(!password.is_in(done.shown().as_bytes()), "{}", done.shown());
    assert_eq!(done.ended().code(), Some(0));

    // The same by a file that the command names.
    let own = storage.join("logins.json");
    fs::rename(&file, &own).unwrap();
    let own = own.to_str().unwrap();
    with(&["--config", own, "pull", "container-base"], "").expect(0);
    run_tool("chmod", ["644", own]).expect(0);
    let refused = with(&["--config", own, "pull", "container-base"], "").expect(2);
    assert!(refused.stderr.contains("644"), "{}", refused.stderr);
    run_tool("chmod", ["600", own]).expect(0);
    with(&["--config", own, "logout"], "").expect(0);
    with(&["--config", own, "pull", "container-base"], "").expect(4);
    with(&["logout"], "").expect(0);

    // Nothing of it is on the machine's disk, in its snapshot, among the layers or in a log.
    user.run(["memres", "stop"]).expect(0);
    assert_eq!(password.files_with_it(user.home()), [""; 0]);
}

#[test]
fn every_setting_holds_for_pulls_on_this_computer() {
    every_setting_holds("host");
}

#[test]
fn every_setting_holds_for_pulls_in_the_machine() {
    every_setting_holds("guest");
}
