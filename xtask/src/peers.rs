//! Programs that only tests talk to.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::apt::{self, Apt};
use crate::cache::{self, Key};
use crate::workspace::{Arch, Workspace};

/// The suite that has crane; the program needs nothing but a libc that every supported release has.
const CRANE_SUITE: &str = "sid";

/// The first suite that has vhost-device-vsock; what it needs of the libc is as old.
const VSOCK_SUITE: &str = "forky";

/// The oldest suite whose dockerd has `--validate`.
const DOCKER_SUITE: &str = "trixie";

/// The directories with the peers that are unpacked and not installed: `docker-registry`,
/// `containerd` and `dockerd`, whose packages would start services, with `docker`, and `runc` and its
/// shim that `dockerd` looks for, and `crane` and `vhost-device-vsock`, which are younger than the releases.
pub(crate) fn directories(workspace: &Workspace) -> Result<[PathBuf; 7]> {
    let release = Apt::open(workspace)?;
    let docker = Apt::open_suite(workspace, DOCKER_SUITE)?;
    let crane = Apt::open_suite(workspace, CRANE_SUITE)?;
    let vsock = Apt::open_suite(workspace, VSOCK_SUITE)?;
    Ok([
        unpacked(workspace, &release, "docker-registry", &["docker-registry"])?,
        unpacked(
            workspace,
            &release,
            "containerd",
            &["containerd", "containerd-shim-runc-v2", "ctr"],
        )?,
        unpacked(workspace, &crane, "crane", &["crane"])?,
        unpacked(workspace, &docker, "docker.io", &["dockerd"])?,
        unpacked(
            workspace,
            &vsock,
            "vhost-device-vsock",
            &["vhost-device-vsock"],
        )?,
        unpacked(workspace, &docker, "docker-cli", &["docker"])?,
        unpacked(workspace, &release, "runc", &["runc"])?,
    ])
}

/// A directory that holds programs of a package.
fn unpacked(workspace: &Workspace, apt: &Apt, package: &str, programs: &[&str]) -> Result<PathBuf> {
    let deb = apt.fetch(package, Arch::HOST, false)?;
    let key = Key::new(package, 3)
        .with("deb", &deb.sha256)
        .with("programs", programs.join(" "))
        .finish();
    cache::entry(workspace, &format!("peers/{package}"), &key, |place| {
        let work = place.join("unpacked");
        fs::create_dir(&work)?;
        apt::unpack(&deb.file, &work)?;
        for name in programs {
            let places = ["usr/bin", "usr/sbin"].map(|part| work.join(part).join(name));
            // One of them may be a link to the other.
            let is_program = |program: &PathBuf| program.is_file() && !program.is_symlink();
            let Some(program) = places.into_iter().find(is_program) else {
                bail!("{} holds no {name}", deb.file.display());
            };
            fs::rename(program, place.join(name))?;
        }
        cache::remove(&work)
    })
}
