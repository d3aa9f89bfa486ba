//! From a stream to its members.

use std::io::Read;

use vdkr_core::tar::{
    header::{BLOCK, Block, decode},
    pax,
    write::padding,
};

use super::TreeError;

/// Longest extension of a header, in bytes.
const MAX_EXTENSION: u64 = 1 << 20;

/// A member of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) kind: u8,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) mtime: i64,
}

/// Reads a stream from front to back.
pub(super) struct Reader<R> {
    inner: R,
    /// Data of the current member and its padding, not read yet.
    left: u64,
    padding: u64,
}

impl<R: Read> Reader<R> {
    pub(super) fn new(inner: R) -> Self {
        Self {
            inner,
            left: 0,
            padding: 0,
        }
    }

    /// The next member; the rest of the last one's data is skipped.
    pub(super) fn next_member(&mut self) -> Result<Option<Member>, TreeError> {
        let damaged = |reason: &str| TreeError::Damaged(reason.to_owned());
        self.skip(self.left + self.padding)?;
        (self.left, self.padding) = (0, 0);
        let (mut name, mut link, mut size) = (None, None, None);
        loop {
            let mut block: Block = [0; BLOCK];
            if !self.fill(&mut block)? {
                return if name.is_none() && link.is_none() && size.is_none() {
                    Ok(None)
                } else {
                    Err(damaged("it ends within a member"))
                };
            }
            let decoded = decode(&block).map_err(|error| damaged(&error.to_string()))?;
            let Some(header) = decoded else {
                // What follows the end belongs to nobody; it is read so that the writer can end.
                std::io::copy(&mut self.inner, &mut std::io::sink())?;
                return Ok(None);
            };
            match header.kind {
                b'L' | b'K' => {
                    let mut text = self.extension(header.size)?;
                    text.truncate(
                        text.iter()
                            .position(|byte| *byte == 0)
                            .unwrap_or(text.len()),
                    );
                    *if header.kind == b'L' {
                        &mut name
                    } else {
                        &mut link
                    } = Some(text);
                }
                b'x' | b'X' => {
                    let body = self.extension(header.size)?;
                    for record in pax::records(&body) {
                        let (key, value) = record.map_err(|error| damaged(&error.to_string()))?;
                        match key {
                            b"path" => name = Some(value.to_vec()),
                            b"linkpath" => link = Some(value.to_vec()),
                            b"size" => {
                                let read = pax::decimal(value);
                                size = Some(read.ok_or_else(|| damaged("a size is no number"))?);
                            }
                            key if key.starts_with(b"GNU.sparse.") => {
                                return Err(damaged("it holds sparse files; make it without them"));
                            }
                            _ => {}
                        }
                    }
                }
                b'g' => drop(self.extension(header.size)?),
                kind => {
                    let number = |number: u64| u32::try_from(number).unwrap_or(0);
                    let size = size.unwrap_or(header.size);
                    let has_data = matches!(kind, b'0' | 0 | b'7');
                    if has_data {
                        (self.left, self.padding) = (size, padding(size) as u64);
                    } else if size > 0 && !matches!(kind, b'1' | b'2' | b'5') {
                        return Err(damaged("it has a member of an unknown kind with data"));
                    }
                    return Ok(Some(Member {
                        name: name.unwrap_or(header.name),
                        link: link.unwrap_or(header.link),
                        kind: if has_data { b'0' } else { kind },
                        mode: header.mode,
                        uid: number(header.uid),
                        gid: number(header.gid),
                        size: if has_data { size } else { 0 },
                        mtime: header.mtime,
                    }));
                }
            }
        }
    }

    /// Data of the current member; nothing at its end.
    pub(super) fn data(&mut self, buffer: &mut [u8]) -> Result<usize, TreeError> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self
            .inner
            .read(buffer.get_mut(..most).unwrap_or_default())?;
        if length == 0 {
            return Err(TreeError::Damaged("it ends within a file".to_owned()));
        }
        self.left -= length as u64;
        Ok(length)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), TreeError> {
        let skipped = std::io::copy(&mut (&mut self.inner).take(bytes), &mut std::io::sink())?;
        if skipped < bytes {
            return Err(TreeError::Damaged("it ends within a file".to_owned()));
        }
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TreeError> {
        if size > MAX_EXTENSION {
            return Err(TreeError::Damaged(
                "a header's extension is too long".to_owned(),
            ));
        }
        let mut body = Vec::new();
        (&mut self.inner).take(size).read_to_end(&mut body)?;
        if (body.len() as u64) < size {
            return Err(TreeError::Damaged("it ends within a header".to_owned()));
        }
        self.skip(padding(size) as u64)?;
        Ok(body)
    }

    /// `false` at the end of the stream.
    fn fill(&mut self, block: &mut Block) -> Result<bool, TreeError> {
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest)? {
                0 if filled == 0 => return Ok(false),
                0 => return Err(TreeError::Damaged("it ends within a header".to_owned())),
                length => filled += length,
            }
        }
        Ok(true)
    }
}
