//! A kept machine that nobody uses ends by itself: cleanly, with all that it had.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{run_tool, wait_until};
use vdkr_tests::vm::{PATIENCE, User};

const NEVER: [&str; 4] = ["run", "--rm", "--pull", "never"];

fn is_up(user: &User) -> bool {
    let status = user.run(["memres", "status", "--json"]);
    let shown: Value = serde_json::from_str(&status.text()).unwrap();
    let running = shown["running"].as_bool().unwrap();
    assert_eq!(status.code(), if running { 0 } else { 3 }, "{shown}");
    running
}

fn goes(user: &User) {
    wait_until("the machine stops by itself", PATIENCE, || !is_up(user));
    wait_until("its processes end", PATIENCE, || {
        user.processes().is_empty()
    });
    for name in ["vdkr.sock", "monitor.json"] {
        assert!(!user.state_dir().join(name).exists(), "{name} is left");
    }
}

/// Whether a file system was left as `umount` leaves it.
fn is_clean(disk: &Path) {
    let told = run_tool("dumpe2fs", [Path::new("-h"), disk])
        .expect(0)
        .text();
    let state = told
        .lines()
        .find(|line| line.starts_with("Filesystem state:"));
    assert!(state.is_some_and(|line| line.ends_with(" clean")), "{told}");
    // There is nothing in its journal that a mount would have to repeat.
    assert!(!told.contains("needs_recovery"), "{told}");
}

#[test]
fn a_machine_that_nobody_uses_ends_cleanly() {
    let user = User::new("x86_64");
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    let started = user.run(["memres", "start", "--idle-timeout", "2"]);
    let told = started.expect(0).stderr;
    assert!(told.contains("it stops after 2 s"), "{told}");
    let image = layout("qemux86-64", "container-base-latest-oci");
    user.run(["vimport", image.to_str().unwrap(), "base:1"])
        .expect(0);
    goes(&user);
    let disk = user.state_dir().join("state.img");
    is_clean(&disk);
    let log = fs::read_to_string(user.state_dir().join("monitor.log")).unwrap();
    assert!(
        !log.contains("panicked") && !log.contains("killed"),
        "{log}"
    );
    let stopped = user.run(["memres", "status"]).expect(3).text();
    assert!(stopped.contains("Not running"), "{stopped}");
    user.run(["memres", "stop"]).expect(0);

    // What it had is there, with a machine of the command's own and with the next that stays.
    let ran = user.run([&NEVER[..], &["base:1", "echo", "ok"]].concat());
    assert_eq!(ran.expect(0).text(), "ok\n");
    user.run(["memres", "start", "--idle-timeout", "2"])
        .expect(0);
    // Somebody who waits for a container uses it, for however long that says nothing.
    let long = [&NEVER[..], &["base:1", "sh", "-c", "sleep 6; echo ok"]].concat();
    assert_eq!(user.run(long).expect(0).text(), "ok\n");
    // So does a container in the background; the machine goes after its end.
    let run = ["run", "-d", "--name", "sleeps", "base:1", "sleep", "6"];
    user.run(run).expect(0);
    goes(&user);
    is_clean(&disk);
    let state = [
        "inspect",
        "-f",
        "{{.State.Status}} {{.State.ExitCode}}",
        "sleeps",
    ];
    assert_eq!(user.run(state).expect(0).text(), "exited 0\n");
}
