//! Corners of a container's life and rights, in a real VM: links that lead into the kernel's files,
//! rights without root, endings by odd signals, and readers that do not read.

use std::process::{Child, Command, Stdio};

use vdkr_tests::process::{Ran, wait_until};
use vdkr_tests::vm::{PATIENCE, User};

use crate::user;

/// `vdkr run --rm OPTIONS box sh -c SCRIPT`.
fn sh(user: &User, options: &[&str], script: &str) -> Ran {
    user.run([&["run", "--rm"][..], options, &["box", "sh", "-c", script]].concat())
}

#[test]
fn rights_and_places() {
    let (_registry, user) = user();
    let user = &user;

    // Leaving root works without the right to do so; nothing is left then.
    let rights = "id -u; grep -E '^Cap(Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\\t\\n'";
    for (options, bounding) in [
        (&["--cap-drop", "ALL", "-u", "1000"][..], "0000000000000000"),
        (&["--cap-drop", "SETUID", "-u", "1000"], "00000000a804257b"),
        (&["-u", "1000"], "00000000a80425fb"),
    ] {
        let text = sh(user, options, rights).expect(0).text();
        let none = "0000000000000000";
        assert_eq!(
            text,
            format!("1000\nCapPrm:{none}CapEff:{none}CapBnd:{bounding}CapAmb:{none}"),
            "{options:?}"
        );
    }
    let create = ["run", "-d", "--name", "bare", "--cap-drop", "ALL", "box"];
    user.run([&create[..], &["sleep", "1000"]].concat())
        .expect(0);
    let exec = user.run(["exec", "-u", "1000", "bare", "sh", "-c", rights]);
    assert!(exec.expect(0).text().starts_with("1000\nCapPrm:0000"));
    // Later processes are bound by what the kernel says, not by what a file of the container says.
    let exec = user.run(["exec", "bare", "sh", "-c", rights]).expect(0);
    assert!(exec.text().contains("CapBnd:0000000000000000"));
    user.run(["rm", "-f", "bare"]).expect(0);

    // Standard input without `-i` is the container's own null device.
    for options in [&[][..], &["-u", "1000"]] {
        let same = "a=$(stat -Lc %d:%i /proc/self/fd/0 </proc/self/fd/0); \
                    test \"$a\" = \"$(stat -c %d:%i /dev/null)\" && stat -c %u /dev/null";
        assert_eq!(sh(user, options, same).expect(0).text(), "0\n");
    }

    // Links of the image lead to mount points, but not into the kernel's files.
    let root = user.home().join("root");
    std::fs::create_dir_all(root.join("real")).unwrap();
    for (name, target) in [
        ("link", "/real"),
        ("kernel", "/proc/sys/kernel"),
        ("firmware", "/sys/firmware"),
    ] {
        std::os::unix::fs::symlink(target, root.join(name)).unwrap();
    }
    let tar = user.home().join("root.tar");
    let packed = Command::new("tar")
        .args([
            "-C",
            root.to_str().unwrap(),
            "-cf",
            tar.to_str().unwrap(),
            ".",
        ])
        .status();
    assert!(packed.unwrap().success());
    user.run(["import", tar.to_str().unwrap(), "linked"])
        .expect(0);
    for options in [
        &["-v", "anything:/kernel"][..],
        &["--tmpfs", "/kernel"],
        &["--mount", "type=tmpfs,target=/kernel"],
        &["-v", "/firmware"],
    ] {
        let ran = user.run([&["run", "--rm"][..], options, &["linked", "true"]].concat());
        assert!(ran.stderr.contains("/proc or /sys"), "{}", ran.stderr);
        assert_eq!(ran.code(), 125);
    }
    // Mounted; there is no program in the image.
    for options in [&["--tmpfs", "/link"][..], &["-v", "/link"]] {
        let ran = user.run([&["run", "--rm"][..], options, &["linked", "true"]].concat());
        assert_eq!(ran.code(), 127, "{}", ran.stderr);
    }
    let text = sh(
        user,
        &["--read-only", "--tmpfs", "/var/run"],
        "touch /var/run/x",
    );
    text.expect(0);

    // A name without a value here takes the image's away.
    let text = user.run(["run", "--rm", "-e", "PATH", "box", "sh", "-c", "env"]);
    text.expect(0);
    let mut command = user.command();
    command.env_remove("NOBODY_SET_THIS");
    command.args([
        "run",
        "--rm",
        "-e",
        "NOBODY_SET_THIS",
        "box",
        "sh",
        "-c",
        "env",
    ]);
    let output = command.output().unwrap();
    assert!(output.status.success());
    assert!(!String::from_utf8_lossy(&output.stdout).contains("NOBODY_SET_THIS"));
}

#[test]
fn ends_by_signals_without_a_name_and_readers_that_do_not_read() {
    let (_registry, user) = user();
    let user = &user;

    // The first process passes every signal on, and tells of every end.
    let state = |name: &str| {
        let format = "{{.State.Status}} {{.State.ExitCode}}";
        user.run(["inspect", "--format", format, name])
            .expect(0)
            .text()
    };
    user.run([
        "run", "-d", "--init", "--name", "odd", "box", "sleep", "1000",
    ])
    .expect(0);
    user.run(["kill", "-s", "37", "odd"]).expect(0);
    wait_until("the signal ends it", PATIENCE, || {
        state("odd") == "exited 165\n"
    });
    user.run(["rm", "odd"]).expect(0);
    let ran = user.run(["run", "--rm", "--init", "box", "sh", "-c", "kill -9 $$"]);
    assert_eq!(ran.code(), 137);

    // A reader that has stopped reading keeps nobody from removing the container.
    let mut reader: Child = user
        .command()
        .args(["run", "--name", "loud", "box", "yes"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait_until("it runs", PATIENCE, || {
        let ran = user.run(["inspect", "--format", "{{.State.Status}}", "loud"]);
        ran.code() == 0 && ran.text() == "running\n"
    });
    user.run(["stop", "-t", "0", "loud"]).expect(0);
    user.run(["start", "loud"]).expect(0);
    user.run(["rm", "-f", "loud"]).expect(0);
    drop(reader.stdout.take());
    reader.wait().unwrap();

    // `create --rm` leaves something to start.
    let id = user
        .run(["create", "--rm", "box", "echo", "here"])
        .expect(0);
    let id = id.text();
    let ran = user.run(["start", "-a", id.trim()]).expect(0);
    assert_eq!(ran.text(), "here\n");

    // What cannot be executed is told without a host that waits for it, too.
    let args = ["run", "-d", "--name", "talks", "box", "sh", "-c"];
    user.run(args.into_iter().chain(["echo said; sleep 1000"]))
        .expect(0);
    let ran = user.run(["exec", "-d", "talks", "nowhere"]).expect(127);
    assert!(ran.stderr.contains("nowhere"), "{}", ran.stderr);
    user.run(["exec", "-d", "talks", "true"]).expect(0);

    // A log is followed no longer than its last time.
    let ran = user.run(["logs", "-f", "--until", "0s", "talks"]).expect(0);
    assert_eq!(ran.text(), "said\n");
    user.run(["rm", "-f", "talks"]).expect(0);
}
