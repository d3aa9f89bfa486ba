//! Programs that only tests talk to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Key};
use crate::workspace::{Arch, Workspace};

/// The directory with Debian's `docker-registry`, unpacked and not installed: its package would
/// start a service on port 5000.
pub(crate) fn docker_registry(workspace: &Workspace) -> Result<PathBuf> {
    let deb = Apt::open(workspace)?.fetch("docker-registry", Arch::HOST, false)?;
    let key = Key::new("docker-registry", 1)
        .with("deb", &deb.sha256)
        .finish();
    let entry = cache::entry(workspace, "peers", &key, |place| {
        let work = place.join("unpacked");
        fs::create_dir(&work)?;
        apt::unpack(&deb.file, &work)?;
        let program = work.join("usr/bin/docker-registry");
        if !program.is_file() {
            bail!("{} holds no docker-registry", deb.file.display());
        }
        fs::rename(program, place.join("docker-registry"))?;
        cache::remove(&work)
    })?;
    Ok(entry)
}
