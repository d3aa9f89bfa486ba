//! Every command, with arguments that are missing, malformed, huge or hostile: a status of the
//! table, words a person can use, no panic, and nothing half-done.
//!
//! The commands come from the parser itself, so a new one is covered without being named here.

mod rig;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use clap::{Arg, ArgAction, Command};
use rig::snapshot::{compare, report};
use rig::{User, status, stderr, stdout, write_layout};
use vdkr_host::registry_cli::config::KEYS;
use vdkr_host::registry_cli::help;

/// No command may think longer than this about nonsense.
const PATIENCE: Duration = Duration::from_secs(20);
/// Longest message, in characters; whoever gives a huge name does not get it back.
const MAX_WORDS: usize = 6000;

/// One more than 64 bits hold.
const NUMBER: &str = "18446744073709551616";

/// Values that nobody means, each with a name for the table.
fn hostile() -> Vec<(&'static str, OsString)> {
    let text = [
        ("empty", ""),
        ("blank", " "),
        ("dash", "-"),
        ("path", "../../../etc/passwd"),
        ("escape", "a\u{1b}]0;title\u{7}b"),
        ("letters", "é☃"),
        ("words", "a b"),
        ("shell", "$(id)`id`;|&"),
        ("percent", "%00%2e%2e/"),
        ("tagged", "localhost:1/sha256:zz"),
        ("port", "localhost:99999/x"),
        ("colons", "name:tag:tag@sha256:1"),
        ("upper", "Ünicode/UPPER"),
        ("bracket", "[::1"),
        ("minus", "-1"),
        ("number", NUMBER),
    ];
    let mut values: Vec<_> = text
        .into_iter()
        .map(|(name, value)| (name, OsString::from(value)))
        .collect();
    values.push(("huge", "x".repeat(100_000).into()));
    values.push(("bytes", OsStr::from_bytes(b"\xff\xfe").to_owned()));
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

/// A line to run: what is asked, and what is wrong with it.
struct Line {
    /// The row of the table that its status belongs to.
    row: String,
    words: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    /// Option, variable or position with the value, and the value.
    culprit: String,
    value: OsString,
}

/// In a home of its own, so deep that `..` in a value stays within it.
fn run(user: &User, line: &Line) -> Output {
    let home = tempfile::tempdir_in(user.home.path()).unwrap();
    let deep = home.path().join("a/b/c/d/e/f");
    std::fs::create_dir_all(deep.join("rootfs")).unwrap();
    if line.row.starts_with("label ") {
        write_layout(&deep.join("own-latest-oci"), "own");
    }
    // Files take any amount; what comes through a pipe would have to be read meanwhile.
    let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut child = user
        .command(&line.words)
        .env("HOME", home.path())
        .envs(line.variables.iter().map(|(name, value)| (name, value)))
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
            panic!("{} still runs after {PATIENCE:?}", shown(&line.words));
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

/// The status, after everything that holds for every line was looked at; or what is wrong.
fn check(line: &Line, output: &Output) -> Result<i32, String> {
    let said = stderr(output);
    let wrong = |what: &str| {
        let words = shown(&line.words);
        let short: String = said.chars().take(600).collect();
        Err(format!(
            "{what}: {}, {words} {:?}: {short}",
            line.row, output.status
        ))
    };
    let Some(code @ 0..=7) = output.status.code() else {
        return wrong("no status of the table");
    };
    if said.contains("panicked") {
        return wrong("a panic");
    }
    if said.chars().count() >= MAX_WORDS {
        return wrong("too many words");
    }
    if said.contains(|c: char| c.is_control() && c != '\n' && c != '\t') {
        return wrong("control characters");
    }
    let errors = said.lines().filter(|line| line.starts_with("error: "));
    let errors: Vec<_> = errors.collect();
    if errors.len() != usize::from(code != 0) {
        return wrong("one line tells the error, and none where there is none");
    }
    if code != 0 && errors[0].len() < "error: no x".len() {
        return wrong("no words");
    }
    // Which of the words was it? The option or variable is named, or the value is shown.
    let value = line.value.to_string_lossy();
    let word = value.split_whitespace().next().unwrap_or_default();
    let part: String = word.chars().take(8).collect();
    let names = [
        line.culprit.as_str(),
        line.culprit.trim_start_matches("--"),
        "try '--help'",
    ];
    let shows = |part: &str| !part.trim().is_empty() && said.contains(part);
    let escaped: String = part.escape_debug().collect();
    let legible = part.replace(char::is_control, "\u{fffd}");
    // What is blank is seen as little in the message as on the line.
    let is_named = word.is_empty()
        || names.iter().any(|name| shows(name))
        || shows(&escaped)
        || shows(&legible);
    if code == 2 && !is_named {
        return wrong("it does not say what was wrong");
    }
    Ok(code)
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

/// The rest of a line that is right, so that what is wrong is the one value alone.
struct Right {
    options: Vec<(&'static str, String)>,
    flags: Vec<&'static str>,
    positionals: Vec<String>,
}

fn right(words: &[String], host: &str, layout: &str) -> Right {
    let option = |name: &'static str, value: &str| (name, value.to_owned());
    let image = format!("{host}/yocto/app:v1");
    let (mut options, mut flags, mut positionals) = (vec![], vec![], vec![]);
    match words.join(" ").as_str() {
        "push" => {
            options.push(option("--tag", "v2"));
            positionals.push(layout.to_owned());
        }
        "import" => positionals.extend([image, "taken".to_owned()]),
        "copy" => {
            let to = format!("docker://{host}/yocto/copied:v1");
            positionals.extend([format!("docker://{image}"), to]);
        }
        "inspect" => positionals.push(format!("docker://{image}")),
        "login" => {
            options.extend([option("--username", "me"), option("--password", "x")]);
            positionals.push(host.to_owned());
        }
        "bake" => {
            options.extend([option("--rootfs", "rootfs"), option("--profile", "docker")]);
            flags.push("--diff");
        }
        "label" => {
            options.push(option("--label", "a=b"));
            positionals.push("own-latest-oci".to_owned());
        }
        "tags" | "history" | "rollback" | "pin" | "unpin" | "delete" => {
            positionals.push("app:v1".to_owned());
        }
        "prune" => {
            options.push(option("--keep-last", "9"));
            flags.push("--dry-run");
        }
        "gc" => flags.push("--dry-run"),
        "completions" => positionals.push("bash".to_owned()),
        _ => {}
    }
    Right {
        options,
        flags,
        positionals,
    }
}

/// Options that say what the others say in another way, and go before them.
fn excludes(tested: &str, other: &str) -> bool {
    tested == other || (tested == "--strategy" && other == "--tag")
}

/// Commands of a server's own: with a storage of their own, and somebody else at the port.
fn serves(command: &str) -> bool {
    matches!(command, "serve" | "start" | "stop" | "status" | "pki")
}

fn at_taken_port(port: u16) -> Vec<(String, OsString)> {
    let url = format!("localhost:{port}");
    let pairs = [
        ("CONTAINER_REGISTRY_URL", url.as_str()),
        ("CONTAINER_REGISTRY_STORAGE", "own"),
    ];
    pairs
        .map(|(name, value)| (name.to_owned(), value.into()))
        .into()
}

/// Every argument of every command, with every value.
fn lines(user: &User, layout: &str, taken: u16) -> Vec<Line> {
    let mut lines = Vec::new();
    for (words, command) in all_leaves() {
        let variables = if serves(&words[0]) {
            at_taken_port(taken)
        } else {
            Vec::new()
        };
        let right = right(&words, &user.host(), layout);
        let name = words.join(" ");
        let start: Vec<OsString> = words.iter().map(OsString::from).collect();
        let mut add = |culprit: &str, value: &OsStr, rest: Vec<OsString>| {
            let mut words = start.clone();
            words.extend(right.flags.iter().map(OsString::from));
            words.extend(rest);
            lines.push(Line {
                row: format!("{name} {culprit}"),
                words,
                variables: variables.clone(),
                culprit: culprit.to_owned(),
                value: value.to_owned(),
            });
        };
        let others = |tested: &str| {
            let others = right.options.iter();
            let others = others.filter(|(name, _)| !excludes(tested, name));
            others
                .map(|(name, value)| OsString::from(format!("{name}={value}")))
                .collect::<Vec<_>>()
        };
        let options = command.get_arguments().filter(|arg| takes_value(arg));
        let options = options.filter(|arg| !arg.is_positional() && !arg.is_global_set());
        for long in options.filter_map(Arg::get_long) {
            let option = format!("--{long}");
            let mut positionals: Vec<OsString> = Vec::new();
            // A list of images is instead of one.
            if option != "--file" {
                positionals.extend(right.positionals.iter().map(OsString::from));
            }
            for (_, value) in hostile() {
                let mut given = OsString::from(format!("{option}="));
                given.push(&value);
                let mut rest = others(&option);
                rest.push(given);
                rest.extend(positionals.clone());
                add(&option, &value, rest);
            }
        }
        for at in 0..command.get_positionals().count().max(1) {
            for (name, value) in hostile() {
                // A legal name, which would be looked for at Docker Hub, or be made here for others.
                let is_remote = matches!(words[0].as_str(), "import" | "login");
                let is_remote = is_remote && name == "number";
                let value = if is_remote { "a b c".into() } else { value };
                let mut rest = others("");
                // Behind it even a dash is a value.
                rest.push("--".into());
                let mut positionals: Vec<_> =
                    right.positionals.iter().map(OsString::from).collect();
                positionals.resize(positionals.len().max(at + 1), value.clone());
                positionals[at].clone_from(&value);
                rest.extend(positionals);
                add(&format!("<{}>", at + 1), &value, rest);
            }
        }
    }
    for option in [
        "--url",
        "--namespace",
        "--storage",
        "--insecure",
        "--progress",
    ] {
        for (_, value) in hostile() {
            let mut given = OsString::from(format!("{option}="));
            given.push(&value);
            lines.push(Line {
                row: format!("catalog {option}"),
                words: vec![given, "catalog".into()],
                variables: Vec::new(),
                culprit: option.to_owned(),
                value,
            });
        }
    }
    lines
}

/// Every variable of the configuration with every value, at a command that looks at it.
fn variables(layout: &str, taken: u16) -> Vec<Line> {
    let mut lines = Vec::new();
    for key in KEYS {
        let with = |name: &str, value: &str| vec![(name.to_owned(), OsString::from(value))];
        let mode = |value: &str| with("CONTAINER_REGISTRY_AUTH_MODE", value);
        let secure = || with("CONTAINER_REGISTRY_SECURE", "1");
        let strategy = |value: &str| with("CONTAINER_REGISTRY_TAG_STRATEGY", value);
        let both = |mut a: Vec<_>, b: Vec<_>| {
            a.extend(b);
            a
        };
        type Case = (&'static [&'static str], Vec<(String, OsString)>);
        let commands: Vec<Case> = match key.name {
            "authfile" => vec![(&["catalog"][..], mode("authfile"))],
            "credsfile" => vec![(&["catalog"][..], mode("credsfile"))],
            "user" => {
                let password = with("CONTAINER_REGISTRY_PASSWORD", "x");
                vec![(&["catalog"][..], both(mode("env"), password))]
            }
            "password" => {
                let user = with("CONTAINER_REGISTRY_USER", "x");
                vec![
                    (&["catalog"][..], both(mode("env"), user)),
                    (&["serve"][..], secure()),
                ]
            }
            "token" => vec![(&["catalog"][..], mode("env"))],
            "storage" | "listen" | "secure" | "auth" => {
                vec![
                    (&["serve"][..], vec![]),
                    (&["start"][..], vec![]),
                    (&["catalog"][..], vec![]),
                ]
            }
            "username" | "cert_days" | "ca_days" | "cert_san" => {
                vec![(&["serve"][..], secure()), (&["pki", "init"][..], secure())]
            }
            "image_version" => vec![(&["push"][..], strategy("semver"))],
            "target_arch" => vec![(&["push"][..], strategy("version arch"))],
            "tag_strategy" => vec![(&["push"][..], vec![])],
            "deploy_dir_images" | "deploy_dir_image" => vec![(&["push", "app"][..], vec![])],
            // A server of another URL would find its port free.
            "url" => vec![(&["catalog"][..], vec![])],
            _ => vec![(&["catalog"][..], vec![]), (&["serve"][..], vec![])],
        };
        for (words, more) in commands {
            for (name, value) in hostile() {
                // Empty means unset: whatever is at the usual port.
                let is_default = key.name == "url" && name == "empty";
                let value = if is_default { " ".into() } else { value };
                let mut line: Vec<OsString> = words.iter().map(OsString::from).collect();
                if words == ["push"] {
                    line.push(layout.into());
                }
                let mut variables = more.clone();
                if serves(words[0]) {
                    variables.extend(at_taken_port(taken));
                }
                variables.push((key.env.to_owned(), value.clone()));
                lines.push(Line {
                    row: format!("{} {}", words.join(" "), key.env),
                    words: line,
                    variables,
                    culprit: key.env.to_owned(),
                    value,
                });
            }
        }
    }
    lines
}

/// Runs all lines; one row for each argument or variable, with the status for each value.
fn table(user: &User, lines: &[Line]) -> (String, Vec<String>) {
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(vec![None; lines.len()]);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(line) = lines.get(at) else { break };
                    let outcome = check(line, &run(user, line));
                    outcomes.lock().unwrap()[at] = Some(outcome);
                }
            });
        }
    });
    let (mut text, mut wrong) = (String::new(), Vec::new());
    let columns = hostile().len();
    for (row, outcomes) in lines
        .chunks(columns)
        .zip(outcomes.into_inner().unwrap().chunks(columns))
    {
        write!(text, "{:<46}", row[0].row).unwrap();
        for outcome in outcomes {
            match outcome {
                Some(Ok(code)) => write!(text, " {code}").unwrap(),
                Some(Err(words)) => {
                    text.push_str(" ?");
                    wrong.push(words.clone());
                }
                None => text.push_str(" ."),
            }
        }
        text.push('\n');
    }
    (text, wrong)
}

/// The tables are in `snapshots/`: a status that changes is to be looked at.
#[test]
fn nonsense_is_refused_and_nothing_is_half_done() {
    let mut user = User::with_registry();
    let layout = user.image("qemux86-64", "app");
    let layout = layout.to_str().unwrap();
    status(&user.run(["push", layout, "--tag", "v1"]), 0);
    user.set("DEPLOY_DIR_IMAGES", user.deploy_dir().to_str().unwrap());
    let content = user.storage().join("docker");
    let before = tree(&content);
    // Whoever serves finds the port taken, should it come so far.
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let taken = listener.local_addr().unwrap().port();

    let names: Vec<_> = hostile().iter().map(|(name, _)| *name).collect();
    let mut text = format!("The values: {}\n\n", names.join(" "));
    let mut wrong = Vec::new();
    for lines in [lines(&user, layout, taken), variables(layout, taken)] {
        assert!(lines.len() > 300, "only {} lines", lines.len());
        let (rows, more) = table(&user, &lines);
        text.push_str(&rows);
        text.push('\n');
        wrong.extend(more);
    }
    wrong.extend(compare("hostile.txt", &text));
    // Missing values.
    for (words, command) in all_leaves() {
        let options = command.get_arguments().filter(|arg| takes_value(arg));
        for long in options.filter_map(Arg::get_long) {
            let mut line = words.clone();
            line.push(format!("--{long}"));
            status(&user.run(&line), 2);
        }
    }
    report(&wrong);
    drop(listener);
    let tags = user.run(["tags", "app"]);
    status(&tags, 0);
    assert!(stdout(&tags).lines().any(|tag| tag == "v1"));
    let after = tree(&content);
    let gone: Vec<_> = before
        .keys()
        .filter(|path| !after.contains_key(*path))
        .collect();
    assert!(gone.is_empty(), "{gone:?}");
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
