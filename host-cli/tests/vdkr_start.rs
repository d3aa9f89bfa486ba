//! The start of a machine, with a shell script in the emulator's place.

mod fake_agent;
mod user;

use std::{
    fs,
    process::{Command, Stdio},
    thread,
};

use user::{User, status, stderr};

/// A user whose emulator is this shell script.
fn with_emulator(script: &str) -> (User, String) {
    use std::os::unix::fs::PermissionsExt as _;
    let user = User::new();
    let bin = user.home.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let program = bin.join("qemu-system-x86_64");
    fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(bin.join("kernel"), b"\x7fELF").unwrap();
    let kernel = bin.join("kernel").to_str().unwrap().to_owned();
    (user, kernel)
}

impl User {
    /// A command that starts the script as its machine.
    fn starting(&self, kernel: &str, args: &[&str]) -> Command {
        let options = [
            "--stateless",
            "--accel",
            "tcg",
            "--kernel",
            kernel,
            "--initrd",
            kernel,
        ];
        let mut command = self.command(&[&options[..], args].concat());
        command.env(
            "PATH",
            format!("{}:/usr/bin:/bin", self.home.path().join("bin").display()),
        );
        command
    }
}

#[test]
fn a_boot_that_fails_shows_what_was_said_last() {
    let script = "echo 'qemu: bad luck' >&2; exit 9";
    let (user, kernel) = with_emulator(script);
    let output = user.starting(&kernel, &["images"]).output().unwrap();
    status(&output, 3);
    let words = stderr(&output);
    assert!(
        words.contains("ended with status 9: qemu: bad luck"),
        "{words}"
    );
    let output = user.starting(&kernel, &["run", "img"]).output().unwrap();
    status(&output, 125);

    // The console is a socket whose number is on the command line; bash takes numbers beyond 9.
    let script = "fd=$(echo \"$*\" | sed 's/.*id=console,fd=\\([0-9]*\\).*/\\1/')\n\
                  bash -c \"echo 'Kernel panic' >&$fd\"";
    let (user, kernel) = with_emulator(script);
    let output = user.starting(&kernel, &["images"]).output().unwrap();
    status(&output, 3);
    assert!(
        stderr(&output).contains("Kernel panic"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_boot_that_leads_nowhere_is_given_up() {
    let (user, kernel) = with_emulator("exec sleep 1000");
    let output = user
        .starting(&kernel, &["images"])
        .env("VDKR_BOOT_TIMEOUT", "1")
        .output()
        .unwrap();
    status(&output, 3);
    assert!(
        stderr(&output).contains("no sign of life"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn the_emulator_does_not_outlive_a_killed_command() {
    let (user, kernel) =
        with_emulator("echo $$ >$HOME/pid.new; mv $HOME/pid.new $HOME/pid; exec sleep 1000");
    let mut child = user
        .starting(&kernel, &["images"])
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = loop {
        if let Ok(text) = fs::read_to_string(user.home.path().join("pid")) {
            break text.trim().parse::<i32>().unwrap();
        }
        thread::sleep(std::time::Duration::from_millis(10));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    // Gone, or a zombie that nobody has waited for yet.
    let alive = || {
        let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        state
            .rsplit_once(") ")
            .is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
    };
    while alive() {
        thread::sleep(std::time::Duration::from_millis(10));
    }
}

#[test]
fn no_secret_and_no_command_is_on_the_emulators_command_line() {
    let script = "echo \"$@\" >$HOME/line; env >$HOME/env; exit 1";
    let (user, kernel) = with_emulator(script);
    let args = [
        "--registry",
        "r.example.com:1",
        "--registry-user",
        "someone",
        "run",
        "-e",
        "TOKEN=t0k3n",
        "img",
        "secret-argument",
    ];
    let mut command = user.starting(&kernel, &args);
    status(
        &command
            .env("VDKR_REGISTRY_PASSWORD", "s3cr3t")
            .output()
            .unwrap(),
        125,
    );
    let line = fs::read_to_string(user.home.path().join("line")).unwrap();
    assert!(line.contains("virtserialport"), "{line}");
    let env = fs::read_to_string(user.home.path().join("env")).unwrap();
    for secret in [
        "s3cr3t",
        "someone",
        "t0k3n",
        "secret-argument",
        "r.example.com",
    ] {
        assert!(
            !line.contains(secret) && !env.contains(secret),
            "{secret} is in {line} {env}"
        );
    }
}

/// A machine that is kept has a parent that lives as long as it does.
#[test]
fn no_secret_stays_with_a_machine_that_is_kept() {
    let script = "tr '\\0' '\\n' </proc/$PPID/environ >$HOME/env; \
                  tr '\\0' ' ' </proc/$PPID/cmdline >$HOME/line; env >>$HOME/env; exit 1";
    let (user, kernel) = with_emulator(script);
    let options = ["--accel", "tcg", "--kernel", &kernel, "--initrd", &kernel];
    let mut command = user.command(&[&options[..], &["memres", "start"]].concat());
    let bin = user.home.path().join("bin");
    let output = command
        .env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()),
        )
        .env("VDKR_REGISTRY_USER", "someone")
        .env("VDKR_REGISTRY_PASSWORD", "s3cr3t")
        .output()
        .unwrap();
    status(&output, 3);
    let read = |name: &str| fs::read_to_string(user.home.path().join(name)).unwrap();
    let (line, env) = (read("line"), read("env"));
    assert!(line.contains("memres monitor"), "{line}");
    assert!(env.contains("HOME="), "{env}");
    assert!(
        !env.contains("s3cr3t") && !line.contains("s3cr3t"),
        "{line} {env}"
    );
}

#[test]
fn the_machine_is_the_one_that_is_asked_for() {
    let (user, kernel) = with_emulator("echo \"$@\" >$HOME/line; exit 1");
    let line = |options: &[&str], variable: Option<&str>| {
        let mut command = user.starting(&kernel, &[options, &["images"]].concat());
        command.envs(variable.map(|value| ("VDKR_MACHINE", value)));
        status(&command.output().unwrap(), 3);
        fs::read_to_string(user.home.path().join("line")).unwrap()
    };
    let board = |line: &str, name: &str| line.contains(&format!("-M {name}"));
    assert!(board(&line(&["--machine", "microvm"], None), "microvm"));
    assert!(board(&line(&["--machine", "q35"], None), "q35"));
    assert!(board(&line(&[], Some("microvm")), "microvm"));
    assert!(board(&line(&["--machine=q35"], Some("microvm")), "q35"));
    status(&user.run(&["vconfig", "machine", "microvm"]), 0);
    assert!(board(&line(&[], None), "microvm"));
    assert!(board(&line(&[], Some("q35")), "q35"));
}

#[test]
fn a_machine_that_was_killed_is_told_of_and_replaced() {
    let (user, kernel) = with_emulator("echo started >>$HOME/started; exit 9");
    fs::create_dir_all(user.state_dir()).unwrap();
    // What a monitor leaves behind that was killed, and its process with it.
    drop(std::os::unix::net::UnixListener::bind(user.state_dir().join("vdkr.sock")).unwrap());
    let left = serde_json::json!({
        "pid": 4_000_000, "qemu_pid": null, "software": "vdkr", "agent": "agent", "arch": "x86_64",
        "accel": "tcg", "machine": "microvm", "memory_mib": 512, "kernel": "/k", "initrd": "/i",
        "started_unix_ms": 0, "idle_timeout": 0,
    });
    fs::write(user.state_dir().join("monitor.json"), left.to_string()).unwrap();
    let mut path = std::ffi::OsString::from(user.home.path().join("bin"));
    path.push(":/usr/sbin:/usr/bin:/sbin:/bin");
    let try_once = |auto: &str, args: &[&str]| {
        let options = ["--accel", "tcg", "--kernel", &kernel, "--initrd", &kernel];
        let mut command = user.command(&[&options[..], args].concat());
        command.env("PATH", &path).env("VDKR_AUTO_DAEMON", auto);
        let output = command.output().unwrap();
        status(&output, 3);
        let words = stderr(&output);
        assert!(words.contains("(process 4000000) has ended"), "{words}");
    };
    try_once("true", &["memres", "status"]);
    assert!(!user.home.path().join("started").exists());
    for (auto, args) in [
        ("true", &["images"][..]),
        ("true", &["memres", "start"]),
        ("false", &["images"]),
    ] {
        try_once(auto, args);
        let started = user.home.path().join("started");
        assert!(fs::read_to_string(&started).unwrap().contains("started"));
        fs::remove_file(&started).unwrap();
    }
    // Who had it to itself has cleared up.
    assert!(!user.state_dir().join("monitor.json").exists());
}
