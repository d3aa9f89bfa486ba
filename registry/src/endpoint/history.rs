//! `/v2/<name>/_vdkr/history/<tag>`: what a tag points to and pointed to.

use http::Response;
use vdkr_core::distribution::ErrorCode;
use vdkr_core::extension::History;

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

/// Most entries of an answer.
const MOST: usize = 1000;

pub(crate) async fn get(
    ask: &Ask<'_>,
    name: String,
    tag: String,
) -> Result<Response<Body>, Refusal> {
    let limit = ask.query.n.unwrap_or(MOST).min(MOST);
    let (repository, asked) = (name.clone(), tag.clone());
    let entries = ask
        .registry
        .scanning(move |storage| storage.history(&repository, &asked, limit))
        .await?
        .ok_or_else(|| {
            Refusal::new(
                ErrorCode::ManifestUnknown,
                format!("the repository {name} has no tag {tag}"),
            )
        })?;
    let history = History {
        repository: name,
        tag,
        entries,
    };
    page("application/json", &history, None)
}
