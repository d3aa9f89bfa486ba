//! GNU tar makes archives of random trees in every format it knows, and unpacks them: we must
//! make the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use super::*;

/// A small generator, so that a failing tree can be made again from its number.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// What a format has room for.
#[derive(Clone, Copy)]
pub(super) enum Names {
    /// 100 bytes for a whole path, and no pipes.
    V7,
    /// 255 bytes for a path, 100 for a link target.
    Short,
    /// Any length.
    Long,
}

impl Names {
    fn component(self) -> u64 {
        match self {
            Self::V7 | Self::Short => 20,
            Self::Long => 180,
        }
    }

    fn target(self) -> u64 {
        match self {
            Self::V7 | Self::Short => 90,
            Self::Long => 200,
        }
    }

    pub(super) fn depth(self) -> u64 {
        match self {
            Self::V7 => 1,
            Self::Short | Self::Long => 3,
        }
    }
}

pub(super) fn grow(random: &mut Random, at: &Path, depth: u64, names: Names) {
    let mut files = Vec::new();
    for n in 0..2 + random.below(6) {
        let stem = 1 + random.below(names.component());
        let name = match random.below(8) {
            0 => format!("{n} with space\nand newline"),
            1 => format!("{n}é\u{1F980}"),
            _ => format!("{n}{}", "x".repeat(stem as usize)),
        };
        let path = at.join(name);
        match random.below(10) {
            0..=2 if depth > 0 => {
                fs::create_dir(&path).unwrap();
                grow(random, &path, depth - 1, names);
                let mode = 0o700 | random.below(0o10000) as u32;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                times(random, &path);
            }
            3 if !files.is_empty() => {
                let pick = random.below(files.len() as u64) as usize;
                fs::hard_link(&files[pick], &path).unwrap();
            }
            4 => {
                let length = 1 + random.below(names.target());
                std::os::unix::fs::symlink("t".repeat(length as usize), &path).unwrap();
            }
            5 if !matches!(names, Names::V7) => {
                rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
            }
            6 => {
                let file = fs::File::create(&path).unwrap();
                for _ in 0..random.below(12) {
                    file.write_all_at(b"data between holes", random.below(1 << 20))
                        .unwrap();
                }
                file.set_len(1 << 20).unwrap();
                times(random, &path);
            }
            _ => {
                let byte = random.below(256) as u8;
                fs::write(&path, vec![byte; random.below(3000) as usize]).unwrap();
                let mode = 0o400 | random.below(0o10000) as u32;
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                times(random, &path);
                files.push(path);
            }
        }
    }
}

fn times(random: &mut Random, path: &Path) {
    let time = rustix::fs::Timespec {
        tv_sec: random.below(2_000_000_000).cast_signed(),
        tv_nsec: random.below(1_000_000_000).cast_signed(),
    };
    let times = rustix::fs::Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
}

/// Everything that must be equal, by path; hard links by the first path of their file.
fn listing(root: &Path) -> BTreeMap<Vec<u8>, String> {
    fn walk(
        root: &Path,
        at: &Path,
        inodes: &mut BTreeMap<u64, Vec<u8>>,
        all: &mut BTreeMap<Vec<u8>, String>,
    ) {
        let mut names: Vec<_> = fs::read_dir(at)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        names.sort();
        for path in names {
            let name = path
                .strip_prefix(root)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec();
            let stat = fs::symlink_metadata(&path).unwrap();
            let kind = stat.file_type();
            let first = inodes
                .entry(stat.ino())
                .or_insert_with(|| name.clone())
                .clone();
            let what = if kind.is_dir() {
                walk(root, &path, inodes, all);
                "directory".into()
            } else if kind.is_symlink() {
                format!("link to {:?}", fs::read_link(&path).unwrap())
            } else if kind.is_fifo() {
                "fifo".into()
            } else {
                format!(
                    "file {} {}",
                    stat.len(),
                    Digest::sha256(&fs::read(&path).unwrap())
                )
            };
            let line = format!(
                "{what} {:o} {}:{} {}.{} same as {}",
                stat.mode(),
                stat.uid(),
                stat.gid(),
                stat.mtime(),
                stat.mtime_nsec(),
                first.escape_ascii(),
            );
            all.insert(name, line);
        }
    }
    let mut all = BTreeMap::new();
    walk(root, root, &mut BTreeMap::new(), &mut all);
    all
}

pub(super) fn tar(arguments: &[&str], directory: &Path, file: &Path) {
    let output = Command::new("tar")
        .args(["--warning=no-timestamp", "--warning=no-file-ignored"])
        .args(arguments)
        .arg("-C")
        .arg(directory)
        .arg("-f")
        .arg(file)
        .args(if arguments.contains(&"-c") {
            &["."][..]
        } else {
            &[][..]
        })
        .output()
        .expect("GNU tar");
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} {words}");
}

fn compare(options: &[&str], seed: u64, names: Names) {
    let place = Place::new();
    let work = tempfile::tempdir().unwrap();
    let [tree, theirs] = ["tree", "theirs"].map(|name| work.path().join(name));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&theirs).unwrap();
    grow(&mut Random(seed), &tree, names.depth(), names);
    let file = work.path().join("archive");
    tar(
        &[&["-c", "--numeric-owner", "--sort=name"], options].concat(),
        &tree,
        &file,
    );
    tar(&["-x", "-p", "--numeric-owner"], &theirs, &file);
    let plain = fs::read(&file).unwrap();
    place
        .unpack_with(&place.options(), plain.as_slice(), &plain)
        .unwrap();
    let (ours, theirs) = (listing(&place.layer()), listing(&theirs));
    assert!(ours.len() >= 2, "{seed}");
    for (name, line) in &theirs {
        assert_eq!(
            ours.get(name),
            Some(line),
            "{options:?} {seed} {}",
            name.escape_ascii()
        );
    }
    assert_eq!(ours.len(), theirs.len());
}

#[test]
fn old_formats() {
    for seed in 0..6 {
        compare(&["--format=v7"], seed, Names::V7);
        compare(&["--format=ustar"], seed, Names::Short);
    }
}

#[test]
fn gnu_format() {
    for seed in 20..25 {
        compare(&["--format=gnu"], seed, Names::Long);
        compare(&["--format=gnu", "--sparse"], seed, Names::Long);
        compare(&["--format=oldgnu", "--sparse"], seed, Names::Long);
    }
}

#[test]
fn pax_format() {
    for seed in 40..45 {
        compare(&["--format=pax"], seed, Names::Long);
        for version in ["0.0", "0.1", "1.0"] {
            compare(
                &["--format=pax", "--sparse", "--sparse-version", version],
                seed,
                Names::Long,
            );
        }
        compare(
            &["--format=pax", "--pax-option=comment=made for a test"],
            seed,
            Names::Long,
        );
    }
}
