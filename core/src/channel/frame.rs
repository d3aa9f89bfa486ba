//! Frames: `u32` payload length, `u8` kind, `u32` stream, payload; integers little-endian.

use alloc::vec::Vec;

pub use super::assembler::{Assembler, MAX_PENDING, MAX_PENDING_STREAMS};
pub use super::control::{Credit, Pipe, Resize, signal_from_payload, signal_payload};

/// Bytes before the payload of a frame.
pub const HEADER_LEN: usize = 9;
/// Longest payload of one frame in bytes. A longer one is refused on sight of its header.
pub const MAX_PAYLOAD: usize = 64 * 1024;
/// Longest JSON message in bytes, put together from [`Kind::Part`] frames.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// Longest message of a kind that is never continued (`Hello`, `Event`), in bytes.
pub const MAX_SINGLE: usize = 60 * 1024;
/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// JSON greeting on stream 0, once from each side.
    Hello,
    /// JSON [`Request`](super::message::Request); the host picks the stream number.
    Open,
    /// Bytes for the standard input of the stream's process.
    Stdin,
    /// Bytes of its standard output.
    Stdout,
    /// Bytes of its standard error.
    Stderr,
    /// No more bytes will come on one [`Pipe`]; payload by [`Pipe::to_payload`].
    Eof,
    /// Room for more bytes on one [`Pipe`]; payload [`Credit`].
    Credit,
    /// JSON [`Event`](super::message::Event).
    Event,
    /// JSON [`Done`](super::message::Done): the answer; the last frame of its stream.
    Done,
    /// A signal for the stream's process; payload by [`signal_payload`].
    Signal,
    /// New size of the terminal; payload [`Resize`].
    Resize,
    /// The host no longer wants the answer; the agent ends the work and says `Done`.
    Cancel,
    /// Are you there?
    Ping,
    /// I am.
    Pong,
    /// The beginning of a message that the next `Open` or `Done` of the stream completes.
    Part,
    /// The host lets go of the stream's process, which goes on; the agent says `Done`.
    Detach,
    /// A kind of a later version, to be ignored.
    Unknown(u8),
}

impl Kind {
    /// The number that stands for this kind in a frame.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Hello => 1,
            Self::Open => 2,
            Self::Stdin => 3,
            Self::Stdout => 4,
            Self::Stderr => 5,
            Self::Eof => 6,
            Self::Credit => 7,
            Self::Event => 8,
            Self::Done => 9,
            Self::Signal => 10,
            Self::Resize => 11,
            Self::Cancel => 12,
            Self::Ping => 13,
            Self::Pong => 14,
            Self::Part => 15,
            Self::Detach => 16,
            Self::Unknown(byte) => byte,
        }
    }

    /// The kind that a number stands for.
    pub fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Hello,
            2 => Self::Open,
            3 => Self::Stdin,
            4 => Self::Stdout,
            5 => Self::Stderr,
            6 => Self::Eof,
            7 => Self::Credit,
            8 => Self::Event,
            9 => Self::Done,
            10 => Self::Signal,
            11 => Self::Resize,
            12 => Self::Cancel,
            13 => Self::Ping,
            14 => Self::Pong,
            15 => Self::Part,
            16 => Self::Detach,
            other => Self::Unknown(other),
        }
    }
}

/// One frame, taken off the pipe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// The stream it belongs to; 0 is the connection itself.
    pub stream: u32,
    /// At most [`MAX_PAYLOAD`] bytes, or [`MAX_MESSAGE`] when an [`Assembler`] made the frame.
    pub payload: Vec<u8>,
}

/// A violation of the protocol. The connection cannot go on after one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A header announces more than [`MAX_PAYLOAD`] bytes, or the caller wants to send that.
    #[error("frame of {length} bytes is longer than the {MAX_PAYLOAD} allowed")]
    TooLarge {
        /// The announced length in bytes.
        length: usize,
    },
    /// A message in parts grows beyond its cap.
    #[error("message on stream {stream} is longer than the {limit} bytes allowed")]
    MessageTooLong {
        /// Where it came.
        stream: u32,
        /// The cap that was passed, in bytes.
        limit: usize,
    },
    /// More than [`MAX_PENDING_STREAMS`] messages were begun and not finished.
    #[error("more than {MAX_PENDING_STREAMS} unfinished messages on one connection")]
    TooManyParts,
    /// A payload does not have the form of its kind.
    #[error("malformed {kind:?} frame of {length} bytes")]
    Malformed {
        /// The kind in the header.
        kind: Kind,
        /// Length of the payload in bytes.
        length: usize,
    },
}

/// Appends one frame to `out`.
///
/// Fails, with `out` untouched, when the payload is longer than [`MAX_PAYLOAD`].
pub fn encode(
    out: &mut Vec<u8>,
    kind: Kind,
    stream: u32,
    payload: &[u8],
) -> Result<(), FrameError> {
    let length = payload.len();
    let Some(announced) = u32::try_from(length).ok().filter(|_| length <= MAX_PAYLOAD) else {
        return Err(FrameError::TooLarge { length });
    };
    out.reserve(HEADER_LEN + length);
    out.extend_from_slice(&announced.to_le_bytes());
    out.push(kind.to_byte());
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(payload);
    Ok(())
}

/// Appends bytes of a pipe as one or more frames. The caller has credit for all of them.
pub fn encode_data(out: &mut Vec<u8>, pipe: Pipe, stream: u32, bytes: &[u8]) {
    for piece in bytes.chunks(MAX_PAYLOAD) {
        // A chunk is never longer than the cap.
        let _ = encode(out, pipe.kind(), stream, piece);
    }
}

/// Appends a JSON message, continued over [`Kind::Part`] frames when it is long.
///
/// Only `Open` and `Done` may be continued, up to [`MAX_MESSAGE`]; the other kinds are limited to
/// [`MAX_SINGLE`]. Fails, with `out` untouched, beyond these.
pub fn encode_message(
    out: &mut Vec<u8>,
    kind: Kind,
    stream: u32,
    json: &[u8],
) -> Result<(), FrameError> {
    let limit = message_limit(kind);
    if json.len() > limit {
        return Err(FrameError::MessageTooLong { stream, limit });
    }
    let mut rest = json;
    while let Some((part, tail)) = rest.split_at_checked(MAX_PAYLOAD)
        && !tail.is_empty()
    {
        encode(out, Kind::Part, stream, part)?;
        rest = tail;
    }
    encode(out, kind, stream, rest)
}

fn message_limit(kind: Kind) -> usize {
    match kind {
        Kind::Open | Kind::Done => MAX_MESSAGE,
        _ => MAX_SINGLE,
    }
}

/// Takes frames out of a byte stream that arrives in pieces of any size.
///
/// Call [`next`](Self::next) until it gives `None` after every [`push`](Self::push); then at most
/// one incomplete frame and one piece of input are held.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    taken: usize,
    broken: Option<usize>,
}

impl Decoder {
    /// A decoder at the start of a connection.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece of input. After a protocol error it is dropped, until
    /// [`take_buffered`](Self::take_buffered) starts the decoder afresh.
    pub fn push(&mut self, input: &[u8]) {
        if self.taken > 0 {
            self.buffer.drain(..self.taken);
            self.taken = 0;
        }
        if self.broken.is_none() {
            self.buffer.extend_from_slice(input);
        }
    }

    /// The next whole frame, or `None` when more input is needed.
    ///
    /// A frame that is too long is refused as soon as its length is known; every later call
    /// repeats the error, since the boundaries of frames are lost.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible, and resumes after None"
    )]
    pub fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if let Some(length) = self.broken {
            return Err(FrameError::TooLarge { length });
        }
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((announced, after)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*announced) as usize;
        if length > MAX_PAYLOAD {
            self.broken = Some(length);
            return Err(FrameError::TooLarge { length });
        }
        let Some((&[kind, s0, s1, s2, s3], after)) = after.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let Some(payload) = after.get(..length) else {
            return Ok(None);
        };
        let frame = Frame {
            kind: Kind::from_byte(kind),
            stream: u32::from_le_bytes([s0, s1, s2, s3]),
            payload: payload.to_vec(),
        };
        self.taken += HEADER_LEN + length;
        Ok(Some(frame))
    }

    /// Ends this decoder's life on the connection: gives the bytes not yet taken as frames, for a
    /// [`SyncScanner`](super::SyncScanner), and starts afresh.
    pub fn take_buffered(&mut self) -> Vec<u8> {
        let Self {
            mut buffer, taken, ..
        } = core::mem::take(self);
        buffer.drain(..taken);
        buffer
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn all(decoder: &mut Decoder) -> Result<Vec<Frame>, FrameError> {
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next()? {
            frames.push(frame);
        }
        Ok(frames)
    }

    fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Frame {
        Frame {
            kind,
            stream,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn layout_on_the_wire() {
        let mut out = Vec::new();
        encode(&mut out, Kind::Stdout, 0x0102_0304, b"hi").unwrap();
        assert_eq!(out, [2, 0, 0, 0, 4, 4, 3, 2, 1, b'h', b'i']);
    }

    #[test]
    fn kinds_keep_their_numbers() {
        for byte in 0..=u8::MAX {
            assert_eq!(Kind::from_byte(byte).to_byte(), byte);
        }
        assert_eq!(Kind::from_byte(17), Kind::Unknown(17));
        assert_eq!(Kind::from_byte(0), Kind::Unknown(0));
    }

    #[test]
    fn a_hostile_length_is_refused_from_its_four_bytes_alone() {
        for length in [0x1_0001_u32, u32::MAX, 0x8000_0000] {
            let mut decoder = Decoder::new();
            decoder.push(&length.to_le_bytes());
            let error = FrameError::TooLarge {
                length: length as usize,
            };
            assert_eq!(decoder.next(), Err(error.clone()));
            // Nothing is kept after that, and nothing is reserved.
            decoder.push(&[0; 4096]);
            assert_eq!(decoder.next(), Err(error));
            assert!(decoder.buffer.capacity() < 4096);
        }
    }

    #[test]
    fn the_longest_frame_passes_and_a_longer_one_is_not_sent() {
        let mut out = Vec::new();
        encode(&mut out, Kind::Stdin, 1, &vec![1; MAX_PAYLOAD]).unwrap();
        let before = out.len();
        let error = encode(&mut out, Kind::Stdin, 1, &vec![1; MAX_PAYLOAD + 1]);
        assert_eq!(
            error,
            Err(FrameError::TooLarge {
                length: MAX_PAYLOAD + 1
            })
        );
        assert_eq!(out.len(), before);
        let mut decoder = Decoder::new();
        decoder.push(&out);
        assert_eq!(all(&mut decoder).unwrap().len(), 1);
    }

    #[test]
    fn a_drained_decoder_holds_less_than_a_frame() {
        let mut wire = Vec::new();
        for stream in 0..100 {
            encode(&mut wire, Kind::Stdout, stream, &vec![0; 5000]).unwrap();
        }
        let mut decoder = Decoder::new();
        for piece in wire.chunks(777) {
            decoder.push(piece);
            all(&mut decoder).unwrap();
            assert!(decoder.buffer.len() - decoder.taken < HEADER_LEN + 5000);
            assert!(decoder.buffer.len() < HEADER_LEN + 5000 + 777);
        }
        assert!(decoder.take_buffered().is_empty());
    }

    #[test]
    fn buffered_bytes_can_be_taken_back() {
        let mut wire = Vec::new();
        encode(&mut wire, Kind::Ping, 0, b"").unwrap();
        wire.extend(b"\x05\0\0\0\x04");
        let mut decoder = Decoder::new();
        decoder.push(&wire);
        assert_eq!(decoder.next().unwrap(), Some(frame(Kind::Ping, 0, b"")));
        assert_eq!(decoder.next().unwrap(), None);
        assert_eq!(decoder.take_buffered(), b"\x05\0\0\0\x04");
        assert_eq!(decoder.next().unwrap(), None);
    }

    #[test]
    fn data_is_cut_into_frames() {
        let mut out = Vec::new();
        encode_data(&mut out, Pipe::Stderr, 4, &vec![9; 2 * MAX_PAYLOAD + 1]);
        let mut decoder = Decoder::new();
        decoder.push(&out);
        let lengths: Vec<_> = all(&mut decoder)
            .unwrap()
            .iter()
            .map(|f| f.payload.len())
            .collect();
        assert_eq!(lengths, [MAX_PAYLOAD, MAX_PAYLOAD, 1]);
        out.clear();
        encode_data(&mut out, Pipe::Stdin, 4, b"");
        assert!(out.is_empty());
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let payload = proptest::collection::vec(any::<u8>(), 0..300);
        let one = (any::<u8>(), any::<u32>(), payload).prop_map(|(kind, stream, payload)| Frame {
            kind: Kind::from_byte(kind),
            stream,
            payload,
        });
        proptest::collection::vec(one, 0..12)
    }

    proptest! {
        #[test]
        fn any_split_decodes_as_the_whole(
            frames in frames(),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let mut wire = Vec::new();
            for frame in &frames {
                encode(&mut wire, frame.kind, frame.stream, &frame.payload).unwrap();
            }
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::new();
            let mut decoded = Vec::new();
            for pair in cuts.windows(2) {
                decoder.push(&wire[pair[0]..pair[1]]);
                decoded.extend(all(&mut decoder).unwrap());
            }
            prop_assert_eq!(&decoded, &frames);

            let mut decoder = Decoder::new();
            let mut decoded = Vec::new();
            for byte in &wire {
                decoder.push(core::slice::from_ref(byte));
                decoded.extend(all(&mut decoder).unwrap());
            }
            prop_assert_eq!(decoded, frames);
        }

        #[test]
        fn arbitrary_bytes_never_panic_and_split_alike(
            wire in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..400),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut whole = Decoder::new();
            whole.push(&wire);
            let mut expected = Vec::new();
            let end = loop {
                match whole.next() {
                    Ok(Some(frame)) => expected.push(frame),
                    other => break other,
                }
            };
            let (head, tail) = wire.split_at(cut.index(wire.len() + 1));
            let mut split = Decoder::new();
            let mut found = Vec::new();
            let mut last = Ok(None);
            for piece in [head, tail] {
                split.push(piece);
                last = loop {
                    match split.next() {
                        Ok(Some(frame)) => found.push(frame),
                        other => break other,
                    }
                };
            }
            prop_assert_eq!(found, expected);
            prop_assert_eq!(last, end);
        }

    }
}
