//! The tests: all of them, as many programs at a time as there are processors, or some alone.
//!
//! `cargo test` runs one program after the other, and most of ours wait for one virtual machine, which
//! keeps one processor busy.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::peers;
use crate::run::{capture, cargo, run};
use crate::workspace::Workspace;

/// Programs that take longest, which begin first.
const LONG: [&str; 12] = [
    "hostile_images",
    "kill",
    "volumes",
    "main_job",
    "target",
    "fallback",
    "hostile_arguments",
    "soak",
    "host_load",
    "host_pull",
    "images",
    "containers",
];
/// What no program of tests takes, on a slow computer either.
const LIMIT: Duration = Duration::from_mins(40);
/// How often is looked whether one has ended.
const PAUSE: Duration = Duration::from_millis(50);
/// How a line begins that tells what could not be tested here (`vdkr_tests::process::not_tested`).
const UNTESTED: &str = "NOT TESTED: ";
/// Most programs at a time: each may have a machine or two.
const MOST: usize = 8;

/// One program of tests.
#[derive(Debug, PartialEq, Eq)]
struct Program {
    /// Its room and its name.
    name: String,
    path: PathBuf,
    /// Directory of its package, where it runs.
    directory: PathBuf,
}

/// How one has ended.
struct Ended {
    name: String,
    passed: bool,
    /// What it could not test here, and why.
    untested: Vec<String>,
    time: Duration,
}

/// Compiles the programs and the tests of all rooms. One selection of packages for compiling and
/// running: with another one cargo would choose other features and compile most dependencies again.
pub(crate) fn compile(workspace: &Workspace) -> Result<()> {
    programs(workspace).map(drop)
}

/// Unit, property and end-to-end tests, then those of the documentation.
pub(crate) fn all(workspace: &Workspace) -> Result<()> {
    if !has_terminals() {
        let mut again = Command::new(std::env::current_exe()?);
        again.arg("test").current_dir(&workspace.root);
        return run(&mut with_terminals(&again));
    }
    let logs = workspace.target.join("test-logs");
    fs::create_dir_all(&logs)?;
    let path = path_with_peers(workspace)?;
    let programs = in_order(programs(workspace)?);
    let count = programs.len();
    let waiting = Mutex::new(VecDeque::from(programs));
    let ended = Mutex::new(Vec::new());
    let lanes = thread::available_parallelism().map_or(1, |count| count.get().min(MOST));
    let next = || waiting.lock().ok()?.pop_front();
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(program) = next() {
                    let end = perform(&program, &logs, &path);
                    if let Ok(mut ended) = ended.lock() {
                        ended.push(end);
                    }
                }
            });
        }
    });
    let ended = ended.into_inner().unwrap_or_default();
    let documentation = run(cargo(workspace).args(["test", "--quiet", "--doc", "--workspace"]));
    let time: Duration = ended.iter().map(|end| end.time).sum();
    println!(
        "{} of {count} programs of tests, {lanes} at a time, {:.0} s of theirs",
        ended.len(),
        time.as_secs_f32()
    );
    for untested in ended.iter().flat_map(|end| &end.untested) {
        println!("{untested}");
    }
    if ended.len() != count {
        bail!("some programs of tests have not run");
    }
    let failed: Vec<_> = ended.iter().filter(|end| !end.passed).collect();
    if !failed.is_empty() {
        let names: Vec<_> = failed.iter().map(|end| end.name.as_str()).collect();
        bail!("tests failed in: {}", names.join(", "));
    }
    documentation
}

/// Runs what is asked for with `cargo test`. The VM images and fixtures are those that were made last.
pub(crate) fn some(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    // Cargo builds programs for the tests of their own package only.
    let programs = [
        "build",
        "--quiet",
        "--bins",
        "-p",
        "vdkr-host",
        "-p",
        "vdkr-agent",
        "-p",
        "vdkr-tests",
    ];
    run(cargo(workspace).args(programs))?;
    let mut tests = cargo(workspace);
    tests
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(arguments);
    let mut tests = match has_terminals() {
        true => tests,
        false => with_terminals(&tests),
    };
    run(tests.env("PATH", path_with_peers(workspace)?))
}

/// All programs of tests, compiled.
fn programs(workspace: &Workspace) -> Result<Vec<Program>> {
    let compile = [
        "test",
        "--quiet",
        "--no-run",
        "--workspace",
        "--message-format=json-render-diagnostics",
    ];
    let told = capture(cargo(workspace).args(compile))?;
    let programs: Vec<_> = String::from_utf8_lossy(&told)
        .lines()
        .filter_map(|line| program(&serde_json::from_str(line).ok()?))
        .collect();
    if programs.is_empty() {
        bail!("cargo names no program of tests");
    }
    Ok(programs)
}

/// The program of tests that a message of cargo tells of.
fn program(message: &Value) -> Option<Program> {
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let path = PathBuf::from(message["executable"].as_str()?);
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?;
    let room = directory.file_name()?.to_string_lossy();
    let name = format!("{room}/{}", message["target"]["name"].as_str()?);
    Some(Program {
        name,
        path,
        directory: directory.to_owned(),
    })
}

/// Those that take long go first, so that none of them is alone at the end.
fn in_order(mut programs: Vec<Program>) -> Vec<Program> {
    programs.sort_by_key(|program| {
        let name = program.name.rsplit('/').next().unwrap_or_default();
        LONG.iter()
            .position(|long| *long == name)
            .unwrap_or(LONG.len())
    });
    programs
}

/// Runs one, and tells how it ended; with all its words when it failed.
fn perform(program: &Program, logs: &Path, path: &OsStr) -> Ended {
    // Two may have one name in their room; files have different ones.
    let file = program.path.file_name().unwrap_or_default();
    let log = logs.join(file).with_extension("log");
    let begun = Instant::now();
    let result = perform_into(program, &log, path);
    let time = begun.elapsed();
    let words = fs::read(&log).unwrap_or_default();
    let words = String::from_utf8_lossy(&words);
    let name = &program.name;
    let seconds = time.as_secs_f32();
    let passed = match result {
        Ok(status) if status.success() => {
            println!("{seconds:>7.1} s  {name}: {}", counted(&words));
            true
        }
        Ok(status) => {
            println!("{seconds:>7.1} s  {name}: FAILED, {status}\n{words}");
            false
        }
        Err(error) => {
            println!("{seconds:>7.1} s  {name}: FAILED, {error:#}\n{words}");
            false
        }
    };
    Ended {
        name: program.name.clone(),
        passed,
        untested: untested(&words),
        time,
    }
}

fn perform_into(program: &Program, log: &Path, path: &OsStr) -> Result<ExitStatus> {
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child = Command::new(&program.path)
        .current_dir(&program.directory)
        .env("CARGO_MANIFEST_DIR", &program.directory)
        .env("PATH", path)
        // Others run beside it.
        .env("RUST_TEST_THREADS", "1")
        .stdin(Stdio::null())
        .stderr(out.try_clone()?)
        .stdout(out)
        .spawn()
        .with_context(|| format!("cannot run {}", program.path.display()))?;
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if begun.elapsed() > LIMIT {
            child.kill()?;
            child.wait()?;
            bail!("it did not end within {} s", LIMIT.as_secs());
        }
        thread::sleep(PAUSE);
    }
}

/// What a program says of its tests.
fn counted(words: &str) -> String {
    let results = words.lines().filter(|line| line.contains(" passed"));
    let count = |what: &str| -> usize {
        let of = |line: &str| {
            let (before, _) = line.split_once(what)?;
            before.rsplit(' ').next()?.parse::<usize>().ok()
        };
        results.clone().filter_map(of).sum()
    };
    match (count(" passed"), count(" ignored")) {
        (passed, 0) => format!("{passed} passed"),
        (passed, ignored) => format!("{passed} passed, {ignored} ignored"),
    }
}

/// What a program says it could not test here.
fn untested(words: &str) -> Vec<String> {
    let lines = words.lines().filter(|line| line.starts_with(UNTESTED));
    lines.map(str::to_owned).collect()
}

/// Whether pseudo-terminals can be opened here: not in a bare directory that was changed into.
fn has_terminals() -> bool {
    File::open("/dev/ptmx").is_ok()
}

/// The same command in a mount namespace of its own, with terminals.
fn with_terminals(command: &Command) -> Command {
    // The root may be a directory that is no mount, whose propagation cannot be changed: so what is
    // mounted is taken away again, wherever it was seen.
    const MOUNT: &str =
        "mount -t devpts -o newinstance,ptmxmode=0666,mode=0620,gid=5 devpts /dev/pts \
        && mount --bind /dev/pts/ptmx /dev/ptmx || exit 1
        \"$@\"
        status=$?
        umount /dev/ptmx
        umount /dev/pts
        exit $status";
    eprintln!("no terminals can be opened here: the tests get their own");
    let mut wrapped = Command::new("unshare");
    wrapped.args([
        "--mount",
        "--propagation",
        "unchanged",
        "sh",
        "-c",
        MOUNT,
        "sh",
    ]);
    wrapped.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(directory) = command.get_current_dir() {
        wrapped.current_dir(directory);
    }
    wrapped
}

/// `PATH` with the programs that only tests talk to in front.
pub(crate) fn path_with_peers(workspace: &Workspace) -> Result<OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let parts = peers::directories(workspace)?
        .into_iter()
        .chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(parts)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(name: &str, test: bool) -> Value {
        json!({
            "reason": "compiler-artifact",
            "manifest_path": "/src/core/Cargo.toml",
            "target": { "name": name, "kind": ["test"] },
            "profile": { "test": test },
            "executable": format!("/target/debug/deps/{name}-1"),
        })
    }

    #[test]
    fn programs_of_tests_are_found_and_the_long_ones_begin() {
        let messages = [
            artifact("channel", true),
            artifact("kill", true),
            artifact("vdkr", false),
            json!({ "reason": "build-finished", "success": true }),
            artifact("hostile_images", true),
        ];
        let programs = in_order(messages.iter().filter_map(program).collect());
        let names: Vec<_> = programs.iter().map(|program| &program.name).collect();
        assert_eq!(names, ["core/hostile_images", "core/kill", "core/channel"]);
        assert_eq!(programs[1].path, Path::new("/target/debug/deps/kill-1"));
        assert_eq!(programs[1].directory, Path::new("/src/core"));
    }

    #[test]
    fn tests_are_counted() {
        let words = "running 3 tests\n...\ntest result: ok. 3 passed; 0 failed; 1 ignored; 0 measured\n\
            test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured\n";
        assert_eq!(counted(words), "7 passed, 1 ignored");
        assert_eq!(counted("6 passed, 0 failed"), "6 passed");
        let words = "test one ... NOT TESTED: half\nNOT TESTED: this: for that\nok\n";
        assert_eq!(untested(words), ["NOT TESTED: this: for that"]);
    }

    #[test]
    fn what_fails_or_cannot_run_is_told() {
        let logs = tempfile::tempdir().unwrap();
        let run = |path: &str| {
            let program = Program {
                name: "room/name".to_owned(),
                path: path.into(),
                directory: logs.path().to_owned(),
            };
            perform(&program, logs.path(), OsStr::new("/bin")).passed
        };
        assert!(run("/bin/true"));
        assert!(!run("/bin/false"));
        assert!(!run("/no/such/program"));
    }
}
