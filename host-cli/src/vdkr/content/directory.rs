//! A root file system in a directory, as a tar archive.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{File, Metadata},
    io::{self, BufWriter, Read as _, Seek as _, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::Path,
};

use rustix::fs::CWD;
use vdkr_core::tar::header::{BLOCK, Block, checksum};
use vdkr_transfer::tree::{Found, entries, find};

/// How deep directories may nest: each on the way to a file stays open.
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
/// unpacked root file system is the user's own. Attributes are not kept. A container may write there
/// meanwhile: nothing outside of the directory becomes part of it. May block.
pub fn pack(root: &Path) -> io::Result<Packed> {
    let mut packer = Packer {
        out: BufWriter::with_capacity(1 << 20, tempfile::tempfile()?),
        own: nix::unistd::geteuid().as_raw(),
        links: HashMap::new(),
        skipped: 0,
        members: 0,
    };
    let failed = |error: io::Error| at(root, &error);
    let Found::Directory(directory, metadata) = find(CWD, root, true).map_err(failed)? else {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    };
    packer.header(b"./", &metadata, b'5', 0, b"", (0, 0))?;
    packer.directory(&directory, root, b"", 0)?;
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
    fn directory(
        &mut self,
        directory: &File,
        path: &Path,
        name: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        if depth > MAX_DEPTH {
            let error = io::Error::other("directories nest too deep");
            return Err(at(path, &error));
        }
        for entry in entries(directory).map_err(|error| at(path, &error))? {
            let below = path.join(&entry);
            let found = match find(directory, &entry, false) {
                Ok(found) => found,
                // Gone since its directory was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(at(&below, &error)),
            };
            self.member(found, &below, name, &entry, depth)?;
        }
        Ok(())
    }

    fn member(
        &mut self,
        found: Found,
        path: &Path,
        parent: &[u8],
        entry: &OsStr,
        depth: usize,
    ) -> io::Result<()> {
        let mut name = parent.to_vec();
        name.extend_from_slice(entry.as_bytes());
        let metadata = match found {
            Found::Directory(directory, metadata) => {
                name.push(b'/');
                self.header(&name, &metadata, b'5', 0, b"", (0, 0))?;
                return self.directory(&directory, path, &name, depth + 1);
            }
            Found::Link(target, metadata) => {
                return self.header(&name, &metadata, b'2', 0, target.as_bytes(), (0, 0));
            }
            Found::File(file, metadata) => {
                if metadata.nlink() > 1 {
                    let inode = (metadata.dev(), metadata.ino());
                    if let Some(first) = self.links.get(&inode) {
                        let first = first.clone();
                        return self.header(&name, &metadata, b'1', 0, &first, (0, 0));
                    }
                    self.links.insert(inode, name.clone());
                }
                let written = self.file(file, &name, &metadata);
                return written.map_err(|error| at(path, &error));
            }
            Found::Other(metadata) => metadata,
        };
        let kind = metadata.file_type();
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

    fn file(&mut self, file: File, name: &[u8], metadata: &Metadata) -> io::Result<()> {
        let size = metadata.len();
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
    use std::{
        fs,
        os::unix::fs::symlink,
        process::Command,
        sync::{
            atomic::{AtomicBool, Ordering},
            mpsc,
        },
        thread,
        time::{Duration, Instant},
    };

    use rustix::fs::{RenameFlags, renameat_with};

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

    /// Packs a directory over and over while its file is exchanged for what `make` puts elsewhere;
    /// whether something that is not part of it was ever packed.
    fn packed_beside(make: fn(&Path, &Path)) -> bool {
        let place = tempfile::tempdir().unwrap();
        let (root, other) = (place.path().join("root"), place.path().join("other"));
        fs::create_dir(&root).unwrap();
        // As many bytes as the secret has.
        fs::write(root.join("file"), "of this one here").unwrap();
        let secret = place.path().join("secret");
        fs::write(&secret, "of somebody else").unwrap();
        make(&other, &secret);
        let (ended, result) = mpsc::channel();
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let (stop, file) = (&stop, root.join("file"));
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    renameat_with(CWD, &file, CWD, &other, RenameFlags::EXCHANGE).unwrap();
                }
            });
            // A queue that is waited for would never end.
            let root = root.clone();
            thread::spawn(move || {
                let until = Instant::now() + Duration::from_secs(2);
                let mut outside = false;
                while Instant::now() < until {
                    // It may change too often to be read at all.
                    let Ok(mut packed) = pack(&root) else {
                        continue;
                    };
                    let mut bytes = Vec::new();
                    packed.archive.read_to_end(&mut bytes).unwrap();
                    let word = b"of somebody else";
                    outside |= bytes.windows(word.len()).any(|window| window == word);
                }
                ended.send(outside).unwrap();
            });
            let outside = result.recv_timeout(Duration::from_secs(30));
            stop.store(true, Ordering::Relaxed);
            outside.expect("it waits for the other end of a queue")
        })
    }

    #[test]
    fn no_link_that_comes_meanwhile_leads_outside() {
        assert!(!packed_beside(|new, secret| symlink(secret, new).unwrap()));
    }

    #[test]
    fn no_queue_that_comes_meanwhile_is_waited_for() {
        let fifo = |new: &Path, _: &Path| {
            nix::unistd::mkfifo(new, nix::sys::stat::Mode::S_IRUSR).unwrap();
        };
        assert!(!packed_beside(fifo));
    }

    #[test]
    fn only_a_directory_is_packed() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(pack(&file).is_err() && pack(&place.path().join("none")).is_err());
        symlink(place.path(), place.path().join("link")).unwrap();
        assert_eq!(pack(&place.path().join("link")).unwrap().members, 3);
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
