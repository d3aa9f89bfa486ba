//! What all tests of a file share, made by the first that wants it.
//!
//! A test program drops nothing that is static, so a process of its own clears up: when the test
//! program has ended, in whatever way.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{ChildStdin, Command, Stdio};

use crate::registry::Registry;
use crate::vm::User;

/// Stops machines and registries, and removes their directories, when this program has ended.
#[derive(Debug)]
pub struct Caretaker {
    // Its end is what the caretaker waits for.
    _here: ChildStdin,
}

impl Caretaker {
    /// Of everything that a shared place consists of.
    #[track_caller]
    pub fn of(users: &[&User], registries: &[&Registry]) -> Self {
        let mut script = "cat".to_owned();
        let mut then = |words: String| {
            script.push_str("; ");
            script.push_str(&words);
        };
        for user in users {
            then(shell_line(user.command().args(["memres", "stop"])));
            then(format!("rm -rf {}", quoted_path(user.home())));
        }
        for registry in registries {
            then(shell_line(registry.command().arg("stop")));
            then(format!("rm -rf {}", quoted_path(registry.storage())));
            // The directory around it, when it was made for it alone.
            if let Some(around) = registry.storage().parent() {
                then(format!("rmdir {}", quoted_path(around)));
            }
        }
        #[expect(
            clippy::zombie_processes,
            reason = "it waits for the end of this process"
        )]
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C ends the tests, and not who clears up after them.
            .process_group(0)
            .spawn()
            .expect("a caretaker");
        Self {
            _here: child.stdin.take().expect("a pipe"),
        }
    }
}

/// A command as a shell takes it.
fn shell_line(command: &Command) -> String {
    let mut line = "env".to_owned();
    for (name, value) in command.get_envs() {
        let name = name.to_str().expect("a name");
        match value {
            Some(value) => {
                let value = value.to_str().expect("text");
                line.push_str(&format!(" {}", quoted(&format!("{name}={value}"))));
            }
            None => line.push_str(&format!(" -u {}", quoted(name))),
        }
    }
    for word in [command.get_program()]
        .into_iter()
        .chain(command.get_args())
    {
        line.push(' ');
        line.push_str(&quoted(word.to_str().expect("text")));
    }
    line
}

fn quoted_path(path: &Path) -> String {
    quoted(path.to_str().expect("a path in UTF-8"))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_through_a_shell_as_they_are() {
        let mut command = Command::new("printf");
        command
            .env("WORD", "it's $HOME")
            .env_remove("SHELL")
            .args(["%s|", "a b", "it's", "$WORD"]);
        let line = shell_line(&command);
        let ran = crate::process::run_tool("sh", ["-c", &line]).expect(0);
        assert_eq!(ran.text(), "a b|it's|$WORD|");
    }

    #[test]
    fn everything_goes_with_the_caretaker() {
        let registry = Registry::start();
        let user = User::new("x86_64");
        let (home, storage) = (user.home().to_owned(), registry.storage().to_owned());
        let caretaker = Caretaker::of(&[&user], &[&registry]);
        assert!(home.is_dir() && storage.is_dir());
        drop(caretaker);
        crate::process::wait_until("nothing is left", crate::vm::PATIENCE, || {
            !home.exists() && !storage.exists()
        });
        let answer = std::net::TcpStream::connect(("127.0.0.1", registry.port()));
        assert!(answer.is_err());
    }
}
