//! `/v2/<name>/tags/list`: the tags of a repository (end-8a, end-8b).

use http::Response;
use serde::Serialize;
use vdkr_core::distribution::query::MAX_PAGE;
use vdkr_core::distribution::{ErrorCode, percent};

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

#[derive(Serialize)]
struct Tags<'a> {
    name: &'a str,
    tags: Vec<String>,
}

pub(crate) async fn list(ask: &Ask<'_>, name: String) -> Result<Response<Body>, Refusal> {
    let n = ask.query.n.unwrap_or(MAX_PAGE);
    let last = ask.query.last.clone().unwrap_or_default();
    let repository = name.clone();
    let found = ask
        .registry
        .scanning(move |storage| match n {
            0 => Ok(storage
                .has_repository(&repository)?
                .then(|| (Vec::new(), false))),
            n => storage.tags(&repository, &last, n),
        })
        .await?;
    let Some((tags, more)) = found else {
        let message = format!("the repository {name} is unknown");
        return Err(Refusal::new(ErrorCode::NameUnknown, message));
    };
    let next = tags
        .last()
        .filter(|_| more)
        .map(|last| format!("/v2/{name}/tags/list?n={n}&last={}", percent::encode(last)));
    page("application/json", &Tags { name: &name, tags }, next)
}
