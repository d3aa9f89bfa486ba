//! Linux capabilities by name, and a container's set of them by docker's rules.

use alloc::{borrow::ToOwned as _, string::String};

/// Names without `CAP_`, in the order of their numbers (`capabilities(7)`).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// A set of capabilities, bit by number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

/// All that there are.
pub const ALL: Capabilities = Capabilities((1 << NAMES.len()) - 1);
/// Docker's default set: `CHOWN`, `DAC_OVERRIDE`, `FSETID`, `FOWNER`, `MKNOD`, `NET_RAW`,
/// `SETGID`, `SETUID`, `SETFCAP`, `SETPCAP`, `NET_BIND_SERVICE`, `SYS_CHROOT`, `KILL`,
/// `AUDIT_WRITE`.
pub const DEFAULT: Capabilities = Capabilities(0xa804_25fb);

impl Capabilities {
    /// Whether all of `other` are in the set.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A word that names no capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no capability; name one as capabilities(7) does, such as NET_ADMIN, or ALL")]
pub struct UnknownCapability(pub String);

/// The capability or capabilities of a name: with or without `CAP_`, in any case; `ALL`.
pub fn named(name: &str) -> Option<Capabilities> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if bare == "ALL" {
        return Some(ALL);
    }
    let at = NAMES.iter().position(|known| *known == bare)?;
    Some(Capabilities(1 << at))
}

/// A container's capabilities: the default ones without those dropped and with those added.
/// Adding `ALL` starts from all of them, dropping `ALL` from none.
pub fn resolve(add: &[String], drop: &[String]) -> Result<Capabilities, UnknownCapability> {
    let union = |names: &[String]| {
        names.iter().try_fold(0, |bits, name| {
            let found = named(name).ok_or_else(|| UnknownCapability(name.to_owned()))?;
            Ok(bits | found.0)
        })
    };
    let (added, dropped): (u64, u64) = (union(add)?, union(drop)?);
    let all = |bits: u64| bits == ALL.0;
    Ok(Capabilities(if all(added) {
        // `--cap-drop ALL` beside `--cap-add ALL` changes nothing, as in docker.
        if all(dropped) {
            ALL.0
        } else {
            ALL.0 & !dropped
        }
    } else if all(dropped) {
        added
    } else {
        DEFAULT.0 & !dropped | added
    }))
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    fn set(add: &[&str], drop: &[&str]) -> Result<u64, UnknownCapability> {
        let own = |names: &[&str]| {
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>()
        };
        resolve(&own(add), &own(drop)).map(|set| set.0)
    }

    #[test]
    fn names_have_the_kernels_numbers() {
        for (name, number) in [
            ("CHOWN", 0),
            ("NET_ADMIN", 12),
            ("SYS_ADMIN", 21),
            ("MKNOD", 27),
            ("SYSLOG", 34),
            ("CHECKPOINT_RESTORE", 40),
        ] {
            assert_eq!(named(name), Some(Capabilities(1 << number)), "{name}");
        }
        assert_eq!(named("cap_net_admin"), named("NET_ADMIN"));
        assert_eq!(named("all"), Some(ALL));
        assert_eq!(named("CAP_CAP_CHOWN"), None);
    }

    #[test]
    fn adding_and_dropping_is_as_in_docker() {
        let (raw, admin) = (1 << 13, 1 << 12);
        assert_eq!(set(&[], &[]).unwrap(), DEFAULT.0);
        assert_eq!(
            set(&["NET_ADMIN"], &["net_raw"]).unwrap(),
            DEFAULT.0 & !raw | admin
        );
        assert_eq!(
            set(&["NET_ADMIN"], &["NET_ADMIN"]).unwrap(),
            DEFAULT.0 | admin
        );
        assert_eq!(set(&["ALL"], &["NET_RAW"]).unwrap(), ALL.0 & !raw);
        assert_eq!(set(&["NET_RAW"], &["ALL"]).unwrap(), raw);
        assert_eq!(set(&[], &["ALL"]).unwrap(), 0);
        assert_eq!(set(&["NET"], &[]), Err(UnknownCapability("NET".into())));
    }
}
