//! An archive on its way whose members get another first part of their names: what was packed as
//! `etc/…` is unpacked as `copy/…`. Data passes as it comes; only headers are held, and bounded.

use alloc::{borrow::ToOwned as _, format, vec::Vec};

use super::{
    header::{BLOCK, Block, Flavour, HeaderError, checksum, decode},
    pax::{self, PaxError},
    write::{Record, extended, padding},
};

/// Most bytes of an extended header.
const MAX_EXTENDED: u64 = 1 << 20;

/// An archive that cannot be renamed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenameError {
    /// A header.
    #[error("a header of the archive cannot be read: {0}")]
    Header(#[from] HeaderError),
    /// An extended header.
    #[error("an extended header of the archive cannot be read: {0}")]
    Extended(#[from] PaxError),
    /// An extended header that no member needs.
    #[error("an extended header of the archive has more than {MAX_EXTENDED} bytes")]
    TooLong,
    /// A member beside the others.
    #[error("the archive has members that do not lie in its first one")]
    Beside,
}

/// Renames what passes.
#[derive(Clone, Debug)]
pub struct Renamer {
    to: Vec<u8>,
    /// The first part of the first member's name.
    from: Option<Vec<u8>>,
    /// Of a header or an extended header, as far as it is there.
    held: Vec<u8>,
    /// Bytes of an extended header with its padding, and its kind and own length.
    extended: Option<(usize, u8, usize)>,
    /// Bytes of data and padding that pass.
    data: u64,
    records: Vec<Record>,
    over: bool,
}

impl Renamer {
    /// The first part of all names becomes `to`.
    pub fn new(to: &str) -> Self {
        Self {
            to: to.as_bytes().to_vec(),
            from: None,
            held: Vec::new(),
            extended: None,
            data: 0,
            records: Vec::new(),
            over: false,
        }
    }

    /// Takes a piece of the archive, and adds to `out` what can be sent of it.
    pub fn push(&mut self, mut input: &[u8], out: &mut Vec<u8>) -> Result<(), RenameError> {
        while !input.is_empty() {
            if self.over {
                out.extend_from_slice(input);
                return Ok(());
            }
            if self.data > 0 {
                let length = usize::try_from(self.data).map_or(input.len(), |d| d.min(input.len()));
                let (data, rest) = input.split_at(length);
                out.extend_from_slice(data);
                self.data -= length as u64;
                input = rest;
                continue;
            }
            let whole = self.extended.map_or(BLOCK, |(whole, ..)| whole);
            let length = input.len().min(whole - self.held.len());
            let (part, rest) = input.split_at(length);
            self.held.extend_from_slice(part);
            input = rest;
            if self.held.len() == whole {
                let held = core::mem::take(&mut self.held);
                match self.extended.take() {
                    Some((_, kind, length)) => {
                        self.read(kind, held.get(..length).unwrap_or(&held))?;
                    }
                    None => self.header(&held, out)?,
                }
            }
        }
        Ok(())
    }

    fn read(&mut self, kind: u8, body: &[u8]) -> Result<(), RenameError> {
        let name = body.split(|byte| *byte == 0).next().unwrap_or_default();
        match kind {
            b'L' => self.set(b"path", name),
            b'K' => self.set(b"linkpath", name),
            _ => {
                for record in pax::records(body) {
                    let (key, value) = record?;
                    self.set(key, value);
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        self.records.retain(|(known, _)| known != key);
        self.records.push((key.to_owned(), value.to_owned()));
    }

    fn take(&mut self, key: &[u8]) -> Option<Vec<u8>> {
        let at = self.records.iter().position(|(known, _)| known == key)?;
        Some(self.records.swap_remove(at).1)
    }

    fn header(&mut self, held: &[u8], out: &mut Vec<u8>) -> Result<(), RenameError> {
        let mut block: Block = [0; BLOCK];
        block.copy_from_slice(held.get(..BLOCK).unwrap_or(&[0; BLOCK]));
        let Some(header) = decode(&block)? else {
            self.over = true;
            out.extend_from_slice(&block);
            return Ok(());
        };
        if matches!(header.kind, b'x' | b'L' | b'K') {
            if header.size > MAX_EXTENDED {
                return Err(RenameError::TooLong);
            }
            let length = header.size as usize;
            match length {
                0 => {}
                length => {
                    let whole = length + padding(header.size);
                    self.extended = Some((whole, header.kind, length));
                }
            }
            return Ok(());
        }
        let with_padding = |size: u64| size.saturating_add(padding(size) as u64);
        if header.kind == b'g' {
            out.extend_from_slice(&block);
            self.data = with_padding(header.size);
            return Ok(());
        }
        let size = self.records.iter().find(|(key, _)| key == b"size");
        let size = size.map(|(_, value)| pax::decimal(value).ok_or(PaxError::Value("size")));
        let size = size.transpose()?.unwrap_or(header.size);
        let name = self.take(b"path").unwrap_or(header.name);
        let name = self.renamed(&name)?;
        let link = self.take(b"linkpath").unwrap_or(header.link);
        let link = match header.kind {
            b'1' => self.renamed(&link)?,
            _ => link,
        };
        for (key, text, place) in [
            (&b"path"[..], &name, 0..100),
            (b"linkpath", &link, 157..257),
        ] {
            let field = &mut block[place];
            field.fill(0);
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
            if text.len() > length {
                self.set(key, text);
            }
        }
        if header.flavour == Flavour::Ustar {
            block[345..500].fill(0);
        }
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let records = core::mem::take(&mut self.records);
        if !records.is_empty() {
            out.extend(extended(&records));
        }
        out.extend_from_slice(&block);
        self.data = match header.kind {
            // Links, devices, directories and pipes have none, whatever they say.
            b'1'..=b'6' => 0,
            _ => with_padding(size),
        };
        Ok(())
    }

    fn renamed(&mut self, name: &[u8]) -> Result<Vec<u8>, RenameError> {
        let end = name.iter().position(|byte| *byte == b'/');
        let (first, rest) = name.split_at(end.unwrap_or(name.len()));
        let from = self.from.get_or_insert_with(|| first.to_owned());
        if from.as_slice() != first {
            return Err(RenameError::Beside);
        }
        Ok([self.to.as_slice(), rest].concat())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{string::String, vec};

    use proptest::prelude::*;

    use super::*;
    use crate::tar::write::{END, Member, Type, header};

    fn member(kind: Type, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
        let mut out = header(&Member {
            kind,
            name: name.as_bytes(),
            link: link.as_bytes(),
            mode: 0o644,
            uid: 1,
            gid: 2,
            size: data.len() as u64,
            mtime: 3,
        });
        out.extend(data);
        out.resize(out.len() + padding(data.len() as u64), 0);
        out
    }

    fn renamed(archive: &[u8], to: &str, cut: usize) -> Result<Vec<u8>, RenameError> {
        let mut renamer = Renamer::new(to);
        let mut out = Vec::new();
        for piece in archive.chunks(cut) {
            renamer.push(piece, &mut out)?;
        }
        Ok(out)
    }

    /// Names, links and data, read back.
    fn read(mut archive: &[u8]) -> Vec<(String, String, Vec<u8>)> {
        let mut found = Vec::new();
        let mut long = None;
        while let Some((block, rest)) = archive.split_first_chunk::<BLOCK>() {
            archive = rest;
            let Some(header) = decode(block).unwrap() else {
                break;
            };
            let size = header.size as usize;
            let data = archive[..size].to_vec();
            archive = &archive[size + padding(header.size)..];
            if header.kind == b'x' {
                let records: Vec<_> = pax::records(&data).map(Result::unwrap).collect();
                let path = records.iter().find(|(key, _)| *key == b"path");
                long = path.map(|(_, value)| value.to_vec());
                continue;
            }
            let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
            let name = long.take().unwrap_or(header.name);
            found.push((text(name), text(header.link), data));
        }
        found
    }

    #[test]
    fn members_and_links_to_them_are_renamed() {
        let deep = format!("etc/{}/x", "d".repeat(120));
        let archive = [
            member(Type::Directory, "etc", "", b""),
            member(Type::File, "etc/hosts", "", b"127.0.0.1"),
            member(Type::HardLink, "etc/again", "etc/hosts", b""),
            member(Type::Link, "etc/soft", "/etc/hosts", b""),
            extended(&[(b"SCHILY.xattr.user.a".to_vec(), b"b".to_vec())]),
            member(Type::File, &deep, "", &[7; 600]),
            END.to_vec(),
        ]
        .concat();
        let out = renamed(&archive, "copy", 77).unwrap();
        let found = read(&out);
        let names: Vec<_> = found
            .iter()
            .map(|(name, link, _)| (name.as_str(), link.as_str()))
            .collect();
        let deep = deep.replacen("etc", "copy", 1);
        assert_eq!(
            names,
            [
                ("copy/", ""),
                ("copy/hosts", ""),
                ("copy/again", "copy/hosts"),
                ("copy/soft", "/etc/hosts"),
                (deep.as_str(), ""),
            ]
        );
        assert_eq!(found[1].2, b"127.0.0.1");
        assert_eq!(found[4].2, [7; 600]);
        assert!(out.windows(19).any(|part| part == b"SCHILY.xattr.user.a"));
        assert!(out.ends_with(&END));
    }

    #[test]
    fn what_is_no_such_archive_is_refused() {
        let two = [
            member(Type::File, "a", "", b""),
            member(Type::File, "b", "", b""),
        ]
        .concat();
        assert_eq!(renamed(&two, "x", 512), Err(RenameError::Beside));
        let noise = vec![b'x'; 512];
        assert!(matches!(
            renamed(&noise, "x", 512),
            Err(RenameError::Header(_))
        ));
    }

    proptest! {
        #[test]
        fn it_is_the_same_however_it_is_cut(
            files in proptest::collection::vec(("[a-z]{1,9}", proptest::collection::vec(any::<u8>(), 0..700)), 0..5),
            to in "[a-z]{1,120}", cut in 1_usize..1500,
        ) {
            let archive: Vec<u8> = files
                .iter()
                .flat_map(|(name, data)| member(Type::File, &format!("root/{name}"), "", data))
                .chain(END)
                .collect();
            let out = renamed(&archive, &to, cut).unwrap();
            let wanted: Vec<_> = files
                .iter()
                .map(|(name, data)| (format!("{to}/{name}"), String::new(), data.clone()))
                .collect();
            prop_assert_eq!(read(&out), wanted);
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..1200)) {
            let _ = renamed(&bytes, "x", 100);
        }
    }
}
