//! Containers after their machine has been stopped or killed.

use serde_json::Value;
use vdkr_tests::process::wait_until;
use vdkr_tests::vm::{PATIENCE, User};

use crate::{state, text, user, user_of};

#[test]
fn containers_survive_their_machine() {
    survive(&user().1);
}

#[test]
fn containers_survive_their_machine_on_aarch64_too() {
    survive(&user_of("aarch64", "qemuarm64").1);
}

fn survive(user: &User) {
    let loop_forever = "trap 'exit 0' TERM; while :; do sleep 0.1; done";
    for (name, policy) in [
        ("always", "always"),
        ("unless", "unless-stopped"),
        ("no", "no"),
        ("stopped", "unless-stopped"),
    ] {
        user.run([
            "run",
            "-d",
            "--name",
            name,
            "--restart",
            policy,
            "box",
            "sh",
            "-c",
            &format!("echo {name} >>/mark; {loop_forever}"),
        ])
        .expect(0);
    }
    user.run([
        "run", "-d", "--rm", "--name", "passing", "box", "sleep", "1000",
    ])
    .expect(0);
    user.run(["stop", "stopped"]).expect(0);

    // A clean stop, and a command of its own machine in between, which starts nothing.
    user.run(["memres", "stop"]).expect(0);
    let rows = |args: &[&str]| {
        let text = text(
            user,
            &[&["ps", "--format", "{{.Names}} {{.State}}"], args].concat(),
        );
        let mut rows: Vec<_> = text.lines().map(str::to_owned).collect();
        rows.sort();
        rows
    };
    assert_eq!(
        rows(&["-a"]),
        [
            "always exited",
            "no exited",
            "stopped exited",
            "unless exited"
        ]
    );
    // Started for the container, and staying for it.
    let begun = user.run(["start", "no"]).expect(0);
    assert!(begun.stderr.contains("memres stop"), "{}", begun.stderr);
    wait_until("policies hold", PATIENCE, || {
        rows(&[]) == ["always running", "no running", "unless running"]
    });
    assert_eq!(rows(&["-a"]).len(), 4);

    // A machine that is killed.
    let qemu = qemu_of(user);
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(qemu),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    wait_until("the monitor notices", PATIENCE, || {
        user.run(["memres", "status"]).code() == 3
    });
    user.run(["memres", "start"]).expect(0);
    wait_until("policies hold again", PATIENCE, || {
        rows(&[]) == ["always running", "unless running"]
    });
    assert_eq!(state(user, "no")["ExitCode"], 255);
    // Without the restart, its files are as it left them.
    let target = user.home().join("mark");
    user.run(["cp", "always:/mark", target.to_str().unwrap()])
        .expect(0);
    assert!(
        std::fs::read_to_string(target)
            .unwrap()
            .starts_with("always\n")
    );
    user.run(["rm", "-f", "always", "unless", "no", "stopped"])
        .expect(0);
}

/// The emulator of this user's kept machine.
fn qemu_of(user: &User) -> i32 {
    let status = user.run(["memres", "status", "--json"]).expect(0).text();
    let status: Value = serde_json::from_str(&status).unwrap();
    let pid = status["monitor"]["qemu_pid"].as_i64();
    i32::try_from(pid.expect("an emulator")).unwrap()
}
