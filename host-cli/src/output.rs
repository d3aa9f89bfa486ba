//! Standard output of both commands: data, a line at a time.
//!
//! Guests, images and registries have a say in much of it. On a terminal nothing but text and line
//! breaks passes, so that nobody's words drive it; names and other words that are one line are
//! printed by [`out_line!`](crate::out_line), which lets nobody add lines, wherever it goes.

use std::borrow::Cow;
use std::fmt::Arguments;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::exit;

/// Writes to stdout. A reader that has seen enough (`| head`) is success, not an error.
pub fn write(text: Arguments<'_>) {
    if io::stdout().is_terminal() {
        write_all(format_args!("{}", harmless(&text.to_string())));
    } else {
        write_all(text);
    }
}

/// Empties the screen, with the writing position in its top left corner.
pub fn clear_screen() {
    write_all(format_args!("\u{1b}[H\u{1b}[2J"));
}

fn write_all(text: Arguments<'_>) {
    if let Err(error) = io::stdout().lock().write_fmt(text) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            exit(0);
        }
        eprintln!("error: cannot write to standard output: {error}");
        exit(1);
    }
}

/// Text without anything that could drive a terminal.
fn harmless(text: &str) -> Cow<'_, str> {
    let drives = |c: char| c.is_control() && c != '\n' && c != '\t';
    match text.contains(drives) {
        true => text
            .chars()
            .filter(|c| !drives(*c))
            .collect::<String>()
            .into(),
        false => text.into(),
    }
}

/// Words of others as a part of one line: without control characters.
pub fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// `println!` that ends quietly when the reader is gone.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($arg)*)))
    };
}

/// As [`out!`], for words of others: they make one line, whatever they hold.
#[macro_export]
macro_rules! out_line {
    ($($arg:tt)*) => {
        $crate::out!("{}", $crate::output::plain(&format!($($arg)*)))
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_others_are_text() {
        let words = "a\u{1b}[2Jb\u{9b}1mc\r\n\td\u{7f}\u{7}é";
        assert_eq!(harmless(words), "a[2Jb1mc\n\tdé");
        assert_eq!(plain(words), "a[2Jb1mcdé");
        assert!(matches!(harmless("a\n\tb"), Cow::Borrowed(_)));
    }
}
