//! Flow control: a sender of pipe bytes never has more under way than the receiver granted.
//!
//! Both sides count for themselves; the only thing on the wire is a
//! [`Credit`](super::frame::Credit) frame from the receiver. One window stands for one pipe of one
//! stream.

/// Bytes that a sender may send before it hears of the receiver.
pub const INITIAL_CREDIT: u32 = 256 * 1024;
/// The receiver gathers consumed bytes until they are worth a frame of this many bytes. It is well
/// below [`INITIAL_CREDIT`], so a sender without credit always gets some once bytes are consumed.
pub const CREDIT_BATCH: u32 = 64 * 1024;
/// Credit that a sender lets pile up; more is a violation of the protocol.
pub const MAX_CREDIT: u32 = 16 * 1024 * 1024;

/// A violation of flow control by the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowError {
    /// The receiver grants more than any window may be.
    #[error("credit of {granted} bytes on top of {available} passes the {MAX_CREDIT} allowed")]
    TooMuchCredit {
        /// What the frame grants.
        granted: u32,
        /// What was left.
        available: u32,
    },
    /// The sender sends more than it was granted.
    #[error("{sent} bytes arrived where {available} were allowed")]
    Overrun {
        /// Bytes in the frame.
        sent: usize,
        /// Bytes it was allowed to have.
        available: u32,
    },
}

/// The sender's side of one pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendWindow {
    available: u32,
}

impl Default for SendWindow {
    fn default() -> Self {
        Self {
            available: INITIAL_CREDIT,
        }
    }
}

impl SendWindow {
    /// A window with [`INITIAL_CREDIT`].
    pub fn new() -> Self {
        Self::default()
    }

    /// How many bytes may be sent now.
    pub fn available(&self) -> usize {
        self.available as usize
    }

    /// Takes credit for up to `wanted` bytes and gives how many of them may be sent: 0 means that
    /// the sender waits for a grant.
    pub fn reserve(&mut self, wanted: usize) -> usize {
        let taken = u32::try_from(wanted)
            .unwrap_or(u32::MAX)
            .min(self.available);
        self.available -= taken;
        taken as usize
    }

    /// Adds what a credit frame grants.
    pub fn grant(&mut self, bytes: u32) -> Result<(), WindowError> {
        match self.available.checked_add(bytes) {
            Some(sum) if sum <= MAX_CREDIT => {
                self.available = sum;
                Ok(())
            }
            _ => Err(WindowError::TooMuchCredit {
                granted: bytes,
                available: self.available,
            }),
        }
    }
}

/// The receiver's side of one pipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiveWindow {
    /// What the sender may still send, as this side knows it.
    outstanding: u32,
    /// Received and not yet consumed.
    buffered: u32,
    /// Consumed and not yet granted again.
    consumed: u32,
}

impl Default for ReceiveWindow {
    fn default() -> Self {
        Self {
            outstanding: INITIAL_CREDIT,
            buffered: 0,
            consumed: 0,
        }
    }
}

impl ReceiveWindow {
    /// A window whose sender has [`INITIAL_CREDIT`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts bytes that arrived, before they are kept. Refuses what was not granted, so that the
    /// buffer behind this window never holds more than [`INITIAL_CREDIT`] bytes.
    pub fn received(&mut self, bytes: usize) -> Result<(), WindowError> {
        match u32::try_from(bytes)
            .ok()
            .filter(|&bytes| bytes <= self.outstanding)
        {
            Some(bytes) => {
                self.outstanding -= bytes;
                self.buffered += bytes;
                Ok(())
            }
            None => Err(WindowError::Overrun {
                sent: bytes,
                available: self.outstanding,
            }),
        }
    }

    /// Counts bytes that were handed on, and gives the credit to send now, if it is time.
    ///
    /// Never grants more than arrived, whatever the caller says.
    pub fn consumed(&mut self, bytes: usize) -> Option<u32> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX).min(self.buffered);
        self.buffered -= bytes;
        self.consumed += bytes;
        if self.consumed < CREDIT_BATCH {
            return None;
        }
        let granted = core::mem::take(&mut self.consumed);
        self.outstanding += granted;
        Some(granted)
    }

    /// Bytes that arrived and were not yet handed on.
    pub fn buffered(&self) -> usize {
        self.buffered as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_sender_stops_at_its_credit() {
        let mut window = SendWindow::new();
        assert_eq!(window.reserve(200 * 1024), 200 * 1024);
        assert_eq!(window.reserve(100 * 1024), 56 * 1024);
        assert_eq!(window.reserve(1), 0);
        window.grant(10).unwrap();
        assert_eq!(window.reserve(usize::MAX), 10);
    }

    #[test]
    fn credit_beyond_reason_is_refused_and_changes_nothing() {
        let mut window = SendWindow::new();
        for granted in [u32::MAX, MAX_CREDIT, MAX_CREDIT - INITIAL_CREDIT + 1] {
            assert_eq!(
                window.grant(granted),
                Err(WindowError::TooMuchCredit {
                    granted,
                    available: INITIAL_CREDIT
                })
            );
        }
        assert_eq!(window.available(), INITIAL_CREDIT as usize);
        assert_eq!(window.grant(MAX_CREDIT - INITIAL_CREDIT), Ok(()));
    }

    #[test]
    fn bytes_without_credit_are_refused() {
        let mut window = ReceiveWindow::new();
        assert_eq!(window.received(INITIAL_CREDIT as usize), Ok(()));
        assert_eq!(
            window.received(1),
            Err(WindowError::Overrun {
                sent: 1,
                available: 0
            })
        );
        let sent = usize::MAX;
        assert_eq!(
            window.received(sent),
            Err(WindowError::Overrun { sent, available: 0 })
        );
        assert_eq!(window.consumed(CREDIT_BATCH as usize - 1), None);
        assert_eq!(window.consumed(1), Some(CREDIT_BATCH));
        assert_eq!(window.received(CREDIT_BATCH as usize), Ok(()));
    }

    #[test]
    fn nobody_grants_what_never_came() {
        let mut window = ReceiveWindow::new();
        assert_eq!(window.consumed(usize::MAX), None);
        window.received(CREDIT_BATCH as usize).unwrap();
        assert_eq!(window.consumed(usize::MAX), Some(CREDIT_BATCH));
        assert_eq!(window.buffered(), 0);
    }

    proptest! {
        /// Whatever the sizes, sender and receiver agree, memory is bounded, and bytes get through.
        #[test]
        fn both_sides_agree_and_never_stall(
            steps in proptest::collection::vec((1usize..100_000, 1usize..100_000), 1..200),
        ) {
            let (mut sender, mut receiver) = (SendWindow::new(), ReceiveWindow::new());
            for (send, consume) in steps {
                let sent = sender.reserve(send);
                receiver.received(sent).unwrap();
                prop_assert!(receiver.buffered() <= INITIAL_CREDIT as usize);
                if let Some(bytes) = receiver.consumed(consume) {
                    sender.grant(bytes).unwrap();
                }
                prop_assert_eq!(sender.available, receiver.outstanding);
                prop_assert!(sender.available() > 0 || receiver.buffered() > 0);
            }
        }
    }
}
