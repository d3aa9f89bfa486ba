//! A kept machine that ends, or says nothing, just when a command comes.

mod fake_agent;
mod user;

use std::{
    fs::{self, File},
    os::unix::net::UnixListener,
    process::Stdio,
    sync::atomic::Ordering,
    thread,
    time::{Duration, Instant},
};

use user::{User, status, stderr, stdout};
use vdkr_core::channel::message::{MachineState, Request};

/// A user whose machine refuses the next `count` requests, or with `drops` goes without an answer.
fn refusing(count: u64, drops: bool) -> User {
    let user = User::with_agent();
    user.agent.refuses.store(count, Ordering::SeqCst);
    user.agent.drops.store(drops, Ordering::SeqCst);
    user
}

#[test]
fn what_nobody_has_begun_with_goes_to_the_next_machine() {
    let user = refusing(1, false);
    let output = user.run(&["images", "-q"]);
    status(&output, 0);
    assert_eq!(stdout(&output).lines().count(), 2, "{output:?}");
    assert_eq!(user.requests(), [Request::Images, Request::Images]);

    let user = refusing(1, false);
    status(&user.run(&["tag", "container-base", "mine"]), 0);
    let tags = |request: &Request| matches!(request, Request::Tag { .. });
    assert_eq!(user.requests().iter().filter(|r| tags(r)).count(), 2);

    // Once is enough: something else is wrong then.
    let user = refusing(2, false);
    let output = user.run(&["tag", "container-base", "mine"]);
    status(&output, 3);
    assert!(stderr(&output).contains("is being stopped"), "{output:?}");
    assert_eq!(user.requests().len(), 2);
}

#[test]
fn what_may_have_been_done_is_never_repeated() {
    let user = refusing(1, true);
    let output = user.run(&["tag", "container-base", "mine"]);
    status(&output, 3);
    let words = stderr(&output);
    assert!(words.contains("is not known"), "{words}");
    assert_eq!(user.requests().len(), 1, "{:?}", user.requests());

    // Who only looks may look twice.
    let user = refusing(1, true);
    status(&user.run(&["images"]), 0);
    assert_eq!(user.requests(), [Request::Images, Request::Images]);
}

#[test]
fn one_that_says_nothing_is_left_alone() {
    let user = User::new();
    std::fs::create_dir_all(user.state_dir()).unwrap();
    let socket = user.state_dir().join("vdkr.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let output = user
        .command(&["images"])
        .env("VDKR_AUTO_DAEMON", "true")
        .output()
        .unwrap();
    status(&output, 3);
    let words = stderr(&output);
    assert!(words.contains("vdkr.sock does not answer"), "{words}");
    assert!(
        words.contains("try again") && words.contains("vdkr memres stop"),
        "{words}"
    );
    // Its socket is still there, with the command that came.
    listener.set_nonblocking(true).unwrap();
    listener.accept().unwrap();
    assert!(socket.exists());
}

#[test]
fn failing_disks_are_told_of_after_each_command() {
    let user = User::with_agent();
    *user.agent.machine.lock().unwrap() = MachineState {
        disk_errors: vec!["cannot write to /x/state.img: No space left on device".into()],
        ..MachineState::default()
    };
    for args in [
        &["images"][..],
        &["run", "img", "exit", "3"],
        &["inspect", "missing"],
    ] {
        let words = stderr(&user.run(args));
        assert!(
            words.contains("cannot write to /x/state.img: No space"),
            "{args:?}: {words}"
        );
        assert!(words.contains("vdkr memres restart"), "{args:?}: {words}");
    }
    let output = user.run(&["memres", "status"]);
    status(&output, 0);
    assert!(stderr(&output).contains("/x/state.img"), "{output:?}");
    let output = user.run(&["memres", "status", "--json"]);
    let state: serde_json::Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert_eq!(
        state["disk_errors"][0],
        "cannot write to /x/state.img: No space left on device"
    );
}

/// The layers of this computer are everybody's: a command whose machine does not say what it still has
/// waits for that alone, and tells its user.
#[test]
fn a_machine_that_hangs_holds_no_other_machine_up() {
    let user = User::with_agent();
    user.agent.layers.lock().unwrap().replace(0);
    let said = user.state_dir().join("said");
    let mut command = user.command(&["rmi", "container-base"]);
    command
        .stdout(Stdio::null())
        .stderr(File::create(&said).unwrap());
    let mut removing = command.spawn().unwrap();
    let words = || fs::read_to_string(&said).unwrap();
    let patience = Instant::now() + Duration::from_mins(2);
    while words().is_empty() && Instant::now() < patience {
        thread::sleep(Duration::from_millis(20));
    }
    let lock = user.state_dir().parent().unwrap().join("layers/lock");
    let free = File::open(lock).map_or(true, |lock| lock.try_lock_shared().is_ok());
    removing.kill().unwrap();
    removing.wait().unwrap();
    let words = words();
    assert!(
        words.contains("waiting for the machine to look at its images"),
        "{words}"
    );
    assert_eq!(words.lines().count(), 1, "{words}");
    assert!(free, "no other command can use layers");
}

/// One that hangs after its first answer holds the others up for a moment, and what it has stays its own.
#[test]
fn a_machine_that_hangs_while_layers_are_settled_is_left_for_the_next_time() {
    let user = User::with_agent();
    user.agent.layers.lock().unwrap().replace(1);
    let output = user.run(&["rmi", "container-base"]);
    status(&output, 0);
    assert_eq!(stderr(&output), "");
    let asked = |request: &Request| matches!(request, Request::Layers { .. });
    let requests = user.requests();
    assert_eq!(requests.iter().filter(|one| asked(one)).count(), 2);
    assert_eq!(user.agent.cancelled.lock().unwrap().len(), 1);
    let lock = user.state_dir().parent().unwrap().join("layers/lock");
    File::open(lock).unwrap().try_lock().unwrap();

    // It answers again.
    user.agent.layers.lock().unwrap().replace(9);
    status(&user.run(&["rmi", "container-base"]), 0);
}
