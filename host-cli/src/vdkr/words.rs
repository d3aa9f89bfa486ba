//! What `vdkr` says to its user beside a command's output.

use std::time::Duration;

/// A wait that is longer is told of.
const SILENT: Duration = Duration::from_secs(15);

/// Says something to the user beside the command's output.
pub fn say(text: &str) {
    eprintln!("vdkr: {}", printable(text));
}

/// Text without anything that could drive a terminal: registries and machines have a say in it. Lines
/// stay lines.
pub fn printable(text: &str) -> String {
    let space = |c: char| if c.is_control() && c != '\n' { ' ' } else { c };
    text.chars().map(space).collect()
}

/// Does something, and says what it waits for when that takes long.
pub async fn telling<T>(words: &str, work: impl Future<Output = T>) -> T {
    let mut work = std::pin::pin!(work);
    match tokio::time::timeout(SILENT, &mut work).await {
        Ok(done) => done,
        Err(_) => {
            say(words);
            work.await
        }
    }
}
