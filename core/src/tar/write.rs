//! Headers of tar archives as they are written: GNU's, which every reader knows.

use alloc::{format, vec::Vec};

use super::{
    header::{BLOCK, Block, checksum},
    pax,
};

/// What a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// A file, whose data follow.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// One more name of a member before it.
    HardLink,
    /// A character device: its major and minor number.
    Character(u32, u32),
    /// A block device: its major and minor number.
    Block(u32, u32),
    /// A queue.
    Fifo,
}

/// A member to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// What it is.
    pub kind: Type,
    /// Its name; a directory's gets a `/` at its end.
    pub name: &'a [u8],
    /// Where a link points, or which member a hard link is.
    pub link: &'a [u8],
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes of a file's data.
    pub size: u64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
}

/// The header blocks of a member.
pub fn header(member: &Member<'_>) -> Vec<u8> {
    let mut name = member.name.to_vec();
    if member.kind == Type::Directory && name.last() != Some(&b'/') {
        name.push(b'/');
    }
    let mut out = Vec::with_capacity(BLOCK);
    if member.link.len() > 100 {
        long(&mut out, b'K', member.link);
    }
    if name.len() > 100 {
        long(&mut out, b'L', &name);
    }
    let (kind, size, device) = match member.kind {
        Type::File => (b'0', member.size, (0, 0)),
        Type::HardLink => (b'1', 0, (0, 0)),
        Type::Link => (b'2', 0, (0, 0)),
        Type::Character(major, minor) => (b'3', 0, (major, minor)),
        Type::Block(major, minor) => (b'4', 0, (major, minor)),
        Type::Directory => (b'5', 0, (0, 0)),
        Type::Fifo => (b'6', 0, (0, 0)),
    };
    let numbers = Numbers {
        mode: member.mode & 0o7777,
        uid: member.uid,
        gid: member.gid,
        size,
        mtime: member.mtime,
        device,
    };
    out.extend(block(kind, &name, member.link, &numbers));
    out
}

/// Key and value of an extended header.
pub type Record = (Vec<u8>, Vec<u8>);

/// An extended header with these records, before the member that has them.
pub fn extended(records: &[Record]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        pax::push(&mut body, key, value);
    }
    let size = body.len() as u64;
    let numbers = Numbers {
        mode: 0o644,
        size,
        ..Numbers::default()
    };
    let mut out = block(b'x', b"././@PaxHeader", b"", &numbers).to_vec();
    out.append(&mut body);
    out.resize(out.len() + padding(size), 0);
    out
}

/// How many zeros follow so many bytes of data.
pub fn padding(size: u64) -> usize {
    let rest = usize::try_from(size % BLOCK as u64).unwrap_or(0);
    (BLOCK - rest) % BLOCK
}

/// What stands at the end of an archive.
pub const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

#[derive(Default)]
struct Numbers {
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: i64,
    device: (u32, u32),
}

/// A name that does not fit into a header, before the member that has it.
fn long(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    let size = text.len() as u64 + 1;
    let numbers = Numbers {
        size,
        ..Numbers::default()
    };
    out.extend(block(kind, b"././@LongLink", b"", &numbers));
    out.extend_from_slice(text);
    out.push(0);
    out.resize(out.len() + padding(size), 0);
}

fn block(kind: u8, name: &[u8], link: &[u8], numbers: &Numbers) -> Block {
    let mut block = [0; BLOCK];
    text(&mut block[..100], name);
    number(&mut block[100..108], numbers.mode.into());
    number(&mut block[108..116], numbers.uid.into());
    number(&mut block[116..124], numbers.gid.into());
    number(
        &mut block[124..136],
        i64::try_from(numbers.size).unwrap_or(i64::MAX),
    );
    number(&mut block[136..148], numbers.mtime);
    block[156] = kind;
    text(&mut block[157..257], link);
    block[257..265].copy_from_slice(b"ustar  \0");
    if matches!(kind, b'3' | b'4') {
        number(&mut block[329..337], numbers.device.0.into());
        number(&mut block[337..345], numbers.device.1.into());
    }
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn text(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// In octal where it fits, else in base-256.
fn number(field: &mut [u8], value: i64) {
    let width = field.len() - 1;
    let digits = format!("{value:0width$o}");
    if value >= 0 && digits.len() == width {
        field[..width].copy_from_slice(digits.as_bytes());
        return;
    }
    let bytes = value.to_be_bytes();
    let fill = if value < 0 { 0xff } else { 0 };
    field.fill(fill);
    let length = field.len();
    if length > bytes.len() {
        field[length - bytes.len()..].copy_from_slice(&bytes);
    } else {
        field.copy_from_slice(&bytes[bytes.len() - length..]);
    }
    field[0] = if value < 0 { 0xff } else { 0x80 };
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::header::decode, *};

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kind in 0..7_u8, name in "[a-z/é ]{1,260}", link in "[a-z/.]{0,260}",
            mode in 0..0o10000_u32, uid in any::<u32>(), size in 0..1_u64 << 50,
            mtime in -(1_i64 << 40)..1_i64 << 40,
        ) {
            let kind = [
                Type::File, Type::Directory, Type::Link, Type::HardLink, Type::Fifo,
                Type::Character(5, 1), Type::Block(259, 70_000),
            ][usize::from(kind)];
            let member = Member {
                kind, name: name.as_bytes(), link: link.as_bytes(), mode, uid, gid: 7, size, mtime,
            };
            let written = header(&member);
            prop_assert_eq!(written.len() % BLOCK, 0);
            let mut blocks = written.as_chunks::<BLOCK>().0;
            let (mut long_name, mut long_link) = (None, None);
            let read = loop {
                let read = decode(&blocks[0]).unwrap().unwrap();
                blocks = &blocks[1..];
                if !matches!(read.kind, b'L' | b'K') {
                    break read;
                }
                let count = (read.size as usize).div_ceil(BLOCK);
                let body = blocks[..count].concat()[..read.size as usize - 1].to_vec();
                blocks = &blocks[count..];
                *if read.kind == b'L' { &mut long_name } else { &mut long_link } = Some(body);
            };
            prop_assert!(blocks.is_empty());
            let mut expected = name.clone();
            if kind == Type::Directory && !expected.ends_with('/') {
                expected.push('/');
            }
            prop_assert_eq!(long_name.unwrap_or(read.name), expected.into_bytes());
            prop_assert_eq!(long_link.unwrap_or(read.link), link.into_bytes());
            prop_assert_eq!((read.mode, read.uid, read.gid), (mode, u64::from(uid), 7));
            prop_assert_eq!(read.size, if kind == Type::File { size } else { 0 });
            prop_assert_eq!(read.mtime, mtime);
        }
    }
}
