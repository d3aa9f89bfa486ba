//! No secret leaves its place: not in the arguments of a child, not in logs at any level, not in
//! messages, not in a file that others can read. Every kind of secret is used for real, against a
//! doorkeeper that lets nobody pass without it.

mod rig;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use rig::gate::Gate;
use rig::{User, status, stderr, stdout};
use vdkr_core::base64;
use vdkr_core::credentials::Credential;
use vdkr_host::registry_cli::help;

/// The secrets of this test, and what they become in a header or a file.
fn secrets() -> Vec<String> {
    let plain = [
        "S3cret-of-env",
        "S3cret-token",
        "S3cret-of-credsfile",
        "S3cret-of-authfile",
        "S3cret-of-helper",
        "S3cret-of-login",
        "S3cret-of-option",
        "S3cret-of-source",
        "S3cret-of-server",
    ];
    let encoded = plain
        .iter()
        .map(|secret| base64::encode(format!("me:{secret}").as_bytes()));
    let encoded: Vec<_> = encoded.collect();
    plain
        .into_iter()
        .map(str::to_owned)
        .chain(encoded)
        .collect()
}

fn basic(secret: &str) -> String {
    let credential = Credential::from_pair(&format!("me:{secret}")).unwrap();
    credential.authorization().unwrap().expose().to_owned()
}

fn private(user: &User, name: &str, text: &str) -> String {
    let path = user.write(name, text);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Reads the command lines of all descendants of this process, as fast as it can.
struct Watcher {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<BTreeSet<String>>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watcher {
    /// `direct` are the commands that the test itself starts: their arguments are the user's.
    fn start(direct: Arc<Mutex<BTreeSet<u32>>>) -> Self {
        let (over, seen) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stop, lines): (_, Arc<Mutex<BTreeSet<String>>>) =
            (Arc::clone(&over), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                for entry in fs::read_dir("/proc").unwrap().flatten() {
                    let Some(pid) = entry
                        .file_name()
                        .to_str()
                        .and_then(|n| n.parse::<u32>().ok())
                    else {
                        continue;
                    };
                    if direct.lock().unwrap().contains(&pid) {
                        continue;
                    }
                    // Processes come and go while this looks.
                    let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
                    let line = String::from_utf8_lossy(&line).replace('\0', " ");
                    lines.lock().unwrap().insert(line);
                }
                thread::yield_now();
            }
        });
        Self {
            over,
            seen,
            thread: Some(thread),
        }
    }

    fn finish(mut self) -> BTreeSet<String> {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        self.seen.lock().unwrap().clone()
    }
}

struct Test {
    user: User,
    direct: Arc<Mutex<BTreeSet<u32>>>,
    said: String,
}

impl Test {
    fn run(&mut self, args: &[&str], env: &[(&str, &str)], input: &[u8]) -> Output {
        let mut command: Command = self.user.command(args);
        command
            .env("CONTAINER_REGISTRY_LOG", "trace")
            .envs(env.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child: Child = {
            // Held while it starts, so that the watcher never takes it for a child of ours.
            let mut direct = self.direct.lock().unwrap();
            let child = command.spawn().unwrap();
            direct.insert(child.id());
            child
        };
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        self.said.push_str(&stdout(&output));
        self.said.push_str(&stderr(&output));
        output
    }
}

#[track_caller]
fn clean(place: &str, text: &str) {
    for secret in secrets() {
        if let Some(at) = text.find(&secret) {
            let start = text[..at]
                .char_indices()
                .rev()
                .nth(200)
                .map_or(0, |(at, _)| at);
            panic!("{place} holds a secret: {:.400}", &text[start..]);
        }
    }
}

/// Everything below `dir` that others may read.
fn check_files(dir: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let (path, meta) = (entry.path(), entry.metadata().unwrap());
        if meta.is_dir() {
            count += check_files(&path);
        } else if meta.is_file() && meta.mode() & 0o044 != 0 {
            let bytes = fs::read(&path).unwrap();
            clean(
                &path.display().to_string(),
                &String::from_utf8_lossy(&bytes),
            );
            count += 1;
        }
    }
    count
}

#[test]
fn weakness_4b_18_no_secret_is_seen_anywhere() {
    let direct = Arc::default();
    let watcher = Watcher::start(Arc::clone(&direct));
    let mut test = Test {
        user: User::new(),
        direct,
        said: String::new(),
    };
    // The server is started with a password and a token in its environment.
    let around = [
        ("CONTAINER_REGISTRY_PASSWORD", "S3cret-of-server"),
        ("CONTAINER_REGISTRY_TOKEN", "S3cret-token"),
    ];
    test.user.started = true;
    status(&test.run(&["start"], &around, b""), 0);
    let layout = test.user.image("qemux86-64", "app");
    let layout = layout.to_str().unwrap().to_owned();
    let behind = Some(test.user.port);
    let push = |test: &mut Test, gate: &Gate, more: &[&str], env: &[(&str, &str)]| {
        let host = gate.host();
        let mut line = vec![
            "--url",
            &host,
            "--progress",
            "jsonl",
            "push",
            &layout,
            "--tag",
            "v1",
        ];
        line.extend(more);
        status(&test.run(&line, env, b""), 0);
        // The same, refused: what is shown then must not show it either.
        let wrong = Gate::open("nothing fits", behind).host();
        line[1] = &wrong;
        status(&test.run(&line, env, b""), 4);
    };

    let gate = Gate::open(&basic("S3cret-of-env"), behind);
    let env = [
        ("CONTAINER_REGISTRY_AUTH_MODE", "env"),
        ("CONTAINER_REGISTRY_USER", "me"),
        ("CONTAINER_REGISTRY_PASSWORD", "S3cret-of-env"),
    ];
    push(&mut test, &gate, &[], &env);
    // The doorkeeper offers Basic alone, so a token is never shown to it; it is set all the same.
    let token = [
        ("CONTAINER_REGISTRY_AUTH_MODE", "env"),
        ("CONTAINER_REGISTRY_TOKEN", "S3cret-token"),
    ];
    let gate = Gate::open("Bearer S3cret-token", behind);
    push(&mut test, &gate, &[], &token);

    let gate = Gate::open(&basic("S3cret-of-credsfile"), behind);
    let text = "CONTAINER_REGISTRY_USER=me\nCONTAINER_REGISTRY_PASSWORD=S3cret-of-credsfile\n";
    let file = private(&test.user, "creds", text);
    push(&mut test, &gate, &["--credsfile", &file], &[]);

    let gate = Gate::open(&basic("S3cret-of-authfile"), behind);
    let auth = base64::encode(b"me:S3cret-of-authfile");
    let entry = |host: &str| format!(r#"{{"auths":{{"{host}":{{"auth":"{auth}"}}}}}}"#);
    let file = private(&test.user, "auth.json", &entry(&gate.host()));
    let args = [
        "--url",
        &gate.host(),
        "push",
        &layout,
        "--tag",
        "v1",
        "--authfile",
        &file,
    ];
    status(&test.run(&args, &[], b""), 0);
    // An entry that is broken in a way that invites an error message to repeat it.
    let broken = entry(&gate.host()).replace(&auth, "S3cret-of-authfile");
    let broken = private(&test.user, "broken.json", &broken);
    let args = ["--url", &gate.host(), "catalog"];
    status(&test.run(&args, &[("REGISTRY_AUTH_FILE", &broken)], b""), 2);

    let gate = Gate::open(&basic("S3cret-of-option"), behind);
    push(&mut test, &gate, &["--creds", "me:S3cret-of-option"], &[]);

    let gate = Gate::open(&basic("S3cret-of-source"), behind);
    let image = format!("{}/yocto/app:v1", gate.host());
    let args = [
        "import",
        &image,
        "taken",
        "--src-creds",
        "me:S3cret-of-source",
    ];
    status(&test.run(&args, &[], b""), 0);

    let gate = Gate::open(&basic("S3cret-of-login"), behind);
    let args = ["login", &gate.host(), "-u", "me", "--password-stdin"];
    status(&test.run(&args, &[], b"S3cret-of-login"), 0);
    let args = ["--url", &gate.host(), "auth", "explain", "--json"];
    status(&test.run(&args, &[], b""), 0);

    // A helper that keeps its arguments, and complains with the secret in its words.
    let gate = Gate::open(&basic("S3cret-of-helper"), behind);
    let config = format!(r#"{{"credHelpers": {{"{}": "h"}}}}"#, gate.host());
    private(&test.user, "helped/config.json", &config);
    let helped = test.user.path("helped");
    test.user.script(
        "docker-credential-h",
        r#"/bin/cat /proc/$$/cmdline >> "$HOME/argv"
case $1 in
get) echo '{"Username": "me", "Secret": "S3cret-of-helper"}' ;;
store) /bin/cat; echo; exit 1 ;;
esac"#,
    );
    fs::set_permissions(
        test.user.path("bin/docker-credential-h"),
        fs::Permissions::from_mode(0o700),
    )
    .unwrap();
    let env = [("DOCKER_CONFIG", helped.to_str().unwrap())];
    push(&mut test, &gate, &[], &env);
    let args = ["login", &gate.host(), "-u", "me", "--password-stdin"];
    status(&test.run(&args, &env, b"S3cret-of-helper"), 1);

    // Every command there is, with all of it around.
    let env = [
        ("CONTAINER_REGISTRY_AUTH_MODE", "env"),
        ("CONTAINER_REGISTRY_USER", "me"),
        ("CONTAINER_REGISTRY_PASSWORD", "S3cret-of-env"),
        ("CONTAINER_REGISTRY_TOKEN", "S3cret-token"),
    ];
    let commands = help::command();
    let names = commands.get_subcommands().map(clap::Command::get_name);
    for name in names.filter(|name| !["start", "serve", "stop", "help"].contains(name)) {
        test.run(&[name], &env, b"");
        test.run(&[name, "app:v1"], &env, b"");
    }
    status(&test.run(&["stop"], &env, b""), 0);

    clean("what the commands said", &test.said);
    assert!(
        test.said.contains("TRACE") || test.said.contains("DEBUG"),
        "the log is on"
    );
    let argv = fs::read(test.user.path("argv")).unwrap();
    clean("a helper's arguments", &String::from_utf8_lossy(&argv));
    let lines = watcher.finish();
    assert!(
        lines.iter().any(|line| line.contains(" serve")),
        "the server was seen"
    );
    for line in &lines {
        // Other tests' processes are here too; they have other secrets.
        clean("a child's arguments", line);
    }
    assert!(check_files(test.user.home.path()) > 5);
}
