//! The plain archive of a layer for somebody else to unpack, and what is told of a damaged layer
//! whoever unpacks it.

use std::io::{self, Read};
use std::sync::Arc;

use vdkr_core::digest::Digest;

use super::{ImageError, LayerSource, Wanted, from::drain};
use crate::error::TransferError;
use crate::layer::{Limits, Plain, UnpackError};
use crate::verify::VerifyingReader;

/// A layer's plain archive, which ends only when blob and archive are what they were said to be. Its
/// errors are [`ImageError`]s, the same as those of [`fetch`](super::fetch).
pub struct PlainLayer<F: LayerSource> {
    source: F,
    layer: Wanted,
    plain: Plain<'static, VerifyingReader<F::Reader>>,
    cancelled: Cancelled,
    ended: bool,
}

/// Says whether to stop.
type Cancelled = Arc<dyn Fn() -> bool + Send + Sync>;

impl<F: LayerSource> PlainLayer<F> {
    /// Begins to read. May block.
    pub fn new(
        source: F,
        layer: Wanted,
        reader: VerifyingReader<F::Reader>,
    ) -> Result<Self, ImageError> {
        Self::stoppable(source, layer, reader, || false)
    }

    /// As [`PlainLayer::new`]; `cancelled` is asked at every piece, and ends the archive with
    /// [`ImageError::Cancelled`].
    pub fn stoppable(
        source: F,
        layer: Wanted,
        reader: VerifyingReader<F::Reader>,
        cancelled: impl Fn() -> bool + Send + Sync + 'static,
    ) -> Result<Self, ImageError> {
        let algorithm = layer.diff_id.algorithm();
        let cancelled: Cancelled = Arc::new(cancelled);
        let asked = cancelled.clone();
        match Plain::new(reader, algorithm, Limits::default(), move || asked()) {
            Ok(plain) => Ok(Self {
                source,
                layer,
                plain,
                cancelled,
                ended: false,
            }),
            Err(error) => {
                let called = source.called(&layer);
                let error = damaged(called, error, &mut io::empty(), &*cancelled);
                Err(error.explain(&source))
            }
        }
    }

    fn check(&mut self) -> Result<(), LayerError> {
        let got = self.plain.digest();
        if got != self.layer.diff_id {
            let expected = self.layer.diff_id.clone();
            return Err(self.damaged(UnpackError::DiffId { expected, got }));
        }
        drain(self.plain.source_mut(), &*self.cancelled).map_err(TransferError::from)?;
        // Who stops has not seen the end of the blob.
        if self.plain.source_mut().is_verified() {
            Ok(())
        } else {
            Err(ImageError::Cancelled.into())
        }
    }

    fn damaged(&mut self, error: UnpackError) -> LayerError {
        let called = self.source.called(&self.layer);
        damaged(called, error, self.plain.source_mut(), &*self.cancelled)
    }
}

impl<F: LayerSource> Read for PlainLayer<F> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ended || buffer.is_empty() {
            return Ok(0);
        }
        let error = match self.plain.read(buffer) {
            Ok(0) => match self.check() {
                Ok(()) => {
                    self.ended = true;
                    return Ok(0);
                }
                Err(error) => error,
            },
            Ok(count) => return Ok(count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => self.damaged(error.into()),
        };
        Err(io::Error::other(error.explain(&self.source)))
    }
}

/// Why a layer did not come.
pub(super) enum LayerError {
    Transfer(Box<TransferError>),
    Image(ImageError),
}

impl LayerError {
    pub(super) fn explain(self, source: &impl LayerSource) -> ImageError {
        match self {
            Self::Transfer(error) => source.failed(*error),
            Self::Image(error) => error,
        }
    }
}

impl From<TransferError> for LayerError {
    fn from(error: TransferError) -> Self {
        Self::Transfer(Box::new(error))
    }
}

impl From<ImageError> for LayerError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

/// What a layer's failure is. `rest` is what was not read yet of its blob.
pub(super) fn damaged(
    called: &Digest,
    error: UnpackError,
    rest: &mut impl Read,
    cancelled: &dyn Fn() -> bool,
) -> LayerError {
    match error {
        UnpackError::Cancelled => return ImageError::Cancelled.into(),
        UnpackError::Stream(error) if error.get_ref().is_some_and(is_transfer) => {
            return TransferError::from(error).into();
        }
        UnpackError::Stream(_) | UnpackError::Archive(_) | UnpackError::DiffId { .. } => {
            // Damage has a simpler explanation when the rest shows that the blob itself is not what
            // was asked for.
            if let Err(blob) = drain(rest, cancelled)
                && let blob = TransferError::from(blob)
                && blob.is_content()
            {
                return blob.into();
            }
        }
        _ => {}
    }
    let (layer, source) = (called.clone(), Box::new(error));
    ImageError::Layer { layer, source }.into()
}

fn is_transfer(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.is::<TransferError>()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use vdkr_core::manifest::{Descriptor, media_type::OCI_LAYER};

    use super::*;
    use crate::pull::LocalBlobs;
    use crate::source::FileSource;

    /// What reading a file as the blob of a layer gives.
    fn read(content: &[u8], blob: &[u8], plain: &[u8]) -> Result<Vec<u8>, ImageError> {
        let mut read = Vec::new();
        copy(content, blob, plain, &mut read)?;
        Ok(read)
    }

    fn copy(
        content: &[u8],
        blob: &[u8],
        plain: &[u8],
        out: &mut impl io::Write,
    ) -> Result<u64, ImageError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let source = LocalBlobs::File(FileSource::new(file, "blob"));
        let layer = Wanted {
            blob: Descriptor::new(OCI_LAYER, Digest::sha256(blob), blob.len() as u64),
            diff_id: Digest::sha256(plain),
        };
        let reader = source.open_blob(&layer.blob).unwrap();
        let mut layer = PlainLayer::new(source, layer, reader)?;
        io::copy(&mut layer, out).map_err(|error| error.downcast::<ImageError>().unwrap())
    }

    fn gzip(plain: &[u8]) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(plain).unwrap();
        gzip.finish().unwrap()
    }

    #[test]
    fn compression_is_undone_whatever_it_is() {
        let plain = b"content ".repeat(1000);
        let zstd = zstd::stream::encode_all(plain.as_slice(), 1).unwrap();
        for blob in [plain.clone(), gzip(&plain), zstd] {
            assert_eq!(read(&blob, &blob, &plain).unwrap(), plain);
        }
        for short in [&b""[..], b"a", b"abc"] {
            assert_eq!(read(short, short, short).unwrap(), short);
        }
    }

    #[test]
    fn what_is_not_as_said_is_named() {
        let plain = b"content ".repeat(1000);
        let blob = gzip(&plain);
        let mut changed = blob.clone();
        changed[20] ^= 1;
        let content =
            |error: ImageError| matches!(&error, ImageError::Blob(error) if error.is_content());
        // Whether the damage shows at once, at the end, or behind the compressed stream.
        assert!(content(read(&changed, &blob, &plain).unwrap_err()));
        assert!(content(read(&blob[..9], &blob, &plain).unwrap_err()));
        let longer = [&blob[..], b"more"].concat();
        assert!(content(read(&longer, &blob, &plain).unwrap_err()));
        let other = read(&blob, &blob, b"other").unwrap_err();
        let expected = format!("layer {}: the layer's content is", Digest::sha256(b"other"));
        assert!(other.to_string().starts_with(&expected), "{other}");
        // A blob that is what it is called, and no stream.
        let torn = read(&changed, &changed, &plain).unwrap_err().to_string();
        assert!(torn.contains("stream is damaged"), "{torn}");
        let xz = b"\xfd7zXZ\0 and more";
        let refused = read(xz, xz, &plain).unwrap_err().to_string();
        assert!(refused.contains("compressed with xz"), "{refused}");
    }

    #[test]
    fn who_stops_gets_no_end() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let plain = b"content ".repeat(100_000);
        let blob = [gzip(&plain), gzip(b"")].concat();
        // At once, in the middle, and never.
        for pieces in [0, 3, usize::MAX] {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&blob).unwrap();
            let source = LocalBlobs::File(FileSource::new(file, "blob"));
            let layer = Wanted {
                blob: Descriptor::new(OCI_LAYER, Digest::sha256(&blob), blob.len() as u64),
                diff_id: Digest::sha256(&plain),
            };
            let reader = source.open_blob(&layer.blob).unwrap();
            let asked = AtomicUsize::new(0);
            let cancelled = move || asked.fetch_add(1, Ordering::Relaxed) >= pieces;
            let mut layer = PlainLayer::stoppable(source, layer, reader, cancelled).unwrap();
            let copied = io::copy(&mut layer, &mut io::sink());
            match copied.map_err(|error| error.downcast::<ImageError>().unwrap()) {
                Err(ImageError::Cancelled) => assert_ne!(pieces, usize::MAX),
                Ok(length) => assert_eq!((length, pieces), (800_000, usize::MAX)),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn a_bomb_is_noticed_before_it_is_handed_on() {
        let zeros = gzip(&vec![0; 64 << 20]);
        let blob = zeros.repeat(6);
        let copied = copy(&blob, &blob, b"", &mut io::sink());
        let error = copied.unwrap_err().to_string();
        assert!(error.contains("decompression bomb"), "{error}");
    }
}
