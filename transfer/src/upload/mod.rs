//! Uploads (OCI distribution specification, "Pushing blobs"): as few requests as the registry and
//! the network allow, and from where it broke where they do not.

pub(crate) mod journal;
pub(crate) mod local;
mod run;

use std::sync::Arc;

use bytes::Bytes;
use reqwest::header::{HeaderName, LOCATION};
use reqwest::{Method, StatusCode, Url};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::Descriptor;

use crate::client::{Client, Repository};
use crate::endpoint::Endpoint;
use crate::error::TransferError;
use crate::feed::Feed;
use crate::guard::{follow_location, redacted};
use crate::http::Response;
use crate::progress::{Progress, silent};
use crate::request::passing;
use crate::scope::Scopes;
use crate::source::BlobSource;
use crate::verify::Verifier;
use run::{Content, Upload};

const OCI_CHUNK_MIN_LENGTH: HeaderName = HeaderName::from_static("oci-chunk-min-length");

/// Blobs up to this size are read and hashed before the first request, bytes.
pub(crate) const SMALL: u64 = 1024 * 1024;

/// An upload that the registry waits for.
#[derive(Clone, Debug)]
pub struct UploadSession {
    url: Url,
    /// `OCI-Chunk-Min-Length`; 0 when the registry said nothing.
    least_chunk: u64,
}

/// What became of the wish to take a blob over from another repository.
#[derive(Clone, Debug)]
pub enum MountOutcome {
    /// It is in place.
    Mounted,
    /// It is not; the registry opened an upload instead.
    Session(UploadSession),
    /// It is not, and there is no upload either.
    Refused,
}

/// How a blob is sent.
#[derive(Clone)]
pub struct UploadOptions {
    /// The upload to use, from [`MountOutcome::Session`]; otherwise one is opened.
    pub session: Option<UploadSession>,
    /// Send in chunks of at most this many bytes. `None` sends the content in one request, and
    /// turns to chunks when that is refused as too large.
    pub chunk: Option<u64>,
    /// Who watches.
    pub progress: Progress,
}

impl Default for UploadOptions {
    fn default() -> Self {
        Self {
            session: None,
            chunk: None,
            progress: silent(),
        }
    }
}

impl Client {
    /// Takes a blob over from `from`, another repository of the same registry; without a name, from
    /// wherever the registry has it and we may read it.
    pub async fn mount_blob(
        &self,
        repository: &Repository,
        from: Option<&str>,
        digest: &Digest,
    ) -> Result<MountOutcome, TransferError> {
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let mut request = self
            .request(
                endpoint,
                Method::POST,
                repository,
                "blobs/uploads/",
                &["pull", "push"],
            )
            .await?;
        request
            .url
            .query_pairs_mut()
            .append_pair("mount", digest.as_str());
        if let Some(from) = from {
            request.url.query_pairs_mut().append_pair("from", from);
            let source = Scopes::repository(from, &["pull"]);
            request.scopes = request.scopes.union(&source);
        }
        request.body = Some(Bytes::new());
        let answer = self.call(endpoint, &request).await?;
        let outcome = match answer.status() {
            StatusCode::CREATED => MountOutcome::Mounted,
            StatusCode::ACCEPTED => {
                MountOutcome::Session(self.session(endpoint, &answer, 0).await?)
            }
            status if passing(status) => {
                return Err(self.fail(endpoint, &request, answer, "repository").await);
            }
            // Whether we may push at all is for the upload itself to find out.
            _ => MountOutcome::Refused,
        };
        answer.drain().await;
        Ok(outcome)
    }

    /// Sends a blob. Its bytes are hashed as they pass; when they are not what the descriptor says,
    /// the registry never gets the last of them, the upload is cancelled, and the error is
    /// [`TransferError::DigestMismatch`] or [`TransferError::SizeMismatch`].
    pub async fn upload_blob(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        source: Arc<dyn BlobSource>,
        options: UploadOptions,
    ) -> Result<(), TransferError> {
        let mut upload = Upload {
            client: self,
            places: self.places(repository.host())?,
            repository,
            descriptor,
            content: Content::Fed(None),
            session: options.session,
            entry: None,
            offset: 0,
            // `0-0` in an answer means none.
            chunk: options.chunk.map(|chunk| chunk.max(2)),
            only_put: false,
            local: self.config().local_sessions.clone(),
            restarted: false,
            challenges: 0,
            progress: options.progress,
        };
        upload.content = if descriptor.size <= SMALL {
            match read_small(source, descriptor.clone()).await {
                Ok(content) => Content::Whole(content),
                Err(error) => {
                    upload.abandon().await;
                    return Err(error);
                }
            }
        } else {
            Content::Fed(Some(Box::new(Feed::new(source, descriptor))))
        };
        upload.take_up().await?;
        upload.run().await
    }

    /// What an answer to an upload's request says about the session.
    async fn session(
        &self,
        endpoint: &Endpoint,
        answer: &Response,
        least_chunk: u64,
    ) -> Result<UploadSession, TransferError> {
        let base = self.sender().base(endpoint).await?;
        let Some(location) = answer.header(LOCATION) else {
            return Err(TransferError::Protocol {
                url: redacted(answer.url()),
                reason: "an upload without Location".to_owned(),
            });
        };
        let stated = answer
            .header(OCI_CHUNK_MIN_LENGTH)
            .and_then(|length| length.parse().ok());
        Ok(UploadSession {
            url: follow_location(location, answer.url(), &base.url)?,
            least_chunk: stated.unwrap_or(least_chunk),
        })
    }
}

async fn read_small(
    source: Arc<dyn BlobSource>,
    descriptor: Descriptor,
) -> Result<Bytes, TransferError> {
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = source.open(0)?;
        let mut verifier = Verifier::new(&descriptor.digest, descriptor.size);
        let mut content = reader.next_chunk()?.unwrap_or_default();
        verifier.update(&content)?;
        // Mostly there is one piece, which then needs no copy.
        while let Some(piece) = reader.next_chunk()? {
            verifier.update(&piece)?;
            content = [content, piece].concat().into();
        }
        verifier.finish()?;
        Ok(content)
    });
    read.await.map_err(|_| TransferError::Cancelled)?
}
