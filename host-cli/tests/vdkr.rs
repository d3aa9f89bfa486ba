//! The command `vdkr` against an agent without a machine: streams, statuses, words.

mod fake_agent;
mod user;

use std::{
    fs,
    io::{BufReader, Read as _},
    path::Path,
    process::{Child, Stdio},
    sync::{Mutex, PoisonError},
};

use nix::{
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::tcgetattr,
    },
    unistd::Pid,
};
use serde_json::Value;
use user::{User, status, stderr, stdout};
use vdkr_core::channel::message::{PullPolicy, Request};

#[test]
fn arguments_travel_exactly_as_given() {
    let user = User::with_agent();
    let odd = [
        "a b",
        "",
        "it's \"quoted\"",
        "line\nbreak",
        "$HOME `id` \\ *",
        "--rm",
        "-h",
        "--",
        "é☃",
    ];
    let output = user.run(&[&["run", "--rm", "img"], &odd[..]].concat());
    status(&output, 0);
    let run = user.last_run();
    assert_eq!(run.args, odd);
    assert_eq!(run.image, "img");
    assert!(run.rm && !run.tty && !run.stdin);
    assert_eq!(run.pull, PullPolicy::Missing);
}

#[test]
fn options_reach_the_agent() {
    let user = User::with_agent();
    let file = user.home.path().join("vars");
    fs::write(&file, "# theirs\nF=g h\nA=lost\nHOME\n").unwrap();
    let args = [
        "run",
        "--env-file",
        file.to_str().unwrap(),
        "-e",
        "A=b c",
        "-eHOME",
        "-eNOTHERE",
        "-w",
        "/tmp",
        "-u",
        "1000:100",
        "--name",
        "n",
        "--hostname=h",
        "--entrypoint",
        "",
        "--read-only",
        "--pull",
        "never",
        "-i",
        "img",
        "show",
    ];
    status(&user.run(&args), 0);
    let run = user.last_run();
    let home = format!("HOME={}", user.home.path().display());
    // One that has no value here takes the image's away.
    // Those of the options hold, wherever the file stands.
    let expected = ["F=g h", "A=lost", &home, "A=b c", &home, "NOTHERE"];
    assert_eq!(run.env, expected);
    assert_eq!(run.workdir.as_deref(), Some("/tmp"));
    assert_eq!(run.user.as_deref(), Some("1000:100"));
    assert_eq!(run.name.as_deref(), Some("n"));
    assert_eq!(run.hostname.as_deref(), Some("h"));
    assert_eq!(run.entrypoint.as_deref(), Some(&[][..]));
    assert_eq!(run.pull, PullPolicy::Never);
    assert!(run.read_only && run.stdin);
}

#[test]
fn streams_stay_apart_and_the_status_comes_back() {
    let user = User::with_agent();
    let output = user.run(&["run", "img", "both", "to out\n", "to err\n"]);
    status(&output, 3);
    assert_eq!(
        (stdout(&output), stderr(&output)),
        ("to out\n".into(), "to err\n".into())
    );
    status(&user.run(&["run", "img", "exit", "255"]), 255);
}

#[test]
fn much_output_arrives_whole() {
    let user = User::with_agent();
    let output = user.run(&["run", "img", "emit", "20000001"]);
    status(&output, 0);
    assert_eq!(output.stdout.len(), 20_000_001);
    assert!(
        output
            .stdout
            .iter()
            .enumerate()
            .all(|(i, &byte)| byte == (i % 251) as u8)
    );
}

#[test]
fn input_goes_in_only_when_asked_for() {
    let user = User::with_agent();
    let input: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    let output = user.run_with_input(&["run", "-i", "img", "cat"], &input);
    status(&output, 0);
    assert!(
        output.stdout == input,
        "{} bytes came back",
        output.stdout.len()
    );
    // Without -i the input is left for the next program.
    let output = user.run_with_input(&["run", "img", "exit", "0"], b"unseen");
    status(&output, 0);
    assert!(!user.last_run().stdin);
}

#[test]
fn a_reader_that_leaves_ends_the_container_without_an_error() {
    let user = User::with_agent();
    let mut child = user.piped(&["run", "img", "endless"]);
    let mut some = [0; 1000];
    child.stdout.take().unwrap().read_exact(&mut some).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(user.agent.cancelled.lock().unwrap().len(), 1);
}

fn send(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

/// Waits for a line of the child's output.
fn line(reader: &mut impl std::io::BufRead) -> String {
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    line
}

#[test]
fn signals_are_the_containers() {
    let user = User::with_agent();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGUSR1] {
        let mut child = user.piped(&["run", "img", "signal"]);
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        assert_eq!(line(&mut reader), "ready\n");
        send(&child, signal);
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal as i32));
    }
}

#[test]
fn a_container_that_does_not_listen_is_left_at_the_third_try() {
    let user = User::with_agent();
    let mut child = user.piped(&["run", "img", "stubborn"]);
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    assert_eq!(line(&mut reader), "ready\n");
    for _ in 0..2 {
        send(&child, Signal::SIGINT);
        assert_eq!(line(&mut reader), "no\n");
    }
    send(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(user.agent.cancelled.lock().unwrap().len(), 1);
}

#[test]
fn what_fails_before_the_container_is_125() {
    let user = User::with_agent();
    for (args, word) in [
        (&["run", "missing", "true"][..], "no such image"),
        (&["run", "img", "die"], "closed"),
        (
            &["run", "--no-such-option", "img"],
            "unknown option --no-such-option",
        ),
        (
            &["run", "--volumes-from", "x", "img"],
            "no such container: x",
        ),
        (
            &["run", "--volumes-from", "x:y", "img"],
            "CONTAINER[:ro|:rw]",
        ),
        (&["run"], "run needs the name of an image"),
        (&["create"], "create needs the name of an image"),
        (
            &["run", "--platform", "linux/arm64", "img", "true"],
            "vdkr -a aarch64 run",
        ),
        (&["run", "--platform=riscv64", "img"], "not linux/riscv64"),
        (&["run", "Foo//bar:"], "Foo//bar:"),
        (&["run", "-it", "img"], "not a TTY"),
        (&["--registry", "Foo//bar:", "run", "img"], "Foo//bar:"),
    ] {
        let output = user.run(args);
        status(&output, 125);
        assert!(
            stderr(&output).contains(word),
            "{args:?}: {}",
            stderr(&output)
        );
    }
    status(&user.run(&["run", "--help"]), 0);
}

#[test]
fn pull_tells_the_stored_name_on_stdout_and_the_rest_on_stderr() {
    let user = User::with_agent();
    let output = user.run(&["--registry", "localhost:5000/yocto", "pull", "base"]);
    status(&output, 0);
    assert_eq!(stdout(&output), "10.0.2.2:5000/yocto/base:latest\n");
    assert!(
        stderr(&output).contains("Digest: sha256:0a0a"),
        "{}",
        stderr(&output)
    );
    let pull = user.last_pull();
    assert_eq!(pull.reference, "base");
    assert_eq!(
        pull.settings.registry.as_deref(),
        Some("10.0.2.2:5000/yocto")
    );

    let quiet = user.run(&["pull", "-q", "base"]);
    assert_eq!(
        (stdout(&quiet), stderr(&quiet)),
        ("10.0.2.2:5000/yocto/base:latest\n".into(), String::new())
    );
    status(&user.run(&["pull", "missing"]), 5);
    let down = user.run(&["pull", "down"]);
    status(&down, 3);
    assert!(stderr(&down).contains("--no-registry"), "{}", stderr(&down));
    status(&user.run(&["pull", "Foo//bar:"]), 2);
    status(&user.run(&["pull", "localhost:5000/x"]), 0);
    assert_eq!(user.last_pull().reference, "10.0.2.2:5000/x");
}

#[test]
fn settings_hold_for_a_running_machine() {
    let user = User::with_agent();
    status(&user.run(&["vconfig", "registry", "file.example.com:1"]), 0);
    status(
        &user.run(&["vconfig", "mirror", "docker.io", "http://localhost:5001"]),
        0,
    );
    status(&user.run(&["pull", "x"]), 0);
    let settings = user.last_pull().settings;
    assert_eq!(settings.registry.as_deref(), Some("file.example.com:1"));
    assert_eq!(settings.mirrors[0].endpoints, ["http://10.0.2.2:5001"]);
    assert_eq!(settings.gateway, "10.0.2.2");

    let output = user
        .command(&["pull", "x"])
        .env("VDKR_REGISTRY", "env.example.com:1")
        .output();
    status(&output.unwrap(), 0);
    assert_eq!(
        user.last_pull().settings.registry.as_deref(),
        Some("env.example.com:1")
    );
    status(&user.run(&["--no-registry", "pull", "x"]), 0);
    assert_eq!(user.last_pull().settings.registry, None);
}

#[test]
fn a_password_reaches_the_agent_and_nobody_else() {
    let user = User::with_agent();
    let args = [
        "-v",
        "--registry",
        "r.example.com:1",
        "--registry-user",
        "u",
        "--registry-password-stdin",
        "pull",
        "x",
    ];
    let output = user.run_with_input(&args, b"s3cr3t\n");
    status(&output, 0);
    assert!(!stderr(&output).contains("s3cr3t") && !stdout(&output).contains("s3cr3t"));
    let credential = &user.last_pull().settings.credentials[0];
    assert_eq!(credential.host, "r.example.com:1");
    assert_eq!(credential.password.as_ref().unwrap().expose(), "s3cr3t");
    let missing = user.run(&["--registry", "r:1", "--registry-user", "u", "pull", "x"]);
    status(&missing, 2);
}

#[test]
fn lists_and_descriptions() {
    let user = User::with_agent();
    for command in [&["images"][..], &["image", "ls"], &["image", "list"]] {
        let text = stdout(&user.run(command));
        let lines: Vec<_> = text.lines().collect();
        assert!(
            lines[0].starts_with("REPOSITORY") && lines[0].ends_with("SIZE"),
            "{text}"
        );
        assert!(
            lines[1].starts_with("10.0.2.2:5000/yocto/container-base   latest"),
            "{text}"
        );
        assert!(
            lines[2].starts_with("alpine") && lines[2].ends_with("5kB"),
            "{text}"
        );
    }
    assert_eq!(
        stdout(&user.run(&["images", "-q", "alpine"])),
        "0b0b0b0b0b0b\n"
    );
    let json: Value = serde_json::from_slice(&user.run(&["images", "--json"]).stdout).unwrap();
    assert_eq!(json[1]["size"], 5000);

    let output = user.run(&["inspect", "one", "missing", "two"]);
    status(&output, 7);
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(
        (&json[0]["Id"], &json[1]["Id"]),
        (&"one".into(), &"two".into())
    );
    assert!(stderr(&output).contains("no container, image or volume \"missing\" here"));
    let none = user.run(&["image", "inspect", "missing"]);
    status(&none, 5);
    assert!(stderr(&none).contains("no such image: missing"));
    assert_eq!(stdout(&none), "[]\n");
}

#[test]
fn tags_and_removals() {
    let user = User::with_agent();
    status(&user.run(&["tag", "one", "local/name:v2"]), 0);
    assert_eq!(
        user.requests().pop(),
        Some(Request::Tag {
            source: "one".into(),
            target: "local/name:v2".into()
        })
    );
    status(&user.run(&["image", "tag", "one", "Bad:Name"]), 2);
    let output = user.run(&["rmi", "-f", "one", "missing"]);
    status(&output, 0);
    assert!(stderr(&output).contains("no such image: missing"));
    assert!(
        stdout(&output).starts_with("Untagged: docker.io/library/one:latest\nDeleted: sha256:ab")
    );
    status(&user.run(&["rmi", "one", "missing"]), 7);
    status(&user.run(&["image", "rm", "missing"]), 5);
}

#[test]
fn configuration() {
    let user = User::new();
    status(&user.run(&["vconfig", "memory", "1G"]), 0);
    assert_eq!(stdout(&user.run(&["vconfig", "memory"])), "1G\n");
    assert!(
        fs::read_to_string(user.config())
            .unwrap()
            .contains("memory = \"1G\"")
    );
    let text = stdout(&user.run(&["--accel", "tcg", "vconfig"]));
    let row = |key: &str| {
        text.lines()
            .find(|line| line.starts_with(key))
            .unwrap()
            .to_owned()
    };
    assert!(
        row("memory").contains("1G") && row("memory").contains("file"),
        "{text}"
    );
    assert!(
        row("accel").contains("option --accel") && row("machine").contains("default"),
        "{text}"
    );
    status(&user.run(&["vconfig", "memory", "--reset"]), 0);
    assert_eq!(stdout(&user.run(&["vconfig", "memory"])), "512M\n");

    status(
        &user.run(&[
            "vconfig",
            "mirror",
            "docker.io",
            "http://localhost:1,http://h:2",
        ]),
        0,
    );
    assert_eq!(
        stdout(&user.run(&["vconfig", "mirror"])),
        "docker.io http://localhost:1,http://h:2\n"
    );
    status(&user.run(&["vconfig", "mirror", "docker.io", "--reset"]), 0);
    assert_eq!(stdout(&user.run(&["vconfig", "mirror"])), "");
    for args in [
        &["vconfig", "nokey"][..],
        &["vconfig", "accel", "fast"],
        &["vconfig", "arch", "a", "b"],
    ] {
        status(&user.run(args), 2);
    }
    fs::write(user.config(), "nokey = 1").unwrap();
    let output = user.run(&["images"]);
    status(&output, 2);
    assert!(stderr(&output).contains("config.toml") && stderr(&output).contains("nokey"));
    // What is wrong can be mended by the command that the words send users to.
    fs::write(
        user.config(),
        "nokey = 1\nmemory = \"lots\"\naccel = \"tcg\"\n",
    )
    .unwrap();
    status(&user.run(&["vconfig"]), 2);
    status(&user.run(&["vconfig", "nokey", "--reset"]), 0);
    status(&user.run(&["vconfig", "memory", "lots"]), 2);
    status(&user.run(&["vconfig", "memory", "1G"]), 0);
    assert_eq!(stdout(&user.run(&["vconfig", "memory"])), "1G\n");
    assert_eq!(stdout(&user.run(&["vconfig", "accel"])), "tcg\n");
}

#[test]
fn usage() {
    let user = User::new();
    for (args, expected, word) in [
        (&[][..], 0, ""),
        (&["--help"], 0, ""),
        (&["--version"], 0, ""),
        (&["frobnicate"], 2, "unknown command"),
        (&["build"], 2, "build with BitBake"),
        (&["secret", "ls"], 2, "-v FILE:/path:ro"),
        (&["network", "create", "mine"], 2, "--add-host NAME:ADDRESS"),
        (&["image", "frobnicate"], 2, "there are: history, import"),
        (
            &["container", "statr", "x"],
            2,
            "did you mean start or stats?",
        ),
        (&["-I", "x", "memres", "strt"], 2, "did you mean start?"),
        (&["--bogus", "images"], 2, "--bogus"),
        (&["pull"], 2, "NAME"),
        (&["-I", "../x", "images"], 2, "../x"),
        (&["--stateless", "memres", "start"], 2, "-I NAME"),
    ] {
        let output = user.run(args);
        status(&output, expected);
        let text = if expected == 0 {
            stdout(&output)
        } else {
            stderr(&output)
        };
        assert!(text.contains(word) && !text.is_empty(), "{args:?}: {text}");
    }
    assert!(stdout(&user.run(&["--help"])).contains("Run a command in a new container"));
}

#[test]
fn without_image_or_emulator_the_way_out_is_told() {
    let user = User::new();
    let output = user.run(&["images"]);
    status(&output, 1);
    let empty = user.home.path().join("blobs");
    let output = user.run(&["--blob-dir", empty.to_str().unwrap(), "images"]);
    status(&output, 1);
    assert!(
        stderr(&output).contains("--blob-dir"),
        "{}",
        stderr(&output)
    );
    fs::write(user.home.path().join("kernel"), b"\x7fELF").unwrap();
    let kernel = user.home.path().join("kernel");
    let kernel = kernel.to_str().unwrap();
    let output = user.run(&["--kernel", kernel, "--initrd", kernel, "images"]);
    status(&output, 1);
    assert!(
        stderr(&output).contains("apt-get install qemu-system-x86"),
        "{}",
        stderr(&output)
    );
    // Nothing half made stays behind.
    let mut left: Vec<_> = fs::read_dir(user.state_dir())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["arch", "lock"]);
}

#[test]
fn a_kept_machine_is_seen() {
    let nobody = User::new();
    status(&nobody.run(&["memres", "status"]), 3);
    status(&nobody.run(&["memres", "stop"]), 0);
    let user = User::with_agent();
    let output = user.run(&["memres", "status"]);
    status(&output, 0);
    assert!(stdout(&output).contains("fake 1"), "{}", stdout(&output));
    let json: Value =
        serde_json::from_slice(&user.run(&["memres", "status", "--json"]).stdout).unwrap();
    assert_eq!(json["running"], true);
    let again = user.run(&["memres", "start"]);
    status(&again, 0);
    assert!(stderr(&again).contains("already running"));
    let list = stdout(&user.run(&["memres", "list"]));
    assert!(list.lines().nth(1).unwrap().contains("running"), "{list}");
    let output = user.run(&["--memory", "1G", "images"]);
    assert!(
        stderr(&output).contains("--memory has no effect"),
        "{}",
        stderr(&output)
    );
}

/// Terminals are few, and a test of one must not see another's.
static TERMINAL: Mutex<()> = Mutex::new(());

#[test]
fn a_terminal_is_passed_on_and_given_back() {
    let _one = TERMINAL.lock().unwrap_or_else(PoisonError::into_inner);
    let user = User::with_agent();
    let size = Winsize {
        ws_row: 33,
        ws_col: 101,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let OpenptyResult { master, slave } = openpty(&size, None).unwrap();
    let before = tcgetattr(&slave).unwrap();
    let stdio = || Stdio::from(slave.try_clone().unwrap());
    let mut child = user
        .command(&["run", "-it", "img", "size"])
        .stdin(stdio())
        .stdout(stdio())
        .stderr(stdio())
        .spawn()
        .unwrap();
    let mut reader = BufReader::new(fs::File::from(master));
    assert_eq!(line(&mut reader).trim_end(), "33x101");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(user.last_run().tty);
    assert_eq!(tcgetattr(&slave).unwrap(), before);
}

#[test]
fn the_state_directory_is_the_users_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let user = User::new();
    user.run(&["images"]);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&user.state_dir()), 0o700);
    assert_eq!(mode(&user.state_dir().join("lock")), 0o600);
}
