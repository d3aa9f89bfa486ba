//! A scripted kernel against the server.

use std::{fs, os::unix::fs::MetadataExt as _};

use super::{budget::Budget, *};
use kernel::{Kernel, attributes, found, joined, text, word, words};

mod budget;
mod hostile;
mod kernel;

const ENOENT: i32 = 2;
const EBADF: i32 = 9;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const ENFILE: i32 = 23;
const EROFS: i32 = 30;
const ENOSYS: i32 = 38;
const ELOOP: i32 = 40;
const EOPNOTSUPP: i32 = 95;
const ESTALE: i32 = 116;
const O_RDWR: u32 = 2;
const O_CREAT: u32 = 0o100;
const O_APPEND: u32 = 0o2000;

#[test]
fn files_are_made_written_and_read_both_ways() {
    let mut kernel = Kernel::new();
    let (file, handle) = kernel.create(1, "new", O_RDWR, 0o640).unwrap();
    assert_eq!(
        (file.mode, file.size, file.uid, file.gid),
        (0o100_640, 0, 0, 0)
    );
    assert_eq!(kernel.write(handle, 0, b"from the guest", 0), Ok(14));
    assert_eq!(fs::read(kernel.path("new")).unwrap(), b"from the guest");
    assert_eq!(
        fs::metadata(kernel.path("new")).unwrap().mode() & 0o7777,
        0o640
    );

    fs::write(kernel.path("new"), "from the host, longer").unwrap();
    assert_eq!(kernel.read(handle, 5, 1000).unwrap(), b"the host, longer");
    assert_eq!(kernel.read(handle, 500, 1000).unwrap(), b"");
    assert_eq!(kernel.attr(file.node).unwrap().size, 21);
    kernel.ask(18, file.node, &words(&[handle, 0, 0])).unwrap();
    assert_eq!(kernel.read(handle, 0, 1), Err(EBADF));

    // A megabyte in one piece.
    let big: Vec<u8> = (0..1_u32 << 20).map(|i| (i % 251) as u8).collect();
    let handle = kernel.open(file.node, O_RDWR).unwrap();
    assert_eq!(kernel.write(handle, 0, &big, 0), Ok(1 << 20));
    assert!(kernel.read(handle, 0, 1 << 20).unwrap() == big);
    // No more than that, whatever is asked for.
    assert_eq!(
        kernel.read(handle, 0, u64::from(u32::MAX)).unwrap().len(),
        1 << 20
    );
    assert_eq!(kernel.read(handle, u64::MAX, 8), Err(EINVAL));
}

#[test]
fn the_mask_of_this_process_is_not_the_guests() {
    let mut kernel = Kernel::new();
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let made = [
        kernel.create(1, "file", O_RDWR, 0o666).map(|made| made.0),
        kernel
            .ask(9, 1, &joined(&words(&[0o777]), &text("dir")))
            .map(|entry| found(&entry)),
        kernel
            .ask(8, 1, &joined(&words(&[0o10_666, 0]), &text("pipe")))
            .map(|entry| found(&entry)),
    ];
    rustix::process::umask(before);
    let modes = made.map(|made| made.unwrap().mode);
    assert_eq!(modes, [0o100_666, 0o40_777, 0o10_666]);
}

#[test]
fn many_files_take_few_handles() {
    let limits = Limits {
        held: 10,
        ..Limits::default()
    };
    let mut kernel = Kernel::with(false, limits);
    fs::create_dir_all(kernel.path("a/b/c")).unwrap();
    let dir = kernel.walk("a/b/c");
    let nodes: Vec<u64> = (0..200)
        .map(|i| {
            let name = format!("f{i}");
            fs::write(kernel.path("a/b/c").join(&name), name.as_bytes()).unwrap();
            kernel.lookup(dir.node, &name).unwrap().node
        })
        .collect();
    let (known, open) = kernel.server.nodes().counts();
    assert_eq!(known, 203);
    assert!(open <= 11, "{open} are open");
    for (i, node) in nodes.iter().enumerate() {
        let handle = kernel.open(*node, 0).unwrap();
        assert_eq!(
            kernel.read(handle, 0, 10).unwrap(),
            format!("f{i}").as_bytes()
        );
        kernel.ask(18, *node, &words(&[handle, 0, 0])).unwrap();
    }
    let mut forgets = words(&[200]);
    for node in nodes {
        forgets.extend(words(&[node, 1]));
    }
    assert_eq!(kernel.send(42, 0, &forgets), None);
    assert_eq!(kernel.send(2, dir.node, &words(&[u64::MAX])), None);
    assert_eq!(kernel.server.nodes().counts().0, 2);
    assert_eq!(kernel.attr(dir.node), Err(ESTALE));
    // The root stays.
    kernel.send(2, 1, &words(&[u64::MAX]));
    assert!(kernel.attr(1).is_ok());
}

#[test]
fn what_is_removed_while_it_is_open_stays_until_it_is_closed() {
    let mut kernel = Kernel::with(
        false,
        Limits {
            held: 0,
            ..Limits::default()
        },
    );
    let (file, handle) = kernel.create(1, "gone", O_RDWR, 0o600).unwrap();
    kernel.write(handle, 0, b"still there", 0).unwrap();
    kernel.ask(10, 1, &text("gone")).unwrap();
    assert!(!kernel.path("gone").exists());
    assert_eq!(kernel.read(handle, 0, 50).unwrap(), b"still there");
    assert_eq!(kernel.attr(file.node).unwrap().nlink, 0);
    // Overwritten by a rename, likewise.
    let (old, _) = kernel.create(1, "old", O_RDWR, 0o600).unwrap();
    let (new, _) = kernel.create(1, "new", O_RDWR, 0o600).unwrap();
    let moved = joined(&words(&[1]), &joined(&text("new"), &text("old")));
    kernel.ask(12, 1, &moved).unwrap();
    assert_eq!(kernel.attr(old.node).unwrap().nlink, 0);
    assert_eq!(kernel.lookup(1, "old").unwrap().node, new.node);
    // A removal that fails changes nothing.
    assert_eq!(kernel.ask(11, 1, &text("old")), Err(20));
    assert_eq!(kernel.attr(new.node).unwrap().nlink, 1);
    assert_eq!(kernel.ask(10, 1, &text("never was")), Err(ENOENT));
}

#[test]
fn renames_move_exchange_and_refuse() {
    let mut kernel = Kernel::with(
        false,
        Limits {
            held: 0,
            ..Limits::default()
        },
    );
    fs::create_dir_all(kernel.path("dir/deep")).unwrap();
    fs::write(kernel.path("dir/deep/file"), "content").unwrap();
    fs::write(kernel.path("other"), "other").unwrap();
    let file = kernel.walk("dir/deep/file");
    let rename = |flags: u64, from: &str, to: &str| {
        joined(&words(&[1, flags]), &joined(&text(from), &text(to)))
    };
    kernel.ask(45, 1, &rename(0, "dir", "moved")).unwrap();
    let handle = kernel.open(file.node, 0).unwrap();
    assert_eq!(kernel.read(handle, 0, 50).unwrap(), b"content");
    // RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT.
    assert_eq!(kernel.ask(45, 1, &rename(1, "moved", "other")), Err(EEXIST));
    let other = kernel.lookup(1, "other").unwrap();
    kernel.ask(45, 1, &rename(2, "moved", "other")).unwrap();
    assert_eq!(
        fs::read(kernel.path("other/deep/file")).unwrap(),
        b"content"
    );
    assert_eq!(kernel.lookup(1, "moved").unwrap().node, other.node);
    let handle = kernel.open(file.node, 0).unwrap();
    assert_eq!(kernel.read(handle, 0, 50).unwrap(), b"content");
    assert_eq!(kernel.ask(45, 1, &rename(4, "moved", "x")), Err(EINVAL));
}

#[test]
fn directories_are_listed_whole_in_pieces() {
    let mut kernel = Kernel::new();
    let mut expected: Vec<String> = (0..500)
        .map(|i| format!("{}{i}", "x".repeat(i % 90)))
        .collect();
    expected.push(".hidden".to_owned());
    expected.push(".git".to_owned());
    for name in &expected {
        fs::write(kernel.path(name), name).unwrap();
    }
    expected.sort();
    for (size, plus) in [
        (4096, false),
        (4096, true),
        (1 << 20, false),
        (65_536, true),
    ] {
        assert_eq!(kernel.list(1, size, plus), expected);
    }
    // Each listing with attributes counts; forgetting as often leaves nothing.
    let (known, _) = kernel.server.nodes().counts();
    assert_eq!(known, expected.len());
    for name in &expected {
        let node = kernel.lookup(1, name).unwrap().node;
        kernel.send(2, node, &words(&[3]));
    }
    assert_eq!(kernel.server.nodes().counts().0, 0);
    // A directory that is removed while it is listed ends.
    fs::create_dir(kernel.path("dir")).unwrap();
    let dir = kernel.lookup(1, "dir").unwrap();
    let handle = word(&kernel.ask(27, dir.node, &words(&[0])).unwrap(), 0);
    fs::remove_dir(kernel.path("dir")).unwrap();
    let left = kernel.ask(28, dir.node, &words(&[handle, 0, 4096, 0, 0]));
    assert_eq!(left, Ok(Vec::new()));
}

#[test]
fn writers_on_both_sides_append() {
    use std::io::Write as _;
    let mut kernel = Kernel::new();
    let (_, handle) = kernel.create(1, "log", 1 | O_APPEND, 0o644).unwrap();
    let mut host = fs::File::options()
        .append(true)
        .open(kernel.path("log"))
        .unwrap();
    kernel.write(handle, 0, b"guest 1\n", 0).unwrap();
    host.write_all(b"host\n").unwrap();
    // The guest's idea of the end is out of date.
    kernel.write(handle, 8, b"guest 2\n", 0).unwrap();
    assert_eq!(
        fs::read(kernel.path("log")).unwrap(),
        b"guest 1\nhost\nguest 2\n"
    );
    // What comes from its page cache has its place.
    kernel.write(handle, 0, b"GUEST", 1).unwrap();
    assert_eq!(
        fs::read(kernel.path("log")).unwrap(),
        b"GUEST 1\nhost\nguest 2\n"
    );
}

#[test]
fn one_file_can_be_shared() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("file");
    fs::write(&path, "content").unwrap();
    let source = Source::open(&path).unwrap();
    assert!(!source.is_directory());
    let server = Server::new(source, false, Limits::default()).unwrap();
    let mut kernel = Kernel {
        place,
        server,
        unique: 0,
    };
    assert_eq!(kernel.attr(1).unwrap().mode & 0o170_000, 0o100_000);
    let handle = kernel.open(1, O_RDWR).unwrap();
    kernel.write(handle, 0, b"CON", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"CONtent");
    assert!(kernel.lookup(1, "x").is_err());
    assert!(kernel.ask(27, 1, &words(&[0])).is_err());
}

#[test]
fn hard_links_copies_holes_and_space() {
    let mut kernel = Kernel::new();
    let (file, handle) = kernel.create(1, "file", O_RDWR, 0o644).unwrap();
    kernel.write(handle, 0, b"content", 0).unwrap();
    let linked = joined(&words(&[file.node]), &text("linked"));
    let linked = found(&kernel.ask(13, 1, &linked).unwrap());
    assert_eq!((linked.node, linked.nlink), (file.node, 2));
    let (_, copy) = kernel.create(1, "copy", O_RDWR, 0o644).unwrap();
    let body = words(&[handle, 2, 0, copy, 0, 100, 0]);
    assert_eq!(word(&kernel.ask(47, 1, &body).unwrap(), 0), 5);
    assert_eq!(fs::read(kernel.path("copy")).unwrap(), b"ntent");
    match kernel.ask(43, 1, &words(&[copy, 0, 100_000, 0])) {
        Ok(_) => assert_eq!(fs::metadata(kernel.path("copy")).unwrap().len(), 100_000),
        Err(error) => assert_eq!(error, EOPNOTSUPP),
    }
    assert_eq!(
        kernel.ask(43, 1, &words(&[copy, 0, 100, 0x40])),
        Err(EOPNOTSUPP)
    );
    assert_eq!(
        word(&kernel.ask(46, 1, &words(&[handle, 0, 3])).unwrap(), 0),
        0
    );
    assert_eq!(
        word(&kernel.ask(46, 1, &words(&[handle, 0, 4])).unwrap(), 0),
        7
    );
    assert_eq!(kernel.ask(46, 1, &words(&[handle, 0, 2])), Err(EINVAL));
    assert!(word(&kernel.ask(17, 1, &[]).unwrap(), 0) > 0);
    for opcode in [20, 30] {
        kernel.ask(opcode, 1, &words(&[handle, 1])).unwrap();
    }
    kernel.ask(25, 1, &words(&[handle, 0, 0])).unwrap();
}

#[test]
fn versions_are_agreed_on_and_what_is_not_served_is_said() {
    let mut kernel = Kernel::new();
    let init = |minor: u64, flags: u64| words(&[7 | minor << 32, 0x20000 | flags << 32]);
    let answer = kernel.ask(26, 0, &init(45, 0xffff_ffff)).unwrap();
    assert_eq!(word(&answer, 0), 7 | 35 << 32);
    assert_eq!(word(&answer, 16) >> 32, 1 << 20, "a megabyte in one write");
    // Neither a cache of writes nor locks.
    assert_eq!(word(&answer, 8) >> 32 & (1 << 16 | 1 << 1 | 1 << 10), 0);
    let answer = kernel.ask(26, 0, &init(27, 0)).unwrap();
    assert_eq!(
        (word(&answer, 0) >> 32, word(&answer, 16) >> 32),
        (27, 128 << 10)
    );
    assert!(kernel.ask(26, 0, &init(8, 0)).is_err());
    for opcode in [31, 33, 34, 37, 39, 40, 48, 50, 51, 4096] {
        assert_eq!(kernel.ask(opcode, 1, &[0; 200]), Err(ENOSYS));
    }
    assert_eq!(kernel.send(36, 0, &words(&[1])), None);
    kernel.ask(38, 0, &[]).unwrap();
    assert!(kernel.server.answer(&[0; 16]).is_err());
}

#[test]
fn what_the_guest_has_cached_is_good_as_long_as_nothing_changed() {
    let mut kernel = Kernel::new();
    let path = kernel.path("file");
    fs::write(&path, "one").unwrap();
    let node = kernel.lookup(1, "file").unwrap().node;
    let open = |kernel: &mut Kernel| {
        let answer = kernel.ask(14, node, &words(&[0])).unwrap();
        word(&answer, 8) & 2 != 0
    };
    assert!(!open(&mut kernel));
    // It changed just now, and might again within the same tick.
    assert!(!open(&mut kernel));
    let settled = kernel.attr(node).unwrap().mtime + 3;
    while std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .unwrap()
        .as_secs()
        < settled
    {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    // What it was like at that open is worth nothing: it may have changed right behind it.
    assert!(!open(&mut kernel));
    assert!(open(&mut kernel));
    fs::write(&path, "two").unwrap();
    assert!(!open(&mut kernel));
}

#[test]
fn several_threads_at_a_time() {
    let kernel = Kernel::new();
    let server = &kernel.server;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for round in 0..100_u64 {
                    let name = text(&format!("f{}", (thread + round) % 5));
                    let mut message = Vec::new();
                    let opcodes = [1_u32, 35, 10, 1];
                    let opcode = opcodes[usize::try_from(round % 4).unwrap()];
                    let head = if opcode == 35 {
                        words(&[0o102 | 0o644 << 32, 0])
                    } else {
                        vec![]
                    };
                    let body = joined(&head, &name);
                    message.extend(u32::try_from(40 + body.len()).unwrap().to_le_bytes());
                    message.extend(opcode.to_le_bytes());
                    message.extend(words(&[round, 1, 0, 0]));
                    message.extend(body);
                    let answer = server.answer(&message).unwrap().unwrap();
                    if opcode == 35 && answer.len() > 16 {
                        server.release(word(&answer, 16 + 128));
                    }
                }
            });
        }
    });
}
