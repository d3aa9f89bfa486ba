//! A user of `vdkr` with a home of their own.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::{
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::PoisonError,
    thread,
};

use vdkr_core::channel::message::{GuestHello, PullRequest, Request, RunRequest};

use crate::fake_agent::FakeAgent;

/// A user with a home, and a fake agent behind the socket of the kept machine.
pub(crate) struct User {
    pub(crate) home: tempfile::TempDir,
    pub(crate) agent: FakeAgent,
}

impl User {
    /// Nothing runs.
    pub(crate) fn new() -> Self {
        Self {
            home: tempfile::tempdir().unwrap(),
            agent: FakeAgent::default(),
        }
    }

    /// A machine seems to run.
    pub(crate) fn with_agent() -> Self {
        let hello = GuestHello {
            software: "fake 1".into(),
            ..GuestHello::default()
        };
        let user = Self {
            agent: FakeAgent {
                hello,
                ..FakeAgent::default()
            },
            ..Self::new()
        };
        fs::create_dir_all(user.state_dir()).unwrap();
        let listener =
            std::os::unix::net::UnixListener::bind(user.state_dir().join("vdkr.sock")).unwrap();
        let agent = user.agent.clone();
        // Ends with the test's process.
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                listener.set_nonblocking(true).unwrap();
                agent
                    .listen(tokio::net::UnixListener::from_std(listener).unwrap())
                    .await;
            });
        });
        user
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.home.path().join(".vdkr/x86_64")
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.home.path().join(".config/vdkr/config.toml")
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vdkr"));
        command
            .env_clear()
            .env("HOME", self.home.path())
            .env("PATH", "/nonexistent")
            .env("VDKR_AUTO_DAEMON", "false")
            .args(["-a", "x86_64"])
            .args(args)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    pub(crate) fn run_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self.piped(args);
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = thread::spawn(move || {
            // A program that does not read its input is not an error here.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    pub(crate) fn piped(&self, args: &[&str]) -> Child {
        self.command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.agent
            .requests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(crate) fn last_run(&self) -> RunRequest {
        match self.requests().pop() {
            Some(Request::Run(run)) => run,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn last_pull(&self) -> PullRequest {
        match self.requests().pop() {
            Some(Request::Pull(pull)) => pull,
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
pub(crate) fn status(output: &Output, expected: i32) {
    let start: String = stdout(output).chars().take(500).collect();
    assert_eq!(
        output.status.code(),
        Some(expected),
        "stdout: {start}\nstderr: {}",
        stderr(output)
    );
}
