//! From a request to the endpoint that answers it.

use http::header::{ALLOW, CONTENT_LENGTH, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode};
use hyper::body::Body as _;
use vdkr_core::distribution::{ErrorCode, Query, Route};

use crate::access;
use crate::body::Body;
use crate::endpoint::{
    base, blob, catalog, empty, fsck, gc, history, images, manifest, pin, referrers, tags, upload,
};
use crate::error::Refusal;
use crate::receive::Incoming;
use crate::registry::Registry;

/// What an endpoint is given.
pub(crate) struct Ask<'a> {
    pub(crate) registry: &'a Registry,
    pub(crate) head: &'a Parts,
    pub(crate) query: &'a Query,
}

/// Answers a request, or says why not.
pub(crate) async fn answer(
    registry: &Registry,
    head: &Parts,
    mut body: Incoming,
) -> Response<Body> {
    let refusal = match dispatch(registry, head, &mut body).await {
        Ok(response) if head.method == Method::HEAD => return without_body(response),
        Ok(response) => return response,
        Err(refusal) => refusal,
    };
    tracing::debug!(
        method = %head.method, path = head.uri.path(), status = refusal.status().as_u16(),
        error = %refusal.body(), "refused"
    );
    body.drain().await;
    let mut response = refusal.into_response();
    if head.method == Method::HEAD {
        *response.body_mut() = Body::default();
    }
    response
}

async fn dispatch(
    registry: &Registry,
    head: &Parts,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    let writing = !matches!(head.method, Method::GET | Method::HEAD | Method::DELETE);
    let route = Route::parse(head.uri.path()).map_err(|error| match error.code(writing) {
        Some(code) => Refusal::new(code, error.to_string()),
        None => Refusal::new(ErrorCode::Other("NOT_FOUND".into()), error.to_string())
            .with_status(StatusCode::NOT_FOUND),
    })?;
    let query = Query::parse(head.uri.query().unwrap_or_default()).map_err(|error| {
        let refusal = Refusal::new(error.code(), error.to_string());
        match error.code() {
            ErrorCode::Other(_) => refusal.with_status(StatusCode::BAD_REQUEST),
            _ => refusal,
        }
    })?;
    access::no_foreign_page(registry.config(), head)?;
    let permissions = access::required(&head.method, &route, &query);
    access::admitted(registry, head, &permissions).await?;
    access::configured(registry.config(), &permissions)?;

    let ask = Ask {
        registry,
        head,
        query: &query,
    };
    match (route, &head.method) {
        (Route::Base, &Method::GET | &Method::HEAD) => Ok(base::ping()),
        (Route::Catalog, &Method::GET | &Method::HEAD) => catalog::list(&ask).await,
        (Route::Tags { name }, &Method::GET | &Method::HEAD) => tags::list(&ask, name).await,
        (Route::Referrers { name, digest }, &Method::GET | &Method::HEAD) => {
            referrers::list(&ask, name, digest).await
        }
        (Route::Manifest { name, target }, &Method::GET | &Method::HEAD) => {
            manifest::get(&ask, name, target).await
        }
        (Route::Manifest { name, target }, &Method::PUT) => {
            manifest::put(&ask, name, target, body).await
        }
        (Route::Manifest { name, target }, &Method::DELETE) => {
            manifest::delete(&ask, name, target).await
        }
        (Route::Blob { name, digest }, &Method::GET) => blob::get(&ask, name, digest).await,
        (Route::Blob { name, digest }, &Method::HEAD) => blob::head(&ask, name, digest).await,
        (Route::Blob { name, digest }, &Method::DELETE) => blob::delete(&ask, name, digest).await,
        (Route::Uploads { name }, &Method::POST) => upload::begin(&ask, name, body).await,
        (Route::Upload { name, session }, &Method::GET | &Method::HEAD) => {
            upload::status(&ask, name, &session).await
        }
        (Route::Upload { name, session }, &Method::PATCH) => {
            upload::append(&ask, name, &session, body).await
        }
        (Route::Upload { name, session }, &Method::PUT) => {
            upload::finish(&ask, name, &session, body).await
        }
        (Route::Upload { name, session }, &Method::DELETE) => {
            upload::cancel(&ask, name, &session).await
        }
        (route, &Method::OPTIONS) => Ok(options(&route)),
        (Route::Images, &Method::GET | &Method::HEAD) => images::list(&ask).await,
        (Route::Gc, &Method::GET) => gc::state(&ask).await,
        (Route::Gc, &Method::POST) => gc::start(&ask).await,
        (Route::Fsck, &Method::GET) => fsck::state(&ask).await,
        (Route::Fsck, &Method::POST) => fsck::start(&ask).await,
        (Route::History { name, tag }, &Method::GET | &Method::HEAD) => {
            history::get(&ask, name, tag).await
        }
        (Route::Pin { name, digest }, &Method::GET) => pin::get(&ask, name, digest).await,
        (Route::Pin { name, digest }, &Method::PUT) => pin::put(&ask, name, digest).await,
        (Route::Pin { name, digest }, &Method::DELETE) => pin::delete(&ask, name, digest).await,
        (route, method) => Err(not_allowed(&route, method)),
    }
}

/// The answer to HEAD, from the one to GET.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    let body = std::mem::take(response.body_mut());
    if let Some(length) = body.size_hint().exact().filter(|length| *length > 0) {
        let headers = response.headers_mut();
        headers.entry(CONTENT_LENGTH).or_insert(length.into());
    }
    response
}

/// The methods of a path.
fn methods(route: &Route) -> &'static str {
    match route {
        Route::Base
        | Route::Catalog
        | Route::Tags { .. }
        | Route::Referrers { .. }
        | Route::Images
        | Route::History { .. } => "GET, HEAD",
        Route::Gc | Route::Fsck => "GET, POST",
        Route::Pin { .. } => "GET, PUT, DELETE",
        Route::Manifest { .. } => "GET, HEAD, PUT, DELETE",
        Route::Blob { .. } => "GET, HEAD, DELETE",
        Route::Uploads { .. } => "POST",
        Route::Upload { .. } => "GET, HEAD, PATCH, PUT, DELETE",
    }
}

fn options(route: &Route) -> Response<Body> {
    let mut response = empty(StatusCode::NO_CONTENT);
    let allowed = HeaderValue::from_static(methods(route));
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn not_allowed(route: &Route, method: &Method) -> Refusal {
    let allowed = methods(route);
    Refusal::new(
        ErrorCode::Unsupported,
        format!("{method} is not for this path; {allowed} are"),
    )
    .with_header(ALLOW, HeaderValue::from_static(allowed))
}
