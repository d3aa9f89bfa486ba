//! Messages out of a stream of bytes.

use alloc::vec::Vec;

/// Bytes before everything else of an answer; a request's are more.
const SHORTEST: usize = 16;

/// The stream makes no sense: the boundaries of messages are lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a file system message of {length} bytes, where {SHORTEST} to {limit} are allowed")]
pub struct SplitError {
    /// The announced length.
    pub length: usize,
    /// The longest that is allowed.
    pub limit: usize,
}

/// Cuts a stream of messages, each of which begins with its own length.
#[derive(Clone, Debug)]
pub struct Splitter {
    buffer: Vec<u8>,
    taken: usize,
    limit: usize,
}

impl Splitter {
    /// A splitter that takes messages of at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: Vec::new(),
            taken: 0,
            limit,
        }
    }

    /// Adds the next bytes. Call [`next`](Self::next) until it gives `None` after each piece; then
    /// no more than one message and one piece are held.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message, its length word included. The error stays.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible, and resumes after None"
    )]
    pub fn next(&mut self) -> Result<Option<&[u8]>, SplitError> {
        let rest = self.buffer.get(self.taken..).unwrap_or_default();
        let Some((word, _)) = rest.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*word) as usize;
        if !(SHORTEST..=self.limit).contains(&length) {
            return Err(SplitError {
                length,
                limit: self.limit,
            });
        }
        if rest.len() < length {
            return Ok(None);
        }
        let start = self.taken;
        self.taken += length;
        Ok(self.buffer.get(start..start + length))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    fn message(length: usize, byte: u8) -> Vec<u8> {
        let mut message = vec![byte; length];
        message[..4].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        message
    }

    #[test]
    fn a_length_that_cannot_be_is_refused_at_once() {
        for length in [0_u32, 15, 101, u32::MAX] {
            let mut splitter = Splitter::new(100);
            splitter.push(&length.to_le_bytes());
            let error = SplitError {
                length: length as usize,
                limit: 100,
            };
            assert_eq!(splitter.next(), Err(error));
            assert_eq!(splitter.next(), Err(error));
        }
        let mut splitter = Splitter::new(100);
        splitter.push(&message(100, 1));
        assert_eq!(splitter.next().unwrap().unwrap().len(), 100);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_messages(
            lengths in proptest::collection::vec(16usize..80, 0..10),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..10),
        ) {
            let messages: Vec<_> = lengths.iter().zip(1..).map(|(&l, b)| message(l, b)).collect();
            let wire = messages.concat();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(wire.len() + 1)).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let mut splitter = Splitter::new(80);
            let mut found = Vec::new();
            for pair in cuts.windows(2) {
                splitter.push(&wire[pair[0]..pair[1]]);
                while let Some(message) = splitter.next().unwrap() {
                    found.push(message.to_vec());
                }
                prop_assert!(splitter.buffer.len() - splitter.taken < 80);
            }
            prop_assert_eq!(found, messages);
        }
    }
}
