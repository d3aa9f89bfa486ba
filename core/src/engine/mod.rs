//! Container engines that a target's image may carry beside the agent's own runtime, and what is said to
//! them: the Docker Engine API, which podman speaks as well.

use alloc::{format, string::String};
use core::{fmt, str::FromStr};

use serde_json::Value;

use rows::text;

pub mod create;
pub mod frames;
pub mod http;
pub mod rounds;
pub mod rows;

/// What keeps images and runs containers on a target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// The agent itself.
    #[default]
    Native,
    /// Docker's engine.
    Docker,
    /// podman, through the service that speaks docker's API.
    Podman,
}

/// A word that names no engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown engine {0:?}: it is one of native, docker, podman")]
pub struct UnknownEngine(String);

impl EngineKind {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }

    /// The socket that it listens on unless it is told otherwise; the agent itself has none.
    pub fn socket(self) -> Option<&'static str> {
        match self {
            Self::Native => None,
            Self::Docker => Some("/run/docker.sock"),
            Self::Podman => Some("/run/podman/podman.sock"),
        }
    }

    /// The unit of systemd that has it listen.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Native => "vdkr-agent",
            Self::Docker => "docker",
            Self::Podman => "podman.socket",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(text: &str) -> Result<Self, UnknownEngine> {
        match text {
            "native" => Ok(Self::Native),
            "docker" => Ok(Self::Docker),
            "podman" => Ok(Self::Podman),
            _ => Err(UnknownEngine(text.chars().take(80).collect())),
        }
    }
}

/// The newest version of docker's API that requests are written for.
const NEWEST: (u32, u32) = (1, 45);
/// The first release of docker's engine that loads archives with layers in zstd.
const FIRST_WITH_ZSTD: u32 = 23;

/// What stands before the paths of requests to an engine that says this of its versions: the newest one
/// that both know. Nothing for an engine that names none.
pub fn path_prefix(said: &Value) -> String {
    let version = |name: &str| numbers(text(said, name));
    let Some(its) = version("ApiVersion") else {
        return String::new();
    };
    let oldest = version("MinAPIVersion").unwrap_or_default();
    let (major, minor) = its.min(NEWEST).max(oldest);
    format!("/v{major}.{minor}")
}

/// Whether an engine of this version inflates layers in zstd that an archive has.
pub fn reads_zstd(kind: EngineKind, version: &str) -> bool {
    match kind {
        EngineKind::Podman => true,
        _ => numbers(version).is_some_and(|(major, _)| major >= FIRST_WITH_ZSTD),
    }
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next()?.parse().ok();
    Some((next()?, next()?))
}

/// The container was not created.
pub const NOT_CREATED: i32 = 125;

/// The status that `docker run` and `docker exec` give for an engine's words about a command that did
/// not start: 127 when there is no such program, 126 when it cannot be executed, else 125.
pub fn start_status(words: &str) -> i32 {
    let has = |known: &[&str]| known.iter().any(|known| words.contains(known));
    if has(&[
        "executable file not found",
        "executable file `",
        "no such file or directory",
        "No such file or directory",
        "not found in $PATH",
    ]) {
        127
    } else if has(&[
        "permission denied",
        "Permission denied",
        "is a directory",
        "Is a directory",
        "exec format error",
        "Exec format error",
        "not a directory",
    ]) {
        126
    } else {
        NOT_CREATED
    }
}

/// Whether a word can be a container's name or id: nothing else goes into a request's path.
pub fn is_container_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;

    #[test]
    fn words_name_engines() {
        for kind in [EngineKind::Native, EngineKind::Docker, EngineKind::Podman] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            assert_eq!(kind.socket().is_none(), kind == EngineKind::Native);
        }
        let error = "lxc".parse::<EngineKind>().unwrap_err().to_string();
        assert!(error.contains("native, docker, podman"), "{error}");
    }

    #[test]
    fn versions_of_the_api_are_those_that_both_know() {
        let prefix = |its: &str, oldest: &str| {
            path_prefix(&serde_json::json!({"ApiVersion": its, "MinAPIVersion": oldest}))
        };
        assert_eq!(prefix("1.41", "1.12"), "/v1.41");
        assert_eq!(prefix("1.45", "1.24"), "/v1.45");
        assert_eq!(prefix("1.52", "1.44"), "/v1.45");
        assert_eq!(prefix("1.60", "1.50"), "/v1.50");
        assert_eq!(prefix("1.9", ""), "/v1.9");
        assert_eq!(prefix("", "1.24"), "");
        assert_eq!(path_prefix(&Value::Null), "");
        for (kind, version, reads) in [
            (EngineKind::Docker, "20.10.24+dfsg1", false),
            (EngineKind::Docker, "23.0.0", true),
            (EngineKind::Docker, "26.1.5+dfsg1", true),
            (EngineKind::Docker, "dev", false),
            (EngineKind::Podman, "4.3.1", true),
        ] {
            assert_eq!(reads_zstd(kind, version), reads, "{kind} {version}");
        }
    }

    #[test]
    fn statuses_are_dockers() {
        for (words, status) in [
            (
                "failed to create task: runc create failed: exec: \"x\": executable file not found in $PATH: unknown",
                127,
            ),
            (
                "crun: executable file `nope` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found",
                127,
            ),
            ("exec: \"/etc/passwd\": permission denied: unknown", 126),
            ("exec: \"/\": is a directory", 126),
            ("cgroups: cannot find cgroup mount destination", 125),
        ] {
            assert_eq!(start_status(words), status, "{words}");
        }
    }

    #[test]
    fn names_of_containers() {
        for good in ["a", "web-1", "0f", "A_b.c"] {
            assert!(is_container_name(good), "{good}");
        }
        for bad in ["", "a/b", "..", "a?b", "a b", "ä", "%2e"] {
            assert!(!is_container_name(bad), "{bad}");
        }
    }
}
