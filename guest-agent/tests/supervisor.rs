//! What process 1 does with its children. Signals belong to a whole process, so this runs without
//! the test harness and its threads.

use std::{
    process::{Child, Command},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use rustix::process::set_child_subreaper;
use vdkr_agent::boot::reaper::{Ended, Signals};

const PATIENCE: Duration = Duration::from_secs(30);

fn shell(script: &str) -> Child {
    Command::new("/bin/sh")
        .args(["-c", script])
        .spawn()
        .unwrap()
}

fn main() {
    // Test runners other than cargo's ask every program which tests it has.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        if !arguments.iter().any(|argument| argument == "--ignored") {
            println!("supervisor: test");
        }
        return;
    }
    let signals = Signals::block().unwrap();

    assert_eq!(signals.run(shell("exit 0"), PATIENCE).unwrap(), Ended::Done);
    let Ended::Failed(how) = signals.run(shell("exit 3"), PATIENCE).unwrap() else {
        panic!("a failure of the agent was taken for its decision");
    };
    assert!(how.contains('3'), "{how}");
    let Ended::Failed(how) = signals.run(shell("kill -SEGV $$"), PATIENCE).unwrap() else {
        panic!("a crash of the agent was taken for its decision");
    };
    assert!(how.contains("signal"), "{how}");

    // Orphans come to process 1, and none stays unburied.
    set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let orphans = shell("for i in 1 2 3 4 5; do (sleep 0.01 &) ; done; sleep 0.5");
    assert_eq!(signals.run(orphans, PATIENCE).unwrap(), Ended::Done);
    let left = waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG);
    assert_eq!(left, Err(nix::errno::Errno::ECHILD));

    // A wish to stop is passed on, and the agent's own way of ending does not matter then.
    let polite = shell("trap 'exit 9' TERM; while :; do sleep 0.02; done");
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    assert_eq!(signals.run(polite, PATIENCE).unwrap(), Ended::Done);

    // One that does not listen is killed.
    let stubborn = shell("trap '' TERM; while :; do sleep 0.02; done");
    std::thread::sleep(Duration::from_millis(200));
    kill(Pid::this(), Signal::SIGTERM).unwrap();
    let started = Instant::now();
    let ended = signals.run(stubborn, Duration::from_millis(300)).unwrap();
    assert_eq!(ended, Ended::Done);
    assert!(started.elapsed() >= Duration::from_millis(300));

    println!("6 passed, 0 failed");
}
