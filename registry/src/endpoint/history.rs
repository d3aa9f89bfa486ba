//! `/v2/<name>/_vdkr/history/<tag>`: what a tag points to and pointed to.

use http::Response;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::ErrorCode;
use vdkr_core::extension::History;

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

/// Most entries of a page.
const MOST: usize = 1000;

pub(crate) async fn get(
    ask: &Ask<'_>,
    name: String,
    tag: String,
) -> Result<Response<Body>, Refusal> {
    let n = ask.query.n.unwrap_or(MOST).min(MOST);
    let last = ask.query.last.as_deref().map(Digest::parse).transpose();
    let last = last.map_err(|error| {
        Refusal::new(
            ErrorCode::DigestInvalid,
            format!("query parameter \"last\": {error}"),
        )
    })?;
    let (repository, asked) = (name.clone(), tag.clone());
    let (entries, more) = ask
        .registry
        .scanning(move |storage| storage.history(&repository, &asked, last.as_ref(), n))
        .await?
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::ManifestUnknown,
                format!("the repository {name} has no tag {tag}"),
            )
        })?;
    let next = entries.last().filter(|_| more).map(|last| {
        let last = &last.digest;
        format!("/v2/{name}/_vdkr/history/{tag}?n={n}&last={last}")
    });
    let history = History {
        repository: name,
        tag,
        entries,
    };
    page("application/json", &history, next)
}
