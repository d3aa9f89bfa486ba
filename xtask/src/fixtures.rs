//! Deploy directories with real OCI layouts for tests, demo and benches: Debian's busybox and a
//! minimal Debian, packed by umoci.

mod base;
mod layout;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

pub(crate) use base::busybox_of;

use crate::apt::{Apt, Install};
use crate::cache::{self, Key};
use crate::run::need_program;
use crate::workspace::{Arch, Workspace};

/// How much to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// `container-base` for one architecture: what the demo pushes.
    Demo(Arch),
    /// All that the tests use.
    Tests,
    /// The big images of the benches.
    Benches,
}

/// One image of a deploy directory: its machine, directory name and cache entry.
struct Image {
    machine: &'static str,
    name: &'static str,
    layout: PathBuf,
}

/// Makes the fixtures of a scope and returns their directory, which has `deploy/images/<machine>/<name>`.
/// Those of the tests are linked as `target/fixtures`, those of the benches as `target/fixtures-bench`.
pub(crate) fn build(workspace: &Workspace, scope: Scope) -> Result<PathBuf> {
    need_program("umoci", "umoci")?;
    let images = match scope {
        Scope::Demo(arch) => {
            let apt = Apt::open(workspace)?;
            vec![container_base(workspace, &apt, arch)?]
        }
        Scope::Tests => {
            let apt = Apt::open(workspace)?;
            let mut images = Vec::new();
            for arch in Arch::ALL {
                images.push(container_base(workspace, &apt, arch)?);
            }
            images.push(multiarch(workspace, &images)?);
            images.push(many_layers(workspace)?);
            images.push(debian_base(workspace, &apt)?);
            images
        }
        Scope::Benches => {
            let apt = Apt::open(workspace)?;
            let mut images = vec![many_layers(workspace)?, big(workspace)?];
            for arch in Arch::ALL {
                images.push(debian_large(workspace, &apt, arch)?);
            }
            images
        }
    };
    let key = images
        .iter()
        .fold(Key::new("fixtures", 1), |key, image| {
            key.with("image", image.layout.as_os_str().as_encoded_bytes())
        })
        .finish();
    let entry = cache::entry(workspace, "fixtures", &key, |place| {
        for image in &images {
            let machine = place.join("deploy/images").join(image.machine);
            link_tree(&image.layout, &machine.join(image.name))?;
        }
        Ok(())
    })?;
    match scope {
        Scope::Demo(_) => Ok(entry),
        Scope::Tests => cache::link(workspace, "fixtures", &entry),
        Scope::Benches => cache::link(workspace, "fixtures-bench", &entry),
    }
}

/// The cache entry of one layout.
fn image(
    workspace: &Workspace,
    machine: &'static str,
    name: &'static str,
    key: Key,
    make: impl FnOnce(&Path) -> Result<()>,
) -> Result<Image> {
    let key = key.with("name", name).finish();
    let layout = cache::entry(workspace, "image", &key, |place| {
        eprintln!("making {name} for {machine}");
        make(place).with_context(|| format!("cannot make the image {name}"))
    })?
    .join("layout");
    Ok(Image {
        machine,
        name,
        layout,
    })
}

fn container_base(workspace: &Workspace, apt: &Apt, arch: Arch) -> Result<Image> {
    let busybox = apt.fetch("busybox-static", arch, false)?;
    let native = apt.fetch("busybox-static", Arch::HOST, false)?;
    let key = Key::new("container-base", 1).with("busybox", &busybox.sha256);
    image(
        workspace,
        arch.machine(),
        "container-base-latest-oci",
        key,
        |place| base::container_base(place, arch, &busybox.file, &native.file),
    )
}

fn debian_base(workspace: &Workspace, apt: &Apt) -> Result<Image> {
    let key = Key::new("debian-base", 1).with("suite", &apt.suite);
    image(
        workspace,
        Arch::X86_64.machine(),
        "debian-base-latest-oci",
        key,
        |place| base::debian_base(place, apt, Arch::X86_64, Install::Configured, &[]),
    )
}

/// A Debian of more than 50 MB when compressed.
fn debian_large(workspace: &Workspace, apt: &Apt, arch: Arch) -> Result<Image> {
    let packages = ["apt", "git", "perl", "python3"];
    let install = match arch == Arch::HOST {
        true => Install::Configured,
        false => Install::Unpacked,
    };
    let key = Key::new("debian-large", 1)
        .with("suite", &apt.suite)
        .with("arch", arch.name())
        .with("packages", packages.join(" "));
    image(
        workspace,
        arch.machine(),
        "debian-large-latest-oci",
        key,
        |place| base::debian_base(place, apt, arch, install, &packages),
    )
}

fn multiarch(workspace: &Workspace, parts: &[Image]) -> Result<Image> {
    let key = parts.iter().fold(Key::new("multiarch", 1), |key, part| {
        key.with("part", part.layout.as_os_str().as_encoded_bytes())
    });
    let layouts: Vec<&Path> = parts.iter().map(|part| part.layout.as_path()).collect();
    image(
        workspace,
        Arch::X86_64.machine(),
        "container-base-multiarch-oci",
        key,
        |place| layout::join(&layouts, &place.join("layout")),
    )
}

fn many_layers(workspace: &Workspace) -> Result<Image> {
    let key = Key::new("many-layers", 1);
    image(
        workspace,
        Arch::X86_64.machine(),
        "many-layers-latest-oci",
        key,
        |place| base::layers(place, 40, 192 * 1024),
    )
}

fn big(workspace: &Workspace) -> Result<Image> {
    let key = Key::new("big", 1);
    image(
        workspace,
        Arch::X86_64.machine(),
        "big-latest-oci",
        key,
        |place| base::layers(place, 4, 256 * 1024 * 1024),
    )
}

/// Copies a directory tree by hard links: layouts are never written to.
fn link_tree(from: &Path, to: &Path) -> Result<()> {
    for file in cache::files_below(from)? {
        let place = to.join(file.strip_prefix(from)?);
        let parent = place.parent().context("a file has a parent directory")?;
        fs::create_dir_all(parent)?;
        fs::hard_link(&file, &place)
            .or_else(|_| fs::copy(&file, &place).map(drop))
            .with_context(|| format!("cannot copy {}", file.display()))?;
    }
    Ok(())
}
