//! The guest agent: one static program for each architecture, made with the profile `small`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key};
use crate::elf::Elf;
use crate::run::{megabytes, run};
use crate::toolchain::Toolchain;
use crate::workspace::{Arch, Workspace};
use crate::zig::Zig;

/// The largest agent that may ship, in bytes.
const MOST: u64 = 6 * 1000 * 1000;

/// What the agent is made of, beside the compiler.
const SOURCES: [&str; 3] = ["core", "transfer", "guest-agent"];

/// Builds the agent unless the cache has it, checks it and links it as `target/agent/<arch>/vdkr-agent`.
pub(crate) fn build(workspace: &Workspace, arch: Arch) -> Result<PathBuf> {
    let toolchain = Toolchain::for_target(workspace, arch.musl())?;
    let mut key = Key::new("agent", 1)
        .with("arch", arch.name())
        .with("toolchain", toolchain.id())
        .with("zig", Zig::id())
        .with_file(&workspace.root.join("Cargo.toml"))?
        .with_file(&workspace.root.join("Cargo.lock"))?;
    for source in SOURCES {
        key = key.with_tree(&workspace.root.join(source))?;
    }
    let entry = cache::entry(
        workspace,
        &format!("agent/{}", arch.name()),
        &key.finish(),
        |place| {
            eprintln!("building the {} agent with {}", arch.name(), toolchain.id());
            let program = compile(
                workspace,
                &toolchain,
                &["--package=vdkr-agent", "--features=silent"],
                "small",
            )?
            .join("vdkr-agent");
            check(&program)?;
            fs::copy(&program, place.join("vdkr-agent"))
                .with_context(|| format!("cannot copy {}", program.display()))?;
            Ok(())
        },
    )?;
    let agent =
        cache::link(workspace, &format!("agent/{}", arch.name()), &entry)?.join("vdkr-agent");
    let size = fs::metadata(&agent)?.len();
    eprintln!(
        "agent {}: {} ({}, static)",
        arch.name(),
        agent.display(),
        megabytes(size)
    );
    Ok(agent)
}

/// Builds static programs for a musl target and returns the directory where cargo left them.
pub(crate) fn compile(
    workspace: &Workspace,
    toolchain: &Toolchain,
    packages: &[&str],
    profile: &str,
) -> Result<PathBuf> {
    let zig = Zig::install(workspace)?;
    run(toolchain
        .zig_build(workspace, &zig)
        .args(packages)
        .args(["--profile", profile]))?;
    Ok(toolchain
        .target_dir(workspace)
        .join(&toolchain.target)
        .join(profile))
}

/// Refuses a program that is too big or that would need anything of its target but a kernel.
fn check(program: &Path) -> Result<()> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    require_static(program, &bytes)?;
    if bytes.len() as u64 > MOST {
        bail!(
            "{} has {} bytes; the agent may have {MOST}",
            program.display(),
            bytes.len()
        );
    }
    Ok(())
}

/// Fails unless the program is statically linked.
pub(crate) fn require_static(program: &Path, bytes: &[u8]) -> Result<()> {
    let is_static = Elf::new(bytes)
        .and_then(|elf| elf.is_static())
        .with_context(|| format!("cannot check {}", program.display()))?;
    if !is_static {
        bail!("{} is not statically linked", program.display());
    }
    Ok(())
}
