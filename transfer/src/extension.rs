//! The extension `_vdkr` of our own registry (`vdkr_core::extension`): lists with everything in them,
//! garbage collection, checks, the history of tags. Other registries do not have it; then the answer is
//! `None`, and the caller does without.

use std::collections::HashSet;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::Route;
use vdkr_core::extension::{
    FsckOptions, FsckReport, GcOptions, GcReport, History, HistoryEntry, ImageEntry, ImagePage,
    JobState, MAX_IMAGES,
};
use vdkr_core::reference::Host;

use crate::client::{Client, Repository, join};
use crate::error::TransferError;
use crate::guard::redacted;
use crate::json;
use crate::request::Request;
use crate::scope::Scopes;

/// Longest report, bytes.
const MAX_REPORT: u64 = 64 * 1024 * 1024;

impl Client {
    /// Every image of a registry, in one request for each thousand. `None`: the registry cannot do this.
    pub async fn images(&self, host: &Host) -> Result<Option<Vec<ImageEntry>>, TransferError> {
        let places = self.places(host)?;
        let path = format!("{}?n={MAX_IMAGES}", Route::Images);
        let request = self.extension(host, Method::GET, &path).await?;
        let mut images = Vec::new();
        let listed = self
            .pages(&places, request, "list of images", |page| {
                let page: ImagePage = json::object(page)?;
                images.extend(page.images);
                Ok(())
            })
            .await;
        match listed {
            Ok(()) => Ok(Some(images)),
            // A page that is missing behind others is an error; at the beginning it tells what the
            // other side is.
            Err(error) if images.is_empty() && is_foreign(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a tag points to and pointed to. `None`: the registry cannot tell.
    pub async fn history(
        &self,
        repository: &Repository,
        tag: &str,
    ) -> Result<Option<History>, TransferError> {
        let route = Route::History {
            name: repository.name().to_owned(),
            tag: tag.to_owned(),
        };
        let mut request = self
            .extension(repository.host(), Method::GET, &route.to_string())
            .await?;
        request.scopes = Scopes::repository(repository.name(), &["pull"]);
        let places = self.places(repository.host())?;
        let mut history: Option<History> = None;
        let mut known = HashSet::new();
        let listed = self
            .pages(&places, request, "tag", |page| {
                let page: History = json::object(page)?;
                // The tag may have been moved between two pages.
                let new = |entry: &HistoryEntry| known.insert(entry.digest.clone());
                let entries: Vec<_> = page.entries.into_iter().filter(new).collect();
                match &mut history {
                    Some(history) => history.entries.extend(entries),
                    None => history = Some(History { entries, ..page }),
                }
                Ok(())
            })
            .await;
        match listed {
            Ok(()) => Ok(history),
            // Our own answer for a tag that is not there has this code; others know no such path.
            Err(error)
                if history.is_none()
                    && is_foreign(&error)
                    && !knows(&error, "MANIFEST_UNKNOWN") =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Pins a manifest, or with `pinned` unset takes the pin away. `false`: it is not there.
    pub async fn pin(
        &self,
        repository: &Repository,
        digest: &Digest,
        pinned: bool,
    ) -> Result<bool, TransferError> {
        let route = Route::Pin {
            name: repository.name().to_owned(),
            digest: digest.clone(),
        };
        let (method, action) = if pinned {
            (Method::PUT, "push")
        } else {
            (Method::DELETE, "delete")
        };
        let mut request = self
            .extension(repository.host(), method, &route.to_string())
            .await?;
        request.scopes = Scopes::repository(repository.name(), &["pull", action]);
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let answer = self.call(endpoint, &request).await?;
        if answer.status().is_success() {
            answer.drain().await;
            return Ok(true);
        }
        let error = self.fail(endpoint, &request, answer, "manifest").await;
        if knows(&error, "MANIFEST_UNKNOWN") {
            return Ok(false);
        }
        if is_foreign(&error) {
            return Err(TransferError::Unsupported(format!(
                "{} does not know pins",
                repository.host()
            )));
        }
        Err(error)
    }

    /// Whether a manifest is pinned. Registries that know no pins have none.
    pub async fn is_pinned(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<bool, TransferError> {
        let route = Route::Pin {
            name: repository.name().to_owned(),
            digest: digest.clone(),
        };
        let mut request = self
            .extension(repository.host(), Method::GET, &route.to_string())
            .await?;
        request.scopes = Scopes::repository(repository.name(), &["pull"]);
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let answer = self.call(endpoint, &request).await?;
        if answer.status().is_success() {
            answer.drain().await;
            return Ok(true);
        }
        let error = self.fail(endpoint, &request, answer, "manifest").await;
        let refused =
            matches!(&error, TransferError::Status { answer, .. } if answer.status == 405);
        if knows(&error, "MANIFEST_UNKNOWN") || is_foreign(&error) || refused {
            return Ok(false);
        }
        Err(error)
    }

    /// Collects garbage, and waits until it is done. `None`: the registry cannot do this. The flag tells
    /// that a run already under way was joined.
    pub async fn collect_garbage(
        &self,
        host: &Host,
        options: &GcOptions,
    ) -> Result<Option<(GcReport, bool)>, TransferError> {
        self.job(host, &Route::Gc, &options.to_query()).await
    }

    /// Checks the storage, and waits until it is done. `None`: the registry cannot do this.
    pub async fn check_storage(
        &self,
        host: &Host,
        options: &FsckOptions,
    ) -> Result<Option<(FsckReport, bool)>, TransferError> {
        self.job(host, &Route::Fsck, &options.to_query()).await
    }

    async fn job<R: DeserializeOwned>(
        &self,
        host: &Host,
        route: &Route,
        query: &str,
    ) -> Result<Option<(R, bool)>, TransferError> {
        let request = self
            .extension(host, Method::POST, &format!("{route}?{query}"))
            .await?;
        let mut state: JobState<R> = match self.document(host, &request, "registry").await {
            Ok(state) => state,
            Err(error) if is_foreign(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let joined = state.joined;
        loop {
            if let Some(report) = state.report {
                return Ok(Some((report, joined)));
            }
            if let Some(failed) = state.failed {
                return Err(TransferError::Protocol {
                    url: redacted(&request.url),
                    reason: crate::error::printable(&failed, 300),
                });
            }
            let again = format!("{route}?id={}", safe(&state.id));
            let request = self.extension(host, Method::GET, &again).await?;
            state = self.document(host, &request, "run").await?;
        }
    }

    async fn document<T: DeserializeOwned>(
        &self,
        host: &Host,
        request: &Request,
        what: &str,
    ) -> Result<T, TransferError> {
        let places = self.places(host)?;
        let endpoint = places.registry();
        let answer = self.call(endpoint, request).await?;
        if !matches!(answer.status(), StatusCode::OK | StatusCode::ACCEPTED) {
            return Err(self.fail(endpoint, request, answer, what).await);
        }
        let body: Bytes = answer.body(what, MAX_REPORT).await?;
        json::object(&body).map_err(|error| TransferError::Protocol {
            url: redacted(&request.url),
            reason: format!("its answer cannot be read: {error}"),
        })
    }

    /// A request to the registry itself. `path` begins with `/v2/`.
    async fn extension(
        &self,
        host: &Host,
        method: Method,
        path: &str,
    ) -> Result<Request, TransferError> {
        let places = self.places(host)?;
        let base = self.sender().base(places.registry()).await?.url;
        let url = join(&base, path.trim_start_matches("/v2/"))?;
        Ok(Request::new(method, url, Scopes::catalog()))
    }
}

/// Whether an error is what a registry without the extension says: that there is no such path, or that it
/// is no legal one.
fn is_foreign(error: &TransferError) -> bool {
    match error {
        TransferError::NotFound { .. } => true,
        TransferError::Status { answer, .. } => {
            matches!(answer.status, 400 | 501) && !knows(error, "QUERY_INVALID")
        }
        _ => false,
    }
}

fn knows(error: &TransferError, code: &str) -> bool {
    error.codes().iter().any(|known| known == code)
}

/// An id as a query may hold it.
fn safe(id: &str) -> String {
    id.chars()
        .filter(char::is_ascii_alphanumeric)
        .take(64)
        .collect()
}
