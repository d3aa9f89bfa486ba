//! Asking before something is removed.

use std::io::stdin;

use anyhow::{Result, bail};

use crate::progress::ask;

/// Asks on stderr and reads the answer from stdin, a terminal or not. `yes` answers beforehand. An end of
/// input is no answer: nothing happens, and the error says how to go on.
pub fn confirm(question: &str, yes: bool) -> Result<bool> {
    if yes {
        return Ok(true);
    }
    ask(&format!("{question} [y/N]"));
    let mut answer = String::new();
    // A descriptor that was closed by the caller reads as an error, which is no answer either.
    if !matches!(stdin().read_line(&mut answer), Ok(length) if length > 0) {
        eprintln!();
        bail!("nobody answered, so nothing was changed; add --yes to go on without a question");
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}
