//! A deploy directory of 200 images: one `container-registry push` against a loop of `skopeo copy` and
//! one of `crane push`, all into our registry, and listing what is there.

use std::path::{Path, PathBuf};

use tempfile::TempDir;
use vdkr_tests::layout::{noise, write_image};
use vdkr_tests::peers::{crane, crane_push, skopeo_copy};
use vdkr_tests::process;
use vdkr_tests::registry::Registry;

use crate::table::{HEAD, Samples, compare_three};
use crate::{ROUNDS, settle, timed};

const IMAGES: usize = 200;
/// Layers that all images share, as images of one distribution do.
const SHARED: usize = 3;
const LAYER: usize = 256 * 1024;

fn deploy_directory(dir: &TempDir) -> (PathBuf, Vec<PathBuf>) {
    let root = dir.path().join("images");
    let machine = root.join("qemux86-64");
    let shared: Vec<_> = (0..SHARED as u64).map(|n| noise(n + 1, LAYER)).collect();
    let images = (0..IMAGES)
        .map(|n| {
            let layout = machine.join(format!("app-{n}-latest-oci"));
            let mut layers = shared.clone();
            layers.push(noise(1000 + n as u64, LAYER));
            write_image(&layout, "amd64", &layers);
            layout
        })
        .collect();
    (root, images)
}

fn name(image: &Path) -> String {
    let name = image.file_name().and_then(|name| name.to_str());
    name.unwrap_or_default()
        .trim_end_matches("-latest-oci")
        .to_owned()
}

/// Prints the table.
pub(crate) fn run() {
    println!("### {IMAGES} images in a deploy directory, into our registry\n");
    println!(
        "{SHARED} layers of {} KiB shared by all, one of its own each. Seconds, median (min–max) of \
         {ROUNDS} rounds in turns; skopeo and crane run once for each image (for the list: once \
         for the catalog and once for each repository).\n",
        LAYER >> 10
    );
    println!("{HEAD}");
    let dir = TempDir::new().expect("a temporary directory");
    let (root, images) = deploy_directory(&dir);
    let all_of_ours = |registry: &Registry| {
        let root = root.to_str().unwrap_or_default();
        registry
            .run([
                "push",
                "--progress",
                "none",
                "--deploy-dir-images",
                root,
                "--strategy",
                "latest",
            ])
            .expect(0);
    };
    let push = |who: usize, registry: &Registry| match who {
        0 => all_of_ours(registry),
        1 => {
            for image in &images {
                let to = format!("docker://{}/yocto/{}:latest", registry.host(), name(image));
                skopeo_copy(&format!("oci:{}", image.display()), &to);
            }
        }
        _ => {
            for image in &images {
                crane_push(
                    image,
                    &format!("{}/yocto/{}:latest", registry.host(), name(image)),
                );
            }
        }
    };
    let list = |who: usize, registry: &Registry| match who {
        0 => drop(registry.run(["list"]).expect(0)),
        1 => {
            // skopeo cannot list repositories; it is given their names.
            for image in &images {
                let repository = format!("docker://{}/yocto/{}", registry.host(), name(image));
                process::run(vdkr_tests::peers::skopeo().args([
                    "list-tags",
                    "--tls-verify=false",
                    &repository,
                ]))
                .expect(0);
            }
        }
        _ => {
            let catalog = process::run(crane().args(["catalog", &registry.host()])).expect(0);
            for repository in catalog.text().lines() {
                let repository = format!("{}/{repository}", registry.host());
                process::run(crane().args(["ls", &repository])).expect(0);
            }
        }
    };
    let mut cold: [Samples; 3] = Default::default();
    let mut again: [Samples; 3] = Default::default();
    let mut listed: [Samples; 3] = Default::default();
    for round in 0..ROUNDS {
        for turn in 0..3 {
            let who = (round + turn) % 3;
            let registry = Registry::start();
            settle();
            cold[who].add_time(timed(|| push(who, &registry)).0);
            again[who].add_time(timed(|| push(who, &registry)).0);
            listed[who].add_time(timed(|| list(who, &registry)).0);
        }
    }
    compare_three("cold push", &cold);
    compare_three("unchanged push", &again);
    compare_three("list all tags", &listed);
    println!();
}
