//! One 512-byte header block of a tar archive: v7, POSIX ustar and GNU.
//!
//! Decoding is strict: two readers that disagree about a header disagree about where the next one
//! stands, and that is how content is smuggled past one of them. Every number must be written as
//! the formats say, and the checksum must hold.

use alloc::vec::Vec;

/// Bytes of a block; headers and data are padded to it.
pub const BLOCK: usize = 512;

/// A header block.
pub type Block = [u8; BLOCK];

/// What is wrong with a header block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The stored checksum is not the sum of the block.
    #[error("the checksum of the header does not hold")]
    Checksum,
    /// A numeric field is neither octal nor base-256, or too large for its meaning.
    #[error("the {0} field of the header is not a number in its range")]
    Number(&'static str),
}

/// Which extensions a header carries, by its magic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// No magic: the original format.
    V7,
    /// POSIX.1-1988: a prefix for long names.
    Ustar,
    /// GNU: no prefix; may describe a sparse file.
    Gnu,
}

/// The decoded fields of a header block, before any extended header is applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Member name, the ustar prefix joined to it; bytes as archived.
    pub name: Vec<u8>,
    /// Link target, empty when there is none.
    pub link: Vec<u8>,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// Bytes of data that follow.
    pub size: u64,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Type flag as archived (NUL is the old way to say `0`).
    pub kind: u8,
    /// Device numbers (major, minor); zero unless the member is a device.
    pub device: (u32, u32),
    /// Which extensions the block carries.
    pub flavour: Flavour,
}

/// Decodes a block; `None` is a block of zeros, the mark of an archive's end.
pub fn decode(block: &Block) -> Result<Option<Header>, HeaderError> {
    if block.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    if unsigned(&block[148..156], "checksum")? != checksum(block) {
        return Err(HeaderError::Checksum);
    }
    let flavour = match &block[257..265] {
        b"ustar\x0000" => Flavour::Ustar,
        b"ustar  \0" => Flavour::Gnu,
        _ => Flavour::V7,
    };
    let kind = block[156];
    let device = if matches!(kind, b'3' | b'4') && flavour != Flavour::V7 {
        let part = |at: usize, field| {
            u32::try_from(unsigned(&block[at..at + 8], field)?)
                .map_err(|_| HeaderError::Number(field))
        };
        (part(329, "device major")?, part(337, "device minor")?)
    } else {
        (0, 0)
    };
    let mut name = text(&block[..100]).to_vec();
    if flavour == Flavour::Ustar {
        let prefix = text(&block[345..500]);
        if !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
    }
    Ok(Some(Header {
        name,
        link: text(&block[157..257]).to_vec(),
        // Some writers put the file type bits of st_mode here as well.
        mode: (unsigned(&block[100..108], "mode")? & 0o7777) as u32,
        uid: unsigned(&block[108..116], "owner")?,
        gid: unsigned(&block[116..124], "group")?,
        size: unsigned(&block[124..136], "size")?,
        mtime: number(&block[136..148]).ok_or(HeaderError::Number("mtime"))?,
        kind,
        device,
        flavour,
    }))
}

/// The sum of all bytes, the checksum field counted as spaces (POSIX.1-1988, ustar).
pub fn checksum(block: &Block) -> u64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    sum(&block[..148]) + 8 * u64::from(b' ') + sum(&block[156..])
}

/// A non-negative number field.
pub fn unsigned(field: &[u8], what: &'static str) -> Result<u64, HeaderError> {
    number(field)
        .and_then(|value| u64::try_from(value).ok())
        .ok_or(HeaderError::Number(what))
}

/// Octal digits between spaces, ended by NUL or space; or base-256, marked by the top bit (GNU).
fn number(field: &[u8]) -> Option<i64> {
    if let first @ (0x80 | 0xff) = field.first()? {
        // Two's complement, big-endian; the mark is the sign's own byte.
        let negative = *first == 0xff;
        let mut value: i64 = if negative { -1 } else { 0 };
        for &byte in &field[1..] {
            value = value.checked_mul(256)?.checked_add(i64::from(byte))?;
        }
        return Some(value);
    }
    let end = field.iter().position(|&byte| byte == 0);
    let end = end.unwrap_or(field.len());
    if field[end..].iter().any(|&byte| byte != 0 && byte != b' ') {
        return None;
    }
    let mut value: i64 = 0;
    for &digit in field[..end].trim_ascii() {
        if !matches!(digit, b'0'..=b'7') {
            return None;
        }
        value = value.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(value)
}

/// A text field: up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    &field[..field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len())]
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    fn octal(field: &mut [u8], value: u64) {
        let width = field.len() - 1;
        field[..width].copy_from_slice(format!("{value:0width$o}").as_bytes());
    }

    fn sealed(mut block: Block) -> Block {
        let sum = checksum(&block);
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }

    fn ustar(name: &[u8], size: u64) -> Block {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        octal(&mut block[100..108], 0o4755);
        octal(&mut block[108..116], 1000);
        octal(&mut block[116..124], 50);
        octal(&mut block[124..136], size);
        octal(&mut block[136..148], 1_700_000_000);
        block[156] = b'0';
        block[257..265].copy_from_slice(b"ustar\x0000");
        block
    }

    #[test]
    fn fields_of_a_ustar_header() {
        let mut block = ustar(b"bin/su", 12345);
        block[345..349].copy_from_slice(b"root");
        let header = decode(&sealed(block)).unwrap().unwrap();
        assert_eq!(header.name, b"root/bin/su");
        assert_eq!((header.mode, header.uid, header.gid), (0o4755, 1000, 50));
        assert_eq!((header.size, header.mtime), (12345, 1_700_000_000));
    }

    #[test]
    fn zeros_are_the_end() {
        assert_eq!(decode(&[0; BLOCK]), Ok(None));
    }

    #[test]
    fn wrong_checksum_is_refused() {
        let mut block = sealed(ustar(b"a", 0));
        block[0] = b'b';
        assert_eq!(decode(&block), Err(HeaderError::Checksum));
    }

    #[test]
    fn numbers() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"0000644 "), Some(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"        "), Some(0));
        assert_eq!(number(b"0000648\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(b"64\x001234\0"), None);
        assert_eq!(number(b"6 4    \0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0x80, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(number(&[0x81, 0, 0, 0, 0, 0, 0, 1]), None);
    }

    #[test]
    fn negative_sizes_are_refused() {
        let mut block = ustar(b"a", 0);
        block[124..136].fill(0xff);
        assert_eq!(decode(&sealed(block)), Err(HeaderError::Number("size")));
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), BLOCK), seal: bool) {
            let block: Block = bytes.try_into().unwrap();
            let _ = decode(&if seal { sealed(block) } else { block });
        }

        #[test]
        fn round_trip(name in "[a-z/]{1,99}", size in 0..0o77_777_777_777u64) {
            let header = decode(&sealed(ustar(name.as_bytes(), size))).unwrap().unwrap();
            prop_assert_eq!(header.name, name.as_bytes());
            prop_assert_eq!(header.size, size);
        }
    }
}
