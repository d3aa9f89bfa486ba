//! What a request needs to be permitted, told by its route.
//!
//! With a list of users, whoever is on it may do all that the server's configuration lets happen; the
//! others may do nothing.

use http::header::{HOST, HeaderName, ORIGIN};
use http::request::Parts;
use http::{Method, StatusCode};
use vdkr_core::distribution::{ErrorCode, Page, Query, Route, check_page};

use crate::config::ServerConfig;
use crate::error::Refusal;
use crate::registry::Registry;

pub(crate) mod htpasswd;
mod queue;

pub(crate) use queue::Peer;

static FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// What somebody wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Find out that this is a registry.
    Ping,
    /// See the names of the repositories.
    List,
    /// Read a repository.
    Pull,
    /// Add to a repository.
    Push,
    /// Take from a repository.
    Delete,
}

/// One right that a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Permission<'r> {
    pub(crate) action: Action,
    /// The repository; `None` stands for all of them.
    pub(crate) repository: Option<&'r str>,
}

/// The rights that a request needs. Unknown methods need what writing needs; to learn which methods
/// there are takes none (a browser asks for that by itself, without credentials).
pub(crate) fn required<'r>(
    method: &Method,
    route: &'r Route,
    query: &'r Query,
) -> Vec<Permission<'r>> {
    if *method == Method::OPTIONS {
        return Vec::new();
    }
    let reads = matches!(*method, Method::GET | Method::HEAD);
    let action = match route {
        Route::Base => Action::Ping,
        Route::Catalog | Route::Images => Action::List,
        // Cleaning up takes from every repository; how it goes is no secret to who may list them.
        Route::Gc | Route::Fsck if reads => Action::List,
        Route::Gc | Route::Fsck => Action::Delete,
        // An upload belongs to those who push, even where it is only looked at or given up.
        Route::Upload { .. } | Route::Uploads { .. } => Action::Push,
        _ if reads => Action::Pull,
        _ if *method == Method::DELETE => Action::Delete,
        _ => Action::Push,
    };
    let mut permissions = vec![Permission {
        action,
        repository: route.repository(),
    }];
    if matches!(route, Route::Uploads { .. }) && query.mount.is_some() {
        // Whoever mounts must be allowed to read the source; without one, everything.
        permissions.push(Permission {
            action: Action::Pull,
            repository: query.from.as_deref(),
        });
    }
    permissions
}

/// Whether whoever sent the request may do this.
pub(crate) async fn admitted(
    registry: &Registry,
    head: &Parts,
    permissions: &[Permission<'_>],
) -> Result<(), Refusal> {
    match registry.users() {
        Some(users) if !permissions.is_empty() => {
            let peer = head.extensions.get().copied().unwrap_or_default();
            users.admit(&head.headers, peer).await
        }
        _ => Ok(()),
    }
}

/// Refuses what a web page of somebody else makes its reader's browser ask for.
pub(crate) fn no_foreign_page(config: &ServerConfig, head: &Parts) -> Result<(), Refusal> {
    if matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    // Of what stands twice, or is no text, nothing good is to be thought.
    let value = |name: &HeaderName| {
        let mut values = head.headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => None,
            (Some(value), None) => Some(value.to_str().unwrap_or("?")),
            (Some(_), Some(_)) => Some("?"),
        }
    };
    let page = Page {
        site: value(&FETCH_SITE),
        origin: value(&ORIGIN),
        host: match head.uri.authority() {
            Some(authority) => Some(authority.as_str()),
            None => value(&HOST),
        },
    };
    let open = config.tls.is_none() && config.htpasswd.is_none();
    check_page(page, open.then_some(&config.names)).map_err(|error| {
        tracing::warn!(%error, origin = ?page.origin, "refused a request of a web page");
        Refusal::new(ErrorCode::Denied, error.to_string())
    })
}

/// Whether the configuration of the server lets this happen at all.
pub(crate) fn configured(
    config: &ServerConfig,
    permissions: &[Permission<'_>],
) -> Result<(), Refusal> {
    for permission in permissions {
        let refused = match permission.action {
            Action::Push | Action::Delete if config.read_only => "this registry is read-only",
            Action::Delete if !config.delete_enabled => "deleting is turned off in this registry",
            _ => continue,
        };
        return Err(Refusal::new(ErrorCode::Unsupported, refused)
            .with_status(StatusCode::METHOD_NOT_ALLOWED));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vdkr_core::digest::Digest;

    use super::*;

    #[test]
    fn every_route_and_method_needs_its_right() {
        use Action::{Delete, List, Ping, Pull, Push};
        let digest = Digest::sha256(b"");
        let query = Query::default();
        let by_method = [Pull, Pull, Push, Push, Push, Delete];
        let all = [
            Method::GET,
            Method::HEAD,
            Method::PUT,
            Method::POST,
            Method::PATCH,
            Method::DELETE,
        ];
        for (path, expected) in [
            ("/v2/".to_owned(), [Ping; 6]),
            ("/v2/_catalog".to_owned(), [List; 6]),
            ("/v2/a/b/blobs/uploads/".to_owned(), [Push; 6]),
            ("/v2/a/b/blobs/uploads/0f-1".to_owned(), [Push; 6]),
            (format!("/v2/a/b/blobs/{digest}"), by_method),
            (format!("/v2/a/b/manifests/{digest}"), by_method),
            ("/v2/a/b/manifests/latest".to_owned(), by_method),
            ("/v2/a/b/tags/list".to_owned(), by_method),
            (format!("/v2/a/b/referrers/{digest}"), by_method),
            ("/v2/_vdkr/images/list".to_owned(), [List; 6]),
            (
                "/v2/_vdkr/storage/gc".to_owned(),
                [List, List, Delete, Delete, Delete, Delete],
            ),
            (
                "/v2/_vdkr/storage/fsck".to_owned(),
                [List, List, Delete, Delete, Delete, Delete],
            ),
            ("/v2/a/b/_vdkr/history/latest".to_owned(), by_method),
            (format!("/v2/a/b/_vdkr/pins/{digest}"), by_method),
        ] {
            let route = Route::parse(&path).unwrap();
            for (method, action) in all.iter().zip(expected) {
                let needed = required(method, &route, &query);
                let repository = path.starts_with("/v2/a/b").then_some("a/b");
                assert_eq!(
                    needed,
                    [Permission { action, repository }],
                    "{method} {path}"
                );
            }
            assert_eq!(required(&Method::OPTIONS, &route, &query), []);
        }
    }

    #[test]
    fn mounting_needs_the_source() {
        let digest = Digest::sha256(b"");
        let route = Route::parse("/v2/to/blobs/uploads/").unwrap();
        let push = Permission {
            action: Action::Push,
            repository: Some("to"),
        };
        for (query, source) in [
            (format!("mount={digest}&from=from/it"), Some("from/it")),
            (format!("mount={digest}"), None),
        ] {
            let query = Query::parse(&query).unwrap();
            let pull = Permission {
                action: Action::Pull,
                repository: source,
            };
            assert_eq!(required(&Method::POST, &route, &query), [push, pull]);
        }
    }

    #[test]
    fn configuration_turns_actions_off() {
        let mut config = ServerConfig::new("/nowhere");
        let allowed = |config: &ServerConfig| {
            [
                Action::Ping,
                Action::List,
                Action::Pull,
                Action::Push,
                Action::Delete,
            ]
            .map(|action| {
                configured(
                    config,
                    &[Permission {
                        action,
                        repository: None,
                    }],
                )
                .is_ok()
            })
        };
        assert_eq!(allowed(&config), [true; 5]);
        config.delete_enabled = false;
        assert_eq!(allowed(&config), [true, true, true, true, false]);
        config.delete_enabled = true;
        config.read_only = true;
        assert_eq!(allowed(&config), [true, true, true, false, false]);
    }
}
