//! Containers that live on, in a real VM: docker's commands for them, from outside.

mod edges;
mod files;
mod survival;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};

use serde_json::Value;
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

/// A user whose VM runs and has the image `box`.
fn user() -> (Registry, User) {
    user_of("x86_64", "qemux86-64")
}

/// The same for an architecture, with the image of a machine of Yocto.
fn user_of(arch: &'static str, machine: &str) -> (Registry, User) {
    let registry = Registry::start();
    let image = layout(machine, "container-base-latest-oci");
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    let user = User::new(arch);
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    user.run(["memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    user.run(["--registry", &prefix, "pull", "container-base"])
        .expect(0);
    user.run(["tag", "container-base", "box"]).expect(0);
    (registry, user)
}

fn text(user: &User, args: &[&str]) -> String {
    user.run(args.iter().copied()).expect(0).text()
}

fn state(user: &User, name: &str) -> Value {
    let document: Value = serde_json::from_str(&text(user, &["inspect", name])).unwrap();
    document[0]["State"].clone()
}

#[track_caller]
fn until(user: &User, what: &str, args: &[&str], fits: impl Fn(&Ran) -> bool) {
    wait_until(what, PATIENCE, || fits(&user.run(args.iter().copied())));
}

fn start(user: &User, args: &[&str]) -> Child {
    user.command()
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_detached_container_lives_as_with_docker() {
    lives(&user().1);
}

#[test]
fn a_detached_container_lives_on_aarch64_too() {
    lives(&user_of("aarch64", "qemuarm64").1);
}

fn lives(user: &User) {
    // It runs on, and everybody can see what it says.
    let script =
        "echo out; echo err >&2; trap 'echo bye; exit 5' TERM; while :; do sleep 0.1; done";
    let id = text(
        user,
        &[
            "run", "-d", "--name", "web", "-l", "a=b", "box", "sh", "-c", script,
        ],
    );
    let id = id.trim();
    assert!(
        id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    let short = &id[..12];
    assert_eq!(text(user, &["ps", "-q"]).trim(), short);
    assert_eq!(
        text(user, &["ps", "-q", "--no-trunc", "--filter", "label=a=b"]).trim(),
        id
    );
    let listed = text(
        user,
        &["ps", "--format", "{{.Names}}|{{.Image}}|{{.State}}"],
    );
    assert_eq!(listed, "web|box|running\n");
    until(user, "output is logged", &["logs", "web"], |logs| {
        logs.text() == "out\n" && logs.stderr == "err\n"
    });
    assert_eq!(state(user, short)["Status"], "running");
    user.run(["run", "-d", "--name", "web", "box", "true"])
        .expect(125);
    user.run(["rm", "web"]).expect(1);
    user.run(["rmi", "nothing"]).expect(5);
    let gone = user.run(["rmi", "-f", "nothing"]).expect(0);
    assert!(gone.stderr.contains("nothing"), "{}", gone.stderr);

    // More processes in it.
    assert_eq!(
        text(
            user,
            &["exec", "web", "sh", "-c", "echo $$ >&2; echo in; pwd"]
        ),
        "in\n/\n"
    );
    let shown = text(
        user,
        &[
            "exec",
            "-u",
            "1000",
            "-w",
            "/tmp",
            "-e",
            "X=1 2",
            "web",
            "sh",
            "-c",
            "id -u; pwd; echo $X",
        ],
    );
    assert_eq!(shown, "1000\n/tmp\n1 2\n");
    user.run(["exec", "web", "sh", "-c", "exit 9"]).expect(9);
    user.run(["exec", "web", "nosuch"]).expect(127);
    user.run(["exec", "web", "/etc"]).expect(126);
    let input: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let back = user
        .run_with_input(["exec", "-i", "web", "cat"], &input)
        .expect(0);
    assert!(
        back.stdout == input,
        "{} bytes came back",
        back.stdout.len()
    );
    user.run([
        "exec",
        "-d",
        "web",
        "sh",
        "-c",
        "sleep 1; touch /done; sleep 1000",
    ])
    .expect(0);
    until(
        user,
        "a detached process works",
        &["exec", "web", "ls", "/done"],
        |ran| ran.code() == 0,
    );
    let top = text(user, &["top", "web"]);
    assert!(
        top.starts_with("UID") && top.contains("sleep 1000"),
        "{top}"
    );
    let used = text(
        user,
        &[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.PIDs}}",
            "web",
        ],
    );
    let pids: u32 = used.trim().strip_prefix("web ").unwrap().parse().unwrap();
    assert!((2..50).contains(&pids), "{used}");

    // What is frozen does nothing, and goes on.
    user.run(["pause", "web"]).expect(0);
    assert_eq!(state(user, "web")["Paused"], true);
    user.run(["exec", "web", "true"]).expect(1);
    user.run(["pause", "web"]).expect(1);
    user.run(["unpause", "web"]).expect(0);
    user.run(["exec", "web", "true"]).expect(0);

    // It stops in its own way, and starts with the same files.
    user.run(["rename", "web", "site"]).expect(0);
    let waiting = start(user, &["wait", "site"]);
    assert_eq!(text(user, &["stop", "site"]), "site\n");
    let waited = waiting.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "5\n");
    assert_eq!(state(user, "site")["ExitCode"], 5);
    assert_eq!(text(user, &["logs", "--tail", "1", "site"]), "bye\n");
    let times = text(user, &["logs", "-t", "site"]);
    assert!(
        times
            .lines()
            .all(|line| line.contains("Z ") && line.starts_with("20")),
        "{times}"
    );
    assert_eq!(text(user, &["logs", "--since", "0s", "site"]), "");
    assert_eq!(text(user, &["ps", "-q"]), "");
    user.run(["exec", "site", "true"]).expect(1);
    user.run(["kill", "site"]).expect(1);
    user.run(["start", "site"]).expect(0);
    user.run(["exec", "site", "ls", "/done"]).expect(0);
    user.run(["restart", "-t", "20", "site"]).expect(0);
    user.run(["kill", "-s", "KILL", "site"]).expect(0);
    user.run(["wait", "site"]).expect(0);
    assert_eq!(state(user, "site")["ExitCode"], 137);
    user.run(["rm", "site"]).expect(0);
    user.run(["inspect", "--type", "container", "site"])
        .expect(5);
    assert_eq!(text(user, &["ps", "-aq"]), "");
}

#[test]
fn statuses_restarts_and_cleaning_are_dockers() {
    let (_registry, user) = user();
    let user = &user;

    // Statuses, with and without a container left behind.
    user.run(["run", "--name", "seven", "box", "sh", "-c", "exit 7"])
        .expect(7);
    user.run(["start", "-a", "seven"]).expect(7);
    assert_eq!(text(user, &["wait", "seven"]), "7\n");
    user.run(["run", "--rm", "box", "nosuch"]).expect(127);
    user.run(["run", "-d", "--rm", "box", "nosuch"]).expect(127);
    user.run(["run", "--rm", "box", "/etc"]).expect(126);
    user.run(["run", "--rm", "-w", "relative", "box", "true"])
        .expect(125);
    assert_eq!(
        text(user, &["ps", "-a", "--format", "{{.Names}}"]),
        "seven\n"
    );
    assert_eq!(
        text(user, &["vrun", "--entrypoint", "/bin/echo", "box", "a"]),
        "a\n"
    );
    user.run(["rmi", "box"]).expect(0);
    user.run(["rmi", "container-base"]).expect(1);
    user.run(["tag", "container-base", "box"]).expect(0);
    user.run(["rm", "seven"]).expect(0);

    // A first process that passes signals on.
    let cidfile = user.home().join("cid");
    let cid = cidfile.to_str().unwrap();
    user.run([
        "run",
        "-d",
        "--init",
        "--name",
        "init",
        "--cidfile",
        cid,
        "box",
        "sleep",
        "1000",
    ])
    .expect(0);
    assert_eq!(std::fs::read_to_string(&cidfile).unwrap().len(), 64);
    user.run(["run", "-d", "--cidfile", cid, "box", "true"])
        .expect(125);
    user.run(["stop", "init"]).expect(0);
    assert_eq!(state(user, "init")["ExitCode"], 143);
    user.run(["rm", "-f", "init"]).expect(0);

    // Restarts, as often as asked.
    let counted = "echo x >>/count; exit 3";
    user.run([
        "run",
        "-d",
        "--name",
        "flap",
        "--restart",
        "on-failure:2",
        "box",
        "sh",
        "-c",
        counted,
    ])
    .expect(0);
    user.run(["wait", "flap"]).expect(0);
    let document: Value = serde_json::from_str(&text(user, &["inspect", "flap"])).unwrap();
    assert_eq!(document[0]["RestartCount"], 2);
    assert_eq!(document[0]["State"]["ExitCode"], 3);
    let target = user.home().join("count");
    user.run(["cp", "flap:/count", target.to_str().unwrap()])
        .expect(0);
    assert_eq!(std::fs::read_to_string(target).unwrap(), "x\nx\nx\n");
    user.run([
        "run",
        "-d",
        "--name",
        "ever",
        "--restart",
        "always",
        "box",
        "sh",
        "-c",
        "sleep 0.2",
    ])
    .expect(0);
    until(user, "it starts again", &["inspect", "ever"], |ran| {
        let document: Value = serde_json::from_str(&ran.text()).unwrap();
        document[0]["RestartCount"].as_u64() >= Some(2)
    });
    user.run(["stop", "ever"]).expect(0);
    assert_eq!(state(user, "ever")["Status"], "exited");

    // Names and ids mean what they mean with docker.
    let id = text(user, &["create", "--name", "made", "box", "echo", "made"]);
    assert_eq!(state(user, "made")["Status"], "created");
    user.run(["inspect", &id[..8]]).expect(0);
    assert_eq!(text(user, &["start", "-a", &id[..20]]), "made\n");
    let nameless = text(user, &["create", "box", "true"]);
    let names = text(
        user,
        &["ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}"],
    );
    let name = names
        .lines()
        .find_map(|line| line.strip_prefix(nameless.trim()))
        .unwrap();
    assert!(name.contains('_'), "{names}");
    user.run([
        "rm",
        "-f",
        "made",
        "ever",
        "flap",
        "no-such",
        nameless.trim(),
    ])
    .expect(0);
    assert_eq!(text(user, &["ps", "-aq"]), "");
}

#[test]
fn streams_of_any_kind_and_length() {
    let (_registry, user) = user();
    let user = &user;

    // Followed from the start to the end, bytes unchanged, streams apart; the log stays bounded.
    let script = "i=0; while [ $i -lt 400 ]; do head -c 1000 /dev/urandom | tee -a /all; i=$((i+1)); done; echo end >&2";
    user.run(["run", "-d", "--name", "bytes", "box", "sh", "-c", script])
        .expect(0);
    let followed = user.run(["logs", "-f", "bytes"]).expect(0);
    let copy = user.home().join("all");
    user.run(["cp", "bytes:/all", copy.to_str().unwrap()])
        .expect(0);
    assert!(
        followed.stdout == std::fs::read(copy).unwrap(),
        "{} bytes",
        followed.stdout.len()
    );
    assert_eq!(
        (followed.stdout.len(), followed.stderr.as_str()),
        (400_000, "end\n")
    );
    user.run([
        "run",
        "-d",
        "--name",
        "long",
        "box",
        "sh",
        "-c",
        "yes 0123456 | head -c 40000000; echo last",
    ])
    .expect(0);
    user.run(["wait", "long"]).expect(0);
    let kept = user.run(["logs", "long"]).expect(0).stdout;
    assert!(
        kept.len() >= 8_000_000 && kept.len() <= 17_000_000,
        "{} bytes",
        kept.len()
    );
    assert!(kept.ends_with(b"0123456\nlast\n"));
    assert_eq!(text(user, &["logs", "-n", "2", "long"]), "0123456\nlast\n");

    // Attached twice, with input that both give.
    user.run(["run", "-d", "-i", "--name", "cat", "box", "cat"])
        .expect(0);
    let mut one = start(user, &["attach", "cat"]);
    let mut two = start(user, &["attach", "cat"]);
    let mut lines = [one.stdout.take(), two.stdout.take()].map(|out| BufReader::new(out.unwrap()));
    let mut inputs = [one.stdin.take(), two.stdin.take()].map(Option::unwrap);
    // Whoever came later misses what was said before.
    let mut read = |index: usize, wanted: &str| {
        let mut line = String::new();
        while line != wanted {
            line.clear();
            assert!(
                lines[index].read_line(&mut line).unwrap() > 0,
                "no {wanted:?}"
            );
        }
    };
    let mut both_there = false;
    while !both_there {
        writeln!(inputs[0], "a").unwrap();
        read(0, "a\n");
        writeln!(inputs[1], "b").unwrap();
        read(1, "b\n");
        both_there = true;
    }
    writeln!(inputs[1], "c").unwrap();
    read(0, "c\n");
    drop(inputs);
    user.run(["stop", "-t", "0", "cat"]).expect(0);
    for mut child in [one, two] {
        let mut rest = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut rest)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(137), "{rest}");
    }
    user.run(["rm", "bytes", "long", "cat"]).expect(0);
}

/// Files that are open in the machine.
fn open_files(user: &User) -> u64 {
    let text = text(user, &["run", "--rm", "box", "cat", "/proc/sys/fs/file-nr"]);
    text.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn many_at_once_and_many_in_a_row_leave_nothing() {
    let (_registry, user) = user();
    let user = &user;
    let children: Vec<_> = (0..20)
        .map(|number| {
            let script = format!("sleep 1; echo {number}; sleep 1; exit {number}");
            (
                number,
                start(user, &["run", "--rm", "box", "sh", "-c", &script]),
            )
        })
        .collect();
    for (number, child) in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(number),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{number}\n")
        );
    }
    for _ in 0..10 {
        user.run(["run", "--rm", "box", "true"]).expect(0);
    }
    let files = open_files(user);
    let disk = || user.run(["exec", "keeper", "df", "/"]).text();
    user.run(["run", "-d", "--name", "keeper", "box", "sleep", "100000"])
        .expect(0);
    let before = disk();
    for number in 0..120 {
        user.run(["run", "--rm", "box", "sh", "-c", "echo x >/file; exit 3"])
            .expect(3);
        if number % 4 == 0 {
            user.run(["exec", "keeper", "true"]).expect(0);
        }
    }
    let files_after = open_files(user);
    assert!(
        files_after <= files + 40,
        "open files of the machine grew from {files} to {files_after}"
    );
    let used = |text: &str| {
        text.split_whitespace()
            .nth(9)
            .and_then(|word| word.parse::<u64>().ok())
    };
    let (before, after) = (used(&before).unwrap(), used(&disk()).unwrap());
    assert!(
        after <= before + 2000,
        "the disk grew from {before} to {after} KiB"
    );
    assert_eq!(
        text(user, &["ps", "-a", "--format", "{{.Names}}"]),
        "keeper\n"
    );
    user.run(["rm", "-f", "keeper"]).expect(0);
}
