//! Questions to the user at the terminal.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind, IsTerminal as _, Read as _};
use std::os::fd::AsFd as _;

use anyhow::{Context as _, Result};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};
use vdkr_core::credentials::Secret;

/// Longest answer that is read, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

/// The terminal on standard input.
#[derive(Debug)]
pub struct Terminal(File);

impl Terminal {
    /// `None` when standard input is something else, as in a batch job.
    pub fn open() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let own = stdin.as_fd().try_clone_to_owned().ok()?;
        Some(Self(File::from(own)))
    }

    /// Asks for a line that may be seen.
    pub fn ask(&mut self, question: &str) -> Result<String> {
        eprint!("{question}");
        let mut line = String::new();
        BufReader::new((&self.0).take(MAX_ANSWER as u64))
            .read_line(&mut line)
            .context("cannot read from the terminal")?;
        Ok(line.trim().to_owned())
    }

    /// Asks for a line that is not shown. Ctrl-C, and Ctrl-D on an empty line, end it with an error
    /// and leave the terminal as it was.
    pub fn ask_secret(&mut self, question: &str) -> Result<Secret> {
        let _quiet = Quiet::new(&self.0).context("cannot silence the terminal")?;
        eprint!("{question}");
        let answer = read_keys(&mut &self.0);
        // The user's own end of line was not shown.
        eprintln!();
        answer.context("no answer")
    }
}

/// A terminal that shows nothing and hands every key on, until this is dropped.
struct Quiet<'a>(&'a File, Termios);

impl<'a> Quiet<'a> {
    fn new(terminal: &'a File) -> nix::Result<Self> {
        let before = termios::tcgetattr(terminal)?;
        let mut quiet = before.clone();
        // Keys come one by one, so that Ctrl-C is seen here and the old state comes back.
        let shown = LocalFlags::ECHO | LocalFlags::ECHONL | LocalFlags::ICANON | LocalFlags::ISIG;
        quiet.local_flags.remove(shown);
        quiet.control_chars[SpecialCharacterIndices::VMIN as usize] = 1;
        quiet.control_chars[SpecialCharacterIndices::VTIME as usize] = 0;
        // What was typed ahead, and seen, is not the secret.
        termios::tcsetattr(terminal, SetArg::TCSAFLUSH, &quiet)?;
        Ok(Self(terminal, before))
    }
}

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no state.
        let _ = termios::tcsetattr(self.0, SetArg::TCSAFLUSH, &self.1);
    }
}

/// Reads keys up to the end of the line, with the editing keys of a plain terminal.
fn read_keys(keys: &mut impl io::Read) -> io::Result<Secret> {
    const INTERRUPT: u8 = 3;
    const END: u8 = 4;
    const KILL_LINE: u8 = 21;
    let mut line: Vec<u8> = Vec::new();
    let mut key = [0];
    loop {
        let end = keys.read(&mut key)? == 0;
        match key[0] {
            _ if end => return Err(ErrorKind::UnexpectedEof.into()),
            b'\r' | b'\n' => break,
            INTERRUPT => return Err(ErrorKind::Interrupted.into()),
            END if line.is_empty() => return Err(ErrorKind::UnexpectedEof.into()),
            END => break,
            8 | 127 => {
                // One character, which may be several bytes.
                while line.pop().is_some_and(|byte| byte & 0xc0 == 0x80) {}
            }
            KILL_LINE => line.clear(),
            _ if line.len() >= MAX_ANSWER => return Err(ErrorKind::InvalidInput.into()),
            byte => line.push(byte),
        }
    }
    let line = String::from_utf8(line).map_err(|_| io::Error::from(ErrorKind::InvalidData))?;
    Ok(Secret::new(line))
}

/// The password on standard input: all of it but the end of its line.
pub fn secret_from_stdin() -> Result<Secret> {
    let mut text = Vec::new();
    io::stdin()
        .lock()
        .take(MAX_ANSWER as u64 + 1)
        .read_to_end(&mut text)
        .context("cannot read the password from standard input")?;
    anyhow::ensure!(
        text.len() <= MAX_ANSWER,
        "standard input holds more than {MAX_ANSWER} bytes; that is no password"
    );
    let text = String::from_utf8(text)
        .map_err(|_| anyhow::anyhow!("the password on standard input is not UTF-8 text"))?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    anyhow::ensure!(!line.is_empty(), "the password on standard input is empty");
    anyhow::ensure!(
        !line.contains(['\n', '\r', '\0']),
        "standard input holds more than one line; give the password alone"
    );
    Ok(Secret::new(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_edited_and_ended() {
        let read = |keys: &[u8]| read_keys(&mut &*keys).map(|secret| secret.expose().to_owned());
        assert_eq!(read(b"secret\nmore").unwrap(), "secret");
        assert_eq!(read("aé\x7f\x7fb\r".as_bytes()).unwrap(), "b");
        assert_eq!(read(b"wrong\x15right\n").unwrap(), "right");
        assert_eq!(read(b"x\x04").unwrap(), "x");
        assert_eq!(read(b"\x7f\n").unwrap(), "");
        for bad in [&b"abc\x03"[..], b"\x04", b"unended", b"\xff\n"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
        assert!(read(&vec![b'x'; MAX_ANSWER + 2]).is_err());
    }
}
