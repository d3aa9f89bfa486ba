//! The builds around the programs: agent, VM image, fixtures, checks, demo, distribution.
//!
//! `cargo xtask help` lists the tasks; the Makefile names those that people type.

mod agent;
mod apt;
mod board;
mod cache;
mod ci;
mod core_targets;
mod demo;
mod deny;
mod dist;
mod elf;
mod fixtures;
mod image;
mod newc;
mod peers;
mod run;
mod testing;
mod toolchain;
mod wasm;
mod workspace;
mod zig;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

use fixtures::Scope;
use workspace::{Arch, ArchChoice, Workspace};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, checks and demonstrates the project"
)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the static guest agent
    Agent {
        /// The architecture
        #[arg(long, value_enum, default_value = "all")]
        arch: ArchChoice,
    },
    /// Build the VM image: kernel and initramfs
    Image {
        /// The architecture
        #[arg(long, value_enum, default_value = "all")]
        arch: ArchChoice,
        /// A kernel with all that it needs built in, instead of Debian's
        #[arg(long, value_name = "FILE")]
        kernel: Option<PathBuf>,
        /// Take this program as the agent instead of building it
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// Ask Debian's archive for a newer kernel
        #[arg(long)]
        newest: bool,
        /// Bring the files of this directory, as `container-registry bake --rootfs DIR --profile
        /// vdkr` writes them: registry, CA and login that hold when a command names none
        #[arg(long, value_name = "DIR")]
        baked: Option<PathBuf>,
    },
    /// Build the full image of the tests: Debian with systemd, and the agent as its service
    Board {
        /// Take this program as the agent instead of building it
        #[arg(long, value_name = "FILE")]
        agent: Option<PathBuf>,
        /// With Docker's engine of this architecture, for `bench docker`; otherwise without
        #[arg(long, value_enum, value_name = "ARCH")]
        docker: Option<Arch>,
    },
    /// Show the main job: registry, push, VM, pull, run
    Demo,
    /// Build `core` for every target that uses it, and for one without std
    CoreTargets,
    /// Build the npm package around `core`
    Wasm {
        /// Run its tests under node, too
        #[arg(long)]
        test: bool,
    },
    /// Run every check and test, with the time of each
    Ci {
        /// Only these steps
        #[arg(long, value_enum)]
        only: Option<ci::Only>,
    },
    /// Run all tests, or some alone, with the peers on the path
    Test {
        /// Arguments of `cargo test`, such as `-p vdkr-tests --test machine`; without, all tests run
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run the benches
    Bench {
        /// Arguments of the bench program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run a soak: [SECONDS] [SEED] of the registry, or runs [COUNT] of a machine
    Soak {
        /// Arguments of the soak program
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Make what is given to users in target/dist: static programs, agents, VM images
    Dist {
        /// The hosts' architecture
        #[arg(long, value_enum, default_value = "all")]
        arch: ArchChoice,
    },
    /// Make the images that tests and benches push
    Fixtures {
        /// The big images of the benches instead
        #[arg(long)]
        bench: bool,
    },
}

fn main() -> ExitCode {
    let task = Cli::parse().task;
    match Workspace::find().and_then(|workspace| perform(&workspace, task)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn perform(workspace: &Workspace, task: Task) -> Result<()> {
    match task {
        Task::Agent { arch } => {
            for arch in arch.list() {
                agent::build(workspace, *arch)?;
            }
        }
        Task::Image {
            arch,
            kernel,
            agent,
            newest,
            baked,
        } => {
            if (kernel.is_some() || agent.is_some()) && arch == ArchChoice::All {
                bail!("a kernel or an agent is of one architecture: name it with --arch");
            }
            let source = kernel.map_or(image::Source::Debian { newest }, image::Source::File);
            for arch in arch.list() {
                let agent = match &agent {
                    Some(file) => file.clone(),
                    None => agent::build(workspace, *arch)?,
                };
                image::build(workspace, *arch, &agent, &source, baked.as_deref())?;
            }
        }
        Task::Board { agent, docker } => {
            let content = docker.map_or(board::Content::Plain, board::Content::Docker);
            let agent = match agent {
                Some(file) => file,
                None => agent::build(workspace, content.arch())?,
            };
            let place = board::build(workspace, &agent, content)?;
            eprintln!("board: {}", place.display());
        }
        Task::Demo => demo::perform(workspace)?,
        Task::CoreTargets => core_targets::build(workspace)?,
        Task::Wasm { test: false } => wasm::build(workspace).map(drop)?,
        Task::Wasm { test: true } => wasm::test(workspace)?,
        Task::Ci { only } => ci::perform(workspace, only)?,
        Task::Test { arguments } if arguments.is_empty() => testing::all(workspace)?,
        Task::Test { arguments } => testing::some(workspace, &arguments)?,
        Task::Bench { arguments } => ci::bench(workspace, &arguments)?,
        Task::Soak { arguments } => ci::soak(workspace, &arguments)?,
        Task::Dist { arch } => dist::build(workspace, arch.list())?,
        Task::Fixtures { bench } => {
            let scope = if bench { Scope::Benches } else { Scope::Tests };
            let place = fixtures::build(workspace, scope)?;
            eprintln!("fixtures: {}", place.display());
        }
    }
    Ok(())
}
