//! Which blobs a layer of the cache was unpacked from, and at which registries.
//!
//! The cache serves all state directories of a user, and an image may name any diff ID in its
//! configuration. So a layer is given to an image only when the image's own blob is known to be that
//! layer, and when whoever asks may read the blob: the state directory was given the layer before, a
//! registry that has served the blob offers it now, or it is in a file of this computer. The list beside a layer says the first for certain:
//! what a blob unpacks to never changes.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    path::Path,
};

use serde::{Deserialize, Serialize};
use vdkr_core::{digest::Digest, reference::Host};

/// Blobs that are remembered for one layer; the last ones.
const MAX_ORIGINS: usize = 32;
/// Bytes of a list.
const MAX_LIST: u64 = 64 << 10;

/// A blob that was read to its end and is the layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    /// The registry that served it; empty when it was in a file.
    pub(super) registry: String,
    /// Its digest.
    pub(super) blob: Digest,
}

impl Origin {
    pub(super) fn new(registry: Option<&Host>, blob: &Digest) -> Self {
        Self {
            registry: registry.map(ToString::to_string).unwrap_or_default(),
            blob: blob.clone(),
        }
    }
}

/// The list in a file. One that is not there or damaged says nothing: then the layer comes again.
pub(super) fn read(path: &Path) -> Vec<Origin> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_LIST + 1).read_to_end(&mut text));
    match read {
        Ok(length) if length as u64 <= MAX_LIST => {
            serde_json::from_slice(&text).unwrap_or_default()
        }
        _ => Vec::new(),
    }
}

/// Adds a blob to the list in a file, which is made in `directory` first.
pub(super) fn add(path: &Path, directory: &Path, origin: &Origin) -> io::Result<()> {
    let mut origins = read(path);
    origins.retain(|known| known != origin);
    origins.push(origin.clone());
    let surplus = origins.len().saturating_sub(MAX_ORIGINS);
    origins.drain(..surplus);
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(&serde_json::to_vec(&origins)?)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn origin(n: usize) -> Origin {
        let registry = Host::parse("localhost:5000").unwrap();
        Origin::new(Some(&registry), &Digest::sha256(&n.to_le_bytes()))
    }

    #[test]
    fn the_last_blobs_are_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        assert!(read(&path).is_empty());
        for n in 0..MAX_ORIGINS + 3 {
            add(&path, dir.path(), &origin(n)).unwrap();
        }
        add(&path, dir.path(), &origin(5)).unwrap();
        let known = read(&path);
        assert_eq!(known.len(), MAX_ORIGINS);
        assert_eq!((&known[0], known.last()), (&origin(3), Some(&origin(5))));
        assert_eq!(known.iter().filter(|known| **known == origin(5)).count(), 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        // However long the names are, the list can be read again.
        let long = Origin {
            registry: "r".repeat(300),
            blob: Digest::parse(&format!("sha512:{}", "0".repeat(128))).unwrap(),
        };
        let list = serde_json::to_vec(&vec![long; MAX_ORIGINS]).unwrap();
        assert!((list.len() as u64) < MAX_LIST);
    }

    #[test]
    fn a_damaged_list_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list");
        add(&path, dir.path(), &origin(1)).unwrap();
        let whole = fs::read(&path).unwrap();
        for length in 0..whole.len() {
            fs::write(&path, &whole[..length]).unwrap();
            assert!(read(&path).is_empty(), "{length}");
        }
        fs::write(&path, vec![b' '; 1 << 20]).unwrap();
        assert!(read(&path).is_empty());
        add(&path, dir.path(), &origin(2)).unwrap();
        assert_eq!(read(&path), [origin(2)]);
    }
}
