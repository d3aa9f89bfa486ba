//! What the program says: each command's help and the main error messages, word for word.
//!
//! After a change that is meant: `UPDATE_SNAPSHOTS=1 cargo test -p vdkr-host --test messages`, then
//! read the difference before it is committed.

mod rig;
mod session;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;

use rig::snapshot::{compare, directory, report, updating};
use rig::{User, stderr, stdout};
use vdkr_host::registry_cli::help;

/// A registry's day: one line for what is typed, what it says, and its status. Every command has to
/// succeed once and to fail once.
#[test]
fn every_command_in_success_and_failure() {
    let (mut day, gate) = session::prepared();
    for (code, words) in session::LINES {
        day.says(*code, words, &gate);
    }
    let mut wrong: Vec<_> = compare("session.txt", &day.text).into_iter().collect();
    let mut all = Vec::new();
    commands(&help::command(), &[], &mut all);
    for words in &all {
        let is_parent = all
            .iter()
            .any(|other| other.len() > words.len() && other.starts_with(words));
        if is_parent {
            continue;
        }
        for (what, good) in [("succeeds", true), ("fails", false)] {
            if !day.seen.contains(&(words.join(" "), good)) {
                wrong.push(format!("no line in which {} {what}", words.join(" ")));
            }
        }
    }
    report(&wrong);
}

fn commands(command: &clap::Command, words: &[String], found: &mut Vec<Vec<String>>) {
    found.push(words.to_vec());
    for below in command
        .get_subcommands()
        .filter(|below| below.get_name() != "help")
    {
        let mut words = words.to_vec();
        words.push(below.get_name().to_owned());
        commands(below, &words, found);
    }
}

#[test]
fn help_of_every_command() {
    let user = User::new();
    let mut all = Vec::new();
    commands(&help::command(), &[], &mut all);
    let mut wrong = Vec::new();
    let mut names = BTreeSet::new();
    for words in &all {
        let mut line = words.clone();
        line.push("--help".into());
        let output = user.run(&line);
        assert_eq!(
            output.status.code(),
            Some(0),
            "{words:?}: {}",
            stderr(&output)
        );
        let mut text = stdout(&output);
        if words.is_empty() {
            // What follows is this user's configuration.
            let end = text.find("\nConfiguration (").expect("the configuration");
            text.truncate(end);
        }
        let name = if words.is_empty() {
            "container-registry".to_owned()
        } else {
            words.join("-")
        };
        names.insert(format!("{name}.txt"));
        wrong.extend(compare(&format!("help/{name}.txt"), &text));
    }
    for entry in fs::read_dir(directory().join("help"))
        .unwrap()
        .map(Result::unwrap)
    {
        let name = entry.file_name().into_string().unwrap();
        if !names.contains(&name) {
            if updating() {
                fs::remove_file(entry.path()).unwrap();
            } else {
                wrong.push(format!("help/{name} is of no command"));
            }
        }
    }
    report(&wrong);
}

/// One line for each case: the words, the status, and what was said.
#[test]
fn error_messages() {
    let mut user = User::with_registry();
    user.image("qemux86-64", "app");
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    let gate = rig::gate::Gate::open("nothing fits", None);
    user.write("torn.json", "{ torn");
    user.write("empty", "");
    let cases: &[&[&str]] = &[
        &["pusch"],
        &["push", "--tag", "v1"],
        &["push", "unknown"],
        &["push", "app", "--tag", "not/legal"],
        &["push", "app", "--strategy", "latset"],
        &["push", "./nowhere"],
        &["tags"],
        &["tags", "unknown"],
        &["tags", "Not/Legal:"],
        &["tags", "docker.io/library/alpine"],
        &["delete", "app"],
        &["delete", "app:unknown"],
        &["import", "localhost:PORT/yocto/unknown:v1"],
        &["push", "app", "--auth-mode", "magic"],
        &["push", "app", "--auth-mode", "env"],
        &["push", "app", "--auth-mode", "authfile"],
        &["push", "app", "--authfile", "missing.json"],
        &["push", "app", "--authfile", "torn.json"],
        &["push", "app", "--credsfile", "empty"],
        &["push", "app", "--use-home-auth"],
        &["push", "app", "--creds", "nocolon"],
        &["--url", "GATE", "list"],
        &["--url", "GATE", "doctor", "--nonsense"],
        &["--url", "localhost:1", "list"],
        &["--url", "not a host", "list"],
        &["--url", "localhost:5000/path", "list"],
        &["--namespace", "Not/Legal", "list"],
        &["login"],
        &["login", "ghcr.io/team", "-u", "me", "-p", "x"],
        &["login", "GATE", "-u", "me", "-p", "x"],
        &["start", "--listen", "everywhere"],
        &["completions", "tcsh"],
    ];
    let (host, gate) = (user.host(), gate.host());
    let home = user.home.path().display().to_string();
    let mut text = String::new();
    for case in cases {
        let line: Vec<_> = case
            .iter()
            .map(|word| word.replace("localhost:PORT", &host).replace("GATE", &gate))
            .collect();
        let output = user.run(&line);
        let said = stderr(&output)
            .replace(&host, "localhost:PORT")
            .replace(&gate, "GATE")
            .replace(&home, "HOME");
        writeln!(
            text,
            "$ container-registry {}\n{said}(status {})\n",
            case.join(" "),
            output.status.code().unwrap()
        )
        .unwrap();
    }
    report(&compare("errors.txt", &text).into_iter().collect::<Vec<_>>());
}
