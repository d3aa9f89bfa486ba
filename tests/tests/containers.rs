//! Containers that live on, in a real VM: docker's commands for them, from outside.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
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

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[test]
fn files_go_in_and_out_and_never_astray() {
    let (_registry, user) = user();
    let user = &user;
    let home = user.home();
    let path = |name: &str| home.join(name).to_str().unwrap().to_owned();
    write(&home.join("site/index.html"), "page");
    write(&home.join("site/sub/.dot"), "dot");
    std::os::unix::fs::symlink("/etc/passwd", home.join("site/link")).unwrap();
    user.run(["create", "--name", "still", "box", "sh", "-c", "sleep 1000"])
        .expect(0);
    user.run([
        "run",
        "-d",
        "--name",
        "live",
        "box",
        "sh",
        "-c",
        "sleep 1000",
    ])
    .expect(0);

    for name in ["still", "live"] {
        // In: a directory as a new one, into one that is there, its content alone, a file.
        user.run(["cp", &path("site"), &format!("{name}:/fresh")])
            .expect(0);
        user.run(["cp", &path("site"), &format!("{name}:/tmp")])
            .expect(0);
        user.run([
            "cp",
            &format!("{}/.", path("site")),
            &format!("{name}:/root"),
        ])
        .expect(0);
        user.run([
            "cp",
            &path("site/index.html"),
            &format!("{name}:/tmp/other"),
        ])
        .expect(0);
        user.run([
            "cp",
            &path("site/index.html"),
            &format!("{name}:/no/such/dir/x"),
        ])
        .expect(5);
        user.run(["cp", &path("nothing"), &format!("{name}:/tmp")])
            .expect(5);
        user.run(["cp", &path("site"), &format!("{name}:/tmp/other")])
            .expect(2);
        // Out again.
        let out = path(&format!("out-{name}"));
        user.run(["cp", &format!("{name}:/fresh"), &out]).expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/sub/.dot")).unwrap(),
            "dot"
        );
        assert_eq!(
            std::fs::read_link(format!("{out}/link")).unwrap(),
            Path::new("/etc/passwd")
        );
        user.run(["cp", &format!("{name}:/tmp/site"), &out])
            .expect(0);
        assert!(Path::new(&format!("{out}/site/index.html")).is_file());
        user.run([
            "cp",
            &format!("{name}:/root/index.html"),
            &format!("{out}/renamed"),
        ])
        .expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/renamed")).unwrap(),
            "page"
        );
        user.run(["cp", &format!("{name}:/tmp/other"), &out])
            .expect(0);
        assert_eq!(
            std::fs::read_to_string(format!("{out}/other")).unwrap(),
            "page"
        );
        user.run(["cp", &format!("{name}:/nothing"), &out])
            .expect(5);
        // As streams.
        let tar = user
            .run(["cp", &format!("{name}:/fresh"), "-"])
            .expect(0)
            .stdout;
        assert!(
            tar.len() % 512 == 0 && tar.starts_with(b"fresh/"),
            "{} bytes",
            tar.len()
        );
        user.run_with_input(["cp", "-", &format!("{name}:/tmp/site")], &tar)
            .expect(0);
        user.run_with_input(["cp", "-", &format!("{name}:/tmp/site")], &tar[..700])
            .expect(1);
        let tar = user
            .run(["cp", &format!("{name}:/tmp/site/fresh/index.html"), "-"])
            .expect(0)
            .stdout;
        assert!(tar.starts_with(b"index.html\0"));
    }
    let owner = text(
        user,
        &["exec", "live", "stat", "-c", "%u:%g", "/fresh/index.html"],
    );
    assert_eq!(owner, "0:0\n");

    // Links of a container lead nowhere but into it, and those of the target are not followed.
    user.run([
        "exec",
        "live",
        "sh",
        "-c",
        "ln -s / /tmp/root; ln -s /etc/hostname /tmp/name",
    ])
    .expect(0);
    let out = path("astray");
    user.run(["cp", "-L", "live:/tmp/name", &out]).expect(0);
    let hostname = text(user, &["exec", "live", "cat", "/etc/hostname"]);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), hostname);
    user.run(["cp", &path("site/index.html"), "live:/tmp/root/through"])
        .expect(0);
    assert_eq!(text(user, &["exec", "live", "cat", "/through"]), "page");
    let big = vec![b'x'; 20_000_000];
    std::fs::write(home.join("big"), &big).unwrap();
    user.run(["cp", &path("big"), "live:/tmp/big"]).expect(0);
    user.run(["cp", "-q", "live:/tmp/big", &path("back")])
        .expect(0);
    assert!(std::fs::read(home.join("back")).unwrap() == big);
    user.run(["rm", "-f", "still", "live"]).expect(0);
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
