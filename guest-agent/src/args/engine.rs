//! Which engine the command line and `/etc/vdkr/registry.conf` choose.

use std::{
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use vdkr_core::{
    channel::message::{Failure, FailureCode},
    emit::{
        MAX_FILE,
        vdkr::{CONF, EngineConf},
    },
    engine::EngineKind,
};
use vdkr_transfer::target::RootFs;

use super::Words;
use crate::command::CommandError;

/// What the command line says of the engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineWish {
    /// `--engine`.
    pub kind: Option<EngineKind>,
    /// `--engine-socket`.
    pub socket: Option<PathBuf>,
}

/// The engine, and where it listens unless that is where it always does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineChoice {
    /// Which one.
    pub kind: EngineKind,
    /// Its socket.
    pub socket: Option<PathBuf>,
}

impl EngineWish {
    /// Takes the options that say which engine.
    pub(super) fn take<'a>(
        &mut self,
        name: &str,
        words: &mut Words<'a, impl Iterator<Item = &'a str>>,
    ) -> Result<bool, String> {
        match name {
            "--engine" => {
                let kind = words.value(name)?.parse();
                let unknown = |error: vdkr_core::engine::UnknownEngine| error.to_string();
                self.kind = Some(kind.map_err(unknown)?);
            }
            "--engine-socket" => self.socket = Some(words.value(name)?.into()),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The choice on the running system, also while that is configured by somebody else.
    pub fn choice(&self) -> Result<EngineChoice, Failure> {
        let failed = |error: &dyn std::fmt::Display| {
            let text = format!("which engine this machine is set up for cannot be read: {error}");
            Failure::new(FailureCode::Failed, text)
                .with_hint("mend the file there, or name the engine with --engine")
        };
        let mut bytes = Vec::new();
        match File::open(CONF) {
            Ok(file) => {
                let read = file.take(MAX_FILE).read_to_end(&mut bytes);
                read.map_err(|error| failed(&format!("{CONF}: {error}")))?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&format!("{CONF}: {error}"))),
        }
        let conf = parsed(&bytes).map_err(|error| failed(&error))?;
        chosen(self, conf).map_err(|error| Failure::new(FailureCode::Usage, error))
    }

    /// The choice on a root file system: what the command line says, then what the file says.
    pub fn choice_of(&self, root: &RootFs) -> Result<EngineChoice, CommandError> {
        let found = root.read(CONF, MAX_FILE)?;
        let conf = parsed(&found.map(|found| found.bytes).unwrap_or_default())?;
        chosen(self, conf).map_err(CommandError::Usage)
    }
}

/// The error says which socket nobody would listen on.
fn chosen(wish: &EngineWish, conf: EngineConf) -> Result<EngineChoice, String> {
    let kind = wish.kind.or(conf.kind).unwrap_or_default();
    // The file's is that of the file's engine, when it names one.
    let is_its = conf.kind.is_none_or(|its| its == kind);
    let of_file = conf.socket.filter(|_| is_its).map(PathBuf::from);
    if kind == EngineKind::Native {
        let named = match (&wish.socket, &of_file, wish.kind) {
            (Some(_), _, _) => Some("--engine-socket".to_owned()),
            // Whoever asks for this engine by name does not ask for the file's.
            (None, Some(_), None) => Some(format!("{CONF}: VDKR_ENGINE_SOCKET")),
            _ => None,
        };
        return match named {
            None => Ok(EngineChoice::default()),
            Some(named) => Err(format!(
                "{named} is for another engine than the agent's own: name it (docker, podman) with \
                 --engine or VDKR_ENGINE"
            )),
        };
    }
    Ok(EngineChoice {
        kind,
        socket: wish.socket.clone().or(of_file),
    })
}

fn parsed(bytes: &[u8]) -> Result<EngineConf, CommandError> {
    EngineConf::parse(&String::from_utf8_lossy(bytes))
        .map_err(|error| CommandError::Failed(format!("{CONF}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_comes_before_the_file() {
        let choose = |kind: Option<EngineKind>, socket: Option<&str>, text: &str| {
            let socket = socket.map(PathBuf::from);
            let choice = chosen(
                &EngineWish { kind, socket },
                EngineConf::parse(text).unwrap(),
            );
            choice.map(|choice| (choice.kind, choice.socket))
        };
        let file = "VDKR_ENGINE=docker\nVDKR_ENGINE_SOCKET=/d\n";
        let docker = |socket: &str| Ok((EngineKind::Docker, Some(socket.into())));
        let own = || Ok((EngineKind::Native, None));
        assert_eq!(choose(None, None, ""), own());
        assert_eq!(choose(None, None, file), docker("/d"));
        assert_eq!(choose(None, Some("/x"), file), docker("/x"));
        let podman = Some(EngineKind::Podman);
        assert_eq!(choose(podman, None, file), Ok((EngineKind::Podman, None)));
        let native = Some(EngineKind::Native);
        assert_eq!(choose(native, None, file), own());
        // A socket alone is that of the engine that the command line names.
        let socket = "VDKR_ENGINE_SOCKET=/d\n";
        assert_eq!(choose(Some(EngineKind::Docker), None, socket), docker("/d"));
        assert_eq!(choose(native, None, socket), own());
        for (kind, given, file, named) in [
            (None, None, socket, "VDKR_ENGINE_SOCKET"),
            (None, Some("/x"), "", "--engine-socket"),
            (native, Some("/x"), file, "--engine-socket"),
            (
                None,
                None,
                "VDKR_ENGINE=native\nVDKR_ENGINE_SOCKET=/d",
                "VDKR_ENGINE_SOCKET",
            ),
        ] {
            let refused = choose(kind, given, file).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
    }
}
