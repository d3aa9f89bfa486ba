//! A scripted kernel against the server.

use std::{
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use super::{budget::Budget, *};

mod budget;

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

/// A kernel that asks one thing after the other.
struct Kernel {
    place: tempfile::TempDir,
    server: Server,
    unique: u64,
}

type Asked<T = Vec<u8>> = Result<T, i32>;

impl Kernel {
    fn new() -> Self {
        Self::with(false, Limits::default())
    }

    /// `shared` is served; `outside` beside it is not.
    fn with(read_only: bool, limits: Limits) -> Self {
        Self::with_budget(read_only, limits, Budget::new(1000))
    }

    fn with_budget(read_only: bool, limits: Limits, budget: std::sync::Arc<Budget>) -> Self {
        let place = tempfile::tempdir().unwrap();
        fs::create_dir(place.path().join("shared")).unwrap();
        fs::write(place.path().join("outside"), "secret").unwrap();
        let source = Source::open(&place.path().join("shared")).unwrap();
        let server = Server::with_budget(source, read_only, limits, budget).unwrap();
        let unique = 0;
        Self {
            place,
            server,
            unique,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join("shared").join(name)
    }

    fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<Vec<u8>> {
        self.unique += 1;
        let mut message = Vec::new();
        let length = u32::try_from(40 + body.len()).unwrap();
        message.extend(length.to_le_bytes());
        message.extend(opcode.to_le_bytes());
        message.extend(self.unique.to_le_bytes());
        message.extend(node.to_le_bytes());
        message.extend([0; 16]);
        message.extend(body);
        self.server.answer(&message).unwrap()
    }

    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Asked {
        let answer = self.send(opcode, node, body).expect("an answer");
        assert_eq!(
            u32::from_le_bytes(answer[..4].try_into().unwrap()) as usize,
            answer.len()
        );
        assert_eq!(answer[8..16], self.unique.to_le_bytes());
        match i32::from_le_bytes(answer[4..8].try_into().unwrap()) {
            0 => Ok(answer[16..].to_vec()),
            error => {
                assert_eq!(answer.len(), 16);
                Err(-error)
            }
        }
    }

    fn lookup(&mut self, node: u64, name: &str) -> Asked<Found> {
        self.ask(1, node, &text(name)).map(|entry| found(&entry))
    }

    /// Looks a path of several names up.
    fn walk(&mut self, path: &str) -> Found {
        let mut at = Found {
            node: 1,
            ..Found::default()
        };
        for name in path.split('/') {
            at = self.lookup(at.node, name).unwrap();
        }
        at
    }

    fn open(&mut self, node: u64, flags: u32) -> Asked<u64> {
        self.ask(14, node, &words(&[u64::from(flags)]))
            .map(|answer| word(&answer, 0))
    }

    fn create(&mut self, node: u64, name: &str, flags: u32, mode: u32) -> Asked<(Found, u64)> {
        let mut body = words(&[u64::from(flags | O_CREAT) | u64::from(mode) << 32, 0]);
        body.extend(text(name));
        let answer = self.ask(35, node, &body)?;
        Ok((found(&answer), word(&answer, 128)))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u64) -> Asked {
        self.ask(15, 0, &words(&[handle, offset, size, 0, 0]))
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8], flags: u64) -> Asked<u64> {
        let mut body = words(&[handle, offset, data.len() as u64 | flags << 32, 0, 0]);
        body.extend(data);
        self.ask(16, 0, &body).map(|answer| word(&answer, 0))
    }

    fn attr(&mut self, node: u64) -> Asked<Found> {
        let answer = self.ask(3, node, &words(&[0, 0]))?;
        Ok(attributes(node, &answer[16..]))
    }

    /// Names of a directory, read in pieces of so many bytes.
    fn list(&mut self, node: u64, size: u64, plus: bool) -> Vec<String> {
        let handle = word(&self.ask(27, node, &words(&[0])).unwrap(), 0);
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let opcode = if plus { 44 } else { 28 };
            let body = words(&[handle, offset, size, 0, 0]);
            let piece = self.ask(opcode, node, &body).unwrap();
            assert!(piece.len() as u64 <= size);
            if piece.is_empty() {
                break;
            }
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let head = if plus { 128 } else { 0 };
                let length = word(rest, head + 16) as u32 as usize;
                offset = word(rest, head + 8);
                let name = &rest[head + 24..head + 24 + length];
                names.push(String::from_utf8(name.to_vec()).unwrap());
                rest = &rest[(head + 24 + length).next_multiple_of(8)..];
            }
        }
        self.ask(29, node, &words(&[handle, 0, 0])).unwrap();
        names.retain(|name| name != "." && name != "..");
        names.sort();
        names
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Found {
    node: u64,
    size: u64,
    mode: u32,
    uid: u32,
    gid: u32,
    nlink: u32,
    mtime: u64,
}

fn found(entry: &[u8]) -> Found {
    let found = attributes(word(entry, 0), &entry[40..]);
    // A directory's name holds for a second, a file's for no more than a part of one.
    let directory = found.node != 0 && found.mode & 0o170_000 == 0o40_000;
    assert_eq!(word(entry, 16), u64::from(directory));
    found
}

fn attributes(node: u64, attr: &[u8]) -> Found {
    let half = |at: usize| u32::from_le_bytes(attr[at..at + 4].try_into().unwrap());
    Found {
        node,
        size: word(attr, 8),
        mode: half(60),
        nlink: half(64),
        uid: half(68),
        gid: half(72),
        mtime: word(attr, 32),
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

fn joined(first: &[u8], rest: &[u8]) -> Vec<u8> {
    [first, rest].concat()
}

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
