//! Which compiler builds for which target.
//!
//! A target's standard library is either installed beside a compiler (rustup's `rust-std`) or
//! built from sources that lie beside it (`-Zbuild-std`; Debian's `rust-web-src`). The compiler
//! that runs this task is asked first, then Debian's own in `/usr/bin`, and at last rustup is
//! asked to fetch the library. `VDKR_TOOLCHAIN=default|debian` admits only one of the first two.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{capture_text, find_program, forget_own_package, succeeds};
use crate::workspace::Workspace;
use crate::zig::Zig;

/// The oldest compiler that builds this workspace, as in the root `Cargo.toml`.
const OLDEST: (u32, u32) = (1, 95);

/// The browser and node target.
pub(crate) const WASM: &str = "wasm32-unknown-unknown";

/// A target without operating system and standard library.
pub(crate) const BARE: &str = "x86_64-unknown-none";

/// Where a target's standard library comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Std {
    /// Installed beside the compiler.
    Installed,
    /// Compiled from the sources beside the compiler, with the program.
    FromSource,
}

/// A compiler that can build for one target.
#[derive(Clone, Debug)]
pub(crate) struct Toolchain {
    cargo: PathBuf,
    rustc: PathBuf,
    sysroot: PathBuf,
    /// `rustc --version`, which names release and commit.
    pub(crate) version: String,
    /// The target it was chosen for.
    pub(crate) target: String,
    /// Where the target's standard library comes from.
    pub(crate) std: Std,
}

impl Toolchain {
    /// Chooses the toolchain for a target; the error says what to install.
    pub(crate) fn for_target(workspace: &Workspace, target: &str) -> Result<Self> {
        let compilers = compilers(workspace);
        let with = |std| {
            compilers
                .iter()
                .find(|compiler| compiler.has(target, std))
                .map(|compiler| Self {
                    target: target.to_owned(),
                    std,
                    ..compiler.clone()
                })
        };
        if let Some(found) = with(Std::Installed).or_else(|| with(Std::FromSource)) {
            return Ok(found);
        }
        if let Some(rustup) = find_program("rustup")
            && succeeds(
                Command::new(rustup)
                    .args(["target", "add", target])
                    .current_dir(&workspace.root),
            )
            && let Some(found) = with(Std::Installed)
        {
            return Ok(found);
        }
        bail!(
            "no Rust standard library for {target}: run `rustup target add {target}`, or \
             `apt-get install rustc-web cargo-web rust-web-src rust-web-llvm` on Debian"
        )
    }

    /// A name for what this toolchain makes, for cache keys and directory names.
    pub(crate) fn id(&self) -> String {
        let mut words = self
            .version
            .trim_start_matches("rustc ")
            .split([' ', '(', ')']);
        let release = words.next().unwrap_or_default();
        let commit = words.find(|word| !word.is_empty()).unwrap_or("unknown");
        let std = match self.std {
            Std::Installed => "std",
            Std::FromSource => "build-std",
        };
        format!("{release}-{commit}-{std}")
    }

    /// `cargo build` for the target with a target directory of its own in the cache (the flags
    /// differ from those of host builds and would throw them away). Add `--package` and such.
    pub(crate) fn cargo_build(&self, workspace: &Workspace) -> Command {
        let mut command = Command::new(&self.cargo);
        command.arg("build");
        self.prepare(workspace, &mut command);
        command
    }

    /// Like [`Self::cargo_build`], with zig as the C compiler and linker: for musl targets.
    pub(crate) fn zig_build(&self, workspace: &Workspace, zig: &Zig) -> Command {
        let mut command = zig.cargo_zigbuild();
        command.arg("zigbuild");
        self.prepare(workspace, &mut command);
        command
    }

    /// The directory below which cargo leaves `<target>/<profile>/…`.
    pub(crate) fn target_dir(&self, workspace: &Workspace) -> PathBuf {
        workspace.cache.join("target").join(self.id())
    }

    fn prepare(&self, workspace: &Workspace, command: &mut Command) {
        // The names of this machine's directories have no place in a program that is given away.
        let mut flags = vec![format!(
            "--remap-path-prefix={}=/vdkr",
            workspace.root.display()
        )];
        for (variable, name) in [("CARGO_HOME", "/cargo"), ("HOME", "/home")] {
            if let Some(path) = std::env::var_os(variable).filter(|value| value.len() > 1) {
                flags.push(format!(
                    "--remap-path-prefix={}={name}",
                    Path::new(&path).display()
                ));
            }
        }
        if self.std == Std::FromSource {
            let parts = if self.target == BARE {
                "core,alloc"
            } else {
                "std,panic_abort"
            };
            command
                .arg(format!("-Zbuild-std={parts}"))
                .env("RUSTC_BOOTSTRAP", "1");
            if self.target.ends_with("-musl") {
                // Else the linker looks for start-up objects that only rustup's library brings.
                flags.push("-Clink-self-contained=no".to_owned());
            }
        }
        forget_own_package(command);
        command
            .args(["--target", &self.target, "--target-dir"])
            .arg(self.target_dir(workspace))
            .current_dir(&workspace.root)
            .env("CARGO", &self.cargo)
            .env("RUSTC", &self.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_BUILD_TARGET")
            .env_remove("CARGO_TARGET_DIR");
    }

    fn new(workspace: &Workspace, cargo: PathBuf, rustc: PathBuf) -> Option<Self> {
        let ask = |argument: &[&str]| {
            capture_text(
                Command::new(&rustc)
                    .args(argument)
                    .current_dir(&workspace.root),
            )
            .ok()
        };
        let version = ask(&["--version"])?;
        let sysroot = PathBuf::from(ask(&["--print", "sysroot"])?);
        (release(&version)? >= OLDEST).then_some(Self {
            cargo,
            rustc,
            sysroot,
            version,
            target: String::new(),
            std: Std::Installed,
        })
    }

    fn has(&self, target: &str, std: Std) -> bool {
        let libraries = self.sysroot.join("lib/rustlib");
        match std {
            Std::Installed => libraries.join(target).join("lib").is_dir(),
            Std::FromSource => {
                // wasm32 has no linker but LLVM's; Debian packs it apart from the compiler.
                libraries.join("src/rust/library/std/Cargo.toml").is_file()
                    && (target != WASM || find_program("rust-lld").is_some())
            }
        }
    }
}

/// `(1, 96)` of "rustc 1.96.0 (…)".
fn release(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.strip_prefix("rustc ")?.split(['.', '-', ' ']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The compilers of this machine that are new enough, the preferred one first.
fn compilers(workspace: &Workspace) -> Vec<Toolchain> {
    let only = std::env::var("VDKR_TOOLCHAIN").unwrap_or_default();
    let own = PathBuf::from(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    let beside = own.with_file_name("rustc");
    let rustc = if beside.is_file() {
        beside
    } else {
        find_program("rustc").unwrap_or(beside)
    };
    let mut found = Vec::new();
    if only != "debian" {
        found.extend(Toolchain::new(workspace, own.clone(), rustc));
    }
    let debian = Path::new("/usr/bin/cargo");
    if only != "default" && debian.is_file() && (own != debian || only == "debian") {
        found.extend(Toolchain::new(
            workspace,
            debian.into(),
            "/usr/bin/rustc".into(),
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::release;

    #[test]
    fn release_is_read_from_the_version_line() {
        assert_eq!(
            release("rustc 1.96.0 (ac68faa20 2026-05-25)"),
            Some((1, 96))
        );
        assert_eq!(
            release("rustc 1.97.0-nightly (x 2026-06-01)"),
            Some((1, 97))
        );
        assert_eq!(release("gcc 12"), None);
    }
}
