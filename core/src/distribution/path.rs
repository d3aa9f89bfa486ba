//! Paths of the registry API (OCI distribution specification, "Endpoints").

use alloc::{string::String, vec::Vec};
use core::fmt;

use super::{errors::ErrorCode, percent};
use crate::digest::{Digest, DigestError};
use crate::reference::{ReferenceError, check_repository, check_tag};

/// Longest path that is looked at, in bytes.
pub const MAX_PATH: usize = 4096;
/// Longest name of an upload session, in bytes.
pub const MAX_SESSION: usize = 128;

/// What a request path names. Every part is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/tags/list`
    Tags {
        /// Repository.
        name: String,
    },
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        /// Repository.
        name: String,
        /// Tag or digest.
        target: Target,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        /// Repository.
        name: String,
        /// The blob.
        digest: Digest,
    },
    /// `/v2/<name>/blobs/uploads/`
    Uploads {
        /// Repository.
        name: String,
    },
    /// `/v2/<name>/blobs/uploads/<session>`
    Upload {
        /// Repository.
        name: String,
        /// Letters, digits, `-`, `_`, `=`; at most [`MAX_SESSION`].
        session: String,
    },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        /// Repository.
        name: String,
        /// The subject.
        digest: Digest,
    },
    /// `/v2/_vdkr/images/list`: every tag with what is known of it.
    Images,
    /// `/v2/_vdkr/storage/gc`: garbage collection.
    Gc,
    /// `/v2/_vdkr/storage/fsck`: checking what is stored.
    Fsck,
    /// `/v2/<name>/_vdkr/history/<tag>`: what a tag pointed to.
    History {
        /// Repository.
        name: String,
        /// The tag.
        tag: String,
    },
    /// `/v2/<name>/_vdkr/pins/<digest>`: a manifest that is kept whether a tag names it or not.
    Pin {
        /// Repository.
        name: String,
        /// The manifest.
        digest: Digest,
    },
}

/// What names a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// A tag.
    Tag(String),
    /// A digest.
    Digest(Digest),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => write!(f, "{digest}"),
        }
    }
}

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// It is no path of this API.
    #[error("no such endpoint")]
    NotFound,
    /// A `%` is not followed by two hexadecimal digits, or hides a slash or a control character.
    #[error("malformed percent-encoding in the path")]
    Encoding,
    /// The repository name breaks a rule.
    #[error("repository name: {0}")]
    Name(ReferenceError),
    /// The tag breaks a rule.
    #[error("tag: {0}")]
    Tag(ReferenceError),
    /// The digest breaks a rule.
    #[error("digest: {0}")]
    Digest(DigestError),
    /// No upload session is called so.
    #[error("no upload session has such a name")]
    Session,
}

impl RouteError {
    /// The code to answer with; `None` stands for a plain 404.
    ///
    /// `writing` tells a request that would store a manifest: an illegal tag is then the client's
    /// mistake, while no manifest of that name exists when it is only asked for.
    pub fn code(&self, writing: bool) -> Option<ErrorCode> {
        match self {
            Self::NotFound => None,
            Self::Encoding | Self::Name(_) => Some(ErrorCode::NameInvalid),
            Self::Tag(_) if writing => Some(ErrorCode::ManifestInvalid),
            Self::Tag(_) => Some(ErrorCode::ManifestUnknown),
            Self::Digest(_) => Some(ErrorCode::DigestInvalid),
            Self::Session => Some(ErrorCode::BlobUploadUnknown),
        }
    }
}

impl Route {
    /// Reads the path of a request, as it stands in the request (percent-encoded, no query).
    ///
    /// A repository name has any number of parts, among them `blobs` or `manifests`, so the path
    /// is taken apart from its end.
    pub fn parse(path: &str) -> Result<Self, RouteError> {
        let rest = path.strip_prefix("/v2").ok_or(RouteError::NotFound)?;
        if path.len() > MAX_PATH {
            return Err(RouteError::NotFound);
        }
        if rest.is_empty() || rest == "/" {
            return Ok(Self::Base);
        }
        let rest = rest.strip_prefix('/').ok_or(RouteError::NotFound)?;
        let mut parts = Vec::new();
        for part in rest.split('/') {
            // An encoded slash would make one part two: names are compared after decoding.
            let part = percent::decode(part).filter(|part| !part.contains('/'));
            parts.push(part.ok_or(RouteError::Encoding)?);
        }
        let parts: Vec<&str> = parts.iter().map(AsRef::as_ref).collect();
        match parts.as_slice() {
            ["_catalog"] => Ok(Self::Catalog),
            // No repository name has a component that begins with an underscore.
            ["_vdkr", "images", "list"] => Ok(Self::Images),
            ["_vdkr", "storage", "gc"] => Ok(Self::Gc),
            ["_vdkr", "storage", "fsck"] => Ok(Self::Fsck),
            [name @ .., "_vdkr", "history", tag] => {
                check_tag(tag).map_err(RouteError::Tag)?;
                Ok(Self::History {
                    name: repository(name)?,
                    tag: (*tag).into(),
                })
            }
            [name @ .., "_vdkr", "pins", digest] => Ok(Self::Pin {
                name: repository(name)?,
                digest: self::digest(digest)?,
            }),
            [name @ .., "tags", "list"] => Ok(Self::Tags {
                name: repository(name)?,
            }),
            [name @ .., "manifests", target] => Ok(Self::Manifest {
                name: repository(name)?,
                target: self::target(target)?,
            }),
            [name @ .., "blobs", "uploads"] | [name @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads {
                    name: repository(name)?,
                })
            }
            [name @ .., "blobs", "uploads", session] => Ok(Self::Upload {
                name: repository(name)?,
                session: self::session(session)?,
            }),
            [name @ .., "blobs", digest] => Ok(Self::Blob {
                name: repository(name)?,
                digest: self::digest(digest)?,
            }),
            [name @ .., "referrers", digest] => Ok(Self::Referrers {
                name: repository(name)?,
                digest: self::digest(digest)?,
            }),
            _ => Err(RouteError::NotFound),
        }
    }

    /// The repository that the path is about.
    pub fn repository(&self) -> Option<&str> {
        match self {
            Self::Base | Self::Catalog | Self::Images | Self::Gc | Self::Fsck => None,
            Self::Tags { name }
            | Self::Manifest { name, .. }
            | Self::Blob { name, .. }
            | Self::Uploads { name }
            | Self::Upload { name, .. }
            | Self::Referrers { name, .. }
            | Self::History { name, .. }
            | Self::Pin { name, .. } => Some(name),
        }
    }
}

/// The path itself; nothing in it needs encoding.
impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Base => f.write_str("/v2/"),
            Self::Catalog => f.write_str("/v2/_catalog"),
            Self::Tags { name } => write!(f, "/v2/{name}/tags/list"),
            Self::Manifest { name, target } => write!(f, "/v2/{name}/manifests/{target}"),
            Self::Blob { name, digest } => write!(f, "/v2/{name}/blobs/{digest}"),
            Self::Uploads { name } => write!(f, "/v2/{name}/blobs/uploads/"),
            Self::Upload { name, session } => write!(f, "/v2/{name}/blobs/uploads/{session}"),
            Self::Referrers { name, digest } => write!(f, "/v2/{name}/referrers/{digest}"),
            Self::Images => f.write_str("/v2/_vdkr/images/list"),
            Self::Gc => f.write_str("/v2/_vdkr/storage/gc"),
            Self::Fsck => f.write_str("/v2/_vdkr/storage/fsck"),
            Self::History { name, tag } => write!(f, "/v2/{name}/_vdkr/history/{tag}"),
            Self::Pin { name, digest } => write!(f, "/v2/{name}/_vdkr/pins/{digest}"),
        }
    }
}

fn repository(parts: &[&str]) -> Result<String, RouteError> {
    let name = parts.join("/");
    check_repository(&name).map_err(RouteError::Name)?;
    Ok(name)
}

fn target(text: &str) -> Result<Target, RouteError> {
    if text.contains(':') {
        return digest(text).map(Target::Digest);
    }
    check_tag(text).map_err(RouteError::Tag)?;
    Ok(Target::Tag(text.into()))
}

fn digest(text: &str) -> Result<Digest, RouteError> {
    Digest::parse(text).map_err(RouteError::Digest)
}

fn session(text: &str) -> Result<String, RouteError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
    if text.len() > MAX_SESSION || !text.bytes().all(legal) {
        return Err(RouteError::Session);
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};

    use proptest::prelude::*;

    use super::*;

    fn parse(path: &str) -> Result<Route, RouteError> {
        Route::parse(path)
    }

    #[test]
    fn every_endpoint() {
        let digest = Digest::sha256(b"x");
        let name = || String::from("a/b-c/d.e");
        for (path, route) in [
            ("/v2/".into(), Route::Base),
            ("/v2".into(), Route::Base),
            ("/v2/_catalog".into(), Route::Catalog),
            (
                "/v2/a/b-c/d.e/tags/list".into(),
                Route::Tags { name: name() },
            ),
            (
                "/v2/a/b-c/d.e/manifests/V1.0_x".into(),
                Route::Manifest {
                    name: name(),
                    target: Target::Tag("V1.0_x".into()),
                },
            ),
            (
                format!("/v2/a/b-c/d.e/manifests/{digest}"),
                Route::Manifest {
                    name: name(),
                    target: Target::Digest(digest.clone()),
                },
            ),
            (
                format!(
                    "/v2/a/b-c/d.e/blobs/{}",
                    digest.as_str().replace(':', "%3A")
                ),
                Route::Blob {
                    name: name(),
                    digest: digest.clone(),
                },
            ),
            (
                "/v2/a/b-c/d.e/blobs/uploads/".into(),
                Route::Uploads { name: name() },
            ),
            (
                "/v2/a/b-c/d.e/blobs/uploads".into(),
                Route::Uploads { name: name() },
            ),
            (
                "/v2/a/b-c/d.e/blobs/uploads/0-_=Z".into(),
                Route::Upload {
                    name: name(),
                    session: "0-_=Z".into(),
                },
            ),
            (
                format!("/v2/a/b-c/d.e/referrers/{digest}"),
                Route::Referrers {
                    name: name(),
                    digest: digest.clone(),
                },
            ),
            ("/v2/%61/tags/list".into(), Route::Tags { name: "a".into() }),
            ("/v2/_vdkr/images/list".into(), Route::Images),
            ("/v2/_vdkr/storage/gc".into(), Route::Gc),
            ("/v2/_vdkr/storage/fsck".into(), Route::Fsck),
            (
                "/v2/a/b-c/d.e/_vdkr/history/v1".into(),
                Route::History {
                    name: name(),
                    tag: "v1".into(),
                },
            ),
            (
                format!("/v2/a/b-c/d.e/_vdkr/pins/{digest}"),
                Route::Pin {
                    name: name(),
                    digest: digest.clone(),
                },
            ),
        ] {
            assert_eq!(parse(&path), Ok(route), "{path}");
        }
    }

    #[test]
    fn names_may_hold_the_words_of_the_api() {
        let digest = Digest::sha256(b"x");
        let name = |path: &str| parse(path).unwrap().repository().unwrap().to_string();
        for (path, repository) in [
            ("/v2/blobs/uploads/manifests/x", "blobs/uploads"),
            ("/v2/manifests/blobs/uploads/x", "manifests"),
            ("/v2/tags/list/tags/list", "tags/list"),
            ("/v2/a/blobs/uploads/blobs/uploads/", "a/blobs/uploads"),
            ("/v2/manifests/manifests/manifests", "manifests"),
            ("/v2/v2/tags/list", "v2"),
        ] {
            assert_eq!(name(path), repository, "{path}");
        }
        assert_eq!(name(&format!("/v2/referrers/blobs/{digest}")), "referrers");
    }

    #[test]
    fn what_is_refused_and_how() {
        let long = format!("/v2/{}/tags/list", "a".repeat(256));
        let endless = format!("/v2/{}/tags/list", "a/".repeat(1_000_000));
        for (path, code) in [
            ("/", None),
            ("", None),
            ("/v1/", None),
            ("/v20/", None),
            ("/v2x", None),
            ("v2/", None),
            ("/v2/_catalog/", None),
            ("/v2/a", None),
            ("/v2/a/tags/list/", None),
            ("/v2/a/tags", None),
            ("//v2/", None),
            (&endless, None),
            ("/v2//", None),
            ("/v2/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2//tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/a//b/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/A/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/../tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/%2e%2e/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/a%2fb/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/a%00/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/a%/tags/list", Some(ErrorCode::NameInvalid)),
            ("/v2/_catalog/tags/list", Some(ErrorCode::NameInvalid)),
            (&long, Some(ErrorCode::NameInvalid)),
            ("/v2/a/manifests/.x", Some(ErrorCode::ManifestUnknown)),
            ("/v2/a/manifests/", Some(ErrorCode::ManifestUnknown)),
            ("/v2/a/manifests/sha256:x", Some(ErrorCode::DigestInvalid)),
            ("/v2/a/manifests/md5:00", Some(ErrorCode::DigestInvalid)),
            ("/v2/a/blobs/x", Some(ErrorCode::DigestInvalid)),
            ("/v2/a/blobs/sha256:../../../x", None),
            (
                "/v2/a/blobs/sha256:%2e%2e%2fx",
                Some(ErrorCode::NameInvalid),
            ),
            ("/v2/a/referrers/", Some(ErrorCode::DigestInvalid)),
            ("/v2/_vdkr/images", None),
            ("/v2/_vdkr/storage/gc/", None),
            ("/v2/a/_vdkr/images/list", None),
            ("/v2/_vdkr/history/v1", Some(ErrorCode::NameInvalid)),
            ("/v2/a/_vdkr/history/.x", Some(ErrorCode::ManifestUnknown)),
            ("/v2/a/_vdkr/pins/v1", Some(ErrorCode::DigestInvalid)),
            ("/v2/a/blobs/uploads/..", Some(ErrorCode::BlobUploadUnknown)),
            (
                "/v2/a/blobs/uploads/%C3%A9",
                Some(ErrorCode::BlobUploadUnknown),
            ),
        ] {
            let error = parse(path).unwrap_err();
            assert_eq!(error.code(false), code, "{path:.60}: {error}");
        }
        let error = parse("/v2/a/manifests/.x").unwrap_err();
        assert_eq!(error.code(true), Some(ErrorCode::ManifestInvalid));
        let session = "s".repeat(MAX_SESSION + 1);
        assert_eq!(
            parse(&format!("/v2/a/blobs/uploads/{session}")),
            Err(RouteError::Session)
        );
    }

    fn route() -> impl Strategy<Value = Route> {
        let part = "[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?|blobs|uploads|manifests|tags|list|referrers";
        let name = proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"));
        (
            name,
            "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
            "[A-Za-z0-9_=-]{1,40}",
            0..9,
        )
            .prop_map(|(name, tag, session, kind)| {
                let digest = Digest::sha256(tag.as_bytes());
                match kind {
                    0 => Route::Tags { name },
                    1 => Route::Manifest {
                        name,
                        target: Target::Tag(tag),
                    },
                    2 => Route::Manifest {
                        name,
                        target: Target::Digest(digest),
                    },
                    3 => Route::Blob { name, digest },
                    4 => Route::Uploads { name },
                    5 => Route::Upload { name, session },
                    6 => Route::History { name, tag },
                    7 => Route::Pin { name, digest },
                    _ => Route::Referrers { name, digest },
                }
            })
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(route in route()) {
            prop_assert_eq!(parse(&route.to_string()), Ok(route));
        }

        #[test]
        fn never_panics(
            path in "(/v2/)?([a-zA-Z0-9%./:_é-]{0,12}|tags|list|blobs|uploads|manifests|/){0,12}",
        ) {
            if let Ok(route) = parse(&path) {
                prop_assert_eq!(parse(&route.to_string()), Ok(route));
            }
        }
    }
}
