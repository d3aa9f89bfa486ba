//! One file for each endpoint of the OCI distribution specification.

use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    InvalidHeaderValue, LINK, LOCATION,
};
use http::{Response, StatusCode};
use serde::Serialize;
use vdkr_core::digest::Digest;
use vdkr_core::distribution::{ErrorCode, next_page};

use crate::body::Body;
use crate::error::Refusal;

pub(crate) mod base;
pub(crate) mod blob;
pub(crate) mod catalog;
pub(crate) mod fsck;
pub(crate) mod gc;
pub(crate) mod history;
pub(crate) mod images;
pub(crate) mod manifest;
pub(crate) mod pin;
pub(crate) mod referrers;
pub(crate) mod tags;
pub(crate) mod upload;

pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// An answer without a body.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    response
}

/// The answer 201, for content that can be had at `location` now.
pub(crate) fn created(location: &str, digest: &Digest) -> Result<Response<Body>, Refusal> {
    let mut response = empty(StatusCode::CREATED);
    let headers = response.headers_mut();
    headers.insert(LOCATION, value(location)?);
    headers.insert(CONTENT_DIGEST, value(digest.as_str())?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    Ok(response)
}

/// A page of a list: JSON, with a link to the next page if there is one.
pub(crate) fn page(
    content_type: &'static str,
    list: &impl Serialize,
    next: Option<String>,
) -> Result<Response<Body>, Refusal> {
    let json = serde_json::to_vec(list).map_err(|error| {
        Refusal::new(
            ErrorCode::Unknown,
            format!("the list cannot be written: {error}"),
        )
    })?;
    let mut response = Response::new(Body::from(json));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if let Some(next) = next {
        headers.insert(LINK, value(&next_page(&next))?);
    }
    Ok(response)
}

/// The entity tag of content: its digest.
pub(crate) fn etag(digest: &Digest) -> Result<HeaderValue, InvalidHeaderValue> {
    HeaderValue::from_str(&format!("\"{digest}\""))
}

/// Whether the client says that it has this content already.
pub(crate) fn has_already(headers: &HeaderMap, digest: &Digest) -> bool {
    headers
        .get_all(IF_NONE_MATCH)
        .iter()
        .filter_map(|header| header.to_str().ok())
        .any(|header| header.trim() == "*" || entity_tags(header).any(|tag| tag == digest.as_str()))
}

/// The answer 304.
pub(crate) fn not_modified(digest: &Digest) -> Result<Response<Body>, Refusal> {
    let mut response = empty(StatusCode::NOT_MODIFIED);
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(digest).map_err(|_| unwritable())?);
    headers.insert(CONTENT_DIGEST, value(digest.as_str())?);
    Ok(response)
}

/// The entity tags of a list, without quotes; weak ones count, since content never differs in part.
pub(crate) fn entity_tags(header: &str) -> impl Iterator<Item = &str> {
    header
        .split(',')
        .map(|tag| tag.trim().trim_start_matches("W/").trim_matches('"'))
}

/// A header's value from text that was checked to be one.
pub(crate) fn value(text: &str) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_str(text).map_err(|_| unwritable())
}

fn unwritable() -> Refusal {
    Refusal::new(
        ErrorCode::Unknown,
        "a header of the answer cannot be written",
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn entity_tags_in_a_list() {
        let digest = Digest::sha256(b"x");
        for (header, found) in [
            (format!("\"{digest}\""), true),
            (digest.to_string(), true),
            (format!("W/\"{digest}\""), true),
            (format!("\"other\" , \"{digest}\""), true),
            ("*".to_owned(), true),
            ("\"*\"".to_owned(), false),
            (format!("\"{digest}x\""), false),
            (String::new(), false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(IF_NONE_MATCH, header.parse().unwrap());
            assert_eq!(has_already(&headers, &digest), found, "{header}");
        }
    }

    proptest! {
        #[test]
        fn any_header_is_taken_apart(header in ".*") {
            for tag in entity_tags(&header) {
                prop_assert!(!tag.contains(','));
            }
        }
    }
}
