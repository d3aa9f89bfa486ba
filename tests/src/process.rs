//! Running programs: with a deadline, and gone when the test is.

use std::ffi::OsStr;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// What a program did.
#[derive(Debug)]
pub struct Ran {
    /// Its exit status.
    pub status: ExitStatus,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr, as text.
    pub stderr: String,
}

impl Ran {
    /// Exit status as a number; a signal is shown as 128 and its number, as shells do.
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt as _;
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test, with all that was said, unless the status is `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code(),
            code,
            "unexpected exit status\n--- stdout\n{}\n--- stderr\n{}",
            self.text().chars().take(4000).collect::<String>(),
            self.stderr
        );
        self
    }
}

/// A program of this workspace, from the target directory that the tests themselves run from.
pub fn program(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test");
    // target/<profile>/deps/<test>, or target/<profile>/<binary> for a benchmark.
    let path = exe
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join(name))
        .find(|path| path.is_file())
        .unwrap_or_else(|| exe.with_file_name(name));
    assert!(
        path.is_file(),
        "{} is missing; `make test` builds it first",
        path.display()
    );
    path
}

/// A program of the system that a test cannot do without.
pub fn tool(name: &str) -> Command {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|path| path.is_file());
    Command::new(found.unwrap_or_else(|| {
        panic!("{name} is not installed; `make test` and `make bench` install what they need")
    }))
}

/// Runs to the end, or fails the test after `patience`.
#[track_caller]
pub fn run_within(command: &mut Command, input: &[u8], patience: Duration) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let (mut stdout, mut stderr) = (
        child.stdout.take().expect("a pipe"),
        child.stderr.take().expect("a pipe"),
    );
    std::thread::scope(|scope| {
        scope.spawn(move || {
            use std::io::Write as _;
            // A program that does not read its input is not at fault.
            let _ = stdin.write_all(input);
        });
        let out = scope.spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).map(|_| bytes)
        });
        let err = scope.spawn(move || {
            let mut bytes = Vec::new();
            stderr.read_to_end(&mut bytes).map(|_| bytes)
        });
        let late = !ended_within(&child, patience);
        if late {
            child.kill().expect("kill a child");
        }
        let status = child.wait().expect("wait for a child");
        let ran = Ran {
            status,
            stdout: out.join().expect("reader").expect("read stdout"),
            stderr: String::from_utf8_lossy(&err.join().expect("reader").expect("read stderr"))
                .into_owned(),
        };
        assert!(
            !late,
            "{command:?} did not end within {patience:?}\n--- stdout\n{}\n--- stderr\n{}",
            ran.text().chars().take(4000).collect::<String>(),
            ran.stderr
        );
        ran
    })
}

/// Waits for the end of a child, which is known at once: what is measured of a short program is no
/// step of a loop here. Its status is still to be asked for.
fn ended_within(child: &Child, patience: Duration) -> bool {
    let process = Pid::from_child(child);
    let process = pidfd_open(process, PidfdFlags::empty()).expect("a descriptor of a child");
    let deadline = Instant::now() + patience;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = left.try_into().expect("a time that poll understands");
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ended => return ended.expect("wait for a child") > 0,
        }
    }
}

/// Runs to the end, within a minute.
#[track_caller]
pub fn run(command: &mut Command) -> Ran {
    run_within(command, b"", Duration::from_mins(1))
}

/// Runs a system tool with arguments.
#[track_caller]
pub fn run_tool<A: AsRef<OsStr>>(name: &str, args: impl IntoIterator<Item = A>) -> Ran {
    run(tool(name).args(args))
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// A background process that ends with the test.
#[derive(Debug)]
pub struct Background(pub Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// For programs in which a panic ends the process at once, and drops nothing: their own processes end first.
pub fn end_processes_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        let threads = std::fs::read_dir("/proc/self/task").into_iter().flatten();
        for thread in threads.flatten() {
            let children = std::fs::read_to_string(thread.path().join("children"));
            for child in children.unwrap_or_default().split_whitespace() {
                if let Some(child) = child.parse().ok().and_then(Pid::from_raw) {
                    let _ = kill_process(child, Signal::KILL);
                }
            }
        }
    }));
}

/// Says that something cannot be tested here, and why: a line that `cargo xtask test` repeats at its end,
/// for the harness keeps what is printed in the usual way to itself.
pub fn not_tested(what: &str) {
    let line = format!("\nNOT TESTED: {what}\n");
    std::io::stderr()
        .write_all(line.as_bytes())
        .expect("write to stderr");
}

/// Waits until `ready` says so, or fails the test.
#[track_caller]
pub fn wait_until(what: &str, patience: Duration, mut ready: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !ready() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_ends_with_all_that_it_said() {
        let script = "cat; echo said >&2; exit 3";
        let patience = Duration::from_mins(1);
        let ran = run_within(tool("sh").args(["-c", script]), b"told", patience).expect(3);
        assert_eq!((&*ran.text(), &*ran.stderr), ("told", "said\n"));
        let killed = run(tool("sh").args(["-c", "kill -9 $$"]));
        assert_eq!(killed.code(), 137);
    }

    #[test]
    #[should_panic(expected = "did not end within 0ns")]
    fn a_program_that_takes_too_long_is_ended() {
        run_within(tool("sleep").arg("600"), b"", Duration::ZERO);
    }

    #[test]
    fn a_child_that_has_ended_is_seen_without_waiting() {
        let mut child = tool("true").spawn().unwrap();
        assert!(ended_within(&child, Duration::from_mins(1)));
        assert!(ended_within(&child, Duration::ZERO));
        assert!(child.wait().unwrap().success());
    }
}
