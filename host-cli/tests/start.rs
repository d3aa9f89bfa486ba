//! `container-registry start` where a server of the same storage and port is on its way up or down.

mod rig;

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

use rig::{User, status, stderr, stdout};
use vdkr_core::digest::Digest;

/// What a server holds while it lives; here nobody listens.
fn silent_server(user: &User) -> Flock<File> {
    let dir = user.storage().join("run");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(format!("registry-{}.pid", user.port));
    fs::write(&path, format!("{}\nplain\n", std::process::id())).unwrap();
    Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusive).unwrap()
}

#[test]
fn a_killed_server_that_is_not_gone_yet_is_not_taken_for_a_running_one() {
    let mut user = User::new();
    let dying = silent_server(&user);
    user.started = true;
    let start = std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(700));
            drop(dying);
        });
        user.run(["start"])
    });
    status(&start, 0);
    assert!(
        stdout(&start).starts_with("Registry started"),
        "{}",
        stdout(&start)
    );
    status(&user.run(["status"]), 0);
}

#[test]
fn a_server_that_stays_silent_is_an_error() {
    let user = User::new();
    let _stuck = silent_server(&user);
    let start = user.run(["start"]);
    status(&start, 3);
    let words = stderr(&start);
    assert!(
        words.contains("does not answer") && words.contains("container-registry stop"),
        "{words}"
    );
}

/// Answers everything on this port with the same bytes, for as long as the test runs.
fn answering(port: u16, answer: &'static [u8]) {
    let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request);
            let _ = stream.write_all(answer);
        }
    });
}

#[test]
fn a_server_that_answers_badly_runs_and_is_not_healthy() {
    for (answer, healthy) in [
        (
            &b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"[..],
            false,
        ),
        (
            b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            false,
        ),
        (
            b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            false,
        ),
        (b"SSH-2.0-OpenSSH_9.2\r\n", false),
        (b"", false),
        // That the answer is what makes the difference.
        (
            b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\n\
              Content-Length: 2\r\nConnection: close\r\n\r\n{}",
            true,
        ),
    ] {
        let user = User::new();
        let _held = silent_server(&user);
        answering(user.port, answer);
        let name = String::from_utf8_lossy(answer);
        let shown = user.run(["status"]);
        status(&shown, i32::from(!healthy));
        let text = stdout(&shown);
        assert!(text.contains("Registry running"), "{name}: {text}");
        assert_eq!(text.contains("Status: healthy"), healthy, "{name}: {text}");
        assert_eq!(
            text.contains("Status: not healthy: "),
            !healthy,
            "{name}: {text}"
        );
        let shown = user.run(["status", "--json"]);
        status(&shown, i32::from(!healthy));
        let json: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
        assert_eq!(
            (&json["running"], &json["healthy"]),
            (&true.into(), &healthy.into()),
            "{name}"
        );
    }
}

/// A server in the foreground, killed when it goes.
struct Serving(Child);

impl Serving {
    /// Waits until it listens.
    fn of(user: &User, command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        let patience = Instant::now() + Duration::from_mins(1);
        while TcpStream::connect(("127.0.0.1", user.port)).is_err() {
            assert!(child.try_wait().unwrap().is_none(), "the server ended");
            assert!(Instant::now() < patience, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self(child)
    }

    /// With a limit on open files, as an option and a number of `ulimit`.
    fn limited(user: &User, limit: &str) -> Self {
        let plain = user.command(["serve"]);
        let mut command = Command::new("/bin/sh");
        command
            .arg("-c")
            .arg(format!("ulimit {limit} && exec \"$0\" serve"))
            .arg(plain.get_program())
            .env_clear()
            .envs(
                plain
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stderr(Stdio::null());
        Self::of(user, &mut command)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn words_that_cannot_be_said_keep_nothing_from_being_done() {
    let full = || File::options().write(true).open("/dev/full").unwrap();
    let user = User::new();
    let run = |args: &[&str]| user.command(args).stderr(full()).output().unwrap();
    let mut serve = user.command(["serve"]);
    let mut serving = Serving::of(
        &user,
        serve.env("CONTAINER_REGISTRY_LOG", "debug").stderr(full()),
    );
    status(&run(&["gc", "--yes"]), 0);
    status(&run(&["delete", "nothing:latest"]), 5);
    status(&run(&["stop"]), 0);
    assert!(serving.0.wait().unwrap().success());
    // Offline.
    status(&run(&["gc", "--dry-run"]), 0);
    status(&run(&["fsck"]), 0);
    // Data that nobody gets is a failure, and not a crash.
    let mut fsck = user.command(["fsck"]);
    status(&fsck.stdout(full()).stderr(full()).output().unwrap(), 1);
}

#[test]
fn connections_beyond_the_open_files_wait_and_nobody_is_refused() {
    let user = User::new();
    let serving = Serving::limited(&user, "-S -n 100");
    let limits = fs::read_to_string(format!("/proc/{}/limits", serving.0.id())).unwrap();
    let files = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let files: Vec<_> = files.unwrap().split_ascii_whitespace().collect();
    assert_eq!(files[3], files[4], "the soft limit is the hard one");
    drop(serving);

    let _serving = Serving::limited(&user, "-n 100");
    let connect = || {
        let stream = TcpStream::connect(("127.0.0.1", user.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_mins(2)))
            .unwrap();
        stream
    };
    let answer = |mut stream: TcpStream| {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let digest = Digest::sha256(b"content");
    let head = "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n";
    let mut push = connect();
    write!(
        push,
        "POST /v2/a/blobs/uploads/?digest={digest} {head}content-length: 7\r\n\r\ncontent"
    )
    .unwrap();
    let pushed = answer(push);
    assert!(pushed.starts_with("HTTP/1.1 201"), "{pushed}");
    // More than it may have files, and no more than the system lets wait.
    let mut streams: Vec<_> = (0..110).map(|_| connect()).collect();
    for stream in &mut streams {
        write!(stream, "GET /v2/a/blobs/{digest} {head}\r\n").unwrap();
    }
    for stream in streams {
        let got = answer(stream);
        assert!(
            got.starts_with("HTTP/1.1 200") && got.ends_with("content"),
            "{got}"
        );
    }
}

#[test]
fn a_server_that_its_url_does_not_reach_is_not_started() {
    let mut user = User::new();
    let other = User::new();
    let elsewhere = format!("127.0.0.2:{}", user.port);
    let wrong_port = format!("0.0.0.0:{}", other.port);
    for (line, words) in [
        (&["start", "--listen", &*wrong_port][..], "--url localhost:"),
        (&["start", "--listen", ""], "expected an address"),
        (&["start", "--url", &elsewhere], "--listen 127.0.0.2"),
        (
            &["start", "--url", "192.0.2.1:5000", "--listen", "0.0.0.0"],
            "not this machine",
        ),
        (
            &["start", "--url", "https://localhost:5000"],
            "CONTAINER_REGISTRY_SECURE=1",
        ),
    ] {
        let output = user.run(line);
        status(&output, 2);
        let said = stderr(&output);
        assert!(said.contains(words), "{line:?}: {said}");
    }
    assert!(!user.storage().join("run").exists(), "something was begun");
    // The advice holds.
    user.started = true;
    user.set("CONTAINER_REGISTRY_URL", &elsewhere);
    status(&user.run(["start", "--listen", "127.0.0.2"]), 0);
    status(&user.run(["status"]), 0);
    status(&user.run(["stop"]), 0);
    status(&user.run(["status"]), 3);
}

#[test]
fn of_several_starts_at_once_one_starts_and_all_succeed() {
    let mut user = User::new();
    user.started = true;
    let outputs: Vec<_> = std::thread::scope(|scope| {
        let starts: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| user.run(["start"])))
            .collect();
        starts
            .into_iter()
            .map(|start| start.join().unwrap())
            .collect()
    });
    for output in &outputs {
        status(output, 0);
    }
    let started = |output: &&std::process::Output| stdout(output).starts_with("Registry started");
    assert_eq!(outputs.iter().filter(started).count(), 1, "{outputs:?}");
    let log = user
        .storage()
        .join(format!("run/registry-{}.log", user.port));
    assert!(fs::read_to_string(log).unwrap().contains("listening on"));
    // What is given now and not used is told; it is success all the same.
    let again = user.run(["start", "--listen", "0.0.0.0"]);
    status(&again, 0);
    assert!(
        stderr(&again).contains("CONTAINER_REGISTRY_LISTEN"),
        "{}",
        stderr(&again)
    );
    assert!(!stderr(&user.run(["start"])).contains("warning"));
}

#[test]
fn a_server_that_hangs_is_waited_for_once() {
    let user = User::with_registry();
    let pid = fs::read_to_string(
        user.storage()
            .join(format!("run/registry-{}.pid", user.port)),
    );
    let pid: i32 = pid.unwrap().lines().next().unwrap().parse().unwrap();
    let pid = nix::unistd::Pid::from_raw(pid);
    let signal = |signal| nix::sys::signal::kill(pid, signal).unwrap();
    signal(nix::sys::signal::Signal::SIGSTOP);
    let (shown, listed) = (user.run(["status"]), user.run(["list"]));
    signal(nix::sys::signal::Signal::SIGCONT);
    status(&shown, 1);
    assert!(
        stdout(&shown).contains("no answer within 5 seconds"),
        "{}",
        stdout(&shown)
    );
    status(&listed, 3);
    let said = stderr(&listed);
    assert!(
        said.contains("runs (PID:") && said.contains("no answer within 10 seconds"),
        "{said}"
    );
}

#[test]
fn a_registry_that_was_secure_is_not_taken_for_a_plain_one() {
    let mut user = User::new();
    user.started = true;
    let secure = |user: &User, words: &[&str]| {
        user.command(words)
            .env("CONTAINER_REGISTRY_SECURE", "1")
            .output()
            .unwrap()
    };
    status(&secure(&user, &["start"]), 0);
    // The variable was for `start` alone.
    let help = stdout(&user.run(["info"]));
    assert!(
        help.contains("PKI:") && help.contains("Password file:"),
        "{help}"
    );
    let rootfs = user.path("rootfs");
    fs::create_dir_all(rootfs.join("etc")).unwrap();
    let rootfs = rootfs.to_str().unwrap();
    let bake = ["bake", "--rootfs", rootfs, "--profile", "docker", "--diff"];
    let baked = user.run(bake);
    status(&baked, 0);
    let (diff, host) = (stdout(&baked), format!("certs.d/10.0.2.2:{}", user.port));
    assert!(
        diff.contains(&host) && !diff.contains("insecure-registries"),
        "{diff}"
    );
    status(&user.run(["stop"]), 0);
    // Nobody can be asked now.
    let baked = user.run(bake);
    status(&baked, 2);
    assert!(
        stderr(&baked).contains("CONTAINER_REGISTRY_SECURE=1"),
        "{}",
        stderr(&baked)
    );
    let plain = user.run(["start"]);
    status(&plain, 0);
    assert!(
        stderr(&plain).contains("but this server speaks plain HTTP"),
        "{}",
        stderr(&plain)
    );
    // And the other way round: what runs is shown, and what to do about the difference.
    let shown = secure(&user, &["status", "--json"]);
    status(&shown, 1);
    assert!(
        stdout(&shown).contains("\"mode\":\"plain\""),
        "{}",
        stdout(&shown)
    );
    let listed = secure(&user, &["list"]);
    status(&listed, 3);
    let said = stderr(&listed);
    assert!(
        said.contains("speaks plain HTTP") && said.contains("CONTAINER_REGISTRY_SECURE"),
        "{said}"
    );
}

#[test]
fn stop_leaves_a_process_alone_that_is_no_registry() {
    let user = User::new();
    let held = silent_server(&user);
    // What a killed server left names a process that has nothing to do with it.
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let path = user
        .storage()
        .join(format!("run/registry-{}.pid", user.port));
    fs::write(&path, format!("{}\nplain\n", stranger.id())).unwrap();
    let stop = user.run(["stop"]);
    let alive = stranger.try_wait().unwrap().is_none();
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    status(&stop, 1);
    let said = stderr(&stop);
    assert!(
        alive && said.contains("nothing was done to it") && said.contains("registry-"),
        "{said}"
    );
    let serve = user.run(["serve"]);
    status(&serve, 1);
    assert!(
        stderr(&serve).contains("is locked by another process"),
        "{}",
        stderr(&serve)
    );
    drop(held);
    assert_eq!(stdout(&user.run(["stop"])), "Registry not running\n");
}
