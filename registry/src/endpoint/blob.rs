//! `/v2/<name>/blobs/<digest>`: reading and deleting blobs (end-2, end-10).

use std::sync::Arc;

use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderValue,
    IF_RANGE, RANGE,
};
use http::{Response, StatusCode};
use vdkr_core::digest::Digest;
use vdkr_core::distribution::ErrorCode;
use vdkr_core::distribution::range::{self, RangeAnswer};

use super::{CONTENT_DIGEST, empty, entity_tags, etag, has_already, not_modified, value};
use crate::body::{Body, FilePart};
use crate::error::Refusal;
use crate::fs::{File, FsError};
use crate::router::Ask;
use crate::storage::{Blob, Storage, StorageError};

/// A blob, or a part of one, of at most so many bytes is read at once and not in pieces.
const SMALL: u64 = 64 << 10;

pub(crate) async fn head(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let storage = ask.registry.storage();
    // Clients ask so before they push, and do not send what is there.
    storage.claim(&digest);
    let known = storage.known_blob(&name, &digest);
    let found = if let Some(blob) = known.map_err(|error| Refusal::of_storage(&error, storage))? {
        Some(blob)
    } else {
        let (name, digest) = (name.clone(), digest.clone());
        ask.registry
            .blocking(move |storage| storage.blob(&name, &digest))
            .await?
    };
    let blob = found
        .filter(|_| storage.use_blob(&name, &digest))
        .ok_or_else(|| unknown(&digest))?;
    let mut response = empty(StatusCode::OK);
    describe(&mut response, &digest)?;
    response
        .headers_mut()
        .insert(CONTENT_LENGTH, blob.size.into());
    Ok(response)
}

pub(crate) async fn get(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let wanted = wanted_range(ask, &digest);
    let asked = digest.clone();
    let opened = ask
        .registry
        .blocking(move |storage| open(storage, &name, &asked, wanted.as_deref()))
        .await?
        .ok_or_else(|| unknown(&digest))?;
    if has_already(&ask.head.headers, &digest) {
        return not_modified(&digest);
    }
    let (mut response, sent) = match opened.answer {
        RangeAnswer::Unsatisfiable => {
            let range = value(&range::unsatisfied(opened.size))?;
            let message = format!("the blob has {} bytes", opened.size);
            return Err(
                Refusal::new(ErrorCode::RangeInvalid, message).with_header(CONTENT_RANGE, range)
            );
        }
        RangeAnswer::Whole => (empty(StatusCode::OK), None),
        RangeAnswer::Part(range) => (empty(StatusCode::PARTIAL_CONTENT), Some(range)),
    };
    describe(&mut response, &digest)?;
    if let Some(range) = sent {
        let sent = value(&range.content_range(opened.size))?;
        response.headers_mut().insert(CONTENT_RANGE, sent);
    }
    *response.body_mut() = match opened.content {
        Content::Read(bytes) => bytes.into(),
        Content::File(part) => Body::file(part, ask.registry.buffers()),
    };
    Ok(response)
}

pub(crate) async fn delete(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let condition = super::manifest::condition(&ask.head.headers)?;
    let asked = digest.clone();
    if ask
        .registry
        .blocking(move |storage| storage.delete_blob(&name, &asked, &condition))
        .await?
    {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(unknown(&digest))
    }
}

/// A blob ready to be sent.
struct Opened {
    size: u64,
    answer: RangeAnswer,
    content: Content,
}

enum Content {
    Read(Vec<u8>),
    File(FilePart),
}

fn open(
    storage: &Storage,
    name: &str,
    digest: &Digest,
    range: Option<&str>,
) -> Result<Option<Opened>, StorageError> {
    let Some((file, Blob { size, .. })) = storage.open_blob(name, digest)? else {
        return Ok(None);
    };
    let answer = range.map_or(RangeAnswer::Whole, |range| range::parse_range(range, size));
    let (offset, len) = match answer {
        RangeAnswer::Unsatisfiable => (0, 0),
        RangeAnswer::Whole => (0, size),
        RangeAnswer::Part(range) => (range.first, range.len()),
    };
    let content = if len <= SMALL {
        Content::Read(read(&file, offset, len)?)
    } else {
        Content::File(FilePart {
            file: Arc::new(file),
            offset,
            len,
        })
    };
    Ok(Some(Opened {
        size,
        answer,
        content,
    }))
}

fn read(file: &File, offset: u64, len: u64) -> Result<Vec<u8>, FsError> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// The `Range` header, unless the client wants it to count only for other content.
fn wanted_range(ask: &Ask<'_>, digest: &Digest) -> Option<String> {
    let headers = &ask.head.headers;
    let range = headers.get(RANGE)?.to_str().ok()?;
    if let Some(condition) = headers.get(IF_RANGE) {
        let condition = condition.to_str().ok()?;
        if !entity_tags(condition).any(|tag| tag == digest.as_str()) {
            return None;
        }
    }
    Some(range.to_owned())
}

fn describe(response: &mut Response<Body>, digest: &Digest) -> Result<(), Refusal> {
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(CONTENT_DIGEST, value(digest.as_str())?);
    headers.insert(ETAG, etag(digest).map_err(|_| super::unwritable())?);
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("max-age=31536000"));
    Ok(())
}

fn unknown(digest: &Digest) -> Refusal {
    Refusal::new(
        ErrorCode::BlobUnknown,
        format!("the repository has no blob {digest}"),
    )
}
