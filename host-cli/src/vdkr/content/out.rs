//! Where archives go.

use std::{
    fs::File,
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;

use crate::{
    exit::Exit,
    vdkr::error::{Error, Result},
};

/// Where an archive goes. A file appears under its name when it is whole.
#[derive(Debug)]
pub enum Out {
    /// A file, by another name until it is whole.
    File(NamedTempFile, PathBuf),
    /// Standard output.
    Stdout,
}

impl Out {
    /// A file that will be at `path`.
    pub fn file(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            let message = format!("cannot write {}: {error}", path.display());
            Error::new(Exit::Failed, message)
        };
        if path.is_dir() {
            return Err(Error::usage(format!("{} is a directory", path.display())));
        }
        let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let draft = tempfile::Builder::new()
            .prefix(".vdkr-")
            .tempfile_in(parent.unwrap_or(Path::new(".")))
            .map_err(failed)?;
        Ok(Self::File(draft, path.to_owned()))
    }

    /// What is written to; clones go on where the others stopped.
    pub fn writer(&self) -> io::Result<Writer> {
        match self {
            Self::File(draft, path) => Ok(Writer::File(draft.as_file().try_clone()?, path.clone())),
            Self::Stdout => Ok(Writer::Stdout(io::stdout())),
        }
    }

    /// Gives what was written its name.
    pub fn keep(self) -> Result<()> {
        if let Out::File(draft, path) = self {
            draft.as_file().sync_all()?;
            // As any file that the user makes, not as a temporary one.
            let mask = nix::sys::stat::umask(nix::sys::stat::Mode::empty());
            nix::sys::stat::umask(mask);
            let mode = 0o666 & !mask.bits();
            draft
                .as_file()
                .set_permissions(PermissionsExt::from_mode(mode))?;
            draft.persist(&path).map_err(|error| {
                let message = format!("cannot write {}: {}", path.display(), error.error);
                Error::new(Exit::Failed, message)
            })?;
        }
        Ok(())
    }
}

/// Writes where an archive goes. Its errors say where that is.
#[derive(Debug)]
pub enum Writer {
    /// Into a file, whose final path is given.
    File(File, PathBuf),
    /// To standard output.
    Stdout(io::Stdout),
}

impl Writer {
    fn told(&self, error: &io::Error) -> io::Error {
        let reason = match error.kind() {
            io::ErrorKind::BrokenPipe => "whoever read it has gone".to_owned(),
            _ => error.to_string(),
        };
        let place = match self {
            Self::File(_, path) => path.display().to_string(),
            Self::Stdout(_) => "to standard output".to_owned(),
        };
        io::Error::new(error.kind(), format!("cannot write {place}: {reason}"))
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = match self {
            Self::File(file, _) => file.write(bytes),
            Self::Stdout(stdout) => stdout.write(bytes),
        };
        // Whoever writes all tries an interrupted write again, which the kind tells.
        written.map_err(|error| self.told(&error))
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = match self {
            Self::File(file, _) => file.flush(),
            Self::Stdout(stdout) => stdout.flush(),
        };
        flushed.map_err(|error| self.told(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_with_its_place() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut writer = Writer::File(full, "/tmp/image.tar".into());
        let error = writer.write_all(b"bytes").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        let words = error.to_string();
        assert!(
            words.starts_with("cannot write /tmp/image.tar: No space left"),
            "{words}"
        );
    }
}
