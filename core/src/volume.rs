//! What `-v` and `--mount` mean, and which names volumes may have.

pub mod from;

use alloc::{
    borrow::ToOwned,
    string::{String, ToString},
    vec::Vec,
};

/// Longest name of a volume, in bytes.
const MAX_NAME: usize = 255;

/// Where the content of a mount comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A path of the user's computer, as written.
    Host(String),
    /// A volume of this name.
    Named(String),
    /// A new volume without a name of its own.
    Anonymous,
    /// Memory.
    Tmpfs {
        /// Bytes at most; half of the machine's memory when absent.
        size: Option<u64>,
        /// Permissions; 1777 when absent.
        mode: Option<u32>,
    },
}

/// One mount, as the user wants it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOption {
    /// What is mounted.
    pub source: Source,
    /// Where in the container: absolute and without `.`, `..` or empty components.
    pub target: String,
    /// Whether the container may only read it.
    pub read_only: bool,
    /// Whether a new volume stays empty instead of getting what the image has there.
    pub no_copy: bool,
}

/// An option that cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// It does not have the form.
    #[error("{0:?} is not of the form [HOST_DIR|NAME:]CONTAINER_DIR[:ro]")]
    Form(String),
    /// The place in the container is unusable.
    #[error("{0:?} is no place for a mount: it must be an absolute path and not / or below /proc")]
    Target(String),
    /// A name that no volume may have.
    #[error(
        "{0:?} is no name for a volume (letters, digits, '_', '.' and '-', the first a letter or \
         digit, two at least); a directory is written with a slash in front, or as ./{0}"
    )]
    Name(String),
    /// A mode behind the second colon.
    #[error("{mode:?} in {option:?} is none of: ro, rw, nocopy")]
    Mode {
        /// The option.
        option: String,
        /// What is wrong in it.
        mode: String,
    },
    /// A key of `--mount`.
    #[error(
        "{key:?} in --mount {option:?} is none of: type, source, target, readonly, \
         volume-nocopy, tmpfs-size, tmpfs-mode"
    )]
    Key {
        /// The option.
        option: String,
        /// What is wrong in it.
        key: String,
    },
    /// A value of `--mount`.
    #[error("{key}={value:?} in --mount cannot be: {reason}")]
    Value {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        reason: &'static str,
    },
    /// A key of `--mount` is missing, or makes no sense with the others.
    #[error("--mount {option:?} {problem}")]
    Combination {
        /// The option.
        option: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// Checks the name of a volume, by docker's rule.
pub fn check_name(name: &str) -> Result<(), VolumeError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let first = name.bytes().next();
    let good = first.is_some_and(|byte| byte.is_ascii_alphanumeric())
        && (2..=MAX_NAME).contains(&name.len())
        && name.bytes().all(legal);
    if good {
        Ok(())
    } else {
        Err(VolumeError::Name(name.to_owned()))
    }
}

/// Checks a place in a container and gives it in its plain form.
pub fn check_target(target: &str) -> Result<String, VolumeError> {
    let bad = || VolumeError::Target(target.to_owned());
    if !target.starts_with('/') || target.len() > 4095 || target.contains('\0') {
        return Err(bad());
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    match parts.first() {
        None | Some(&"proc") => Err(bad()),
        Some(_) => Ok("/".to_owned() + &parts.join("/")),
    }
}

/// Reads the value of `-v`.
pub fn parse_volume(option: &str) -> Result<MountOption, VolumeError> {
    let form = || VolumeError::Form(option.to_owned());
    let mut parts = option.split(':');
    let first = parts.next().unwrap_or_default();
    let (source, target) = match parts.next() {
        None => (None, first),
        Some(target) => (Some(first), target),
    };
    let modes = parts.next();
    if parts.next().is_some() || target.is_empty() || source == Some("") {
        return Err(form());
    }
    let mut mount = MountOption {
        source: match source {
            None => Source::Anonymous,
            Some(source) => host_or_name(source)?,
        },
        target: check_target(target)?,
        read_only: false,
        no_copy: false,
    };
    for mode in modes.into_iter().flat_map(|modes| modes.split(',')) {
        match mode {
            "ro" => mount.read_only = true,
            "nocopy" => mount.no_copy = true,
            // How labels, caches and mounts of mounts are dealt with elsewhere; here there is one way.
            "rw" | "z" | "Z" | "cached" | "consistent" | "delegated" | "private" | "rprivate" => {}
            _ => {
                return Err(VolumeError::Mode {
                    option: option.to_owned(),
                    mode: mode.to_owned(),
                });
            }
        }
    }
    Ok(mount)
}

/// A path is told from a name by its beginning.
fn host_or_name(source: &str) -> Result<Source, VolumeError> {
    let relative = |prefix: &str| {
        source
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if source.starts_with('/') || relative(".") || relative("..") {
        return Ok(Source::Host(source.to_owned()));
    }
    check_name(source)?;
    Ok(Source::Named(source.to_owned()))
}

/// Reads the value of `--mount`.
pub fn parse_mount(option: &str) -> Result<MountOption, VolumeError> {
    let wrong = |problem| VolumeError::Combination {
        option: option.to_owned(),
        problem,
    };
    let (mut kind, mut source, mut target) = (None, None, None);
    let (mut read_only, mut no_copy) = (false, false);
    let (mut size, mut mode) = (None, None);
    for field in fields(option) {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key, Some(value)),
            None => (field.as_str(), None),
        };
        let text = || value.unwrap_or_default().to_owned();
        match key.to_ascii_lowercase().as_str() {
            "type" => kind = Some(text()),
            "source" | "src" => source = Some(text()),
            "target" | "destination" | "dst" => target = Some(text()),
            "readonly" | "ro" => read_only = truth("readonly", value)?,
            "volume-nocopy" => no_copy = truth("volume-nocopy", value)?,
            "tmpfs-size" => size = Some(bytes(&text())?),
            "tmpfs-mode" => mode = Some(octal(&text())?),
            "consistency" => {}
            "bind-propagation" if matches!(value, Some("private" | "rprivate")) => {}
            "volume-driver" if value == Some("local") => {}
            _ => {
                return Err(VolumeError::Key {
                    option: option.to_owned(),
                    key: key.to_owned(),
                });
            }
        }
    }
    let target = check_target(&target.ok_or_else(|| wrong("names no target"))?)?;
    let source = source.filter(|source| !source.is_empty());
    let kind = kind.as_deref().unwrap_or("volume");
    if kind != "tmpfs" && (size.is_some() || mode.is_some()) {
        return Err(wrong("has tmpfs options and is of another type"));
    }
    let source = match (kind, source) {
        ("bind", Some(path)) => Source::Host(path),
        ("bind", None) => return Err(wrong("names no source")),
        ("volume", Some(name)) => {
            check_name(&name)?;
            Source::Named(name)
        }
        ("volume", None) => Source::Anonymous,
        ("tmpfs", None) => Source::Tmpfs { size, mode },
        ("tmpfs", Some(_)) => return Err(wrong("has a source, which a tmpfs has none of")),
        (other, _) => {
            return Err(VolumeError::Value {
                key: "type",
                value: other.to_owned(),
                reason: "it is one of bind, volume, tmpfs",
            });
        }
    };
    Ok(MountOption {
        source,
        target,
        read_only,
        no_copy,
    })
}

/// Fields between commas; one in quotes may hold commas, and quotes that are doubled.
fn fields(text: &str) -> Vec<String> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '"' if quoted && chars.peek() == Some(&'"') => {
                field.push('"');
                chars.next();
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(core::mem::take(&mut field)),
            char => field.push(char),
        }
    }
    fields.push(field);
    fields
}

fn truth(key: &'static str, value: Option<&str>) -> Result<bool, VolumeError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(VolumeError::Value {
            key,
            value: value.to_owned(),
            reason: "it is one of true, false",
        }),
    }
}

fn bytes(text: &str) -> Result<u64, VolumeError> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match lower.get(digits.len()..).unwrap_or_default() {
        "" | "b" => Some(1),
        "k" | "kb" | "kib" => Some(1 << 10),
        "m" | "mb" | "mib" => Some(1 << 20),
        "g" | "gb" | "gib" => Some(1 << 30),
        _ => None,
    };
    let number = digits.parse::<u64>().ok();
    factor
        .zip(number)
        .and_then(|(factor, number)| number.checked_mul(factor))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| VolumeError::Value {
            key: "tmpfs-size",
            value: text.to_string(),
            reason: "it is a number of bytes, such as 64m",
        })
}

fn octal(text: &str) -> Result<u32, VolumeError> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o7777 && !text.starts_with('+'))
        .ok_or_else(|| VolumeError::Value {
            key: "tmpfs-mode",
            value: text.to_string(),
            reason: "it is an octal number, such as 1770",
        })
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    fn host(path: &str) -> Source {
        Source::Host(path.to_owned())
    }

    #[test]
    fn volumes_as_docker_writes_them() {
        for (option, source, target, read_only) in [
            ("/a:/b", host("/a"), "/b", false),
            ("/a:/b:ro", host("/a"), "/b", true),
            ("/a:/b:rw,z", host("/a"), "/b", false),
            (".:/b", host("."), "/b", false),
            ("./x:/b//c/./d/", host("./x"), "/b/c/d", false),
            ("..:/b", host(".."), "/b", false),
            ("../x:/b", host("../x"), "/b", false),
            ("/a b/ü:/b", host("/a b/ü"), "/b", false),
            ("data:/b", Source::Named("data".to_owned()), "/b", false),
            (
                "d.1_x-y:/b:ro",
                Source::Named("d.1_x-y".to_owned()),
                "/b",
                true,
            ),
            ("/data", Source::Anonymous, "/data", false),
            ("/a:/b/../c", host("/a"), "/c", false),
        ] {
            let mount = parse_volume(option).unwrap();
            assert_eq!(
                (&mount.source, &*mount.target, mount.read_only),
                (&source, target, read_only)
            );
            assert!(!mount.no_copy);
        }
        assert!(parse_volume("data:/b:nocopy").unwrap().no_copy);
    }

    #[test]
    fn what_is_no_volume_is_refused() {
        for bad in [
            "",
            ":",
            "a:",
            ":/b",
            "/a:/b:ro:x",
            "/a:b",
            "data:b",
            "/a:/",
            "/a:/proc",
            "/a:/proc/x",
            "/a:/../proc/x",
            "/a:/b:",
            "/a:/b:rox",
            "/a:/b:shared",
            "x:/b",
            "-a:/b",
            "a/b:/c",
            ".hidden:/c",
            "a b:/c",
            "ä1:/c",
            "relative",
            "/a:ro",
        ] {
            assert!(parse_volume(bad).is_err(), "{bad}");
        }
        let error = parse_volume("src/x:/b").unwrap_err().to_string();
        assert!(error.contains("./src/x"), "{error}");
    }

    #[test]
    fn mounts_as_docker_writes_them() {
        for (option, source, read_only) in [
            ("type=bind,source=/a,target=/t", host("/a"), false),
            ("type=bind,src=./a,dst=/t,readonly", host("./a"), true),
            ("type=bind,src=a,destination=/t,ro=false", host("a"), false),
            (
                "\"type=bind\",\"source=/a,b\"\"c\",target=/t",
                host("/a,b\"c"),
                false,
            ),
            (
                "source=data,target=/t",
                Source::Named("data".to_owned()),
                false,
            ),
            (
                "type=volume,target=/t,readonly=true",
                Source::Anonymous,
                true,
            ),
            (
                "type=tmpfs,target=/t,tmpfs-size=64m,tmpfs-mode=1770",
                Source::Tmpfs {
                    size: Some(64 << 20),
                    mode: Some(0o1770),
                },
                false,
            ),
            (
                "type=tmpfs,target=/t",
                Source::Tmpfs {
                    size: None,
                    mode: None,
                },
                false,
            ),
        ] {
            let mount = parse_mount(option).unwrap();
            assert_eq!(
                (&mount.source, &*mount.target, mount.read_only),
                (&source, "/t", read_only)
            );
        }
        assert!(parse_mount("target=/t,volume-nocopy").unwrap().no_copy);
    }

    #[test]
    fn what_is_no_mount_is_refused() {
        for bad in [
            "",
            "type=bind,target=/t",
            "type=bind,source=/a",
            "type=npipe,target=/t",
            "type=tmpfs,source=x,target=/t",
            "type=tmpfs,target=/t,tmpfs-size=lots",
            "type=tmpfs,target=/t,tmpfs-size=0",
            "type=tmpfs,target=/t,tmpfs-size=99999999999g",
            "type=tmpfs,target=/t,tmpfs-mode=9",
            "source=/a,target=/t",
            "target=/t,colour=red",
            "type=bind,source=/a,target=/t,bind-propagation=shared",
            "target=/t,readonly=perhaps",
            "type=bind,source=/a,target=/t,tmpfs-size=1m",
            "target=rel",
            "type=bind,source=/a,target=/",
        ] {
            assert!(parse_mount(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn nothing_panics_and_targets_are_plain(text in "[a-z/.:,=\"\u{0}ä]{0,40}") {
            for mount in [parse_volume(&text), parse_mount(&text), parse_volume(&format!("/a:{text}"))]
                .into_iter()
                .flatten()
            {
                let target = mount.target;
                prop_assert!(target.starts_with('/') && target.len() > 1 && !target.ends_with('/'));
                prop_assert!(target.split('/').skip(1).all(|part| !matches!(part, "" | "." | "..")));
                prop_assert_eq!(check_target(&target), Ok(target.clone()));
                if let Source::Named(name) = &mount.source {
                    prop_assert!(!name.contains('/'));
                }
            }
        }
    }
}
