//! `/v2/`: this is a registry (end-1).

use http::Response;
use http::header::{CONTENT_TYPE, HeaderValue};

use crate::body::Body;

pub(crate) fn ping() -> Response<Body> {
    let mut response = Response::new(Body::from(bytes::Bytes::from_static(b"{}")));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
