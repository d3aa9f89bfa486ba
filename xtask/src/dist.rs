//! What is given to users: static host programs, agents and VM images in `target/dist/<arch>`.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context, Result};

use crate::image::Source;
use crate::run::megabytes;
use crate::toolchain::Toolchain;
use crate::workspace::{Arch, Workspace};
use crate::{agent, cache, image};

const PROGRAMS: [&str; 2] = ["container-registry", "vdkr"];

/// Makes `bin/` for each host architecture, where `vdkr-<arch>` is `vdkr` for that target, with `share/vdkr/<arch>/` (VM image) and
/// `libexec/vdkr-agent-<arch>` for each target architecture beside it, where the programs look.
pub(crate) fn build(workspace: &Workspace, hosts: &[Arch]) -> Result<()> {
    for host in hosts {
        let place = workspace.target.join("dist").join(host.name());
        cache::remove(&place)?;
        let toolchain = Toolchain::for_target(workspace, host.musl())?;
        eprintln!(
            "building {} for {} hosts",
            PROGRAMS.join(" and "),
            host.name()
        );
        let built = agent::compile(
            workspace,
            &toolchain,
            &["--package=vdkr-host", "--bins"],
            "release",
        )?;
        for program in PROGRAMS {
            let program_file = built.join(program);
            agent::require_static(&program_file, &fs::read(&program_file)?)?;
            copy(&program_file, &place.join("bin").join(program))?;
        }
        for arch in Arch::ALL {
            let link = place.join("bin").join(format!("vdkr-{}", arch.name()));
            symlink("vdkr", &link).with_context(|| format!("cannot make {}", link.display()))?;
            let agent = agent::build(workspace, arch)?;
            copy(
                &agent,
                &place
                    .join("libexec")
                    .join(format!("vdkr-agent-{}", arch.name())),
            )?;
            let image = image::build(
                workspace,
                arch,
                &agent,
                &Source::Debian { newest: false },
                None,
            )?;
            for file in ["kernel", "initramfs", "vm.json"] {
                copy(
                    &image.join(file),
                    &place.join("share/vdkr").join(arch.name()).join(file),
                )?;
            }
        }
        copy(
            &workspace.root.join("LICENSE"),
            &place.join("share/doc/vdkr/LICENSE"),
        )?;
        for file in cache::files_below(&place)? {
            let size = fs::metadata(&file)?.len();
            println!("{:>9}  {}", megabytes(size), file.display());
        }
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to.parent().context("a file has a parent directory")?)?;
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}
