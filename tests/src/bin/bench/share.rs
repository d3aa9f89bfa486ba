//! A directory of this computer in a container: one large file, many small ones.

use std::fs::{self, File};
use std::io::Write as _;

use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::noise;
use vdkr_tests::process::run_within;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

use crate::table::Samples;
use crate::{settle, timed};

/// Small files.
const FILES: usize = 10_000;
/// Rounds: each takes long.
const ROUNDS: usize = 3;

/// Prints the table.
pub(crate) fn run() {
    println!("### A shared directory, x86_64 under emulation (TCG)\n");
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    let push = ["push", "--tag", "latest", image.to_str().unwrap()];
    registry.run(push).expect(0);
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    user.run(["--registry", &prefix, "pull", "container-base"])
        .expect(0);

    let place = tempfile::tempdir().unwrap();
    let mut large = File::create(place.path().join("large")).unwrap();
    for piece in 0..64 {
        large.write_all(&noise(piece, 16 << 20)).unwrap();
    }
    drop(large);
    let volume = format!("{}:/v", place.path().display());
    let each = |body: &str| format!("i=0; while [ $i -lt {FILES} ]; do {body}; i=$((i+1)); done");
    let rows = [
        ("1 GiB read", "cat large > /dev/null".to_owned()),
        ("1 GiB copied within", "cat large > copy".to_owned()),
        (
            "10,000 files made",
            format!("mkdir d; {}", each("echo $i > d/$i")),
        ),
        (
            "10,000 files listed with their sizes",
            "ls -l d > /dev/null".to_owned(),
        ),
        ("10,000 files looked at, one by one", each("test -f d/$i")),
        ("10,000 files read", each("read x < d/$i")),
        ("10,000 files removed", "rm -r d".to_owned()),
    ];
    let mut samples = vec![Samples::default(); rows.len()];
    for _ in 0..ROUNDS {
        for ((_, script), samples) in rows.iter().zip(&mut samples) {
            settle();
            let mut command = user.command();
            let run = ["run", "--rm", "-v", &volume, "-w", "/v", "container-base"];
            command.args(run).args(["sh", "-c", script]);
            let (time, ran) = timed(|| run_within(&mut command, b"", 4 * PATIENCE));
            ran.expect(0);
            samples.add_time(time);
        }
        fs::remove_file(place.path().join("copy")).unwrap();
    }
    println!("| what | s, median (min–max) of {ROUNDS} |\n|---|---|");
    for ((what, _), samples) in rows.iter().zip(&samples) {
        println!("| {what} | {} |", samples.show(2));
    }
    println!();
}
