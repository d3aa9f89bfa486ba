//! The frames in which an engine sends standard output and standard error on one connection: a byte for
//! the stream, three zeros, the length in four bytes, the data. Data is handed on as it comes, so that
//! no length reserves any memory.

use crate::channel::Pipe;

/// Bytes of a header.
const HEADER: usize = 8;

/// What came is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine's output is not in frames: a header begins with {0:02x?}")]
pub struct FrameError([u8; 4]);

/// Takes frames apart.
#[derive(Clone, Debug)]
pub struct Frames {
    header: [u8; HEADER],
    have: usize,
    /// Bytes of data that are still to come.
    left: u32,
    pipe: Pipe,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            header: [0; HEADER],
            have: 0,
            left: 0,
            pipe: Pipe::Stdout,
        }
    }
}

impl Frames {
    /// The next piece of data in `input`, which is left with what follows it; `None` when it is used up.
    pub fn next<'b>(
        &mut self,
        input: &mut &'b [u8],
    ) -> Result<Option<(Pipe, &'b [u8])>, FrameError> {
        while !input.is_empty() {
            if self.left > 0 {
                let length = input.len().min(self.left as usize);
                let (data, rest) = input.split_at(length);
                *input = rest;
                self.left -= u32::try_from(length).unwrap_or(self.left);
                return Ok(Some((self.pipe, data)));
            }
            let wanted = input.len().min(HEADER - self.have);
            let (part, rest) = input.split_at(wanted);
            *input = rest;
            if let Some(place) = self.header.get_mut(self.have..self.have + wanted) {
                place.copy_from_slice(part);
            }
            self.have += wanted;
            if self.have == HEADER {
                self.have = 0;
                let [stream, a, b, c, size @ ..] = self.header;
                self.pipe = match (stream, [a, b, c]) {
                    (0 | 1, [0, 0, 0]) => Pipe::Stdout,
                    (2 | 3, [0, 0, 0]) => Pipe::Stderr,
                    _ => return Err(FrameError([stream, a, b, c])),
                };
                self.left = u32::from_be_bytes(size);
            }
        }
        Ok(None)
    }

    /// Whether a frame has not come to its end.
    pub fn is_cut_off(&self) -> bool {
        self.have > 0 || self.left > 0
    }
}

#[cfg(test)]
mod tests {
    use alloc::{vec, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    fn read(pieces: &[&[u8]]) -> Result<(Vec<u8>, Vec<u8>), FrameError> {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut frames = Frames::default();
        for piece in pieces {
            let mut input = *piece;
            while let Some((pipe, data)) = frames.next(&mut input)? {
                let to = if pipe == Pipe::Stderr {
                    &mut err
                } else {
                    &mut out
                };
                to.extend_from_slice(data);
            }
        }
        Ok((out, err))
    }

    fn frame(stream: u8, data: &[u8]) -> Vec<u8> {
        let mut frame = vec![stream, 0, 0, 0];
        frame.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        frame.extend(data);
        frame
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(read(&[b"hello, world"]).is_err());
        assert!(read(&[&[1, 0, 1, 0, 0, 0, 0, 0]]).is_err());
        let mut frames = Frames::default();
        let mut input = &[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, b'x'][..];
        assert_eq!(
            frames.next(&mut input).unwrap(),
            Some((Pipe::Stdout, &b"x"[..]))
        );
        assert_eq!(frames.next(&mut input), Ok(None));
        assert!(frames.is_cut_off());
    }

    proptest! {
        #[test]
        fn frames_come_back_however_they_are_cut(
            sent in proptest::collection::vec((1_u8..3, proptest::collection::vec(any::<u8>(), 0..40)), 0..8),
            cut in 1_usize..17,
        ) {
            let bytes: Vec<u8> = sent.iter().flat_map(|(stream, data)| frame(*stream, data)).collect();
            let of = |wanted: u8| -> Vec<u8> {
                sent.iter().filter(|(stream, _)| *stream == wanted).flat_map(|(_, data)| data.clone()).collect()
            };
            let pieces: Vec<&[u8]> = bytes.chunks(cut).collect();
            prop_assert_eq!(read(&pieces).unwrap(), (of(1), of(2)));
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&[&bytes]);
        }
    }
}
