//! `man`: the manual, one page for each program and command.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;
use clap_mangen::Man;

use super::completions::Program;
use crate::out;

/// Options of `man`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry man | man -l -
  container-registry man ~/.local/share/man/man1")]
pub struct ManArgs {
    /// Directory to write the pages of both programs to; without it this program's page is printed
    #[arg(value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Prints one page, or writes them all.
pub fn run(args: &ManArgs) -> Result<()> {
    let Some(dir) = &args.dir else {
        let mut page = Vec::new();
        Man::new(Program::ContainerRegistry.command()).render(&mut page)?;
        crate::output::write(format_args!("{}", String::from_utf8_lossy(&page)));
        return Ok(());
    };
    std::fs::create_dir_all(dir)
        .with_context(|| format!("cannot create the directory {}", dir.display()))?;
    for program in [Program::ContainerRegistry, Program::Vdkr] {
        clap_mangen::generate_to(program.command(), dir)
            .with_context(|| format!("cannot write to {}", dir.display()))?;
    }
    out!("The manual of both programs is in {}", dir.display());
    Ok(())
}
