//! The files of a layer as they come to be, in memory: names, attributes, and where data is.
//!
//! Paths are resolved as the agent's store has the kernel do it: symbolic links within the layer work
//! as they will in the container, and there is nothing outside. Errors are what the kernel would say.

use std::collections::{BTreeMap, VecDeque};

use rustix::io::{Errno, Result};

use super::attributes::Attributes;
use super::format::{DIRENT, FileType};
use crate::layer::Pool;
use crate::layer::pax::Time;

/// Symbolic links followed in one path before it is called a loop, as in the kernel.
const MAX_LINKS: u32 = 40;
/// Bytes of a resolved path, and of a symbolic link's target.
const MAX_PATH: usize = 4095;
/// Bytes of one component.
const MAX_COMPONENT: usize = 255;
/// Memory for the map that a directory gets with its first name.
const FIRST_NAME: usize = 300;

/// Bytes of a path or a link's target that take as long to look through as one of its components takes
/// to be found.
const BYTES_OF_STEP: usize = 64;

/// Mode of a directory that a layer uses without naming it.
const IMPLIED_MODE: u16 = 0o755;

/// A file in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(u32);

impl Id {
    /// Its place in a list of all files.
    pub(super) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The directory that everything is in.
pub(super) const ROOT: Id = Id(0);

/// A file's data, as the spools have it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Data {
    pub(super) size: u64,
    /// First block in the image.
    pub(super) block: u32,
    /// Bytes that stand behind the inode, and where in the scratch file they are until then.
    pub(super) tail: usize,
    pub(super) tail_at: u64,
}

/// What a file is.
#[derive(Debug)]
pub(super) enum Content {
    Directory(BTreeMap<Box<[u8]>, Id>),
    File(Data),
    Symlink(Box<[u8]>),
    Character(u32),
    Block(u32),
    Fifo,
}

/// A file and everything about it.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) content: Content,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) attributes: Attributes,
    /// A directory that hides what lower layers have in it.
    pub(super) opaque: bool,
}

impl Node {
    /// A file that belongs to root, without permissions.
    pub(super) fn new(content: Content) -> Self {
        Self {
            content,
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            attributes: Attributes::default(),
            opaque: false,
        }
    }

    fn directory() -> Self {
        Self {
            mode: IMPLIED_MODE,
            ..Self::new(Content::Directory(BTreeMap::new()))
        }
    }

    pub(super) fn kind(&self) -> FileType {
        match &self.content {
            Content::Directory(_) => FileType::Directory,
            Content::File(_) => FileType::Regular,
            Content::Symlink(_) => FileType::Symlink,
            Content::Character(_) => FileType::Character,
            Content::Block(_) => FileType::Block,
            Content::Fifo => FileType::Fifo,
        }
    }

    /// Its attributes, the mark of an opaque directory among them.
    pub(super) fn all_attributes(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        // For an overlay that is mounted by the privileged.
        const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");
        self.attributes.iter().chain(self.opaque.then_some(OPAQUE))
    }

    /// Whether it hides what lower layers have under its name.
    pub(super) fn is_whiteout(&self) -> bool {
        matches!(self.content, Content::Character(0))
    }

    fn bytes(&self) -> usize {
        let target = match &self.content {
            Content::Symlink(target) => target.len(),
            _ => 0,
        };
        size_of::<Self>() + target + self.attributes.bytes()
    }
}

/// All files of a layer.
#[derive(Debug)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    memory: usize,
    pool: Pool,
    is_too_large: bool,
    /// Directories that no member names.
    implied: u64,
    /// Components of paths and of links' targets that were looked up.
    steps: u64,
    /// The directory that the last member went to: archives list a directory's members together.
    parent: Option<(Vec<u8>, Id)>,
}

impl Tree {
    /// A root directory, which takes its memory from a pool.
    pub(super) fn new(pool: Pool) -> Self {
        Self {
            nodes: vec![Node::directory()],
            memory: 0,
            pool,
            is_too_large: false,
            implied: 0,
            steps: 0,
            parent: None,
        }
    }

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id.index()]
    }

    pub(super) fn node_mut(&mut self, id: Id) -> &mut Node {
        &mut self.nodes[id.index()]
    }

    /// How many files there have been; the numbers of ids are below it.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// How many directories were made without being named.
    pub(super) fn implied(&self) -> u64 {
        self.implied
    }

    /// How much work it was to find paths.
    pub(super) fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes of memory, which are more than names and attributes take in the image.
    pub(super) fn memory(&self) -> usize {
        self.memory
    }

    /// Whether the layer takes more memory than there is.
    pub(super) fn is_too_large(&self) -> bool {
        self.is_too_large
    }

    /// Counts attributes set on a file that is there already.
    pub(super) fn charge(&mut self, bytes: usize) {
        self.memory = self.memory.saturating_add(bytes);
        self.is_too_large |= !self.pool.take_memory(bytes);
    }

    /// What a directory has under a name, which is not followed.
    pub(super) fn child(&self, directory: Id, name: &[u8]) -> Option<Id> {
        match &self.node(directory).content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    /// The directory at `path`, links followed.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Id> {
        let mut steps = 0;
        let found = self.find_directory(path, &mut steps);
        self.steps += steps;
        found
    }

    fn find_directory(&self, path: &[u8], steps: &mut u64) -> Result<Id> {
        let mut todo: VecDeque<&[u8]> = components(path).collect();
        *steps += cost(path, todo.len());
        let mut real = vec![ROOT];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                real.truncate(real.len().max(2) - 1);
                continue;
            }
            let at = real.last().copied().unwrap_or(ROOT);
            let found = self.checked_child(at, name)?.ok_or(Errno::NOENT)?;
            match &self.node(found).content {
                Content::Directory(_) => real.push(found),
                Content::Symlink(target) => {
                    let before = todo.len();
                    follow(target, &mut links, &mut real, &mut todo)?;
                    *steps += cost(target, todo.len() - before);
                }
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(real.last().copied().unwrap_or(ROOT))
    }

    /// As [`Tree::directory`], making what is missing. Where a whiteout stands in the way it gives
    /// place to an opaque directory, which hides the same and can hold something new.
    pub(super) fn directory_or_make(&mut self, path: &[u8]) -> Result<Id> {
        if let Some((known, id)) = &self.parent
            && known == path
        {
            return Ok(*id);
        }
        let found = match self.directory(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path)?,
            other => other?,
        };
        self.parent = Some((path.to_vec(), found));
        Ok(found)
    }

    fn make_directories(&mut self, path: &[u8]) -> Result<Id> {
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        self.steps += cost(path, todo.len());
        let mut real = vec![ROOT];
        // Bytes of the path to each of them.
        let mut lengths = vec![0];
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                real.truncate(real.len().max(2) - 1);
                lengths.truncate(real.len());
                continue;
            }
            let at = real.last().copied().unwrap_or(ROOT);
            let id = match self.checked_child(at, &name)? {
                None => self.make_implied(at, &name, Node::directory())?,
                Some(found) if self.node(found).is_whiteout() => {
                    self.remove(at, &name);
                    let mut node = Node::directory();
                    node.opaque = true;
                    self.make_implied(at, &name, node)?
                }
                Some(found) => match &self.node(found).content {
                    Content::Directory(_) => found,
                    Content::Symlink(target) => {
                        let target = target.clone();
                        let mut ahead = VecDeque::new();
                        follow(&target, &mut links, &mut real, &mut ahead)?;
                        self.steps += cost(&target, ahead.len());
                        lengths.truncate(real.len());
                        for part in ahead.into_iter().rev() {
                            todo.push_front(part.to_vec());
                        }
                        continue;
                    }
                    _ => return Err(Errno::NOTDIR),
                },
            };
            real.push(id);
            lengths.push(lengths.last().copied().unwrap_or(0) + name.len() + 1);
            if lengths.last().is_some_and(|&length| length > MAX_PATH) {
                return Err(Errno::NAMETOOLONG);
            }
        }
        Ok(real.last().copied().unwrap_or(ROOT))
    }

    fn make_implied(&mut self, directory: Id, name: &[u8], node: Node) -> Result<Id> {
        self.implied += 1;
        self.make(directory, name, node)
    }

    fn checked_child(&self, directory: Id, name: &[u8]) -> Result<Option<Id>> {
        if name.len() > MAX_COMPONENT {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(self.child(directory, name))
    }

    /// Puts a new file into a directory, in the place of what has its name.
    pub(super) fn make(&mut self, directory: Id, name: &[u8], node: Node) -> Result<Id> {
        if let Content::Symlink(target) = &node.content
            && target.len() > MAX_PATH
        {
            return Err(Errno::NAMETOOLONG);
        }
        let id = Id(u32::try_from(self.nodes.len()).map_err(|_| Errno::NOSPC)?);
        self.charge(node.bytes());
        self.nodes.push(node);
        self.link(directory, name, id);
        Ok(id)
    }

    /// Gives a file a name, in the place of what has it.
    pub(super) fn link(&mut self, directory: Id, name: &[u8], id: Id) {
        if self.child(directory, name).is_some() {
            self.remove(directory, name);
        }
        // Besides the bytes, what the map and the allocator take.
        self.charge(name.len() + 48 + DIRENT);
        let mut is_first = false;
        if let Content::Directory(entries) = &mut self.node_mut(directory).content {
            is_first = entries.is_empty();
            entries.insert(name.into(), id);
        }
        if is_first {
            self.charge(FIRST_NAME);
        }
    }

    /// Takes a name away, and everything below it.
    pub(super) fn remove(&mut self, directory: Id, name: &[u8]) {
        // What a known path leads to may change by this.
        self.parent = None;
        let Content::Directory(entries) = &mut self.node_mut(directory).content else {
            return;
        };
        let mut gone: Vec<Id> = entries.remove(name).into_iter().collect();
        while let Some(id) = gone.pop() {
            // Files may have other names; directories have none.
            if let Content::Directory(entries) = &mut self.node_mut(id).content {
                gone.extend(std::mem::take(entries).into_values());
            }
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.pool.give_back_memory(self.memory);
    }
}

/// The work that a path of so many components is.
fn cost(path: &[u8], components: usize) -> u64 {
    (components + path.len() / BYTES_OF_STEP) as u64
}

/// Puts the components of a link's target before those that are still to be resolved.
pub(super) fn follow<'a, T>(
    target: &'a [u8],
    links: &mut u32,
    real: &mut Vec<T>,
    todo: &mut VecDeque<&'a [u8]>,
) -> Result<()> {
    *links += 1;
    if *links > MAX_LINKS {
        return Err(Errno::LOOP);
    }
    if target.starts_with(b"/") {
        real.truncate(1);
    }
    for part in components(target).rev() {
        todo.push_front(part);
    }
    Ok(())
}

pub(super) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
}
