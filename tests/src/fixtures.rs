//! The real images that `cargo xtask fixtures` made.

use std::path::{Path, PathBuf};

/// The deploy directory with one folder per machine.
#[track_caller]
pub fn deploy_dir() -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test");
    let found = exe
        .ancestors()
        .map(|dir| dir.join("fixtures/deploy/images"))
        .find(|d| d.is_dir());
    found
        .expect("target/fixtures is missing; `cargo xtask fixtures` makes it")
        .canonicalize()
        .expect("the directory just seen")
}

/// A layout by its machine and directory name.
#[track_caller]
pub fn layout(machine: &str, name: &str) -> PathBuf {
    let path = deploy_dir().join(machine).join(name);
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
