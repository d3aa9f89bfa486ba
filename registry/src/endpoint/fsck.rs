//! `/v2/_vdkr/storage/fsck`: checking what is stored.

use http::Response;
use vdkr_core::extension::FsckOptions;

use crate::body::Body;
use crate::error::Refusal;
use crate::jobs::{self, Work};
use crate::router::Ask;

pub(crate) async fn start(ask: &Ask<'_>) -> Result<Response<Body>, Refusal> {
    let query = ask.head.uri.query().unwrap_or_default();
    let mut options = FsckOptions::parse(query).map_err(jobs::malformed)?;
    options.sparse = ask.registry.config().sparse_manifests;
    jobs::start(ask.registry, Work::Fsck(options)).await
}

pub(crate) async fn state(ask: &Ask<'_>) -> Result<Response<Body>, Refusal> {
    jobs::state(ask.registry, ask.head.uri.query(), false).await
}
