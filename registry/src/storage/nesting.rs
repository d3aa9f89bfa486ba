//! How deep indexes nest, and how much may hang from one of them.
//!
//! An index is checked when it is pushed, against what the repository has then. What it names may come
//! later, where manifests are taken without it, and other programs write to the tree: whoever walks down
//! a tree that is stored has a bound of their own.

use std::collections::HashMap;

use vdkr_core::digest::Digest;
use vdkr_core::manifest::{self, MAX_DESCRIPTORS, ParsedManifest, media_type};

use super::{Result, Storage, StorageError};

/// Most manifests from an index down to an image, both counted: what clients of this project copy.
pub(super) const DEEPEST: usize = 8;
/// Most manifests below an index.
pub(super) const MOST_BELOW: usize = MAX_DESCRIPTORS;
/// Most bytes of them.
pub(super) const BYTES_BELOW: usize = 64 << 20;

/// What is below one index.
struct Below<'s> {
    storage: &'s Storage,
    repository: &'s str,
    /// How many manifests lie one under the other from each that was looked at.
    heights: HashMap<Digest, usize>,
    bytes: usize,
}

impl Storage {
    /// Refuses an index that names these indexes, when what hangs from them is too deep or too much.
    pub(super) fn check_nesting(&self, repository: &str, indexes: &[Digest]) -> Result<()> {
        let mut below = Below {
            storage: self,
            repository,
            heights: HashMap::new(),
            bytes: 0,
        };
        for index in indexes {
            below.height(index, DEEPEST - 1)?;
        }
        Ok(())
    }
}

impl Below<'_> {
    /// How many manifests lie one under the other from this one on, itself counted; no more than `room`.
    /// Each is read once.
    fn height(&mut self, digest: &Digest, room: usize) -> Result<usize> {
        if let Some(&height) = self.heights.get(digest) {
            return if height > room {
                Err(StorageError::NestsTooDeep)
            } else {
                Ok(height)
            };
        }
        let mut height = 0;
        // Otherwise it is not there yet, or a blob.
        if let Some(children) = self.children(digest)? {
            if room == 0 {
                return Err(StorageError::NestsTooDeep);
            }
            for child in children {
                height = height.max(self.height(&child, room - 1)?);
            }
            height += 1;
        }
        self.heights.insert(digest.clone(), height);
        Ok(height)
    }

    /// What a manifest of the repository names, if it is an index. `None`: it is not there.
    fn children(&mut self, digest: &Digest) -> Result<Option<Vec<Digest>>> {
        let Some(found) = self.storage.manifest(self.repository, digest)? else {
            return Ok(None);
        };
        self.bytes += found.body.len();
        if self.heights.len() >= MOST_BELOW || self.bytes > BYTES_BELOW {
            return Err(StorageError::HasTooMany);
        }
        if !media_type::is_index(&found.media_type) {
            return Ok(Some(Vec::new()));
        }
        let parsed = manifest::parse(&found.body, None);
        let named = parsed.iter().flat_map(ParsedManifest::manifests);
        Ok(Some(named.map(|child| child.digest.clone()).collect()))
    }
}
