//! Members of a tar archive, one after another, from a stream.
//!
//! Reads what image builders write: v7, ustar, GNU (long names, sparse files) and pax. Where two
//! descriptions of one member contradict each other the archive is refused: choosing either would
//! let another reader of the same bytes see different files.

use std::io::{self, BufRead};

use vdkr_core::tar::header::{self, BLOCK, Block, Flavour, Header, HeaderError};

use super::pax::{self, Extensions, PaxError, Time};
use super::sparse::{self, Map, MapError, MapReader};

/// Most bytes of an extended header or a long name.
pub const MAX_EXTENSION: u64 = 1 << 20;

/// Largest size that the twelve octal digits of a header can say.
const MAX_OCTAL_SIZE: u64 = 0o77_777_777_777;

/// Why an archive cannot be read further.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The stream failed, or its compression is damaged.
    #[error("{0}")]
    Stream(#[from] io::Error),
    /// The archive itself is damaged or uses what is not supported; where, and what.
    #[error("{problem} (at byte {offset} of the archive)")]
    Damaged {
        /// Byte offset in the plain archive of the header concerned.
        offset: u64,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with an archive.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The stream ended within a header or within the data of a member.
    #[error("the archive ends in the middle of a member")]
    Truncated,
    /// A block of zeros with a header after it.
    #[error("a block of zeros stands between two members")]
    Gap,
    /// A header block is damaged.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// An extended header is damaged.
    #[error(transparent)]
    Pax(#[from] PaxError),
    /// A sparse file is damaged.
    #[error(transparent)]
    Sparse(#[from] MapError),
    /// An extended header or long name beyond [`MAX_EXTENSION`].
    #[error("an extended header is larger than 1 MiB")]
    ExtensionSize,
    /// Two extended headers or two long names for one member.
    #[error("a member has two {0}")]
    Twice(&'static str),
    /// Extended headers at the end, for no member.
    #[error("the archive ends after an extended header")]
    Dangling,
    /// Two descriptions of one member contradict each other.
    #[error("the headers of a member disagree about its {0}")]
    Contradiction(&'static str),
    /// Data after a header that describes none.
    #[error("a member that is not a file has data")]
    UnexpectedData,
    /// A name or link target is missing.
    #[error("a member has no {0}")]
    Missing(&'static str),
    /// Owner or group beyond 32 bits, or the value that means "leave as it is".
    #[error("the {0} of a member is out of range")]
    Owner(&'static str),
    /// A type flag that layers do not use.
    #[error("members of type {:?} are not supported", char::from(*.0))]
    Kind(u8),
    /// A sparse format that is not known.
    #[error("the format of a sparse file is not supported")]
    SparseFormat,
}

/// What a member is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file, with [`Member::stored`] bytes of data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link and its target, as archived.
    Symlink(Vec<u8>),
    /// Another name of the file with this name in the archive.
    HardLink(Vec<u8>),
    /// A character device: major, minor.
    Character(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// A member and everything its headers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name as archived: not checked, not normalised, never empty, without NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub kind: Kind,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time.
    pub mtime: Time,
    /// Bytes of data in the archive.
    pub stored: u64,
    /// Where the data belongs when the file is sparse.
    pub sparse: Option<Map>,
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Member {
    /// Bytes of the file, holes included.
    pub fn size(&self) -> u64 {
        self.sparse.as_ref().map_or(self.stored, |map| map.size)
    }
}

/// Reads an archive from `inner`, front to back.
#[derive(Debug)]
pub struct Archive<R> {
    inner: R,
    /// Bytes consumed.
    position: u64,
    /// Data of the current member not read yet, and the padding after it.
    left: u64,
    padding: u64,
    ended: bool,
}

impl<R: BufRead> Archive<R> {
    /// An archive that begins where `inner` stands.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            position: 0,
            left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// The stream, positioned after what was read.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// The stream itself. What is read of it here is missed by the archive.
    pub fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// The next member; what is left of the current one's data is skipped. `None` at the end:
    /// two blocks of zeros, or the end of the stream where a header would stand.
    pub fn next_member(&mut self) -> Result<Option<Member>, ArchiveError> {
        self.skip_data()?;
        if self.ended {
            return Ok(None);
        }
        let mut before = Before::default();
        loop {
            let offset = self.position;
            let at = |problem| ArchiveError::Damaged { offset, problem };
            let Some(block) = self.block_or_end()? else {
                return self.end(&before).map_err(at);
            };
            let Some(header) = header::decode(&block).map_err(|e| at(e.into()))? else {
                return match self.block_or_end()? {
                    Some(second) if second != [0; BLOCK] => Err(at(Problem::Gap)),
                    _ => self.end(&before).map_err(at),
                };
            };
            match header.kind {
                b'x' => {
                    let body = self.extension(header.size, offset)?;
                    let found = Extensions::parse(&body).map_err(|e| at(e.into()))?;
                    if before.pax.replace(found).is_some() {
                        return Err(at(Problem::Twice("extended headers")));
                    }
                }
                b'g' => {
                    let body = self.extension(header.size, offset)?;
                    pax::check_global(&body).map_err(|e| at(e.into()))?;
                }
                b'L' | b'K' => {
                    let (slot, what) = match header.kind {
                        b'L' => (&mut before.name, "long names"),
                        _ => (&mut before.link, "long link targets"),
                    };
                    let mut body = self.extension(header.size, offset)?;
                    let end = body
                        .iter()
                        .position(|&byte| byte == 0)
                        .unwrap_or(body.len());
                    if body[end..].iter().any(|&byte| byte != 0) {
                        return Err(at(Problem::Contradiction("name")));
                    }
                    body.truncate(end);
                    if slot.replace(body).is_some() {
                        return Err(at(Problem::Twice(what)));
                    }
                }
                _ => return self.member(before, header, &block, offset).map(Some),
            }
        }
    }

    /// Hands `length` bytes of the current member's data to `sink`, in pieces.
    pub fn data<E: From<ArchiveError>>(
        &mut self,
        mut length: u64,
        mut sink: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        debug_assert!(length <= self.left);
        while length > 0 {
            let piece = self.piece(length)?;
            let taken = piece.len();
            sink(piece)?;
            self.consume(taken);
            self.left -= taken as u64;
            length -= taken as u64;
        }
        Ok(())
    }

    fn skip_data(&mut self) -> Result<(), ArchiveError> {
        self.data(self.left, |_| Ok::<_, ArchiveError>(()))?;
        let mut padding = std::mem::take(&mut self.padding);
        while padding > 0 {
            let taken = self.piece(padding)?.len();
            self.consume(taken);
            padding -= taken as u64;
        }
        Ok(())
    }

    fn end(&mut self, before: &Before) -> Result<Option<Member>, Problem> {
        self.ended = true;
        if before.is_empty() {
            Ok(None)
        } else {
            Err(Problem::Dangling)
        }
    }

    fn member(
        &mut self,
        before: Before,
        header: Header,
        block: &Block,
        offset: u64,
    ) -> Result<Member, ArchiveError> {
        let at = |problem| ArchiveError::Damaged { offset, problem };
        let Before {
            pax,
            name: long_name,
            link: long_link,
        } = before;
        let pax = pax.unwrap_or_default();
        let stored = stored_size(pax.size, header.size).map_err(at)?;
        let mut pax_sparse = pax.sparse.unwrap_or_default();
        let path = agree(pax.path, long_name, "name").map_err(at)?;
        let name = pax_sparse.name.take().or(path).unwrap_or(header.name);
        let link = agree(pax.linkpath, long_link, "link target")
            .map_err(at)?
            .unwrap_or(header.link);
        if name.is_empty() {
            return Err(at(Problem::Missing("name")));
        }
        let sparse_marked = pax_sparse.size.is_some() || pax_sparse.version.0.is_some();
        let (kind, sparse) = match header.kind {
            b'0' | 0 | b'7' if name.ends_with(b"/") => (Kind::Directory, None),
            b'0' | 0 | b'7' => (Kind::File, sparse_marked.then_some(pax_sparse)),
            b'S' if header.flavour == Flavour::Gnu => (Kind::File, None),
            b'1' | b'2' if link.is_empty() => return Err(at(Problem::Missing("link target"))),
            b'1' => (Kind::HardLink(link), None),
            b'2' => (Kind::Symlink(link), None),
            b'3' if header.flavour != Flavour::V7 => {
                (Kind::Character(header.device.0, header.device.1), None)
            }
            b'4' if header.flavour != Flavour::V7 => {
                (Kind::Block(header.device.0, header.device.1), None)
            }
            b'5' => (Kind::Directory, None),
            b'6' => (Kind::Fifo, None),
            other => return Err(at(Problem::Kind(other))),
        };
        if kind != Kind::File && stored > 0 {
            return Err(at(Problem::UnexpectedData));
        }
        self.left = stored;
        self.padding = stored.next_multiple_of(BLOCK as u64) - stored;
        let sparse = match sparse {
            _ if header.kind == b'S' => Some(self.old_gnu_map(block, offset)?),
            Some(found) => Some(self.pax_map(found, offset)?),
            None => None,
        };
        let owner = |pax: Option<u64>, plain, what| match u32::try_from(pax.unwrap_or(plain)) {
            Ok(id) if id != u32::MAX => Ok(id),
            _ => Err(at(Problem::Owner(what))),
        };
        Ok(Member {
            name,
            kind,
            mode: header.mode,
            uid: owner(pax.uid, header.uid, "owner")?,
            gid: owner(pax.gid, header.gid, "group")?,
            mtime: pax.mtime.unwrap_or(Time {
                seconds: header.mtime,
                nanos: 0,
            }),
            stored: self.left,
            sparse,
            xattrs: pax.xattrs,
        })
    }

    /// The map of an old GNU sparse file; its further blocks stand between header and data.
    fn old_gnu_map(&mut self, block: &Block, offset: u64) -> Result<Map, ArchiveError> {
        let at = |e: MapError| ArchiveError::Damaged {
            offset,
            problem: e.into(),
        };
        let (mut segments, size, mut more) = sparse::old_gnu(block).map_err(at)?;
        while more {
            let block = self.block()?;
            more = sparse::old_gnu_more(&block, &mut segments).map_err(at)?;
        }
        Map::new(segments, size, self.left).map_err(at)
    }

    /// The map of a pax sparse file: in its records (0.x), or before its data (1.0).
    fn pax_map(&mut self, found: pax::PaxSparse, offset: u64) -> Result<Map, ArchiveError> {
        let at = |problem| ArchiveError::Damaged { offset, problem };
        let size = found.size.ok_or_else(|| at(MapError.into()))?;
        let segments = match found.version {
            (None, None) | (Some(0), Some(0 | 1)) => found.map,
            (Some(1), Some(0)) => {
                let mut reader = MapReader::default();
                loop {
                    if self.left < BLOCK as u64 {
                        return Err(at(MapError.into()));
                    }
                    let block = self.block()?;
                    self.left -= BLOCK as u64;
                    if let Some(whole) = reader.push(&block).map_err(|e| at(e.into()))? {
                        break whole;
                    }
                }
            }
            _ => return Err(at(Problem::SparseFormat)),
        };
        Map::new(segments, size, self.left).map_err(|e| at(e.into()))
    }

    fn extension(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > MAX_EXTENSION {
            return Err(ArchiveError::Damaged {
                offset,
                problem: Problem::ExtensionSize,
            });
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        let mut body = Vec::with_capacity(size as usize);
        self.data(size, |piece| {
            body.extend_from_slice(piece);
            Ok::<_, ArchiveError>(())
        })?;
        self.skip_data()?;
        Ok(body)
    }

    fn block(&mut self) -> Result<Block, ArchiveError> {
        self.block_or_end()?.ok_or(ArchiveError::Damaged {
            offset: self.position,
            problem: Problem::Truncated,
        })
    }

    /// A block, or nothing when the stream ends right here.
    fn block_or_end(&mut self) -> Result<Option<Block>, ArchiveError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        if self.inner.fill_buf()?.is_empty() {
            return Ok(None);
        }
        while filled < BLOCK {
            let piece = self.piece((BLOCK - filled) as u64)?;
            let taken = piece.len();
            block[filled..filled + taken].copy_from_slice(piece);
            self.consume(taken);
            filled += taken;
        }
        Ok(Some(block))
    }

    /// Up to `most` bytes from the stream; its end is an error.
    fn piece(&mut self, most: u64) -> Result<&[u8], ArchiveError> {
        let offset = self.position;
        let piece = self.inner.fill_buf()?;
        if piece.is_empty() {
            return Err(ArchiveError::Damaged {
                offset,
                problem: Problem::Truncated,
            });
        }
        Ok(&piece[..piece.len().min(usize::try_from(most).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, taken: usize) {
        self.inner.consume(taken);
        self.position += taken as u64;
    }
}

/// What stood before a member: extended header, GNU long name, GNU long link target.
#[derive(Default)]
struct Before {
    pax: Option<Extensions>,
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Before {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.name.is_none() && self.link.is_none()
    }
}

/// The size of the data. Writers repeat it in a pax record only where the header has no room for
/// it; a record that disagrees with a header that has room is how files are smuggled past a reader.
fn stored_size(pax: Option<u64>, header: u64) -> Result<u64, Problem> {
    match pax {
        None => Ok(header),
        Some(size) if size == header => Ok(size),
        Some(size) if size > MAX_OCTAL_SIZE && i64::try_from(size).is_ok() => Ok(size),
        Some(_) => Err(Problem::Contradiction("size")),
    }
}

/// A pax value and a GNU long one of the same thing: either, or both if they are equal.
fn agree(
    pax: Option<Vec<u8>>,
    gnu: Option<Vec<u8>>,
    what: &'static str,
) -> Result<Option<Vec<u8>>, Problem> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(Problem::Contradiction(what)),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}
