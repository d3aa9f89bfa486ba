//! `/v2/_catalog`: the names of the repositories.

use http::Response;
use serde::Serialize;
use vdkr_core::distribution::percent;
use vdkr_core::distribution::query::MAX_PAGE;

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

#[derive(Serialize)]
struct Catalog {
    repositories: Vec<String>,
}

pub(crate) async fn list(ask: &Ask<'_>) -> Result<Response<Body>, Refusal> {
    let n = ask.query.n.unwrap_or(MAX_PAGE);
    let last = ask.query.last.clone().unwrap_or_default();
    let (repositories, more) = match n {
        0 => (Vec::new(), false),
        n => {
            ask.registry
                .scanning(move |storage| storage.catalog(&last, n))
                .await?
        }
    };
    let next = repositories
        .last()
        .filter(|_| more)
        .map(|last| format!("/v2/_catalog?n={n}&last={}", percent::encode(last)));
    page("application/json", &Catalog { repositories }, next)
}
