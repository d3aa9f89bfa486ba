use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
};

use proptest::prelude::*;
use vdkr_core::tar::write::{END, Member, Type, header, padding};

use super::*;

const PLAIN: Policy = Policy {
    owners: false,
    follow: false,
};

fn to(target: &Path, stream: &[u8], policy: Policy) -> Result<(), TreeError> {
    use std::os::fd::AsFd;
    let root = fs::File::open(target).unwrap();
    unpack(stream, root.as_fd(), policy, |name| Some(name.to_vec()))
}

fn packed(path: &Path, entry: &str, follow: bool) -> Vec<u8> {
    let mut stream = Vec::new();
    pack(path, entry, follow, false, &mut stream).unwrap();
    stream
}

fn member<'a>(kind: Type, name: &'a str, link: &'a str, size: usize) -> Member<'a> {
    Member {
        kind,
        name: name.as_bytes(),
        link: link.as_bytes(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: size as u64,
        mtime: 5,
    }
}

/// An archive of files, links and directories by their letters.
fn archive(members: &[(char, &str, &str)]) -> Vec<u8> {
    let mut stream = Vec::new();
    for (letter, name, text) in members {
        match letter {
            'd' => {
                let mut member = member(Type::Directory, name, "", 0);
                member.mode = 0o755;
                stream.extend(header(&member));
            }
            'l' => stream.extend(header(&member(Type::Link, name, text, 0))),
            'h' => {
                let mut blocks = header(&member(Type::Link, name, text, 0));
                let at = blocks.len() - 512;
                blocks[at + 156] = b'1';
                let sum = vdkr_core::tar::header::checksum(blocks[at..].try_into().unwrap());
                blocks[at + 148..at + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
                stream.extend(blocks);
            }
            _ => {
                stream.extend(header(&member(Type::File, name, "", text.len())));
                stream.extend(text.as_bytes());
                stream.extend(&END[..padding(text.len() as u64)]);
            }
        }
    }
    stream.extend(END);
    stream
}

#[test]
fn a_tree_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    let long = "long-".repeat(40);
    fs::create_dir_all(from.join("sub").join(&long)).unwrap();
    fs::write(from.join("a"), b"a\0b").unwrap();
    fs::write(from.join("sub").join(&long).join("big"), vec![7; 300_000]).unwrap();
    fs::write(from.join(".dot"), b"").unwrap();
    symlink("../nowhere", from.join("sub/link")).unwrap();
    fs::set_permissions(from.join("a"), fs::Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(from.join("sub"), fs::Permissions::from_mode(0o555)).unwrap();
    let target = dir.path().join("to");
    fs::create_dir(&target).unwrap();
    to(&target, &packed(&from, "there", false), PLAIN).unwrap();
    let there = target.join("there");
    assert_eq!(fs::read(there.join("a")).unwrap(), b"a\0b");
    assert_eq!(
        fs::metadata(there.join("a")).unwrap().mode() & 0o7777,
        0o751
    );
    assert_eq!(
        fs::metadata(there.join("sub")).unwrap().mode() & 0o7777,
        0o555
    );
    assert_eq!(
        fs::read(there.join("sub").join(&long).join("big")).unwrap(),
        vec![7; 300_000]
    );
    assert_eq!(
        fs::read_link(there.join("sub/link")).unwrap(),
        Path::new("../nowhere")
    );
    assert_eq!(
        fs::metadata(there.join("a")).unwrap().mtime(),
        fs::metadata(from.join("a")).unwrap().mtime()
    );
    for name in ["from", "to/there"] {
        fs::set_permissions(
            dir.path().join(name).join("sub"),
            fs::Permissions::from_mode(0o755),
        )
        .unwrap();
    }
    // Once more over what is there.
    to(&target, &packed(&from, "there", false), PLAIN).unwrap();
    // The content alone.
    to(&target, &packed(&from, ".", false), PLAIN).unwrap();
    assert!(target.join("a").is_file() && target.join(".dot").is_file());
}

#[test]
fn a_link_at_the_end_is_followed_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), b"x").unwrap();
    symlink("file", dir.path().join("link")).unwrap();
    let target = dir.path().join("to");
    fs::create_dir(&target).unwrap();
    to(
        &target,
        &packed(&dir.path().join("link"), "a", false),
        PLAIN,
    )
    .unwrap();
    to(&target, &packed(&dir.path().join("link"), "b", true), PLAIN).unwrap();
    assert!(target.join("a").is_symlink());
    assert_eq!(fs::read(target.join("b")).unwrap(), b"x");
    assert!(!target.join("b").is_symlink());
}

#[test]
fn nothing_gets_outside() {
    for members in [
        &[('f', "../out", "x")][..],
        &[('f', "a/../../out", "x")],
        &[('l', "a", ".."), ('f', "a/out", "x")],
        &[('l', "a", "/"), ('f', "a/out", "x")],
        &[('l', "a", ".."), ('d', "a", ""), ('f', "a/out", "x")],
        &[('h', "a", "../secret")],
        &[('l', "a", ".."), ('h', "b", "a/secret")],
        &[('f', "", "x")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("to");
        fs::create_dir(&target).unwrap();
        fs::write(dir.path().join("secret"), b"s").unwrap();
        assert!(
            to(&target, &archive(members), PLAIN).is_err(),
            "{members:?}"
        );
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{members:?}: {left:?}");
        assert!(fs::symlink_metadata(target.join("b")).is_err());
    }
    // An absolute name means one beneath the target.
    let dir = tempfile::tempdir().unwrap();
    to(dir.path(), &archive(&[('f', "/etc/x", "x")]), PLAIN).unwrap();
    assert_eq!(fs::read(dir.path().join("etc/x")).unwrap(), b"x");
}

#[test]
fn a_hard_link_leads_to_what_is_wanted_only() {
    use std::os::fd::AsFd;
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("private"), b"s").unwrap();
    let take = |members: &[(char, &str, &str)]| {
        let root = fs::File::open(dir.path()).unwrap();
        unpack(&archive(members)[..], root.as_fd(), PLAIN, |name| {
            name.starts_with(b"in").then(|| [b"out", name].concat())
        })
    };
    let refused = take(&[('d', "in", ""), ('h', "in/b", "private")]).unwrap_err();
    assert!(refused.to_string().contains("not part of it"), "{refused}");
    assert!(!dir.path().join("outin/b").exists());
    // Names and targets go the same way.
    take(&[('f', "in/a", "x"), ('h', "in/b", "in/a")]).unwrap();
    let ino = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
    assert_eq!(ino("outin/a"), ino("outin/b"));
}

#[test]
fn a_link_at_the_target_is_replaced_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("to");
    fs::create_dir(&target).unwrap();
    fs::write(dir.path().join("outside"), b"old").unwrap();
    symlink("../outside", target.join("file")).unwrap();
    to(&target, &archive(&[('f', "file", "new")]), PLAIN).unwrap();
    assert_eq!(fs::read(dir.path().join("outside")).unwrap(), b"old");
    assert_eq!(fs::read(target.join("file")).unwrap(), b"new");
}

#[test]
fn directories_and_files_do_not_replace_each_other() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("f"), b"x").unwrap();
    assert!(to(dir.path(), &archive(&[('f', "d", "x")]), PLAIN).is_err());
    assert!(to(dir.path(), &archive(&[('d', "f", "")]), PLAIN).is_err());
    assert!(dir.path().join("d").is_dir() && dir.path().join("f").is_file());
}

#[test]
fn links_on_the_way_are_followed_only_where_they_may() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    let stream = archive(&[('d', "link", ""), ('f', "link/x", "x")]);
    assert!(to(dir.path(), &stream, PLAIN).is_err());
    let follow = Policy {
        follow: true,
        ..PLAIN
    };
    to(dir.path(), &stream, follow).unwrap();
    assert_eq!(fs::read(dir.path().join("real/x")).unwrap(), b"x");
    assert!(dir.path().join("link").is_symlink());
}

#[test]
fn half_an_archive_is_an_error() {
    let whole = archive(&[('f', "a", "some text"), ('f', "b", &"x".repeat(2000))]);
    let dir = tempfile::tempdir().unwrap();
    for length in [1, 511, 513, 1023, 1024 + 7, 1536 + 300, 1536 + 2047] {
        assert!(to(dir.path(), &whole[..length], PLAIN).is_err(), "{length}");
    }
}

/// Does something when a name is written for the first time.
struct Meanwhile<'a> {
    stream: Vec<u8>,
    name: &'a [u8],
    act: Option<Box<dyn FnOnce() + 'a>>,
}

impl std::io::Write for Meanwhile<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.starts_with(self.name)
            && let Some(act) = self.act.take()
        {
            act();
        }
        self.stream.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The members of a directory that is changed when `name` is written.
fn packed_meanwhile(root: &Path, name: &str, act: impl FnOnce()) -> Vec<String> {
    let mut out = Meanwhile {
        stream: Vec::new(),
        name: name.as_bytes(),
        act: Some(Box::new(act)),
    };
    pack(root, ".", false, false, &mut out).unwrap();
    assert!(out.act.is_none(), "{name}");
    members(&out.stream)
}

#[test]
fn a_link_that_comes_meanwhile_leads_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let (root, outside) = (dir.path().join("root"), dir.path().join("outside"));
    let make = || {
        fs::create_dir_all(root.join("d")).unwrap();
        fs::write(root.join("d/a"), b"1").unwrap();
        fs::write(root.join("d/b"), b"12").unwrap();
    };
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("b"), b"123").unwrap();
    fs::write(outside.join("secret"), b"1234").unwrap();
    let swap = || {
        fs::rename(root.join("d"), dir.path().join("was")).unwrap();
        symlink(&outside, root.join("d")).unwrap();
    };
    let expected = [
        "directory ./",
        "directory ./d/",
        "file ./d/a 1",
        "file ./d/b 2",
    ];
    // Before the directory is listed, and before its second file is opened.
    for name in ["./d/", "./d/a"] {
        make();
        assert_eq!(packed_meanwhile(&root, name, swap), expected);
        fs::remove_file(root.join("d")).unwrap();
        fs::remove_dir_all(dir.path().join("was")).unwrap();
    }
    // In the place of a file.
    make();
    let swap = || {
        fs::remove_file(root.join("d/b")).unwrap();
        symlink(outside.join("secret"), root.join("d/b")).unwrap();
    };
    let link = format!("link ./d/b -> {}", outside.join("secret").display());
    let found = packed_meanwhile(&root, "./d/a", swap);
    assert_eq!(found[..3], expected[..3]);
    assert_eq!(found[3..], [link]);
}

#[test]
fn what_changes_all_the_time_is_what_it_was_or_an_error() {
    use std::sync::atomic::{AtomicBool, Ordering};
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    fs::write(root.join("file"), b"in.").unwrap();
    fs::write(dir.path().join("secret"), b"out").unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (next, file) = (root.join("next"), root.join("file"));
            while !stop.load(Ordering::Relaxed) {
                fifo(&next);
                fs::rename(&next, &file).unwrap();
                symlink("../secret", &next).unwrap();
                fs::rename(&next, &file).unwrap();
                fs::write(&next, b"in.").unwrap();
                fs::rename(&next, &file).unwrap();
            }
        });
        let mut is_outside = false;
        for _ in 0..2000 {
            let mut stream = Vec::new();
            // It may change too often to be read at all.
            if pack(&root, ".", false, false, &mut stream).is_ok() {
                // As many bytes as the file inside has.
                is_outside |= stream.windows(3).any(|window| window == b"out");
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(!is_outside);
    });
}

#[test]
fn a_tree_that_is_too_deep_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let deep = dir.path().join("d/".repeat(511));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), b"x").unwrap();
    assert_eq!(members(&packed(dir.path(), ".", false)).len(), 513);
    fs::create_dir(deep.join("d")).unwrap();
    let error = pack(dir.path(), ".", false, false, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("nest more than 512"), "{error}");
}

proptest! {
    #[test]
    fn any_stream_is_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0..3000_usize, byte in any::<u8>()) {
        let dir = tempfile::tempdir().unwrap();
        let _ = to(dir.path(), &bytes, PLAIN);
        let mut stream = archive(&[('d', "d", ""), ('f', "d/a", "some text"), ('l', "l", "d/a")]);
        let length = stream.len();
        stream[at % length] = byte;
        let target = dir.path().join("to");
        fs::create_dir_all(&target).unwrap();
        let _ = to(&target, &stream, PLAIN);
    }
}

/// Members of an archive as `kind name [-> link]`, with their attributes.
fn members(stream: &[u8]) -> Vec<String> {
    use crate::layer::archive::{Archive, Kind};
    let mut archive = Archive::new(stream);
    let mut found = Vec::new();
    while let Some(member) = archive.next_member().unwrap() {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let name = text(&member.name);
        let mut line = match &member.kind {
            Kind::File => format!("file {name} {}", member.stored),
            Kind::Directory => format!("directory {name}"),
            Kind::Symlink(to) => format!("link {name} -> {}", text(to)),
            Kind::HardLink(to) => format!("again {name} -> {}", text(to)),
            other => format!("{other:?} {name}"),
        };
        for (key, value) in &member.xattrs {
            line += &format!(" {}={}", text(key), text(value));
        }
        found.push(line);
    }
    found
}

#[test]
fn a_root_keeps_links_queues_and_attributes() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("d/a"), b"abc").unwrap();
    fs::hard_link(root.join("d/a"), root.join("d/b")).unwrap();
    symlink("../a", root.join("d/link")).unwrap();
    fs::hard_link(root.join("d/link"), root.join("d/link2")).unwrap();
    fifo(&root.join("queue"));
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    let kept = rustix::fs::lsetxattr(root.join("d/a"), "user.note", b"x y", flags).is_ok();
    let mut stream = Vec::new();
    pack_root(root, &mut stream).unwrap();
    let note = if kept { " user.note=x y" } else { "" };
    assert_eq!(
        members(&stream),
        [
            "directory d/".to_owned(),
            format!("file d/a 3{note}"),
            "again d/b -> d/a".to_owned(),
            "link d/link -> ../a".to_owned(),
            "again d/link2 -> d/link".to_owned(),
            "Fifo queue".to_owned(),
        ]
    );
}

fn fifo(path: &Path) {
    let kind = rustix::fs::FileType::Fifo;
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, path, kind, mode, 0).unwrap();
}

#[test]
fn changes_say_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path();
    fs::create_dir_all(upper.join("etc/sub")).unwrap();
    fs::write(upper.join("etc/new"), b"1").unwrap();
    fs::write(upper.join("etc/hosts"), b"").unwrap();
    let kind = rustix::fs::FileType::CharacterDevice;
    let none = rustix::fs::Mode::empty();
    let gone = upper.join("etc/gone");
    // Linux lets anyone make this one device (since 5.8).
    rustix::fs::mknodat(rustix::fs::CWD, &gone, kind, none, 0).unwrap();
    let mut stream = Vec::new();
    let skip = |step: &Step<'_>| step.name == b"etc/hosts";
    pack_changes(upper, &skip, &mut stream).unwrap();
    assert_eq!(
        members(&stream),
        [
            "directory etc/",
            "file etc/.wh.gone 0",
            "file etc/new 1",
            "directory etc/sub/"
        ]
    );
    let flags = rustix::fs::XattrFlags::empty();
    let opaque = "trusted.overlay.opaque";
    if rustix::fs::lsetxattr(upper.join("etc/sub"), opaque, b"y", flags).is_ok() {
        let mut stream = Vec::new();
        pack_changes(upper, &skip, &mut stream).unwrap();
        let last = members(&stream).pop();
        assert_eq!(last.as_deref(), Some("file etc/sub/.wh..wh..opq 0"));
        let moved = "trusted.overlay.redirect";
        rustix::fs::lsetxattr(upper.join("etc/sub"), moved, b"/x", flags).unwrap();
        let error = pack_changes(upper, &skip, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("redirect"), "{error}");
    }
}
