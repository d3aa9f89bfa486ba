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
