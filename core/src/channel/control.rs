//! Payloads of the small binary frames: end of a pipe, credit, terminal size, signal.

use super::frame::{FrameError, Kind};

/// One of the three byte streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pipe {
    /// From the host to the process.
    Stdin,
    /// From the process to the host.
    Stdout,
    /// From the process to the host.
    Stderr,
}

impl Pipe {
    /// The kind of frame that carries this pipe's bytes.
    pub fn kind(self) -> Kind {
        match self {
            Self::Stdin => Kind::Stdin,
            Self::Stdout => Kind::Stdout,
            Self::Stderr => Kind::Stderr,
        }
    }

    /// The pipe whose bytes a frame of this kind carries.
    pub fn of_kind(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Stdin => Some(Self::Stdin),
            Kind::Stdout => Some(Self::Stdout),
            Kind::Stderr => Some(Self::Stderr),
            _ => None,
        }
    }

    /// Payload of an [`Kind::Eof`] frame.
    pub fn to_payload(self) -> [u8; 1] {
        match self {
            Self::Stdin => [0],
            Self::Stdout => [1],
            Self::Stderr => [2],
        }
    }

    /// Reads the payload of an [`Kind::Eof`] frame.
    pub fn from_payload(payload: &[u8]) -> Result<Self, FrameError> {
        match payload {
            [0] => Ok(Self::Stdin),
            [1] => Ok(Self::Stdout),
            [2] => Ok(Self::Stderr),
            _ => Err(FrameError::Malformed {
                kind: Kind::Eof,
                length: payload.len(),
            }),
        }
    }
}

/// Room that a receiver grants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    /// The pipe that may carry more.
    pub pipe: Pipe,
    /// How many bytes more.
    pub bytes: u32,
}

impl Credit {
    /// Payload of a [`Kind::Credit`] frame.
    pub fn to_payload(self) -> [u8; 5] {
        let [pipe] = self.pipe.to_payload();
        let [b0, b1, b2, b3] = self.bytes.to_le_bytes();
        [pipe, b0, b1, b2, b3]
    }

    /// Reads the payload of a [`Kind::Credit`] frame.
    pub fn from_payload(payload: &[u8]) -> Result<Self, FrameError> {
        let malformed = FrameError::Malformed {
            kind: Kind::Credit,
            length: payload.len(),
        };
        let &[pipe, b0, b1, b2, b3] = payload else {
            return Err(malformed);
        };
        let pipe = Pipe::from_payload(&[pipe]).map_err(|_| malformed)?;
        Ok(Self {
            pipe,
            bytes: u32::from_le_bytes([b0, b1, b2, b3]),
        })
    }
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub cols: u16,
}

impl Resize {
    /// Payload of a [`Kind::Resize`] frame.
    pub fn to_payload(self) -> [u8; 4] {
        let ([r0, r1], [c0, c1]) = (self.rows.to_le_bytes(), self.cols.to_le_bytes());
        [r0, r1, c0, c1]
    }

    /// Reads the payload of a [`Kind::Resize`] frame.
    pub fn from_payload(payload: &[u8]) -> Result<Self, FrameError> {
        let &[r0, r1, c0, c1] = payload else {
            return Err(FrameError::Malformed {
                kind: Kind::Resize,
                length: payload.len(),
            });
        };
        Ok(Self {
            rows: u16::from_le_bytes([r0, r1]),
            cols: u16::from_le_bytes([c0, c1]),
        })
    }
}

/// Payload of a [`Kind::Signal`] frame: a Linux signal number.
pub fn signal_payload(signal: u8) -> [u8; 1] {
    [signal]
}

/// Reads the payload of a [`Kind::Signal`] frame; numbers beyond 64 and 0 are refused.
pub fn signal_from_payload(payload: &[u8]) -> Result<u8, FrameError> {
    match payload {
        &[signal @ 1..=64] => Ok(signal),
        _ => Err(FrameError::Malformed {
            kind: Kind::Signal,
            length: payload.len(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_payloads() {
        for pipe in [Pipe::Stdin, Pipe::Stdout, Pipe::Stderr] {
            assert_eq!(Pipe::from_payload(&pipe.to_payload()), Ok(pipe));
            assert_eq!(Pipe::of_kind(pipe.kind()), Some(pipe));
            let credit = Credit {
                pipe,
                bytes: 0xdead_beef,
            };
            assert_eq!(Credit::from_payload(&credit.to_payload()), Ok(credit));
        }
        let size = Resize {
            rows: 24,
            cols: 0x1234,
        };
        assert_eq!(Resize::from_payload(&size.to_payload()), Ok(size));
        assert_eq!(signal_from_payload(&signal_payload(15)), Ok(15));
        for bad in [&b""[..], &[3], &[0, 0], &[0; 6], &[9, 0, 0, 0, 0]] {
            assert!(Pipe::from_payload(bad).is_err());
            assert!(Credit::from_payload(bad).is_err());
            assert!(Resize::from_payload(bad).is_err());
        }
        for bad in [&b""[..], &[0], &[65], &[9, 9]] {
            assert!(signal_from_payload(bad).is_err());
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_what_was_written(payload in prop::collection::vec(any::<u8>(), 0..8)) {
            let pipe = Pipe::from_payload(&payload).map(|pipe| pipe.to_payload().to_vec());
            let legal = matches!(payload[..], [0..=2]);
            prop_assert_eq!(pipe.ok(), legal.then(|| payload.clone()));
            let credit = Credit::from_payload(&payload).map(|credit| credit.to_payload().to_vec());
            let legal = matches!(payload[..], [0..=2, _, _, _, _]);
            prop_assert_eq!(credit.ok(), legal.then(|| payload.clone()));
            let size = Resize::from_payload(&payload).map(|size| size.to_payload().to_vec());
            prop_assert_eq!(size.ok(), (payload.len() == 4).then(|| payload.clone()));
            let signal = signal_from_payload(&payload).map(|signal| signal_payload(signal).to_vec());
            let legal = matches!(payload[..], [1..=64]);
            prop_assert_eq!(signal.ok(), legal.then(|| payload.clone()));
        }

        #[test]
        fn refusals_say_the_kind_and_the_length(payload in prop::collection::vec(any::<u8>(), 6..40)) {
            let length = payload.len();
            let malformed = |kind| FrameError::Malformed { kind, length };
            prop_assert_eq!(Pipe::from_payload(&payload), Err(malformed(Kind::Eof)));
            prop_assert_eq!(Credit::from_payload(&payload), Err(malformed(Kind::Credit)));
            prop_assert_eq!(Resize::from_payload(&payload), Err(malformed(Kind::Resize)));
            prop_assert_eq!(signal_from_payload(&payload), Err(malformed(Kind::Signal)));
        }
    }
}
