//! Files of an image, read back by their paths.
//!
//! Whoever reads checks what comes out against a digest; here only the bounds of the image hold.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use rustix::io::Errno;

use super::BLOCK;
use super::format::{FileType, INODE, Inode, Layout, SLOT, decode_dirents, superblock_of};
use super::note::{Note, NoteError};
use super::tree::{components, follow};

/// Longest target of a link.
const MAX_TARGET: u64 = 4096;

/// The files of one image. Clones are the same.
#[derive(Clone, Debug)]
pub struct Files {
    image: Arc<File>,
    root: u64,
    /// Where inode 0 would stand.
    inodes_at: u64,
}

/// An inode, and where what follows it stands.
#[derive(Clone, Copy, Debug)]
struct Found {
    inode: Inode,
    behind: u64,
}

impl Files {
    /// Looks into an image.
    pub fn open(image: File) -> Result<Self, NoteError> {
        Note::read(&image)?;
        let mut block = [0; BLOCK];
        image.read_exact_at(&mut block, 0)?;
        let superblock =
            superblock_of(&block).ok_or(NoteError::Damaged("its superblock is damaged"))?;
        Ok(Self {
            image: Arc::new(image),
            root: u64::from(superblock.root),
            inodes_at: u64::from(superblock.inodes_at) * BLOCK as u64,
        })
    }

    /// Opens the regular file that a path leads to. Links are followed on the way to it, from the
    /// image's own root, but it is none itself.
    pub fn file(&self, path: &[u8]) -> io::Result<Data> {
        let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&[][..], path),
        };
        let parent = self.directory(directory)?;
        let nid = self.child(&parent, name)?;
        let found = self.inode(nid)?;
        if found.inode.kind != FileType::Regular {
            return Err(io::Error::other("it is not a file any more"));
        }
        Ok(Data {
            files: self.clone(),
            found,
            at: 0,
        })
    }

    fn directory(&self, path: &[u8]) -> io::Result<Found> {
        // Targets of links live as long as the walk.
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut real = vec![self.inode(self.root)?];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                real.truncate(real.len().max(2) - 1);
                continue;
            }
            let Some(at) = real.last() else { break };
            let found = self.inode(self.child(at, &name)?)?;
            match found.inode.kind {
                FileType::Directory => real.push(found),
                FileType::Symlink => {
                    let target = self.target(&found)?;
                    let mut ahead = VecDeque::new();
                    follow(&target, &mut links, &mut real, &mut ahead)?;
                    for part in ahead.into_iter().rev() {
                        todo.push_front(part.to_vec());
                    }
                }
                _ => return Err(Errno::NOTDIR.into()),
            }
        }
        real.pop().ok_or_else(|| Errno::NOENT.into())
    }

    fn inode(&self, nid: u64) -> io::Result<Found> {
        let at = nid
            .checked_mul(SLOT as u64)
            .and_then(|offset| offset.checked_add(self.inodes_at))
            .ok_or_else(damaged)?;
        let mut bytes = [0; INODE];
        self.image.read_exact_at(&mut bytes, at)?;
        let inode = Inode::decode(&bytes).ok_or_else(damaged)?;
        let behind = at + (INODE + inode.xattrs) as u64;
        Ok(Found { inode, behind })
    }

    /// The inode of a name in a directory, whose names are in their order.
    fn child(&self, directory: &Found, name: &[u8]) -> io::Result<u64> {
        let blocks = directory.inode.size.div_ceil(BLOCK as u64);
        let (mut low, mut high) = (0, blocks);
        let mut block = [0; BLOCK];
        while low < high {
            let middle = low.midpoint(high);
            let length = self.read_at(directory, middle * BLOCK as u64, &mut block)?;
            let block = &block[..length];
            if let Some((_, nid)) = decode_dirents(block).find(|(entry, _)| *entry == name) {
                return Ok(nid);
            }
            match decode_dirents(block).next() {
                Some((first, _)) if name < first => high = middle,
                _ => low = middle + 1,
            }
        }
        Err(Errno::NOENT.into())
    }

    fn target(&self, link: &Found) -> io::Result<Vec<u8>> {
        if link.inode.size > MAX_TARGET {
            return Err(damaged());
        }
        let mut target = vec![0; link.inode.size as usize];
        let mut at = 0;
        while at < target.len() {
            match self.read_at(link, at as u64, &mut target[at..])? {
                0 => return Err(damaged()),
                count => at += count,
            }
        }
        Ok(target)
    }

    /// Reads data from `offset` on; less than asked for where it goes on elsewhere, nothing at its end.
    fn read_at(&self, found: &Found, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let Inode { size, place, .. } = found.inode;
        let in_blocks = match found.inode.layout {
            Layout::Plain => size,
            Layout::Inline => size / BLOCK as u64 * BLOCK as u64,
        };
        let (start, left) = if offset < in_blocks {
            let start = (u64::from(place) * BLOCK as u64).saturating_add(offset);
            (start, in_blocks - offset)
        } else {
            let start = found.behind + (offset - in_blocks);
            (start, size.saturating_sub(offset))
        };
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        self.image.read_exact_at(&mut buffer[..length], start)?;
        Ok(length)
    }
}

/// A file's data.
#[derive(Debug)]
pub struct Data {
    files: Files,
    found: Found,
    at: u64,
}

impl Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.files.read_at(&self.found, self.at, buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the image is damaged")
}
