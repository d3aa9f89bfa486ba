//! `/etc/vdkr/registry.conf`: what the agent pulls from. Lines of `KEY=value`, read and never sourced.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use super::{Emission, EmitError, HEADER, Present, Profile, Target, docker, is_network};
use crate::candidates::RegistryPrefix;
use crate::engine::{EngineKind, UnknownEngine};
use crate::reference::Host;

/// The file.
pub const CONF: &str = "/etc/vdkr/registry.conf";
const DEFAULT: &str = "VDKR_DEFAULT_REGISTRY";
const INSECURE: &str = "VDKR_INSECURE_REGISTRIES";
const ENGINE: &str = "VDKR_ENGINE";
const ENGINE_SOCKET: &str = "VDKR_ENGINE_SOCKET";

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConf {
    /// `VDKR_DEFAULT_REGISTRY`: registry and namespace.
    pub registry: Option<RegistryPrefix>,
    /// `VDKR_INSECURE_REGISTRIES`: hosts and networks.
    pub insecure: Vec<String>,
    /// The engine.
    pub engine: EngineConf,
}

/// What the file says of the engine that keeps the target's images and runs its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineConf {
    /// `VDKR_ENGINE`.
    pub kind: Option<EngineKind>,
    /// `VDKR_ENGINE_SOCKET`: where it listens, unless where it always does.
    pub socket: Option<String>,
}

impl EngineConf {
    /// Reads what the file says of the engine, and nothing else: a mistake elsewhere in it is told to
    /// those who pull.
    pub fn parse(text: &str) -> Result<Self, ConfError> {
        let mut conf = Self::default();
        for (line, assignment) in assignments(text) {
            let is_ours = || {
                let words = text.lines().nth(line - 1).unwrap_or_default();
                without_export(words).starts_with(ENGINE)
            };
            let taken = match assignment {
                Ok((key, value)) => conf.take(key, value),
                Err(problem) if is_ours() => Err(problem.to_owned()),
                Err(_) => Ok(()),
            };
            taken.map_err(|problem| ConfError { line, problem })?;
        }
        Ok(conf)
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            ENGINE if value.is_empty() => self.kind = None,
            ENGINE => {
                let kind = value.parse();
                self.kind = Some(kind.map_err(|error: UnknownEngine| format!("{key}: {error}"))?);
            }
            ENGINE_SOCKET if value.is_empty() => self.socket = None,
            ENGINE_SOCKET if value.starts_with('/') => self.socket = Some(value.to_owned()),
            ENGINE_SOCKET => return Err(format!("{key}: expected an absolute path")),
            _ => {}
        }
        Ok(())
    }
}

/// Why the file cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct ConfError {
    /// The line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub problem: String,
}

/// Reads the file. Values may stand in quotes; nothing in them is expanded. Keys that are not
/// known are passed over, since the file may say more to others.
pub fn parse(text: &str) -> Result<RegistryConf, ConfError> {
    let mut conf = RegistryConf::default();
    for (line, assignment) in assignments(text) {
        let bad = |problem: String| ConfError { line, problem };
        let (key, value) = assignment.map_err(|problem| bad(problem.to_owned()))?;
        match key {
            DEFAULT if value.is_empty() || value == "none" => conf.registry = None,
            DEFAULT => {
                let registry = RegistryPrefix::parse(value);
                conf.registry = Some(registry.map_err(|error| bad(format!("{key}: {error}")))?);
            }
            INSECURE => {
                conf.insecure = value.split_ascii_whitespace().map(str::to_owned).collect();
                for entry in &conf.insecure {
                    if !is_network(entry) {
                        Host::parse(entry).map_err(|error| bad(format!("{key}: {error}")))?;
                    }
                }
            }
            _ => conf.engine.take(key, value).map_err(bad)?,
        }
    }
    Ok(conf)
}

/// A line without the spaces around it and what the shell would do with its key.
fn without_export(line: &str) -> &str {
    let line = line.trim();
    line.strip_prefix("export ").unwrap_or(line).trim_start()
}

type Assignment<'t> = Result<(&'t str, &'t str), &'static str>;

/// The assignments with their line numbers.
fn assignments(text: &str) -> impl Iterator<Item = (usize, Assignment<'_>)> {
    text.lines().enumerate().filter_map(|(at, line)| {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            return None;
        }
        let line = without_export(line);
        let Some((key, value)) = line.split_once('=') else {
            return Some((at + 1, Err("expected KEY=value")));
        };
        let is_key = |key: &str| {
            !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        };
        if !is_key(key) {
            return Some((at + 1, Err("expected KEY=value")));
        }
        let value = match value.chars().next() {
            Some(quote @ ('"' | '\'')) => match value[1..].split_once(quote) {
                Some((inner, rest)) if rest.trim().is_empty() || rest.trim().starts_with('#') => {
                    inner
                }
                _ => return Some((at + 1, Err("the quotes around the value do not match"))),
            },
            _ => value.split(" #").next().unwrap_or_default().trim_end(),
        };
        Some((at + 1, Ok((key, value))))
    })
}

pub(super) fn emit(
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let before = present.get(CONF).map_or("", String::as_str);
    let conf = parse(before).map_err(|error| EmitError::present(CONF, error.to_string()))?;
    let mut insecure = conf.insecure;
    let new = target
        .insecure
        .iter()
        .filter(|entry| !insecure.contains(entry));
    let new: Vec<_> = new.cloned().collect();
    insecure.extend(new);
    if !target.is_insecure && insecure.contains(&target.host) {
        emission.note(format!(
            "{CONF} lists {} under {INSECURE}: vdkr will not verify it",
            target.host
        ));
    }
    let mut text = if before.trim().is_empty() {
        HEADER.to_owned()
    } else {
        before.to_owned()
    };
    set(&mut text, DEFAULT, &target.registry.to_string());
    if !insecure.is_empty() {
        set(&mut text, INSECURE, &insecure.join(" "));
    }
    emission.file(Profile::Vdkr, CONF.to_owned(), text, false);
    docker::certificate(Profile::Vdkr, target, emission);
    if let Some(authority) = &target.authority {
        let path = format!("/etc/containers/certs.d/{}/ca.crt", target.host);
        emission.file(Profile::Vdkr, path, authority.clone(), false);
    }
    Ok(())
}

/// Sets a key where it stands, or behind the last line. Of several lines the last one counts, and
/// it alone is changed.
fn set(text: &mut String, key: &str, value: &str) {
    let last = assignments(text)
        .filter(|(_, assignment)| matches!(assignment, Ok((known, _)) if *known == key))
        .last()
        .map(|(line, assignment)| (line, assignment.is_ok_and(|(_, old)| old == value)));
    let ours = format!("{key}=\"{value}\"");
    match last {
        Some((_, true)) => {}
        Some((line, false)) => {
            let mut lines: Vec<&str> = text.split_inclusive('\n').collect();
            let ours = format!("{ours}\n");
            lines[line - 1] = &ours;
            *text = lines.concat();
        }
        None => {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text.push_str(&ours);
            text.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_are_read_and_nothing_is_run() {
        let conf = parse(
            "# comment\nVDKR_DEFAULT_REGISTRY=\"10.0.2.2:5000/yocto\" # ours\n\
             export VDKR_INSECURE_REGISTRIES='10.0.2.2:5000 10.0.0.0/8'\nOTHER=$(reboot)\n",
        )
        .unwrap();
        assert_eq!(conf.registry.unwrap().to_string(), "10.0.2.2:5000/yocto");
        assert_eq!(conf.insecure, ["10.0.2.2:5000", "10.0.0.0/8"]);
        for text in [
            "VDKR_DEFAULT_REGISTRY=$(reboot)",
            "VDKR_DEFAULT_REGISTRY=`reboot`",
            "VDKR_DEFAULT_REGISTRY=\"x",
            "VDKR_INSECURE_REGISTRIES=\"a;b\"",
            "reboot",
            "; =x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        let conf = parse("VDKR_ENGINE=docker\nVDKR_ENGINE_SOCKET=\"/run/d.sock\"\n").unwrap();
        assert_eq!(conf.engine.kind, Some(EngineKind::Docker));
        assert_eq!(conf.engine.socket.as_deref(), Some("/run/d.sock"));
        let torn = "VDKR_DEFAULT_REGISTRY=$(reboot)\nreboot\nVDKR_ENGINE=podman";
        assert_eq!(
            EngineConf::parse(torn).unwrap().kind,
            Some(EngineKind::Podman)
        );
        assert!(EngineConf::parse("VDKR_ENGINE=lxc").is_err());
        for unreadable in [
            "VDKR_ENGINE=\"docker",
            "A=1\n export VDKR_ENGINE docker",
            "VDKR_ENGINE_SOCKET='/run/d.sock' x",
        ] {
            let error = EngineConf::parse(unreadable).unwrap_err();
            assert_eq!(error.line, unreadable.lines().count(), "{unreadable}");
        }
        assert!(EngineConf::parse("# VDKR_ENGINE docker").is_ok());
        let error = parse("VDKR_ENGINE=lxc").unwrap_err().to_string();
        assert!(error.contains("native, docker, podman"), "{error}");
        assert!(parse("VDKR_ENGINE_SOCKET=d.sock").is_err());
        let empty = parse("VDKR_DEFAULT_REGISTRY=\n").unwrap();
        assert_eq!(empty, RegistryConf::default());
    }

    #[test]
    fn keys_are_set_in_place() {
        let mut text = String::from("A=1\nVDKR_DEFAULT_REGISTRY=old:1\n# end");
        set(&mut text, DEFAULT, "new:2/x");
        set(&mut text, INSECURE, "new:2");
        assert_eq!(
            text,
            "A=1\nVDKR_DEFAULT_REGISTRY=\"new:2/x\"\n# end\nVDKR_INSECURE_REGISTRIES=\"new:2\"\n"
        );
        let conf = parse(&text).unwrap();
        assert_eq!(conf.insecure, vec!["new:2"]);
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "([A-Z_=\"'# \n$;é]|VDKR_DEFAULT_REGISTRY|VDKR_INSECURE_REGISTRIES){0,20}") {
            if parse(&text).is_ok() {
                let mut set_text = text;
                set(&mut set_text, DEFAULT, "h:1/n");
                prop_assert_eq!(parse(&set_text).unwrap().registry.unwrap().to_string(), "h:1/n");
            }
        }
    }
}
