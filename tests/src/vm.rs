//! `vdkr` with a state directory and configuration of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Ran, program, run_within};

/// A boot under emulation on a busy machine, and the pull of an image, fit well into this.
pub const PATIENCE: Duration = Duration::from_mins(4);

/// A user of `vdkr`: their home, hence their configuration, VM state and images.
#[derive(Debug)]
pub struct User {
    home: TempDir,
    arch: &'static str,
}

impl User {
    /// A new user who works with VMs of this architecture (`x86_64`, `aarch64`).
    pub fn new(arch: &'static str) -> Self {
        Self {
            home: TempDir::new().expect("a temporary directory"),
            arch,
        }
    }

    /// Home directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// State directory of the VM.
    pub fn state_dir(&self) -> PathBuf {
        self.home.path().join(".vdkr").join(self.arch)
    }

    /// `vdkr -a ARCH`, of this user.
    pub fn command(&self) -> Command {
        let mut command = Command::new(program("vdkr"));
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("VDKR_") || text.starts_with("XDG_") {
                command.env_remove(name);
            }
        }
        // Tests ask for machines that stay, and see what those do that go.
        command
            .env("HOME", self.home.path())
            .env("VDKR_AUTO_DAEMON", "false")
            .args(["-a", self.arch]);
        command
    }

    /// Processes with this user's home directory: commands, monitors and emulators.
    pub fn processes(&self) -> Vec<Process> {
        let wanted = format!("HOME={}", self.home.path().display());
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        let theirs = entries.filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let environment = fs::read(entry.path().join("environ")).ok()?;
            let mut variables = environment.split(|&byte| byte == 0);
            if !variables.any(|variable| variable == wanted.as_bytes()) {
                return None;
            }
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            Some(Process { pid, line })
        });
        theirs.collect()
    }

    /// Runs a command without input.
    #[track_caller]
    pub fn run<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Ran {
        self.run_with_input(args, b"")
    }

    /// Runs a command with this on its stdin.
    #[track_caller]
    pub fn run_with_input<'a>(&self, args: impl IntoIterator<Item = &'a str>, input: &[u8]) -> Ran {
        run_within(self.command().args(args), input, PATIENCE)
    }
}

/// A process of a user.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its command line, with blanks between the words.
    pub line: String,
}

impl Process {
    /// Whether it is an emulator.
    pub fn is_emulator(&self) -> bool {
        self.line.contains("qemu-system")
    }

    /// Whether it keeps a machine.
    pub fn is_monitor(&self) -> bool {
        self.line.contains(" memres monitor ")
    }
}

/// Directory of the image that tests boot: `kernel`, `initramfs` and, for x86-64, `bzImage`.
#[track_caller]
pub fn image_dir(arch: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test");
    let mut places = exe.ancestors().map(|dir| dir.join("vm").join(arch));
    places
        .find(|dir| dir.join("vm.json").is_file())
        .expect("target/vm is missing; `cargo xtask image` makes it")
}

impl Drop for User {
    fn drop(&mut self) {
        // A VM kept by `memres start` must not outlive the test; without one this is a no-op.
        let _ = self.command().args(["memres", "stop"]).output();
    }
}
