//! Query parameters of the registry API.

use alloc::{string::String, vec::Vec};

use super::{errors::ErrorCode, percent};
use crate::digest::{Algorithm, Digest, DigestError};
use crate::reference::{MAX_REPOSITORY, MAX_TAG, ReferenceError, check_repository, check_tag};

/// Longest query that is read, in bytes.
pub const MAX_QUERY: usize = 16 * 1024;
/// Most `tag` parameters of a manifest's upload; clients may rely on ten.
pub const MAX_TAG_PARAMETERS: usize = 64;
/// Most entries of a page; a larger `n` counts as this.
pub const MAX_PAGE: usize = 10_000;
/// Longest `last` in bytes: a repository, a colon and a tag.
const MAX_LAST: usize = MAX_REPOSITORY + 1 + MAX_TAG;
/// Longest `artifactType` in bytes.
const MAX_MEDIA_TYPE: usize = 255;

/// The parameters that this API knows, checked. Others are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// `mount`: the blob to mount.
    pub mount: Option<Digest>,
    /// `from`: the repository to mount it from.
    pub from: Option<String>,
    /// `digest`: what an upload amounts to.
    pub digest: Option<Digest>,
    /// `digest-algorithm`: which digest an upload will be finished with.
    pub digest_algorithm: Option<Algorithm>,
    /// `n`: how many entries to list, at most [`MAX_PAGE`].
    pub n: Option<usize>,
    /// `last`: list only what comes behind this name.
    pub last: Option<String>,
    /// `artifactType`: list only referrers of this type.
    pub artifact_type: Option<String>,
    /// `tag`, as often as it occurs: further names for a manifest.
    pub tags: Vec<String>,
}

/// Why a query is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// It is longer than [`MAX_QUERY`].
    #[error("query is longer than {MAX_QUERY} bytes")]
    TooLong,
    /// A parameter is not what it should be.
    #[error("query parameter {name:?} is malformed")]
    Malformed {
        /// The parameter.
        name: &'static str,
    },
    /// A parameter that may stand once stands twice.
    #[error("query parameter {name:?} stands twice")]
    Repeated {
        /// The parameter.
        name: &'static str,
    },
    /// There are more than [`MAX_TAG_PARAMETERS`].
    #[error("more than {MAX_TAG_PARAMETERS} tags in one request")]
    TooManyTags,
    /// `n` is no number.
    #[error("query parameter \"n\" is not a number from 0 on")]
    Count,
    /// `digest` is no digest.
    #[error("query parameter {name:?}: {error}")]
    Digest {
        /// The parameter.
        name: &'static str,
        /// What is wrong.
        error: DigestError,
    },
    /// `digest-algorithm` is not one of those supported.
    #[error("query parameter \"digest-algorithm\" is neither sha256 nor sha512")]
    Algorithm,
    /// A `tag` is no tag.
    #[error("query parameter \"tag\": {0}")]
    Tag(ReferenceError),
}

impl QueryError {
    /// The code to answer with.
    pub fn code(&self) -> ErrorCode {
        match self {
            Self::Count | Self::Repeated { name: "n" } => ErrorCode::PaginationNumberInvalid,
            Self::Digest { .. }
            | Self::Algorithm
            | Self::Repeated {
                name: "digest" | "mount",
            } => ErrorCode::DigestInvalid,
            Self::Tag(_) | Self::TooManyTags => ErrorCode::ManifestInvalid,
            Self::TooLong | Self::Malformed { .. } | Self::Repeated { .. } => {
                ErrorCode::Other("QUERY_INVALID".into())
            }
        }
    }
}

impl Query {
    /// Reads a query, as it stands in the request behind the `?`.
    ///
    /// A `+` stands for itself: no value of this API has a space, and clients forget to encode
    /// the one in `application/vnd.example+json`. Empty values count as absent, and so do `mount` and
    /// `from` where one of them names nothing that could be mounted: the client uploads instead.
    pub fn parse(query: &str) -> Result<Self, QueryError> {
        if query.len() > MAX_QUERY {
            return Err(QueryError::TooLong);
        }
        let mut parsed = Self::default();
        let mut mountable = true;
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(name) = percent::decode(name).and_then(|name| known(&name)) else {
                continue;
            };
            let value = percent::decode(value);
            let names_something = match (name, value.as_deref()) {
                (_, Some("")) => continue,
                ("mount", value) => value.is_some_and(|value| Digest::parse(value).is_ok()),
                ("from", value) => value.is_some_and(|value| check_repository(value).is_ok()),
                _ => true,
            };
            if names_something {
                let value = value.ok_or(QueryError::Malformed { name })?;
                parsed.take(name, &value)?;
            } else {
                mountable = false;
            }
        }
        if !mountable {
            (parsed.mount, parsed.from) = (None, None);
        }
        Ok(parsed)
    }

    fn take(&mut self, name: &'static str, value: &str) -> Result<(), QueryError> {
        let digest = || Digest::parse(value).map_err(|error| QueryError::Digest { name, error });
        let short = |limit| {
            if value.len() > limit {
                Err(QueryError::Malformed { name })
            } else {
                Ok(value.into())
            }
        };
        match name {
            "mount" => once(&mut self.mount, name, digest()?),
            "digest" => once(&mut self.digest, name, digest()?),
            "digest-algorithm" => {
                let algorithm = Algorithm::from_name(value).ok_or(QueryError::Algorithm)?;
                once(&mut self.digest_algorithm, name, algorithm)
            }
            "from" => once(&mut self.from, name, value.into()),
            "n" => once(&mut self.n, name, count(value)?),
            "last" => once(&mut self.last, name, short(MAX_LAST)?),
            "artifactType" => once(&mut self.artifact_type, name, short(MAX_MEDIA_TYPE)?),
            _ => {
                check_tag(value).map_err(QueryError::Tag)?;
                if self.tags.len() == MAX_TAG_PARAMETERS {
                    return Err(QueryError::TooManyTags);
                }
                self.tags.push(value.into());
                Ok(())
            }
        }
    }
}

const KNOWN: [&str; 8] = [
    "mount",
    "from",
    "digest",
    "digest-algorithm",
    "n",
    "last",
    "artifactType",
    "tag",
];

fn known(name: &str) -> Option<&'static str> {
    KNOWN.into_iter().find(|known| *known == name)
}

fn once<T>(slot: &mut Option<T>, name: &'static str, value: T) -> Result<(), QueryError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(QueryError::Repeated { name }),
    }
}

/// Any number of digits is a number; what passes the cap counts as the cap.
fn count(value: &str) -> Result<usize, QueryError> {
    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(QueryError::Count);
    }
    Ok(value.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE))
}

#[cfg(test)]
mod tests {
    use alloc::{borrow::ToOwned as _, format, vec};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_parameter() {
        let digest = Digest::sha256(b"x");
        let encoded = digest.as_str().replace(':', "%3A");
        let query = Query::parse(&format!(
            "mount={encoded}&from=a/b&digest={digest}&digest-algorithm=sha512&n=5&last=a%2Fb&\
             artifactType=a/b+json&tag=v1&tag=v2&_state=xyz&&x"
        ))
        .unwrap();
        assert_eq!(
            query,
            Query {
                mount: Some(digest.clone()),
                from: Some("a/b".into()),
                digest: Some(digest),
                digest_algorithm: Some(Algorithm::Sha512),
                n: Some(5),
                last: Some("a/b".into()),
                artifact_type: Some("a/b+json".into()),
                tags: vec!["v1".into(), "v2".into()],
            }
        );
        for empty in ["", "&", "n=&last&tag=&=1", "N=x"] {
            assert_eq!(Query::parse(empty), Ok(Query::default()), "{empty}");
        }
    }

    #[test]
    fn counts_are_clamped_and_never_negative() {
        let n = |value: &str| Query::parse(&format!("n={value}")).map(|query| query.n);
        assert_eq!(n("0"), Ok(Some(0)));
        assert_eq!(n("10000"), Ok(Some(MAX_PAGE)));
        assert_eq!(n("10001"), Ok(Some(MAX_PAGE)));
        assert_eq!(n("9223372036854775808"), Ok(Some(MAX_PAGE)));
        assert_eq!(n(&"9".repeat(5000)), Ok(Some(MAX_PAGE)));
        for bad in ["-1", "+1", "1.5", "x", "%201", "1e3", "%D9%A1"] {
            let error = n(bad).unwrap_err();
            assert_eq!(error.code(), ErrorCode::PaginationNumberInvalid, "{bad}");
        }
    }

    #[test]
    fn what_is_refused_and_how() {
        let other = ErrorCode::Other("QUERY_INVALID".into());
        let digest = Digest::sha256(b"x");
        let many = "tag=a&".repeat(MAX_TAG_PARAMETERS + 1);
        for (query, code) in [
            ("digest=sha256:x", ErrorCode::DigestInvalid),
            ("digest-algorithm=md5", ErrorCode::DigestInvalid),
            (
                &format!("digest={digest}&digest={digest}"),
                ErrorCode::DigestInvalid,
            ),
            ("tag=.x", ErrorCode::ManifestInvalid),
            (&many, ErrorCode::ManifestInvalid),
            ("n=1&n=2", ErrorCode::PaginationNumberInvalid),
            ("last=%zz", other.clone()),
            ("last=a&last=b", other.clone()),
            (&format!("last={}", "a".repeat(385)), other.clone()),
            (&format!("artifactType={}", "a".repeat(256)), other.clone()),
            (&"x".repeat(MAX_QUERY + 1), other),
        ] {
            assert_eq!(Query::parse(query).unwrap_err().code(), code, "{query:.60}");
        }
        let fitting = "tag=a&".repeat(MAX_TAG_PARAMETERS);
        assert_eq!(
            Query::parse(&fitting).unwrap().tags.len(),
            MAX_TAG_PARAMETERS
        );
    }

    #[test]
    fn what_cannot_be_mounted_is_uploaded() {
        let digest = Digest::sha256(b"x");
        for bad in [
            "mount=../x",
            "mount=sha384:00",
            "mount=%zz",
            "from=A",
            "from=../x",
            "from=%zz",
        ] {
            for query in [
                bad.to_owned(),
                format!("{bad}&mount={digest}"),
                format!("mount={digest}&{bad}"),
            ] {
                let parsed = Query::parse(&query).unwrap();
                assert_eq!(parsed, Query::default(), "{query}");
            }
        }
        let twice = format!("mount={digest}&mount={digest}");
        assert_eq!(
            Query::parse(&twice).unwrap_err().code(),
            ErrorCode::DigestInvalid
        );
        // The source alone says nothing, and no source means any.
        let from = Query::parse(&format!("from=a/b&mount={digest}&from=")).unwrap();
        assert_eq!((from.mount, from.from), (Some(digest), Some("a/b".into())));
    }

    proptest! {
        #[test]
        fn never_panics(query in "((mount|from|digest|n|last|tag|artifactType)=?.{0,10}&?){0,6}") {
            let _ = Query::parse(&query);
        }

        #[test]
        fn values_survive_encoding(last in "[^\\x00-\\x1f\\x7f]{1,60}") {
            let query = Query::parse(&format!("last={}", percent::encode(&last))).unwrap();
            prop_assert_eq!(query.last, Some(last));
        }
    }
}
