//! `/v2/<name>/blobs/uploads/`: writing blobs (end-4a to end-6, end-11, end-13, end-14).

use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_RANGE, HeaderName, HeaderValue, LOCATION, RANGE};
use http::{Response, StatusCode};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::distribution::{ErrorCode, range};

use super::{created, empty, value};
use crate::body::Body;
use crate::error::Refusal;
use crate::receive::Incoming;
use crate::router::Ask;
use crate::storage::{Session, Sink, UploadId};

const UPLOAD_UUID: HeaderName = HeaderName::from_static("docker-upload-uuid");
/// How often and how long a request waits for another one on the same session to end: one whose
/// connection broke may not have noticed yet when its client comes back.
const PATIENCE: (u32, Duration) = (40, Duration::from_millis(50));

pub(crate) async fn begin(
    ask: &Ask<'_>,
    name: String,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    if let Some(digest) = &ask.query.mount {
        let (repository, from, asked) = (name.clone(), ask.query.from.clone(), digest.clone());
        let mounted = ask
            .registry
            .blocking(move |storage| storage.mount(&repository, from.as_deref(), &asked))
            .await?;
        if mounted.is_some() {
            return created(&location(&name, digest), digest);
        }
    } else if let Some(digest) = &ask.query.digest {
        // Without a body this is taken for a client that goes on with PUT.
        if body.length() != Some(0) || *digest == Digest::of(digest.algorithm(), b"") {
            return receive(ask, &name, digest, body).await;
        }
    }
    let algorithm = ask
        .query
        .digest_algorithm
        .or_else(|| Some(ask.query.digest.as_ref()?.algorithm()))
        .unwrap_or(Algorithm::Sha256);
    let repository = name.clone();
    let session = ask
        .registry
        .blocking(move |storage| storage.begin_upload(&repository, algorithm))
        .await?;
    progress(StatusCode::ACCEPTED, &name, &session)
}

/// The whole blob in one request.
async fn receive(
    ask: &Ask<'_>,
    name: &str,
    digest: &Digest,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    check_room(ask, body.length())?;
    let algorithm = digest.algorithm();
    let sink = ask
        .registry
        .blocking(move |storage| storage.receive(algorithm))
        .await?;
    let sink = body.pour(ask.registry, sink, u64::MAX).await?;
    complete(ask, name, digest, sink).await
}

pub(crate) async fn status(
    ask: &Ask<'_>,
    name: String,
    session: &str,
) -> Result<Response<Body>, Refusal> {
    let session = find(ask, &name, session).await?;
    // Whoever works on this machine may have written to the file: unless a request is at it, the disk
    // says how far it is.
    let looked = Arc::clone(&session);
    ask.registry
        .blocking(move |storage| storage.resume(&looked).map(drop))
        .await?;
    progress(StatusCode::NO_CONTENT, &name, &session)
}

pub(crate) async fn append(
    ask: &Ask<'_>,
    name: String,
    session: &str,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    let session = find(ask, &name, session).await?;
    let sink = take(ask, &name, &session, body).await?;
    drop(sink);
    progress(StatusCode::ACCEPTED, &name, &session)
}

pub(crate) async fn finish(
    ask: &Ask<'_>,
    name: String,
    session: &str,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    let session = find(ask, &name, session).await?;
    let Some(digest) = &ask.query.digest else {
        let message = "the query parameter \"digest\" is missing";
        return Err(Refusal::new(ErrorCode::DigestInvalid, message));
    };
    let sink = take(ask, &name, &session, body).await?;
    complete(ask, &name, digest, sink).await
}

pub(crate) async fn cancel(
    ask: &Ask<'_>,
    name: String,
    session: &str,
) -> Result<Response<Body>, Refusal> {
    let session = find(ask, &name, session).await?;
    let cancelled = Arc::clone(&session);
    ask.registry
        .blocking(move |storage| {
            storage.cancel(&cancelled);
            Ok(())
        })
        .await?;
    let mut response = empty(StatusCode::NO_CONTENT);
    response
        .headers_mut()
        .insert(UPLOAD_UUID, value(session.id().as_str())?);
    Ok(response)
}

/// Moves the body of a request to the end of a session.
async fn take(
    ask: &Ask<'_>,
    name: &str,
    session: &Arc<Session>,
    body: &mut Incoming,
) -> Result<Sink, Refusal> {
    check_room(ask, body.length())?;
    let sink = resume(ask, name, session).await?;
    let Some(chunk) = ask.head.headers.get(CONTENT_RANGE) else {
        return body.pour(ask.registry, sink, u64::MAX).await;
    };
    let Some(chunk) = chunk.to_str().ok().and_then(range::parse_upload_chunk) else {
        let message = "Content-Range is not of the form first-last";
        return Err(
            Refusal::new(ErrorCode::RangeInvalid, message).with_status(StatusCode::BAD_REQUEST)
        );
    };
    let offset = sink.offset();
    if chunk.first != offset {
        let message = format!(
            "the chunk begins at {}, the upload goes on at {offset}",
            chunk.first
        );
        return Err(out_of_order(name, session, message)?);
    }
    let wrong_length = || {
        let message = format!(
            "the body is not of the {} bytes that Content-Range says",
            chunk.len()
        );
        Refusal::new(ErrorCode::SizeInvalid, message)
    };
    if body.length().is_some_and(|length| length != chunk.len()) {
        return Err(wrong_length());
    }
    let sink = body.pour(ask.registry, sink, chunk.len()).await?;
    if sink.offset() - offset != chunk.len() {
        return Err(wrong_length());
    }
    Ok(sink)
}

/// Gets the right to write to a session.
async fn resume(ask: &Ask<'_>, name: &str, session: &Arc<Session>) -> Result<Sink, Refusal> {
    let (times, pause) = PATIENCE;
    for _ in 0..times {
        let session = Arc::clone(session);
        if let Some(sink) = ask
            .registry
            .blocking(move |storage| storage.resume(&session))
            .await?
        {
            return Ok(sink);
        }
        tokio::time::sleep(pause).await;
    }
    let message =
        "another request is writing to this upload; ask for its state and go on from there";
    Err(out_of_order(name, session, message.to_owned())?)
}

async fn complete(
    ask: &Ask<'_>,
    name: &str,
    digest: &Digest,
    sink: Sink,
) -> Result<Response<Body>, Refusal> {
    let (repository, expected) = (name.to_owned(), digest.clone());
    ask.registry
        .blocking(move |storage| storage.finish(&repository, sink, &expected))
        .await?;
    created(&location(name, digest), digest)
}

async fn find(ask: &Ask<'_>, name: &str, session: &str) -> Result<Arc<Session>, Refusal> {
    let found = match UploadId::parse(session) {
        None => None,
        Some(id) => {
            let name = name.to_owned();
            ask.registry
                .blocking(move |storage| storage.upload(&name, &id))
                .await?
        }
    };
    found.ok_or_else(|| {
        Refusal::new(
            ErrorCode::BlobUploadUnknown,
            "there is no such upload, or no longer",
        )
    })
}

/// Refuses what cannot fit before the disk is full of it.
fn check_room(ask: &Ask<'_>, length: Option<u64>) -> Result<(), Refusal> {
    let storage = ask.registry.storage();
    match (length, storage.fs().space()) {
        (Some(length), Ok(space)) if length > space.free => {
            Err(Refusal::no_space(storage, Some(length)))
        }
        _ => Ok(()),
    }
}

/// An answer that tells how far a session is.
fn progress(status: StatusCode, name: &str, session: &Session) -> Result<Response<Body>, Refusal> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    for (header, value) in state(name, session)? {
        headers.insert(header, value);
    }
    if status != StatusCode::NO_CONTENT {
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    }
    Ok(response)
}

fn out_of_order(name: &str, session: &Session, message: String) -> Result<Refusal, Refusal> {
    let refusal = Refusal::new(ErrorCode::RangeInvalid, message);
    Ok(state(name, session)?
        .into_iter()
        .fold(refusal, |refusal, (header, value)| {
            refusal.with_header(header, value)
        }))
}

fn state(name: &str, session: &Session) -> Result<[(HeaderName, HeaderValue); 3], Refusal> {
    Ok([
        (
            LOCATION,
            value(&format!("/v2/{name}/blobs/uploads/{}", session.id()))?,
        ),
        (RANGE, value(&range::upload_received(session.offset()))?),
        (UPLOAD_UUID, value(session.id().as_str())?),
    ])
}

fn location(name: &str, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}
