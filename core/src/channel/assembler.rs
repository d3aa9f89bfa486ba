//! Messages longer than a frame.

use alloc::{collections::BTreeMap, vec::Vec};

use super::frame::{Frame, FrameError, Kind, MAX_MESSAGE};

/// Bytes of unfinished messages that one connection may hold, over all its streams.
pub const MAX_PENDING: usize = 2 * MAX_MESSAGE;
/// Streams of one connection that may have an unfinished message at one time.
pub const MAX_PENDING_STREAMS: usize = 64;

/// Joins [`Kind::Part`] frames with the message that completes them, with caps per message and
/// per connection.
#[derive(Clone, Debug, Default)]
pub struct Assembler {
    pending: BTreeMap<u32, Vec<u8>>,
    held: usize,
}

impl Assembler {
    /// An assembler with nothing pending.
    pub fn new() -> Self {
        Self::default()
    }

    /// Passes a frame through: a part is kept (`None`), a message comes out whole, everything
    /// else as it is. A `Cancel` also forgets the parts of its stream.
    ///
    /// Errors mean that the other side breaks the protocol.
    pub fn push(&mut self, mut frame: Frame) -> Result<Option<Frame>, FrameError> {
        match frame.kind {
            Kind::Part => {
                self.keep(frame.stream, &frame.payload)?;
                return Ok(None);
            }
            Kind::Open | Kind::Done => {
                if let Some(mut whole) = self.pending.remove(&frame.stream) {
                    self.held = self.held.saturating_sub(whole.len());
                    if whole.len() + frame.payload.len() > MAX_MESSAGE {
                        return Err(Self::too_long(frame.stream, MAX_MESSAGE));
                    }
                    whole.extend_from_slice(&frame.payload);
                    frame.payload = whole;
                }
            }
            Kind::Cancel => self.forget(frame.stream),
            _ => {}
        }
        Ok(Some(frame))
    }

    /// Drops what is pending for a stream that has ended.
    pub fn forget(&mut self, stream: u32) {
        if let Some(parts) = self.pending.remove(&stream) {
            self.held = self.held.saturating_sub(parts.len());
        }
    }

    fn keep(&mut self, stream: u32, part: &[u8]) -> Result<(), FrameError> {
        if self.held + part.len() > MAX_PENDING {
            return Err(Self::too_long(stream, MAX_PENDING));
        }
        if self.pending.len() >= MAX_PENDING_STREAMS && !self.pending.contains_key(&stream) {
            return Err(FrameError::TooManyParts);
        }
        let parts = self.pending.entry(stream).or_default();
        if parts.len() + part.len() > MAX_MESSAGE {
            return Err(Self::too_long(stream, MAX_MESSAGE));
        }
        parts.extend_from_slice(part);
        self.held += part.len();
        Ok(())
    }

    fn too_long(stream: u32, limit: usize) -> FrameError {
        FrameError::MessageTooLong { stream, limit }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;
    use crate::channel::frame::MAX_SINGLE;
    use crate::channel::{Decoder, MAX_PAYLOAD, encode_message};

    fn all(decoder: &mut Decoder) -> Vec<Frame> {
        core::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Frame {
        Frame {
            kind,
            stream,
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn a_message_at_its_cap_passes_and_one_byte_more_does_not() {
        let mut out = Vec::new();
        encode_message(&mut out, Kind::Open, 1, &vec![b' '; MAX_MESSAGE]).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&out);
        let mut assembler = Assembler::new();
        let mut whole = Vec::new();
        for frame in all(&mut decoder) {
            whole.extend(assembler.push(frame).unwrap());
        }
        assert_eq!(whole.len(), 1);
        assert_eq!(whole[0].payload.len(), MAX_MESSAGE);
        assert_eq!(assembler.held, 0);

        let limit = MAX_MESSAGE;
        let error = FrameError::MessageTooLong { stream: 1, limit };
        out.clear();
        let long = vec![b' '; MAX_MESSAGE + 1];
        assert_eq!(
            encode_message(&mut out, Kind::Open, 1, &long),
            Err(error.clone())
        );
        for part in long.chunks(MAX_PAYLOAD) {
            let last = part.len() < MAX_PAYLOAD;
            let kind = if last { Kind::Open } else { Kind::Part };
            let pushed = assembler.push(frame(kind, 1, part));
            assert_eq!(pushed, if last { Err(error.clone()) } else { Ok(None) });
        }
        let error = FrameError::MessageTooLong {
            stream: 1,
            limit: MAX_SINGLE,
        };
        assert_eq!(
            encode_message(&mut out, Kind::Event, 1, &vec![b' '; MAX_SINGLE + 1]),
            Err(error)
        );
        assert!(out.is_empty());
    }

    #[test]
    fn unfinished_messages_are_bounded_over_the_connection() {
        let mut assembler = Assembler::new();
        for stream in 0..64 {
            assert_eq!(assembler.push(frame(Kind::Part, stream, b"x")), Ok(None));
        }
        assert_eq!(
            assembler.push(frame(Kind::Part, 64, b"x")),
            Err(FrameError::TooManyParts)
        );
        assert_eq!(assembler.push(frame(Kind::Part, 63, b"x")), Ok(None));
        let cancel = frame(Kind::Cancel, 3, b"");
        assert_eq!(assembler.push(cancel.clone()), Ok(Some(cancel)));
        assert_eq!(assembler.push(frame(Kind::Part, 64, b"x")), Ok(None));

        let mut assembler = Assembler::new();
        let part = vec![0; MAX_PAYLOAD];
        let fitting = MAX_PENDING / MAX_PAYLOAD;
        for index in 0..fitting {
            let stream = u32::try_from(index % 4).unwrap();
            assert_eq!(assembler.push(frame(Kind::Part, stream, &part)), Ok(None));
        }
        assert_eq!(
            assembler.push(frame(Kind::Part, 5, b"x")),
            Err(FrameError::MessageTooLong {
                stream: 5,
                limit: MAX_PENDING
            })
        );
    }

    #[test]
    fn streams_do_not_mix_their_parts() {
        let mut assembler = Assembler::new();
        assembler.push(frame(Kind::Part, 1, b"on")).unwrap();
        assembler.push(frame(Kind::Part, 2, b"tw")).unwrap();
        let stdout = frame(Kind::Stdout, 1, b"bytes");
        assert_eq!(assembler.push(stdout.clone()), Ok(Some(stdout)));
        let one = assembler.push(frame(Kind::Open, 1, b"e")).unwrap();
        let two = assembler.push(frame(Kind::Open, 2, b"o")).unwrap();
        assert_eq!(one, Some(frame(Kind::Open, 1, b"one")));
        assert_eq!(two, Some(frame(Kind::Open, 2, b"two")));
    }

    proptest! {
        #[test]
        fn messages_come_back_whole(
            json in proptest::collection::vec(any::<u8>(), 0..3 * MAX_PAYLOAD),
            stream in any::<u32>(),
        ) {
            let mut wire = Vec::new();
            encode_message(&mut wire, Kind::Done, stream, &json).unwrap();
            let mut decoder = Decoder::new();
            decoder.push(&wire);
            let mut assembler = Assembler::new();
            let mut whole = Vec::new();
            for frame in all(&mut decoder) {
                whole.extend(assembler.push(frame).unwrap());
            }
            prop_assert_eq!(whole, [frame(Kind::Done, stream, &json)]);
        }

        #[test]
        fn assembler_bookkeeping_never_drifts(
            frames in proptest::collection::vec(
                (prop_oneof![Just(15u8), Just(2), Just(12), Just(4)], 0u32..5,
                 proptest::collection::vec(any::<u8>(), 0..20)), 0..60),
        ) {
            let mut assembler = Assembler::new();
            for (kind, stream, payload) in frames {
                assembler.push(Frame { kind: Kind::from_byte(kind), stream, payload }).unwrap();
                let held: usize = assembler.pending.values().map(Vec::len).sum();
                prop_assert_eq!(assembler.held, held);
            }
        }
    }
}
