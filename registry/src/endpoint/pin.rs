//! `/v2/<name>/_vdkr/pins/<digest>`: manifests that are kept whether a tag names them or not.

use http::{Response, StatusCode};
use vdkr_core::digest::Digest;
use vdkr_core::distribution::ErrorCode;

use super::empty;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

pub(crate) async fn get(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let (repository, pinned) = (name.clone(), digest.clone());
    let found = ask
        .registry
        .blocking(move |storage| Ok(storage.pins(&repository)?.contains(&pinned)))
        .await?;
    answer(
        found,
        &format!("{digest} is not pinned in the repository {name}"),
    )
}

pub(crate) async fn put(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let (repository, pinned) = (name.clone(), digest.clone());
    let done = ask
        .registry
        .blocking(move |storage| storage.pin(&repository, &pinned))
        .await?;
    answer(
        done,
        &format!("the repository {name} has no manifest {digest}"),
    )
}

pub(crate) async fn delete(
    ask: &Ask<'_>,
    name: String,
    digest: Digest,
) -> Result<Response<Body>, Refusal> {
    let (repository, pinned) = (name.clone(), digest.clone());
    let done = ask
        .registry
        .blocking(move |storage| storage.unpin(&repository, &pinned))
        .await?;
    answer(
        done,
        &format!("{digest} is not pinned in the repository {name}"),
    )
}

fn answer(done: bool, otherwise: &str) -> Result<Response<Body>, Refusal> {
    if done {
        Ok(empty(StatusCode::NO_CONTENT))
    } else {
        Err(Refusal::new(ErrorCode::ManifestUnknown, otherwise))
    }
}
