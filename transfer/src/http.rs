//! One request and its answer: connections, time limits, the shape of failures. What a request
//! means, who may see credentials and when it is repeated is decided in `request` and `auth`.

use std::error::Error as _;
use std::io;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, RETRY_AFTER};
use reqwest::{Method, StatusCode, Url, redirect};
use vdkr_core::credentials::Secret;
use vdkr_core::distribution::ErrorBody;
use vdkr_core::distribution::errors::MAX_ERROR_BODY;
use vdkr_core::extension::{DAMAGED, DAMAGED_HEADER};

use crate::config::ClientConfig;
use crate::error::{Answer, TransferError, printable};
use crate::guard::{OutwardResolver, redacted};
use crate::retry::retry_after;
use crate::tls;

/// Connections that differ in whom they trust and where they may lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Verified TLS; the environment's proxies apply.
    Verified,
    /// Verified TLS or plain HTTP, never by a proxy: this machine and its virtual machines.
    Direct,
    /// Certificates are not looked at.
    Insecure,
    /// As `Insecure`, without proxies.
    InsecureDirect,
    /// As `Verified`, but names may not resolve to inward addresses: for places that a server named.
    Outward,
}

/// What is shown to the server to be let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Authorization {
    Nothing,
    Basic { username: String, password: Secret },
    Bearer(Secret),
}

/// The connection pools, each made when it is first needed.
pub(crate) struct Http {
    pools: [OnceLock<reqwest::Client>; 5],
    verified: rustls::ClientConfig,
    config: ClientConfig,
}

impl Http {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, TransferError> {
        let http = Self {
            pools: Default::default(),
            verified: tls::verified(&config.roots, &config.host_roots)?,
            config,
        };
        // Building one shows now whether the settings can work at all.
        http.pool(Lane::Direct)?;
        Ok(http)
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        &self.config
    }

    fn pool(&self, lane: Lane) -> Result<&reqwest::Client, TransferError> {
        let cell = &self.pools[lane as usize];
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let built = self.build(lane)?;
        Ok(cell.get_or_init(|| built))
    }

    fn build(&self, lane: Lane) -> Result<reqwest::Client, TransferError> {
        let tls = match lane {
            Lane::Insecure | Lane::InsecureDirect => tls::unverified()?,
            _ => self.verified.clone(),
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .user_agent(&self.config.user_agent)
            .connect_timeout(self.config.connect_timeout)
            .http1_only();
        if matches!(lane, Lane::Direct | Lane::InsecureDirect) {
            builder = builder.no_proxy();
        }
        builder = match (lane, &self.config.resolver) {
            (Lane::Outward, resolver) => builder.dns_resolver(OutwardResolver(resolver.clone())),
            (_, Some(resolver)) => builder.dns_resolver(resolver.clone()),
            (_, None) => builder,
        };
        builder.build().map_err(|error| {
            TransferError::Config(format!("the HTTP client cannot be set up: {error}"))
        })
    }

    /// Makes a request that is not sent yet.
    pub(crate) fn prepare(
        &self,
        lane: Lane,
        method: Method,
        url: Url,
        headers: HeaderMap,
        authorization: &Authorization,
    ) -> Result<reqwest::RequestBuilder, TransferError> {
        let request = self.pool(lane)?.request(method, url).headers(headers);
        Ok(match authorization {
            Authorization::Nothing => request,
            Authorization::Basic { username, password } => {
                request.basic_auth(username, Some(password.expose()))
            }
            Authorization::Bearer(token) => request.bearer_auth(token.expose()),
        })
    }

    /// Sends a request whose body is at hand, and waits for the head of the answer.
    pub(crate) async fn exchange(
        &self,
        url: &Url,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, TransferError> {
        let idle = self.config.idle_timeout;
        match tokio::time::timeout(idle, request.send()).await {
            Ok(Ok(inner)) => Ok(self.response(url.clone(), inner)),
            Ok(Err(error)) => Err(classify(url, &error)),
            Err(_) => Err(silent(url, idle)),
        }
    }

    pub(crate) fn response(&self, url: Url, inner: reqwest::Response) -> Response {
        Response {
            url,
            inner,
            idle: self.config.idle_timeout,
            longest_pause: self.config.retry.longest_pause,
            held: None,
        }
    }
}

/// An answer whose body has not been read.
#[derive(Debug)]
pub(crate) struct Response {
    url: Url,
    inner: reqwest::Response,
    idle: Duration,
    longest_pause: Duration,
    /// The body, once it was taken off the connection ahead of its reader.
    held: Option<Bytes>,
}

impl Response {
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.inner.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.inner.headers()
    }

    /// A header as text; one that is not ASCII counts as absent.
    pub(crate) fn header(&self, name: impl Into<HeaderName>) -> Option<&str> {
        self.headers().get(name.into())?.to_str().ok()
    }

    /// `Content-Length` as it was sent.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(CONTENT_LENGTH)?.parse().ok()
    }

    /// The next piece of the body.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, TransferError> {
        if let Some(held) = &mut self.held {
            let piece = std::mem::take(held);
            return Ok((!piece.is_empty()).then_some(piece));
        }
        match tokio::time::timeout(self.idle, self.inner.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(classify(&self.url, &error)),
            Err(_) => Err(silent(&self.url, self.idle)),
        }
    }

    /// The whole body, which may have at most `limit` bytes.
    pub(crate) async fn body(mut self, what: &str, limit: u64) -> Result<Bytes, TransferError> {
        let too_large = || TransferError::TooLarge {
            what: what.to_owned(),
            limit,
        };
        let promised = self.content_length();
        if promised.is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let mut body = BytesMut::new();
        while let Some(chunk) = self.chunk().await? {
            if (body.len() + chunk.len()) as u64 > limit {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body.freeze())
    }

    /// Takes the body of a refusal off the connection while it stands: one that came before the
    /// request's end is lost when the request is broken off.
    pub(crate) async fn hold_refusal(&mut self) {
        if self.status().is_success() || self.held.is_some() {
            return;
        }
        let mut body = BytesMut::new();
        while let Ok(Some(chunk)) = self.chunk().await {
            if body.len() + chunk.len() > MAX_ERROR_BODY {
                break;
            }
            body.extend_from_slice(&chunk);
        }
        self.held = Some(body.freeze());
    }

    /// Reads a short body to its end, so that the connection can serve again.
    pub(crate) async fn drain(self) {
        let _ = self.body("answer", MAX_ERROR_BODY as u64).await;
    }

    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let wish = retry_after(self.header(RETRY_AFTER)?, SystemTime::now())?;
        Some(wish.min(self.longest_pause))
    }

    /// Whether the server says that it has the manifest, and not its content.
    pub(crate) fn is_damaged(&self) -> bool {
        self.status().is_server_error() && self.headers().contains_key(DAMAGED_HEADER)
    }

    /// Turns an answer that is not success into the error it means. `what` was asked for.
    pub(crate) async fn into_error(self, method: &Method, what: &str) -> TransferError {
        let url = redacted(&self.url);
        let status = self.status();
        let mut answer = Box::new(Answer::of(status.as_u16()));
        answer.retry_after = self.retry_after();
        if *method == Method::HEAD {
            if self.is_damaged() {
                answer.codes.push(DAMAGED.to_owned());
                answer.message =
                    format!("{DAMAGED}: it is damaged in this registry; push it again");
            }
        } else if let Ok(body) = self.body("error body", MAX_ERROR_BODY as u64).await {
            describe(&body, &mut answer);
        }
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => TransferError::Denied {
                url,
                answer,
                hint: None,
            },
            StatusCode::NOT_FOUND => TransferError::NotFound {
                what: what.to_owned(),
                url,
                answer,
            },
            StatusCode::PRECONDITION_FAILED => TransferError::Conflict { url },
            _ => TransferError::Status {
                method: method.to_string(),
                url,
                answer,
            },
        }
    }
}

/// Takes codes and messages out of an error body; a body in another format gives nothing.
fn describe(body: &[u8], answer: &mut Answer) {
    const SHOWN: usize = 4;
    let Some(parsed) = ErrorBody::parse(body) else {
        return;
    };
    let mut lines = Vec::new();
    for error in parsed.errors.iter().take(SHOWN) {
        let code = printable(error.code.as_str(), 64);
        let message = printable(&error.message, 300);
        lines.push(if message.is_empty() {
            code.clone()
        } else {
            format!("{code}: {message}")
        });
        answer.codes.push(code);
    }
    answer.message = lines.join("; ");
}

fn silent(url: &Url, idle: Duration) -> TransferError {
    TransferError::Unreachable {
        url: redacted(url),
        reason: format!("no data for {} s", idle.as_secs_f32()),
    }
}

/// Tells TLS failures from failures to reach the other side. The text is the innermost cause.
pub(crate) fn classify(url: &Url, error: &reqwest::Error) -> TransferError {
    let shown = redacted(url);
    let mut reason = String::from("the connection broke");
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(tls) = tls_error(inner) {
            return TransferError::Tls {
                url: shown,
                reason: printable(&tls.to_string(), 400),
            };
        }
        reason = printable(&inner.to_string(), 400);
        cause = inner.source();
    }
    if error.is_builder() {
        return TransferError::Config(format!("{shown} cannot be asked: {reason}"));
    }
    if error.is_timeout() {
        reason = String::from("no connection in time");
    }
    TransferError::Unreachable { url: shown, reason }
}

fn tls_error<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref() {
        return Some(tls);
    }
    // `io::Error::source` skips the error it wraps, which may be such a wrapper again.
    tls_error(error.downcast_ref::<io::Error>()?.get_ref()?)
}
