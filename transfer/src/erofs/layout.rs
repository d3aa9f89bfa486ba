//! Everything but the data of files, put behind it: inodes with their attributes and ends of data,
//! then the blocks of directories; the superblock last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::BLOCK;
use super::format::{
    DIRENT, Dirent, FileType, INODE, Inode, Layout, SLOT, Superblock, encode_dirents,
    encode_xattrs, xattrs_length,
};
use super::note::Note;
use super::spool::Spool;
use super::tree::{Content, Id, ROOT, Tree};

/// Where a file's inode and data stand.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// Number of the inode; 0 is none, and no file has it.
    nid: u64,
    /// First block of a directory's or a link's data.
    block: u32,
    /// Bytes of data behind the inode.
    inline: usize,
    /// Bytes of data.
    size: u64,
    links: u32,
}

/// Which file is where.
struct Plan<'a> {
    tree: &'a Tree,
    /// By id.
    places: Vec<Place>,
    /// Files in the order of their inodes, each with the directory that it was found in.
    order: Vec<(Id, Id)>,
    /// Bytes that inodes take so far.
    inodes: u64,
    /// Blocks that directories take so far.
    blocks: u64,
}

/// Writes what `data` still has, then inodes and directories.
pub(super) fn write(
    tree: &Tree,
    mut data: Spool<'_>,
    image: &File,
    scratch: &File,
    note: &Note,
) -> io::Result<()> {
    let inodes_at = data.position();
    let mut plan = Plan {
        tree,
        places: vec![Place::default(); tree.len()],
        order: Vec::new(),
        // Inode 0 would be a file without a number to some programs.
        inodes: SLOT as u64,
        blocks: 0,
    };
    plan.walk()?;
    let blocks_at = (inodes_at + plan.inodes).next_multiple_of(BLOCK as u64);
    let end = blocks_at + plan.blocks * BLOCK as u64;
    let block = |at: u64| u32::try_from(at / BLOCK as u64).map_err(|_| too_large());
    let (first, blocks) = (block(blocks_at)?, block(end)?);

    for (serial, &(id, parent)) in plan.order.iter().enumerate() {
        let place = plan.places[id.index()];
        data.skip_to(inodes_at + place.nid * SLOT as u64)?;
        plan.write_inode(&mut data, id, serial as u32 + 1, first)?;
        match &tree.node(id).content {
            Content::File(found) => {
                let mut tail = vec![0; found.tail];
                scratch.read_exact_at(&mut tail, found.tail_at)?;
                data.write(&tail)?;
            }
            Content::Symlink(target) if place.inline > 0 => data.write(target)?,
            Content::Directory(_) if place.inline > 0 => {
                let last = plan.blocks_of(id, parent).pop();
                data.write(&last.unwrap_or_default())?;
            }
            _ => {}
        }
    }
    data.skip_to(blocks_at)?;
    for &(id, parent) in &plan.order {
        let place = plan.places[id.index()];
        let whole = (place.size - place.inline as u64).div_ceil(BLOCK as u64) as usize;
        match &tree.node(id).content {
            Content::Directory(_) => {
                for bytes in plan.blocks_of(id, parent).iter().take(whole) {
                    data.write(bytes)?;
                    data.align()?;
                }
            }
            Content::Symlink(target) if whole > 0 => {
                data.write(target)?;
                data.align()?;
            }
            _ => {}
        }
    }
    data.flush()?;
    image.set_len(end)?;

    let mut superblock = [0; BLOCK];
    note.write_into(&mut superblock)?;
    Superblock {
        root: u16::try_from(plan.places[ROOT.index()].nid).map_err(io::Error::other)?,
        inodes: plan.order.len() as u64,
        blocks,
        inodes_at: block(inodes_at)?,
        uuid: uuid(note),
    }
    .write_into(&mut superblock);
    image.write_all_at(&superblock, 0)
}

impl Plan<'_> {
    /// Gives every file that has a name its place: directories before what is in them, names in
    /// their order.
    fn walk(&mut self) -> io::Result<()> {
        let mut todo = vec![(ROOT, ROOT)];
        while let Some((id, parent)) = todo.pop() {
            let place = &mut self.places[id.index()];
            place.links += 1;
            if place.links > 1 {
                continue;
            }
            let node = self.tree.node(id);
            if let Content::Directory(entries) = &node.content {
                let below = entries
                    .values()
                    .filter(|&&child| self.tree.node(child).kind() == FileType::Directory);
                // Its own name, `.`, and `..` of each directory in it.
                let below = u32::try_from(below.count()).unwrap_or(u32::MAX);
                self.places[id.index()].links = below.saturating_add(2);
                todo.extend(entries.values().rev().map(|&child| (child, id)));
            }
            self.place(id)?;
            self.order.push((id, parent));
        }
        Ok(())
    }

    fn place(&mut self, id: Id) -> io::Result<()> {
        let node = self.tree.node(id);
        let inode = INODE + xattrs_length(node.all_attributes());
        let (size, inline) = match &node.content {
            Content::File(data) => (data.size, data.tail),
            Content::Symlink(target) => (target.len() as u64, inline(target.len(), inode)),
            Content::Directory(entries) => {
                let blocks = split(entries);
                let last = blocks.last().map_or(0, |&(_, bytes)| bytes);
                let before = blocks.len().saturating_sub(1) * BLOCK;
                ((before + last) as u64, inline(last, inode))
            }
            _ => (0, 0),
        };
        let whole = inode + inline;
        let room = BLOCK - (self.inodes % BLOCK as u64) as usize;
        // Nothing crosses the end of a block that fits into one; what does not, begins one.
        if whole > room {
            self.inodes = self.inodes.next_multiple_of(BLOCK as u64);
        }
        let nid = self.inodes / SLOT as u64;
        self.inodes = (self.inodes + whole as u64).next_multiple_of(SLOT as u64);
        let block = u32::try_from(self.blocks).map_err(|_| too_large())?;
        if !matches!(node.content, Content::File(_)) {
            self.blocks += (size - inline as u64).div_ceil(BLOCK as u64);
        }
        let place = &mut self.places[id.index()];
        *place = Place {
            nid,
            block,
            inline,
            size,
            links: place.links,
        };
        Ok(())
    }

    fn write_inode(
        &self,
        data: &mut Spool<'_>,
        id: Id,
        serial: u32,
        first_block: u32,
    ) -> io::Result<()> {
        let node = self.tree.node(id);
        let place = self.places[id.index()];
        let xattrs = encode_xattrs(node.all_attributes());
        let inode = Inode {
            kind: node.kind(),
            layout: match place.inline {
                0 => Layout::Plain,
                _ => Layout::Inline,
            },
            xattrs: xattrs.len(),
            mode: node.mode,
            size: place.size,
            place: match &node.content {
                Content::File(data) => data.block,
                Content::Character(device) | Content::Block(device) => *device,
                Content::Directory(_) | Content::Symlink(_) => first_block + place.block,
                Content::Fifo => 0,
            },
            serial,
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            links: place.links,
        };
        data.write(&inode.encode())?;
        data.write(&xattrs)
    }

    /// The blocks of a directory, the last one as short as it is.
    fn blocks_of(&self, id: Id, parent: Id) -> Vec<Vec<u8>> {
        let Content::Directory(entries) = &self.tree.node(id).content else {
            return Vec::new();
        };
        let dirent = |name, id: Id| Dirent {
            name,
            nid: self.places[id.index()].nid,
            kind: self.tree.node(id).kind(),
        };
        split(entries)
            .into_iter()
            .map(|(names, _)| {
                let dirents = names.into_iter().map(|name| match entries.get(name) {
                    Some(&child) => dirent(name, child),
                    None if name == b"." => dirent(name, id),
                    None => dirent(name, parent),
                });
                encode_dirents(&dirents.collect::<Vec<_>>())
            })
            .collect()
    }
}

/// The names in each block of a directory, and the bytes that the block has. Names are looked up by
/// halving, so all are in their order.
fn split(entries: &BTreeMap<Box<[u8]>, Id>) -> Vec<(Vec<&[u8]>, usize)> {
    let mut names: Vec<&[u8]> = entries.keys().map(|name| &**name).collect();
    names.extend([&b"."[..], b".."]);
    names.sort_unstable();
    let mut blocks: Vec<(Vec<&[u8]>, usize)> = Vec::new();
    for name in names {
        let bytes = DIRENT + name.len();
        match blocks.last_mut() {
            Some((names, used)) if *used + bytes <= BLOCK => {
                names.push(name);
                *used += bytes;
            }
            _ => blocks.push((vec![name], bytes)),
        }
    }
    blocks
}

/// How many of the last `bytes` of data stand behind an inode of this length.
fn inline(bytes: usize, inode: usize) -> usize {
    if inode + bytes <= BLOCK { bytes } else { 0 }
}

/// The layer's own, so that another one in its place is noticed.
fn uuid(note: &Note) -> [u8; 16] {
    let digits = note.diff_id.hex().as_bytes().chunks_exact(2);
    let bytes = digits.map(|pair| {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).unwrap_or_default() as u8;
        digit(0) << 4 | digit(1)
    });
    let mut uuid = [0; 16];
    uuid.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    uuid
}

fn too_large() -> io::Error {
    Errno::FBIG.into()
}
