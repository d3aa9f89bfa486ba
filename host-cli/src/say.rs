//! Standard error of both commands: words, with the standard library's macros under another rule.
//!
//! What cannot be said (the log is on a full disk, the terminal is gone) must not keep anything from
//! being done, so `eprint!` and `eprintln!` do not panic in this crate.

use std::fmt::Arguments;
use std::io::{Write as _, stderr};

/// Writes to stderr, if that is possible.
pub(crate) fn say(text: Arguments<'_>) {
    let _ = stderr().lock().write_fmt(text);
}

macro_rules! eprint {
    ($($arg:tt)*) => {
        $crate::say::say(format_args!($($arg)*))
    };
}

macro_rules! eprintln {
    () => {
        $crate::say::say(format_args!("\n"))
    };
    ($($arg:tt)*) => {
        $crate::say::say(format_args!("{}\n", format_args!($($arg)*)))
    };
}
