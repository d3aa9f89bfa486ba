//! A kept machine that dies, stands still, or has no room left on this computer.

use std::fs;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vdkr_tests::fixtures::layout;
use vdkr_tests::namespaces::as_root;
use vdkr_tests::process::{Background, program, run_within, wait_until};
use vdkr_tests::vm::{PATIENCE, Process, User};

/// `vdkr` as somebody uses it who has set nothing: the first command starts the machine of all.
fn plainly(user: &User, args: &[&str]) -> Command {
    let mut command = user.command();
    command.env_remove("VDKR_AUTO_DAEMON").args(args);
    command
}

/// A process of the machine that is kept: `pid` of its monitor, `qemu_pid` of its emulator.
fn process(user: &User, which: &str) -> Pid {
    let status = user.run(["memres", "status", "--json"]).expect(0).text();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let pid = status["monitor"][which].as_i64().unwrap();
    Pid::from_raw(pid.try_into().unwrap())
}

#[test]
fn one_that_was_killed_is_replaced_and_one_that_stands_still_is_not() {
    let user = User::new("x86_64");
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    let image = layout("qemux86-64", "container-base-latest-oci");
    let import = ["vimport", image.to_str().unwrap(), "base"];
    run_within(&mut plainly(&user, &import), b"", PATIENCE).expect(0);
    let names = ["images", "--format", "{{.Repository}}"];

    for which in ["pid", "qemu_pid"] {
        let before = process(&user, "pid");
        kill(process(&user, which), Signal::SIGKILL).unwrap();
        if which == "pid" {
            // The emulator goes with its parent, in a moment.
            wait_until("the end of both", PATIENCE, || {
                let lock = fs::File::open(user.state_dir().join("lock")).unwrap();
                lock.try_lock().is_ok()
            });
        }
        let ran = run_within(&mut plainly(&user, &names), b"", PATIENCE).expect(0);
        assert_eq!(ran.text(), "base\n", "{ran:?}");
        // A monitor that outlived its emulator has cleared up, and written why.
        let told = ran.stderr.contains("has ended without being stopped");
        assert_eq!(told, which == "pid", "{}", ran.stderr);
        assert_ne!(process(&user, "pid"), before);
    }

    // A container under way when the machine dies: nobody runs it twice.
    let mut run = plainly(&user, &["run", "--name", "long", "base", "sleep", "1000"]);
    let stderr = fs::File::create(user.home().join("words")).unwrap();
    let mut running = Background(run.stderr(stderr).spawn().unwrap());
    wait_until("the container", PATIENCE, || {
        user.run(["exec", "long", "true"]).code() == 0
    });
    kill(process(&user, "qemu_pid"), Signal::SIGKILL).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(125));
    let words = fs::read_to_string(user.home().join("words")).unwrap();
    assert!(words.contains("is not known"), "{words}");
    let all = ["ps", "-a", "--format", "{{.Names}} {{.State}}"];
    let ran = run_within(&mut plainly(&user, &all), b"", PATIENCE).expect(0);
    assert_eq!(ran.text(), "long exited\n");

    let monitor = process(&user, "pid");
    kill(monitor, Signal::SIGSTOP).unwrap();
    let ran = run_within(&mut plainly(&user, &names), b"", PATIENCE);
    kill(monitor, Signal::SIGCONT).unwrap();
    let ran = ran.expect(3);
    assert!(ran.stderr.contains("does not answer"), "{}", ran.stderr);
    run_within(&mut plainly(&user, &names), b"", PATIENCE).expect(0);
    assert_eq!(process(&user, "pid"), monitor);
}

#[test]
fn one_that_is_just_starting_is_stopped() {
    let user = User::new("x86_64");
    let start = ["--accel", "tcg", "memres", "start"];
    let mut starting = Background(user.command().args(start).spawn().unwrap());
    wait_until("the emulator", PATIENCE, || {
        user.processes().iter().any(Process::is_emulator)
    });
    // Nobody waits for it any more.
    starting.0.kill().unwrap();
    starting.0.wait().unwrap();
    let stopped = user.run(["memres", "stop"]).expect(0);
    assert!(stopped.stderr.contains("vdkr: stopped"), "{stopped:?}");
    assert!(user.processes().is_empty());
    let stopped = user.run(["memres", "stop"]).expect(0);
    assert!(stopped.stderr.contains("not running"), "{stopped:?}");
}

/// Fills the file system that the state is on, and goes on working.
const FULL: &str = r#"
mount -t tmpfs -o size=512m tmpfs "$HOME" || exit 90
cd "$HOME"
vdkr() { "$VDKR" -a x86_64 --accel tcg "$@"; }
trap 'vdkr memres stop >/dev/null 2>&1' EXIT
vdkr memres start && vdkr vimport "$LAYOUT" base || exit 91
vdkr run -d --name writer -v data:/data base sleep 1000 || exit 92
cat /dev/zero >filler 2>/dev/null
echo == write
vdkr exec writer sh -c 'cat /dev/zero | head -c 20000000 >/data/file; sync'
echo "== $?"
vdkr images 2>&1
echo "== $?"
vdkr run --rm base echo still here 2>&1
echo "== $?"
rm filler
vdkr memres restart 2>&1
echo == again
vdkr run --rm -v data:/data base sh -c 'echo written >/data/other && cat /data/other' 2>&1
echo "== $?"
"#;

#[test]
fn a_full_disk_is_told_of_by_its_name_and_nothing_hangs() {
    let home = tempfile::tempdir().unwrap();
    let mut command = as_root();
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("VDKR_") || text.starts_with("XDG_") {
            command.env_remove(name);
        }
    }
    command
        .env("HOME", home.path())
        .env("VDKR", program("vdkr"))
        .env("LAYOUT", layout("qemux86-64", "container-base-latest-oci"))
        .env("VDKR_AUTO_DAEMON", "false")
        .env("VDKR_SNAPSHOT", "false")
        .args(["sh", "-c", FULL]);
    let ran = run_within(&mut command, b"", PATIENCE * 2).expect(0);
    let text = ran.text();
    let parts = text.split_once("== again\n");
    let (told, after) = parts.unwrap_or_else(|| panic!("{ran:?}"));
    // The command that met the disk says so, and every one after it, until the machine is new.
    let file = home.path().join(".vdkr/x86_64/state.img");
    let words = format!(
        "cannot write to {}: No space left on device",
        file.display()
    );
    assert!(ran.stderr.contains(&words), "{ran:?}");
    let (_, next) = told.split_once("== write").unwrap();
    assert!(next.matches(&words).count() >= 2, "{ran:?}");
    assert!(next.contains("vdkr memres restart"), "{ran:?}");
    assert_eq!(after, "written\n== 0\n", "{ran:?}");
}
