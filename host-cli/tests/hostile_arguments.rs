//! Every command, with arguments that are missing, malformed, huge or hostile: a status of the
//! table, words a person can use, no panic, and nothing half-done.
//!
//! The commands come from the parser itself, so a new one is covered without being named here.

mod rig;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command};
use rig::{User, status, stderr, stdout};
use vdkr_host::registry_cli::help;

/// No command may think longer than this about nonsense.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest message, in characters; whoever gives a huge name does not get it back.
const MAX_WORDS: usize = 6000;

/// One more than 64 bits hold.
const NUMBER: &str = "18446744073709551616";

fn hostile() -> Vec<OsString> {
    let huge = "x".repeat(100_000);
    let mut values: Vec<OsString> = [
        "",
        " ",
        "-",
        "../../../etc/passwd",
        "a\u{1b}]0;title\u{7}b",
        "é☃",
        "a b",
        "$(id)`id`;|&",
        "%00%2e%2e/",
        "localhost:1/sha256:zz",
        "localhost:99999/x",
        "name:tag:tag@sha256:1",
        "Ünicode/UPPER",
        "[::1",
        "-1",
        NUMBER,
    ]
    .map(OsString::from)
    .into();
    values.push(huge.into());
    values.push(OsStr::from_bytes(b"\xff\xfe").to_owned());
    values
}

/// The commands that do something, each with the words that lead to it.
fn leaves(command: &Command, words: &[String], found: &mut Vec<(Vec<String>, Command)>) {
    for below in command.get_subcommands() {
        if below.get_name() == "help" {
            continue;
        }
        let mut words = words.to_vec();
        words.push(below.get_name().to_owned());
        if below.has_subcommands() {
            leaves(below, &words, found);
        } else {
            found.push((words, below.clone()));
        }
    }
}

fn all_leaves() -> Vec<(Vec<String>, Command)> {
    let mut found = Vec::new();
    leaves(&help::command(), &[], &mut found);
    assert!(
        found.len() >= 15,
        "the parser knows more commands than {}",
        found.len()
    );
    found
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

/// A directory deep enough that `..` in a value stays within the test's own.
fn run(user: &User, words: &[OsString]) -> Output {
    let deep = user.path("a/b/c/d/e/f");
    std::fs::create_dir_all(&deep).unwrap();
    // Files take any amount; what comes through a pipe would have to be read meanwhile.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = user
        .command(words)
        .current_dir(&deep)
        .stdin(Stdio::null())
        .stdout(out.try_clone().unwrap())
        .stderr(err.try_clone().unwrap())
        // Apart from a terminal's signals.
        .process_group(0)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{} still runs after {PATIENCE:?}", shown(words));
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let read = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        bytes
    };
    Output {
        status,
        stdout: read(&mut out),
        stderr: read(&mut err),
    }
}

fn shown(words: &[OsString]) -> String {
    let words: Vec<_> = words
        .iter()
        .map(|word| word.to_string_lossy().chars().take(60).collect::<String>())
        .collect();
    format!("{words:?}")
}

#[track_caller]
fn check(words: &[OsString], output: &Output) {
    let (line, said) = (shown(words), stderr(output));
    let code = output.status.code();
    assert!(
        code.is_some_and(|code| (0..=7).contains(&code)),
        "{line}: {:?}: {said:.2000}",
        output.status
    );
    assert!(!said.contains("panicked"), "{line}: {said:.2000}");
    if code != Some(0) && code != Some(3) {
        assert!(
            !said.trim().is_empty() || !output.stdout.is_empty(),
            "{line}: no word"
        );
    }
    let count = said.chars().count();
    assert!(
        count < MAX_WORDS,
        "{line}: {count} characters: {said:.200}…"
    );
    let control = said
        .chars()
        .find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(control, None, "{line}: {said:.2000?}");
}

/// Files and their sizes below a directory, but for logs and locks.
fn tree(dir: &Path) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let (path, meta) = (entry.path(), entry.metadata().unwrap());
            if meta.is_dir() {
                left.push(path);
            } else {
                found.insert(path.display().to_string(), meta.len());
            }
        }
    }
    found
}

/// Commands that would go on serving if the nonsense were acceptable.
fn serves(words: &[String]) -> bool {
    matches!(words[0].as_str(), "serve" | "start")
}

#[test]
fn nonsense_is_refused_and_nothing_is_half_done() {
    let mut user = User::with_registry();
    // Nobody here listens there, so that what serves ends at once.
    let layout = user.image("qemux86-64", "app");
    status(
        &user.run(["push", layout.to_str().unwrap(), "--tag", "v1"]),
        0,
    );
    user.set("DEPLOY_DIR_IMAGES", user.path("nothing").to_str().unwrap());
    let content = user.storage().join("docker");
    let before = tree(&content);

    let hostile = hostile();
    let mut lines: Vec<Vec<OsString>> = Vec::new();
    for (number, (words, command)) in all_leaves().into_iter().enumerate() {
        if serves(&words) {
            continue;
        }
        let start: Vec<OsString> = words.iter().map(OsString::from).collect();
        lines.push(start.clone());
        let positionals = command.get_positionals().count();
        // A number is a legal name, which would be looked for at Docker Hub.
        for value in hostile.iter().filter(|value| **value != NUMBER) {
            // Behind `--` even a dash is a value.
            let mut line = start.clone();
            line.push("--".into());
            line.extend(std::iter::repeat_n(value.clone(), positionals.max(1)));
            lines.push(line);
        }
        let options = command.get_arguments().filter(|arg| takes_value(arg));
        for (at, option) in options.filter(|arg| !arg.is_positional()).enumerate() {
            let Some(long) = option.get_long() else {
                continue;
            };
            // Three of them for each option, all of them over the whole test.
            for step in 0..3 {
                let value = &hostile[(number + at * 3 + step * 5) % hostile.len()];
                let mut given = OsString::from(format!("--{long}="));
                given.push(value);
                let mut line = start.clone();
                line.push(given);
                lines.push(line);
            }
            let mut line = start.clone();
            line.push(format!("--{long}").into());
            lines.push(line);
        }
    }
    assert!(lines.len() > 300, "only {} lines", lines.len());
    let queue = Mutex::new(lines.into_iter());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(line) = queue.lock().unwrap().next() else {
                        break;
                    };
                    check(&line, &run(&user, &line));
                }
            });
        }
    });
    // `stop` was among them.
    let mut user = user;
    user.start();
    let tags = user.run(["tags", "app"]);
    status(&tags, 0);
    assert_eq!(stdout(&tags), "v1\n");
    let after = tree(&content);
    let gone: Vec<_> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    assert!(gone.is_empty(), "{gone:?}");
}

#[test]
fn nonsense_in_the_environment_and_the_options_of_all_commands_is_refused() {
    let user = User::new();
    let variables = [
        "CONTAINER_REGISTRY_URL",
        "CONTAINER_REGISTRY_NAMESPACE",
        "CONTAINER_REGISTRY_INSECURE",
        "CONTAINER_REGISTRY_SECURE",
        "CONTAINER_REGISTRY_LISTEN",
        "CONTAINER_REGISTRY_AUTH_MODE",
        "CONTAINER_REGISTRY_AUTHFILE",
        "CONTAINER_REGISTRY_TAG_STRATEGY",
    ];
    let values = hostile();
    let values = values.iter().filter(|value| value.len() < 1000);
    for (number, value) in values.enumerate() {
        let variable = variables[number % variables.len()];
        for line in [
            &["status"][..],
            &["catalog"],
            &["start", "--listen=256.0.0.1"],
        ] {
            let line: Vec<OsString> = line.iter().map(OsString::from).collect();
            let mut command = user.command(&line);
            command.env(variable, value);
            check(&line, &command.output().unwrap());
        }
    }
    for option in ["--url", "--namespace", "--insecure", "--progress"] {
        for value in hostile().iter().skip(2) {
            let line = [OsString::from(option), value.clone(), "status".into()];
            check(&line, &run(&user, &line));
        }
    }
    // `start` and `serve` refuse before they make anything.
    for value in hostile() {
        for verb in ["start", "serve"] {
            let mut given = OsString::from("--listen=");
            given.push(&value);
            let line = [OsString::from("--url=not a host"), verb.into(), given];
            let output = run(&user, &line);
            check(&line, &output);
            status(&output, 2);
        }
    }
    assert!(
        !user.storage().exists(),
        "a refused command made the storage"
    );
}

#[test]
fn every_command_says_what_it_is_for_and_gives_an_example() {
    for (words, command) in all_leaves() {
        let name = words.join(" ");
        assert!(command.get_about().is_some(), "{name} has no description");
        let after = command
            .get_after_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        assert!(
            after.contains("Example"),
            "{name}: add an example with after_help"
        );
        assert!(
            after.contains(&format!("container-registry {name}")),
            "{name}: its example does not call it"
        );
    }
}
