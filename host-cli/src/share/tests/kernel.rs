//! A kernel that asks one thing after the other.

use std::{fs, path::PathBuf};

use super::{Budget, Limits, O_CREAT, Server, Source};

/// A kernel that asks one thing after the other.
pub(super) struct Kernel {
    pub(super) place: tempfile::TempDir,
    pub(super) server: Server,
    pub(super) unique: u64,
}

pub(super) type Asked<T = Vec<u8>> = Result<T, i32>;

impl Kernel {
    pub(super) fn new() -> Self {
        Self::with(false, Limits::default())
    }

    /// `shared` is served; `outside` beside it is not.
    pub(super) fn with(read_only: bool, limits: Limits) -> Self {
        Self::with_budget(read_only, limits, Budget::new(1000))
    }

    pub(super) fn with_budget(
        read_only: bool,
        limits: Limits,
        budget: std::sync::Arc<Budget>,
    ) -> Self {
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

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.place.path().join("shared").join(name)
    }

    pub(super) fn send(&mut self, opcode: u32, node: u64, body: &[u8]) -> Option<Vec<u8>> {
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

    pub(super) fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Asked {
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

    pub(super) fn lookup(&mut self, node: u64, name: &str) -> Asked<Found> {
        self.ask(1, node, &text(name)).map(|entry| found(&entry))
    }

    /// Looks a path of several names up.
    pub(super) fn walk(&mut self, path: &str) -> Found {
        let mut at = Found {
            node: 1,
            ..Found::default()
        };
        for name in path.split('/') {
            at = self.lookup(at.node, name).unwrap();
        }
        at
    }

    pub(super) fn open(&mut self, node: u64, flags: u32) -> Asked<u64> {
        self.ask(14, node, &words(&[u64::from(flags)]))
            .map(|answer| word(&answer, 0))
    }

    pub(super) fn create(
        &mut self,
        node: u64,
        name: &str,
        flags: u32,
        mode: u32,
    ) -> Asked<(Found, u64)> {
        let mut body = words(&[u64::from(flags | O_CREAT) | u64::from(mode) << 32, 0]);
        body.extend(text(name));
        let answer = self.ask(35, node, &body)?;
        Ok((found(&answer), word(&answer, 128)))
    }

    pub(super) fn read(&mut self, handle: u64, offset: u64, size: u64) -> Asked {
        self.ask(15, 0, &words(&[handle, offset, size, 0, 0]))
    }

    pub(super) fn write(
        &mut self,
        handle: u64,
        offset: u64,
        data: &[u8],
        flags: u64,
    ) -> Asked<u64> {
        let mut body = words(&[handle, offset, data.len() as u64 | flags << 32, 0, 0]);
        body.extend(data);
        self.ask(16, 0, &body).map(|answer| word(&answer, 0))
    }

    pub(super) fn attr(&mut self, node: u64) -> Asked<Found> {
        let answer = self.ask(3, node, &words(&[0, 0]))?;
        Ok(attributes(node, &answer[16..]))
    }

    /// Names of a directory, read in pieces of so many bytes.
    pub(super) fn list(&mut self, node: u64, size: u64, plus: bool) -> Vec<String> {
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
pub(super) struct Found {
    pub(super) node: u64,
    pub(super) size: u64,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) nlink: u32,
    pub(super) mtime: u64,
}

pub(super) fn found(entry: &[u8]) -> Found {
    let found = attributes(word(entry, 0), &entry[40..]);
    // A directory's name holds for a second, a file's for no more than a part of one.
    let directory = found.node != 0 && found.mode & 0o170_000 == 0o40_000;
    assert_eq!(word(entry, 16), u64::from(directory));
    found
}

pub(super) fn attributes(node: u64, attr: &[u8]) -> Found {
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

pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub(super) fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub(super) fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

pub(super) fn joined(first: &[u8], rest: &[u8]) -> Vec<u8> {
    [first, rest].concat()
}
