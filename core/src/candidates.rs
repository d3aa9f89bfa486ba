//! Which names a pull tries, in which order, and which stored image a name means.

use alloc::string::{String, ToString};
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::reference::{
    Host, MAX_REPOSITORY, Reference, ReferenceError, ReferenceRule, check_repository, is_image_id,
    names_host,
};

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

impl Scheme {
    /// `http` or `https`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// The port that a URL of this scheme need not name.
    pub fn default_port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// A configured registry: a host, and perhaps the namespace in which its images live.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RegistryPrefix {
    host: Host,
    namespace: Option<String>,
    scheme: Option<Scheme>,
}

impl RegistryPrefix {
    /// Reads `host[:port][/namespace]`, with or without `http://` or `https://` before it and a slash behind it.
    ///
    /// A host of one word (`registry`) needs a port or a scheme: without either, names under it would
    /// read as repositories of Docker Hub. With a scheme it gets that scheme's port.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let (scheme, start) = match text.find("://") {
            Some(at) if text[..at].eq_ignore_ascii_case("http") => (Some(Scheme::Http), at + 3),
            Some(at) if text[..at].eq_ignore_ascii_case("https") => (Some(Scheme::Https), at + 3),
            Some(_) => return Err(ReferenceError::new(0, ReferenceRule::Scheme)),
            None => (None, 0),
        };
        let rest = &text[start..];
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host_text, namespace) = match rest.split_once('/') {
            Some((host, namespace)) => (host, Some(namespace)),
            None => (rest, None),
        };
        let mut host = Host::parse(host_text).map_err(|error| error.shifted(start))?;
        if !names_host(&host.to_string()) {
            let Some(scheme) = scheme else {
                return Err(ReferenceError::new(start, ReferenceRule::HostAmbiguous));
            };
            host = host.with_port(Some(scheme.default_port()));
        }
        if let Some(namespace) = namespace {
            check_repository(namespace)
                .map_err(|error| error.shifted(start + host_text.len() + 1))?;
        }
        Ok(Self {
            host,
            namespace: namespace.map(ToString::to_string),
            scheme,
        })
    }

    /// The host.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The namespace: one or more repository components.
    pub fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// The scheme, when the user wrote one.
    pub fn scheme(&self) -> Option<Scheme> {
        self.scheme
    }

    /// The same namespace at another host.
    #[must_use]
    pub fn with_host(&self, host: Host) -> Self {
        Self {
            host,
            ..self.clone()
        }
    }

    /// The repository of a name under this registry, where the name has no host: under the namespace,
    /// unless it starts with it already.
    fn repository(&self, name: &str) -> String {
        match self.namespace() {
            Some(namespace) if !is_within(name, namespace) => {
                let mut repository = namespace.to_string();
                repository.push('/');
                repository.push_str(name);
                repository
            }
            _ => name.to_string(),
        }
    }
}

/// `host[:port][/namespace]`, without a scheme.
impl fmt::Display for RegistryPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{}/{namespace}", self.host),
            None => self.host.fmt(f),
        }
    }
}

impl FromStr for RegistryPrefix {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Why a candidate is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// The name says where it is.
    AsWritten,
    /// Under the configured registry.
    Registry,
    /// On Docker Hub, since the name has no host.
    DockerHub,
}

impl Source {
    /// A word for logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AsWritten => "as-written",
            Self::Registry => "registry",
            Self::DockerHub => "docker-hub",
        }
    }
}

/// One place to pull from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The full name, always with a tag or a digest.
    pub reference: Reference,
    /// Why it is tried.
    pub source: Source,
}

/// The places where `pull` and `run` look for a name, in order. The next one is tried only when
/// [`falls_through`] says so of the answer.
///
/// A name with a host is tried there and nowhere else. Any other is tried under the registry first, if
/// one is configured, then on Docker Hub. An image id is refused: it names a local image.
pub fn pull_candidates(
    name: &str,
    registry: Option<&RegistryPrefix>,
) -> Result<Vec<Candidate>, ReferenceError> {
    if is_image_id(name) {
        return Err(ReferenceError::new(0, ReferenceRule::ImageId));
    }
    let reference = Reference::parse(name)?.or_latest();
    if reference.has_explicit_host() {
        return Ok(vec![Candidate {
            reference,
            source: Source::AsWritten,
        }]);
    }
    let mut candidates = Vec::with_capacity(2);
    if let Some(registry) = registry {
        let repository = registry.repository(written_repository(name));
        if repository.len() > MAX_REPOSITORY {
            let added = repository.len() - written_repository(name).len();
            let offset = MAX_REPOSITORY.saturating_sub(added);
            return Err(ReferenceError::new(
                offset,
                ReferenceRule::RepositoryTooLong,
            ));
        }
        let reference = Reference::from_parts(
            registry.host.clone(),
            &repository,
            reference.tag(),
            reference.digest().cloned(),
        )?;
        candidates.push(Candidate {
            reference,
            source: Source::Registry,
        });
    }
    if candidates
        .iter()
        .all(|candidate| candidate.reference != reference)
    {
        candidates.push(Candidate {
            reference,
            source: Source::DockerHub,
        });
    }
    Ok(candidates)
}

/// The repository of a name without host, as it was written: no `library/`, tag or digest.
fn written_repository(name: &str) -> &str {
    &name[..name.find([':', '@']).unwrap_or(name.len())]
}

fn is_within(name: &str, namespace: &str) -> bool {
    name.strip_prefix(namespace)
        .is_some_and(|rest| rest.starts_with('/'))
}

/// How asking one place for a manifest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FetchOutcome {
    /// It is there.
    Found,
    /// The registry answered that it does not know the name or the manifest (404).
    Unknown,
    /// No connection: refused, timed out, name not resolved.
    Unreachable,
    /// TLS failed: unknown CA, wrong name, expired certificate.
    Tls,
    /// Credentials are missing or not enough (401, 403).
    Denied,
    /// Too many requests (429).
    RateLimited,
    /// The registry failed (5xx) or answered something that makes no sense.
    Failed,
    /// What arrived is not what was asked for: digest, size or media type.
    Mismatch,
    /// The user stopped it.
    Cancelled,
}

/// Whether the next candidate may be tried: only when the registry itself said that it does not have the
/// image. A registry that is down, or refuses, must never turn a private pull into a public one.
pub fn falls_through(outcome: &FetchOutcome) -> bool {
    matches!(outcome, FetchOutcome::Unknown)
}

/// The stored image that a name means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalMatch {
    /// This stored name.
    Name(String),
    /// The text is an image id and is looked up as such, never as a name.
    Id,
    /// Several stored names end in this one; the user has to say which.
    Ambiguous(Vec<String>),
    /// None.
    None,
}

/// Finds the stored image that a user means: the normal form of the name exactly; else the name under
/// the configured registry; else the only stored name that ends in `/name:tag`.
///
/// A name with a host is only ever matched exactly, an image id never as a name. `stored` holds
/// references; what is not one never matches.
pub fn resolve_local(
    name: &str,
    registry: Option<&RegistryPrefix>,
    stored: &[impl AsRef<str>],
) -> Result<LocalMatch, ReferenceError> {
    if is_image_id(name) {
        return Ok(LocalMatch::Id);
    }
    let wanted = Reference::parse(name)?;
    let parsed: Vec<(&str, Reference)> = stored
        .iter()
        .filter_map(|text| Some((text.as_ref(), Reference::parse(text.as_ref()).ok()?)))
        .collect();
    let exactly = |wanted: &Reference| {
        parsed
            .iter()
            .find(|(_, stored)| {
                stored.host() == wanted.host()
                    && stored.repository() == wanted.repository()
                    && same_version(stored, wanted)
            })
            .map(|(text, _)| LocalMatch::Name((*text).to_string()))
    };
    if let Some(found) = exactly(&wanted) {
        return Ok(found);
    }
    if wanted.has_explicit_host() {
        return Ok(LocalMatch::None);
    }
    if registry.is_some()
        && let Ok(candidates) = pull_candidates(name, registry)
        && let Some(candidate) = candidates.first()
        && let Some(found) = exactly(&candidate.reference)
    {
        return Ok(found);
    }
    let repository = written_repository(name);
    let mut ending: Vec<&str> = parsed
        .iter()
        .filter(|(_, stored)| {
            let ends = stored.repository().strip_suffix(repository);
            ends.is_some_and(|before| before.is_empty() || before.ends_with('/'))
                && same_version(stored, &wanted)
        })
        .map(|(text, _)| *text)
        .collect();
    ending.sort_unstable();
    ending.dedup();
    Ok(match ending.as_slice() {
        [] => LocalMatch::None,
        [only] => LocalMatch::Name((*only).to_string()),
        several => LocalMatch::Ambiguous(several.iter().map(ToString::to_string).collect()),
    })
}

/// Whether the stored name is of the wanted digest, or, where none is wanted, of the wanted tag.
fn same_version(stored: &Reference, wanted: &Reference) -> bool {
    if let Some(digest) = wanted.digest() {
        return stored.digest() == Some(digest);
    }
    // A name stored by digest alone has no tag, not even `latest`.
    (stored.tag().is_some() || stored.digest().is_none())
        && stored.tag_or_latest() == wanted.tag_or_latest()
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn prefix(text: &str) -> RegistryPrefix {
        RegistryPrefix::parse(text).unwrap()
    }

    /// Rows of the table that the tests of the npm package read as well.
    #[derive(serde::Deserialize)]
    struct Table {
        registry: String,
        pulls: Vec<(String, String, Vec<String>)>,
        stored: Vec<String>,
        local: Vec<(String, serde_json::Value)>,
    }

    fn table() -> Table {
        serde_json::from_str(include_str!("../tables/candidates.json")).unwrap()
    }

    #[test]
    fn pulls() {
        for (name, registry, expected) in table().pulls {
            let registry = (!registry.is_empty()).then(|| prefix(&registry));
            let candidates: Vec<String> = pull_candidates(&name, registry.as_ref())
                .unwrap_or_else(|error| panic!("{name}: {error}"))
                .iter()
                .map(|candidate| format!("{} {}", candidate.source.as_str(), candidate.reference))
                .collect();
            assert_eq!(candidates, expected, "{name} under {registry:?}");
        }
    }

    #[test]
    fn refused_names() {
        let registry = prefix("10.0.2.2:5000/yocto");
        for id in ["deadbeefcafe", &DIGEST[7..], DIGEST] {
            for registry in [None, Some(&registry)] {
                let error = pull_candidates(id, registry).unwrap_err();
                assert_eq!(error.rule, ReferenceRule::ImageId, "{id}");
            }
        }
        // With a tag it can only be a name.
        assert!(pull_candidates("deadbeefcafe:latest", None).is_ok());
        assert_eq!(
            pull_candidates("Foo//bar:", Some(&registry))
                .unwrap_err()
                .offset,
            4
        );
        let long = format!("a/{}", "b".repeat(250));
        let error = pull_candidates(&long, Some(&registry)).unwrap_err();
        assert_eq!(
            (error.offset, error.rule),
            (249, ReferenceRule::RepositoryTooLong)
        );
    }

    #[test]
    fn prefixes() {
        for (text, shown, scheme) in [
            ("localhost:5000/yocto", "localhost:5000/yocto", None),
            ("localhost:5000/", "localhost:5000", None),
            (
                "http://localhost:5000/yocto/",
                "localhost:5000/yocto",
                Some(Scheme::Http),
            ),
            (
                "HTTPS://registry.example.com/a/b",
                "registry.example.com/a/b",
                Some(Scheme::Https),
            ),
            (
                "https://registry/yocto",
                "registry:443/yocto",
                Some(Scheme::Https),
            ),
            ("http://registry", "registry:80", Some(Scheme::Http)),
            ("index.docker.io", "docker.io", None),
            ("[::1]:5000/yocto", "[::1]:5000/yocto", None),
        ] {
            let prefix = prefix(text);
            assert_eq!(
                (prefix.to_string().as_str(), prefix.scheme()),
                (shown, scheme),
                "{text}"
            );
        }
        for (text, offset, rule) in [
            ("", 0, ReferenceRule::HostEmpty),
            ("http://", 7, ReferenceRule::HostEmpty),
            ("ftp://h.x", 0, ReferenceRule::Scheme),
            ("registry/yocto", 0, ReferenceRule::HostAmbiguous),
            (
                "localhost:5000/Yocto",
                15,
                ReferenceRule::RepositoryUpperCase,
            ),
            ("http://localhost:0/y", 17, ReferenceRule::Port),
            ("http://h.x//y", 11, ReferenceRule::RepositoryEmpty),
            ("h.x/a:b", 5, ReferenceRule::RepositoryCharacter),
        ] {
            let error = RegistryPrefix::parse(text).unwrap_err();
            assert_eq!((error.offset, error.rule), (offset, rule), "{text}");
        }
    }

    #[test]
    fn only_unknown_falls_through() {
        use FetchOutcome as F;
        assert!(falls_through(&F::Unknown));
        for other in [
            F::Found,
            F::Unreachable,
            F::Tls,
            F::Denied,
            F::RateLimited,
            F::Failed,
            F::Mismatch,
            F::Cancelled,
        ] {
            assert!(!falls_through(&other), "{other:?}");
        }
    }
    #[test]
    fn local_names() {
        let Table {
            registry,
            stored,
            local,
            ..
        } = table();
        let registry = prefix(&registry);
        for (wanted, expected) in local {
            let shown = match resolve_local(&wanted, Some(&registry), &stored).unwrap() {
                LocalMatch::Name(name) => serde_json::json!([name]),
                LocalMatch::Ambiguous(names) => serde_json::json!(names),
                LocalMatch::Id => serde_json::json!("id"),
                LocalMatch::None => serde_json::json!([]),
            };
            assert_eq!(shown, expected, "{wanted}");
        }
        assert_eq!(
            resolve_local("app", None, &stored).unwrap(),
            LocalMatch::Name("10.0.2.2:5000/yocto/app:latest".to_string())
        );
        assert!(resolve_local("Foo", None, &stored).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(name in ".{0,40}", registry in ".{0,30}", stored in ".{0,30}") {
            let registry = RegistryPrefix::parse(&registry).ok();
            let _ = pull_candidates(&name, registry.as_ref());
            let _ = resolve_local(&name, registry.as_ref(), &[stored]);
        }

        /// Errors point into the text that was given.
        #[test]
        fn prefix_offsets(text in "(https?://)?[a-zA-Z.:é\\[\\]-]{0,8}(/[a-z/.A-Z:]{0,8})?") {
            match RegistryPrefix::parse(&text) {
                Ok(prefix) => prop_assert_eq!(
                    RegistryPrefix::parse(&prefix.to_string()).unwrap().to_string(),
                    prefix.to_string()
                ),
                Err(error) => prop_assert!(text.is_char_boundary(error.offset)),
            }
        }

        /// Under a private registry, Docker Hub never comes first.
        #[test]
        fn registry_first(name in "[a-z]{1,6}(/[a-z]{1,6}){0,2}(:[a-z0-9]{1,4})?") {
            let registry = prefix("10.0.2.2:5000/yocto");
            let candidates = pull_candidates(&name, Some(&registry)).unwrap();
            prop_assert_eq!(candidates[0].reference.host(), registry.host());
            prop_assert!(candidates[0].reference.repository().starts_with("yocto/"));
            prop_assert_eq!(candidates.len(), 2);
        }
    }
}
