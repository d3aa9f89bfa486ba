//! How much a container may use: sizes, processor time, and limits of its processes.

use alloc::{borrow::ToOwned as _, string::String};

use serde::{Deserialize, Serialize};

/// The period of processor time that `--cpus` is measured in, in microseconds; docker's.
pub const PERIOD: u64 = 100_000;
/// Least memory of a container in bytes; docker's.
pub const LEAST_MEMORY: u64 = 6 * 1024 * 1024;
/// Bounds of `--cpu-shares`.
const SHARES: (u64, u64) = (2, 262_144);
/// Longest list of processors.
const MAX_LIST: usize = 256;

/// What the container's cgroup limits. Absent means unlimited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Bytes of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 for no limit of swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_swap: Option<i64>,
    /// Bytes of memory that are left to it when memory is short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_reservation: Option<u64>,
    /// Microseconds of processor time in each period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<u64>,
    /// Length of a period in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_period: Option<u64>,
    /// Weight against other containers, 2 to 262144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_shares: Option<u64>,
    /// Processors that it may use, such as `0-1,3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<u64>,
}

/// A value that is no limit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// No size.
    #[error("{0:?} is no size; write a number with the unit b, k, m or g, such as 512m")]
    Size(String),
    /// Too little memory for a container.
    #[error("a memory limit of {0} bytes is too low; the least is 6m")]
    LeastMemory(u64),
    /// A sum of memory and swap below the memory.
    #[error("the limit of memory and swap together must be at least the memory limit, or -1")]
    Swap,
    /// Swap without memory.
    #[error("a limit of memory and swap together needs a memory limit beside it")]
    SwapAlone,
    /// More memory left to it than it may use.
    #[error("the memory reservation must not be above the memory limit")]
    Reservation,
    /// No number of processors.
    #[error("{0:?} is no number of processors; write one such as 1.5, at least 0.01")]
    Cpus(String),
    /// `--cpus` beside its parts.
    #[error("the number of processors and a processor quota or period cannot be given together")]
    CpusTwice,
    /// A quota or a period out of its bounds.
    #[error(
        "{0} is no length of processor time; a period has 1000 to 1000000 microseconds, a quota at least 1000"
    )]
    CpuTime(u64),
    /// A weight out of its bounds.
    #[error("{0} is no processor weight; it is 2 to 262144")]
    Shares(u64),
    /// No list of numbers.
    #[error("{0:?} is no list of numbers; write one such as 0-1,3")]
    List(String),
    /// No limit of processes.
    #[error("{0:?} is no process limit; write NAME=SOFT[:HARD], such as nofile=1024:4096")]
    Ulimit(String),
    /// A limit that Linux does not have.
    #[error("{0:?} is no process limit of Linux; those are: {names}", names = ULIMITS.map(|(name, _)| name).join(", "))]
    UlimitName(String),
    /// More than the highest.
    #[error("process limit {0}: the soft value is above the hard one")]
    UlimitOrder(String),
}

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Checks what the values say together.
    pub fn check(&self) -> Result<(), LimitError> {
        if let Some(memory) = self.memory.filter(|&bytes| bytes < LEAST_MEMORY) {
            return Err(LimitError::LeastMemory(memory));
        }
        match (self.memory, self.memory_swap) {
            (None, Some(1..)) => return Err(LimitError::SwapAlone),
            (Some(memory), Some(sum @ 1..)) if sum.unsigned_abs() < memory => {
                return Err(LimitError::Swap);
            }
            (_, Some(i64::MIN..=-2)) => return Err(LimitError::Swap),
            _ => {}
        }
        if let (Some(memory), Some(reserved)) = (self.memory, self.memory_reservation)
            && reserved > memory
        {
            return Err(LimitError::Reservation);
        }
        if let Some(period) = self
            .cpu_period
            .filter(|period| !(1000..=1_000_000).contains(period))
        {
            return Err(LimitError::CpuTime(period));
        }
        if let Some(quota) = self.cpu_quota.filter(|&quota| quota < 1000) {
            return Err(LimitError::CpuTime(quota));
        }
        if let Some(shares) = self
            .cpu_shares
            .filter(|shares| !(SHARES.0..=SHARES.1).contains(shares))
        {
            return Err(LimitError::Shares(shares));
        }
        for list in self.cpuset_cpus.iter().chain(&self.cpuset_mems) {
            check_list(list)?;
        }
        Ok(())
    }

    /// `cpu.weight` of the cgroup: 1 to 10000 for 2 to 262144.
    pub fn cpu_weight(&self) -> Option<u64> {
        let shares = self.cpu_shares?.clamp(SHARES.0, SHARES.1);
        Some(1 + (shares - SHARES.0) * 9999 / (SHARES.1 - SHARES.0))
    }

    /// `memory.swap.max` of the cgroup. Without a word about swap there may be as much of it as of
    /// memory, as in docker; `None` for no limit.
    pub fn swap(&self) -> Option<u64> {
        let memory = self.memory?;
        match self.memory_swap {
            Some(..=-1) => None,
            // 0 counts as absent.
            Some(0) | None => Some(memory),
            Some(sum) => Some(sum.unsigned_abs().saturating_sub(memory)),
        }
    }
}

/// A size in bytes: `512m`, `1.5g`, `100kb`, `64MiB`; units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, LimitError> {
    let error = || LimitError::Size(text.to_owned());
    let lower = text.to_ascii_lowercase();
    let digits_end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at_checked(digits_end).ok_or_else(error)?;
    let shift = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(error()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || (number.contains('.') && fraction.is_empty()) {
        return Err(error());
    }
    let unit = 1_u64 << shift;
    let whole: u64 = whole.parse().map_err(|_| error())?;
    let part = if fraction.is_empty() {
        0
    } else {
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| error())?);
        let digits: u128 = fraction.parse().map_err(|_| error())?;
        u64::try_from(digits * u128::from(unit) / scale).map_err(|_| error())?
    };
    let bytes = whole
        .checked_mul(unit)
        .and_then(|bytes| bytes.checked_add(part));
    bytes
        .filter(|&bytes| i64::try_from(bytes).is_ok())
        .ok_or_else(error)
}

/// Microseconds of a [`PERIOD`] for a number of processors such as `1.5`.
pub fn parse_cpus(text: &str) -> Result<u64, LimitError> {
    let error = || LimitError::Cpus(text.to_owned());
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole)
        || !digits(fraction)
        || whole.len() > 6
        || (whole.is_empty() && fraction.is_empty())
    {
        return Err(error());
    }
    let whole: u64 = if whole.is_empty() {
        0
    } else {
        whole.parse().map_err(|_| error())?
    };
    // A period has 10^5 parts: further digits change nothing.
    let part = fraction
        .bytes()
        .chain([b'0'; 5])
        .take(5)
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let quota = whole * PERIOD + part;
    if quota < 1000 {
        return Err(error());
    }
    Ok(quota)
}

fn check_list(text: &str) -> Result<(), LimitError> {
    let error = || LimitError::List(text.to_owned());
    let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
    if text.is_empty() || text.len() > MAX_LIST {
        return Err(error());
    }
    for part in text.split(',') {
        let fine = match part.split_once('-') {
            Some((low, high)) => {
                matches!((number(low), number(high)), (Some(low), Some(high)) if low <= high)
            }
            None => number(part).is_some(),
        };
        if !fine {
            return Err(error());
        }
    }
    Ok(())
}

/// Names of process limits with the kernel's numbers, the same on both architectures.
const ULIMITS: [(&str, u32); 16] = [
    ("as", 9),
    ("core", 4),
    ("cpu", 0),
    ("data", 2),
    ("fsize", 1),
    ("locks", 10),
    ("memlock", 8),
    ("msgqueue", 12),
    ("nice", 13),
    ("nofile", 7),
    ("nproc", 6),
    ("rss", 5),
    ("rtprio", 14),
    ("rttime", 15),
    ("sigpending", 11),
    ("stack", 3),
];

/// A limit of each process (`setrlimit(2)`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its name, such as `nofile`.
    pub name: String,
    /// What holds at first; absent for unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soft: Option<u64>,
    /// Up to where a process may raise it; absent for unlimited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hard: Option<u64>,
}

impl Ulimit {
    /// Reads `NAME=SOFT[:HARD]`; -1 is unlimited.
    pub fn parse(text: &str) -> Result<Self, LimitError> {
        let error = || LimitError::Ulimit(text.to_owned());
        let (name, values) = text.split_once('=').ok_or_else(error)?;
        let value = |text: &str| match text {
            "-1" | "unlimited" => Ok(None),
            text if text.starts_with('+') => Err(error()),
            text => text.parse().map(Some).map_err(|_| error()),
        };
        let (soft, hard) = values.split_once(':').unwrap_or((values, values));
        let limit = Self {
            name: name.to_owned(),
            soft: value(soft)?,
            hard: value(hard)?,
        };
        limit.number()?;
        Ok(limit)
    }

    /// The kernel's number, when name and values are right.
    pub fn number(&self) -> Result<u32, LimitError> {
        let known = ULIMITS.iter().find(|(name, _)| *name == self.name);
        let (_, number) = known.ok_or_else(|| LimitError::UlimitName(self.name.clone()))?;
        let highest = u64::MAX;
        if self.soft.unwrap_or(highest) > self.hard.unwrap_or(highest) {
            return Err(LimitError::UlimitOrder(self.name.clone()));
        }
        Ok(*number)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("10b", 10),
            ("6m", 6 << 20),
            ("512M", 512 << 20),
            ("64MiB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2GB", 2 << 30),
            ("100k", 102_400),
            ("0.5k", 512),
            ("1t", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "m",
            "-1",
            "1x",
            "1.m",
            ".5g",
            "1..2",
            "1 2",
            "99999999999g",
            "1.1234567890k",
            "é",
            "1é",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn processors() {
        for (text, quota) in [
            ("1", 100_000),
            ("1.5", 150_000),
            (".5", 50_000),
            ("0.01", 1000),
            ("2.", 200_000),
            ("0.1234567", 12_345),
        ] {
            assert_eq!(parse_cpus(text), Ok(quota), "{text}");
        }
        for bad in ["", ".", "0", "0.001", "-1", "1e3", "x", "9999999"] {
            assert!(parse_cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn limits_of_a_group() {
        let memory = |memory: u64| Limits {
            memory: Some(memory),
            ..Limits::default()
        };
        assert!(memory(LEAST_MEMORY).check().is_ok());
        assert!(memory(LEAST_MEMORY - 1).check().is_err());
        let swap = |sum: i64| Limits {
            memory_swap: Some(sum),
            ..memory(64 << 20)
        };
        assert_eq!(swap(-1).swap(), None);
        assert_eq!(swap(0).swap(), Some(64 << 20));
        assert_eq!(swap(96 << 20).swap(), Some(32 << 20));
        assert_eq!(memory(64 << 20).swap(), Some(64 << 20));
        assert!(swap(96 << 20).check().is_ok() && swap(-1).check().is_ok());
        assert!(swap(32 << 20).check().is_err() && swap(-2).check().is_err());
        let alone = Limits {
            memory_swap: Some(1 << 30),
            ..Limits::default()
        };
        assert_eq!(alone.check(), Err(LimitError::SwapAlone));
        let reserved = Limits {
            memory_reservation: Some(65 << 20),
            ..memory(64 << 20)
        };
        assert_eq!(reserved.check(), Err(LimitError::Reservation));
        let weight = |shares| Limits {
            cpu_shares: Some(shares),
            ..Limits::default()
        };
        assert_eq!(weight(2).cpu_weight(), Some(1));
        assert_eq!(weight(1024).cpu_weight(), Some(39));
        assert_eq!(weight(262_144).cpu_weight(), Some(10_000));
        assert!(weight(1).check().is_err());
        for (list, good) in [
            ("0", true),
            ("0-3,5", true),
            ("", false),
            ("3-1", false),
            ("a", false),
            ("0,,1", false),
            ("+1", false),
            ("1\n", false),
        ] {
            let limits = Limits {
                cpuset_cpus: Some(list.to_owned()),
                ..Limits::default()
            };
            assert_eq!(limits.check().is_ok(), good, "{list}");
        }
    }

    #[test]
    fn process_limits() {
        let limit = |soft, hard| Ulimit {
            name: "nofile".to_owned(),
            soft,
            hard,
        };
        assert_eq!(
            Ulimit::parse("nofile=10").unwrap(),
            limit(Some(10), Some(10))
        );
        assert_eq!(
            Ulimit::parse("nofile=10:20").unwrap(),
            limit(Some(10), Some(20))
        );
        assert_eq!(
            Ulimit::parse("nofile=10:-1").unwrap(),
            limit(Some(10), None)
        );
        assert_eq!(Ulimit::parse("nofile=-1").unwrap().number(), Ok(7));
        for bad in [
            "",
            "nofile",
            "nofile=",
            "nofile=x",
            "files=1",
            "nofile=2:1",
            "nofile=-1:5",
            "nofile=1:2:3",
            "nofile=+1",
        ] {
            assert!(Ulimit::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn sizes_never_overflow(text in "[0-9.]{0,25}[bkmgtBKMGT]?[iI]?[bB]?") {
            if let Ok(bytes) = parse_size(&text) {
                prop_assert!(i64::try_from(bytes).is_ok());
            }
        }

        #[test]
        fn whole_sizes_are_what_they_say(number in 0_u64..1 << 20, shift in 0_usize..4) {
            let unit = ["b", "k", "m", "g"][shift];
            let text = alloc::format!("{number}{unit}");
            prop_assert_eq!(parse_size(&text), Ok(number << (10 * shift)));
        }

        #[test]
        fn any_text_is_a_limit_or_an_error(text in "\\PC{0,30}") {
            let _ = (parse_size(&text), parse_cpus(&text), Ulimit::parse(&text), check_list(&text));
        }
    }
}
