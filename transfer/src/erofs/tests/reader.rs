//! A reader of images, written from the format's description and sharing nothing with the writer.

use std::collections::BTreeMap;
use std::fmt;

/// A file in an image.
pub(super) struct Found {
    pub(super) nid: u64,
    pub(super) mode: u16,
    pub(super) owner: (u32, u32),
    pub(super) mtime: (i64, u32),
    pub(super) links: u32,
    pub(super) device: u32,
    pub(super) xattrs: Vec<(String, Vec<u8>)>,
    pub(super) content: Vec<u8>,
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.mode >> 12 {
            0o01 => "fifo",
            0o02 => "character",
            0o04 => "directory",
            0o06 => "block",
            0o10 => "file",
            0o12 => "link",
            other => panic!("type {other:o}"),
        };
        let (uid, gid) = self.owner;
        let (seconds, nanos) = self.mtime;
        let links = self.links;
        write!(
            f,
            "{kind} {:o} {uid}:{gid} {seconds}.{nanos} links {links}",
            self.mode
        )?;
        for (name, value) in &self.xattrs {
            write!(f, " {name}={}", value.escape_ascii())?;
        }
        Ok(())
    }
}

struct Image<'a>(&'a [u8]);

impl Image<'_> {
    fn number(&self, at: usize, bytes: usize) -> u64 {
        let field = self.0[at..at + bytes].iter().rev();
        field.fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    fn inode(&self, nid: u64) -> Found {
        let start = self.number(1024 + 40, 4) as usize * 4096 + nid as usize * 32;
        let format = self.number(start, 2);
        assert_eq!(format & 1, 1, "the long form");
        let xattr_units = self.number(start + 2, 2) as usize;
        let size = self.number(start + 8, 8) as usize;
        let place = self.number(start + 16, 4);
        let mut at = start + 64;
        let mut xattrs = Vec::new();
        if xattr_units > 0 {
            let end = at + 12 + 4 * (xattr_units - 1);
            at += 12;
            while at < end {
                let name = self.number(at, 1) as usize;
                let prefix = match self.number(at + 1, 1) {
                    1 => "user.",
                    2 => "system.posix_acl_access",
                    3 => "system.posix_acl_default",
                    4 => "trusted.",
                    6 => "security.",
                    other => panic!("prefix {other}"),
                };
                let value = self.number(at + 2, 2) as usize;
                let rest = &self.0[at + 4..at + 4 + name];
                xattrs.push((
                    format!("{prefix}{}", rest.escape_ascii()),
                    self.0[at + 4 + name..at + 4 + name + value].to_vec(),
                ));
                at = (at + 4 + name + value).next_multiple_of(4);
            }
            assert_eq!(at, end);
        }
        let mode = self.number(start + 4, 2) as u16;
        let has_data = matches!(mode >> 12, 0o04 | 0o10 | 0o12);
        let first = place as usize * 4096;
        let content = match format >> 1 {
            0 if has_data => self.0[first..][..size].to_vec(),
            0 => Vec::new(),
            2 => {
                let (whole, tail) = (size / 4096 * 4096, size % 4096);
                assert!(at % 4096 + tail <= 4096, "an end of data crosses a block");
                [&self.0[first..][..whole], &self.0[at..][..tail]].concat()
            }
            other => panic!("layout {other}"),
        };
        Found {
            nid,
            mode,
            owner: (
                self.number(start + 24, 4) as u32,
                self.number(start + 28, 4) as u32,
            ),
            mtime: (
                self.number(start + 32, 8).cast_signed(),
                self.number(start + 40, 4) as u32,
            ),
            links: self.number(start + 44, 4) as u32,
            device: if has_data { 0 } else { place as u32 },
            xattrs,
            content,
        }
    }

    fn walk(&self, path: &[u8], nid: u64, parent: u64, all: &mut BTreeMap<Vec<u8>, Found>) {
        let found = self.inode(nid);
        let mut names: Vec<Vec<u8>> = Vec::new();
        if found.mode >> 12 == 0o04 {
            for block in found.content.chunks(4096) {
                let block_image = Image(block);
                let first = block_image.number(8, 2) as usize;
                let count = first / 12;
                for entry in 0..count {
                    let at = entry * 12;
                    let name_at = block_image.number(at + 8, 2) as usize;
                    let end = if entry + 1 < count {
                        block_image.number(at + 12 + 8, 2) as usize
                    } else {
                        block.len()
                    };
                    let name = block[name_at..end].split(|&byte| byte == 0).next().unwrap();
                    let child = block_image.number(at, 8);
                    names.push(name.to_vec());
                    match name {
                        b"." => assert_eq!(child, nid),
                        b".." => assert_eq!(child, parent),
                        _ => {
                            let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                            let path = [path, separator, name].concat();
                            self.walk(&path, child, nid, all);
                        }
                    }
                }
            }
            assert!(names.is_sorted(), "names in order");
            assert!(names.iter().any(|name| name == b".."));
        }
        all.insert(path.to_vec(), found);
    }
}

/// Everything in an image, by path.
pub(super) fn read(image: &[u8]) -> BTreeMap<Vec<u8>, Found> {
    let image = Image(image);
    assert_eq!(image.number(1024, 4), 0xe0f5_e1e2);
    let root = image.number(1024 + 14, 2);
    let mut all = BTreeMap::new();
    image.walk(b"", root, root, &mut all);
    all
}
