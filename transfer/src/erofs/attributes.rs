//! Extended attributes as the kernel takes them when they are set on a file of the agent's store:
//! which it keeps, which it refuses, and what an access control list does to the mode.

use rustix::io::Errno;

use super::format::FileType;

/// Bytes of a name (`XATTR_NAME_MAX`).
const MAX_NAME: usize = 255;
/// Bytes of a value: what the format's length field can say.
const MAX_VALUE: usize = u16::MAX as usize;
/// Bytes of all attributes of one file, as in other file systems.
const MAX_ALL: usize = 64 << 10;

/// Bits of a mode that a list stands for.
const PERMISSIONS: u16 = 0o777;

/// A name or a value.
type Bytes = Box<[u8]>;

/// The attributes of one file: name, value; no name twice.
#[derive(Debug, Default)]
pub(super) struct Attributes(Vec<(Bytes, Bytes)>);

impl Attributes {
    /// Names and values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> + Clone {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.0.iter();
        entries
            .map(|(name, value)| 64 + name.len() + value.len())
            .sum()
    }

    /// Sets an attribute of a file with this mode; whether the kernel has attributes of this name on
    /// files of this kind.
    pub(super) fn set(
        &mut self,
        kind: FileType,
        mode: &mut u16,
        name: &[u8],
        value: &[u8],
    ) -> Result<bool, Errno> {
        if name.len() > MAX_NAME {
            return Err(Errno::RANGE);
        }
        if value.len() > MAX_VALUE {
            return Err(Errno::TOOBIG);
        }
        let list = match name {
            b"user." => return Err(Errno::INVAL),
            b"system.posix_acl_access" | b"system.posix_acl_default"
                if kind == FileType::Symlink =>
            {
                return Ok(false);
            }
            b"system.posix_acl_access" => match AccessList::parse(value)? {
                None => return Ok(false),
                Some(list) => Some(list),
            },
            b"system.posix_acl_default" => match AccessList::parse(value)? {
                None => return Ok(false),
                Some(list) if kind == FileType::Directory || list.is_empty => Some(AccessList {
                    // It is about files to come, not about this one's mode.
                    is_extended: !list.is_empty,
                    is_empty: true,
                    ..list
                }),
                Some(_) => return Err(Errno::ACCESS),
            },
            _ if name.starts_with(b"system.") => return Ok(false),
            _ if name.starts_with(b"user.")
                && !matches!(kind, FileType::Regular | FileType::Directory) =>
            {
                return Ok(false);
            }
            _ => None,
        };
        self.0.retain(|(known, _)| **known != *name);
        if let Some(list) = list {
            if !list.is_empty {
                *mode = *mode & !PERMISSIONS | list.mode;
            }
            if !list.is_extended {
                return Ok(true);
            }
        }
        let used: usize = self.0.iter().map(|(n, v)| n.len() + v.len()).sum();
        if used + name.len() + value.len() > MAX_ALL {
            return Err(Errno::TOOBIG);
        }
        self.0.push((name.into(), value.into()));
        Ok(true)
    }
}

/// What an access control list comes to.
#[derive(Debug, Default, PartialEq, Eq)]
struct AccessList {
    /// The permissions that it gives to owner, group (or its mask) and others.
    mode: u16,
    /// It says more than a mode can.
    is_extended: bool,
    /// It has no entries, which takes a list away.
    is_empty: bool,
}

impl AccessList {
    /// Reads version 2, the only one; `None` is a version that is not known.
    fn parse(value: &[u8]) -> Result<Option<Self>, Errno> {
        const OWNER: u16 = 1;
        const USER: u16 = 2;
        const GROUP: u16 = 4;
        const NAMED_GROUP: u16 = 8;
        const MASK: u16 = 0x10;
        const OTHERS: u16 = 0x20;
        let (version, entries) = value.split_first_chunk::<4>().ok_or(Errno::INVAL)?;
        if u32::from_le_bytes(*version) != 2 {
            return Ok(None);
        }
        let (entries, rest) = entries.as_chunks::<8>();
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        if entries.is_empty() {
            return Ok(Some(Self {
                is_empty: true,
                ..Self::default()
            }));
        }
        let mut list = Self::default();
        let mut last = 0;
        let mut needs_mask = false;
        let mut seen = 0;
        for entry in entries {
            let tag = u16::from_le_bytes([entry[0], entry[1]]);
            let bits = u16::from_le_bytes([entry[2], entry[3]]);
            let repeats = matches!(tag, USER | NAMED_GROUP) && tag == last;
            if bits > 7 || !(tag > last || repeats) {
                return Err(Errno::INVAL);
            }
            match tag {
                OWNER => list.mode |= bits << 6,
                GROUP => list.mode |= bits << 3,
                OTHERS => list.mode |= bits,
                MASK => list.mode = list.mode & !0o070 | bits << 3,
                USER | NAMED_GROUP => needs_mask = true,
                _ => return Err(Errno::INVAL),
            }
            last = tag;
            seen |= tag;
        }
        list.is_extended = needs_mask || seen & MASK != 0;
        let whole = OWNER | GROUP | OTHERS;
        if seen & whole != whole || needs_mask && seen & MASK == 0 {
            return Err(Errno::INVAL);
        }
        Ok(Some(list))
    }
}

#[cfg(test)]
mod unit {
    use proptest::prelude::*;

    use super::*;

    fn list(entries: &[(u16, u16)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, bits) in entries {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(bits.to_le_bytes());
            bytes.extend([0xff; 4]);
        }
        bytes
    }

    #[test]
    fn lists_change_the_mode() {
        const ACCESS: &[u8] = b"system.posix_acl_access";
        for (entries, mode, kept) in [
            (&[(1, 7), (4, 5), (0x20, 1)][..], 0o4751, 0),
            (&[(1, 6), (2, 7), (4, 5), (0x10, 4), (0x20, 0)], 0o4640, 1),
            (
                &[(1, 6), (4, 5), (8, 7), (8, 6), (0x10, 1), (0x20, 0)],
                0o4610,
                1,
            ),
        ] {
            let (mut attributes, mut found) = (Attributes::default(), 0o4777);
            let set = attributes.set(FileType::Regular, &mut found, ACCESS, &list(entries));
            assert_eq!(set, Ok(true));
            assert_eq!((found, attributes.0.len()), (mode, kept), "{entries:?}");
        }
        for bad in [
            &[(1, 7)][..],
            &[(1, 8), (4, 5), (0x20, 1)],
            &[(4, 5), (1, 7), (0x20, 1)],
            &[(1, 7), (2, 7), (4, 5), (0x20, 1)],
            &[(1, 7), (4, 5), (4, 5), (0x20, 1)],
            &[(1, 7), (4, 5), (0x20, 1), (0x40, 1)],
        ] {
            assert_eq!(AccessList::parse(&list(bad)), Err(Errno::INVAL), "{bad:?}");
        }
        assert_eq!(AccessList::parse(&[3, 0, 0, 0]), Ok(None));
    }

    #[test]
    fn not_every_file_has_every_attribute() {
        let mut attributes = Attributes::default();
        let mut set = |kind, name: &str| attributes.set(kind, &mut 0, name.as_bytes(), b"value");
        assert_eq!(set(FileType::Regular, "user.a"), Ok(true));
        assert_eq!(set(FileType::Symlink, "user.a"), Ok(false));
        assert_eq!(set(FileType::Fifo, "security.capability"), Ok(true));
        assert_eq!(set(FileType::Regular, "system.posix_acl_other"), Ok(false));
        assert_eq!(set(FileType::Regular, "user."), Err(Errno::INVAL));
        assert_eq!(
            set(FileType::Regular, &format!("user.{}", "n".repeat(251))),
            Err(Errno::RANGE)
        );
    }

    proptest! {
        #[test]
        fn any_list_gives_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = AccessList::parse(&bytes);
            let _ = AccessList::parse(&[&[2, 0, 0, 0], &bytes[..]].concat());
        }
    }
}
