//! Standard output of both commands: data, a line at a time.

use std::fmt::Arguments;
use std::io::{self, Write as _};
use std::process::exit;

/// Writes to stdout. A reader that has seen enough (`| head`) is success, not an error.
pub fn write(text: Arguments<'_>) {
    if let Err(error) = io::stdout().lock().write_fmt(text) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            exit(0);
        }
        eprintln!("error: cannot write to standard output: {error}");
        exit(1);
    }
}

/// `println!` that ends quietly when the reader is gone.
#[macro_export]
macro_rules! out {
    ($($arg:tt)*) => {
        $crate::output::write(format_args!("{}\n", format_args!($($arg)*)))
    };
}
