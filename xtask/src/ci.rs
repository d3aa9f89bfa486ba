//! The test command: every check in order, with the time that each took.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::fixtures::Scope;
use crate::image::Source;
use crate::run::{capture, capture_text, cargo, run};
use crate::workspace::{Arch, Workspace};
use crate::{agent, board, core_targets, deny, fixtures, image, testing, wasm};

/// One line of the table.
struct Step {
    name: &'static str,
    /// Whether `--only lint` keeps it.
    lint: bool,
    perform: fn(&Workspace) -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "lock file",
        lint: true,
        perform: lock_file,
    },
    Step {
        name: "formatting",
        lint: true,
        perform: formatting,
    },
    Step {
        name: "clippy",
        lint: true,
        perform: clippy,
    },
    Step {
        name: "licences and bans",
        lint: true,
        perform: deny::check,
    },
    Step {
        name: "core without std",
        lint: false,
        perform: core_targets::build,
    },
    Step {
        name: "agents",
        lint: false,
        perform: agents,
    },
    Step {
        name: "vm images",
        lint: false,
        perform: images,
    },
    Step {
        name: "fixtures",
        lint: false,
        perform: all_fixtures,
    },
    Step {
        name: "wasm",
        lint: false,
        perform: wasm::test,
    },
    Step {
        name: "compiling tests",
        lint: false,
        perform: testing::compile,
    },
    Step {
        name: "tests",
        lint: false,
        perform: testing::all,
    },
];

/// Which steps to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Only {
    /// Formatting, clippy and licences.
    Lint,
}

/// Runs the steps, stops at the first that fails, and prints the table in any case.
pub(crate) fn perform(workspace: &Workspace, only: Option<Only>) -> Result<()> {
    let mut table: Vec<(&str, Duration, bool)> = Vec::new();
    let mut failure = None;
    for step in STEPS.iter().filter(|step| step.lint || only.is_none()) {
        eprintln!("\n=== {}", step.name);
        let start = Instant::now();
        let result = (step.perform)(workspace);
        table.push((step.name, start.elapsed(), result.is_ok()));
        if let Err(error) = result {
            failure = Some(error.context(format!("{} failed", step.name)));
            break;
        }
    }
    println!("\nstep                    time");
    for (name, time, passed) in &table {
        let mark = if *passed { "" } else { "  FAILED" };
        println!("{name:<20} {:>6.1} s{mark}", time.as_secs_f32());
    }
    let total: Duration = table.iter().map(|(_, time, _)| *time).sum();
    println!("{:<20} {:>6.1} s", "all", total.as_secs_f32());
    failure.map_or(Ok(()), Err)
}

/// Cargo.lock says all that the manifests ask for; later steps would mend it silently.
fn lock_file(workspace: &Workspace) -> Result<()> {
    capture(cargo(workspace).args(["metadata", "--locked", "--format-version=1"])).map(drop)
}

fn formatting(workspace: &Workspace) -> Result<()> {
    run(cargo(workspace).args(["fmt", "--all", "--check"]))
}

/// Warnings are errors on the pinned compiler only: newer ones have lints that nobody has seen yet.
fn clippy(workspace: &Workspace) -> Result<()> {
    let pinned = fs::read_to_string(workspace.root.join("rust-toolchain.toml"))
        .ok()
        .and_then(|text| text.split('"').nth(1).map(str::to_owned))
        .context("rust-toolchain.toml names no channel")?;
    let now = capture_text(cargo(workspace).arg("--version"))?;
    let level = if now.contains(&format!(" {pinned} ")) {
        "-Dwarnings"
    } else {
        "-Wwarnings"
    };
    run(cargo(workspace).args(["clippy", "--workspace", "--all-targets", "--", level]))
}

fn agents(workspace: &Workspace) -> Result<()> {
    Arch::ALL
        .into_iter()
        .try_for_each(|arch| agent::build(workspace, arch).map(drop))
}

fn images(workspace: &Workspace) -> Result<()> {
    for arch in Arch::ALL {
        let agent = agent::build(workspace, arch)?;
        let source = Source::Debian { newest: false };
        image::build(workspace, arch, &agent, &source, None)?;
        if arch == Arch::X86_64 {
            board::build(workspace, &agent, board::Content::Plain)?;
        }
    }
    Ok(())
}

fn all_fixtures(workspace: &Workspace) -> Result<()> {
    fixtures::build(workspace, Scope::Tests).map(drop)
}

/// Runs the benches; `docs/benchmarks.md` says how to read them.
pub(crate) fn bench(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    fixtures::build(workspace, Scope::Benches)?;
    if arguments.iter().any(|part| part == "docker") {
        for arch in Arch::ALL {
            let agent = agent::build(workspace, arch)?;
            board::build(workspace, &agent, board::Content::Docker(arch))?;
        }
    }
    measure(workspace, &Arch::ALL, "vdkr-bench", arguments)
}

/// Runs a soak, of the registry or of a machine.
pub(crate) fn soak(workspace: &Workspace, arguments: &[String]) -> Result<()> {
    measure(workspace, &[Arch::HOST], "vdkr-soak", arguments)
}

/// Builds what users get, with VM images of these architectures, and runs a program that drives it.
fn measure(
    workspace: &Workspace,
    archs: &[Arch],
    program: &str,
    arguments: &[String],
) -> Result<()> {
    for arch in archs {
        let agent = agent::build(workspace, *arch)?;
        let source = Source::Debian { newest: false };
        image::build(workspace, *arch, &agent, &source, None)?;
    }
    fixtures::build(workspace, Scope::Tests)?;
    run(cargo(workspace).args([
        "build",
        "--release",
        "--bins",
        "--package=vdkr-host",
        "--package=vdkr-tests",
    ]))?;
    let mut program = Command::new(workspace.target.join("release").join(program));
    run(program
        .args(arguments)
        .env("PATH", testing::path_with_peers(workspace)?)
        .current_dir(&workspace.root))
}
