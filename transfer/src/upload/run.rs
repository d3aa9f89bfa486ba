//! One upload, from opening it to its end or its abandonment.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE};
use reqwest::{Body, Method, StatusCode, Url};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use vdkr_core::distribution::range::{ByteRange, parse_upload_received, upload_chunk};
use vdkr_core::manifest::Descriptor;

use super::UploadSession;
use super::journal::Entry;
use super::local::{Copying, LocalSessions, StopOnDrop, WORTHWHILE};
use crate::client::{Client, Places, Repository};
use crate::endpoint::Endpoint;
use crate::error::TransferError;
use crate::feed::{Activity, Feed, Outlet, UploadBody, WAITING};
use crate::guard::{follow_location, redacted};
use crate::http::{Response, classify};
use crate::progress::{Progress, ProgressEvent};
use crate::request::{MAX_CHALLENGES, Request, passing};
use crate::scope::Scopes;

/// Blobs up to this size go with the request that ends the upload, bytes. Larger ones go by `PATCH`
/// first: what a registry keeps of a broken `PATCH` can be asked, of a broken `PUT` nothing is said.
const ONE_REQUEST: u64 = 16 * 1024 * 1024;
/// Chunks for a registry whose proxy refuses the whole at once: at first, and at least, bytes.
const FIRST_CHUNK: u64 = 32 * 1024 * 1024;
const LEAST_CHUNK: u64 = 1024 * 1024;
/// Progress that makes earlier failures forgotten, bytes.
const HEADWAY: u64 = 1024 * 1024;
/// How long a session that is given up may take to be told so.
const FAREWELL: Duration = Duration::from_secs(5);

pub(super) enum Content {
    /// Verified and at hand.
    Whole(Bytes),
    /// Verified on the way. Absent only while it is at work.
    Fed(Option<Box<Feed>>),
}

/// Why a step did not get to its end.
enum Stop {
    /// Nothing more is to be done.
    Final(TransferError),
    /// It may work from where the registry stands now.
    Passing(TransferError),
    /// It may work at once, from there: there is something else to show.
    Renewed,
}

impl From<TransferError> for Stop {
    fn from(error: TransferError) -> Self {
        if error.retryable() {
            Self::Passing(error)
        } else {
            Self::Final(error)
        }
    }
}

pub(super) struct Upload<'a> {
    pub(super) client: &'a Client,
    pub(super) places: Arc<Places>,
    pub(super) repository: &'a Repository,
    pub(super) descriptor: &'a Descriptor,
    pub(super) content: Content,
    pub(super) session: Option<UploadSession>,
    /// Where it is noted for a later run, when it is.
    pub(super) entry: Option<Entry>,
    /// What the registry has of the session.
    pub(super) offset: u64,
    pub(super) chunk: Option<u64>,
    /// Whether the registry knows uploads in one request only.
    pub(super) only_put: bool,
    /// Who knows the session's file, should it be on this machine; taken when that is tried.
    pub(super) local: Option<Arc<dyn LocalSessions>>,
    /// Whether the upload was begun anew because the registry found it wrong.
    pub(super) restarted: bool,
    /// Challenges in a row that were answered.
    pub(super) challenges: u32,
    pub(super) progress: Progress,
}

impl Drop for Upload<'_> {
    /// An upload that is dropped in the middle is cancelled by a task of its own, if there still is
    /// a runtime. Otherwise the registry finds out by itself, much later. One that is noted waits for
    /// the next run.
    fn drop(&mut self) {
        if self.entry.is_some() {
            return;
        }
        let (Some(session), Ok(runtime)) = (self.session.take(), Handle::try_current()) else {
            return;
        };
        let request = self.request(Method::DELETE, session.url);
        let (client, places) = (self.client.clone(), self.places.clone());
        runtime.spawn(async move { farewell(&client, places.registry(), &request).await });
    }
}

impl Upload<'_> {
    fn endpoint(&self) -> &Endpoint {
        self.places.registry()
    }

    /// Goes on with an upload of an earlier run, when one is noted and the registry still knows it.
    /// What goes to the registry in one request is not noted.
    pub(super) async fn take_up(&mut self) -> Result<(), TransferError> {
        let Some(journal) = &self.client.config().journal else {
            return Ok(());
        };
        if self.descriptor.size <= ONE_REQUEST {
            return Ok(());
        }
        self.entry = journal.entry(self.repository, &self.descriptor.digest);
        let Some(url) = self.entry.as_ref().and_then(Entry::url).map(str::to_owned) else {
            return Ok(());
        };
        if self.session.is_some() {
            // It was opened before anybody looked here, and may be used as well.
            return Ok(());
        }
        let base = self.client.sender().base(self.endpoint()).await?.url;
        // What was noted is trusted no further than what a registry says.
        let Ok(url) = follow_location(&url, &base, &base) else {
            return Ok(());
        };
        let session = UploadSession {
            url,
            least_chunk: 0,
        };
        if let Ok(Some((session, offset))) = self.status(&session).await {
            tracing::debug!(digest = %self.descriptor.digest, offset, "upload of an earlier run");
            self.session = Some(session);
            self.offset = offset;
        }
        Ok(())
    }

    fn note(&mut self) {
        if let (Some(entry), Some(session)) = (&mut self.entry, &self.session) {
            entry.keep(session.url.as_str());
        }
    }

    fn done(&mut self) {
        if let Some(entry) = self.entry.take() {
            entry.forget();
        }
    }

    pub(super) async fn run(mut self) -> Result<(), TransferError> {
        let mut failures = 0;
        loop {
            let before = self.offset;
            self.note();
            let error = match self.advance().await {
                Ok(()) => {
                    self.done();
                    return Ok(());
                }
                Err(Stop::Final(error)) => {
                    self.done();
                    self.abandon().await;
                    return Err(error);
                }
                Err(Stop::Passing(error)) => Some(error),
                Err(Stop::Renewed) => None,
            };
            if let Some(error) = error {
                failures += 1;
                let retry = &self.client.config().retry;
                let Some(pause) = retry.pause(failures, error.retry_after()) else {
                    if self.entry.is_none() {
                        self.abandon().await;
                    }
                    return Err(error);
                };
                tracing::debug!(digest = %self.descriptor.digest, %error, "upload goes on");
                self.progress.event(&ProgressEvent::Retrying {
                    digest: self.descriptor.digest.clone(),
                    reason: error.to_string(),
                });
                tokio::time::sleep(pause).await;
            }
            if self.recover().await? {
                self.done();
                return Ok(());
            }
            if self.offset >= before + HEADWAY {
                failures = 0;
            }
        }
    }

    /// Goes on to the end from where the registry stands.
    async fn advance(&mut self) -> Result<(), Stop> {
        let size = self.descriptor.size;
        loop {
            let session = match &self.session {
                Some(session) => session.clone(),
                None => self.open().await?,
            };
            if let Content::Whole(content) = &self.content {
                let content = content.clone();
                return self.put(session, Payload::Whole(content)).await;
            }
            if self.offset < size && self.write_locally(&session).await {
                self.offset = size;
            }
            if self.offset == size {
                return self.put(session, Payload::Whole(Bytes::new())).await;
            }
            match self.chunk {
                None if self.offset == 0 && (size <= ONE_REQUEST || self.only_put) => {
                    return self.put(session, Payload::Rest).await;
                }
                None => self.patch(session, size).await?,
                Some(chunk) => {
                    let chunk = chunk.max(session.least_chunk);
                    let until = self.offset.saturating_add(chunk).min(size);
                    self.patch(session, until).await?;
                }
            }
        }
    }

    /// Puts the content where the registry keeps the session, when that is on this machine. True
    /// when all of it is there; otherwise it goes on by the connection.
    async fn write_locally(&mut self, session: &UploadSession) -> bool {
        let Content::Fed(Some(feed)) = &self.content else {
            return false;
        };
        // Tried once: whoever finds content wrong, or a disk full, says so best over the connection.
        let Some(sessions) = self.local.take() else {
            return false;
        };
        if self.descriptor.size < WORTHWHILE {
            return false;
        }
        let Some(id) = session
            .url
            .path_segments()
            .and_then(|mut path| path.next_back())
        else {
            return false;
        };
        let (id, repository) = (id.to_owned(), self.repository.clone());
        let (source, size) = (feed.source().clone(), self.descriptor.size);
        let (digest, progress) = (self.descriptor.digest.clone(), self.progress.clone());
        let stop = StopOnDrop(Arc::default());
        let stopped = stop.0.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let from = source.whole_file().filter(|from| from.size == size)?;
            let to = sessions.open(&repository, &id)?;
            let copying = Copying {
                from,
                to,
                digest,
                progress,
                stopped,
            };
            copying.run().then_some(())
        });
        matches!(copied.await, Ok(Some(())))
    }

    async fn open(&mut self) -> Result<UploadSession, TransferError> {
        let client = self.client;
        let mut request = client
            .request(
                self.endpoint(),
                Method::POST,
                self.repository,
                "blobs/uploads/",
                &["pull", "push"],
            )
            .await?;
        request.body = Some(Bytes::new());
        let answer = client.call(self.endpoint(), &request).await?;
        if answer.status() != StatusCode::ACCEPTED {
            return Err(client
                .fail(self.endpoint(), &request, answer, "repository")
                .await);
        }
        let session = client.session(self.endpoint(), &answer, 0).await?;
        answer.drain().await;
        self.offset = 0;
        self.session = Some(session.clone());
        self.note();
        Ok(session)
    }

    /// A request to the session's URL.
    fn request(&self, method: Method, url: Url) -> Request {
        let name = self.endpoint().repository(self.repository.name());
        let scopes = Scopes::repository(&name, &["pull", "push"]);
        let mut request = Request::new(method, url, scopes);
        if matches!(request.method, Method::PUT | Method::PATCH) {
            let binary = HeaderValue::from_static("application/octet-stream");
            request.headers.insert(CONTENT_TYPE, binary);
        }
        request
    }

    /// The request that ends the upload.
    async fn put(&mut self, session: UploadSession, payload: Payload) -> Result<(), Stop> {
        let mut url = session.url.clone();
        url.query_pairs_mut()
            .append_pair("digest", self.descriptor.digest.as_str());
        let request = self.request(Method::PUT, url);
        let answer = self.send(request, payload, self.descriptor.size).await?;
        match answer.status() {
            StatusCode::CREATED | StatusCode::OK | StatusCode::NO_CONTENT => {
                self.session = None;
                answer.drain().await;
                Ok(())
            }
            _ => Err(self.refused(Method::PUT, answer).await),
        }
    }

    /// Sends the bytes up to `until`.
    async fn patch(&mut self, session: UploadSession, until: u64) -> Result<(), Stop> {
        let mut request = self.request(Method::PATCH, session.url.clone());
        let all = self.offset == 0 && until == self.descriptor.size;
        // What is not a part of something needs no range, and some registries take none.
        let range = ByteRange::new(self.offset, until - 1).filter(|_| !all);
        // Digits are legal in a header.
        let range = range.and_then(|range| HeaderValue::from_str(&upload_chunk(range)).ok());
        request
            .headers
            .extend(range.map(|range| (CONTENT_RANGE, range)));
        let answer = self.send(request, Payload::Rest, until).await?;
        match answer.status() {
            StatusCode::ACCEPTED | StatusCode::CREATED | StatusCode::NO_CONTENT => {
                let next = self
                    .client
                    .session(self.endpoint(), &answer, session.least_chunk)
                    .await?;
                let offset = stands_at(&answer).unwrap_or(until);
                // A part of the chunk may be taken, so that the rest goes again; nothing and more
                // than everything are nonsense.
                if offset <= self.offset || offset > until {
                    return Err(Stop::Final(TransferError::Protocol {
                        url: redacted(answer.url()),
                        reason: format!(
                            "it has {offset} bytes after a chunk from {} to {until}",
                            self.offset
                        ),
                    }));
                }
                self.offset = offset;
                self.session = Some(next);
                self.note();
                answer.drain().await;
                Ok(())
            }
            _ => Err(self.refused(Method::PATCH, answer).await),
        }
    }

    /// Makes the one try of a request that carries content up to `until`.
    async fn send(
        &mut self,
        mut request: Request,
        payload: Payload,
        until: u64,
    ) -> Result<Response, Stop> {
        let length = match &payload {
            Payload::Whole(content) => content.len() as u64,
            Payload::Rest => until - self.offset,
        };
        request.headers.insert(CONTENT_LENGTH, length.into());
        let activity = Arc::new(Activity::new());
        let (body, worker) = match payload {
            Payload::Whole(content) => {
                activity.all_at_hand();
                (Body::from(content), None)
            }
            Payload::Rest => {
                let (body, worker) = self.start_feed(until, activity.clone())?;
                (Body::wrap(body), Some(worker))
            }
        };
        let sender = self.client.sender();
        let sent = async {
            let (builder, shown) = sender
                .prepare_stream(self.endpoint(), &request, body)
                .await?;
            let config = self.client.config();
            let stalled = activity.stalled(config.idle_timeout, config.commit_timeout);
            let answer = tokio::select! {
                answer = builder.send() => answer.map_err(|error| classify(&request.url, &error))?,
                () = stalled => return Err(TransferError::Unreachable {
                    url: redacted(&request.url),
                    reason: "the upload stalled".to_owned(),
                }),
            };
            let mut answer = sender.http.response(request.url.clone(), answer);
            answer.hold_refusal().await;
            Ok((answer, shown))
        }
        .await;
        if let Some((feed, stop)) = worker {
            drop(stop);
            let (feed, fed) = feed.await.map_err(|_| TransferError::Cancelled)?;
            self.content = Content::Fed(Some(feed));
            // Why the content ended matters more than what became of the request.
            fed.map_err(Stop::Final)?;
        }
        // A failure in between ends a row of challenges as well.
        let challenges = std::mem::take(&mut self.challenges);
        let (answer, (shown, begun)) = sent?;
        if answer.status() == StatusCode::UNAUTHORIZED
            && challenges < MAX_CHALLENGES
            && sender
                .learn_stream(self.endpoint(), &request, (&shown, begun), &answer)
                .await?
        {
            self.challenges = challenges + 1;
            answer.drain().await;
            return Err(Stop::Renewed);
        }
        Ok(answer)
    }

    fn start_feed(
        &mut self,
        until: u64,
        activity: Arc<Activity>,
    ) -> Result<(UploadBody, Worker), TransferError> {
        let Content::Fed(feed) = &mut self.content else {
            return Err(TransferError::Cancelled);
        };
        // Absent when an earlier request's thread was lost with it.
        let mut feed = feed.take().ok_or(TransferError::Cancelled)?;
        let (pieces, received) = mpsc::channel(WAITING);
        let (stop, stopped) = oneshot::channel();
        let outlet = Outlet {
            pieces,
            runtime: Handle::current(),
        };
        let from = self.offset;
        let worker = tokio::task::spawn_blocking(move || {
            let fed = feed.run(from, until, &outlet, stopped);
            (feed, fed)
        });
        let body = UploadBody {
            pieces: received,
            position: from,
            until,
            digest: self.descriptor.digest.clone(),
            progress: self.progress.clone(),
            activity,
        };
        Ok((body, (worker, stop)))
    }

    async fn fail(&self, method: &Method, answer: Response) -> TransferError {
        self.client
            .sender()
            .fail(self.endpoint(), method, answer, "upload")
            .await
    }

    /// What an answer other than success means for the upload.
    async fn refused(&mut self, method: Method, answer: Response) -> Stop {
        let status = answer.status();
        let error = self.fail(&method, answer).await;
        match status {
            StatusCode::PAYLOAD_TOO_LARGE if matches!(self.content, Content::Fed(_)) => {
                let next = self.chunk.map_or(FIRST_CHUNK, |chunk| chunk / 2);
                if next < LEAST_CHUNK {
                    return Stop::Final(error);
                }
                self.chunk = Some(next);
                Stop::Passing(error)
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED
                if method == Method::PATCH && self.offset == 0 && !self.only_put =>
            {
                self.only_put = true;
                Stop::Passing(error)
            }
            // The session is gone: perhaps because it has come to its end.
            StatusCode::NOT_FOUND => {
                self.session = None;
                Stop::Passing(error)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Stop::Passing(error),
            // Our bytes are right, so they were damaged or mixed up on the way.
            StatusCode::BAD_REQUEST if !self.restarted => {
                self.restarted = true;
                self.abandon().await;
                Stop::Passing(error)
            }
            _ => Stop::from(error),
        }
    }

    /// Finds out where the registry stands. True when it has the blob already.
    async fn recover(&mut self) -> Result<bool, TransferError> {
        if let Some(session) = self.session.take() {
            // What a registry keeps of a small blob is not worth a question.
            let whole = matches!(self.content, Content::Whole(_));
            match if whole {
                None
            } else {
                self.status(&session).await?
            } {
                Some((session, offset)) => {
                    self.session = Some(session);
                    self.offset = offset;
                    return Ok(false);
                }
                None => self.cancel(session).await,
            }
        }
        self.offset = 0;
        // An upload whose last answer was lost looks like one that never was.
        let digest = &self.descriptor.digest;
        let there = self.client.head_blob(self.repository, digest).await?;
        Ok(there.is_some())
    }

    /// Asks how much of a session the registry has. `None` when that cannot be built upon.
    async fn status(
        &self,
        session: &UploadSession,
    ) -> Result<Option<(UploadSession, u64)>, TransferError> {
        let request = self.request(Method::GET, session.url.clone());
        let answer = self.client.call(self.endpoint(), &request).await?;
        let known = match answer.status() {
            StatusCode::NO_CONTENT | StatusCode::OK | StatusCode::ACCEPTED => stands_at(&answer)
                .filter(|offset| *offset <= self.descriptor.size)
                .map(|offset| (answer.header(LOCATION).is_some(), offset)),
            // Not a word about the session: it may still be there.
            status if passing(status) => return Err(self.fail(&request.method, answer).await),
            _ => None,
        };
        let found = match known {
            Some((true, offset)) => {
                let client = self.client;
                let next = client
                    .session(self.endpoint(), &answer, session.least_chunk)
                    .await?;
                Some((next, offset))
            }
            Some((false, offset)) => Some((session.clone(), offset)),
            None => None,
        };
        answer.drain().await;
        Ok(found)
    }

    pub(super) async fn abandon(&mut self) {
        if let Some(session) = self.session.take() {
            self.cancel(session).await;
        }
    }

    async fn cancel(&self, session: UploadSession) {
        let request = self.request(Method::DELETE, session.url);
        farewell(self.client, self.endpoint(), &request).await;
    }
}

/// Tells the registry that an upload is over, without insisting.
async fn farewell(client: &Client, endpoint: &Endpoint, request: &Request) {
    let told = client.sender().once(endpoint, request);
    if let Ok(Ok(answer)) = tokio::time::timeout(FAREWELL, told).await {
        answer.drain().await;
    }
}

enum Payload {
    /// These bytes.
    Whole(Bytes),
    /// The content from where the registry stands.
    Rest,
}

type Worker = (
    tokio::task::JoinHandle<(Box<Feed>, Result<(), TransferError>)>,
    oneshot::Sender<()>,
);

/// How many bytes a registry says it has.
fn stands_at(answer: &Response) -> Option<u64> {
    parse_upload_received(answer.header(RANGE)?)
}
