//! `/v2/_vdkr/images/list`: every tag with digest, platforms, size and times.

use http::Response;
use vdkr_core::distribution::percent;
use vdkr_core::extension::{ImagePage, MAX_IMAGES};

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

pub(crate) async fn list(ask: &Ask<'_>) -> Result<Response<Body>, Refusal> {
    let n = ask.query.n.unwrap_or(MAX_IMAGES).min(MAX_IMAGES);
    let last = ask.query.last.clone().unwrap_or_default();
    let (images, more) = match n {
        0 => (Vec::new(), false),
        n => {
            ask.registry
                .scanning(move |storage| storage.images(&last, n))
                .await?
        }
    };
    let next = images.last().filter(|_| more).map(|last| {
        let tag = last.tag.as_deref().unwrap_or_default();
        let last = percent::encode(&format!("{}:{tag}", last.repository));
        format!("/v2/_vdkr/images/list?n={n}&last={last}")
    });
    page("application/json", &ImagePage { images }, next)
}
