//! `container-registry start` where a server of the same storage and port is on its way up or down.

mod rig;

use std::fs::{self, File};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use rig::{User, status, stderr, stdout};

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
    status(&listed, 1);
    let said = stderr(&listed);
    assert!(
        said.contains("speaks plain HTTP") && said.contains("CONTAINER_REGISTRY_SECURE"),
        "{said}"
    );
}
