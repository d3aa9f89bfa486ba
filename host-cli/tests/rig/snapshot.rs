//! What is kept in `snapshots/` and compared word for word.

use std::fs;
use std::path::{Path, PathBuf};

/// Where they lie.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots")
}

/// Whether they are to be written anew.
pub(crate) fn updating() -> bool {
    std::env::var_os("UPDATE_SNAPSHOTS").is_some_and(|value| value == "1")
}

/// Compares with the file, or writes it. Returns what is wrong.
pub(crate) fn compare(name: &str, text: &str) -> Option<String> {
    let path = directory().join(name);
    if updating() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        return None;
    }
    let known = fs::read_to_string(&path).unwrap_or_default();
    if known == text {
        return None;
    }
    let at = known.lines().zip(text.lines()).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| known.lines().count().min(text.lines().count()));
    Some(format!(
        "{name}, line {}:\n  was: {}\n  is:  {}",
        at + 1,
        known.lines().nth(at).unwrap_or("(nothing)"),
        text.lines().nth(at).unwrap_or("(nothing)")
    ))
}

/// Fails the test where something is wrong.
#[track_caller]
pub(crate) fn report(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "messages changed; when that is meant: UPDATE_SNAPSHOTS=1 cargo test -p vdkr-host --test messages --test hostile_arguments\n{}",
        wrong.join("\n")
    );
}
