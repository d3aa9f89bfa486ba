//! The marker with which a connection starts.
//!
//! A virtio-serial port keeps what an earlier host left in it. The host therefore first sends a
//! [`SyncMarker`]; the agent throws input away until it sees one and answers with the same bytes;
//! the host throws input away until it sees exactly its own marker. Only then do frames flow.
//!
//! A marker in the place of a frame header reads as an impossible length, so an agent that still
//! believes in an earlier connection notices the new one by a
//! [`FrameError::TooLarge`](super::FrameError::TooLarge) and scans again, beginning with
//! [`Decoder::take_buffered`](super::Decoder::take_buffered). A marker that falls into the middle
//! of a cut-off frame is lost: a host repeats its marker when no answer comes.

/// The first bytes of every marker.
const MAGIC: [u8; 7] = *b"\0VDKR1\n";
/// Random bytes after [`MAGIC`].
const NONCE_LEN: usize = 8;
/// Length of a whole marker in bytes.
pub const SYNC_LEN: usize = MAGIC.len() + NONCE_LEN;

/// A fixed prefix and eight random bytes that name one connection.
///
/// The random part holds no zero byte, so that the zero at the head of a marker stands nowhere
/// else in it and a cut-off marker never hides the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncMarker([u8; NONCE_LEN]);

impl SyncMarker {
    /// Makes a marker from random bytes of the caller.
    pub fn new(random: [u8; 8]) -> Self {
        Self(random.map(|byte| if byte == 0 { 0xa5 } else { byte }))
    }

    /// The bytes that go onto the pipe, the same in both directions.
    pub fn to_bytes(self) -> [u8; SYNC_LEN] {
        let mut bytes = [0; SYNC_LEN];
        let (magic, nonce) = bytes.split_at_mut(MAGIC.len());
        magic.copy_from_slice(&MAGIC);
        nonce.copy_from_slice(&self.0);
        bytes
    }
}

/// Finds a marker in a stream of arbitrary bytes, in constant memory.
#[derive(Clone, Debug)]
pub struct SyncScanner {
    wanted: Option<SyncMarker>,
    seen: usize,
    nonce: [u8; NONCE_LEN],
}

impl SyncScanner {
    /// Accepts any marker: the agent's side.
    pub fn any() -> Self {
        Self {
            wanted: None,
            seen: 0,
            nonce: [0; NONCE_LEN],
        }
    }

    /// Accepts this marker only: the host's side, waiting for its own marker to come back.
    pub fn exactly(marker: SyncMarker) -> Self {
        Self {
            wanted: Some(marker),
            ..Self::any()
        }
    }

    /// Takes the next piece of input.
    ///
    /// Gives the marker and what follows it (the first bytes for a
    /// [`Decoder`](super::Decoder)), or `None` when all of `input` was thrown away. After a find
    /// the scanner starts afresh.
    pub fn push<'a>(&mut self, input: &'a [u8]) -> Option<(SyncMarker, &'a [u8])> {
        for (index, &byte) in input.iter().enumerate() {
            self.step(byte);
            if self.seen == SYNC_LEN {
                self.seen = 0;
                let marker = SyncMarker(self.nonce);
                if self.wanted.is_none_or(|wanted| wanted == marker) {
                    return Some((marker, input.get(index + 1..).unwrap_or_default()));
                }
            }
        }
        None
    }

    /// Moves the automaton by one byte. Zero always means "a marker may start here".
    fn step(&mut self, byte: u8) {
        if byte == MAGIC[0] {
            self.seen = 1;
        } else if let Some(&expected) = MAGIC.get(self.seen) {
            self.seen = if byte == expected { self.seen + 1 } else { 0 };
        } else if let Some(slot) = self.nonce.get_mut(self.seen - MAGIC.len()) {
            *slot = byte;
            self.seen += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    use crate::channel::{Decoder, FrameError};

    #[test]
    fn finds_a_marker_behind_rubbish_and_gives_the_rest() {
        let marker = SyncMarker::new(*b"abcdefgh");
        let mut input = b"kernel log\n\0VDKR1\nabc\0\0VDK".to_vec();
        input.extend(marker.to_bytes());
        input.extend(b"frames");
        assert_eq!(
            SyncScanner::any().push(&input),
            Some((marker, &b"frames"[..]))
        );
    }

    #[test]
    fn a_cut_off_marker_does_not_hide_the_next() {
        let marker = SyncMarker::new([7; 8]);
        for cut in 0..SYNC_LEN {
            let mut input = SyncMarker::new([9; 8]).to_bytes()[..cut].to_vec();
            input.extend(marker.to_bytes());
            assert_eq!(
                SyncScanner::any().push(&input),
                Some((marker, &b""[..])),
                "cut at {cut}"
            );
        }
    }

    #[test]
    fn the_host_waits_for_its_own_marker() {
        let (old, own) = (SyncMarker::new([1; 8]), SyncMarker::new([2; 8]));
        let mut scanner = SyncScanner::exactly(own);
        assert_eq!(scanner.push(&old.to_bytes()), None);
        assert_eq!(scanner.push(&own.to_bytes()), Some((own, &b""[..])));
    }

    #[test]
    fn a_marker_is_never_a_frame() {
        let mut decoder = Decoder::new();
        decoder.push(&SyncMarker::new([0; 8]).to_bytes());
        assert!(matches!(decoder.next(), Err(FrameError::TooLarge { .. })));
        let rest = decoder.take_buffered();
        assert!(SyncScanner::any().push(&rest).is_some());
    }

    proptest! {
        #[test]
        fn split_anywhere_gives_the_same_marker(
            before in proptest::collection::vec(any::<u8>(), 0..64),
            random in any::<[u8; 8]>(),
            after in proptest::collection::vec(any::<u8>(), 0..64),
            cut in any::<prop::sample::Index>(),
        ) {
            // A marker may begin inside the rubbish; it cannot be complete there by chance.
            let marker = SyncMarker::new(random);
            let mut input: Vec<u8> = before;
            input.extend(marker.to_bytes());
            input.extend(&after);
            let (head, tail) = input.split_at(cut.index(input.len() + 1));
            let mut scanner = SyncScanner::exactly(marker);
            let found = match scanner.push(head) {
                Some((found, rest)) => Some((found, [rest, tail].concat())),
                None => scanner.push(tail).map(|(found, rest)| (found, rest.to_vec())),
            };
            prop_assert_eq!(found, Some((marker, after)));
        }
    }
}
