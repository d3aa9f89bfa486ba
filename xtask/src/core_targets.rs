//! The proof that `core` needs no operating system: it is built for every target that uses it,
//! and for one that has no standard library at all.

use anyhow::{Context, Result};

use crate::run::run;
use crate::toolchain::{BARE, Toolchain, WASM};
use crate::workspace::{Arch, Workspace};
use crate::zig::Zig;

/// Builds `core` for wasm32, both musl targets and a bare one.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    let zig = Zig::install(workspace)?;
    for target in [Arch::X86_64.musl(), Arch::Aarch64.musl(), WASM, BARE] {
        let toolchain = Toolchain::for_target(workspace, target)?;
        let mut command = if target.ends_with("-musl") {
            toolchain.zig_build(workspace, &zig)
        } else {
            toolchain.cargo_build(workspace)
        };
        // The profile of the shipped programs, so that a library built from source is built once.
        run(command.args(["--quiet", "--profile=small", "--package=vdkr-core"]))
            .with_context(|| format!("core does not build for {target}"))?;
        eprintln!("core builds for {target} with {}", toolchain.id());
    }
    Ok(())
}
