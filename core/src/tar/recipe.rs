//! How an unpacked archive becomes the same archive again, byte for byte: everything of it but the
//! contents of files, which are read from where they were unpacked to.
//!
//! A recipe is a row of records, each a tag, its lengths in little-endian order and its bytes:
//! `0` length(4) bytes, for bytes as they stand in the archive; `1` length(8) path-length(2) path, for
//! so many bytes of a file; `2` length(8), for the end, with the length of the whole archive. The
//! digest of the archive vouches for what is made; the recipe itself is only bounded.

use alloc::{borrow::ToOwned as _, vec::Vec};

/// Most bytes of one piece that stands in a recipe.
pub const MAX_PIECE: usize = 64 * 1024;
/// Longest path of a file, bytes.
pub const MAX_PATH: usize = 4096;

const BYTES: u8 = 0;
const FILE: u8 = 1;
const END: u8 = 2;

/// A part of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// These bytes.
    Bytes(Vec<u8>),
    /// So many bytes of a file.
    File {
        /// Bytes.
        length: u64,
        /// Its path from the layer's root.
        path: Vec<u8>,
    },
    /// The end.
    End {
        /// Bytes of the archive.
        length: u64,
    },
}

/// A recipe cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecipeError {
    /// It ends in the middle.
    #[error("the recipe ends in the middle")]
    Truncated,
    /// No record begins like this.
    #[error("the recipe has a record of the unknown kind {0}")]
    Kind(u8),
    /// A length beyond its bound.
    #[error("the recipe has a part of {0} bytes, which is too long")]
    TooLong(usize),
}

impl Record {
    /// Appends the record to `out`. Bytes beyond [`MAX_PIECE`] become several records; a path beyond
    /// [`MAX_PATH`] is cut, and the archive's digest will tell.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bytes(bytes) => {
                for piece in bytes.chunks(MAX_PIECE) {
                    out.push(BYTES);
                    out.extend_from_slice(&(piece.len() as u32).to_le_bytes());
                    out.extend_from_slice(piece);
                }
            }
            Self::File { length, path } => {
                let path = &path[..path.len().min(MAX_PATH)];
                out.push(FILE);
                out.extend_from_slice(&length.to_le_bytes());
                out.extend_from_slice(&(path.len() as u16).to_le_bytes());
                out.extend_from_slice(path);
            }
            Self::End { length } => {
                out.push(END);
                out.extend_from_slice(&length.to_le_bytes());
            }
        }
    }

    /// Reads the record at the beginning of `bytes`: it, and its length there. `None` when more bytes
    /// are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, RecipeError> {
        let Some((&kind, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        match kind {
            BYTES => {
                let Some((length, rest)) = rest.split_first_chunk::<4>() else {
                    return Ok(None);
                };
                let length = u32::from_le_bytes(*length) as usize;
                if length > MAX_PIECE {
                    return Err(RecipeError::TooLong(length));
                }
                let piece = rest.get(..length);
                Ok(piece.map(|piece| (Self::Bytes(piece.to_owned()), 5 + length)))
            }
            FILE => {
                let Some((length, rest)) = rest.split_first_chunk::<8>() else {
                    return Ok(None);
                };
                let Some((path_length, rest)) = rest.split_first_chunk::<2>() else {
                    return Ok(None);
                };
                let path_length = u16::from_le_bytes(*path_length) as usize;
                if path_length > MAX_PATH {
                    return Err(RecipeError::TooLong(path_length));
                }
                let length = u64::from_le_bytes(*length);
                let path = rest.get(..path_length).map(<[u8]>::to_vec);
                Ok(path.map(|path| (Self::File { length, path }, 11 + path_length)))
            }
            END => Ok(rest.split_first_chunk::<8>().map(|(length, _)| {
                let length = u64::from_le_bytes(*length);
                (Self::End { length }, 9)
            })),
            other => Err(RecipeError::Kind(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<Record>> {
        let bytes = proptest::collection::vec(any::<u8>(), 1..600).prop_map(Record::Bytes);
        let path = proptest::collection::vec(any::<u8>(), 0..40);
        let file = (any::<u64>(), path).prop_map(|(length, path)| Record::File { length, path });
        let end = any::<u64>().prop_map(|length| Record::End { length });
        proptest::collection::vec(prop_oneof![bytes, file, end], 0..12)
    }

    fn decode_all(mut bytes: &[u8]) -> Result<Vec<Record>, RecipeError> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let (record, length) = Record::decode(bytes)?.ok_or(RecipeError::Truncated)?;
            all.push(record);
            bytes = &bytes[length..];
        }
        Ok(all)
    }

    #[test]
    fn long_pieces_are_cut() {
        let mut out = Vec::new();
        Record::Bytes(alloc::vec![7; MAX_PIECE + 1]).encode(&mut out);
        let all = decode_all(&out).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[1], Record::Bytes(alloc::vec![7]));
    }

    #[test]
    fn lengths_are_bounded_before_they_are_believed() {
        assert_eq!(
            Record::decode(&[BYTES, 0xff, 0xff, 0xff, 0xff]),
            Err(RecipeError::TooLong(u32::MAX as usize))
        );
        let mut file = alloc::vec![FILE];
        file.extend([0; 8]);
        file.extend(u16::MAX.to_le_bytes());
        assert_eq!(Record::decode(&file), Err(RecipeError::TooLong(65535)));
        assert_eq!(Record::decode(&[9]), Err(RecipeError::Kind(9)));
    }

    proptest! {
        #[test]
        fn round_trip(records in records()) {
            let mut out = Vec::new();
            for record in &records {
                record.encode(&mut out);
            }
            prop_assert_eq!(decode_all(&out).unwrap(), records);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(Some((record, length))) = Record::decode(&bytes) {
                prop_assert!(length <= bytes.len());
                let mut again = Vec::new();
                record.encode(&mut again);
                prop_assert!(again.len() <= length);
            }
        }

        #[test]
        fn a_beginning_asks_for_more(records in records(), cut in any::<prop::sample::Index>()) {
            let mut out = Vec::new();
            if let Some(record) = records.first() {
                record.encode(&mut out);
                prop_assert_eq!(Record::decode(&out[..cut.index(out.len())]), Ok(None));
            }
        }
    }
}
