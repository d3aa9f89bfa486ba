//! `/proc/PID/stat`, of which a process chooses the name itself.

use alloc::{borrow::ToOwned, string::String};

/// What `top` shows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Name of the program, as the process likes it.
    pub name: String,
    /// Number of the parent.
    pub parent: u32,
    /// Number of the terminal, 0 for none.
    pub tty: u32,
    /// Processor time of its own, in ticks.
    pub user_ticks: u64,
    /// Processor time in the kernel, in ticks.
    pub system_ticks: u64,
    /// Start, in ticks since the machine's.
    pub start_ticks: u64,
}

impl ProcessStat {
    /// Reads the line; `None` when it is none.
    pub fn parse(text: &str) -> Option<Self> {
        let (head, tail) = text.rsplit_once(')')?;
        let (_, name) = head.split_once('(')?;
        // From the third field of the manual page on.
        let mut fields = tail.split_ascii_whitespace().skip(1);
        Some(Self {
            name: name.to_owned(),
            parent: fields.next()?.parse().ok()?,
            tty: fields.nth(2)?.parse().ok()?,
            user_ticks: fields.nth(6)?.parse().ok()?,
            system_ticks: fields.next()?.parse().ok()?,
            start_ticks: fields.nth(6)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_may_look_like_the_rest() {
        let line = "12 (a) S 1 (x) S 7 12 12 34816 12 4194304 1 2 3 4 50 60 0 0 20 0 1 0 777 0 0\n";
        let stat = ProcessStat::parse(line).unwrap();
        assert_eq!(
            (stat.name.as_str(), stat.parent, stat.tty),
            ("a) S 1 (x", 7, 34816)
        );
        assert_eq!(
            (stat.user_ticks, stat.system_ticks, stat.start_ticks),
            (50, 60, 777)
        );
        assert_eq!(ProcessStat::parse("12 (a) S 1"), None);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,80}") {
            let _ = ProcessStat::parse(&text);
        }
    }
}
