//! Garbage collection, as tests ask for it.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use vdkr_core::digest::Digest;
use vdkr_core::extension::{GcOptions, GcReport};

/// No grace and no history: everything goes that nothing names.
pub const STRICT: GcOptions = GcOptions {
    dry_run: false,
    grace: 0,
    history: 0,
    history_age: 0,
};

pub fn gc(bench: &super::Bench, options: GcOptions) -> GcReport {
    let stop = AtomicBool::new(false);
    bench
        .registry
        .storage()
        .collect_garbage(&options, &stop)
        .unwrap()
}

pub fn manifest(repository: &str, target: impl std::fmt::Display) -> String {
    format!("/v2/{repository}/manifests/{target}")
}

pub fn blob(repository: &str, content: &[u8]) -> String {
    format!("/v2/{repository}/blobs/{}", Digest::sha256(content))
}

/// Makes everything stored look as if it was made so long ago.
pub fn back_date(dir: &Path, by: Duration) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            back_date(&path, by);
        }
        let then = SystemTime::now() - by;
        std::fs::File::open(&path)
            .unwrap()
            .set_modified(then)
            .unwrap();
    }
}

pub fn stored_files(bench: &super::Bench) -> usize {
    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .map(|path| if path.is_dir() { count(&path) } else { 1 })
            .sum()
    }
    count(&bench.v2().join("blobs"))
}
