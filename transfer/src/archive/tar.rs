//! The list of an archive's members: read once, with bounds, so that their data can be read from
//! where it stands. Nothing is unpacked and no name ever becomes a path.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use vdkr_core::tar::header::{self, BLOCK, Block};
use vdkr_core::tar::pax;

use crate::error::{TransferError, printable};
use crate::source::{Content, FileSource};

/// Most members of an archive. Real ones have a few for each layer.
const MAX_MEMBERS: usize = 256 * 1024;
/// Most bytes of an extended header or a long name.
const MAX_EXTENSION: u64 = 1 << 20;
/// Longest name of a member, bytes.
const MAX_NAME: usize = 4096;
/// How many links may lead to one another.
const MAX_LINKS: usize = 8;

/// The members of a plain archive, by their names.
#[derive(Debug)]
pub(crate) struct Members {
    source: FileSource,
    all: HashMap<String, Member>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// The name of another member.
    Link(String),
}

impl Members {
    /// Reads the headers of `file`; `path` names it in errors.
    pub(crate) fn read(file: File, path: &Path) -> Result<Self, TransferError> {
        let failed = |error| TransferError::io("read", path, error);
        let length = file.metadata().map_err(failed)?.len();
        let mut walk = Walk {
            file: &file,
            path,
            length,
            position: 0,
        };
        let mut all = HashMap::new();
        let mut count = 0;
        while let Some((name, member)) = walk.next()? {
            count += 1;
            if count > MAX_MEMBERS {
                return Err(walk.damaged(&format!("it has more than {MAX_MEMBERS} members")));
            }
            // Directories and devices hold nothing that an image needs.
            let (Some(name), Some(member)) = (name, member) else {
                continue;
            };
            if all.contains_key(&name) {
                let name = printable(&name, 100);
                return Err(walk.damaged(&format!("it has two members called {name}")));
            }
            all.insert(name, member);
        }
        Ok(Self {
            source: FileSource::new(file, path),
            all,
        })
    }

    /// The archive.
    pub(crate) fn path(&self) -> &Path {
        self.source.path()
    }

    /// The names of all files and links.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.all.keys().map(String::as_str)
    }

    /// A file, perhaps by way of links within the archive.
    pub(crate) fn find(&self, name: &str) -> Option<Content> {
        let name = normal(name.as_bytes())?;
        let mut name = name.as_str();
        for _ in 0..MAX_LINKS {
            match self.all.get(name)? {
                Member::File { offset, size } => {
                    return Some(Content::Part(self.source.part(*offset, *size), *size));
                }
                Member::Link(target) => name = target,
            }
        }
        None
    }
}

/// What stands before a member and says something about it.
#[derive(Default)]
struct Before {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    seen: bool,
}

/// A member's name and content, as far as images need them.
type Entry = (Option<String>, Option<Member>);

struct Walk<'a> {
    file: &'a File,
    path: &'a Path,
    length: u64,
    position: u64,
}

impl Walk<'_> {
    fn damaged(&self, reason: &str) -> TransferError {
        let reason = format!("{reason} (at byte {})", self.position);
        TransferError::archive(self.path, reason)
    }

    fn block(&self) -> Result<Option<Block>, TransferError> {
        if self.position >= self.length {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        self.exactly(&mut block, self.position)?;
        Ok(Some(block))
    }

    fn exactly(&self, buffer: &mut [u8], at: u64) -> Result<(), TransferError> {
        self.file
            .read_exact_at(buffer, at)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => self.damaged("it ends in the middle"),
                _ => TransferError::io("read", self.path, error),
            })
    }

    /// The next member: its name unless that is of no use to images, and its content if it has any.
    fn next(&mut self) -> Result<Option<Entry>, TransferError> {
        let mut before = Before::default();
        loop {
            let Some(block) = self.block()? else {
                return self.end(&before);
            };
            let header =
                header::decode(&block).map_err(|error| self.damaged(&error.to_string()))?;
            let Some(header) = header else {
                return self.end(&before);
            };
            if matches!(header.kind, b'x' | b'g' | b'L' | b'K') {
                let body = self.extension(header.size)?;
                self.extend(&mut before, header.kind, &body)?;
                continue;
            }
            let size = before.size.unwrap_or(header.size);
            if before.size.is_some() && header.size != size && header.size != 0 && size < 1 << 33 {
                return Err(self.damaged("the headers of a member disagree about its size"));
            }
            let offset = self.position + BLOCK as u64;
            let end = offset
                .checked_add(size)
                .filter(|end| *end <= self.length)
                .ok_or_else(|| self.damaged("it ends in the middle of a member"))?;
            let name = before.name.unwrap_or(header.name);
            let link = before.link.unwrap_or(header.link);
            let is_directory = name.ends_with(b"/");
            let legal = normal(&name);
            let member = match header.kind {
                b'0' | 0 | b'7' if !is_directory => Some(Member::File { offset, size }),
                b'1' | b'2' if size > 0 => {
                    return Err(self.damaged("a member that is no file has data"));
                }
                b'1' => Some(Member::Link(self.target(&link)?)),
                b'2' => {
                    // From the directory that the link is in; `..` is how layers refer to each other.
                    let from = legal.as_deref().unwrap_or_default();
                    match beside(from, &link) {
                        Some(target) => Some(Member::Link(target)),
                        None => return Err(self.damaged("a link leads out of it")),
                    }
                }
                b'S' => return Err(self.damaged("sparse files are not supported")),
                _ => None,
            };
            if member.is_some() && legal.is_none() {
                let name = printable(&String::from_utf8_lossy(&name), 100);
                return Err(self.damaged(&format!("{name:?} is no name for a member")));
            }
            self.position = end.next_multiple_of(BLOCK as u64);
            return Ok(Some((legal, member)));
        }
    }

    fn end(&self, before: &Before) -> Result<Option<Entry>, TransferError> {
        if before.seen {
            return Err(self.damaged("it ends after an extended header"));
        }
        Ok(None)
    }

    fn target(&self, link: &[u8]) -> Result<String, TransferError> {
        normal(link).ok_or_else(|| self.damaged("a link leads out of it"))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TransferError> {
        if size > MAX_EXTENSION {
            return Err(self.damaged("an extended header is larger than 1 MiB"));
        }
        let mut body = vec![0; size as usize];
        self.exactly(&mut body, self.position + BLOCK as u64)?;
        self.position += BLOCK as u64 + size.next_multiple_of(BLOCK as u64);
        Ok(body)
    }

    fn extend(&self, before: &mut Before, kind: u8, body: &[u8]) -> Result<(), TransferError> {
        let bad = |error: pax::PaxError| self.damaged(&error.to_string());
        // The second of two would change what the first reader of the archive saw.
        let twice = || self.damaged("two headers say the same about one member");
        match kind {
            b'L' | b'K' => {
                let end = body.iter().position(|byte| *byte == 0);
                let text = body[..end.unwrap_or(body.len())].to_vec();
                let slot = if kind == b'L' {
                    &mut before.name
                } else {
                    &mut before.link
                };
                if slot.replace(text).is_some() {
                    return Err(twice());
                }
                before.seen = true;
            }
            _ => {
                for record in pax::records(body) {
                    let (key, value) = record.map_err(bad)?;
                    let repeated = match key {
                        _ if value.is_empty() => false,
                        b"path" => before.name.replace(value.to_vec()).is_some(),
                        b"linkpath" => before.link.replace(value.to_vec()).is_some(),
                        b"size" => {
                            let size = pax::decimal(value);
                            let size = size.ok_or_else(|| bad(pax::PaxError::Value("size")))?;
                            before.size.replace(size).is_some()
                        }
                        _ if key.starts_with(b"GNU.sparse.") => {
                            return Err(self.damaged("sparse files are not supported"));
                        }
                        _ => continue,
                    };
                    if kind == b'g' {
                        return Err(bad(pax::PaxError::Global("names and sizes")));
                    }
                    if repeated {
                        return Err(twice());
                    }
                }
                before.seen |= kind == b'x';
            }
        }
        Ok(())
    }
}

/// A name without `./`, doubled slashes and a slash at its end; `None` when it leads out of the
/// archive, is empty, too long or no text.
fn normal(name: &[u8]) -> Option<String> {
    if name.len() > MAX_NAME || name.first() == Some(&b'/') {
        return None;
    }
    let name = std::str::from_utf8(name).ok()?;
    join(Vec::new(), name)
}

/// The name that `link`, in the directory of the member `from`, leads to.
fn beside(from: &str, link: &[u8]) -> Option<String> {
    let link = std::str::from_utf8(link).ok()?;
    if link.len() > MAX_NAME || link.starts_with('/') {
        return None;
    }
    let mut base: Vec<&str> = from.split('/').collect();
    base.pop();
    join_above(base, link)
}

fn join<'a>(mut parts: Vec<&'a str>, name: &'a str) -> Option<String> {
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => return None,
            part if part.contains('\0') => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

fn join_above<'a>(mut parts: Vec<&'a str>, name: &'a str) -> Option<String> {
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part if part.contains('\0') => return None,
            part => parts.push(part),
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// What stands before the data of a file or, with a slash at the end of its name, of a directory; the
/// same bytes for the same arguments.
pub(crate) fn written(name: &str, size: u64) -> Vec<u8> {
    if name.len() <= 100 {
        return plain(name, size).to_vec();
    }
    // pax: the name in a record of its own, which counts its own length.
    let rest = " path=\n".len() + name.len();
    let length = (1..20).find(|digits| (rest + digits).to_string().len() == *digits);
    let record = format!("{} path={name}\n", rest + length.unwrap_or_default());
    let mut all = plain("pax", record.len() as u64);
    all[156] = b'x';
    seal(&mut all);
    let mut all = all.to_vec();
    all.extend_from_slice(record.as_bytes());
    all.resize(all.len().next_multiple_of(BLOCK), 0);
    all.extend_from_slice(&plain(name, size));
    all
}

fn plain(name: &str, size: u64) -> Block {
    /// What eleven octal digits can say.
    const OCTAL: u64 = 1 << 33;
    let mut block = [0; BLOCK];
    let is_directory = name.ends_with('/');
    let text = name.as_bytes();
    let length = text.len().min(100);
    block[..length].copy_from_slice(&text[..length]);
    let mode: &[u8; 8] = if is_directory {
        b"0000755\0"
    } else {
        b"0000644\0"
    };
    block[100..108].copy_from_slice(mode);
    block[108..116].copy_from_slice(b"0000000\0");
    block[116..124].copy_from_slice(b"0000000\0");
    if size < OCTAL {
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    } else {
        // GNU and POSIX.1-2017 readers alike: a set top bit, then the number itself.
        block[124] = 0x80;
        block[128..136].copy_from_slice(&size.to_be_bytes());
    }
    block[136..148].copy_from_slice(b"00000000000\0");
    block[156] = if is_directory { b'5' } else { b'0' };
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut Block) {
    let sum = header::checksum(block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    /// A header with this type flag and link target.
    fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
        let mut block = plain(name, data.len() as u64);
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        seal(&mut block);
        let mut all = block.to_vec();
        all.extend_from_slice(data);
        all.resize(all.len().next_multiple_of(BLOCK), 0);
        all
    }

    fn members(parts: &[Vec<u8>]) -> Result<Members, TransferError> {
        let mut file = tempfile::tempfile().unwrap();
        for part in parts {
            file.write_all(part).unwrap();
        }
        Members::read(file, Path::new("a.tar"))
    }

    fn read(members: &Members, name: &str) -> Option<Vec<u8>> {
        let content = members.find(name)?;
        Some(content.read(name, 1 << 20).unwrap().to_vec())
    }

    #[test]
    fn members_are_found_where_they_stand() {
        let long = format!("{}/layer.tar", "x".repeat(120));
        let found = members(&[
            entry("./a/", b'5', "", b""),
            entry("./a/b", b'0', "", b"hello"),
            entry("link", b'2', "a/b", b""),
            entry("c/link", b'2', "../link", b""),
            entry("hard", b'1', "c/link", b""),
            entry("././@LongLink", b'L', "", format!("{long}\0").as_bytes()),
            entry("xxx", b'0', "", b"long"),
            entry("pax", b'x', "", b"17 path=sub/name\n"),
            entry("yyy", b'0', "", b"pax"),
            vec![0; 1024],
            b"rubbish after the end".to_vec(),
        ])
        .unwrap();
        for name in ["a/b", "link", "c/link", "hard", "./a//b"] {
            assert_eq!(read(&found, name).unwrap(), b"hello", "{name}");
        }
        assert_eq!(read(&found, &long).unwrap(), b"long");
        assert_eq!(read(&found, "sub/name").unwrap(), b"pax");
        assert_eq!(read(&found, "a"), None);
        assert_eq!(read(&found, "../a/b"), None);
    }

    #[test]
    fn links_that_go_round_lead_nowhere() {
        let found = members(&[entry("a", b'2', "b", b""), entry("b", b'2', "a", b"")]);
        assert_eq!(read(&found.unwrap(), "a"), None);
    }

    #[test]
    fn hostile_archives_are_refused() {
        let file = |name| entry(name, b'0', "", b"x");
        for (parts, reason) in [
            (vec![file("a"), file("./a")], "two members called a"),
            (vec![file("../a")], "no name"),
            (vec![file("/etc/passwd")], "no name"),
            (vec![file("a/../../b")], "no name"),
            (vec![entry("a", b'2', "../../b", b"")], "leads out"),
            (vec![entry("a", b'2', "/etc/passwd", b"")], "leads out"),
            (vec![entry("a", b'1', "../b", b"")], "leads out"),
            (vec![entry("a", b'1', "b", b"data")], "no file has data"),
            (vec![written("a", 1 << 40)], "ends in the middle"),
            (vec![file("a")[..100].to_vec()], "ends in the middle"),
            (
                vec![entry("p", b'x', "", b"9 size=9\n")],
                "after an extended header",
            ),
            (
                vec![entry("p", b'x', "", b"9 size=0\n"), file("a")],
                "disagree",
            ),
            (
                vec![entry("p", b'g', "", b"9 path=a\n"), file("b")],
                "global",
            ),
            (vec![vec![1; 512]], "header"),
        ] {
            let error = members(&parts).unwrap_err().to_string();
            assert!(error.contains(reason), "{error} lacks {reason:?}");
            assert!(error.contains("a.tar"), "{error}");
        }
    }

    #[test]
    fn headers_are_read_as_they_were_written() {
        for size in [0, 1, 511, (1 << 33) - 1, 1 << 33, 1 << 40] {
            let header = header::decode(&plain("blobs/sha256/x", size)).unwrap();
            let header = header.unwrap();
            assert_eq!(
                (header.name.as_slice(), header.size),
                (&b"blobs/sha256/x"[..], size)
            );
            assert_eq!((header.kind, header.mode), (b'0', 0o644));
        }
        let header = header::decode(&plain("blobs/", 0)).unwrap().unwrap();
        assert_eq!((header.kind, header.mode), (b'5', 0o755));
        for length in [90, 93, 100, 101, 141, 984, 985, 986] {
            let name = "n".repeat(length);
            let mut archive = written(&name, 3);
            archive.extend_from_slice(b"abc");
            archive.resize(archive.len().next_multiple_of(BLOCK), 0);
            assert_eq!(read(&members(&[archive]).unwrap(), &name).unwrap(), b"abc");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damaged_archives_give_an_answer(at in 0usize..3000, byte: u8) {
            let mut archive = [
                entry("a/b", b'0', "", &[7; 700]),
                entry("l", b'2', "a/b", b""),
                entry("p", b'x', "", b"17 path=sub/name\n"),
                entry("y", b'0', "", b"pax"),
            ].concat();
            let at = at % archive.len();
            archive[at] = byte;
            if let Ok(found) = members(&[archive]) {
                for name in found.names().map(str::to_owned).collect::<Vec<_>>() {
                    let _ = found.find(&name).map(|content| content.read("x", 1 << 20));
                }
            }
        }
    }
}
