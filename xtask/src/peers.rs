//! Programs that only tests talk to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Key};
use crate::workspace::{Arch, Workspace};

/// The suite that has crane; the program needs nothing but a libc that every supported release has.
const CRANE_SUITE: &str = "sid";

/// The directories with the peers that are unpacked and not installed: `docker-registry`, whose
/// package would start a service on port 5000, and `crane`, which is younger than the releases.
pub(crate) fn directories(workspace: &Workspace) -> Result<[PathBuf; 2]> {
    Ok([
        program(workspace, &Apt::open(workspace)?, "docker-registry")?,
        program(
            workspace,
            &Apt::open_suite(workspace, CRANE_SUITE)?,
            "crane",
        )?,
    ])
}

/// A directory that holds one program of the package of the same name.
fn program(workspace: &Workspace, apt: &Apt, name: &str) -> Result<PathBuf> {
    let deb = apt.fetch(name, Arch::HOST, false)?;
    let key = Key::new(name, 1).with("deb", &deb.sha256).finish();
    let entry = cache::entry(workspace, &format!("peers/{name}"), &key, |place| {
        let work = place.join("unpacked");
        fs::create_dir(&work)?;
        apt::unpack(&deb.file, &work)?;
        let program = work.join("usr/bin").join(name);
        if !program.is_file() {
            bail!("{} holds no {name}", deb.file.display());
        }
        fs::rename(program, place.join(name))?;
        cache::remove(&work)
    })?;
    Ok(entry)
}
