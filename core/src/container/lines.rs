//! Which lines of a log are shown, and how. The log has bytes as they came; a line may come in
//! several pieces, and those of the two streams may lie between each other.

use alloc::vec::Vec;

use crate::channel::Pipe;
use crate::time::rfc3339;

/// What is wanted of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Want {
    /// So many lines at the start are left out, of those that the times leave.
    pub skip: u64,
    /// The earliest time, in nanoseconds since 1970.
    pub since_ns: u64,
    /// The latest time.
    pub until_ns: u64,
    /// A time before each line.
    pub timestamps: bool,
}

impl Default for Want {
    fn default() -> Self {
        Self {
            skip: 0,
            since_ns: 0,
            until_ns: u64::MAX,
            timestamps: false,
        }
    }
}

/// Goes through a log from its start.
#[derive(Clone, Debug)]
pub struct Lines {
    want: Want,
    /// Lines that have begun.
    begun: u64,
    stdout: Line,
    stderr: Line,
}

/// The line that a stream is in.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// It has begun and has no end yet.
    open: bool,
    shown: bool,
}

impl Lines {
    /// At the start.
    pub fn new(want: Want) -> Self {
        Self {
            want,
            begun: 0,
            stdout: Line::default(),
            stderr: Line::default(),
        }
    }

    /// Counts the lines that begin in these bytes.
    pub fn count(&mut self, pipe: Pipe, time_ns: u64, bytes: &[u8]) {
        self.each(pipe, time_ns, bytes, |_, _, _| {});
    }

    /// How many lines have begun, of those that the times leave.
    pub fn counted(&self) -> u64 {
        self.begun
    }

    /// What is to be shown of these bytes.
    pub fn show(&mut self, pipe: Pipe, time_ns: u64, bytes: &[u8]) -> Vec<u8> {
        let timestamps = self.want.timestamps;
        let mut shown = Vec::new();
        self.each(pipe, time_ns, bytes, |line, first, wanted| {
            if !wanted {
                return;
            }
            if first && timestamps {
                shown.extend_from_slice(rfc3339(time_ns).as_bytes());
                shown.push(b' ');
            }
            shown.extend_from_slice(line);
        });
        shown
    }

    /// Calls with each piece of a line, whether it is the line's first, and whether the line is
    /// wanted.
    fn each(
        &mut self,
        pipe: Pipe,
        time_ns: u64,
        bytes: &[u8],
        mut call: impl FnMut(&[u8], bool, bool),
    ) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = if pipe == Pipe::Stderr {
                &mut self.stderr
            } else {
                &mut self.stdout
            };
            let first = !line.open;
            if first {
                let in_time = (self.want.since_ns..=self.want.until_ns).contains(&time_ns);
                line.shown = in_time && self.begun >= self.want.skip;
                self.begun += u64::from(in_time);
            }
            line.open = piece.last() != Some(&b'\n');
            call(piece, first, line.shown);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::String;

    use proptest::prelude::*;

    use super::*;

    const LOG: &[(Pipe, u64, &[u8])] = &[
        (Pipe::Stdout, 10, b"one\ntw"),
        (Pipe::Stderr, 20, b"warn\n"),
        (Pipe::Stdout, 30, b"o\nthree"),
    ];

    fn shown(want: Want) -> String {
        let mut lines = Lines::new(want);
        let bytes: Vec<u8> = LOG
            .iter()
            .flat_map(|(pipe, time, bytes)| lines.show(*pipe, *time, bytes))
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_are_whole_wherever_they_were_cut() {
        let all = Want::default();
        assert_eq!(shown(all), "one\ntwwarn\no\nthree");
        assert_eq!(shown(Want { skip: 1, ..all }), "twwarn\no\nthree");
        assert_eq!(shown(Want { skip: 2, ..all }), "warn\nthree");
        assert_eq!(shown(Want { skip: 3, ..all }), "three");
        assert_eq!(shown(Want { skip: 4, ..all }), "");
        assert_eq!(
            shown(Want {
                since_ns: 20,
                ..all
            }),
            "warn\nthree"
        );
        assert_eq!(
            shown(Want {
                until_ns: 10,
                ..all
            }),
            "one\ntwo\n"
        );
        assert_eq!(
            shown(Want {
                since_ns: 20,
                skip: 1,
                ..all
            }),
            "three"
        );
        let mut lines = Lines::new(all);
        for (pipe, time, bytes) in LOG {
            lines.count(*pipe, *time, bytes);
        }
        assert_eq!(lines.counted(), 4);
    }

    #[test]
    fn a_time_stands_before_each_line_once() {
        let text = shown(Want {
            timestamps: true,
            skip: 3,
            ..Want::default()
        });
        assert_eq!(text, "1970-01-01T00:00:00.000000030Z three");
        let text = shown(Want {
            timestamps: true,
            ..Want::default()
        });
        assert_eq!(text.matches('Z').count(), 4, "{text}");
    }

    proptest! {
        #[test]
        fn without_wishes_everything_is_shown(pieces in proptest::collection::vec("[ab\n]{0,9}", 0..9)) {
            let mut lines = Lines::new(Want::default());
            let shown: Vec<u8> =
                pieces.iter().flat_map(|piece| lines.show(Pipe::Stdout, 0, piece.as_bytes())).collect();
            prop_assert_eq!(String::from_utf8(shown).unwrap(), pieces.concat());
        }

        #[test]
        fn the_tail_has_as_many_lines_as_asked(text in "[ab\n]{0,60}", cut in 0..60_usize, tail in 0..9_u64) {
            let bytes = text.as_bytes();
            let (left, right) = bytes.split_at(cut.min(bytes.len()));
            let mut lines = Lines::new(Want::default());
            lines.count(Pipe::Stdout, 0, left);
            lines.count(Pipe::Stdout, 0, right);
            let skip = lines.counted().saturating_sub(tail);
            let mut lines = Lines::new(Want { skip, ..Want::default() });
            let mut shown = lines.show(Pipe::Stdout, 0, left);
            shown.extend(lines.show(Pipe::Stdout, 0, right));
            let all: Vec<&[u8]> = bytes.split_inclusive(|b| *b == b'\n').collect();
            let first = all.len().saturating_sub(tail as usize);
            prop_assert_eq!(shown, all[first..].concat());
        }
    }
}
