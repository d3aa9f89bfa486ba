//! Where the layers of an image come from: a registry, or files of this computer.

use std::{
    future::Future,
    io::{self, Read},
};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use vdkr_core::{digest::Digest, manifest::Descriptor, reference::Host};

use super::{ImageError, Remote, Wanted};
use crate::blob::BlobReader;
use crate::error::TransferError;
use crate::layout::OciLayout;
use crate::source::{BlobSource as _, ChunkStream, FileSource};
use crate::verify::VerifyingReader;

/// Who has the blobs of an image's layers.
pub trait LayerSource: Clone + Send + Sync + 'static {
    /// A blob under way, for a thread that may block.
    type Reader: Read + Send + 'static;

    /// The registry, when it is one.
    fn registry(&self) -> Option<&Host>;

    /// What the user is told that a layer is.
    fn called<'a>(&self, layer: &'a Wanted) -> &'a Digest;

    /// Whether the blob can be had, now and by whoever asks. It is not kept.
    fn offers(
        &self,
        blob: &Descriptor,
        stop: &CancellationToken,
    ) -> impl Future<Output = bool> + Send;

    /// Begins to read a blob.
    fn open(
        &self,
        blob: &Descriptor,
    ) -> impl Future<Output = Result<VerifyingReader<Self::Reader>, TransferError>> + Send;

    /// An error of the source as one of the image.
    fn failed(&self, error: TransferError) -> ImageError;
}

impl LayerSource for Remote {
    type Reader = BlobReader;

    fn registry(&self) -> Option<&Host> {
        Some(self.repository.host())
    }

    fn called<'a>(&self, layer: &'a Wanted) -> &'a Digest {
        &layer.blob.digest
    }

    async fn offers(&self, blob: &Descriptor, _: &CancellationToken) -> bool {
        let offered = self.client.offers_blob(&self.repository, &blob.digest);
        // Whatever else it answers, it answers once more when the blob is asked for.
        matches!(offered.await, Ok(true))
    }

    async fn open(
        &self,
        blob: &Descriptor,
    ) -> Result<VerifyingReader<Self::Reader>, TransferError> {
        self.client.get_blob(&self.repository, blob).await
    }

    fn failed(&self, error: TransferError) -> ImageError {
        Self::failed(self, error)
    }
}

/// Blobs in files of this computer.
#[derive(Clone, Debug)]
pub enum LocalBlobs {
    /// Those of a layout, or of an archive that reads like one.
    Layout(OciLayout),
    /// A file that is the one blob there is.
    File(FileSource),
}

impl LocalBlobs {
    /// Opens a blob. May block, as its reader does.
    pub fn open_blob(
        &self,
        blob: &Descriptor,
    ) -> Result<VerifyingReader<ChunkStream>, TransferError> {
        match self {
            Self::Layout(layout) => layout.open_blob(blob),
            Self::File(file) => {
                let stream = ChunkStream::new(file.open(0)?);
                Ok(VerifyingReader::new(stream, blob))
            }
        }
    }
}

impl LayerSource for LocalBlobs {
    type Reader = ChunkStream;

    fn registry(&self) -> Option<&Host> {
        None
    }

    /// One image may have a layer plain and another one compressed; the user has neither seen.
    fn called<'a>(&self, layer: &'a Wanted) -> &'a Digest {
        &layer.diff_id
    }

    /// Reads it, because a file may have any name.
    async fn offers(&self, blob: &Descriptor, stop: &CancellationToken) -> bool {
        let (blobs, blob, stop) = (self.clone(), blob.clone(), stop.clone());
        let read = spawn_blocking(move || {
            let mut reader = blobs.open_blob(&blob).map_err(io::Error::from)?;
            drain(&mut reader, &|| stop.is_cancelled())?;
            Ok::<_, io::Error>(reader.is_verified())
        });
        matches!(read.await, Ok(Ok(true)))
    }

    async fn open(
        &self,
        blob: &Descriptor,
    ) -> Result<VerifyingReader<Self::Reader>, TransferError> {
        // Nothing is read yet, and opening a file does not wait.
        self.open_blob(blob)
    }

    fn failed(&self, error: TransferError) -> ImageError {
        match error {
            TransferError::Cancelled => ImageError::Cancelled,
            error => ImageError::Blob(Box::new(error)),
        }
    }
}

/// Reads to the end.
pub(super) fn drain(reader: &mut impl Read, cancelled: &dyn Fn() -> bool) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while !cancelled() && reader.read(&mut buffer)? > 0 {}
    Ok(())
}
