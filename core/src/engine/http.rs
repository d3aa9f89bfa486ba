//! The part of HTTP/1.1 (RFC 9112) that a client needs on the socket of an engine: heads of answers, and
//! bodies with a length, in chunks, or up to the end of the connection. Nothing is stored that is not
//! bounded here.

use alloc::{borrow::ToOwned as _, string::String, vec::Vec};

/// Most bytes of a head.
pub const MAX_HEAD: usize = 64 * 1024;
/// Most bytes of a line between chunks.
const MAX_LINE: usize = 1024;

/// An answer that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    /// Too long a head.
    #[error("the head of the answer is longer than {MAX_HEAD} bytes")]
    HeadTooLong,
    /// No HTTP/1.
    #[error("the answer does not begin with an HTTP/1 status line")]
    Status,
    /// A field of the head.
    #[error("a field of the answer's head cannot be read")]
    Field,
    /// A length that is none.
    #[error("the length of the answer cannot be read")]
    Length,
    /// Chunks that are none.
    #[error("the chunks of the answer cannot be read")]
    Chunk,
}

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status.
    pub status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    /// Reads a head at the start of `bytes`: it and its length, `None` while its end is not there.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, HttpError> {
        let seen = bytes.get(..MAX_HEAD).unwrap_or(bytes);
        let Some(end) = seen.windows(4).position(|four| four == b"\r\n\r\n") else {
            return match seen.len() {
                MAX_HEAD => Err(HttpError::HeadTooLong),
                _ => Ok(None),
            };
        };
        let text = core::str::from_utf8(&seen[..end]).map_err(|_| HttpError::Field)?;
        let mut lines = text.split("\r\n");
        let status = lines.next().and_then(status).ok_or(HttpError::Status)?;
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':').ok_or(HttpError::Field)?;
            if name.is_empty() || name.contains(|c: char| !c.is_ascii_graphic()) {
                return Err(HttpError::Field);
            }
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        Ok(Some((Self { status, fields }, end + 4)))
    }

    /// A field by its name in small letters.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut found = self.fields.iter().filter(|(known, _)| known == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// How the body comes.
    pub fn body(&self) -> Result<Body, HttpError> {
        if matches!(self.status, 204 | 304) {
            return Ok(Body(State::Length(0)));
        }
        if let Some(coding) = self.field("transfer-encoding") {
            return match coding.eq_ignore_ascii_case("chunked") {
                true => Ok(Body(State::Size(Vec::new()))),
                false => Err(HttpError::Chunk),
            };
        }
        let mut lengths = self
            .fields
            .iter()
            .filter(|(name, _)| name == "content-length")
            .map(|(_, value)| number(value, 10).ok_or(HttpError::Length));
        let Some(length) = lengths.next() else {
            return Ok(Body(State::ToTheEnd));
        };
        match lengths.next() {
            None => Ok(Body(State::Length(length?))),
            Some(_) => Err(HttpError::Length),
        }
    }
}

fn status(line: &str) -> Option<u16> {
    let rest = line.strip_prefix("HTTP/1.")?;
    let digits = rest.get(1..)?.strip_prefix(' ')?.get(..3)?;
    u16::try_from(number(digits, 10)?).ok()
}

fn number(digits: &str, radix: u32) -> Option<u64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A body on its way.
#[derive(Clone, Debug)]
pub struct Body(State);

#[derive(Clone, Debug)]
enum State {
    /// So many bytes are still to come.
    Length(u64),
    /// Everything belongs to it.
    ToTheEnd,
    /// A chunk's size, as far as its line is there.
    Size(Vec<u8>),
    /// So many bytes of a chunk, and the end of its line.
    Chunk(u64),
    /// The line end behind a chunk, as far as it is there.
    ChunkEnd(bool),
    /// A line behind the last chunk, by its length so far, and the bytes of all of them.
    Trailer(usize, usize),
}

impl Body {
    /// Whether all of it has come.
    pub fn is_over(&self) -> bool {
        matches!(self.0, State::Length(0))
    }

    /// Whether it may end with the connection.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::ToTheEnd)
    }

    /// The next piece of it in `input`, which is left with what follows; `None` when it is used up, or
    /// the body over.
    pub fn next<'b>(&mut self, input: &mut &'b [u8]) -> Result<Option<&'b [u8]>, HttpError> {
        loop {
            if input.is_empty() {
                return Ok(None);
            }
            match &mut self.0 {
                State::Length(0) => return Ok(None),
                State::ToTheEnd => return Ok(Some(core::mem::take(input))),
                State::Length(left) => return Ok(Some(take(input, left))),
                State::Chunk(left) if *left > 0 => return Ok(Some(take(input, left))),
                State::Chunk(_) => self.0 = State::ChunkEnd(false),
                State::ChunkEnd(seen) => {
                    let wanted = if *seen { b'\n' } else { b'\r' };
                    if byte(input) != Some(wanted) {
                        return Err(HttpError::Chunk);
                    }
                    self.0 = match *seen {
                        true => State::Size(Vec::new()),
                        false => State::ChunkEnd(true),
                    };
                }
                State::Size(line) => {
                    let Some(byte) = byte(input) else {
                        return Ok(None);
                    };
                    if byte != b'\n' {
                        line.push(byte);
                        if line.len() > MAX_LINE {
                            return Err(HttpError::Chunk);
                        }
                        continue;
                    }
                    self.0 = match chunk_size(line).ok_or(HttpError::Chunk)? {
                        0 => State::Trailer(0, 0),
                        size => State::Chunk(size),
                    };
                }
                State::Trailer(line, all) => match byte(input) {
                    Some(b'\n') if *line == 0 => self.0 = State::Length(0),
                    Some(b'\n') => *line = 0,
                    Some(b'\r') => {}
                    _ => {
                        (*line, *all) = (*line + 1, *all + 1);
                        if *all > MAX_HEAD {
                            return Err(HttpError::HeadTooLong);
                        }
                    }
                },
            }
        }
    }
}

fn take<'b>(input: &mut &'b [u8], left: &mut u64) -> &'b [u8] {
    let length = usize::try_from(*left).map_or(input.len(), |left| left.min(input.len()));
    let (data, rest) = input.split_at(length);
    *input = rest;
    *left -= length as u64;
    data
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

fn chunk_size(line: &[u8]) -> Option<u64> {
    let text = core::str::from_utf8(line).ok()?.strip_suffix('\r')?;
    let digits = text.split(';').next().unwrap_or_default().trim_end();
    number(digits, 16)
}

/// A value in a query of a request's target.
pub fn encode_value(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~' | b'/' | b':') {
            encoded.push(byte as char);
        } else {
            let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
            encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<(u16, Vec<u8>, bool), HttpError> {
        let bytes = pieces.concat();
        let Some((head, length)) = Head::parse(&bytes)? else {
            return Ok((0, Vec::new(), false));
        };
        let mut body = head.body()?;
        let mut content = Vec::new();
        let size = pieces.first().map_or(1, |piece| piece.len().max(1));
        for mut input in bytes[length..].chunks(size) {
            while let Some(piece) = body.next(&mut input)? {
                content.extend(piece);
            }
        }
        Ok((head.status, content, body.is_over()))
    }

    fn answer(text: &str) -> Result<(u16, Vec<u8>, bool), HttpError> {
        read(&[text.as_bytes()])
    }

    #[test]
    fn bodies_come_in_three_ways() {
        let ok = |body: &[u8], over: bool| Ok((200, body.to_vec(), over));
        assert_eq!(
            answer("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcX"),
            ok(b"abc", true)
        );
        assert_eq!(
            answer(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nab\r\n1\r\nc\r\n0\r\nA: b\r\n\r\n"
            ),
            ok(b"abc", true)
        );
        assert_eq!(answer("HTTP/1.0 200 OK\r\n\r\nabc"), ok(b"abc", false));
        assert_eq!(
            answer("HTTP/1.1 204 No Content\r\n\r\n"),
            Ok((204, vec![], true))
        );
        assert_eq!(
            answer("HTTP/1.1 200 OK\r\nA: b\r\n"),
            Ok((0, vec![], false))
        );
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        for (text, error) in [
            ("SSH-2.0\r\n\r\n", HttpError::Status),
            ("HTTP/1.1 xx\r\n\r\n", HttpError::Status),
            ("HTTP/1.1 200 OK\r\nno field\r\n\r\n", HttpError::Field),
            ("HTTP/1.1 200 OK\r\n: x\r\n\r\n", HttpError::Field),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
                HttpError::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
                HttpError::Length,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
                HttpError::Chunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
                HttpError::Chunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc",
                HttpError::Chunk,
            ),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
                HttpError::Chunk,
            ),
        ] {
            assert_eq!(answer(text), Err(error), "{text}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        assert_eq!(answer(&long), Err(HttpError::HeadTooLong));
        let line = "0".repeat(MAX_LINE + 1);
        let long = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{line}");
        assert_eq!(answer(&long), Err(HttpError::Chunk));
    }

    #[test]
    fn values_of_queries() {
        assert_eq!(encode_value("a b&c=%/ä"), "a%20b%26c%3d%25/%c3%a4");
    }

    proptest! {
        #[test]
        fn chunks_come_back_however_they_are_cut(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..30), 0..6),
            cut in 1_usize..9,
        ) {
            let mut bytes = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in &chunks {
                bytes.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                bytes.extend(chunk);
                bytes.extend(b"\r\n");
            }
            bytes.extend(b"0\r\n\r\n");
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(read(&pieces), Ok((200, chunks.concat(), true)));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200), head in any::<bool>()) {
            let mut all = Vec::new();
            if head {
                all.extend(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
            }
            all.extend(bytes);
            let _ = read(&[&all]);
        }
    }
}
