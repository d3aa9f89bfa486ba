//! Members of a layer, taken into the tree; their data goes straight into the image.
//!
//! Step by step what the agent's `unpack/apply.rs` does with the kernel's help, so that both give the
//! same files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead};

use rustix::io::Errno;
use vdkr_core::digest::Digest;

use super::BLOCK;
use super::format::{FileType, INODE, xattrs_length};
use super::layout;
use super::note::Note;
use super::spool::Spool;
use super::tree::{Content, Data, Id, Node, ROOT, Tree};
use crate::layer::archive::{Archive, Kind, Member};
use crate::layer::name::{LayerPath, Meaning, NameError, meaning};
use crate::layer::{Limits, Namespace, Refusal, Sink, UnpackError, Unpacked};

/// Longest end of a file that is put behind its inode: more would leave too much of the inodes'
/// blocks unused.
const MAX_TAIL: usize = 3072;
/// Components of paths that may be looked up in any layer, and more for each of its members: ordinary
/// layers do with a few for each, and links that lead through links can make it eighty thousand.
const STEPS: u64 = 4_000_000;
const STEPS_OF_MEMBER: u64 = 32;

/// Takes members.
#[derive(Debug)]
pub(super) struct Builder<'a> {
    tree: Tree,
    image: &'a File,
    scratch: &'a File,
    data: Spool<'a>,
    tails: Spool<'a>,
    limits: Limits,
    total: u64,
    counts: Unpacked,
}

impl<'a> Builder<'a> {
    /// Writes data to `image`, the ends of files to `scratch`.
    pub(super) fn new(image: &'a File, scratch: &'a File, limits: &Limits) -> Self {
        Self {
            tree: Tree::new(limits.pool.clone()),
            image,
            scratch,
            // The first block is the superblock's.
            data: Spool::new(image, BLOCK as u64),
            tails: Spool::new(scratch, 0),
            limits: limits.clone(),
            total: 0,
            counts: Unpacked::default(),
        }
    }

    /// Writes everything but the data of files, and says what was taken.
    pub(super) fn finish(mut self, diff_id: &Digest) -> Result<Unpacked, UnpackError> {
        let note = Note {
            diff_id: diff_id.clone(),
            bytes: self.counts.bytes,
            entries: self.counts.entries,
            opaque: self.counts.opaque_root,
        };
        // Names and attributes are written only now.
        self.take_room(self.tree.memory() as u64)?;
        let written = self
            .tails
            .flush()
            .and_then(|()| self.data.align())
            .and_then(|()| layout::write(&self.tree, self.data, self.image, self.scratch, &note));
        written.map_err(|error| UnpackError::write(b"(metadata)", errno(&error)))?;
        Ok(self.counts)
    }

    /// Takes room on the disk from what the layers under way have together.
    fn take_room(&self, bytes: u64) -> Result<(), UnpackError> {
        let pool = &self.limits.pool;
        if pool.take_bytes(bytes) {
            return Ok(());
        }
        Err(UnpackError::TooLarge {
            limit: pool.max_bytes(),
        })
    }

    fn make<R: BufRead>(
        &mut self,
        path: &LayerPath,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        let parent = self.tree.directory_or_make(parent).map_err(failed)?;
        let content = match &member.kind {
            Kind::Directory => {
                let directory = self.directory(parent, name).map_err(failed)?;
                return self.set_directory(directory, member);
            }
            Kind::HardLink(target) => return self.hard_link(parent, name, member, target),
            Kind::File => {
                let mut node = Node::new(Content::File(Data::default()));
                self.describe(&mut node, member)?;
                let attributes = xattrs_length(node.attributes.iter());
                node.content = Content::File(self.fill(member, archive, INODE + attributes)?);
                self.tree.make(parent, name, node).map_err(failed)?;
                return Ok(());
            }
            Kind::Symlink(target) if target.contains(&0) => {
                let refusal = Refusal::Name(NameError::Nul);
                return Err(UnpackError::refused(&member.name, refusal));
            }
            Kind::Symlink(target) => Content::Symlink(target.as_slice().into()),
            Kind::Fifo => Content::Fifo,
            Kind::Character(major, minor) => Content::Character(device(*major, *minor)),
            Kind::Block(major, minor) => Content::Block(device(*major, *minor)),
        };
        let mut node = Node::new(content);
        self.describe(&mut node, member)?;
        self.tree.make(parent, name, node).map_err(failed)?;
        Ok(())
    }

    /// Makes or keeps the directory `name`.
    fn directory(&mut self, parent: Id, name: &[u8]) -> rustix::io::Result<Id> {
        let mut node = Node::new(Content::Directory(BTreeMap::new()));
        if let Some(there) = self.tree.child(parent, name) {
            if self.tree.node(there).kind() == FileType::Directory {
                return Ok(there);
            }
            // A whiteout hides what lower layers have here; the directory must go on hiding it.
            node.opaque = self.tree.node(there).is_whiteout();
        }
        self.tree.make(parent, name, node)
    }

    fn set_directory(&mut self, directory: Id, member: &Member) -> Result<(), UnpackError> {
        // What it had before and the member does not name, it keeps.
        let content = Content::Directory(BTreeMap::new());
        let mut node = std::mem::replace(self.tree.node_mut(directory), Node::new(content));
        let before = node.attributes.bytes();
        let described = self.describe(&mut node, member);
        self.tree
            .charge(node.attributes.bytes().saturating_sub(before));
        *self.tree.node_mut(directory) = node;
        described
    }

    /// Gives a file what its headers say of it.
    fn describe(&mut self, node: &mut Node, member: &Member) -> Result<(), UnpackError> {
        let kind = node.kind();
        node.uid = member.uid;
        node.gid = member.gid;
        node.mtime = member.mtime;
        node.mode = match kind {
            FileType::Symlink => 0o777,
            _ => member.mode as u16,
        };
        for (name, value) in &member.xattrs {
            let kept = match Namespace::of(name) {
                Namespace::OverlayMark => {
                    return Err(UnpackError::refused(&member.name, Refusal::OverlayMark));
                }
                Namespace::Foreign => false,
                Namespace::Kept => node
                    .attributes
                    .set(kind, &mut node.mode, name, value)
                    .map_err(|error| UnpackError::write(&member.name, error))?,
            };
            self.counts.skipped_xattrs += u64::from(!kept);
        }
        Ok(())
    }

    /// Puts a file's data into the image, its end into the scratch file where it fits behind the
    /// inode, which takes `inode` bytes.
    fn fill<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
        inode: usize,
    ) -> Result<Data, UnpackError> {
        let failed = |error: io::Error| UnpackError::write(&member.name, errno(&error));
        let size = member.size();
        // The end of a file is on the disk twice until the image is whole, or fills a block.
        self.take_room(member.stored.saturating_add(member.stored % BLOCK as u64))?;
        let start = self.data.position();
        let block = u32::try_from(start / BLOCK as u64).map_err(|_| UnpackError::TooLarge {
            limit: self.limits.total,
        })?;
        let mut data = Data {
            size,
            block,
            ..Data::default()
        };
        if let Some(map) = &member.sparse {
            for segment in &map.segments {
                self.data.skip_to(start + segment.offset).map_err(failed)?;
                let spool = &mut self.data;
                archive.data(segment.length, |piece| spool.write(piece).map_err(failed))?;
            }
            self.data.skip_to(start + size).map_err(failed)?;
        } else {
            let tail = (size % BLOCK as u64) as usize;
            if tail <= MAX_TAIL && inode + tail <= BLOCK {
                data.tail = tail;
                data.tail_at = self.tails.position();
            }
            let spool = &mut self.data;
            archive.data(size - data.tail as u64, |piece| {
                spool.write(piece).map_err(failed)
            })?;
            let spool = &mut self.tails;
            archive.data(data.tail as u64, |piece| spool.write(piece).map_err(failed))?;
        }
        self.data.align().map_err(failed)?;
        self.counts.bytes += member.stored;
        Ok(data)
    }

    fn hard_link(
        &mut self,
        parent: Id,
        name: &[u8],
        member: &Member,
        target: &[u8],
    ) -> Result<(), UnpackError> {
        let refuse = |refusal| UnpackError::refused(&member.name, refusal);
        let target = LayerPath::parse(target).map_err(|error| refuse(Refusal::Link(error)))?;
        let (directory, target_name) = target.split().ok_or_else(|| refuse(Refusal::LinkTarget))?;
        let directory = self
            .tree
            .directory(directory)
            .map_err(|error| match error {
                Errno::NOENT | Errno::NOTDIR => refuse(Refusal::LinkTarget),
                error => UnpackError::write(&member.name, error),
            })?;
        let linked = self
            .tree
            .child(directory, target_name)
            .filter(|&id| {
                let node = self.tree.node(id);
                node.kind() != FileType::Directory && !node.is_whiteout()
            })
            .ok_or_else(|| refuse(Refusal::LinkTarget))?;
        match self.tree.child(parent, name) {
            Some(there) if there == linked => return Ok(()),
            Some(_) => self.tree.remove(parent, name),
            None => {}
        }
        // It may have been below what had to go.
        if self.tree.child(directory, target_name) != Some(linked) {
            return Err(refuse(Refusal::LinkTarget));
        }
        self.tree.link(parent, name, linked);
        Ok(())
    }

    fn whiteout(&mut self, path: &LayerPath) -> rustix::io::Result<()> {
        let Some((parent, name)) = path.split() else {
            return Ok(());
        };
        let parent = self.tree.directory_or_make(parent)?;
        let Some(there) = self.tree.child(parent, name) else {
            let whiteout = Node::new(Content::Character(0));
            self.tree.make(parent, name, whiteout)?;
            return Ok(());
        };
        // A whiteout concerns lower layers only. What this layer has made itself stays, and hides
        // the lower one already, unless both are directories.
        let node = self.tree.node_mut(there);
        if node.kind() == FileType::Directory {
            node.opaque = true;
        }
        Ok(())
    }
}

impl Sink for Builder<'_> {
    fn member<R: BufRead>(
        &mut self,
        member: &Member,
        archive: &mut Archive<R>,
    ) -> Result<(), UnpackError> {
        self.counts.entries += 1;
        if self.counts.entries + self.tree.implied() > self.limits.entries {
            return Err(UnpackError::TooManyEntries {
                limit: self.limits.entries,
            });
        }
        if self.tree.is_too_large() {
            return Err(UnpackError::TooMuchMemory);
        }
        let limit = STEPS + self.counts.entries * STEPS_OF_MEMBER;
        if self.tree.steps() > limit {
            return Err(UnpackError::TooManySteps { limit });
        }
        self.total = self.total.saturating_add(member.size());
        if self.total > self.limits.total {
            return Err(UnpackError::TooLarge {
                limit: self.limits.total,
            });
        }
        let refuse = |refusal| UnpackError::refused(&member.name, refusal);
        let name = |error: NameError| refuse(Refusal::Name(error));
        let failed = |error: Errno| UnpackError::write(&member.name, error);
        let path = LayerPath::parse(&member.name).map_err(name)?;
        match meaning(path).map_err(name)? {
            Meaning::Ignored => {}
            Meaning::Whiteout(path) => self.whiteout(&path).map_err(failed)?,
            Meaning::Opaque(path) if path.is_root() => self.counts.opaque_root = true,
            Meaning::Opaque(path) => {
                let found = self.tree.directory_or_make(path.as_bytes());
                let found = found.map_err(failed)?;
                self.tree.node_mut(found).opaque = true;
            }
            Meaning::Member(path) if path.is_root() => {
                if member.kind != Kind::Directory {
                    return Err(refuse(Refusal::Root));
                }
                self.set_directory(ROOT, member)?;
            }
            Meaning::Member(path) => self.make(&path, member, archive)?,
        }
        Ok(())
    }
}

/// A device's number as the kernel keeps it in 32 bits.
fn device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
