//! A layer as an EROFS image holds what the agent unpacks: both are made of the same archives and
//! compared, the image through the kernel's eyes where the test may mount it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use vdkr_transfer::erofs::write_image;

use super::differential::{Names, Random, grow, tar};
use super::*;
use crate::unpack::{Devices, Limits};

/// What is compared of a file, and its time.
type Facts = BTreeMap<Vec<u8>, (String, (i64, i64))>;

/// An image, where its files can be seen.
struct Image {
    directory: tempfile::TempDir,
    mounted: bool,
}

impl Image {
    fn write(plain: &[u8]) -> Result<Self, UnpackError> {
        let directory = tempfile::tempdir().unwrap();
        let new = |name: &str| {
            let options = fs::File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .clone();
            options.open(directory.path().join(name)).unwrap()
        };
        let (image, scratch) = (new("image"), new("scratch"));
        let digest = Digest::sha256(plain);
        write_image(
            plain,
            &digest,
            &Limits::default(),
            &|| false,
            &image,
            &scratch,
            None,
        )?;
        drop((image, scratch));
        Ok(Self {
            directory,
            mounted: false,
        })
    }

    /// The directory of its files: mounted by the privileged, extracted by others.
    fn files(&mut self) -> PathBuf {
        let image = self.directory.path().join("image");
        let files = self.directory.path().join("files");
        fs::create_dir(&files).unwrap();
        let mut command;
        if privileged() {
            command = Command::new("mount");
            command
                .args(["-t", "erofs", "-o", "loop,ro"])
                .arg(&image)
                .arg(&files);
        } else {
            command = Command::new("fsck.erofs");
            command
                .arg(format!("--extract={}", files.display()))
                // Else without what the umask takes.
                .arg("--preserve-perms")
                .arg(&image);
        }
        let output = command.output().unwrap();
        let words = [output.stdout, output.stderr].concat();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&words)
        );
        self.mounted = privileged();
        files
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if self.mounted {
            let files = self.directory.path().join("files");
            let _ = Command::new("umount").arg(files).status();
        }
    }
}

/// Whether files of all kinds can be made, and images be mounted: a container's root may do the former
/// alone.
fn privileged() -> bool {
    rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists()
}

fn facts(root: &Path) -> Facts {
    let mut all = Facts::new();
    let mut first: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut inodes: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
            let stat = fs::symlink_metadata(&path).unwrap();
            let mut line = format!("{:o}", stat.mode());
            if stat.is_dir() {
                todo.push(path.clone());
            } else if stat.is_symlink() {
                line += &format!(" to {:?}", fs::read_link(&path).unwrap());
            } else if stat.is_file() {
                line += &format!(
                    " {} {}",
                    stat.len(),
                    Digest::sha256(&fs::read(&path).unwrap())
                );
            }
            if privileged() {
                line += &format!(" {}:{} device {}", stat.uid(), stat.gid(), stat.rdev());
                line += &attributes(&path);
            }
            // What extracts for ordinary users makes each name of a link a link of its own.
            if !stat.is_dir() && (privileged() || !stat.is_symlink()) {
                line += &format!(" links {}", stat.nlink());
                let known = first.entry(stat.ino()).or_insert_with(|| name.clone());
                *known = name.clone().min(known.clone());
                inodes.insert(name.clone(), stat.ino());
            }
            all.insert(name, (line, (stat.mtime(), stat.mtime_nsec())));
        }
    }
    for (name, inode) in inodes {
        if let Some((line, _)) = all.get_mut(&name) {
            *line += &format!(" as {}", first[&inode].escape_ascii());
        }
    }
    all
}

fn attributes(path: &Path) -> String {
    let mut names = vec![0; 64 << 10];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let mut found: Vec<String> = names[..length]
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let mut value = vec![0; 64 << 10];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            format!(
                " {}={}",
                name.escape_ascii(),
                value[..length].escape_ascii()
            )
        })
        .collect();
    found.sort();
    found.concat()
}

/// Unpacks an archive in both ways; the same files come out, or the same refusal.
fn compare(plain: &[u8], seed: u64, times_of_directories: bool) -> bool {
    let place = Place::new();
    let options = Options {
        devices: if privileged() {
            Devices::Make
        } else {
            Devices::Skip
        },
        ..place.options()
    };
    let ours = Image::write(plain);
    let mut image = match (place.unpack_with(&options, plain, plain), ours) {
        (Ok(_), Ok(image)) => image,
        (Err(theirs), Err(ours)) => {
            assert_eq!(ours.to_string(), theirs.to_string(), "{seed}");
            return false;
        }
        (theirs, ours) => panic!("{seed}: unpacked {theirs:?}, image {:?}", ours.err()),
    };
    let found = facts(&image.files());
    let unpacked = facts(&place.layer());
    for (name, (line, time)) in &unpacked {
        let shown = name.escape_ascii();
        let (ours, our_time) = found.get(name).unwrap_or_else(|| panic!("{seed} {shown}"));
        assert_eq!(ours, line, "{seed} {shown}");
        // What no member names has no time of its own: now there, 1970 here.
        let has_time = times_of_directories || !line.starts_with('4');
        if privileged() && has_time && *our_time != (0, 0) {
            assert_eq!(our_time, time, "{seed} {shown}");
        }
    }
    assert_eq!(found.len(), unpacked.len(), "{seed}");
    true
}

#[test]
fn honest_trees() {
    for seed in 60..66 {
        let work = tempfile::tempdir().unwrap();
        let tree = work.path().join("tree");
        fs::create_dir(&tree).unwrap();
        grow(&mut Random(seed), &tree, Names::Long.depth(), Names::Long);
        let file = work.path().join("archive");
        for format in [&["--format=pax", "--sparse"][..], &["--format=gnu"]] {
            let create = ["-c", "--numeric-owner", "--sort=name"];
            tar(&[&create, format].concat(), &tree, &file);
            // Ordinary users extract what fsck.erofs can: no pipes.
            if privileged() {
                assert!(compare(&fs::read(&file).unwrap(), seed, true));
            }
        }
    }
}

/// Members that replace, hide and lead through each other.
fn quarrel(random: &mut Random) -> Vec<Entry> {
    let name = |random: &mut Random| {
        let depth = 1 + random.below(3);
        let parts = (0..depth).map(|_| ["a", "b", "c", "d"][random.below(4) as usize]);
        parts.collect::<Vec<_>>().join("/")
    };
    let mut entries = Vec::new();
    for n in 0..4 + random.below(20) {
        let at = name(random);
        let (parent, last) = at.rsplit_once('/').unwrap_or((".", &at));
        let mut entry = match random.below(if privileged() { 14 } else { 11 }) {
            // Without set-group-id: what the agent makes below such a directory has its group.
            0..=2 => Entry::directory(&at).mode(0o700 | random.below(0o2000) as u32),
            3 | 4 => Entry::file(&at, vec![n as u8; random.below(9000) as usize]),
            5 => Entry::symlink(&at, name(random)),
            6 => Entry::symlink(&at, format!("/{}/../{}", name(random), name(random))),
            7 => Entry::hard_link(&at, name(random)),
            8 | 9 => Entry::whiteout(format!("{parent}/.wh.{last}")),
            10 => Entry::whiteout(format!("{at}/.wh..wh..opq")),
            11 => Entry::new(b'3', &at).device(random.below(3) as u32, random.below(3) as u32),
            12 => Entry::new(b'6', &at),
            _ => Entry::new(b'4', &at).device(259, 300_000),
        };
        entry = entry.mtime(1 + random.below(1 << 31));
        if privileged() {
            entry = entry.owner(random.below(1 << 20) as u32, random.below(1 << 20) as u32);
            entry = match random.below(6) {
                0 => entry.xattr("user.note", &[n as u8; 30]),
                1 => entry.xattr("security.capability", &CAPABILITY),
                2 => entry.xattr("trusted.other", b"x"),
                _ => entry,
            };
        }
        entries.push(entry);
    }
    entries
}

/// `cap_net_raw=ep`, version 2.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn quarrelsome_archives() {
    let mut good = 0;
    for seed in 0..300 {
        good += u32::from(compare(&archive(&quarrel(&mut Random(seed))), seed, false));
    }
    assert!((30..290).contains(&good), "{good} of 300 are good");
}
