//! cargo-deny, built once into the cache, with the rules of `deny.toml`.

use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::{self, Key};
use crate::run::{cargo, run};
use crate::workspace::Workspace;

const VERSION: &str = "0.20.2";

/// Checks licences, banned crates and sources of the whole tree. Advisories need a database from
/// outside and are left to who has it: `cargo deny check advisories`.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let key = Key::new("cargo-deny", 1).with("version", VERSION).finish();
    let place = cache::entry(workspace, "cargo-deny", &key, |place| {
        eprintln!("building cargo-deny {VERSION}");
        let work = place.join("target");
        // Unoptimised: it builds in a fraction of the time and checks this tree in a second.
        run(cargo(workspace)
            .args([
                "install",
                "cargo-deny",
                "--version",
                VERSION,
                "--locked",
                "--debug",
                "--quiet",
            ])
            .args(["--no-default-features", "--no-track", "--root"])
            .arg(place)
            .arg("--target-dir")
            .arg(&work))
        .context("cannot build cargo-deny from crates.io; check the network, then repeat")?;
        cache::remove(&work)
    })?;
    run(Command::new(place.join("bin/cargo-deny"))
        .args([
            "--locked",
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ])
        .current_dir(&workspace.root))
}
