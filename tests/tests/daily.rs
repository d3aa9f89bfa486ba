//! What people do all day without a thought, in a real VM: two terminals at once, files of a
//! container that has ended, and the next command right after a kill or an interruption.

use std::{
    fs,
    io::Read as _,
    process::{Command, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Background, wait_until};
use vdkr_tests::tar::Entry;
use vdkr_tests::vm::{PATIENCE, User};

/// `vdkr` as somebody uses it who has set nothing: the first command starts the machine of all.
fn plainly(user: &User, args: &[&str]) -> Command {
    let mut command = user.command();
    command.env_remove("VDKR_AUTO_DAEMON").args(args);
    command
}

fn imported(user: &User) {
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    let image = layout("qemux86-64", "container-base-latest-oci");
    let import = plainly(user, &["vimport", image.to_str().unwrap(), "base"]).output();
    let import = import.unwrap();
    let told = String::from_utf8_lossy(&import.stderr).into_owned();
    assert!(import.status.success(), "{told}");
    assert!(told.contains("vdkr memres stop"), "{told}");
}

#[test]
fn several_commands_share_the_machine_that_the_first_has_started() {
    let user = User::new("x86_64");
    imported(&user);
    user.run(["memres", "status"]).expect(0);

    // One terminal is taken by a container; another one looks into it.
    let run = [
        "run",
        "--rm",
        "--name",
        "fg",
        "base",
        "sh",
        "-c",
        "echo up; exec sleep 1000",
    ];
    let child = plainly(&user, &run).stdout(Stdio::null()).spawn().unwrap();
    let mut foreground = Background(child);
    wait_until("the container", PATIENCE, || {
        user.run(["exec", "fg", "true"]).code() == 0
    });
    let names = user.run(["ps", "--format", "{{.Names}}"]).expect(0);
    assert_eq!(names.text(), "fg\n");
    user.run(["kill", "fg"]).expect(0);
    assert_eq!(foreground.0.wait().unwrap().code(), Some(137));

    // What is killed is gone, so that the next command finds it so.
    for round in 0..3 {
        user.run(["run", "-d", "--name", "killed", "base", "sleep", "1000"])
            .expect(0);
        user.run(["kill", "killed"]).expect(0);
        let gone = user.run(["rm", "killed"]);
        assert_eq!(gone.code(), 0, "round {round}: {gone:?}");
    }

    // What cannot be executed is told apart from what has failed.
    user.run(["run", "-d", "--name", "ex", "base", "sleep", "1000"])
        .expect(0);
    user.run(["exec", "ex", "false"]).expect(1);
    user.run(["exec", "-w", "/nosuch", "ex", "true"])
        .expect(126);
    user.run(["exec", "-u", "nobodyx", "ex", "true"])
        .expect(126);
    user.run(["exec", "ex", "nosuch"]).expect(127);
    user.run(["rm", "-f", "ex"]).expect(0);

    files_of_a_container_that_has_ended(&user);
    interrupted(&user);
    signalled(&user);
}

/// Signals to a `run` without a terminal are the container's, which says what comes of them.
fn signalled(user: &User) {
    let script = "trap 'echo interrupted; exit 5' INT; trap 'echo asked to end; exit 6' TERM; \
                  echo up; while :; do sleep 0.05; done";
    for (options, command, signal, words, status) in [
        (
            &[][..],
            &["sh", "-c", script][..],
            Signal::SIGINT,
            "up\ninterrupted\n",
            5,
        ),
        (
            &["-i"],
            &["sh", "-c", script],
            Signal::SIGTERM,
            "up\nasked to end\n",
            6,
        ),
        // What has no word of its own about a signal ends as it does anywhere below an init.
        (
            &["--init"],
            &["sh", "-c", "echo up; exec sleep 1000"],
            Signal::SIGINT,
            "up\n",
            130,
        ),
    ] {
        let run = [
            &["run", "--rm", "--name", "told"],
            options,
            &["base"],
            command,
        ]
        .concat();
        let mut child = plainly(user, &run)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        let mut stdout = child.stdout.take().unwrap();
        stdout.read_exact(&mut up).unwrap();
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let mut rest = String::new();
        stdout.read_to_string(&mut rest).unwrap();
        assert_eq!(format!("up\n{rest}"), words, "{signal} with {options:?}");
        assert_eq!(
            child.wait().unwrap().code(),
            Some(status),
            "{signal} with {options:?}"
        );
        let left = user.run(["ps", "-aq"]).expect(0).text();
        assert_eq!(left, "", "{signal} with {options:?}");
    }
}

fn files_of_a_container_that_has_ended(user: &User) {
    let share = user.home().join("share");
    fs::create_dir_all(&share).unwrap();
    let bind = format!("{}:/host", share.display());
    let run = [
        "run",
        "--name",
        "db",
        "-v",
        "vol:/data",
        "-v",
        &bind,
        "base",
    ];
    user.run(
        [
            &run[..],
            &["sh", "-c", "echo kept >/data/file; echo own >/own"],
        ]
        .concat(),
    )
    .expect(0);
    let out = user.home().join("out");
    let out = out.to_str().unwrap();
    user.run(["cp", "db:/data/file", out]).expect(0);
    assert_eq!(fs::read_to_string(out).unwrap(), "kept\n");
    let tree = user.home().join("tree");
    user.run(["cp", "db:/data", tree.to_str().unwrap()])
        .expect(0);
    assert_eq!(fs::read_to_string(tree.join("file")).unwrap(), "kept\n");
    fs::write(out, "new\n").unwrap();
    user.run(["cp", out, "db:/data/put"]).expect(0);
    let seen = user
        .run(["run", "--rm", "-v", "vol:/x", "base", "cat", "/x/put"])
        .expect(0);
    assert_eq!(seen.text(), "new\n");
    // A directory of the host is not there now, and nothing pretends to be it.
    for args in [["cp", "db:/host", out], ["cp", out, "db:/host/x"]] {
        let refused = user.run(args).expect(1);
        let told = &refused.stderr;
        assert!(told.contains("/host is a directory of the host"), "{told}");
    }
    user.run(["rm", "db"]).expect(0);
}

/// An import that takes long ends at Ctrl-C, and leaves nothing half-done: unpacked in the machine, and
/// on this computer.
fn interrupted(user: &User) {
    // The zeros take no room here, and a while there.
    let (size, root) = (512 << 20, user.home().join("big.tar"));
    let header = Entry::new(b'0', "big").size(size).encode();
    fs::write(&root, &header[..512]).unwrap();
    let file = fs::File::options().write(true).open(&root).unwrap();
    file.set_len(512 + size + 1024).unwrap();
    let unfinished = user.home().join(".vdkr/layers/new");
    for place in ["guest", "host"] {
        let mut import = user.command();
        import
            .args(["--pull-in", place, "import", root.to_str().unwrap(), "big"])
            .stderr(Stdio::null());
        let mut child = import.spawn().unwrap();
        wait_until("the import to have begun", PATIENCE, || {
            if place == "host" {
                return fs::read_dir(&unfinished).is_ok_and(|mut files| files.next().is_some());
            }
            let status = user.run(["memres", "status", "--json"]).expect(0).text();
            let status: serde_json::Value = serde_json::from_str(&status).unwrap();
            status["busy"] == 1
        });
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
        wait_until("the end of the import", Duration::from_mins(1), || {
            child.try_wait().unwrap().is_some()
        });
        assert_ne!(child.wait().unwrap().code(), Some(0));
        let images = user.run(["images", "-q", "big"]).expect(0);
        assert_eq!(images.text(), "", "{place}");
    }
}
