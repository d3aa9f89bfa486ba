//! Tokens of the Bearer flow: kept per (registry, realm, service, scopes), and fetched once however
//! many requests wait for them (distribution, `auth/token` and `auth/oauth`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::{Method, Url};
use serde::Deserialize;
use vdkr_core::credentials::{Credential, Secret};
use vdkr_core::reference::Host;

use crate::error::TransferError;
use crate::guard::redacted;
use crate::http::{Authorization, Http, Lane};
use crate::json;
use crate::scope::Scopes;

/// Largest answer of a token server, bytes.
const MAX_TOKEN_ANSWER: u64 = 256 * 1024;
/// A token without a stated life lives this long (distribution, token specification).
const DEFAULT_LIFE: Duration = Duration::from_mins(1);
/// A token is not used in its last seconds: the request has to arrive too.
const MARGIN: Duration = Duration::from_secs(10);

/// The token that is wanted, and where it is to be had.
pub(crate) struct Wanted {
    /// Whose credential is shown; two registries may share a realm.
    pub(crate) host: Host,
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scopes: Scopes,
    pub(crate) lane: Lane,
}

type Key = (Host, String, Option<String>, Scopes);

#[derive(Clone)]
struct Token {
    value: Secret,
    since: Instant,
    until: Instant,
    /// Whether a registry did not take it. It is kept to tell the others who showed it how old it was.
    refused: bool,
}

impl Token {
    fn is_alive(&self) -> bool {
        Instant::now() < self.until
    }
}

/// A token is looked at without waiting for whoever fetches another one.
#[derive(Default)]
struct Slot {
    token: Mutex<Option<Token>>,
    /// Held by whoever fetches; how that failed the last time.
    fetching: tokio::sync::Mutex<Option<(Instant, TransferError)>>,
}

impl Slot {
    fn good(&self) -> Option<Secret> {
        let token = lock(&self.token);
        let good = token.as_ref().filter(|one| !one.refused && one.is_alive());
        good.map(|token| token.value.clone())
    }
}

/// The tokens of one client.
#[derive(Default)]
pub(crate) struct Tokens {
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<Secret>,
    #[serde(default)]
    access_token: Option<Secret>,
    #[serde(default)]
    expires_in: Option<u64>,
}

impl Tokens {
    /// Uses a token no more that a registry did not take. True when it was new: given out since
    /// `begun`, and good for longer, so that another one would do no better.
    pub(crate) fn refuse(&self, stale: &Secret, begun: Instant) -> bool {
        let mut new = false;
        for slot in lock(&self.slots).values() {
            if let Some(token) = &mut *lock(&slot.token)
                && token.value == *stale
            {
                new |= token.since >= begun && token.is_alive();
                token.refused = true;
            }
        }
        new
    }

    /// A token that is good now.
    pub(crate) async fn get(
        &self,
        http: &Http,
        wanted: &Wanted,
        credential: &Credential,
    ) -> Result<Secret, TransferError> {
        let asked = Instant::now();
        let slot = self.slot(wanted);
        if let Some(token) = slot.good() {
            return Ok(token);
        }
        let mut failed = slot.fetching.lock().await;
        // Whoever waited for another one shares what came of that.
        if let Some(token) = slot.good() {
            return Ok(token);
        }
        if let Some((at, error)) = &*failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match fetch(http, wanted, credential).await {
            Ok(token) => {
                *failed = None;
                Ok(lock(&slot.token).insert(token).value.clone())
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn slot(&self, wanted: &Wanted) -> Arc<Slot> {
        const MANY: usize = 256;
        let mut slots = lock(&self.slots);
        if slots.len() >= MANY {
            // One that somebody holds may get its token yet.
            slots.retain(|_, slot| Arc::strong_count(slot) > 1 || slot.good().is_some());
        }
        let key = (
            wanted.host.clone(),
            wanted.realm.to_string(),
            wanted.service.clone(),
            wanted.scopes.clone(),
        );
        slots.entry(key).or_default().clone()
    }
}

async fn fetch(
    http: &Http,
    wanted: &Wanted,
    credential: &Credential,
) -> Result<Token, TransferError> {
    let mut failures = 0;
    loop {
        let error = match fetch_once(http, wanted, credential).await {
            Err(error) if error.retryable() => error,
            other => return other,
        };
        failures += 1;
        match http.config().retry.pause(failures, error.retry_after()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return Err(error),
        }
    }
}

async fn fetch_once(
    http: &Http,
    wanted: &Wanted,
    credential: &Credential,
) -> Result<Token, TransferError> {
    let sent = Instant::now();
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
    let (method, url, form, shown) = match credential {
        Credential::IdentityToken(token) => {
            // RFC 6749 §6, as the distribution project's OAuth 2 flow uses it.
            let mut form = vec![
                ("grant_type", "refresh_token".to_owned()),
                ("client_id", "vdkr".to_owned()),
                ("refresh_token", token.expose().to_owned()),
                ("scope", wanted.scopes.to_string()),
            ];
            form.extend(wanted.service.clone().map(|service| ("service", service)));
            let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
            headers.insert(CONTENT_TYPE, form_type);
            (
                Method::POST,
                wanted.realm.clone(),
                Some(url_encoded(&form)),
                Authorization::Nothing,
            )
        }
        other => {
            let mut url = wanted.realm.clone();
            {
                let mut query = url.query_pairs_mut();
                if let Some(service) = &wanted.service {
                    query.append_pair("service", service);
                }
                for scope in wanted.scopes.iter() {
                    query.append_pair("scope", &scope.to_string());
                }
            }
            let shown = match other {
                Credential::Basic { username, password } => Authorization::Basic {
                    username: username.clone(),
                    password: password.clone(),
                },
                _ => Authorization::Nothing,
            };
            (Method::GET, url, None, shown)
        }
    };
    let mut request = http.prepare(wanted.lane, method.clone(), url.clone(), headers, &shown)?;
    if let Some(form) = form {
        request = request.body(form);
    }
    let answer = http.exchange(&url, request).await?;
    if !answer.status().is_success() {
        return Err(refusal(answer.into_error(&method, "a token").await));
    }
    let body = answer
        .body("the token server's answer", MAX_TOKEN_ANSWER)
        .await?;
    let protocol = |reason: &str| TransferError::Protocol {
        url: redacted(&url),
        reason: reason.to_owned(),
    };
    let parsed: TokenAnswer =
        json::object(&body).map_err(|_| protocol("its body is not a token answer"))?;
    let value = [parsed.token, parsed.access_token]
        .into_iter()
        .flatten()
        .find(|value| !value.is_empty())
        .ok_or_else(|| protocol("it gave no token"))?;
    if HeaderValue::from_str(value.expose()).is_err() {
        return Err(protocol("its token cannot stand in a header"));
    }
    let life = parsed
        .expires_in
        .map_or(DEFAULT_LIFE, |seconds| {
            Duration::from_secs(seconds.min(86_400))
        })
        .max(DEFAULT_LIFE);
    Ok(Token {
        value,
        since: Instant::now(),
        until: sent + life.saturating_sub(MARGIN),
        refused: false,
    })
}

/// What a token server's answer means for the request that needs the token. Its 404 says nothing of what
/// the registry has: whoever took it for that would ask the next registry for a private image.
fn refusal(error: TransferError) -> TransferError {
    match error {
        TransferError::NotFound { url, answer, .. } => TransferError::Denied {
            url,
            answer,
            hint: Some("the registry's token server gives no token there".to_owned()),
        },
        other => other,
    }
}

/// `application/x-www-form-urlencoded`; the encoding of a query is the same.
fn url_encoded(form: &[(&str, String)]) -> String {
    Url::parse_with_params("http://form/", form)
        .ok()
        .and_then(|url| url.query().map(str::to_owned))
        .unwrap_or_default()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(value: &str, since: Instant, life: Duration) -> Token {
        Token {
            value: Secret::new(value),
            since,
            until: since + life,
            refused: false,
        }
    }

    #[test]
    fn what_was_given_since_the_request_had_begun_is_new() {
        const HOUR: Duration = Duration::from_hours(1);
        let (before, begun) = (Instant::now(), Instant::now() + Duration::from_millis(1));
        let after = begun + Duration::from_millis(1);
        for (since, life, new) in [
            (before, HOUR, false),
            (after, HOUR, true),
            // It may have expired while the request was on its way.
            (after, Duration::ZERO, false),
        ] {
            let slot = Arc::new(Slot::default());
            *lock(&slot.token) = Some(token("T", since, life));
            let tokens = Tokens::default();
            let wanted = (Host::parse("r.example").unwrap(), String::new(), None);
            let key = (wanted.0, wanted.1, wanted.2, Scopes::default());
            lock(&tokens.slots).insert(key, slot.clone());
            if life.is_zero() {
                while Instant::now() < after {}
            }
            assert!(!tokens.refuse(&Secret::new("other"), begun));
            assert_eq!(slot.good().is_some(), !life.is_zero());
            // Whoever is just about to fetch another one does not keep it in use.
            let fetching = slot.fetching.try_lock().unwrap();
            for _ in 0..2 {
                assert_eq!(tokens.refuse(&Secret::new("T"), begun), new);
                assert_eq!(slot.good(), None);
            }
            drop(fetching);
        }
    }

    #[test]
    fn forms_are_encoded() {
        let form = [("a", "x y&z=1".to_owned()), ("b", "é+".to_owned())];
        assert_eq!(url_encoded(&form), "a=x+y%26z%3D1&b=%C3%A9%2B");
    }
}
