//! Measurements for `docs/benchmarks.md`: ours and a peer in turns, in one run, as Markdown on
//! stdout. `cargo xtask bench` builds what it needs.

mod deploy;
mod docker;
mod first_run;
mod push;
mod server;
mod share;
mod table;
mod vm;

use std::{process::ExitCode, time::Duration};

/// Rounds of each measurement; the first of a pair changes places every round.
const ROUNDS: usize = 5;

/// What there is to measure. Docker's part boots whole systems and measures nothing of ours: it comes
/// by its name alone.
const PARTS: [&str; 7] = [
    "push",
    "deploy",
    "server",
    "vm",
    "first-run",
    "share",
    "docker",
];

fn main() -> ExitCode {
    vdkr_tests::process::end_processes_on_panic();
    let only = std::env::args().nth(1);
    if let Some(unknown) = only.as_deref().filter(|only| !PARTS.contains(only)) {
        eprintln!("no part {unknown:?}; there are: {}", PARTS.join(", "));
        return ExitCode::from(2);
    }
    let wanted = |name: &str| only.as_deref().is_none_or(|only| only == name);
    println!("{}", table::machine());
    if wanted("push") {
        push::run();
    }
    if wanted("deploy") {
        deploy::run();
    }
    if wanted("server") {
        server::run();
    }
    if wanted("vm") || wanted("first-run") {
        first_run::run();
    }
    if only.as_deref() == Some("docker") {
        docker::run();
    }
    if wanted("vm") {
        vm::run();
    }
    if wanted("vm") || wanted("share") {
        share::run();
    }
    ExitCode::SUCCESS
}

/// Times one piece of work.
fn timed<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let begun = std::time::Instant::now();
    let result = work();
    (begun.elapsed(), result)
}

/// Flushes what earlier rounds left to be written, so that no round pays for another's.
fn settle() {
    nix::unistd::sync();
}
