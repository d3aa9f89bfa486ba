//! The records of the format, as bytes. All numbers are little-endian.

use crate::layer::pax::Time;

/// Where the superblock stands in the image.
pub(super) const SUPERBLOCK_AT: usize = 1024;
/// Bytes of the superblock.
const SUPERBLOCK: usize = 128;
const MAGIC: u32 = 0xe0f5_e1e2;
/// The superblock has a checksum; inodes have the time of modification.
const COMPATIBLE: u32 = 1 | 2;

/// Bytes of an inode; the shorter form has no time of its own.
pub(super) const INODE: usize = 64;
/// Inodes are addressed in units of so many bytes.
pub(super) const SLOT: usize = 32;
/// Bytes of a directory entry without its name.
pub(super) const DIRENT: usize = 12;

/// How an inode's data is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In consecutive blocks.
    Plain,
    /// As before, but what does not fill the last block stands behind the inode.
    Inline,
}

/// Types of files, with their bits in an inode's mode and their numbers in directories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileType {
    Regular,
    Directory,
    Character,
    Block,
    Fifo,
    Symlink,
}

impl FileType {
    fn mode(self) -> u16 {
        match self {
            Self::Fifo => 0o010_000,
            Self::Character => 0o020_000,
            Self::Directory => 0o040_000,
            Self::Block => 0o060_000,
            Self::Regular => 0o100_000,
            Self::Symlink => 0o120_000,
        }
    }

    fn of_mode(mode: u16) -> Option<Self> {
        let all = [
            Self::Fifo,
            Self::Character,
            Self::Directory,
            Self::Block,
            Self::Regular,
            Self::Symlink,
        ];
        all.into_iter().find(|kind| kind.mode() == mode & 0o170_000)
    }

    fn number(self) -> u8 {
        match self {
            Self::Regular => 1,
            Self::Directory => 2,
            Self::Character => 3,
            Self::Block => 4,
            Self::Fifo => 5,
            Self::Symlink => 7,
        }
    }
}

/// An inode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inode {
    pub(super) kind: FileType,
    pub(super) layout: Layout,
    /// Bytes of attributes behind it.
    pub(super) xattrs: usize,
    /// Permission bits.
    pub(super) mode: u16,
    pub(super) size: u64,
    /// First block of the data, or the number of a device.
    pub(super) place: u32,
    /// A number of its own, for programs that cannot take a long one.
    pub(super) serial: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) links: u32,
}

impl Inode {
    pub(super) fn encode(&self) -> [u8; INODE] {
        let layout: u16 = match self.layout {
            Layout::Plain => 0,
            Layout::Inline => 2,
        };
        // The header of the attributes counts as one unit of four bytes.
        let xattrs = match self.xattrs {
            0 => 0,
            length => (length - XATTR_HEADER) / 4 + 1,
        };
        let mut fields = Fields::default();
        fields.put(&(layout << 1 | 1).to_le_bytes());
        fields.put(&(xattrs as u16).to_le_bytes());
        fields.put(&(self.kind.mode() | self.mode).to_le_bytes());
        fields.skip(2);
        fields.put(&self.size.to_le_bytes());
        fields.put(&self.place.to_le_bytes());
        fields.put(&self.serial.to_le_bytes());
        fields.put(&self.uid.to_le_bytes());
        fields.put(&self.gid.to_le_bytes());
        fields.put(&self.mtime.seconds.to_le_bytes());
        fields.put(&self.mtime.nanos.to_le_bytes());
        fields.put(&self.links.to_le_bytes());
        fields.bytes()
    }

    /// Reads an inode of this program's own images.
    pub(super) fn decode(bytes: &[u8; INODE]) -> Option<Self> {
        let layout = match number(bytes, 0, 2) {
            0b001 => Layout::Plain,
            0b101 => Layout::Inline,
            _ => return None,
        };
        let mode = number(bytes, 4, 2) as u16;
        Some(Self {
            kind: FileType::of_mode(mode)?,
            layout,
            xattrs: match number(bytes, 2, 2) as usize {
                0 => 0,
                units => XATTR_HEADER + (units - 1) * 4,
            },
            mode: mode & 0o7777,
            size: number(bytes, 8, 8),
            place: number(bytes, 16, 4) as u32,
            serial: number(bytes, 20, 4) as u32,
            uid: number(bytes, 24, 4) as u32,
            gid: number(bytes, 28, 4) as u32,
            mtime: Time {
                seconds: number(bytes, 32, 8).cast_signed(),
                nanos: number(bytes, 40, 4) as u32,
            },
            links: number(bytes, 44, 4) as u32,
        })
    }
}

/// A number of at most eight bytes; 0 where there are none.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let field = bytes.get(at..at + length).unwrap_or_default();
    let digits = field.iter().rev();
    digits.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
}

/// Bytes before the first attribute of an inode.
pub(super) const XATTR_HEADER: usize = 12;

/// The number of a namespace of attributes, and the rest of the name.
fn xattr_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let prefixes: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    match name {
        b"system.posix_acl_access" => Some((2, b"")),
        b"system.posix_acl_default" => Some((3, b"")),
        _ => prefixes
            .into_iter()
            .find_map(|(prefix, number)| Some((number, name.strip_prefix(prefix)?))),
    }
}

/// Bytes that attributes take behind their inode.
pub(super) fn xattrs_length<'a>(xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> usize {
    let entries: usize = xattrs
        .filter_map(|(name, value)| {
            let (_, rest) = xattr_name(name)?;
            Some((4 + rest.len() + value.len()).next_multiple_of(4))
        })
        .sum();
    match entries {
        0 => 0,
        entries => XATTR_HEADER + entries,
    }
}

/// The attributes of one inode.
pub(super) fn encode_xattrs<'a>(xattrs: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Vec<u8> {
    let mut bytes = vec![0; XATTR_HEADER];
    for (name, value) in xattrs {
        let Some((number, rest)) = xattr_name(name) else {
            continue;
        };
        bytes.extend([rest.len() as u8, number]);
        bytes.extend((value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(rest);
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    if bytes.len() == XATTR_HEADER {
        bytes.clear();
    }
    bytes
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirent<'a> {
    pub(super) name: &'a [u8],
    /// Number of the inode.
    pub(super) nid: u64,
    pub(super) kind: FileType,
}

/// One block of a directory: the entries, then their names. The names must fit.
pub(super) fn encode_dirents(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut name_at = entries.len() * DIRENT;
    for entry in entries {
        bytes.extend(entry.nid.to_le_bytes());
        bytes.extend((name_at as u16).to_le_bytes());
        bytes.extend([entry.kind.number(), 0]);
        name_at += entry.name.len();
    }
    for entry in entries {
        bytes.extend_from_slice(entry.name);
    }
    bytes
}

/// The names in a block of a directory, with the numbers of their inodes. What is damaged is left out.
pub(super) fn decode_dirents(block: &[u8]) -> impl Iterator<Item = (&[u8], u64)> {
    let name_at = |entry: usize| number(block, entry * DIRENT + 8, 2) as usize;
    let count = name_at(0).min(block.len()) / DIRENT;
    (0..count).filter_map(move |entry| {
        let end = match entry + 1 < count {
            true => name_at(entry + 1),
            false => block.len(),
        };
        let name = block.get(name_at(entry)..end)?;
        // The last name may be followed by what fills the block.
        let length = name.iter().position(|&byte| byte == 0);
        let name = &name[..length.unwrap_or(name.len())];
        Some((name, number(block, entry * DIRENT, 8)))
    })
}

/// The superblock.
#[derive(Clone, Copy, Debug)]
pub(super) struct Superblock {
    /// Number of the root's inode.
    pub(super) root: u16,
    /// How many inodes there are.
    pub(super) inodes: u64,
    /// Blocks of the whole image.
    pub(super) blocks: u32,
    /// Block in which inode 0 would stand.
    pub(super) inodes_at: u32,
    pub(super) uuid: [u8; 16],
}

impl Superblock {
    /// Puts it into the first block, whose other bytes its checksum covers too.
    pub(super) fn write_into(&self, block: &mut [u8; super::BLOCK]) {
        let mut fields = Fields::<SUPERBLOCK>::default();
        fields.put(&MAGIC.to_le_bytes());
        fields.skip(4);
        fields.put(&COMPATIBLE.to_le_bytes());
        fields.put(&[super::BLOCK.ilog2() as u8, 0]);
        fields.put(&self.root.to_le_bytes());
        fields.put(&self.inodes.to_le_bytes());
        // The time that the image was made: none, so that the same layer gives the same image.
        fields.skip(12);
        fields.put(&self.blocks.to_le_bytes());
        fields.put(&self.inodes_at.to_le_bytes());
        fields.skip(4);
        fields.put(&self.uuid);
        fields.put(b"vdkr-layer");
        block[SUPERBLOCK_AT..SUPERBLOCK_AT + SUPERBLOCK].copy_from_slice(&fields.bytes());
        let sum = crc32c(&block[SUPERBLOCK_AT..]);
        block[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].copy_from_slice(&sum.to_le_bytes());
    }
}

/// The superblock in a first block, when it is one of this format with a right checksum.
pub(super) fn superblock_of(block: &[u8; super::BLOCK]) -> Option<Superblock> {
    let fields = &block[SUPERBLOCK_AT..];
    let mut unsigned = *block;
    unsigned[SUPERBLOCK_AT + 4..SUPERBLOCK_AT + 8].fill(0);
    let good = number(fields, 0, 4) == u64::from(MAGIC)
        && number(fields, 4, 4) == u64::from(crc32c(&unsigned[SUPERBLOCK_AT..]));
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&fields[48..64]);
    good.then(|| Superblock {
        root: number(fields, 14, 2) as u16,
        inodes: number(fields, 16, 8),
        blocks: number(fields, 36, 4) as u32,
        inodes_at: number(fields, 40, 4) as u32,
        uuid,
    })
}

/// How many blocks the image has that begins with this one.
pub(super) fn blocks_of(block: &[u8; super::BLOCK]) -> Option<u32> {
    superblock_of(block).map(|superblock| superblock.blocks)
}

/// CRC-32C as the kernel uses it here: all ones to begin with, and nothing done at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |sum, &byte| {
        (0..8).fold(sum ^ u32::from(byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    })
}

/// A record under construction; what is not put is zero.
struct Fields<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Default for Fields<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            at: 0,
        }
    }
}

impl<const N: usize> Fields<N> {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }

    fn skip(&mut self, bytes: usize) {
        self.at += bytes;
    }

    fn bytes(self) -> [u8; N] {
        self.bytes
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn the_checksum_is_crc32c_without_its_last_step() {
        // The check value of CRC-32C, RFC 3720 B.4 and the catalogues.
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn attributes_take_what_is_said() {
        let attributes: [(&[u8], &[u8]); 3] = [
            (b"user.a", b"value"),
            (b"system.posix_acl_access", b"12345678"),
            (b"security.capability", b""),
        ];
        for count in 0..=attributes.len() {
            let some = || attributes[..count].iter().copied();
            assert_eq!(encode_xattrs(some()).len(), xattrs_length(some()));
        }
    }

    #[test]
    fn a_damaged_superblock_is_seen() {
        let mut block = [0; super::super::BLOCK];
        Superblock {
            root: 1,
            inodes: 1,
            blocks: 77,
            inodes_at: 1,
            uuid: [7; 16],
        }
        .write_into(&mut block);
        assert_eq!(blocks_of(&block), Some(77));
        for at in [SUPERBLOCK_AT, SUPERBLOCK_AT + 37, 4000] {
            let mut damaged = block;
            damaged[at] ^= 1;
            assert_eq!(blocks_of(&damaged), None);
        }
    }
}
