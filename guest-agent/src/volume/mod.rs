//! The volumes of this machine, in one directory.
//!
//! ```text
//! <name>/_data         the content
//! <name>/volume.json   labels, time of the making
//! .new-<id>, .gone-<id>  one under way, or on its way out
//! ```
//!
//! A volume appears and disappears by a rename. Names that users give never begin with a dot.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::AsFd,
        unix::fs::{DirBuilderExt, MetadataExt},
    },
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};
use vdkr_core::{channel::message::VolumeRow, volume::check_name};

use crate::{run::container::new_id, unpack::remove::remove_tree};

#[cfg(test)]
mod tests;

/// The content of a volume.
const DATA: &str = "_data";
/// What is known about a volume.
const RECORD: &str = "volume.json";
/// Longest record in bytes.
const MAX_RECORD: u64 = 1 << 20;

/// A volume cannot be had, or not be removed.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// No name for a volume.
    #[error(transparent)]
    Name(#[from] vdkr_core::volume::VolumeError),
    /// There is none.
    #[error("no such volume: {0}")]
    Missing(String),
    /// A container has it.
    #[error("volume {0} is in use by a container")]
    InUse(String),
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was done.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> VolumeError {
    let path = path.to_owned();
    move |source| VolumeError::Io { what, path, source }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Record {
    created: u64,
    labels: BTreeMap<String, String>,
    anonymous: bool,
}

/// The volumes.
#[derive(Clone, Debug)]
pub struct Volumes {
    dir: PathBuf,
}

/// A volume that shall be there.
#[derive(Debug)]
pub struct NewVolume {
    name: String,
    labels: BTreeMap<String, String>,
    anonymous: bool,
}

impl NewVolume {
    /// One of this name; without a name it gets a new one.
    pub fn named(name: Option<String>) -> Result<Self, VolumeError> {
        let anonymous = name.is_none();
        let name = match name {
            Some(name) => name,
            None => new_id().map_err(failed("make a name for", Path::new("a volume")))?,
        };
        check_name(&name)?;
        Ok(Self {
            name,
            labels: BTreeMap::new(),
            anonymous,
        })
    }

    /// With these labels, should it be made.
    #[must_use]
    pub fn labelled(self, labels: BTreeMap<String, String>) -> Self {
        Self { labels, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the user has named it.
    pub fn is_anonymous(&self) -> bool {
        self.anonymous
    }
}

/// Directories that are out of sight and still have to be removed.
#[derive(Debug, Default)]
pub struct Gone {
    /// The names that they had.
    pub names: Vec<String>,
    dirs: Vec<PathBuf>,
}

impl Gone {
    /// Removes them and gives the bytes that their files had. Takes as long as there are files.
    pub fn remove(&self) -> Result<u64, VolumeError> {
        let mut freed = 0;
        for dir in &self.dirs {
            freed += size(&dir.join(DATA));
            let parent = dir.parent().unwrap_or(dir);
            let name = dir.file_name().unwrap_or_default();
            File::open(parent)
                .and_then(|parent| {
                    let name = name.as_encoded_bytes();
                    Ok(remove_tree(parent.as_fd(), name)?)
                })
                .map_err(failed("remove", dir))?;
        }
        Ok(freed)
    }
}

impl Volumes {
    /// The volumes in `dir`, which is made when there is a first one.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// What a crash left on its way in or out.
    pub fn leftovers(&self) -> Gone {
        let hidden = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            name.starts_with(b".new-") || name.starts_with(b".gone-")
        };
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        Gone {
            names: Vec::new(),
            dirs: entries.filter(hidden).map(|entry| entry.path()).collect(),
        }
    }

    /// Makes a volume unless it is there; its name. Blocks while the disk writes.
    pub fn create(&self, wanted: NewVolume) -> Result<String, VolumeError> {
        let NewVolume {
            name,
            labels,
            anonymous,
        } = wanted;
        let path = self.dir.join(&name);
        if path.is_dir() {
            return Ok(name);
        }
        let id = new_id().map_err(failed("make a name in", &self.dir))?;
        let record = Record {
            created: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            labels,
            anonymous,
        };
        let new = self.dir.join(format!(".new-{id}"));
        let make = || -> io::Result<()> {
            let mut private = fs::DirBuilder::new();
            private.recursive(true).mode(0o700).create(&new)?;
            fs::DirBuilder::new().mode(0o755).create(new.join(DATA))?;
            let mut file = File::create(new.join(RECORD))?;
            file.write_all(&serde_json::to_vec(&record)?)?;
            file.sync_all()?;
            File::open(&new)?.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(&self.dir)?.sync_all()
        };
        if let Err(error) = make() {
            let _ = fs::remove_dir_all(&new);
            // Two may want the same at a time: the second finds that of the first.
            if !path.is_dir() {
                return Err(failed("make volume", &path)(error));
            }
        }
        Ok(name)
    }

    /// Where the content of a volume would be.
    pub fn place(&self, name: &str) -> PathBuf {
        self.dir.join(name).join(DATA)
    }

    /// Where the content of a volume is, which is made when it is missing.
    pub fn data(&self, name: &str) -> Result<PathBuf, VolumeError> {
        let name = self.create(NewVolume::named(Some(name.to_owned()))?)?;
        Ok(self.place(&name))
    }

    /// Describes the volumes with these names, or all, in the order of their names.
    /// `used` says whether a container has one.
    pub fn list(
        &self,
        names: &[String],
        used: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<VolumeRow>, VolumeError> {
        if !names.is_empty() {
            return names.iter().map(|name| self.row(name, used)).collect();
        }
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("list", &self.dir)(error)),
        };
        let mut rows = Vec::new();
        for entry in entries {
            let entry = entry.map_err(failed("list", &self.dir))?;
            if let Some(name) = entry.file_name().to_str()
                && check_name(name).is_ok()
            {
                rows.push(self.row(name, used)?);
            }
        }
        rows.sort_by(|left: &VolumeRow, right| left.name.cmp(&right.name));
        Ok(rows)
    }

    fn row(&self, name: &str, used: &dyn Fn(&str) -> bool) -> Result<VolumeRow, VolumeError> {
        let path = self.existing(name)?;
        // A record that cannot be read costs the labels, not the volume.
        let record = read_record(&path.join(RECORD)).unwrap_or_default();
        Ok(VolumeRow {
            name: name.to_owned(),
            created: record.created,
            labels: record.labels,
            anonymous: record.anonymous,
            in_use: used(name),
            mountpoint: path.join(DATA).display().to_string(),
        })
    }

    fn existing(&self, name: &str) -> Result<PathBuf, VolumeError> {
        let path = self.dir.join(name);
        if check_name(name).is_err() || !path.is_dir() {
            return Err(VolumeError::Missing(name.to_owned()));
        }
        Ok(path)
    }

    /// Takes volumes out of sight: all of them, or none when one cannot go. `force` passes over
    /// names that no volume has.
    pub fn discard(
        &self,
        names: &[String],
        force: bool,
        used: &dyn Fn(&str) -> bool,
    ) -> Result<Gone, VolumeError> {
        let mut going = Vec::new();
        for name in names {
            match self.existing(name) {
                Ok(_) if used(name) => return Err(VolumeError::InUse(name.clone())),
                Ok(path) if !going.iter().any(|(other, _)| other == name) => {
                    going.push((name.clone(), path));
                }
                Ok(_) => {}
                Err(_) if force => {}
                Err(error) => return Err(error),
            }
        }
        let mut gone = Gone::default();
        for (name, path) in going {
            let id = new_id().map_err(failed("remove", &path))?;
            let to = self.dir.join(format!(".gone-{id}"));
            fs::rename(&path, &to).map_err(failed("remove", &path))?;
            gone.names.push(name);
            gone.dirs.push(to);
        }
        Ok(gone)
    }

    /// Those of these names that nobody has named.
    pub fn anonymous<'a>(&self, names: impl Iterator<Item = &'a str>) -> Vec<String> {
        names
            .filter(|name| self.row(name, &|_| false).is_ok_and(|row| row.anonymous))
            .map(str::to_owned)
            .collect()
    }

    /// Takes those out of sight that no container has; without `all` only those without a name.
    pub fn discard_unused(
        &self,
        all: bool,
        used: &dyn Fn(&str) -> bool,
    ) -> Result<Gone, VolumeError> {
        let unused = self
            .list(&[], used)?
            .into_iter()
            .filter(|row| !row.in_use && (all || row.anonymous));
        let names: Vec<String> = unused.map(|row| row.name).collect();
        self.discard(&names, true, used)
    }
}

fn read_record(path: &Path) -> Option<Record> {
    use io::Read as _;
    let mut text = Vec::new();
    File::open(path)
        .ok()?
        .take(MAX_RECORD)
        .read_to_end(&mut text)
        .ok()?;
    serde_json::from_slice(&text).ok()
}

/// Bytes that the files below take on the disk; what cannot be read counts as nothing.
pub fn size(dir: &Path) -> u64 {
    let mut sum = 0;
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = fs::symlink_metadata(entry.path()) else {
                continue;
            };
            if meta.is_dir() {
                waiting.push(entry.path());
            } else {
                sum += meta.blocks() * 512;
            }
        }
    }
    sum
}
