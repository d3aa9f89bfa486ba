//! What the image of a layer says about itself, in the first bytes, which the format leaves free.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use vdkr_core::digest::Digest;

use super::BLOCK;
use super::format::{SUPERBLOCK_AT, blocks_of};

/// How the note begins; the version of the way in which layers become images.
const HEAD: &[u8] = b"vdkr layer 1\n";

/// Which layer an image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Digest of the layer's plain archive.
    pub diff_id: Digest,
    /// Bytes of data in its files.
    pub bytes: u64,
    /// Members of the archive.
    pub entries: u64,
    /// The layer hides everything beneath it.
    #[serde(default)]
    pub opaque: bool,
}

/// A file is no whole image of a layer.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// It cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// It is something else, or not whole.
    #[error("it is not a whole image of a layer: {0}")]
    Damaged(&'static str),
}

impl Note {
    /// Reads the note of an image, and looks whether the image has its length and a sound superblock.
    pub fn read(image: &File) -> Result<Self, NoteError> {
        if image.metadata()?.len() < BLOCK as u64 {
            return Err(NoteError::Damaged("it is too short"));
        }
        let (note, blocks) = Self::first_block(image)?;
        if image.metadata()?.len() != u64::from(blocks) * BLOCK as u64 {
            return Err(NoteError::Damaged("its length is wrong"));
        }
        Ok(note)
    }

    /// Reads the note of an image on a disk, which may be longer.
    pub fn of_disk(disk: &File) -> Result<Self, NoteError> {
        Ok(Self::first_block(disk)?.0)
    }

    fn first_block(image: &File) -> Result<(Self, u32), NoteError> {
        let mut block = [0; BLOCK];
        image.read_exact_at(&mut block, 0)?;
        let note = Self::decode(&block).ok_or(NoteError::Damaged("it has no note"))?;
        let blocks = blocks_of(&block).ok_or(NoteError::Damaged("its superblock is damaged"))?;
        Ok((note, blocks))
    }

    /// Puts the note into the first block.
    pub(super) fn write_into(&self, block: &mut [u8; BLOCK]) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::other)?;
        let bytes = [HEAD, &text, b"\n"].concat();
        if bytes.len() > SUPERBLOCK_AT {
            return Err(io::Error::other("the note of a layer is too long"));
        }
        block[..bytes.len()].copy_from_slice(&bytes);
        Ok(())
    }

    fn decode(block: &[u8; BLOCK]) -> Option<Self> {
        let rest = block[..SUPERBLOCK_AT].strip_prefix(HEAD)?;
        let end = rest.iter().position(|&byte| byte == b'\n')?;
        serde_json::from_slice(&rest[..end]).ok()
    }
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn round_trip(bytes: u64, entries: u64, opaque: bool, content: Vec<u8>) {
            let note = Note { diff_id: Digest::sha256(&content), bytes, entries, opaque };
            let mut block = [0; BLOCK];
            note.write_into(&mut block).unwrap();
            prop_assert_eq!(Note::decode(&block), Some(note));
        }

        #[test]
        fn never_panics(mut bytes in proptest::collection::vec(any::<u8>(), BLOCK), head: bool) {
            if head {
                bytes[..HEAD.len()].copy_from_slice(HEAD);
            }
            let block: [u8; BLOCK] = bytes.try_into().unwrap();
            let _ = Note::decode(&block);
            let _ = blocks_of(&block);
        }
    }
}
