//! Running other programs: the command line is part of every error.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

use crate::workspace::Workspace;

/// Runs a command with inherited output; anything but status 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it printed; its error output is shown when it fails.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>> {
    let Output {
        status,
        stdout,
        stderr,
    } = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{}`", line(command)))?;
    if !status.success() {
        bail!(
            "`{}` ended with {status}\n{}",
            line(command),
            String::from_utf8_lossy(if stderr.is_empty() { &stdout } else { &stderr }).trim_end()
        );
    }
    Ok(stdout)
}

/// [`capture`] as text, without the newline at the end.
pub(crate) fn capture_text(command: &mut Command) -> Result<String> {
    let bytes = capture(command)?;
    Ok(String::from_utf8(bytes)
        .with_context(|| format!("`{}` did not print UTF-8", line(command)))?
        .trim_end()
        .to_owned())
}

/// The cargo that runs this task, without what `cargo run` told this program about itself: build
/// scripts watch some of those variables and would run again each time.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&workspace.root);
    forget_own_package(&mut command);
    command
}

/// Removes the variables that describe this program's own package.
pub(crate) fn forget_own_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let own = [
            "CARGO_PKG_",
            "CARGO_MANIFEST_",
            "CARGO_BIN_",
            "CARGO_CRATE_",
            "CARGO_PRIMARY_",
        ];
        if own
            .iter()
            .any(|prefix| name.to_string_lossy().starts_with(prefix))
        {
            command.env_remove(name);
        }
    }
}

/// Whether the command runs and ends with status 0; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The program's path, looked up in `PATH` and in the system directories that an ordinary user's
/// `PATH` leaves out.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// [`find_program`], or an error that names the Debian package to install.
pub(crate) fn need_program(name: &str, package: &str) -> Result<PathBuf> {
    find_program(name).with_context(|| {
        format!("{name} is not installed; install it with `apt-get install {package}`")
    })
}

fn line(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for arg in command.get_args() {
        text.push(' ');
        let arg = arg.to_string_lossy();
        if arg.is_empty() || arg.contains(char::is_whitespace) {
            text.push('\'');
            text.push_str(&arg);
            text.push('\'');
        } else {
            text.push_str(&arg);
        }
    }
    text
}

/// A size for people: "3.4 MB".
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes % 1_000_000 / 100_000)
}
