//! Pull of a Debian image and its first run, nothing of it there before: on the host, and in the
//! machine.

use std::path::Path;

use vdkr_tests::fixtures::bench_layout;
use vdkr_tests::process::run_within;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

use crate::table::{Samples, compare};
use crate::{ROUNDS, settle, timed};

/// Prints the tables.
pub(crate) fn run() {
    for (arch, machine) in [("x86_64", "qemux86-64"), ("aarch64", "qemuarm64")] {
        one(arch, &bench_layout(machine, "debian-large-latest-oci"));
    }
}

fn one(arch: &'static str, image: &Path) {
    println!("### Pull of a Debian image and its first run, {arch} under emulation (TCG)\n");
    let registry = Registry::start();
    let push = ["push", "--tag", "latest", image.to_str().expect("UTF-8")];
    registry.run(push).expect(0);
    let bytes = std::fs::read_dir(image.join("blobs/sha256"))
        .expect("a layout")
        .filter_map(|blob| Some(blob.ok()?.metadata().ok()?.len()))
        .sum::<u64>();
    let prefix = format!("{}/yocto", registry.host());
    let user = User::new(arch);
    let first_run = |place: &str| {
        // State, images and layers go; what starts the machine stays.
        user.run(["vstorage", "clean", "--all"]).expect(0);
        settle();
        let mut command = user.command();
        command.args(["--accel", "tcg", "--registry", &prefix, "--pull-in", place]);
        command.args(["run", "--rm", "debian-large", "true"]);
        let (time, ran) = timed(|| run_within(&mut command, b"", PATIENCE));
        ran.expect(0);
        time
    };
    first_run("host");
    let (mut here, mut there) = (Samples::default(), Samples::default());
    for round in 0..ROUNDS {
        let mut places = [("host", &mut here), ("guest", &mut there)];
        if round % 2 == 1 {
            places.reverse();
        }
        for (place, samples) in places {
            samples.add_time(first_run(place));
        }
    }
    println!(
        "| {} MB compressed | pulled on the host, s | in the machine, s | ratio |",
        bytes / 1_000_000
    );
    println!("|---|---|---|---|");
    compare("pull and first run", &here, &there, 2, true);
    println!();
}
