//! Images, read back: by a reader of our own, by `fsck.erofs`, and (in the agent's tests) by the
//! kernel, beside what the agent unpacks.

mod reader;
mod restore;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::Command;

use proptest::prelude::*;
use vdkr_core::digest::Digest;

use super::{Note, write_image};
use crate::layer::fixture::{Entry, archive, gzip};
use crate::layer::{Limits, Pool, Refusal, UnpackError, Unpacked};
use reader::{Found, read};

/// An image in a directory of its own.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn image(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    fn write(&self, stream: &[u8], plain: &[u8], limits: &Limits) -> Result<Unpacked, UnpackError> {
        let new = |name: &str| {
            fs::File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(self.directory.path().join(name))
                .unwrap()
        };
        let (image, scratch) = (new("image"), new("scratch"));
        let digest = Digest::sha256(plain);
        write_image(stream, &digest, limits, &|| false, &image, &scratch, None)
    }

    /// Writes, has `fsck.erofs` look at it, and reads it back.
    fn files(&self, entries: &[Entry]) -> BTreeMap<Vec<u8>, Found> {
        let plain = archive(entries);
        self.write(&plain, &plain, &Limits::default()).unwrap();
        let output = Command::new("fsck.erofs")
            .arg(self.image())
            .output()
            .expect("fsck.erofs, of the package erofs-utils");
        let words = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{words}");
        read(&fs::read(self.image()).unwrap())
    }
}

fn refusal(entries: &[Entry]) -> Refusal {
    let plain = archive(entries);
    match Place::new().write(&plain, &plain, &Limits::default()) {
        Err(UnpackError::Refused { refusal, .. }) => refusal,
        other => panic!("{other:?}"),
    }
}

#[test]
fn everything_a_layer_can_hold() {
    let place = Place::new();
    let big: Vec<u8> = (0..20_000u32).flat_map(u32::to_le_bytes).collect();
    let long = "n".repeat(255);
    let found = place.files(&[
        Entry::directory("./").mode(0o750).owner(1, 2).mtime(100),
        Entry::directory("usr").mtime(200),
        Entry::file("usr/big", &big)
            .mode(0o4755)
            .owner(100_000, 200_000),
        Entry::file("usr/small", "small")
            .pax(b"mtime", b"-1.25")
            .xattr("user.note", b"kept"),
        Entry::file("usr/empty", ""),
        Entry::hard_link("usr/again", "usr/small"),
        Entry::symlink("bin", "usr"),
        Entry::symlink("far", "/".to_owned() + &"x/".repeat(2040)),
        Entry::file("bin/through", "link"),
        Entry::new(b'6', "pipe").mode(0o620),
        Entry::new(b'3', "null").device(1, 3).mode(0o666),
        Entry::new(b'4', "disk").device(259, 70_000),
        Entry::whiteout("usr/.wh.gone"),
        Entry::whiteout("usr/.wh..wh..opq"),
        Entry::file(format!("{long}/{long}"), "deep").xattr("security.capability", &[1; 20]),
        Entry::file("skipped", "").xattr("security.selinux", b"x"),
    ]);
    let text = |path: &str| found[path.as_bytes()].to_string();
    assert_eq!(text(""), "directory 40750 1:2 100.0 links 4");
    assert_eq!(
        text("usr"),
        format!(
            "directory 40755 {}:{} 200.0 links 2 trusted.overlay.opaque=y",
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw()
        )
    );
    assert_eq!(found[&b"usr/big"[..]].content, big);
    assert!(text("usr/big").contains(" 104755 100000:200000 1700000000.0 links 1"));
    assert!(text("usr/small").contains(" -2.750000000 links 2 user.note=kept"));
    assert_eq!(found[&b"usr/again"[..]].nid, found[&b"usr/small"[..]].nid);
    assert_eq!(found[&b"usr/empty"[..]].content, b"");
    assert_eq!(found[&b"bin"[..]].content, b"usr");
    assert_eq!(found[&b"far"[..]].content.len(), 4081);
    assert_eq!(found[&b"usr/through"[..]].content, b"link");
    assert!(text("pipe").contains(" 10620 "));
    assert!(text("null").contains(" 20666 ") && found[&b"null"[..]].device == 0x103);
    assert!(text("disk").starts_with("block") && found[&b"disk"[..]].device == 0x1111_0370);
    assert!(text("usr/gone").contains(" 20000 0:0 ") && found[&b"usr/gone"[..]].device == 0);
    assert!(text(&format!("{long}/{long}")).contains("security.capability="));
    assert!(text(&long).starts_with("directory 40755 0:0 0.0 links 2"));
    assert!(!text("skipped").contains("selinux"));
    assert_eq!(found.len(), 16);
}

#[test]
fn big_directories() {
    let mut entries: Vec<Entry> = (0..3000)
        .map(|n| Entry::file(format!("many/{n:x}{}", "!".repeat(n % 40)), n.to_string()))
        .collect();
    // Names that stand before `.` and between `.` and `..`.
    entries.extend(["!", "-", ".-", ".a", "..a", "~"].map(|n| Entry::file(format!("many/{n}"), n)));
    let found = Place::new().files(&entries);
    assert_eq!(found.len(), 3000 + 6 + 2);
    assert_eq!(found[&b"many/..a"[..]].content, b"..a");
    assert_eq!(
        found[&b"many/bb7!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"[..]].content,
        b"2999"
    );
}

#[test]
fn sparse_files_stay_sparse() {
    let place = Place::new();
    let size = 40u64 << 20;
    let entry = Entry::file("holes", b"begin-end")
        .pax(b"GNU.sparse.size", size.to_string().as_bytes())
        .pax(b"GNU.sparse.map", format!("0,5,{},4", size - 4).as_bytes());
    let found = place.files(&[entry, Entry::file("after", "after")]);
    let holes = &found[&b"holes"[..]].content;
    assert_eq!(holes.len() as u64, size);
    assert_eq!(
        (&holes[..6], &holes[holes.len() - 5..]),
        (&b"begin\0"[..], &b"\0-end"[..])
    );
    assert_eq!(found[&b"after"[..]].content, b"after");
    let stored = fs::metadata(place.image()).unwrap();
    assert!(
        stored.blocks() * 512 < size / 2,
        "{} bytes",
        stored.blocks() * 512
    );
}

#[test]
fn the_same_layer_gives_the_same_image() {
    let plain = archive(&[
        Entry::file("b", "2"),
        Entry::file("a/c", [7; 9000]),
        Entry::whiteout(".wh..wh..opq"),
    ]);
    let images = [plain.clone(), gzip(&plain)].map(|stream| {
        let place = Place::new();
        let unpacked = place.write(&stream, &plain, &Limits::default()).unwrap();
        assert!(unpacked.opaque_root);
        let note = Note::read(&fs::File::open(place.image()).unwrap()).unwrap();
        assert_eq!(note.diff_id, Digest::sha256(&plain));
        assert_eq!((note.bytes, note.entries, note.opaque), (9001, 3, true));
        fs::read(place.image()).unwrap()
    });
    assert_eq!(images[0], images[1]);
}

#[test]
fn an_image_that_is_not_whole_is_seen() {
    let place = Place::new();
    place.files(&[Entry::file("file", [1; 10_000])]);
    let image = fs::File::options()
        .read(true)
        .write(true)
        .open(place.image())
        .unwrap();
    assert!(Note::read(&image).is_ok());
    image.set_len(image.metadata().unwrap().len() - 1).unwrap();
    assert!(Note::read(&image).is_err());
    image.set_len(10).unwrap();
    assert!(Note::read(&image).is_err());
}

#[test]
fn what_the_agent_refuses_is_refused() {
    use crate::layer::name::NameError;
    let up = Refusal::Name(NameError::Parent);
    assert_eq!(refusal(&[Entry::file("../x", "")]), up);
    assert_eq!(refusal(&[Entry::file("a/../../x", "")]), up);
    assert_eq!(refusal(&[Entry::symlink("./", "/etc")]), Refusal::Root);
    assert_eq!(
        refusal(&[Entry::file("a", ""), Entry::file("a/b", "")]),
        Refusal::NotADirectory
    );
    let turning = [
        Entry::symlink("a", "b"),
        Entry::symlink("b", "a"),
        Entry::file("a/x", ""),
    ];
    assert_eq!(refusal(&turning), Refusal::Loop);
    assert_eq!(
        refusal(&[Entry::hard_link("a", "/etc/passwd")]),
        Refusal::LinkTarget
    );
    assert_eq!(
        refusal(&[Entry::whiteout(".wh.b"), Entry::hard_link("a", "b")]),
        Refusal::LinkTarget
    );
    assert_eq!(
        refusal(&[Entry::file("a/b", ""), Entry::hard_link("a", "a/b")]),
        Refusal::LinkTarget
    );
    let marked = Entry::file("a", "").xattr("trusted.overlay.opaque", b"y");
    assert_eq!(refusal(&[marked]), Refusal::OverlayMark);
    assert_eq!(
        refusal(&[Entry::symlink("a", "t".repeat(5000))]),
        Refusal::Name(NameError::Length)
    );
}

#[test]
fn limits_hold() {
    let plain = archive(&[Entry::file("a", [0; 5000]), Entry::file("b", "")]);
    let write = |limits: Limits| Place::new().write(&plain, &plain, &limits);
    let few = write(Limits {
        entries: 1,
        ..Limits::default()
    });
    assert!(
        matches!(few, Err(UnpackError::TooManyEntries { limit: 1 })),
        "{few:?}"
    );
    // Directories that are only on the way count too.
    let deep = archive(&[Entry::file("d/e/f", "1"), Entry::file("g", "2")]);
    let at = |entries| {
        let limits = Limits {
            entries,
            ..Limits::default()
        };
        Place::new().write(&deep, &deep, &limits)
    };
    assert_eq!(at(4).unwrap().entries, 2);
    let implied = at(3);
    assert!(
        matches!(implied, Err(UnpackError::TooManyEntries { limit: 3 })),
        "{implied:?}"
    );
    let small = write(Limits {
        total: 4000,
        ..Limits::default()
    });
    assert!(
        matches!(small, Err(UnpackError::TooLarge { limit: 4000 })),
        "{small:?}"
    );
    let huge = archive(&[Entry::file("a", "").pax(b"GNU.sparse.size", b"1099511627776")]);
    let huge = Place::new().write(&huge, &huge, &Limits::default());
    assert!(
        matches!(huge, Err(UnpackError::TooLarge { .. })),
        "{huge:?}"
    );
    let bomb = gzip(&vec![0; 4 << 20]);
    let limits = Limits {
        ratio: 20,
        ratio_after: 1 << 20,
        ..Limits::default()
    };
    let bomb = Place::new().write(&bomb, &vec![0; 4 << 20], &limits);
    assert!(matches!(bomb, Err(UnpackError::Bomb { .. })), "{bomb:?}");
    let wrong = Place::new().write(&plain, b"other", &Limits::default());
    assert!(
        matches!(wrong, Err(UnpackError::DiffId { .. })),
        "{wrong:?}"
    );
}

#[test]
fn paths_that_lead_through_links_without_end_are_refused() {
    let members = |count: usize| {
        let mut entries = vec![Entry::directory("x"), Entry::symlink("l39", "x")];
        for number in 0..39 {
            let target = format!("{}l{}", "x/../".repeat(800), number + 1);
            entries.push(Entry::symlink(format!("l{number}"), target));
        }
        for number in 0..count {
            // The directory of the last member is known without its path being followed.
            entries.push(Entry::file(format!("f{number}"), ""));
            entries.push(Entry::file(format!("l0/f{number}"), ""));
        }
        archive(&entries)
    };
    let write = |plain: &[u8]| Place::new().write(plain, plain, &Limits::default());
    assert_eq!(write(&members(20)).unwrap().entries, 81);
    let refused = write(&members(100));
    assert!(
        matches!(refused, Err(UnpackError::TooManySteps { .. })),
        "{refused:?}"
    );
}

/// Layers take from one pool, give their memory back and keep their room on the disk.
#[test]
fn layers_share_memory_and_room() {
    let entry = |n: u8| {
        let name = (0..200).map(|k| format!("{n}-{k}")).collect::<Vec<_>>();
        Entry::file(name.join("/"), "x")
    };
    let chain = |n| archive(&[entry(n)]);
    // Memory is looked at before each member.
    let two_chains = || archive(&[entry(1), entry(2)]);
    let write = |plain: &[u8], pool: &Pool| {
        let limits = Limits {
            pool: pool.clone(),
            ..Limits::default()
        };
        Place::new().write(plain, plain, &limits)
    };
    // A directory in a directory takes its node, its name and the map that it is in.
    let need = 200 * 300;
    let pool = Pool::new(need, u64::MAX);
    let few = write(&two_chains(), &pool);
    assert!(matches!(few, Err(UnpackError::TooMuchMemory)), "{few:?}");
    let pool = Pool::new(need * 3, u64::MAX);
    for n in 1..5 {
        write(&chain(n), &pool).unwrap();
    }
    let taken = pool.clone();
    assert!(taken.take_memory(need * 2));
    let few = write(&two_chains(), &pool);
    assert!(matches!(few, Err(UnpackError::TooMuchMemory)), "{few:?}");

    let pool = Pool::of_bytes(30_000);
    let big = archive(&[Entry::file("a", vec![1; 20_000])]);
    write(&big, &pool).unwrap();
    let second = write(&big, &pool);
    assert!(
        matches!(second, Err(UnpackError::TooLarge { limit: 30_000 })),
        "{second:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    /// Files of every size around the ends of blocks, with attributes of every length.
    #[test]
    fn random_trees_come_back(files in proptest::collection::btree_map(
        "[a-c]{1,3}(/[a-z!.]{1,60}x){0,3}",
        (prop_oneof![0..200usize, 3900..4200usize, 0..20_000usize], 0..3000usize, any::<u8>(), 0..0o10000u32),
        1..40,
    )) {
        // A name that is a directory of another is none of a file, and whiteouts are none.
        let is_directory = |name: &str| files.keys().any(|other| {
            other.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))
        });
        let is_file = |name: &str| !is_directory(name) && !name.contains("/.wh.");
        let files: Vec<_> = files.iter().filter(|(name, _)| is_file(name)).collect();
        let entries: Vec<Entry> = files.iter().map(|(name, (size, value, byte, mode))| {
            let entry = Entry::file(name, vec![*byte; *size]).mode(*mode);
            match value {
                0 => entry,
                value => entry.xattr("user.value", &vec![*byte; *value]),
            }
        }).collect();
        let found = Place::new().files(&entries);
        for (name, (size, value, byte, mode)) in files {
            let file = &found[name.as_bytes()];
            prop_assert_eq!(&file.content, &vec![*byte; *size]);
            prop_assert_eq!(file.mode, 0o100_000 | *mode as u16);
            let values: Vec<_> = file.xattrs.iter().map(|(_, value)| value.clone()).collect();
            let want: Vec<_> = (*value > 0).then(|| vec![*byte; *value]).into_iter().collect();
            prop_assert_eq!(values, want);
        }
    }
}
