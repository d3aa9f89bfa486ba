//! Profiles in the format of docker's `--security-opt seccomp=FILE`.

use alloc::{borrow::ToOwned as _, string::String, vec, vec::Vec};

use serde::Deserialize;

use super::{Action, Comparison, Condition, EPERM, Machine, Profile, Rule, Syscall};
use crate::container::capability::{self, Capabilities};

/// Longest profile in bytes.
pub const MAX_PROFILE: usize = 512 * 1024;

/// A text that is no profile.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// It is too long.
    #[error("the seccomp profile has {0} bytes; the most is {MAX_PROFILE}")]
    TooLong(usize),
    /// It is no JSON of the expected form.
    #[error("the seccomp profile cannot be read: {0}")]
    Json(String),
    /// An action that does not exist, or that cannot be had.
    #[error("the seccomp profile has the action {0:?}, which is not supported")]
    Action(String),
    /// A comparison that does not exist.
    #[error("the seccomp profile has the comparison {0:?}, which is not known")]
    Comparison(String),
    /// System calls have six arguments.
    #[error("the seccomp profile names argument {0}; system calls have the arguments 0 to 5")]
    Argument(u32),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    #[serde(default)]
    default_errno_ret: Option<u16>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    #[serde(default)]
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Circumstances>,
    #[serde(default)]
    excludes: Option<Circumstances>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u32,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Circumstances {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// Reads a profile for a machine, a container's capabilities and a kernel (`major`, `minor`).
///
/// Names that no architecture here has are left out, as docker does.
pub fn parse_profile(
    text: &str,
    machine: Machine,
    capabilities: Capabilities,
    kernel: (u32, u32),
) -> Result<Profile, ProfileError> {
    if text.len() > MAX_PROFILE {
        return Err(ProfileError::TooLong(text.len()));
    }
    let document: Document = serde_json::from_str(text)
        .map_err(|error| ProfileError::Json(alloc::format!("{error}")))?;
    let mut rules = Vec::new();
    for entry in document.syscalls.unwrap_or_default() {
        let action = action(&entry.action, entry.errno_ret)?;
        let conditions: Vec<Condition> = entry
            .args
            .unwrap_or_default()
            .iter()
            .map(condition)
            .collect::<Result<_, _>>()?;
        let here =
            |circumstances: &Circumstances| Match::of(circumstances, machine, capabilities, kernel);
        let included = entry.includes.as_ref().is_none_or(|some| here(some).all());
        let excluded = entry.excludes.as_ref().is_some_and(|some| here(some).any());
        if !included || excluded {
            continue;
        }
        let calls: Vec<Syscall> = entry
            .names
            .iter()
            .flatten()
            .chain(&entry.name)
            .filter_map(|name| Syscall::named(name))
            .collect();
        for conditions in alternatives(conditions) {
            rules.push(Rule {
                calls: calls.clone(),
                action,
                conditions,
            });
        }
    }
    Ok(Profile {
        otherwise: action(&document.default_action, document.default_errno_ret)?,
        rules,
    })
}

/// Several conditions on one argument are alternatives, as docker's runtime takes them.
fn alternatives(conditions: Vec<Condition>) -> Vec<Vec<Condition>> {
    let doubled = conditions.iter().enumerate().any(|(at, one)| {
        let before = conditions.get(..at).unwrap_or_default();
        before.iter().any(|other| other.index == one.index)
    });
    if doubled {
        conditions.into_iter().map(|one| vec![one]).collect()
    } else {
        vec![conditions]
    }
}

fn action(word: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    // The kernel takes no higher error number.
    let number = errno.unwrap_or(EPERM).min(4095);
    Ok(match word {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(number),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(number),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(ProfileError::Action(other.to_owned())),
    })
}

fn condition(argument: &Argument) -> Result<Condition, ProfileError> {
    let comparison = match argument.op.as_str() {
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual,
        other => return Err(ProfileError::Comparison(other.to_owned())),
    };
    let index = u8::try_from(argument.index)
        .ok()
        .filter(|&index| index < 6)
        .ok_or(ProfileError::Argument(argument.index))?;
    Ok(Condition {
        index,
        comparison,
        value: argument.value,
        second: argument.value_two,
    })
}

/// What of some circumstances is the case; `None` for what they do not speak of.
struct Match {
    capabilities: Option<bool>,
    /// One entry a capability.
    any_capability: bool,
    machine: Option<bool>,
    kernel: Option<bool>,
}

impl Match {
    fn of(
        circumstances: &Circumstances,
        machine: Machine,
        capabilities: Capabilities,
        kernel: (u32, u32),
    ) -> Self {
        let has =
            |name: &String| capability::named(name).is_some_and(|one| capabilities.contains(one));
        let names = circumstances.caps.as_deref().unwrap_or_default();
        let arches = circumstances.arches.as_deref().unwrap_or_default();
        Self {
            capabilities: (!names.is_empty()).then(|| names.iter().all(has)),
            any_capability: names.iter().any(has),
            machine: (!arches.is_empty()).then(|| arches.iter().any(|arch| arch == machine.word())),
            kernel: circumstances
                .min_kernel
                .as_deref()
                .filter(|text| !text.is_empty())
                .map(|text| version(text).is_some_and(|least| kernel >= least)),
        }
    }

    fn all(&self) -> bool {
        [self.capabilities, self.machine, self.kernel]
            .into_iter()
            .flatten()
            .all(|holds| holds)
    }

    fn any(&self) -> bool {
        self.any_capability || self.machine == Some(true) || self.kernel == Some(true)
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
