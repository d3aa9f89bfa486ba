//! What `vdkr` says to its user beside a command's output.

use std::time::Duration;

use vdkr_core::channel::message::{Done, Request};

use crate::vm::channel::{ChannelError, Connection};

/// A wait that is longer is told of.
const SILENT: Duration = Duration::from_secs(15);

/// Says something to the user beside the command's output.
pub fn say(text: &str) {
    eprintln!("{MARK} {}", guarded(text));
}

/// How what this program says begins.
const MARK: &str = "vdkr:";

/// What is said, in which others may have a say: no further line looks like the first of another
/// message.
fn guarded(text: &str) -> String {
    let text = printable(text);
    let mut lines = text.split('\n').enumerate().map(|(at, line)| {
        let forged = at > 0 && line.trim_start().starts_with(MARK);
        format!("{}{line}", if forged { "| " } else { "" })
    });
    let first = lines.next().unwrap_or_default();
    lines.fold(first, |text, line| text + "\n" + &line)
}

/// Text without anything that could drive a terminal: registries and machines have a say in it. Lines
/// stay lines.
pub fn printable(text: &str) -> String {
    let space = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().map(space).collect()
}

/// Does something, and says what it waits for when that takes long.
pub async fn telling<T>(words: &str, work: impl Future<Output = T>) -> T {
    telling_by(say, words, work).await
}

async fn telling_by<T>(say: impl FnOnce(&str), words: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(SILENT, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            say(words);
            work.await
        }
    }
}

/// Asks a machine for something, and says what is waited for when the answer takes long and does not
/// come late by nature: it may be the machine's disk, while all else in it is well.
pub async fn asking(connection: &Connection, request: &Request) -> Result<Done, ChannelError> {
    match request.task() {
        Some(task) => telling(&waiting(task), connection.ask(request)).await,
        None => connection.ask(request).await,
    }
}

fn waiting(task: &str) -> String {
    format!("waiting for the machine to {task}; it may have much to do, or its disk may not answer")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use tokio::time::sleep;

    use super::*;

    #[test]
    fn nobody_else_says_something_in_our_name() {
        for (text, said) in [
            ("it failed\ntry this", "it failed\ntry this"),
            (
                "it failed\nvdkr: all is well",
                "it failed\n| vdkr: all is well",
            ),
            ("a\n\r vdkr: b\u{1b}[1m\n", "a\n|   vdkr: b [1m\n"),
            ("vdkr: x", "vdkr: x"),
        ] {
            assert_eq!(guarded(text), said);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_long_wait_is_told_of_once_and_a_short_one_not() {
        for (seconds, times) in [(0, 0), (14, 0), (16, 1), (600, 1)] {
            let told = RefCell::new(Vec::new());
            let say = |words: &str| told.borrow_mut().push(words.to_owned());
            let work = async {
                sleep(Duration::from_secs(seconds)).await;
                seconds
            };
            assert_eq!(telling_by(say, "waiting", work).await, seconds);
            assert_eq!(told.take(), vec!["waiting"; times], "{seconds}");
        }
    }
}
