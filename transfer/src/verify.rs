//! The check that stands at every boundary: content has the digest and the size it was asked for by.

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use vdkr_core::digest::{Digest, Hasher};
use vdkr_core::manifest::Descriptor;

use crate::error::TransferError;

/// Compares content with a descriptor, piece by piece.
///
/// Whoever feeds it must not act on the last piece before [`Verifier::finish`] has agreed.
#[derive(Clone, Debug)]
pub struct Verifier {
    expected: Digest,
    size: u64,
    seen: u64,
    hasher: Hasher,
}

impl Verifier {
    /// A check for this content.
    pub fn new(digest: &Digest, size: u64) -> Self {
        Self {
            expected: digest.clone(),
            size,
            seen: 0,
            hasher: Hasher::new(digest.algorithm()),
        }
    }

    /// How many bytes have been taken in.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// How many bytes are still to come.
    pub fn missing(&self) -> u64 {
        self.size - self.seen
    }

    /// Takes in the next bytes; too many are an error at once, not only at the end.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), TransferError> {
        if bytes.len() as u64 > self.missing() {
            return Err(self.wrong_size(self.seen + bytes.len() as u64));
        }
        self.hasher.update(bytes);
        self.seen += bytes.len() as u64;
        Ok(())
    }

    /// The verdict, when the content has ended.
    pub fn finish(self) -> Result<(), TransferError> {
        if self.seen != self.size {
            return Err(self.wrong_size(self.seen));
        }
        let got = self.hasher.finish();
        if got != self.expected {
            return Err(TransferError::DigestMismatch {
                what: "content".to_owned(),
                expected: self.expected,
                got,
            });
        }
        Ok(())
    }

    /// Checks bytes that are all at hand.
    pub fn check(bytes: &[u8], digest: &Digest, size: u64) -> Result<(), TransferError> {
        let mut verifier = Self::new(digest, size);
        verifier.update(bytes)?;
        verifier.finish()
    }

    fn wrong_size(&self, got: u64) -> TransferError {
        TransferError::SizeMismatch {
            what: self.expected.to_string(),
            expected: self.size,
            got,
        }
    }
}

/// A reader that fails instead of ending when what it read is not what the descriptor promises, and
/// fails as soon as there is more than promised. Reads both ways, blocking and not.
///
/// Errors are [`TransferError`]s inside [`io::Error`]; `TransferError::from` takes them out. Once it
/// has failed it keeps failing.
#[derive(Debug)]
pub struct VerifyingReader<R> {
    inner: R,
    state: State,
}

#[derive(Debug)]
enum State {
    Reading(Box<Verifier>),
    Good,
    Bad(TransferError),
}

impl<R> VerifyingReader<R> {
    /// Wraps a reader of the content that `descriptor` describes.
    pub fn new(inner: R, descriptor: &Descriptor) -> Self {
        let verifier = Verifier::new(&descriptor.digest, descriptor.size);
        Self {
            inner,
            state: State::Reading(Box::new(verifier)),
        }
    }

    /// Whether the end was reached and everything was as promised.
    pub fn is_verified(&self) -> bool {
        matches!(self.state, State::Good)
    }

    /// The wrapped reader.
    pub fn get_ref(&self) -> &R {
        &self.inner
    }

    fn take(&mut self, bytes: &[u8]) -> io::Result<()> {
        let verifier = match &mut self.state {
            State::Reading(verifier) => verifier,
            State::Good => return Ok(()),
            State::Bad(error) => return Err(error.clone().into()),
        };
        if !bytes.is_empty() {
            let taken = verifier.update(bytes);
            return taken.map_err(|error| self.fail(error));
        }
        match std::mem::replace(&mut self.state, State::Good) {
            State::Reading(verifier) => verifier.finish().map_err(|error| self.fail(error)),
            _ => Ok(()),
        }
    }

    fn fail(&mut self, error: TransferError) -> io::Error {
        self.state = State::Bad(error.clone());
        error.into()
    }

    fn settled(&self) -> Option<io::Result<()>> {
        match &self.state {
            State::Reading(_) => None,
            State::Good => Some(Ok(())),
            State::Bad(error) => Some(Err(error.clone().into())),
        }
    }
}

impl<R: Read> VerifyingReader<R> {
    /// Reads and checks everything that is left. Nothing is returned unless all of it is good.
    pub fn read_verified(mut self) -> Result<Vec<u8>, TransferError> {
        // The size is somebody's word until the bytes are there.
        const TRUSTED: u64 = 1024 * 1024;
        let expected = match &self.state {
            State::Reading(verifier) => verifier.missing(),
            _ => 0,
        };
        let mut content = Vec::with_capacity(expected.min(TRUSTED) as usize);
        self.read_to_end(&mut content)?;
        Ok(content)
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Some(settled) = self.settled() {
            return settled.map(|()| 0);
        }
        let count = self.inner.read(buffer)?;
        self.take(&buffer[..count])?;
        Ok(count)
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for VerifyingReader<R> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if let Some(settled) = this.settled() {
            return Poll::Ready(settled);
        }
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.inner).poll_read(cx, buffer))?;
        let taken = this.take(&buffer.filled()[before..]);
        if taken.is_err() {
            // What was not agreed to is not handed out.
            buffer.set_filled(before);
        }
        Poll::Ready(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn describe(bytes: &[u8]) -> Descriptor {
        Descriptor::new("a/b", Digest::sha256(bytes), bytes.len() as u64)
    }

    fn read_all(bytes: &[u8], descriptor: &Descriptor) -> Result<Vec<u8>, TransferError> {
        VerifyingReader::new(bytes, descriptor).read_verified()
    }

    async fn read_all_async(
        bytes: &[u8],
        descriptor: &Descriptor,
    ) -> Result<Vec<u8>, TransferError> {
        let mut out = Vec::new();
        let mut reader = VerifyingReader::new(bytes, descriptor);
        tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut out).await?;
        Ok(out)
    }

    #[tokio::test]
    async fn good_content_passes_both_ways() {
        for content in [vec![], vec![1], vec![7; 100_000]] {
            let descriptor = describe(&content);
            assert_eq!(read_all(&content, &descriptor).unwrap(), content);
            let read = read_all_async(&content, &descriptor).await.unwrap();
            assert_eq!(read, content);
        }
    }

    #[tokio::test]
    async fn other_content_fails_with_the_reason() {
        let descriptor = describe(b"abc");
        for (content, is_digest) in [
            (&b"abd"[..], true),
            (b"ab", false),
            (b"abcd", false),
            (b"", false),
        ] {
            for error in [
                read_all(content, &descriptor).unwrap_err(),
                read_all_async(content, &descriptor).await.unwrap_err(),
            ] {
                let digest = matches!(error, TransferError::DigestMismatch { .. });
                assert_eq!(digest, is_digest, "{error}");
                assert!(error.is_content());
            }
        }
    }

    #[test]
    fn too_much_fails_before_the_end() {
        let endless = io::repeat(0);
        let mut reader = VerifyingReader::new(endless, &describe(&[0; 10]));
        let mut buffer = [0; 8];
        assert_eq!(reader.read(&mut buffer).unwrap(), 8);
        assert!(reader.read(&mut buffer).is_err());
        assert!(reader.read(&mut buffer).is_err(), "it keeps failing");
        assert!(!reader.is_verified());
    }

    #[test]
    fn the_end_is_reached_only_once_verified() {
        let mut reader = VerifyingReader::new(&b"abc"[..], &describe(b"abc"));
        let mut buffer = [0; 8];
        assert_eq!(Read::read(&mut reader, &mut buffer).unwrap(), 3);
        assert!(!reader.is_verified());
        assert_eq!(Read::read(&mut reader, &mut buffer).unwrap(), 0);
        assert!(reader.is_verified());
    }

    proptest! {
        #[test]
        fn exactly_the_described_content_passes(
            content in prop::collection::vec(any::<u8>(), 0..200),
            other in prop::collection::vec(any::<u8>(), 0..200),
            size in 0u64..200,
        ) {
            let mut descriptor = describe(&content);
            prop_assert_eq!(read_all(&other, &descriptor).is_ok(), other == content);
            descriptor.size = size;
            prop_assert_eq!(read_all(&content, &descriptor).is_ok(), size == content.len() as u64);
        }
    }
}
