//! Blobs: whether they are there, where they come from, and how to be rid of them (OCI distribution
//! specification, "Pulling blobs", "Mounting a blob from another repository", "Deleting Blobs").

use std::io::{self, Read};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use reqwest::header::{CONTENT_RANGE, HeaderValue, RANGE};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::range::{ByteRange, parse_content_range};
use vdkr_core::manifest::Descriptor;

use crate::client::{Client, Repository};
use crate::endpoint::Endpoint;
use crate::error::{Answer, TransferError};
use crate::guard::redacted;
use crate::http::Response;
use crate::source::{BlobSource, ChunkReader};
use crate::verify::VerifyingReader;

/// Pieces that wait between the network and whoever reads. Each has at most a few hundred KiB.
const WAITING: usize = 4;

impl Client {
    /// The size of a blob in the registry itself (mirrors do not count), or `None`.
    pub async fn head_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, TransferError> {
        let places = self.places(repository.host())?;
        self.head_blob_at(places.registry(), repository, digest)
            .await
    }

    /// As [`Client::head_blob`], but mirrors are asked too: whether the blob could be read.
    pub async fn offers_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, TransferError> {
        let places = self.places(repository.host())?;
        let mut last = Ok(None);
        for endpoint in places.readable() {
            last = self.head_blob_at(endpoint, repository, digest).await;
            if places.settles(endpoint, &last) {
                break;
            }
        }
        Ok(last?.is_some())
    }

    async fn head_blob_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, TransferError> {
        let path = format!("blobs/{digest}");
        let request = self
            .request(endpoint, Method::HEAD, repository, &path, &["pull"])
            .await?;
        let answer = self.call(endpoint, &request).await?;
        match answer.status() {
            StatusCode::OK => Ok(Some(answer.content_length().unwrap_or_default())),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(self.fail(endpoint, &request, answer, "blob").await),
        }
    }

    /// Removes a blob from a repository. `false` when it was not there.
    pub async fn delete_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, TransferError> {
        self.delete(repository, &format!("blobs/{digest}"), "blob", None)
            .await
    }

    /// Opens a blob for reading. Connections that break are made again where they broke; the reader
    /// ends only when everything had the digest and the size of the descriptor.
    ///
    /// Reads as [`AsyncRead`], or as [`std::io::Read`] on a thread that may block: there, hashing
    /// does not hold up the runtime.
    pub async fn get_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
    ) -> Result<VerifyingReader<BlobReader>, TransferError> {
        let mut download = Download::new(self, repository, descriptor, 0);
        let answer = download.connect().await?;
        let reader = BlobReader::start(&Handle::current(), download, Some(answer));
        Ok(VerifyingReader::new(reader, descriptor))
    }

    /// A blob as something to send on, without a copy on disk. Must be called within a runtime.
    pub fn blob_source(&self, repository: &Repository, descriptor: &Descriptor) -> RegistryBlob {
        RegistryBlob {
            client: self.clone(),
            repository: repository.clone(),
            descriptor: descriptor.clone(),
            runtime: Handle::current(),
        }
    }
}

/// A blob of a registry as a source. What it gives is not verified; uploading does that.
pub struct RegistryBlob {
    client: Client,
    repository: Repository,
    descriptor: Descriptor,
    runtime: Handle,
}

impl BlobSource for RegistryBlob {
    fn open(&self, offset: u64) -> Result<Box<dyn ChunkReader>, TransferError> {
        let download = Download::new(&self.client, &self.repository, &self.descriptor, offset);
        Ok(Box::new(BlobReader::start(&self.runtime, download, None)))
    }
}

/// A blob that is arriving, on a task of its own. Dropping it ends the task.
#[derive(Debug)]
pub struct BlobReader {
    pieces: mpsc::Receiver<Result<Bytes, TransferError>>,
    current: Bytes,
    task: JoinHandle<()>,
}

impl BlobReader {
    fn start(runtime: &Handle, download: Download, answer: Option<Response>) -> Self {
        let (sender, pieces) = mpsc::channel(WAITING);
        let task = runtime.spawn(async move {
            if let Err(error) = download.run(answer, &sender).await {
                // Nobody to tell is nobody harmed.
                let _ = sender.send(Err(error)).await;
            }
        });
        Self {
            pieces,
            current: Bytes::new(),
            task,
        }
    }
}

impl Drop for BlobReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ChunkReader for BlobReader {
    fn next_chunk(&mut self) -> Result<Option<Bytes>, TransferError> {
        if !self.current.is_empty() {
            return Ok(Some(std::mem::take(&mut self.current)));
        }
        self.pieces.blocking_recv().transpose()
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.current = piece?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

impl AsyncRead for BlobReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.pieces.poll_recv(cx)) {
                Some(piece) => self.current = piece?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = buffer.remaining().min(self.current.len());
        let piece = self.current.split_to(count);
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

/// One blob on its way here.
struct Download {
    client: Client,
    repository: Repository,
    digest: Digest,
    size: u64,
    /// Everything before this has been handed on.
    offset: u64,
    /// Bytes of the present answer that were handed on before: the server gave no range.
    repeated: u64,
}

impl Download {
    fn new(client: &Client, repository: &Repository, descriptor: &Descriptor, offset: u64) -> Self {
        Self {
            client: client.clone(),
            repository: repository.clone(),
            digest: descriptor.digest.clone(),
            size: descriptor.size,
            offset,
            repeated: 0,
        }
    }

    /// Asks for everything from `offset` on, wherever it can be had.
    async fn connect(&mut self) -> Result<Response, TransferError> {
        let places = self.client.places(self.repository.host())?;
        let mut last = Ok(None);
        for endpoint in places.readable() {
            last = self.connect_at(endpoint).await;
            if places.settles(endpoint, &last) {
                break;
            }
        }
        last?.ok_or_else(|| TransferError::NotFound {
            what: format!("blob {}", self.digest),
            url: self.repository.to_string(),
            answer: Box::new(Answer::of(404)),
        })
    }

    async fn connect_at(&mut self, endpoint: &Endpoint) -> Result<Option<Response>, TransferError> {
        let path = format!("blobs/{}", self.digest);
        let mut request = self
            .client
            .request(endpoint, Method::GET, &self.repository, &path, &["pull"])
            .await?;
        if self.offset > 0 {
            let range = HeaderValue::from_str(&ByteRange::request_from(self.offset));
            // Digits are legal in a header.
            request
                .headers
                .extend(range.ok().map(|range| (RANGE, range)));
        }
        let answer = self.client.call(endpoint, &request).await?;
        match answer.status() {
            StatusCode::OK => {
                if let Some(length) = answer.content_length()
                    && length != self.size
                {
                    return Err(self.wrong_size(length));
                }
                self.repeated = self.offset;
            }
            StatusCode::PARTIAL_CONTENT if self.offset > 0 => {
                self.check_range(&answer)?;
                self.repeated = 0;
            }
            StatusCode::NOT_FOUND => {
                answer.drain().await;
                return Ok(None);
            }
            _ => {
                let what = format!("blob {}", self.digest);
                return Err(self.client.fail(endpoint, &request, answer, &what).await);
            }
        }
        Ok(Some(answer))
    }

    /// A part is taken only from where it was asked, of a whole of the right size.
    fn check_range(&self, answer: &Response) -> Result<(), TransferError> {
        let protocol = |reason: String| TransferError::Protocol {
            url: redacted(answer.url()),
            reason,
        };
        let stated = answer.header(CONTENT_RANGE).and_then(parse_content_range);
        let Some((range, size)) = stated.and_then(|stated| Some((stated.range?, stated.size)))
        else {
            return Err(protocol("a 206 without a usable Content-Range".to_owned()));
        };
        if let Some(size) = size
            && size != self.size
        {
            return Err(self.wrong_size(size));
        }
        if range.first != self.offset {
            return Err(protocol(format!(
                "asked for bytes from {}, got them from {}",
                self.offset, range.first
            )));
        }
        Ok(())
    }

    fn wrong_size(&self, got: u64) -> TransferError {
        TransferError::SizeMismatch {
            what: format!("blob {}", self.digest),
            expected: self.size,
            got,
        }
    }

    async fn run(
        mut self,
        mut answer: Option<Response>,
        pieces: &mpsc::Sender<Result<Bytes, TransferError>>,
    ) -> Result<(), TransferError> {
        let mut failures = 0;
        loop {
            let current = match answer.take() {
                Some(answer) => answer,
                None if self.offset == self.size && self.size > 0 => return Ok(()),
                None => self.connect().await?,
            };
            let before = self.offset;
            let error = match self.receive(current, pieces).await {
                Err(error) if error.retryable() => error,
                other => return other,
            };
            if self.offset > before {
                failures = 0;
            }
            failures += 1;
            let retry = &self.client.config().retry;
            let Some(pause) = retry.pause(failures, None) else {
                return Err(error);
            };
            tracing::debug!(digest = %self.digest, offset = self.offset, %error, "download goes on");
            tokio::time::sleep(pause).await;
        }
    }

    /// Hands on what one answer gives.
    async fn receive(
        &mut self,
        mut answer: Response,
        pieces: &mpsc::Sender<Result<Bytes, TransferError>>,
    ) -> Result<(), TransferError> {
        loop {
            let mut piece = match answer.chunk().await {
                Ok(Some(piece)) => piece,
                // Whatever ends the connection once all is here does no harm.
                _ if self.offset == self.size => return Ok(()),
                Ok(None) => {
                    return Err(TransferError::Unreachable {
                        url: redacted(answer.url()),
                        reason: format!("it ended after {} of {} bytes", self.offset, self.size),
                    });
                }
                Err(error) => return Err(error),
            };
            let known = self.repeated.min(piece.len() as u64);
            self.repeated -= known;
            piece.advance(known as usize);
            if piece.is_empty() {
                continue;
            }
            let end = self.offset + piece.len() as u64;
            if end > self.size {
                return Err(self.wrong_size(end));
            }
            self.offset = end;
            if pieces.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
        }
    }
}
