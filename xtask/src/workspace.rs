//! Where things are: the repository, cargo's target directory and the cache outside the tree.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directories that every task works in.
#[derive(Clone, Debug)]
pub(crate) struct Workspace {
    /// The repository's top.
    pub(crate) root: PathBuf,
    /// Cargo's target directory; finished artifacts are linked into it.
    pub(crate) target: PathBuf,
    /// Slow artifacts, shared by all clones of this user and keyed by their inputs.
    pub(crate) cache: PathBuf,
}

impl Workspace {
    /// Finds the repository from the crate's own path and the cache from `VDKR_CACHE`,
    /// `XDG_CACHE_HOME` or `HOME`, in that order.
    pub(crate) fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .context("xtask stands in a workspace")?
            .to_path_buf();
        let target = env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), |dir| root.join(dir));
        let cache =
            match non_empty("VDKR_CACHE") {
                Some(dir) => root.join(dir),
                None => match non_empty("XDG_CACHE_HOME") {
                    Some(dir) => PathBuf::from(dir),
                    None => PathBuf::from(non_empty("HOME").context(
                        "no place for the cache: set VDKR_CACHE, XDG_CACHE_HOME or HOME",
                    )?)
                    .join(".cache"),
                }
                .join("vdkr-build"),
            };
        std::fs::create_dir_all(&cache).with_context(|| {
            format!(
                "cannot create the cache {} (VDKR_CACHE moves it)",
                cache.display()
            )
        })?;
        Ok(Self {
            root,
            target,
            cache,
        })
    }
}

fn non_empty(name: &str) -> Option<std::ffi::OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The architectures that a VM can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// 64-bit x86; Debian's amd64.
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// 64-bit ARM; Debian's arm64.
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    /// Both, in the order they are built.
    pub(crate) const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The one of this machine.
    pub(crate) const HOST: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// The name used in paths and options.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// Debian's name, also the one of OCI platforms.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// The Rust target of static programs.
    pub(crate) const fn musl(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-linux-musl",
        }
    }

    /// The Yocto machine whose deploy directory holds this architecture's images.
    pub(crate) const fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "qemux86-64",
            Self::Aarch64 => "qemuarm64",
        }
    }
}

/// The value of `--arch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ArchChoice {
    /// Only x86-64.
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    /// Only 64-bit ARM.
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
    /// Both.
    All,
}

impl ArchChoice {
    /// The architectures asked for.
    pub(crate) fn list(self) -> &'static [Arch] {
        match self {
            Self::X86_64 => &[Arch::X86_64],
            Self::Aarch64 => &[Arch::Aarch64],
            Self::All => &Arch::ALL,
        }
    }
}
