//! The "newc" cpio format: a second archive behind an initramfs adds files to it.

use std::collections::BTreeSet;
use std::path::Path;

/// A file to add: its path below the root, its mode and its content.
pub type File = (String, u32, Vec<u8>);

/// An archive with these files and their directories.
pub fn archive(files: &[File]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut made = BTreeSet::new();
    for (path, mode, content) in files {
        let parents: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev() {
            let parent = parent.to_str().expect("a path of a test");
            if !parent.is_empty() && made.insert(parent.to_owned()) {
                entry(&mut bytes, parent, 0o040_755, &[]);
            }
        }
        entry(&mut bytes, path, 0o100_000 | mode, content);
    }
    entry(&mut bytes, "TRAILER!!!", 0, &[]);
    bytes
}

fn entry(bytes: &mut Vec<u8>, path: &str, mode: u32, content: &[u8]) {
    // inode, mode, uid, gid, links, time, size, device, special device, name, checksum.
    let inode = u32::try_from(bytes.len()).expect("small archives");
    let size = u32::try_from(content.len()).expect("small files");
    let name = u32::try_from(path.len() + 1).expect("short names");
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
    bytes.extend_from_slice(b"070701");
    for field in fields {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
