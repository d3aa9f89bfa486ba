//! Archives for tests, written field by field so that they can be wrong.

#![expect(missing_docs, reason = "the names are those of the formats' fields")]
#![allow(
    clippy::missing_panics_doc,
    clippy::return_self_not_must_use,
    reason = "for tests"
)]

use std::io::Write;

use vdkr_core::tar::header::{BLOCK, Block, checksum};

/// A pax record, its length counted.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = 1 + key.len() + 1 + value.len() + 1;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A header under construction; ustar, mode 0644, the process's owner, time 1,700,000,000.
#[derive(Clone)]
pub struct Entry {
    block: Block,
    pax: Vec<u8>,
    data: Vec<u8>,
}

impl Entry {
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        let mut entry = Self {
            block: [0; BLOCK],
            pax: Vec::new(),
            data: Vec::new(),
        };
        if name.len() <= 100 {
            entry.block[..name.len()].copy_from_slice(name);
        } else {
            entry.block[..100].copy_from_slice(&name[..100]);
            entry = entry.pax(b"path", name);
        }
        let owner = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        entry.block[156] = kind;
        entry.block[257..265].copy_from_slice(b"ustar\x0000");
        entry
            .mode(if kind == b'5' { 0o755 } else { 0o644 })
            .owner(owner, group)
            .size(0)
            .mtime(1_700_000_000)
    }

    pub fn file(name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        Self::new(b'0', name).data(data)
    }

    pub fn directory(name: impl AsRef<[u8]>) -> Self {
        Self::new(b'5', name)
    }

    pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'2', name).link(target)
    }

    pub fn hard_link(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(b'1', name).link(target)
    }

    pub fn whiteout(name: impl AsRef<[u8]>) -> Self {
        Self::file(name, b"")
    }

    pub fn link(self, target: impl AsRef<[u8]>) -> Self {
        let target = target.as_ref();
        if target.len() > 100 {
            return self.pax(b"linkpath", target);
        }
        self.bytes(157, target)
    }

    pub fn data(mut self, data: impl AsRef<[u8]>) -> Self {
        self.data = data.as_ref().to_vec();
        let size = self.data.len() as u64;
        self.size(size)
    }

    pub fn mode(self, mode: u32) -> Self {
        self.octal(100, 8, mode.into())
    }

    pub fn owner(self, uid: u32, gid: u32) -> Self {
        self.octal(108, 8, uid.into()).octal(116, 8, gid.into())
    }

    pub fn mtime(self, seconds: u64) -> Self {
        self.octal(136, 12, seconds)
    }

    /// The size field alone, whatever data follows.
    pub fn size(self, size: u64) -> Self {
        self.octal(124, 12, size)
    }

    pub fn device(self, major: u32, minor: u32) -> Self {
        self.octal(329, 8, major.into()).octal(337, 8, minor.into())
    }

    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(format!("SCHILY.xattr.{name}").as_bytes(), value)
    }

    pub fn pax(mut self, key: &[u8], value: &[u8]) -> Self {
        self.pax.extend(record(key, value));
        self
    }

    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.block[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// A number field; base-256 where octal digits do not suffice.
    pub fn octal(self, at: usize, width: usize, value: u64) -> Self {
        let digits = width - 1;
        if value >> (3 * digits) > 0 {
            let mut field = vec![0; width - 8];
            field.extend(value.to_be_bytes());
            field[0] |= 0x80;
            return self.bytes(at, &field);
        }
        self.bytes(at, format!("{value:0digits$o}\0").as_bytes())
    }

    /// Header, data and padding.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.pax.is_empty() {
            bytes.extend(Self::new(b'x', "pax").data(&self.pax).encode());
        }
        let mut block = self.block;
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(block);
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }
}

/// A whole archive.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes: Vec<u8> = entries.iter().flat_map(Entry::encode).collect();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

pub fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

pub fn zstd(plain: &[u8]) -> Vec<u8> {
    zstd::encode_all(plain, 3).unwrap()
}
