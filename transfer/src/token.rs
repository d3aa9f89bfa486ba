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
    until: Instant,
}

#[derive(Default)]
struct Slot {
    token: Option<Token>,
    failed: Option<(Instant, TransferError)>,
}

/// The tokens of one client.
#[derive(Default)]
pub(crate) struct Tokens {
    slots: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Slot>>>>,
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
    /// Drops a token that a registry did not take.
    pub(crate) fn forget(&self, stale: &Secret) {
        for slot in lock(&self.slots).values() {
            // A slot in use is being renewed already.
            if let Ok(mut slot) = slot.try_lock()
                && slot
                    .token
                    .as_ref()
                    .is_some_and(|token| token.value == *stale)
            {
                slot.token = None;
            }
        }
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
        let mut slot = slot.lock().await;
        if let Some(token) = &slot.token
            && Instant::now() < token.until
        {
            return Ok(token.value.clone());
        }
        // Whoever waited while another one failed shares that failure.
        if let Some((at, error)) = &slot.failed
            && *at >= asked
        {
            return Err(error.clone());
        }
        match fetch(http, wanted, credential).await {
            Ok(token) => {
                slot.failed = None;
                Ok(slot.token.insert(token).value.clone())
            }
            Err(error) => {
                slot.token = None;
                slot.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    fn slot(&self, wanted: &Wanted) -> Arc<tokio::sync::Mutex<Slot>> {
        const MANY: usize = 256;
        let mut slots = lock(&self.slots);
        if slots.len() >= MANY {
            let now = Instant::now();
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(slot) => slot.token.as_ref().is_some_and(|token| token.until > now),
                Err(_) => true,
            });
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
        until: sent + life.saturating_sub(MARGIN),
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

    #[test]
    fn forms_are_encoded() {
        let form = [("a", "x y&z=1".to_owned()), ("b", "é+".to_owned())];
        assert_eq!(url_encoded(&form), "a=x+y%26z%3D1&b=%C3%A9%2B");
    }
}
