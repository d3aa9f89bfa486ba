//! A root file system in a directory, as a tar archive.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File, Metadata},
    io::{self, BufWriter, Read as _, Seek as _, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
};

use vdkr_core::tar::header::{BLOCK, Block, checksum};

/// How deep directories may nest.
const MAX_DEPTH: usize = 512;
/// What eleven octal digits can say.
const OCTAL: u64 = 1 << 33;
/// What seven can.
const OCTAL_ID: u64 = 0o7_777_777;

/// An archive of a directory.
#[derive(Debug)]
pub struct Packed {
    /// The archive, in a file that is gone when it is closed.
    pub archive: File,
    /// Sockets, which have no place in an archive.
    pub skipped: u64,
    /// Members.
    pub members: u64,
}

/// Packs a directory. What belongs to the user who calls becomes root's, unless that is root: an
/// unpacked root file system is the user's own. Attributes are not kept. May block.
pub fn pack(root: &Path) -> io::Result<Packed> {
    let mut packer = Packer {
        out: BufWriter::with_capacity(1 << 20, tempfile::tempfile()?),
        own: nix::unistd::geteuid().as_raw(),
        links: HashMap::new(),
        skipped: 0,
        members: 0,
    };
    let metadata = fs::metadata(root)?;
    packer.header(b"./", &metadata, b'5', 0, b"", (0, 0))?;
    packer.directory(root, b"", 0)?;
    packer.out.write_all(&[0; 2 * BLOCK])?;
    let mut archive = packer
        .out
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    archive.rewind()?;
    Ok(Packed {
        archive,
        skipped: packer.skipped,
        members: packer.members,
    })
}

struct Packer {
    out: BufWriter<File>,
    own: u32,
    /// Files with several names, by device and inode: the first name.
    links: HashMap<(u64, u64), Vec<u8>>,
    skipped: u64,
    members: u64,
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl Packer {
    fn directory(&mut self, path: &Path, name: &[u8], depth: usize) -> io::Result<()> {
        if depth > MAX_DEPTH {
            let error = io::Error::other("directories nest too deep");
            return Err(at(path, &error));
        }
        let entries = fs::read_dir(path).map_err(|error| at(path, &error))?;
        let mut names = entries
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| at(path, &error))?;
        names.sort_unstable();
        for entry in names {
            self.member(&path.join(&entry), name, &entry, depth)?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        path: &PathBuf,
        parent: &[u8],
        entry: &OsStr,
        depth: usize,
    ) -> io::Result<()> {
        let failed = |error: io::Error| at(path, &error);
        let mut name = parent.to_vec();
        name.extend_from_slice(entry.as_bytes());
        let metadata = fs::symlink_metadata(path).map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            name.push(b'/');
            self.header(&name, &metadata, b'5', 0, b"", (0, 0))?;
            return self.directory(path, &name, depth + 1);
        }
        if kind.is_symlink() {
            let target = fs::read_link(path).map_err(failed)?;
            let target = target.as_os_str().as_bytes();
            return self.header(&name, &metadata, b'2', 0, target, (0, 0));
        }
        if kind.is_file() {
            if metadata.nlink() > 1 {
                let inode = (metadata.dev(), metadata.ino());
                if let Some(first) = self.links.get(&inode) {
                    let first = first.clone();
                    return self.header(&name, &metadata, b'1', 0, &first, (0, 0));
                }
                self.links.insert(inode, name.clone());
            }
            return self.file(path, &name, &metadata).map_err(failed);
        }
        let kind = if kind.is_fifo() {
            b'6'
        } else if kind.is_char_device() {
            b'3'
        } else if kind.is_block_device() {
            b'4'
        } else {
            self.skipped += 1;
            return Ok(());
        };
        let device = metadata.rdev();
        let major = nix::sys::stat::major(device);
        let minor = nix::sys::stat::minor(device);
        self.header(&name, &metadata, kind, 0, b"", (major, minor))
    }

    fn file(&mut self, path: &Path, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let size = metadata.len();
        let file = File::open(path)?;
        self.header(name, metadata, b'0', size, b"", (0, 0))?;
        if io::copy(&mut file.take(size), &mut self.out)? != size {
            return Err(io::Error::other("it became shorter while it was read"));
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    fn header(
        &mut self,
        name: &[u8],
        metadata: &Metadata,
        kind: u8,
        size: u64,
        link: &[u8],
        device: (u64, u64),
    ) -> io::Result<()> {
        self.members += 1;
        let mut records = Vec::new();
        if name.len() > 100 {
            record(&mut records, "path", name);
        }
        if link.len() > 100 {
            record(&mut records, "linkpath", link);
        }
        if size >= OCTAL {
            record(&mut records, "size", size.to_string().as_bytes());
        }
        let is_own = |id: u32| self.own != 0 && id == self.own;
        let (uid, gid): (u64, u64) = match is_own(metadata.uid()) {
            true => (0, 0),
            false => (metadata.uid().into(), metadata.gid().into()),
        };
        for (key, id) in [("uid", uid), ("gid", gid)] {
            if id > OCTAL_ID {
                record(&mut records, key, id.to_string().as_bytes());
            }
        }
        if !records.is_empty() {
            let mut block = plain(b"pax", b'x', records.len() as u64);
            seal(&mut block);
            self.out.write_all(&block)?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        // A size that has a record of its own reads as nothing here.
        let mut block = plain(name, kind, if size < OCTAL { size } else { 0 });
        octal(&mut block[100..108], (metadata.mode() & 0o7777).into());
        octal(&mut block[108..116], if uid > OCTAL_ID { 0 } else { uid });
        octal(&mut block[116..124], if gid > OCTAL_ID { 0 } else { gid });
        let time = u64::try_from(metadata.mtime()).unwrap_or_default();
        octal(&mut block[136..148], time.min(OCTAL - 1));
        let length = link.len().min(100);
        block[157..157 + length].copy_from_slice(&link[..length]);
        octal(&mut block[329..337], device.0);
        octal(&mut block[337..345], device.1);
        seal(&mut block);
        self.out.write_all(&block)
    }
}

/// A pax record, which counts its own length.
fn record(out: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length += 1;
    }
    out.extend_from_slice(format!("{length} {key}=").as_bytes());
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn plain(name: &[u8], kind: u8, size: u64) -> Block {
    let mut block = [0; BLOCK];
    let length = name.len().min(100);
    block[..length].copy_from_slice(&name[..length]);
    octal(&mut block[100..108], 0o644);
    octal(&mut block[108..116], 0);
    octal(&mut block[116..124], 0);
    octal(&mut block[124..136], size);
    octal(&mut block[136..148], 0);
    block[156] = kind;
    block[257..265].copy_from_slice(b"ustar\x0000");
    block
}

/// Digits that fill a field but for the NUL at its end.
fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[text.len() - digits..]);
    field[digits] = 0;
}

fn seal(block: &mut Block) {
    let sum = format!("{:06o}\0 ", checksum(block));
    block[148..156].copy_from_slice(sum.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::symlink, process::Command};

    use super::*;

    #[test]
    fn tar_unpacks_it_as_it_was() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("root");
        let deep = "long-name-of-a-directory/".repeat(6);
        fs::create_dir_all(root.join(&deep)).unwrap();
        fs::create_dir(root.join("empty")).unwrap();
        fs::write(root.join("file"), "content").unwrap();
        fs::write(root.join("block"), [7; 1024]).unwrap();
        fs::write(root.join(&deep).join("file"), "deep").unwrap();
        fs::hard_link(root.join("file"), root.join("linked")).unwrap();
        symlink("x".repeat(150), root.join("far")).unwrap();
        symlink("file", root.join("near")).unwrap();
        let fifo = root.join("pipe");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let packed = pack(&root).unwrap();
        assert_eq!((packed.skipped, packed.members), (1, 15));
        let listed = Command::new("tar")
            .args(["-tv"])
            .stdin(packed.archive.try_clone().unwrap())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.status.success(), "{text}");
        assert!(text.contains("linked link to file"), "{text}");
        let mut archive = packed.archive;
        archive.rewind().unwrap();
        let out = place.path().join("out");
        fs::create_dir(&out).unwrap();
        let unpacked = Command::new("tar")
            .arg("-xC")
            .arg(&out)
            .stdin(archive)
            .status();
        assert!(unpacked.unwrap().success());
        assert_eq!(fs::read(out.join(&deep).join("file")).unwrap(), b"deep");
        assert_eq!(fs::read(out.join("block")).unwrap(), [7; 1024]);
        assert_eq!(
            fs::read_link(out.join("far")).unwrap(),
            Path::new(&"x".repeat(150))
        );
        let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
        assert_eq!(inode("file"), inode("linked"));
        assert!(
            fs::symlink_metadata(out.join("pipe"))
                .unwrap()
                .file_type()
                .is_fifo()
        );
        assert!(out.join("empty").is_dir() && !out.join("socket").exists());
    }

    #[test]
    fn records_count_themselves() {
        let mut out = Vec::new();
        record(&mut out, "path", &[b'a'; 90]);
        assert!(out.starts_with(b"99 path=a") && out.len() == 99);
        out.clear();
        record(&mut out, "path", &[b'a'; 91]);
        assert!(
            out.starts_with(b"101 path=a") && out.len() == 101,
            "{}",
            out.len()
        );
    }
}
