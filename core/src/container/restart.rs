//! When a container that has ended starts again.

use alloc::string::String;
use core::fmt;

use serde::{Deserialize, Serialize};

/// First pause before a restart, in milliseconds; each further one is twice as long.
const FIRST_PAUSE_MS: u64 = 100;
/// Longest pause.
const LONGEST_PAUSE_MS: u64 = 60_000;
/// A container that ran for so long was well: its next pause is the first again.
const WELL_MS: u64 = 10_000;

/// `--restart`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always, also when the machine starts.
    Always,
    /// Always, but not at the machine's start when the user had stopped it.
    UnlessStopped,
    /// After a status other than 0, so often at most; 0 for any number.
    OnFailure {
        /// Most restarts.
        max: u32,
    },
}

/// No policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: it is one of no, always, unless-stopped, on-failure[:N]")]
pub struct PolicyError(String);

impl RestartPolicy {
    /// Reads `no`, `always`, `unless-stopped`, `on-failure`, `on-failure:N`.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        match text {
            "no" | "" => Ok(Self::No),
            "always" => Ok(Self::Always),
            "unless-stopped" => Ok(Self::UnlessStopped),
            "on-failure" => Ok(Self::OnFailure { max: 0 }),
            _ => text
                .strip_prefix("on-failure:")
                .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()))
                .and_then(|digits| digits.parse().ok())
                .map(|max| Self::OnFailure { max })
                .ok_or_else(|| PolicyError(text.chars().take(80).collect())),
        }
    }

    /// Docker's word for it, and the most restarts.
    pub fn name(self) -> (&'static str, u32) {
        match self {
            Self::No => ("no", 0),
            Self::Always => ("always", 0),
            Self::UnlessStopped => ("unless-stopped", 0),
            Self::OnFailure { max } => ("on-failure", max),
        }
    }

    /// Whether a container that ended with `status`, after `restarts` of them, starts again.
    pub fn again(self, status: i32, stopped_by_user: bool, restarts: u32) -> bool {
        !stopped_by_user
            && match self {
                Self::No => false,
                Self::Always | Self::UnlessStopped => true,
                Self::OnFailure { max } => status != 0 && (max == 0 || restarts < max),
            }
    }

    /// Whether a container that is not running starts with the machine.
    pub fn at_start(self, stopped_by_user: bool) -> bool {
        match self {
            Self::Always => true,
            Self::UnlessStopped => !stopped_by_user,
            Self::No | Self::OnFailure { .. } => false,
        }
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            (name, 0) => f.write_str(name),
            (name, max) => write!(f, "{name}:{max}"),
        }
    }
}

/// The pause before the next restart, from the one before (0 for none) and how long it ran.
pub fn pause_ms(before_ms: u64, ran_ms: u64) -> u64 {
    if ran_ms >= WELL_MS || before_ms == 0 {
        FIRST_PAUSE_MS
    } else {
        before_ms.saturating_mul(2).min(LONGEST_PAUSE_MS)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn policies_are_read_and_written_alike() {
        for text in [
            "no",
            "always",
            "unless-stopped",
            "on-failure",
            "on-failure:7",
        ] {
            assert_eq!(RestartPolicy::parse(text).unwrap().to_string(), text);
        }
        for bad in [
            "on-failure:",
            "on-failure:-1",
            "on-failure:+1",
            "never",
            "Always",
            "always:1",
        ] {
            assert!(RestartPolicy::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_starts_again() {
        let few = RestartPolicy::OnFailure { max: 2 };
        assert!(few.again(1, false, 0) && few.again(1, false, 1));
        assert!(!few.again(1, false, 2) && !few.again(0, false, 0) && !few.again(1, true, 0));
        assert!(RestartPolicy::OnFailure { max: 0 }.again(1, false, 1000));
        assert!(RestartPolicy::Always.again(0, false, 1000));
        assert!(!RestartPolicy::Always.again(0, true, 0));
        assert!(!RestartPolicy::No.again(1, false, 0));
        assert!(RestartPolicy::Always.at_start(true));
        assert!(!RestartPolicy::UnlessStopped.at_start(true));
        assert!(RestartPolicy::UnlessStopped.at_start(false));
        assert!(!few.at_start(false));
    }

    #[test]
    fn pauses_grow_until_it_is_well() {
        assert_eq!(pause_ms(0, 5), 100);
        assert_eq!(pause_ms(100, 5), 200);
        assert_eq!(pause_ms(60_000, 5), 60_000);
        assert_eq!(pause_ms(60_000, 10_000), 100);
    }

    proptest! {
        #[test]
        fn never_panics(text in ".{0,24}") {
            if let Ok(policy) = RestartPolicy::parse(&text) {
                prop_assert_eq!(RestartPolicy::parse(&policy.to_string()), Ok(policy));
            }
        }
    }
}
