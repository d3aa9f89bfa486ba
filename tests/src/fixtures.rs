//! The real images that `cargo xtask fixtures` made.

use std::path::{Path, PathBuf};

/// The deploy directory with one folder per machine.
#[track_caller]
pub fn deploy_dir() -> PathBuf {
    made("fixtures")
}

/// A directory of `target`, with its machines.
#[track_caller]
fn made(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test");
    let found = exe
        .ancestors()
        .map(|dir| dir.join(name).join("deploy/images"))
        .find(|d| d.is_dir());
    found
        .unwrap_or_else(|| panic!("target/{name} is missing; `cargo xtask {name}` makes it"))
        .canonicalize()
        .expect("the directory just seen")
}

/// A layout by its machine and directory name.
#[track_caller]
pub fn layout(machine: &str, name: &str) -> PathBuf {
    whole(deploy_dir().join(machine).join(name))
}

/// A layout that only benches use, which `cargo xtask bench` makes.
#[track_caller]
pub fn bench_layout(machine: &str, name: &str) -> PathBuf {
    whole(made("fixtures-bench").join(machine).join(name))
}

#[track_caller]
fn whole(path: PathBuf) -> PathBuf {
    assert!(
        path.join("index.json").is_file(),
        "{} is no OCI layout",
        path.display()
    );
    path
}

/// Copies a directory tree of regular files, for tests that damage it.
pub fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("create a directory");
    for entry in std::fs::read_dir(from).expect("read a directory") {
        let entry = entry.expect("read a directory");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).expect("copy a file");
        }
    }
}
