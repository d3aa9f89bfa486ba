//! Archives written field by field, independently of the code under test, so that they can be wrong.

use std::fmt::Write as _;

/// Bytes of a header, and what data is filled up to.
const BLOCK: usize = 512;

/// A member under construction: ustar, mode 0644 (0755 for directories), root's.
#[derive(Clone, Debug)]
pub struct Entry {
    header: [u8; BLOCK],
    pax: Vec<u8>,
    data: Vec<u8>,
}

impl Entry {
    /// A member of any type; a long name goes into a pax record.
    pub fn new(kind: u8, name: &str) -> Self {
        let mut entry = Self {
            header: [0; BLOCK],
            pax: Vec::new(),
            data: Vec::new(),
        };
        let shown = name.len().min(100);
        entry = entry.bytes(0, &name.as_bytes()[..shown]);
        if shown < name.len() {
            entry = entry.pax("path", name);
        }
        entry.header[156] = kind;
        entry
            .bytes(257, b"ustar\x0000")
            .mode(if kind == b'5' { 0o755 } else { 0o644 })
            .octal(108, 8, 0)
            .octal(116, 8, 0)
            .octal(124, 12, 0)
            .octal(136, 12, 1_700_000_000)
    }

    /// A file.
    pub fn file(name: &str, data: impl Into<Vec<u8>>) -> Self {
        let data = data.into();
        let mut entry = Self::new(b'0', name).size(data.len() as u64);
        entry.data = data;
        entry
    }

    /// A directory.
    pub fn directory(name: &str) -> Self {
        Self::new(b'5', name)
    }

    /// A symbolic link.
    pub fn symlink(name: &str, target: &str) -> Self {
        Self::new(b'2', name).link(target)
    }

    /// A hard link.
    pub fn hard_link(name: &str, target: &str) -> Self {
        Self::new(b'1', name).link(target)
    }

    /// A device: `b'3'` a character's, `b'4'` a block's.
    pub fn device(kind: u8, name: &str, major: u64, minor: u64) -> Self {
        Self::new(kind, name)
            .octal(329, 8, major)
            .octal(337, 8, minor)
    }

    /// Where a link leads.
    pub fn link(self, target: &str) -> Self {
        if target.len() > 100 {
            return self.pax("linkpath", target);
        }
        self.bytes(157, target.as_bytes())
    }

    /// Permission bits.
    pub fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    /// The size field alone, whatever data follows.
    pub fn size(self, size: u64) -> Self {
        self.octal(124, 12, size)
    }

    /// A pax record before the member.
    pub fn pax(mut self, key: &str, value: &str) -> Self {
        self.pax.extend(record(key, value));
        self
    }

    fn octal(self, at: usize, width: usize, value: u64) -> Self {
        let digits = width - 1;
        self.bytes(at, format!("{value:0digits$o}\0").as_bytes())
    }

    /// Bytes of the header as they are.
    pub fn bytes(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// Headers, data and what fills the last block up.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if !self.pax.is_empty() {
            bytes.extend(Self::file("pax", self.pax.clone()).kind(b'x').encode());
        }
        let mut header = self.header;
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        bytes.extend(header);
        bytes.extend(&self.data);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        bytes
    }

    /// Another type, with all the rest as it is.
    pub fn kind(mut self, kind: u8) -> Self {
        self.header[156] = kind;
        self
    }
}

/// A pax record, its own length in front.
fn record(key: &str, value: &str) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    let mut text = String::new();
    let _ = writeln!(text, "{length} {key}={value}");
    text.into_bytes()
}

/// A whole archive.
pub fn archive(entries: &[Entry]) -> Vec<u8> {
    let mut bytes = entries
        .iter()
        .map(Entry::encode)
        .collect::<Vec<_>>()
        .concat();
    bytes.resize(bytes.len() + 2 * BLOCK, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{run_within, tool};
    use std::time::Duration;

    #[test]
    fn records_count_themselves() {
        for length in 0..200 {
            let made = record("path", &"x".repeat(length));
            let said = made.split(|&byte| byte == b' ').next().unwrap();
            let said: usize = std::str::from_utf8(said).unwrap().parse().unwrap();
            assert_eq!(said, made.len());
        }
    }

    #[test]
    fn tar_reads_them() {
        let long = "d/".to_owned() + &"n".repeat(150);
        let made = archive(&[
            Entry::directory("d"),
            Entry::file(&long, "content"),
            Entry::symlink("d/link", "/target"),
            Entry::device(b'3', "d/null", 1, 3).mode(0o600),
        ]);
        let read = run_within(tool("tar").arg("-tv"), &made, Duration::from_mins(1)).expect(0);
        let text = read.text();
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("drwxr-xr-x 0/0"), "{text}");
        assert!(
            lines[1].ends_with(&long) && lines[1].contains(" 7 "),
            "{text}"
        );
        assert!(lines[2].ends_with("d/link -> /target"), "{text}");
        assert!(
            lines[3].starts_with("crw-------") && lines[3].contains("1,3"),
            "{text}"
        );
    }
}
