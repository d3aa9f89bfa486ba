//! What a guest's kernel is told.

use alloc::vec::Vec;

use super::{MAJOR, MAX_DATA, MINOR};

/// Bytes of the header of an answer.
const HEADER: usize = 16;
/// Bytes of an entry of a listing before its name.
const DIRENT: usize = 24;
/// Bytes of a node and its attributes.
const ENTRY: usize = 128;

/// Attributes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Blocks of 512 bytes.
    pub blocks: u64,
    /// Last access: seconds, nanoseconds.
    pub atime: (i64, u32),
    /// Last change of the content.
    pub mtime: (i64, u32),
    /// Last change of the attributes.
    pub ctime: (i64, u32),
    /// Type and permissions.
    pub mode: u32,
    /// Names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Good size of a read or write.
    pub blksize: u32,
}

/// A node that was found or made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its number; 0 tells the kernel nothing.
    pub node: u64,
    /// Its attributes.
    pub attr: Attr,
    /// For how many seconds they hold.
    pub attr_seconds: u64,
    /// For how many milliseconds the name leads to the node without another question; 0 for a
    /// name that is asked for each time.
    pub name_millis: u32,
}

/// Room in a file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystem {
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub free: u64,
    /// Blocks that users may take.
    pub available: u64,
    /// Files in all.
    pub files: u64,
    /// Files that may still be made.
    pub files_free: u64,
    /// Bytes of a good read or write.
    pub block_size: u32,
    /// Bytes of a block.
    pub fragment_size: u32,
}

/// The server's side of the first exchange.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitAnswer {
    /// The kernel's minor version, so that no later one is named.
    pub minor: u32,
    /// Bytes that may be read ahead.
    pub max_readahead: u32,
    /// Capabilities that are used.
    pub flags: u32,
    /// Requests that the kernel has under way in the background.
    pub max_background: u16,
    /// Pages in one request.
    pub max_pages: u16,
}

/// Writes one answer. Every constructor gives a whole message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer(Vec<u8>);

impl Answer {
    fn begin(unique: u64, room: usize) -> Self {
        let mut bytes = Vec::with_capacity(HEADER + room);
        bytes.extend([0; 8]);
        bytes.extend(unique.to_le_bytes());
        Self(bytes)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_le_bytes());
        self
    }

    fn finish(mut self) -> Vec<u8> {
        // Nothing that is written here is as long as a u32 can say.
        let length = u32::try_from(self.0.len()).unwrap_or_default();
        if let Some(field) = self.0.get_mut(..4) {
            field.copy_from_slice(&length.to_le_bytes());
        }
        self.0
    }

    /// The request failed with this error number.
    pub fn error(unique: u64, errno: i32) -> Vec<u8> {
        let mut bytes = Self::done(unique);
        if let Some(field) = bytes.get_mut(4..8) {
            field.copy_from_slice(&errno.saturating_abs().saturating_neg().to_le_bytes());
        }
        bytes
    }

    /// The request is done.
    pub fn done(unique: u64) -> Vec<u8> {
        Self::begin(unique, 0).finish()
    }

    /// Content: `fill` puts at most `size` bytes into the slice and says how many. What it says
    /// beyond that is not believed.
    pub fn data<E>(
        unique: u64,
        size: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<Vec<u8>, E> {
        let size = size.min(MAX_DATA);
        let mut answer = Self::begin(unique, size);
        answer.0.resize(HEADER + size, 0);
        let filled = fill(answer.0.get_mut(HEADER..).unwrap_or_default())?;
        answer.0.truncate(HEADER + filled.min(size));
        Ok(answer.finish())
    }

    /// Bytes that are there already.
    pub fn bytes(unique: u64, bytes: &[u8]) -> Vec<u8> {
        let mut answer = Self::begin(unique, bytes.len());
        answer.0.extend_from_slice(bytes);
        answer.finish()
    }

    /// The first answer.
    pub fn init(unique: u64, init: &InitAnswer) -> Vec<u8> {
        let answer = Self::begin(unique, 64)
            .u32(MAJOR)
            .u32(init.minor.min(MINOR))
            .u32(init.max_readahead)
            .u32(init.flags);
        // Three quarters of the background requests count as congestion.
        let congestion = init.max_background / 4 * 3;
        answer
            .u32(u32::from(init.max_background) | u32::from(congestion) << 16)
            .u32(u32::from(init.max_pages).saturating_mul(4096))
            // Times have nanoseconds.
            .u32(1)
            .u32(u32::from(init.max_pages))
            .u64(0)
            .u64(0)
            .u64(0)
            .u64(0)
            .finish()
    }

    /// A node that was found or made.
    pub fn entry(unique: u64, entry: &Entry) -> Vec<u8> {
        let mut answer = Self::begin(unique, ENTRY);
        push_entry(&mut answer.0, entry);
        answer.finish()
    }

    /// A file that was made and opened.
    pub fn created(unique: u64, entry: &Entry, handle: u64, flags: u32) -> Vec<u8> {
        let mut answer = Self::begin(unique, ENTRY + 16);
        push_entry(&mut answer.0, entry);
        answer.u64(handle).u64(u64::from(flags)).finish()
    }

    /// Attributes that hold for some seconds.
    pub fn attr(unique: u64, attr: &Attr, seconds: u64) -> Vec<u8> {
        let mut answer = Self::begin(unique, 104).u64(seconds).u64(0);
        push_attr(&mut answer.0, attr);
        answer.finish()
    }

    /// A file or directory that was opened.
    pub fn open(unique: u64, handle: u64, flags: u32) -> Vec<u8> {
        Self::begin(unique, 16)
            .u64(handle)
            .u64(u64::from(flags))
            .finish()
    }

    /// So many bytes were written, or an attribute's value has so many.
    pub fn size(unique: u64, size: u32) -> Vec<u8> {
        Self::begin(unique, 8).u64(u64::from(size)).finish()
    }

    /// Where a seek ended.
    pub fn offset(unique: u64, offset: u64) -> Vec<u8> {
        Self::begin(unique, 8).u64(offset).finish()
    }

    /// Room in the file system.
    pub fn file_system(unique: u64, stat: &FileSystem) -> Vec<u8> {
        Self::begin(unique, 80)
            .u64(stat.blocks)
            .u64(stat.free)
            .u64(stat.available)
            .u64(stat.files)
            .u64(stat.files_free)
            .u32(stat.block_size)
            .u32(255)
            .u32(stat.fragment_size)
            .u32(0)
            .u64(0)
            .u64(0)
            .u64(0)
            .finish()
    }
}

fn push_entry(bytes: &mut Vec<u8>, entry: &Entry) {
    // Numbers of nodes are never used twice, so there is no generation.
    let name_seconds = u64::from(entry.name_millis / 1000);
    for word in [entry.node, 0, name_seconds, entry.attr_seconds] {
        bytes.extend(word.to_le_bytes());
    }
    let name_nanos = entry.name_millis % 1000 * 1_000_000;
    for word in [name_nanos, 0] {
        bytes.extend(word.to_le_bytes());
    }
    push_attr(bytes, &entry.attr);
}

fn push_attr(bytes: &mut Vec<u8>, attr: &Attr) {
    for word in [
        attr.ino,
        attr.size,
        attr.blocks,
        attr.atime.0.cast_unsigned(),
        attr.mtime.0.cast_unsigned(),
        attr.ctime.0.cast_unsigned(),
    ] {
        bytes.extend(word.to_le_bytes());
    }
    for word in [
        attr.atime.1,
        attr.mtime.1,
        attr.ctime.1,
        attr.mode,
        attr.nlink,
        attr.uid,
        attr.gid,
        // Device numbers stay on their own machine.
        0,
        attr.blksize,
        0,
    ] {
        bytes.extend(word.to_le_bytes());
    }
}

/// A piece of a directory's listing.
#[derive(Clone, Debug)]
pub struct DirBuffer {
    answer: Answer,
    unique: u64,
    limit: usize,
}

impl DirBuffer {
    /// An empty piece of at most `size` bytes.
    pub fn new(unique: u64, size: usize) -> Self {
        let size = size.min(MAX_DATA);
        Self {
            answer: Answer::begin(unique, size),
            unique,
            limit: HEADER + size,
        }
    }

    /// Whether an entry with a name of this length has room.
    pub fn fits(&self, name: usize, plus: bool) -> bool {
        let room = self.limit.saturating_sub(self.answer.0.len());
        Self::length(name, plus) <= room
    }

    fn length(name: usize, plus: bool) -> usize {
        let head = if plus { ENTRY + DIRENT } else { DIRENT };
        (head + name).next_multiple_of(8)
    }

    /// Adds an entry; `next` is where the listing goes on behind it, `kind` the type bits of its
    /// mode. `false`, and nothing added, when there is no room.
    pub fn push(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) -> bool {
        if !self.fits(name.len(), false) {
            return false;
        }
        self.push_dirent(ino, next, kind, name);
        true
    }

    /// The same with the node and its attributes in front.
    pub fn push_plus(&mut self, entry: &Entry, next: u64, name: &[u8]) -> bool {
        if !self.fits(name.len(), true) {
            return false;
        }
        push_entry(&mut self.answer.0, entry);
        self.push_dirent(entry.attr.ino, next, entry.attr.mode, name);
        true
    }

    fn push_dirent(&mut self, ino: u64, next: u64, kind: u32, name: &[u8]) {
        let bytes = &mut self.answer.0;
        bytes.extend(ino.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        bytes.extend(u32::try_from(name.len()).unwrap_or_default().to_le_bytes());
        bytes.extend((kind >> 12 & 0o17).to_le_bytes());
        bytes.extend_from_slice(name);
        let aligned = bytes.len().next_multiple_of(8);
        bytes.resize(aligned, 0);
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.answer.0.len() == HEADER
    }

    /// The number of the request that this answers.
    pub fn unique(&self) -> u64 {
        self.unique
    }

    /// The answer.
    pub fn finish(self) -> Vec<u8> {
        self.answer.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn length(bytes: &[u8]) -> usize {
        u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize
    }

    /// The sizes of the kernel's structures, with the header in front.
    #[test]
    fn answers_have_the_kernels_sizes() {
        let entry = Entry::default();
        for (answer, size) in [
            (Answer::done(1), 0),
            (Answer::error(1, 5), 0),
            (Answer::init(1, &InitAnswer::default()), 64),
            (Answer::entry(1, &entry), 128),
            (Answer::created(1, &entry, 1, 0), 144),
            (Answer::attr(1, &entry.attr, 1), 104),
            (Answer::open(1, 2, 0), 16),
            (Answer::size(1, 2), 8),
            (Answer::offset(1, 2), 8),
            (Answer::file_system(1, &FileSystem::default()), 80),
            (Answer::bytes(1, b"abc"), 3),
        ] {
            assert_eq!(answer.len(), 16 + size);
            assert_eq!(length(&answer), answer.len());
            assert_eq!(answer[8..16], 1_u64.to_le_bytes());
        }
    }

    #[test]
    fn errors_are_negative_whatever_was_meant() {
        for errno in [5, -5] {
            assert_eq!(Answer::error(9, errno)[4..8], (-5_i32).to_le_bytes());
        }
        assert!(Answer::error(9, i32::MIN)[7] & 0x80 != 0);
    }

    #[test]
    fn names_hold_for_seconds_and_nanoseconds() {
        let entry = Entry {
            name_millis: 1250,
            attr_seconds: 7,
            ..Entry::default()
        };
        let answer = Answer::entry(1, &entry);
        assert_eq!(answer[32..40], 1_u64.to_le_bytes());
        assert_eq!(answer[40..48], 7_u64.to_le_bytes());
        assert_eq!(answer[48..52], 250_000_000_u32.to_le_bytes());
        assert_eq!(answer[52..56], [0; 4]);
    }

    #[test]
    fn content_is_what_was_filled_in() {
        let full = Answer::data::<()>(1, 4, |buffer| {
            buffer.copy_from_slice(b"abcd");
            Ok(3)
        });
        assert_eq!(full.unwrap()[16..], *b"abc");
        let lying = Answer::data::<()>(1, 4, |_| Ok(400)).unwrap();
        assert_eq!(lying.len(), 20);
        let huge = Answer::data::<()>(1, usize::MAX, |buffer| Ok(buffer.len())).unwrap();
        assert_eq!(huge.len(), 16 + MAX_DATA);
        assert_eq!(Answer::data(1, 4, |_| Err(7)), Err(7));
    }

    #[test]
    fn a_listing_is_aligned() {
        let mut listing = DirBuffer::new(1, 4096);
        assert!(listing.is_empty());
        assert!(listing.push(5, 6, 0o40755, b"abc"));
        let bytes = listing.finish();
        assert_eq!(bytes.len(), 16 + 32);
        assert_eq!(bytes[16 + 16..16 + 27], *b"\x03\0\0\0\x04\0\0\0abc");
    }

    proptest! {
        #[test]
        fn a_listing_stays_within_its_size(
            size in 0_usize..2000,
            names in proptest::collection::vec((1_usize..256, any::<bool>()), 0..20),
        ) {
            let mut listing = DirBuffer::new(1, size);
            for (length, plus) in names {
                let name = alloc::vec![b'x'; length];
                let fits = listing.fits(length, plus);
                let pushed = if plus {
                    listing.push_plus(&Entry::default(), 1, &name)
                } else {
                    listing.push(1, 1, 0, &name)
                };
                prop_assert_eq!(fits, pushed);
            }
            let bytes = listing.finish();
            prop_assert!(bytes.len() <= 16 + size);
            prop_assert_eq!(length(&bytes), bytes.len());
        }
    }
}
