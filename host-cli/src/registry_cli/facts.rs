//! Facts for tag strategies: the time, git, the version and the architecture.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use vdkr_core::tags::TagFacts;

use super::config::Config;

/// Gathers the facts once, so that every image of a run gets the same tags.
pub fn gather(config: &Config) -> TagFacts {
    let git_dir = git_directory();
    let git = |args: &[&str]| git_dir.as_deref().and_then(|dir| git(dir, args));
    TagFacts {
        timestamp: Some(jiff::Zoned::now().strftime("%Y%m%d-%H%M%S").to_string()),
        git_sha: git(&["rev-parse", "--short", "HEAD"]),
        // Prints nothing and fails on a detached head, which is no branch.
        branch: git(&["symbolic-ref", "--short", "--quiet", "HEAD"]),
        version: config.value("image_version").map(str::to_owned),
        arch: config.value("target_arch").map(str::to_owned),
    }
}

/// The build directory when its environment is set up, else the current directory.
fn git_directory() -> Option<PathBuf> {
    std::env::var_os("BUILDDIR")
        .map(PathBuf::from)
        .filter(|dir| git(dir, &["rev-parse", "--git-dir"]).is_some())
        .or_else(|| std::env::current_dir().ok())
}

fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(dir)
        .args(args)
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
