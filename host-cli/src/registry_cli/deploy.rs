//! Finding OCI layouts in deploy directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vdkr_core::deploy::{archive_name, image_name};
use vdkr_core::transport::Pick;

use super::config::DeployRoots;

/// An OCI layout found in a deploy directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundImage {
    /// Repository name without the namespace.
    pub name: String,
    /// Machine whose folder it lies in.
    pub machine: String,
    /// The layout's directory or the archive, links resolved.
    pub path: PathBuf,
    /// When its index, or the archive, was last written.
    pub built: SystemTime,
    /// Whether a symbolic link of the deploy directory points to it: what the build calls the latest.
    pub linked: bool,
    /// What lies there.
    pub form: Form,
    /// Whether it was found in a deploy directory, not named by its path.
    pub deployed: bool,
    /// Which of its images is meant.
    pub pick: Pick,
}

/// What an image was found as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A layout's directory.
    Layout,
    /// An archive.
    Archive,
    /// An archive that came through a pipe; its path is a temporary file's.
    Pipe,
}

impl FoundImage {
    /// Where it comes from, for people: a machine, or a path.
    pub fn origin(&self) -> String {
        if self.form == Form::Pipe {
            "a pipe".to_owned()
        } else if self.machine.is_empty() {
            self.path.display().to_string()
        } else {
            self.machine.clone()
        }
    }
}

/// All layouts beneath the roots: those that links point to after those that none does, and the older
/// before the newer, so that the current build of a name comes last and wins its tags. A symbolic link and the directory it points to are one image, named by the
/// shortest of its names.
pub fn find_images(roots: &DeployRoots) -> std::io::Result<Vec<FoundImage>> {
    let mut machines = Vec::new();
    match roots {
        DeployRoots::Machine(dir) => machines.push(dir.clone()),
        DeployRoots::AllMachines(dir) => {
            for entry in std::fs::read_dir(dir)? {
                let path = entry?.path();
                if path.is_dir() {
                    machines.push(path);
                }
            }
        }
        DeployRoots::Unknown => {}
    }
    let mut found: BTreeMap<PathBuf, FoundImage> = BTreeMap::new();
    for machine_dir in machines {
        // A trailing `.` or a relative path still names its machine once resolved.
        let resolved = machine_dir.canonicalize()?;
        let machine = file_name(&resolved);
        for entry in std::fs::read_dir(&resolved)? {
            let path = entry?.path();
            let Some(image) = inspect(&path, &machine) else {
                continue;
            };
            found
                .entry(image.path.clone())
                .and_modify(|known| {
                    known.linked |= image.linked;
                    if image.name.len() < known.name.len() {
                        known.name.clone_from(&image.name);
                    }
                })
                .or_insert(image);
        }
    }
    let mut images: Vec<_> = found.into_values().collect();
    images.sort_by(|a, b| {
        let age = |image: &FoundImage| (image.linked, image.built);
        age(a).cmp(&age(b)).then_with(|| a.path.cmp(&b.path))
    });
    Ok(images)
}

/// The image of one layout directory or archive given by path; its parent's name is the machine.
pub fn image_at(path: &Path) -> Option<FoundImage> {
    let machine = path
        .canonicalize()
        .ok()
        .and_then(|p| p.parent().map(file_name));
    let machine = machine.unwrap_or_default();
    let given = path.file_name().map(|n| n.to_string_lossy().into_owned());
    if path.is_file() {
        return archive_at(path, &machine, &given?);
    }
    let mut image = layout_at(path, &machine)?;
    // The name as typed counts, as for a link; a directory of any other name names itself.
    let given = given.unwrap_or_else(|| file_name(&image.path));
    image.name = image_name(&given, &machine).map_or(given, |name| name.repository);
    Some(image)
}

/// An archive names its image as a layout's directory does; any other file name names itself.
fn archive_at(path: &Path, machine: &str, given: &str) -> Option<FoundImage> {
    let named = archive_name(given, machine).map(|name| name.repository);
    let plain = || {
        let stem = given.split(".tar").next().unwrap_or(given);
        let stem = stem.strip_suffix(".tgz").unwrap_or(stem);
        stem.to_ascii_lowercase()
    };
    let path = path.canonicalize().ok()?;
    Some(FoundImage {
        name: named.unwrap_or_else(plain),
        // Only a directory of builds is named after its machine.
        machine: String::new(),
        built: std::fs::metadata(&path).ok()?.modified().ok()?,
        path,
        linked: false,
        form: Form::Archive,
        deployed: false,
        pick: Pick::Only,
    })
}

/// What came through a pipe and lies in this file now: its images name themselves.
pub fn piped_at(path: &Path) -> Option<FoundImage> {
    Some(FoundImage {
        name: String::new(),
        form: Form::Pipe,
        ..archive_at(path, "", "")?
    })
}

fn inspect(path: &Path, machine: &str) -> Option<FoundImage> {
    let name = image_name(&file_name(path), machine)?;
    let mut image = layout_at(path, machine)?;
    image.name = name.repository;
    image.linked = path.is_symlink();
    image.deployed = true;
    Some(image)
}

fn layout_at(path: &Path, machine: &str) -> Option<FoundImage> {
    let resolved = path.canonicalize().ok()?;
    let built = std::fs::metadata(resolved.join("index.json"))
        .ok()?
        .modified()
        .ok()?;
    Some(FoundImage {
        name: String::new(),
        machine: machine.to_owned(),
        path: resolved,
        built,
        linked: false,
        form: Form::Layout,
        deployed: false,
        pick: Pick::Only,
    })
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .map(|n| n.to_string_lossy().into_owned())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        std::fs::write(path.join("index.json"), "{}").unwrap();
    }

    #[test]
    fn links_and_targets_are_one_image_on_every_machine() {
        let dir = tempfile::tempdir().unwrap();
        let x86 = dir.path().join("qemux86-64");
        layout(&x86.join("app-qemux86-64.rootfs-20260112143022-oci"));
        std::os::unix::fs::symlink(
            "app-qemux86-64.rootfs-20260112143022-oci",
            x86.join("app-latest-oci"),
        )
        .unwrap();
        layout(&dir.path().join("odd-board/app-latest-oci"));
        std::fs::create_dir_all(x86.join("not-a-layout-oci")).unwrap();
        std::fs::write(x86.join("bzImage"), "").unwrap();
        let images = find_images(&DeployRoots::AllMachines(dir.path().to_owned())).unwrap();
        let mut seen: Vec<_> = images.iter().map(|i| (&*i.name, &*i.machine)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [("app", "odd-board"), ("app", "qemux86-64")]);
        let one = find_images(&DeployRoots::Machine(x86)).unwrap();
        assert_eq!(one.len(), 1);
    }

    #[test]
    fn a_path_names_its_image() {
        let dir = tempfile::tempdir().unwrap();
        layout(&dir.path().join("m/app-latest-oci"));
        layout(&dir.path().join("m/plain"));
        assert_eq!(
            image_at(&dir.path().join("m/app-latest-oci")).unwrap().name,
            "app"
        );
        assert_eq!(image_at(&dir.path().join("m/plain")).unwrap().name, "plain");
        for (file, name) in [
            ("app-m.rootfs-20260112143022-oci.tar", "app"),
            ("saved.tar.gz", "saved"),
            ("Other.tgz", "other"),
        ] {
            let path = dir.path().join("m").join(file);
            std::fs::write(&path, "x").unwrap();
            let image = image_at(&path).unwrap();
            assert_eq!(image.form, Form::Archive);
            assert_eq!(image.name, name);
        }
        assert!(image_at(dir.path()).is_none());
    }
}
