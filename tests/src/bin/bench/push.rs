//! `container-registry push` against `skopeo copy` and `crane push`, all into our registry.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::peers::{crane_push, skopeo_copy};
use vdkr_tests::registry::Registry;

use crate::table::{HEAD, Samples, compare_three};
use crate::{ROUNDS, settle, timed};

const MIB: usize = 1 << 20;

/// The two shapes: few big layers, and many small ones.
pub(crate) fn images(dir: &TempDir) -> Vec<(&'static str, PathBuf)> {
    let big = dir.path().join("big-latest-oci");
    let layers: Vec<_> = (0..4).map(|n| noise(n + 1, 256 * MIB)).collect();
    write_image(&big, "amd64", &layers);
    drop(layers);
    let many = dir.path().join("many-latest-oci");
    let layers: Vec<_> = (0..40).map(|n| noise(100 + n, 64 * 1024)).collect();
    write_image(&many, "amd64", &layers);
    vec![("1 GiB in 4 layers", big), ("40 layers of 64 KiB", many)]
}

/// Who pushes; the numbers are places in the arrays of samples.
#[derive(Clone, Copy, PartialEq)]
enum Pusher {
    Ours,
    Skopeo,
    Crane,
}

const PUSHERS: [Pusher; 3] = [Pusher::Ours, Pusher::Skopeo, Pusher::Crane];

fn push(pusher: Pusher, registry: &Registry, image: &Path) {
    match pusher {
        Pusher::Ours => {
            let args = [
                "push",
                "--progress",
                "none",
                "--tag",
                "latest",
                image.to_str().unwrap(),
            ];
            registry.run(args).expect(0);
        }
        Pusher::Skopeo => skopeo_copy(
            &format!("oci:{}", image.display()),
            &format!("docker://{}/bench/image:latest", registry.host()),
        ),
        Pusher::Crane => crane_push(image, &format!("{}/bench/image:latest", registry.host())),
    }
}

/// Prints the table.
pub(crate) fn run() {
    println!(
        "### Push: `container-registry push`, `skopeo copy` and `crane push`, into our registry\n"
    );
    println!(
        "Seconds, median (min–max) of {ROUNDS} rounds in turns; cold: empty storage, disk synced.\n"
    );
    println!("{HEAD}");
    let dir = TempDir::new().expect("a temporary directory");
    for (name, image) in images(&dir) {
        let mut cold: [Samples; 3] = Default::default();
        let mut again: [Samples; 3] = Default::default();
        for round in 0..ROUNDS {
            let mut turns = PUSHERS;
            turns.rotate_left(round % PUSHERS.len());
            for pusher in turns {
                let registry = Registry::start();
                settle();
                cold[pusher as usize].add_time(timed(|| push(pusher, &registry, &image)).0);
                again[pusher as usize].add_time(timed(|| push(pusher, &registry, &image)).0);
            }
        }
        compare_three(&format!("{name}, cold"), &cold);
        compare_three(&format!("{name}, everything there"), &again);
    }
    println!();
}
