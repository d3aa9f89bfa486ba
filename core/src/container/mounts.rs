//! File systems in memory, and devices of the machine, that a container asks for.

use alloc::{
    borrow::ToOwned as _,
    string::{String, ToString as _},
    vec::Vec,
};

use serde::{Deserialize, Serialize};

use super::limits::{LimitError, parse_size};

/// Longest path that the kernel takes, with its end.
const MAX_PATH: usize = 4096;

/// A file system in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tmpfs {
    /// Where; absolute, without `..`.
    pub target: String,
    /// Options as `mount` names them, sizes in bytes.
    pub options: Vec<String>,
}

/// A device of the machine inside a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// The machine's, below `/dev`.
    pub source: String,
    /// The container's, absolute.
    pub target: String,
    /// Some of `r`, `w` and `m`.
    pub access: String,
}

/// A value that names no mount or device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// A place that cannot be mounted on.
    #[error("{0:?} is no place in a container; name an absolute path other than /, without ..")]
    Target(String),
    /// An option of tmpfs that does not exist or would escape.
    #[error(
        "{0:?} is no option of a tmpfs; those are: ro, rw, exec, noexec, suid, nosuid, dev, nodev, size=, mode=, uid=, gid=, nr_inodes="
    )]
    Option(String),
    /// A size that is none.
    #[error(transparent)]
    Size(#[from] LimitError),
    /// A device that is none.
    #[error(
        "{0:?} is no device; write PATH[:PATH IN CONTAINER[:PERMISSIONS]], such as /dev/kvm or /dev/sda:/dev/xvda:r"
    )]
    Device(String),
}

impl Tmpfs {
    /// Reads `PATH[:OPTION,…]`. Docker's own options hold unless others take their place.
    pub fn parse(text: &str) -> Result<Self, MountError> {
        let (target, given) = text.split_once(':').unwrap_or((text, ""));
        let mut tmpfs = Self {
            target: place(target)?,
            options: ["noexec", "nosuid", "nodev"].map(str::to_owned).into(),
        };
        for option in given.split(',').filter(|option| !option.is_empty()) {
            tmpfs.add(option)?;
        }
        Ok(tmpfs)
    }

    /// Checks options that came from elsewhere.
    pub fn check(&self) -> Result<(), MountError> {
        place(&self.target)?;
        let mut again = Self::default();
        self.options.iter().try_for_each(|option| again.add(option))
    }

    fn add(&mut self, option: &str) -> Result<(), MountError> {
        const PAIRS: [[&str; 2]; 4] = [
            ["noexec", "exec"],
            ["nosuid", "suid"],
            ["nodev", "dev"],
            ["ro", "rw"],
        ];
        let error = || MountError::Option(option.to_owned());
        if let Some(pair) = PAIRS.iter().find(|pair| pair.contains(&option)) {
            self.options.retain(|known| !pair.contains(&known.as_str()));
            self.options.push(option.to_owned());
            return Ok(());
        }
        let (name, value) = option.split_once('=').ok_or_else(error)?;
        let number = |radix| {
            u32::from_str_radix(value, radix)
                .ok()
                .filter(|_| !value.starts_with('+'))
        };
        let value = match name {
            "size" if value.ends_with('%') => {
                let percent = value
                    .trim_end_matches('%')
                    .parse::<u8>()
                    .ok()
                    .filter(|&share| share <= 100);
                percent.ok_or_else(error)?;
                value.to_owned()
            }
            "size" | "nr_inodes" => parse_size(value)?.to_string(),
            "mode" => {
                number(8).filter(|&mode| mode <= 0o7777).ok_or_else(error)?;
                value.to_owned()
            }
            "uid" | "gid" => {
                number(10).ok_or_else(error)?;
                value.to_owned()
            }
            _ => return Err(error()),
        };
        let begin = alloc::format!("{name}=");
        self.options.retain(|known| !known.starts_with(&begin));
        self.options.push(begin + &value);
        Ok(())
    }
}

impl Device {
    /// Reads `PATH[:PATH IN CONTAINER[:PERMISSIONS]]`.
    pub fn parse(text: &str) -> Result<Self, MountError> {
        let error = || MountError::Device(text.to_owned());
        let mut parts = text.split(':');
        let source = parts.next().unwrap_or_default();
        let (target, access) = match (parts.next(), parts.next()) {
            (None, _) => (source, "rwm"),
            (Some(second), None) if is_access(second) => (source, second),
            (Some(target), None) => (target, "rwm"),
            (Some(target), Some(access)) => (target, access),
        };
        let device = Self {
            source: source.to_owned(),
            target: target.to_owned(),
            access: access.to_owned(),
        };
        if parts.next().is_some() {
            return Err(error());
        }
        device.check().map_err(|_| error())?;
        Ok(device)
    }

    /// Checks a device that came from elsewhere.
    pub fn check(&self) -> Result<(), MountError> {
        let error = || MountError::Device(self.source.clone());
        place(&self.source)?;
        place(&self.target)?;
        if !self.source.starts_with("/dev/") || !is_access(&self.access) {
            return Err(error());
        }
        Ok(())
    }
}

fn is_access(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 3
        && text.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm'))
}

/// An absolute path that is not the root and does not climb, in its plainest form.
pub fn place(path: &str) -> Result<String, MountError> {
    let error = || MountError::Target(path.to_owned());
    if !path.starts_with('/') || path.len() >= MAX_PATH || path.contains(['\0', '\n']) {
        return Err(error());
    }
    let mut plain = String::new();
    for part in path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".")
    {
        if part == ".." {
            return Err(error());
        }
        plain.push('/');
        plain.push_str(part);
    }
    if plain.is_empty() {
        Err(error())
    } else {
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn file_systems_in_memory() {
        let options = |text: &str| Tmpfs::parse(text).unwrap().options.join(",");
        assert_eq!(options("/run"), "noexec,nosuid,nodev");
        assert_eq!(
            options("/run:exec,size=64m,mode=1777"),
            "nosuid,nodev,exec,size=67108864,mode=1777"
        );
        assert_eq!(
            options("/run:rw,size=10%,uid=5"),
            "noexec,nosuid,nodev,rw,size=10%,uid=5"
        );
        assert_eq!(
            options("/run:size=1k,size=2k"),
            "noexec,nosuid,nodev,size=2048"
        );
        assert_eq!(Tmpfs::parse("//run/./x/").unwrap().target, "/run/x");
        for bad in [
            "",
            "run",
            "/",
            "/a/../..",
            "/x:size",
            "/x:size=y",
            "/x:mode=9",
            "/x:mode=77777",
            "/x:size=101%",
            "/x:lowerdir=/",
            "/x:mpol=bind",
            "/x:uid=-1",
            "/x:uid=+1",
        ] {
            assert!(Tmpfs::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn devices() {
        let device = |text: &str| {
            let it = Device::parse(text).unwrap();
            [it.source, it.target, it.access]
        };
        assert_eq!(device("/dev/kvm"), ["/dev/kvm", "/dev/kvm", "rwm"]);
        assert_eq!(device("/dev/vda:r"), ["/dev/vda", "/dev/vda", "r"]);
        assert_eq!(
            device("/dev/vda:/dev/xvda"),
            ["/dev/vda", "/dev/xvda", "rwm"]
        );
        assert_eq!(
            device("/dev/vda:/dev/xvda:rw"),
            ["/dev/vda", "/dev/xvda", "rw"]
        );
        for bad in [
            "",
            "kvm",
            "/etc/passwd",
            "/dev/../etc/x",
            "/dev/vda::",
            "/dev/vda:/x:z",
            "/dev/vda:/x:r:w",
            "/dev/vda:x",
        ] {
            assert!(Device::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_right(text in "/[a-z./]{0,12}(:[a-z0-9=,%]{0,20})?(:[rwm]{0,3})?") {
            if let Ok(tmpfs) = Tmpfs::parse(&text) {
                prop_assert!(tmpfs.check().is_ok());
                prop_assert!(!tmpfs.target.contains("/../") && tmpfs.target.starts_with('/'));
            }
            if let Ok(device) = Device::parse(&text) {
                prop_assert!(device.check().is_ok());
            }
        }
    }
}
