//! Which engine the command line and `/etc/vdkr/registry.conf` choose.

use std::path::{Path, PathBuf};

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
use crate::command::{self, CommandError};

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

    /// The choice on the running system.
    pub fn choice(&self) -> Result<EngineChoice, Failure> {
        let failed = |error: CommandError| {
            let text = format!("which engine this machine is set up for cannot be read: {error}");
            Failure::new(FailureCode::Failed, text)
                .with_hint("mend the file there, or name the engine with --engine")
        };
        let root = command::open(Path::new("/")).map_err(failed)?;
        self.choice_of(&root).map_err(failed)
    }

    /// The choice on a root file system: what the command line says, then what the file says.
    pub fn choice_of(&self, root: &RootFs) -> Result<EngineChoice, CommandError> {
        let conf = match (self.kind, &self.socket) {
            (Some(_), Some(_)) => EngineConf::default(),
            _ => read(root)?,
        };
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

fn read(root: &RootFs) -> Result<EngineConf, CommandError> {
    let Some(found) = root.read(CONF, MAX_FILE)? else {
        return Ok(EngineConf::default());
    };
    let text = String::from_utf8_lossy(&found.bytes);
    EngineConf::parse(&text).map_err(|error| CommandError::Failed(format!("{CONF}: {error}")))
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
