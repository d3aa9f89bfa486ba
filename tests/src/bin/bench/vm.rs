//! Starts of a VM and runs of a pulled image, in their stages.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::run_within;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

use crate::table::Samples;
use crate::{ROUNDS, settle, timed};

const RUN: [&str; 6] = ["run", "--rm", "--pull", "never", "container-base", "true"];

/// Prints the tables for each architecture.
pub(crate) fn run() {
    for (arch, machine) in [("x86_64", "qemux86-64"), ("aarch64", "qemuarm64")] {
        one(arch, &layout(machine, "container-base-latest-oci"));
    }
}

fn one(arch: &'static str, image: &Path) {
    println!("### Starts and runs, {arch} under emulation (TCG)\n");
    let registry = Registry::start();
    registry
        .run(["push", "--tag", "latest", image.to_str().unwrap()])
        .expect(0);
    let user = User::new(arch);
    let prefix = format!("{}/yocto", registry.host());
    let pull = ["--registry", &*prefix, "pull", "container-base"];
    let (pull, _) = timed(|| run_within(command(&user).args(pull), b"", PATIENCE).expect(0));

    let (mut restored, mut booted) = (Measured::default(), Measured::default());
    let mut kept = Samples::default();
    for _ in 0..ROUNDS {
        settle();
        restored.take(command(&user).args(RUN));
        settle();
        booted.take(command(&user).env("VDKR_SNAPSHOT", "false").args(RUN));
    }
    let memres = |word: &str| run_within(command(&user).args(["memres", word]), b"", PATIENCE);
    memres("start").expect(0);
    for _ in 0..ROUNDS {
        let (time, ran) = timed(|| run_within(command(&user).args(RUN), b"", PATIENCE));
        ran.expect(0);
        kept.add_time(time);
    }
    memres("stop").expect(0);

    println!("| what | s, median (min–max) of {ROUNDS} |\n|---|---|");
    for (what, samples) in [
        ("snapshot start to the agent's answer", &restored.start),
        ("cold boot to the agent's answer", &booted.start),
        ("`vdkr run --rm IMG true`, nothing running", &restored.whole),
        ("the same without a snapshot", &booted.whole),
        ("`vdkr run --rm IMG true` on a kept VM", &kept),
    ] {
        println!("| {what} | {} |", samples.show(2));
    }
    println!(
        "\nFirst pull, with the boot that makes the snapshot: {:.2} s.\n",
        pull.as_secs_f64()
    );
    println!("| stage of a run | ms, from a snapshot | ms, booted |\n|---|---|---|");
    let mut names: Vec<_> = restored
        .stages
        .iter()
        .map(|(k, (at, _))| (*at, k))
        .collect();
    let others = booted.stages.iter().map(|(k, (at, _))| (*at, k));
    names.extend(others.filter(|(_, name)| !restored.stages.contains_key(*name)));
    names.sort();
    for (_, name) in names {
        let show = |measured: &Measured| {
            let samples = measured.stages.get(name);
            samples.map_or("–".to_owned(), |(_, samples)| samples.show(0))
        };
        println!("| {name} | {} | {} |", show(&restored), show(&booted));
    }
    println!();
}

fn command(user: &User) -> Command {
    let mut command = user.command();
    command.args(["--accel", "tcg"]);
    command
}

/// A command that starts a machine of its own.
#[derive(Default)]
struct Measured {
    whole: Samples,
    /// From nothing to the agent's greeting, with its state mounted.
    start: Samples,
    stages: BTreeMap<String, (usize, Samples)>,
}

impl Measured {
    fn take(&mut self, command: &mut Command) {
        command.env("VDKR_TIMING", "1");
        let (time, ran) = timed(|| run_within(command, b"", PATIENCE));
        self.whole.add_time(time);
        let mut start = 0.0;
        for (at, (name, ms)) in ran.expect(0).stderr.lines().filter_map(stage).enumerate() {
            if !["layers", "request", "shutdown", "total"].contains(&&*name) {
                start += ms / 1000.0;
            }
            let known = self.stages.entry(name);
            known.or_insert_with(|| (at, Samples::default())).1.add(ms);
        }
        self.start.add(start);
    }
}

/// A line of the table of `VDKR_TIMING=1`: `    guest kernel    812.0 ms`.
fn stage(line: &str) -> Option<(String, f64)> {
    let (name, ms) = line.strip_suffix(" ms")?.rsplit_once(' ')?;
    Some((name.trim().to_owned(), ms.parse().ok()?))
}
