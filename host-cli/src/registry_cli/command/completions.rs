//! `completions`: what a shell needs to complete the commands of both programs.

use std::io::Write as _;

use anyhow::Result;
use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::registry_cli::help;

/// Options of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry completions bash > ~/.local/share/bash-completion/completions/container-registry
  container-registry completions zsh --for vdkr > ~/.zfunc/_vdkr")]
pub struct CompletionsArgs {
    /// Shell
    pub shell: Shell,
    /// Program whose commands are completed
    #[arg(long = "for", value_name = "PROGRAM", value_enum, default_value_t)]
    pub program: Program,
}

/// The programs of this package.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Program {
    /// The registry
    #[default]
    ContainerRegistry,
    /// Containers in a virtual machine
    Vdkr,
}

impl Program {
    /// Its whole command line, as the parser itself knows it.
    pub fn command(self) -> clap::Command {
        match self {
            Self::ContainerRegistry => help::command(),
            Self::Vdkr => crate::vdkr::args::Cli::command(),
        }
    }
}

/// Prints the script.
pub fn run(args: &CompletionsArgs) -> Result<()> {
    let mut command = args.program.command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    script.flush()?;
    crate::output::write(format_args!("{}", String::from_utf8_lossy(&script)));
    Ok(())
}
