//! Unpacking as a whole: honest layers here, hostile ones and GNU tar as an oracle beside.

mod differential;
mod hostile;
mod image;
mod ordinary;
mod recipe;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use vdkr_core::digest::Digest;

use super::fixture::{Entry, archive};
use super::root::Root;
use super::{Options, UnpackError, Unpacked, unpack};

/// A temporary directory with `layer` to unpack into, and something beside it that must not change.
struct Place {
    directory: tempfile::TempDir,
}

const SECRET: &str = "not to be changed";

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("layer")).unwrap();
        fs::create_dir(directory.path().join("outside")).unwrap();
        fs::write(directory.path().join("outside/secret"), SECRET).unwrap();
        Self { directory }
    }

    fn layer(&self) -> PathBuf {
        self.directory.path().join("layer")
    }

    fn outside(&self) -> PathBuf {
        self.directory.path().join("outside")
    }

    fn options(&self) -> Options {
        Options::detect(&Root::open(&self.layer()).unwrap())
    }

    fn unpack_with(
        &self,
        options: &Options,
        stream: impl Read + Send,
        plain: &[u8],
    ) -> Result<Unpacked, UnpackError> {
        let root = Root::open(&self.layer()).unwrap();
        let result = unpack(stream, &root, &Digest::sha256(plain), options, &|| false);
        self.check();
        result
    }

    fn unpack(&self, entries: &[Entry]) -> Result<Unpacked, UnpackError> {
        let plain = archive(entries);
        self.unpack_with(&self.options(), plain.as_slice(), &plain)
    }

    /// Nothing outside the layer has changed.
    fn check(&self) {
        let names = |path: &Path| -> Vec<_> {
            fs::read_dir(path)
                .unwrap()
                .map(|entry| entry.unwrap().file_name())
                .collect()
        };
        assert_eq!(names(&self.outside()), ["secret"]);
        assert_eq!(
            fs::read_to_string(self.outside().join("secret")).unwrap(),
            SECRET
        );
        assert_eq!(names(self.directory.path()).len(), 2);
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.layer().join(name)).unwrap()
    }
}
