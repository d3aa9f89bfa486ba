//! The data maps of sparse files: old GNU headers and the three pax formats of GNU tar.

use vdkr_core::tar::header::{BLOCK, Block, HeaderError, unsigned};
use vdkr_core::tar::pax::decimal;

/// Most segments a file may have; each costs 16 bytes here and a write on disk.
pub const MAX_SEGMENTS: usize = 1 << 18;

/// A run of data within a sparse file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Where it stands in the file.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

/// A sparse file: its data runs, and its size with all holes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Map {
    /// In ascending order, not overlapping, within `size`.
    pub segments: Vec<Segment>,
    /// Bytes of the whole file.
    pub size: u64,
}

/// The map contradicts itself or the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map of a sparse file does not add up")]
pub struct MapError;

impl From<HeaderError> for MapError {
    fn from(_: HeaderError) -> Self {
        Self
    }
}

impl Map {
    /// Checks `segments` against the file's `size` and the bytes `stored` in the archive for it.
    pub fn new(segments: Vec<Segment>, size: u64, stored: u64) -> Result<Self, MapError> {
        let mut end = 0;
        let mut total = 0u64;
        for segment in &segments {
            if segment.offset < end {
                return Err(MapError);
            }
            end = segment.offset.checked_add(segment.length).ok_or(MapError)?;
            total += segment.length;
        }
        if end > size || total != stored || segments.len() > MAX_SEGMENTS {
            return Err(MapError);
        }
        Ok(Self { segments, size })
    }
}

/// The segments of an old GNU header (type `S`), the size of the file, and whether blocks with
/// more segments follow.
pub fn old_gnu(block: &Block) -> Result<(Vec<Segment>, u64, bool), MapError> {
    let mut segments = Vec::new();
    let more = entries(&block[386..482], block[482], &mut segments)?;
    Ok((segments, unsigned(&block[483..495], "sparse size")?, more))
}

/// A block with 21 more segments; whether another one follows.
pub fn old_gnu_more(block: &Block, segments: &mut Vec<Segment>) -> Result<bool, MapError> {
    if segments.len() > MAX_SEGMENTS {
        return Err(MapError);
    }
    entries(&block[..504], block[504], segments)
}

/// Reads (offset, length) pairs of 12 bytes each; true when `more` says that a block with further
/// ones follows. An unused pair is the end, so none may follow it.
fn entries(field: &[u8], more: u8, segments: &mut Vec<Segment>) -> Result<bool, MapError> {
    for pair in field.chunks_exact(24) {
        if pair[0] == 0 {
            return if more == 0 { Ok(false) } else { Err(MapError) };
        }
        segments.push(Segment {
            offset: unsigned(&pair[..12], "sparse offset")?,
            length: unsigned(&pair[12..], "sparse length")?,
        });
    }
    Ok(more != 0)
}

/// The map of format 1.0, which stands before the data: a count and pairs, a line each, padded to
/// a block. Fed block by block.
#[derive(Debug, Default)]
pub struct MapReader {
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
    segments: Vec<Segment>,
}

impl MapReader {
    /// Takes a block; the segments once the map is whole.
    pub fn push(&mut self, block: &Block) -> Result<Option<Vec<Segment>>, MapError> {
        let mut bytes = block.iter();
        while self
            .count
            .is_none_or(|count| (self.segments.len() as u64) < count)
        {
            match bytes.next() {
                None => return Ok(None),
                Some(b'\n') => {
                    let number = decimal(&self.line).ok_or(MapError)?;
                    self.line.clear();
                    if self.count.is_none() {
                        if number > MAX_SEGMENTS as u64 {
                            return Err(MapError);
                        }
                        self.count = Some(number);
                    } else if let Some(offset) = self.offset.take() {
                        self.segments.push(Segment {
                            offset,
                            length: number,
                        });
                    } else {
                        self.offset = Some(number);
                    }
                }
                Some(&digit) if self.line.len() < 20 => self.line.push(digit),
                Some(_) => return Err(MapError),
            }
        }
        debug_assert!(bytes.len() < BLOCK);
        Ok(Some(std::mem::take(&mut self.segments)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(offset: u64, length: u64) -> Segment {
        Segment { offset, length }
    }

    #[test]
    fn maps_must_add_up() {
        assert!(Map::new(vec![at(0, 5), at(10, 5)], 20, 10).is_ok());
        assert!(Map::new(vec![], 1 << 40, 0).is_ok());
        for (segments, size, stored) in [
            (vec![at(0, 5), at(4, 5)], 20, 10),
            (vec![at(0, 5)], 4, 5),
            (vec![at(0, 5)], 5, 6),
            (vec![at(u64::MAX, 2)], u64::MAX, 2),
        ] {
            assert_eq!(Map::new(segments, size, stored), Err(MapError));
        }
    }

    #[test]
    fn map_over_two_blocks() {
        let mut text = b"100\n".to_vec();
        for n in 0..100u64 {
            text.extend(format!("{}\n{}\n", n * 1000, n).bytes());
        }
        text.resize(text.len().next_multiple_of(BLOCK), 0);
        assert!(text.len() > BLOCK);
        let mut reader = MapReader::default();
        let mut found = None;
        for block in text.as_chunks::<BLOCK>().0 {
            assert_eq!(found, None);
            found = reader.push(block).unwrap();
        }
        assert_eq!(found.unwrap()[99], at(99_000, 99));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), BLOCK)) {
            let block: Block = bytes.try_into().unwrap();
            let _ = old_gnu(&block);
            let _ = old_gnu_more(&block, &mut Vec::new());
            let _ = MapReader::default().push(&block);
        }
    }
}
