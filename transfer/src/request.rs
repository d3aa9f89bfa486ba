//! What becomes of a request: credentials, one answer to a challenge, redirects followed by hand,
//! and repetition of what may be repeated.

use std::time::Instant;

use bytes::Bytes;
use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Body, Method, StatusCode, Url};

use crate::auth::Visit;
use crate::config::ClientConfig;
use crate::endpoint::{Base, Endpoint};
use crate::error::TransferError;
use crate::guard::{follow, names_inward, redacted, same_origin};
use crate::http::{Authorization, Http, Lane, Response};
use crate::scope::Scopes;
use crate::token::Tokens;

/// Redirects in a row that are followed.
const MAX_HOPS: usize = 5;
/// Challenges in a row that are answered: the first, that of a kept token which is not taken any more,
/// and that of its successor when the registry asks for more than before.
pub(crate) const MAX_CHALLENGES: u32 = 3;

/// A request whose body, if any, is at hand: it can be sent again.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    /// The rights it needs.
    pub(crate) scopes: Scopes,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<Bytes>,
}

impl Request {
    pub(crate) fn new(method: Method, url: Url, scopes: Scopes) -> Self {
        Self {
            method,
            url,
            scopes,
            headers: HeaderMap::new(),
            body: None,
        }
    }

    /// Only what changes nothing is redirected: an upload goes where its `Location` says.
    fn follows(&self) -> bool {
        matches!(self.method, Method::GET | Method::HEAD)
    }
}

/// The sending side of a client.
pub(crate) struct Sender {
    pub(crate) http: Http,
    tokens: Tokens,
}

impl Sender {
    pub(crate) fn new(config: ClientConfig) -> Result<Self, TransferError> {
        Ok(Self {
            http: Http::new(config)?,
            tokens: Tokens::default(),
        })
    }

    pub(crate) fn config(&self) -> &ClientConfig {
        self.http.config()
    }

    pub(crate) async fn base(&self, endpoint: &Endpoint) -> Result<Base, TransferError> {
        endpoint.base(&self.http).await.cloned()
    }

    /// Sends until there is an answer that repeating would not change. All of the distribution
    /// protocol may be repeated: at worst an upload session is opened that nobody uses.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<Response, TransferError> {
        let mut failures = 0;
        loop {
            let result = self.once(endpoint, request).await;
            let wish = match &result {
                // Damage does not pass.
                Ok(answer) if passing(answer.status()) && !answer.is_damaged() => {
                    answer.retry_after()
                }
                Err(error) if error.retryable() => error.retry_after(),
                _ => return result,
            };
            failures += 1;
            let Some(pause) = self.config().retry.pause(failures, wish) else {
                return result;
            };
            tracing::debug!(url = %redacted(&request.url), failures, ?pause, "request repeated");
            if let Ok(answer) = result {
                answer.drain().await;
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sends once: with the credentials that are known to be wanted, and again when those turn out
    /// to be others.
    pub(crate) async fn once(
        &self,
        endpoint: &Endpoint,
        request: &Request,
    ) -> Result<Response, TransferError> {
        let base = self.base(endpoint).await?;
        let begun = Instant::now();
        let mut shown = self.authorization(endpoint, &base, request).await?;
        let mut challenges = 0;
        loop {
            let answer = self
                .exchange(lane(&base, &request.url), request, &request.url, &shown)
                .await?;
            if answer.status() == StatusCode::UNAUTHORIZED
                && challenges < MAX_CHALLENGES
                && self.learn(endpoint, &base, request, (&shown, begun), &answer)?
            {
                challenges += 1;
                let next = self.authorization(endpoint, &base, request).await?;
                if next != shown {
                    shown = next;
                    answer.drain().await;
                    continue;
                }
            }
            if request.follows() && answer.status().is_redirection() {
                return self.redirected(endpoint, &base, request, answer).await;
            }
            return Ok(answer);
        }
    }

    async fn redirected(
        &self,
        endpoint: &Endpoint,
        base: &Base,
        request: &Request,
        mut answer: Response,
    ) -> Result<Response, TransferError> {
        for _ in 0..MAX_HOPS {
            // 304 and the like name no other place.
            let Some(target) = answer.header(LOCATION) else {
                return Ok(answer);
            };
            let next = follow(target, answer.url(), &base.url)?;
            let shown = if same_origin(&base.url, &next) {
                self.authorization(endpoint, base, request).await?
            } else {
                Authorization::Nothing
            };
            answer.drain().await;
            answer = self
                .exchange(lane(base, &next), request, &next, &shown)
                .await?;
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
        }
        Err(TransferError::Protocol {
            url: redacted(&request.url),
            reason: format!("more than {MAX_HOPS} redirects in a row"),
        })
    }

    async fn exchange(
        &self,
        lane: Lane,
        request: &Request,
        url: &Url,
        shown: &Authorization,
    ) -> Result<Response, TransferError> {
        let method = request.method.clone();
        let headers = request.headers.clone();
        let mut builder = self
            .http
            .prepare(lane, method, url.clone(), headers, shown)?;
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        self.http.exchange(url, builder).await
    }

    /// Makes the one try of a request with a body that cannot be had twice.
    pub(crate) async fn prepare_stream(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        body: Body,
    ) -> Result<(reqwest::RequestBuilder, (Authorization, Instant)), TransferError> {
        let base = self.base(endpoint).await?;
        let begun = Instant::now();
        let shown = self.authorization(endpoint, &base, request).await?;
        let builder = self.http.prepare(
            lane(&base, &request.url),
            request.method.clone(),
            request.url.clone(),
            request.headers.clone(),
            &shown,
        )?;
        Ok((builder.body(body), (shown, begun)))
    }

    /// Takes a challenge in. True when there is something else to show now.
    pub(crate) async fn learn_stream(
        &self,
        endpoint: &Endpoint,
        request: &Request,
        (shown, begun): (&Authorization, Instant),
        answer: &Response,
    ) -> Result<bool, TransferError> {
        let base = self.base(endpoint).await?;
        Ok(
            self.learn(endpoint, &base, request, (shown, begun), answer)?
                && self.authorization(endpoint, &base, request).await? != *shown,
        )
    }

    /// Takes a challenge in. False when there cannot be anything better to show.
    fn learn(
        &self,
        endpoint: &Endpoint,
        base: &Base,
        request: &Request,
        (shown, begun): (&Authorization, Instant),
        answer: &Response,
    ) -> Result<bool, TransferError> {
        // A stranger's challenge is none of our business.
        if !same_origin(&base.url, answer.url()) {
            return Ok(false);
        }
        let visit = self.visit(endpoint, base, request);
        endpoint.gate.challenged(&visit, shown, begun, answer)
    }

    fn visit<'a>(
        &'a self,
        endpoint: &'a Endpoint,
        base: &'a Base,
        request: &'a Request,
    ) -> Visit<'a> {
        Visit {
            http: &self.http,
            tokens: &self.tokens,
            host: endpoint.host(),
            base,
            scopes: &request.scopes,
        }
    }

    /// Credentials are shown to the registry's own origin and to nobody else.
    async fn authorization(
        &self,
        endpoint: &Endpoint,
        base: &Base,
        request: &Request,
    ) -> Result<Authorization, TransferError> {
        if !same_origin(&base.url, &request.url) {
            return Ok(Authorization::Nothing);
        }
        let visit = self.visit(endpoint, base, request);
        endpoint.gate.authorize(&visit).await
    }

    /// The error that an answer means. `what` was asked for.
    pub(crate) async fn fail(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        answer: Response,
        what: &str,
    ) -> TransferError {
        match answer.into_error(method, what).await {
            TransferError::Denied { url, answer, .. } => TransferError::Denied {
                url,
                answer,
                hint: endpoint.gate.hint(endpoint.host()),
            },
            other => other,
        }
    }
}

fn lane(base: &Base, url: &Url) -> Lane {
    if same_origin(&base.url, url) {
        base.lane
    } else if names_inward(url) {
        // Only an inward registry gets here: others may not point inward.
        Lane::Direct
    } else if names_inward(&base.url) {
        Lane::Verified
    } else {
        Lane::Outward
    }
}

/// States of a server that pass.
pub(crate) fn passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 425 | 429 | 500 | 502 | 503 | 504)
}
