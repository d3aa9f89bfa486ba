//! `/v2/<name>/referrers/<digest>`: what refers to a manifest (end-12a, end-12b).

use http::Response;
use http::header::{HeaderName, HeaderValue};
use serde::Serialize;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::{ErrorCode, percent};
use vdkr_core::manifest::{Descriptor, media_type};

use super::page;
use crate::body::Body;
use crate::error::Refusal;
use crate::router::Ask;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u8,
    media_type: &'static str,
    manifests: Vec<Descriptor>,
}

pub(crate) async fn list(
    ask: &Ask<'_>,
    name: String,
    subject: Digest,
) -> Result<Response<Body>, Refusal> {
    let last = match &ask.query.last {
        None => None,
        Some(last) => Some(Digest::parse(last).map_err(|error| {
            Refusal::new(
                ErrorCode::DigestInvalid,
                format!("query parameter \"last\": {error}"),
            )
        })?),
    };
    let room = ask.registry.config().limits.referrers_bytes;
    let filter = ask.query.artifact_type.clone();
    let (repository, of, wanted) = (name.clone(), subject.clone(), filter.clone());
    // The first request after a start may have to read every manifest of the repository.
    let referrers = ask
        .registry
        .scanning(move |storage| {
            storage.referrers(&repository, &of, wanted.as_deref(), last.as_ref(), room)
        })
        .await?;
    let next = referrers
        .descriptors
        .last()
        .filter(|_| referrers.more)
        .map(|last| {
            let filter = filter.as_deref().map_or_else(String::new, |f| {
                format!("artifactType={}&", percent::encode(f))
            });
            format!(
                "/v2/{name}/referrers/{subject}?{filter}last={}",
                last.digest
            )
        });
    let index = Index {
        schema_version: 2,
        media_type: media_type::OCI_INDEX,
        manifests: referrers.descriptors,
    };
    let mut response = page(media_type::OCI_INDEX, &index, next)?;
    if filter.is_some() {
        let applied = HeaderValue::from_static("artifactType");
        response.headers_mut().insert(FILTERS_APPLIED, applied);
    }
    Ok(response)
}
