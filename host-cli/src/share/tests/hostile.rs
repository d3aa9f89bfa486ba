//! What a guest that means harm is refused: other files, more than its share, rights.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use super::*;

#[test]
fn nothing_outside_can_be_named() {
    let mut kernel = Kernel::new();
    for name in [
        "..",
        ".",
        "../outside",
        "/etc/passwd",
        "a/../../outside",
        "",
    ] {
        assert_eq!(kernel.lookup(1, name), Err(EINVAL), "{name}");
        for opcode in [10, 11] {
            assert_eq!(kernel.ask(opcode, 1, &text(name)), Err(EINVAL));
        }
        assert_eq!(kernel.create(1, name, O_RDWR, 0o644), Err(EINVAL));
        let renamed = joined(&words(&[1]), &joined(&text("x"), &text(name)));
        assert_eq!(kernel.ask(12, 1, &renamed), Err(EINVAL));
    }
    // Numbers that were never given lead nowhere.
    for node in [0, 2, 99, u64::MAX] {
        assert_eq!(kernel.lookup(node, "x"), Err(ESTALE));
        assert_eq!(kernel.open(node, 0), Err(ESTALE));
        assert_eq!(kernel.attr(node), Err(ESTALE));
    }
    assert_eq!(kernel.read(77, 0, 1), Err(EBADF));
}

#[test]
fn links_are_the_guests_to_follow() {
    let mut kernel = Kernel::new();
    symlink(kernel.place.path().join("outside"), kernel.path("out")).unwrap();
    symlink("..", kernel.path("up")).unwrap();
    symlink("/", kernel.path("root")).unwrap();
    let out = kernel.lookup(1, "out").unwrap();
    assert_eq!(out.mode & 0o170_000, 0o120_000);
    let target = kernel.ask(5, out.node, &[]).unwrap();
    assert_eq!(
        target,
        kernel
            .place
            .path()
            .join("outside")
            .as_os_str()
            .as_encoded_bytes()
    );
    assert_eq!(kernel.open(out.node, O_RDWR), Err(ELOOP));
    // Neither truncated nor changed through the link.
    let mut set = words(&[8 | 1, 0, 0, 0, 0, 0, 0]);
    set.extend([0; 32]);
    assert_eq!(kernel.ask(4, out.node, &set), Err(ELOOP));
    set[..4].copy_from_slice(&1_u32.to_le_bytes());
    assert_eq!(kernel.ask(4, out.node, &set), Err(EOPNOTSUPP));
    for name in ["up", "root"] {
        let link = kernel.lookup(1, name).unwrap();
        assert!(kernel.lookup(link.node, "outside").is_err());
        assert!(kernel.lookup(link.node, "etc").is_err());
        assert!(kernel.create(link.node, "made", O_RDWR, 0o644).is_err());
        assert!(kernel.ask(27, link.node, &words(&[0])).is_err());
        assert!(kernel.ask(10, link.node, &text("outside")).is_err());
    }
    // A file that is made where a link is: the link is not followed.
    assert_eq!(kernel.create(1, "out", O_RDWR, 0o644).map(drop), Err(ELOOP));
    assert_eq!(
        fs::read(kernel.place.path().join("outside")).unwrap(),
        b"secret"
    );

    let made = joined(&text("made"), &text("/etc/shadow"));
    let made = found(&kernel.ask(6, 1, &made).unwrap());
    assert_eq!(kernel.ask(5, made.node, &[]).unwrap(), b"/etc/shadow");
    assert_eq!(
        fs::read_link(kernel.path("made")).unwrap(),
        Path::new("/etc/shadow")
    );
}

#[test]
fn a_directory_that_is_exchanged_for_a_link_leads_nowhere() {
    // Handles are given back at once, so that every step goes by name again.
    let mut kernel = Kernel::with(
        false,
        Limits {
            held: 0,
            ..Limits::default()
        },
    );
    fs::create_dir(kernel.path("dir")).unwrap();
    fs::write(kernel.path("dir/outside"), "inside").unwrap();
    let dir = kernel.lookup(1, "dir").unwrap();
    let file = kernel.lookup(dir.node, "outside").unwrap();
    kernel.server.nodes().give_back(0);
    kernel.server.nodes().give_back(0);
    fs::rename(kernel.path("dir"), kernel.path("old")).unwrap();
    symlink(kernel.place.path(), kernel.path("dir")).unwrap();
    assert_eq!(kernel.open(file.node, 0), Err(ESTALE));
    assert_eq!(kernel.lookup(dir.node, "outside"), Err(ESTALE));
    // Another file of the same name is another file.
    fs::remove_file(kernel.path("dir")).unwrap();
    fs::create_dir(kernel.path("dir")).unwrap();
    fs::write(kernel.path("dir/outside"), "another").unwrap();
    assert_eq!(kernel.open(file.node, 0), Err(ESTALE));
    // The old one is found under its new name.
    let old = kernel.lookup(1, "old").unwrap();
    assert_eq!(old.node, dir.node);
    let handle = kernel.open(file.node, 0).unwrap();
    assert_eq!(kernel.read(handle, 0, 10).unwrap(), b"inside");
}

#[test]
fn a_guest_that_takes_all_gets_errors() {
    let limits = Limits {
        nodes: 20,
        held: 5,
        nameless: 3,
        handles: 4,
    };
    let mut kernel = Kernel::with(false, limits);
    for i in 0..30 {
        fs::write(kernel.path(&format!("f{i}")), "x").unwrap();
    }
    let found: Vec<_> = (0..30)
        .map(|i| kernel.lookup(1, &format!("f{i}")))
        .collect();
    assert_eq!(found.iter().filter(|found| found.is_ok()).count(), 20);
    assert_eq!(found[29], Err(ENFILE));
    // A listing still shows every name.
    for plus in [false, true] {
        assert_eq!(kernel.list(1, 4096, plus).len(), 30);
    }
    let node = found[0].unwrap().node;
    let handles: Vec<u64> = (0..4).map(|_| kernel.open(node, 0).unwrap()).collect();
    assert_eq!(kernel.open(node, 0), Err(ENFILE));
    assert_eq!(kernel.ask(27, 1, &words(&[0])), Err(ENFILE));
    assert_eq!(kernel.create(1, "new", O_RDWR, 0o644), Err(ENFILE));
    assert!(!kernel.path("new").exists());
    kernel.ask(18, node, &words(&[handles[0], 0, 0])).unwrap();
    assert!(kernel.open(node, 0).is_ok());
    // Files that lost their names are kept while there is room for them.
    for i in 1..15 {
        kernel.ask(10, 1, &text(&format!("f{i}"))).unwrap();
    }
    let reached = (1..15)
        .filter(|&i| kernel.attr(found[i].unwrap().node).is_ok())
        .count();
    assert!((3..=8).contains(&reached), "{reached} are held");
}

#[test]
fn nothing_is_changed_where_it_may_only_be_read() {
    let mut kernel = Kernel::with(true, Limits::default());
    fs::write(kernel.path("file"), "content").unwrap();
    fs::create_dir(kernel.path("dir")).unwrap();
    let file = kernel.lookup(1, "file").unwrap();
    let handle = kernel.open(file.node, 0).unwrap();
    assert_eq!(kernel.read(handle, 0, 50).unwrap(), b"content");
    for flags in [1, O_RDWR, 0o1000] {
        assert_eq!(kernel.open(file.node, flags), Err(EROFS));
    }
    let two = joined(&text("file"), &text("x"));
    for (opcode, body) in [
        (4, joined(&words(&[1, 0, 0, 0, 0, 0, 0]), &[0; 32])),
        (6, two.clone()),
        (8, joined(&words(&[0o100_644, 0]), &text("x"))),
        (9, joined(&words(&[0o755]), &text("x"))),
        (10, text("file")),
        (11, text("dir")),
        (12, joined(&words(&[1]), &two)),
        (13, joined(&words(&[file.node]), &text("x"))),
        (16, joined(&words(&[handle, 0, 1, 0, 0]), b"x")),
        (21, joined(&words(&[1]), &joined(&text("user.x"), b"1"))),
        (24, text("user.x")),
        (35, joined(&words(&[0, 0]), &text("x"))),
        (43, words(&[handle, 0, 100, 0])),
        (45, joined(&words(&[1, 0]), &two)),
        (47, words(&[handle, 0, 0, handle, 0, 1, 0])),
    ] {
        assert_eq!(kernel.ask(opcode, 1, &body), Err(EROFS), "{opcode}");
    }
    assert_eq!(fs::read(kernel.path("file")).unwrap(), b"content");
    assert_eq!(fs::read_dir(kernel.path("")).unwrap().count(), 2);
}

#[test]
fn attributes_are_set_and_bits_that_give_rights_are_not() {
    let mut kernel = Kernel::new();
    fs::write(kernel.path("file"), "0123456789").unwrap();
    let file = kernel.lookup(1, "file").unwrap();
    let mut set = |valid: u32, mode: u32| {
        let mut body = words(&[u64::from(valid), 0, 4, 0, 1000, 2000, 0]);
        for field in [5_u32, 6, 0, mode, 0, 1234, 1234, 0] {
            body.extend(field.to_le_bytes());
        }
        let answer = kernel.ask(4, file.node, &body).unwrap();
        attributes(file.node, &answer[16..])
    };
    assert_eq!(set(1, 0o6755).mode, 0o100_755);
    assert_eq!(set(8, 0).size, 4);
    assert_eq!(set(16 | 32, 0).mtime, 2000);
    // Owners stay as they are.
    let owned = set(2 | 4, 0);
    assert_eq!((owned.uid, owned.gid), (0, 0));
    let meta = fs::metadata(kernel.path("file")).unwrap();
    assert_eq!(
        (meta.mtime(), meta.mtime_nsec(), meta.atime()),
        (2000, 6, 1000)
    );

    // A bit that was there goes with a write that asks for it.
    fs::set_permissions(kernel.path("file"), fs::Permissions::from_mode(0o4755)).unwrap();
    let handle = kernel.open(file.node, 1).unwrap();
    kernel.write(handle, 0, b"x", 1 << 2).unwrap();
    assert_eq!(
        fs::metadata(kernel.path("file")).unwrap().mode() & 0o7777,
        0o755
    );
    let made = kernel.create(1, "setuid", O_RDWR, 0o6777).unwrap().0;
    assert_eq!(made.mode, 0o100_777);
    // No devices.
    for mode in [0o20_666_u64, 0o60_666] {
        let body = joined(&words(&[mode | 0x0103 << 32, 0]), &text("dev"));
        assert_eq!(kernel.ask(8, 1, &body), Err(1));
    }
}

#[test]
fn only_attributes_of_users_can_be_had() {
    let mut kernel = Kernel::new();
    fs::write(kernel.path("file"), "x").unwrap();
    let node = kernel.lookup(1, "file").unwrap().node;
    let set = |name: &str| joined(&words(&[5]), &joined(&text(name), b"value"));
    for name in [
        "security.capability",
        "trusted.x",
        "system.posix_acl_access",
    ] {
        assert_eq!(kernel.ask(21, node, &set(name)), Err(EOPNOTSUPP));
        let get = joined(&words(&[100]), &text(name));
        assert_eq!(kernel.ask(22, node, &get), Err(EOPNOTSUPP));
        assert_eq!(kernel.ask(24, node, &text(name)), Err(EOPNOTSUPP));
    }
    match kernel.ask(21, node, &set("user.note")) {
        Ok(_) => {}
        // A file system without them says so.
        Err(error) => return assert_eq!(error, EOPNOTSUPP),
    }
    let get = |size: u64| joined(&words(&[size]), &text("user.note"));
    assert_eq!(word(&kernel.ask(22, node, &get(0)).unwrap(), 0), 5);
    assert_eq!(kernel.ask(22, node, &get(100)).unwrap(), b"value");
    assert_eq!(kernel.ask(22, node, &get(3)), Err(34));
    assert_eq!(word(&kernel.ask(23, node, &words(&[0])).unwrap(), 0), 10);
    assert_eq!(
        kernel.ask(23, node, &words(&[100])).unwrap(),
        b"user.note\0"
    );
    assert_eq!(kernel.ask(23, node, &words(&[4])), Err(34));
    kernel.ask(24, node, &text("user.note")).unwrap();
    assert_eq!(kernel.ask(22, node, &get(100)), Err(61));
}

#[test]
fn pipes_sockets_and_devices_are_not_opened_here() {
    let mut kernel = Kernel::new();
    for (name, mode) in [("pipe", 0o10_644_u64), ("socket", 0o140_644)] {
        let body = joined(&words(&[mode, 0]), &text(name));
        let node = found(&kernel.ask(8, 1, &body).unwrap()).node;
        // Else this would wait for a reader for ever.
        assert_eq!(kernel.open(node, 1), Err(6));
    }
    let error = Source::open(&kernel.path("pipe")).unwrap_err();
    assert!(error.to_string().contains("neither"), "{error}");
    let missing = Source::open(&kernel.path("nothing")).unwrap_err();
    assert!(missing.to_string().starts_with("volume source not found: "));
    assert!(missing.hint().unwrap().contains("mkdir -p"));
}
