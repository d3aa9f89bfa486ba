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
        Ok(chosen(self, conf))
    }

    /// The choice on a root file system: what the command line says, then what the file says.
    pub fn choice_of(&self, root: &RootFs) -> Result<EngineChoice, CommandError> {
        let found = root.read(CONF, MAX_FILE)?;
        let conf = parsed(&found.map(|found| found.bytes).unwrap_or_default())?;
        Ok(chosen(self, conf))
    }
}

fn chosen(wish: &EngineWish, conf: EngineConf) -> EngineChoice {
    let set_up = conf.kind.unwrap_or_default();
    let kind = wish.kind.unwrap_or(set_up);
    // The file's is that of the file's engine.
    let socket = conf.socket.filter(|_| kind == set_up).map(PathBuf::from);
    EngineChoice {
        kind,
        socket: wish.socket.clone().or(socket),
    }
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
            (choice.kind, choice.socket)
        };
        let file = "VDKR_ENGINE=docker\nVDKR_ENGINE_SOCKET=/d\n";
        let docker = |socket: &str| (EngineKind::Docker, Some(socket.into()));
        assert_eq!(choose(None, None, ""), (EngineKind::Native, None));
        assert_eq!(choose(None, None, file), docker("/d"));
        assert_eq!(choose(None, Some("/x"), file), docker("/x"));
        let podman = Some(EngineKind::Podman);
        assert_eq!(choose(podman, None, file), (EngineKind::Podman, None));
        let native = Some(EngineKind::Native);
        assert_eq!(choose(native, None, file).0, EngineKind::Native);
    }
}
