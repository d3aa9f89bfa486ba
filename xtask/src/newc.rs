//! The "newc" cpio format that the kernel unpacks as its first root file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive being written to memory. Paths are relative, parents come before children.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

impl Archive {
    /// Adds a directory with mode 0755.
    pub(crate) fn directory(&mut self, path: &str) {
        self.entry(path, 0o040_755, (0, 0), &[]);
    }

    /// Adds a regular file; `mode` has the permission bits only.
    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.entry(path, 0o100_000 | mode, (0, 0), content);
    }

    /// Adds a character device.
    pub(crate) fn device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.entry(path, 0o020_000 | mode, (major, minor), &[]);
    }

    /// Ends the archive and returns it, padded to whole 512-byte blocks.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.header("TRAILER!!!", 0, 0, (0, 0), 0);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self.bytes
    }

    fn entry(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        self.header(path, self.inode, mode, device, content.len());
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn header(&mut self, path: &str, inode: u32, mode: u32, device: (u32, u32), size: usize) {
        let size = u32::try_from(size).expect("files of an initramfs are smaller than 4 GiB");
        let name = u32::try_from(path.len() + 1).expect("paths are short");
        // inode, mode, uid, gid, links, time, size, device, special device, name, checksum.
        let fields = [
            inode, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name, 0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;

    #[test]
    fn headers_and_contents_are_aligned() {
        let mut archive = Archive::default();
        archive.directory("dev");
        archive.device("dev/console", 0o600, 5, 1);
        archive.file("init", 0o755, b"#!x");
        let bytes = archive.finish();
        assert_eq!(bytes.len() % 512, 0);
        let first = &bytes[..116];
        assert_eq!(&first[..6], b"070701");
        assert_eq!(&first[14..22], b"000041ed");
        assert_eq!(&first[110..114], b"dev\0");
        let console = &bytes[116..];
        assert_eq!(&console[..6], b"070701");
        assert_eq!(&console[78..94], b"0000000500000001");
        let init = bytes
            .windows(5)
            .position(|window| window == b"init\0")
            .expect("a name");
        assert_eq!((init - 110) % 4, 0);
        let content = bytes
            .windows(3)
            .position(|window| window == b"#!x")
            .expect("a content");
        assert_eq!(content, (init + 5).next_multiple_of(4));
    }
}
