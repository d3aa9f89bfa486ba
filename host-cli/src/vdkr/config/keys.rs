//! The table of keys that the configuration file may hold.

use std::str::FromStr as _;

use vdkr_core::{candidates::RegistryPrefix, target::TargetAddress};

use super::{ConfigError, MIRROR};
use crate::{
    vdkr::value::{
        absolute, check_insecure, list, parse_bool, parse_memory, parse_room, parse_seconds,
    },
    vm::{
        accel::AccelWish,
        arch::Arch,
        processor::{CpuWish, parse_cpus},
        start::BoardWish,
    },
};

/// The value of `registry` that means none, not even the one in the machine's image.
pub const NO_REGISTRY: &str = "none";
/// The value of `target` that means none: a virtual machine of this program.
pub const NO_TARGET: &str = "none";

/// A key that takes one value.
#[derive(Debug)]
pub struct Key {
    /// Its name in the file and for `vconfig`.
    pub name: &'static str,
    /// The variable that beats the file.
    pub variable: &'static str,
    /// What holds when nobody says anything, as shown to the user.
    pub default: &'static str,
    /// What it is for.
    pub help: &'static str,
    /// Checks a value and gives its normal form.
    check: fn(&str) -> Result<String, String>,
}

/// Every key but `mirror`, in the order in which they are listed.
pub const KEYS: &[Key] = &[
    Key {
        name: "arch",
        variable: "VDKR_ARCH",
        default: "",
        help: "architecture of the virtual machine",
        check: |text| {
            Arch::from_str(text)
                .map(|arch| arch.to_string())
                .map_err(|e| e.to_string())
        },
    },
    Key {
        name: "target",
        variable: "VDKR_TARGET",
        default: "",
        help: "board or full image to talk to: vsock:CID[:PORT], vsock:PATH[:PORT], serial:PATH or unix:PATH",
        check: |text| {
            if text == NO_TARGET {
                return Ok(text.to_owned());
            }
            TargetAddress::from_str(text)
                .map(|address| address.to_string())
                .map_err(|e| e.to_string())
        },
    },
    Key {
        name: "registry",
        variable: "VDKR_REGISTRY",
        default: "",
        help: "registry that is asked first, host[:port][/namespace]",
        check: |text| {
            if text == NO_REGISTRY {
                return Ok(text.to_owned());
            }
            RegistryPrefix::parse(text)
                .map(|_| text.to_owned())
                .map_err(|e| format!("{text:?}: {e}"))
        },
    },
    Key {
        name: "insecure-registry",
        variable: "VDKR_INSECURE_REGISTRY",
        default: "",
        help: "hosts that may be spoken to without TLS, separated by commas",
        check: |text| {
            let hosts = list(text);
            hosts.iter().try_for_each(|host| check_insecure(host))?;
            Ok(hosts.join(","))
        },
    },
    Key {
        name: "secure-registry",
        variable: "VDKR_SECURE_REGISTRY",
        default: "false",
        help: "speak TLS to the registry on this computer too",
        check: |text| parse_bool(text).map(|value| value.to_string()),
    },
    Key {
        name: "ca-cert",
        variable: "VDKR_CA_CERT",
        default: "",
        help: "file of PEM certificates that are trusted too",
        check: |text| absolute(text),
    },
    Key {
        name: "accel",
        variable: "VDKR_ACCEL",
        default: "auto",
        help: "auto, kvm or tcg",
        check: |text| {
            AccelWish::from_str(text)
                .map(|_| text.to_owned())
                .map_err(|e| e.to_string())
        },
    },
    Key {
        name: "machine",
        variable: "VDKR_MACHINE",
        default: "auto",
        help: "auto, microvm, q35 or virt",
        check: |text| {
            BoardWish::from_str(text)
                .map(|_| text.to_owned())
                .map_err(|e| e.to_string())
        },
    },
    Key {
        name: "memory",
        variable: "VDKR_MEMORY",
        default: "512M",
        help: "memory of the virtual machine",
        check: |text| parse_memory(text).map(|_| text.to_owned()),
    },
    Key {
        name: "cpu",
        variable: "VDKR_CPU",
        default: "auto",
        help: "model of its processors, as the emulator's -cpu takes it, such as max,-erms",
        check: |text| {
            CpuWish::from_str(text)
                .map(|wish| wish.to_string())
                .map_err(|e| e.to_string())
        },
    },
    Key {
        name: "cpus",
        variable: "VDKR_CPUS",
        default: "1",
        help: "number of processors of the virtual machine",
        check: |text| parse_cpus(text).map(|number| number.to_string()),
    },
    Key {
        name: "state-dir",
        variable: "VDKR_STATE_ROOT",
        default: "~/.vdkr",
        help: "directory with a state directory for each architecture and instance",
        check: |text| absolute(text),
    },
    Key {
        name: "blob-dir",
        variable: "VDKR_BLOB_DIR",
        default: "",
        help: "directory with the virtual machine images",
        check: |text| absolute(text),
    },
    Key {
        name: "pull-in",
        variable: "VDKR_PULL_IN",
        default: "host",
        help: "where images are pulled, loaded and unpacked: host or guest",
        check: |text| match text {
            "host" | "guest" => Ok(text.to_owned()),
            other => Err(format!("{other:?} is neither host nor guest")),
        },
    },
    Key {
        name: "layer-cache",
        variable: "VDKR_LAYER_CACHE",
        default: "20G",
        help: "size to which layers kept on this computer may grow before unused ones go",
        check: |text| parse_room(text).map(|_| text.to_owned()),
    },
    Key {
        name: "idle-timeout",
        variable: "VDKR_IDLE_TIMEOUT",
        default: "1800",
        help: "seconds without a command after which a memres machine stops; 0 for never",
        check: |text| parse_seconds(text).map(|value| value.to_string()),
    },
    Key {
        name: "auto-daemon",
        variable: "VDKR_AUTO_DAEMON",
        default: "true",
        help: "keep the machine that a command starts, as memres does, so that others can join it",
        check: |text| parse_bool(text).map(|value| value.to_string()),
    },
    Key {
        name: "timeout",
        variable: "VDKR_TIMEOUT",
        default: "60",
        help: "seconds that a registry may stay silent before it is tried again",
        check: |text| match parse_seconds(text)? {
            0 => Err("a registry needs at least a second".to_owned()),
            value => Ok(value.to_string()),
        },
    },
    Key {
        name: "verbose",
        variable: "VDKR_VERBOSE",
        default: "false",
        help: "say more, and how long each stage took",
        check: |text| parse_bool(text).map(|value| value.to_string()),
    },
    Key {
        name: "snapshot",
        variable: "VDKR_SNAPSHOT",
        default: "true",
        help: "start machines from a snapshot, made at the first start",
        check: |text| parse_bool(text).map(|value| value.to_string()),
    },
    Key {
        name: "boot-timeout",
        variable: "VDKR_BOOT_TIMEOUT",
        default: "120",
        help: "seconds that a boot may take",
        check: |text| match parse_seconds(text)? {
            0 => Err("a boot takes at least a second".to_owned()),
            value => Ok(value.to_string()),
        },
    },
];

/// Names of all keys, `mirror` last.
pub fn names() -> Vec<&'static str> {
    KEYS.iter().map(|key| key.name).chain([MIRROR]).collect()
}

/// A key by its name.
pub fn key(name: &str) -> Result<&'static Key, ConfigError> {
    KEYS.iter()
        .find(|key| key.name == name)
        .ok_or_else(|| ConfigError::Key(name.to_owned()))
}

impl Key {
    /// The normal form of a value, or why it does not fit. `origin` names where it came from.
    pub fn check(&self, value: &str, origin: &str) -> Result<String, ConfigError> {
        (self.check)(value).map_err(|reason| ConfigError::Value {
            origin: origin.to_owned(),
            reason,
        })
    }
}
