//! zig as C compiler and linker for the musl targets, from two PyPI packages in a virtual environment of the cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Key};
use crate::run::{find_program, run, succeeds};
use crate::workspace::Workspace;

const PACKAGES: [&str; 2] = ["ziglang==0.17.0", "cargo-zigbuild==0.24.0"];

/// An installed zig with cargo's front end to it.
#[derive(Clone, Debug)]
pub(crate) struct Zig {
    venv: PathBuf,
    cache: PathBuf,
}

impl Zig {
    /// Installs zig into the cache unless it is there.
    pub(crate) fn install(workspace: &Workspace) -> Result<Self> {
        let python = python()?;
        let key = Key::new("zig", 1)
            .with("packages", PACKAGES.join(" "))
            .with("python", python.to_string_lossy().as_bytes())
            .finish();
        let venv = cache::entry(workspace, "zig", &key, |place| {
            eprintln!(
                "installing {} from PyPI into {}",
                PACKAGES.join(" and "),
                place.display()
            );
            run(Command::new(&python).args(["-m", "venv"]).arg(place))?;
            run(Command::new(place.join("bin/python"))
                .args(["-m", "pip", "install", "--quiet", "--no-compile"])
                .arg("--disable-pip-version-check")
                .args(PACKAGES))
            .context("cannot install zig from PyPI")
        })?;
        Ok(Self {
            venv,
            cache: workspace.cache.join("zig-cache"),
        })
    }

    /// The identity of the tools for cache keys.
    pub(crate) fn id() -> String {
        PACKAGES.join(" ")
    }

    /// `cargo-zigbuild`, ready for its sub-command.
    pub(crate) fn cargo_zigbuild(&self) -> Command {
        let mut command = Command::new(self.venv.join("bin/cargo-zigbuild"));
        command
            .env("CARGO_ZIGBUILD_PYTHON_PATH", self.venv.join("bin/python"))
            .env(
                "CARGO_ZIGBUILD_CACHE_DIR",
                self.cache.join("cargo-zigbuild"),
            )
            .env("ZIG_GLOBAL_CACHE_DIR", self.cache.join("global"))
            .env("ZIG_LOCAL_CACHE_DIR", self.cache.join("local"));
        command
    }
}

/// A Python that can make virtual environments: the system's before others in `PATH`.
fn python() -> Result<PathBuf> {
    [
        Some(PathBuf::from("/usr/bin/python3")),
        find_program("python3"),
    ]
    .into_iter()
    .flatten()
    .find(|python| succeeds(Command::new(python).args(["-c", "import venv, ensurepip"])))
    .context("python3 with venv is missing: `apt-get install python3-venv`")
}
