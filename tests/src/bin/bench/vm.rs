//! A cold `vdkr run` of a pulled image, in its stages.

use std::collections::BTreeMap;
use std::path::Path;

use vdkr_tests::fixtures::layout;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

use crate::table::Samples;
use crate::{ROUNDS, settle, timed};

/// Prints the table for each architecture.
pub(crate) fn run() {
    for (arch, machine) in [("x86_64", "qemux86-64"), ("aarch64", "qemuarm64")] {
        one(arch, &layout(machine, "container-base-latest-oci"));
    }
}

fn one(arch: &'static str, image: &Path) {
    println!("### Cold `vdkr run` of a pulled image, {arch} under emulation (TCG)\n");
    let registry = Registry::start();
    registry
        .run(["push", "--tag", "latest", image.to_str().unwrap()])
        .expect(0);
    let user = User::new(arch);
    let prefix = format!("{}/yocto", registry.host());
    let (pull, _) = timed(|| {
        user.run([
            "--accel",
            "tcg",
            "--registry",
            &prefix,
            "pull",
            "container-base",
        ])
        .expect(0)
    });
    let mut whole = Samples::default();
    let mut stages: BTreeMap<String, (usize, Samples)> = BTreeMap::new();
    for _ in 0..ROUNDS {
        settle();
        let args = [
            "--accel",
            "tcg",
            "run",
            "--rm",
            "--pull",
            "never",
            "container-base",
            "true",
        ];
        let mut command = user.command();
        command.env("VDKR_TIMING", "1").args(args);
        let (time, ran) =
            timed(|| vdkr_tests::process::run_within(&mut command, b"", vdkr_tests::vm::PATIENCE));
        whole.add_time(time);
        for (at, (stage, ms)) in ran.expect(0).stderr.lines().filter_map(stage).enumerate() {
            stages
                .entry(stage)
                .or_insert_with(|| (at, Samples::default()))
                .1
                .add(ms);
        }
    }
    println!("| stage | ms, median (min–max) of {ROUNDS} |\n|---|---|");
    let mut ordered: Vec<_> = stages.into_iter().collect();
    ordered.sort_by_key(|(_, (at, _))| *at);
    for (stage, (_, samples)) in ordered {
        println!("| {stage} | {} |", samples.show(0));
    }
    println!(
        "\nWhole command: {} s. First pull with its boot: {:.2} s.\n",
        whole.show(2),
        pull.as_secs_f64()
    );
}

/// A line of the table of `VDKR_TIMING=1`: `    guest kernel    812.0 ms`.
fn stage(line: &str) -> Option<(String, f64)> {
    let (name, ms) = line.strip_suffix(" ms")?.rsplit_once(' ')?;
    Some((name.trim().to_owned(), ms.parse().ok()?))
}
