//! References to images: `[host[:port]/]repository[:tag][@digest]`, in the grammar of the distribution
//! project's `reference` package and the name and tag rules of the OCI distribution specification.
//!
//! Everything is ASCII. Where the grammar lets something through that can never work (port 0, an IPv6
//! literal that is no address, a digest of the wrong length), it is refused here already.

use alloc::format;
use alloc::string::{String, ToString};
use core::cmp::Ordering;
use core::fmt;
use core::hash;
use core::str::FromStr;

use crate::digest::{Digest, DigestError, DigestRule};

mod host;
#[cfg(test)]
mod tests;

pub use host::Host;

/// The longest tag, in bytes.
pub const MAX_TAG: usize = 128;
/// The longest repository name without its host, in bytes; an implied `library/` counts.
pub const MAX_REPOSITORY: usize = 255;
/// The tag of a reference that names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";

const OFFICIAL: &str = "library/";

/// A text that is not a reference: the rule it breaks, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} (at byte {offset})")]
pub struct ReferenceError {
    /// Byte offset of the first offending character; the length of the text where something is missing.
    pub offset: usize,
    /// The rule broken.
    pub rule: ReferenceRule,
}

impl ReferenceError {
    pub(crate) fn new(offset: usize, rule: ReferenceRule) -> Self {
        Self { offset, rule }
    }

    /// The same error in a text that has `bytes` more in front.
    #[must_use]
    pub fn shifted(self, bytes: usize) -> Self {
        Self {
            offset: self.offset + bytes,
            ..self
        }
    }
}

/// The rules of a reference, each with its sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceRule {
    /// Nothing was given.
    #[error("a reference needs a repository name")]
    Empty,
    /// `https://…`
    #[error("a reference has no scheme: leave out http:// or https://")]
    Scheme,
    /// The text is an image id where a name is needed.
    #[error("this is an image id, and only a name can be used here")]
    ImageId,
    /// No host before the port, or none at all.
    #[error("a host name must not be empty")]
    HostEmpty,
    /// A character that no host name has.
    #[error("a host name holds letters, digits, '-' and '.' only")]
    HostCharacter,
    /// `a..b`, `-a`, `a-.b`
    #[error("each part of a host name starts and ends with a letter or digit")]
    HostPart,
    /// More than 253 bytes.
    #[error("a host name is at most 253 characters long")]
    HostTooLong,
    /// One lower-case word as host: read again, it would be part of the repository.
    #[error(
        "a host of one word needs a port (name:443), else it is read as part of the repository"
    )]
    HostAmbiguous,
    /// Not an IPv6 address, or one without brackets.
    #[error("an IPv6 host is an address in brackets, like [::1]:5000")]
    Ipv6,
    /// Not a number from 1 to 65535.
    #[error("a port is a number from 1 to 65535")]
    Port,
    /// `a//b`, `/a`, `a/`
    #[error("a repository name, or a part of it between slashes, must not be empty")]
    RepositoryEmpty,
    /// An upper-case letter in the repository.
    #[error("a repository name is lower-case")]
    RepositoryUpperCase,
    /// A character that no repository has.
    #[error("a repository name holds lower-case letters, digits, '.', '_', '-' and '/' only")]
    RepositoryCharacter,
    /// `-a`, `a.`, `a..b`, `a___b`, `a.-b`
    #[error(
        "letters or digits of a repository name are separated by one '.', one or two '_', or any number of '-'"
    )]
    RepositorySeparator,
    /// More than [`MAX_REPOSITORY`] bytes.
    #[error("a repository name is at most 255 characters long")]
    RepositoryTooLong,
    /// A colon and nothing behind it.
    #[error("a tag must not be empty")]
    TagEmpty,
    /// A tag that begins with `.` or `-`.
    #[error("a tag starts with a letter, digit or '_'")]
    TagStart,
    /// A character that no tag has.
    #[error("a tag holds letters, digits, '_', '.' and '-' only")]
    TagCharacter,
    /// More than [`MAX_TAG`] bytes.
    #[error("a tag is at most 128 characters long")]
    TagTooLong,
    /// What stands behind `@` is not a digest.
    #[error("{0}")]
    Digest(DigestRule),
}

impl ReferenceRule {
    /// A fixed word for JSON and tables: `repository-upper-case`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Scheme => "scheme",
            Self::ImageId => "image-id",
            Self::HostEmpty => "host-empty",
            Self::HostCharacter => "host-character",
            Self::HostPart => "host-part",
            Self::HostTooLong => "host-too-long",
            Self::HostAmbiguous => "host-ambiguous",
            Self::Ipv6 => "ipv6",
            Self::Port => "port",
            Self::RepositoryEmpty => "repository-empty",
            Self::RepositoryUpperCase => "repository-upper-case",
            Self::RepositoryCharacter => "repository-character",
            Self::RepositorySeparator => "repository-separator",
            Self::RepositoryTooLong => "repository-too-long",
            Self::TagEmpty => "tag-empty",
            Self::TagStart => "tag-start",
            Self::TagCharacter => "tag-character",
            Self::TagTooLong => "tag-too-long",
            Self::Digest(DigestRule::Format) => "digest-format",
            Self::Digest(DigestRule::Algorithm) => "digest-algorithm",
            Self::Digest(DigestRule::Character) => "digest-character",
            Self::Digest(DigestRule::Length) => "digest-length",
        }
    }
}

impl From<DigestError> for ReferenceError {
    fn from(error: DigestError) -> Self {
        Self::new(error.offset, ReferenceRule::Digest(error.rule))
    }
}

/// What a registry is asked for: the digest when the reference has one, else the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Selector<'a> {
    /// A tag.
    Tag(&'a str),
    /// A digest.
    Digest(&'a Digest),
}

impl<'a> Selector<'a> {
    /// The text as it stands in a request path.
    pub fn as_str(&self) -> &'a str {
        match self {
            Self::Tag(tag) => tag,
            Self::Digest(digest) => digest.as_str(),
        }
    }
}

impl fmt::Display for Selector<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A checked reference in its normal form: host always present, `library/` written out.
///
/// Two references are equal when host, repository, tag and digest are; whether the host was written
/// or implied makes no difference.
#[derive(Clone, Debug)]
pub struct Reference {
    host: Host,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
    explicit_host: bool,
}

impl Reference {
    /// Reads a reference. The part before the first slash is a host when it holds `.` or `:`, is
    /// `localhost`, or has an upper-case letter; otherwise the host is `docker.io`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::new(0, ReferenceRule::Empty));
        }
        if is_full_id(text) {
            return Err(ReferenceError::new(0, ReferenceRule::ImageId));
        }
        if let Some(at) = text.find("://") {
            return Err(ReferenceError::new(at, ReferenceRule::Scheme));
        }
        let name_end = text.find('@').unwrap_or(text.len());
        let (host, start, explicit_host) = match text[..name_end].find('/') {
            Some(slash) if names_host(&text[..slash]) => {
                (Host::parse(&text[..slash])?, slash + 1, true)
            }
            _ => (Host::docker_hub(), 0, false),
        };
        let official = host.is_docker_hub() && !text[start..name_end].contains('/');
        let limit = MAX_REPOSITORY - if official { OFFICIAL.len() } else { 0 };
        let end = scan_repository(text, start, limit)?;
        let mut repository = String::from(if official { OFFICIAL } else { "" });
        repository.push_str(&text[start..end]);

        let mut rest = end;
        let mut tag = None;
        if text[rest..].starts_with(':') {
            let end = scan_tag(text, rest + 1)?;
            tag = Some(text[rest + 1..end].to_string());
            rest = end;
        }
        let digest = match text[rest..].strip_prefix('@') {
            Some(digest) => Some(
                Digest::parse(digest)
                    .map_err(|error| ReferenceError::from(error).shifted(rest + 1))?,
            ),
            None => None,
        };
        Ok(Self {
            host,
            repository,
            tag,
            digest,
            explicit_host,
        })
    }

    /// Puts a reference together. A one-component repository of Docker Hub gets its `library/`.
    ///
    /// The offset of an error counts within the part that breaks the rule.
    pub fn from_parts(
        host: Host,
        repository: &str,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<Self, ReferenceError> {
        if !names_host(&host.to_string()) {
            return Err(ReferenceError::new(0, ReferenceRule::HostAmbiguous));
        }
        check_repository(repository)?;
        let official = host.is_docker_hub() && !repository.contains('/');
        let repository = if official {
            let limit = MAX_REPOSITORY - OFFICIAL.len();
            if repository.len() > limit {
                return Err(ReferenceError::new(limit, ReferenceRule::RepositoryTooLong));
            }
            format!("{OFFICIAL}{repository}")
        } else {
            repository.to_string()
        };
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let tag = tag.map(ToString::to_string);
        Ok(Self {
            host,
            repository,
            tag,
            digest,
            explicit_host: true,
        })
    }

    /// The host, `docker.io` where none was written.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The repository with all its components: `library/alpine`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if one was written.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether the text named its host.
    pub fn has_explicit_host(&self) -> bool {
        self.explicit_host
    }

    /// The tag, `latest` where none was written.
    pub fn tag_or_latest(&self) -> &str {
        self.tag().unwrap_or(DEFAULT_TAG)
    }

    /// What to ask the registry for: the digest if there is one, else the tag or `latest`.
    pub fn selector(&self) -> Selector<'_> {
        match &self.digest {
            Some(digest) => Selector::Digest(digest),
            None => Selector::Tag(self.tag_or_latest()),
        }
    }

    /// The same image under another tag; a digest stays.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        check_tag(tag)?;
        Ok(Self {
            tag: Some(tag.to_string()),
            ..self.clone()
        })
    }

    /// The same image at this digest; a tag stays.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same image, without the tag.
    #[must_use]
    pub fn without_tag(&self) -> Self {
        Self {
            tag: None,
            ..self.clone()
        }
    }

    /// The same image, without the digest.
    #[must_use]
    pub fn without_digest(&self) -> Self {
        Self {
            digest: None,
            ..self.clone()
        }
    }

    /// The same image; where neither tag nor digest was written, with the tag `latest`.
    #[must_use]
    pub fn or_latest(&self) -> Self {
        let mut copy = self.clone();
        if copy.tag.is_none() && copy.digest.is_none() {
            copy.tag = Some(DEFAULT_TAG.to_string());
        }
        copy
    }

    /// The shortest text that reads as this reference: without `docker.io/` and `library/` where they
    /// are implied.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        if !self.host.is_docker_hub() {
            return full;
        }
        let host = self.host.to_string().len() + 1;
        let official = self
            .repository
            .strip_prefix(OFFICIAL)
            .is_some_and(|name| !name.contains('/'));
        let short = &full[host + if official { OFFICIAL.len() } else { 0 }..];
        // `docker.io/localhost/x` must not turn into a reference to another host, nor a name into an id.
        let first = self.repository.split('/').next().unwrap_or_default();
        if (!official && names_host(first)) || is_image_id(short) {
            return full;
        }
        short.to_string()
    }

    fn key(&self) -> (&Host, &str, Option<&str>, Option<&Digest>) {
        (&self.host, &self.repository, self.tag(), self.digest())
    }
}

impl PartialEq for Reference {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Reference {}

impl PartialOrd for Reference {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Reference {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

impl hash::Hash for Reference {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.key().hash(state);
    }
}

/// The canonical form, with its host: `docker.io/library/alpine:3@sha256:…`; a tag only where one was written.
impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Whether the text is an image id, 12 to 64 lower-case hexadecimal digits or `sha256:` and 64 of them:
/// such a text names a local image and is never turned into another name.
pub fn is_image_id(text: &str) -> bool {
    is_full_id(text) || ((12..=64).contains(&text.len()) && is_hex(text))
}

/// Checks a repository name without host: `library/alpine`.
pub fn check_repository(name: &str) -> Result<(), ReferenceError> {
    let end = scan_repository(name, 0, MAX_REPOSITORY)?;
    if end < name.len() {
        return Err(ReferenceError::new(end, ReferenceRule::RepositoryCharacter));
    }
    Ok(())
}

/// Checks a tag.
pub fn check_tag(tag: &str) -> Result<(), ReferenceError> {
    let end = scan_tag(tag, 0)?;
    if end < tag.len() {
        return Err(ReferenceError::new(end, ReferenceRule::TagCharacter));
    }
    Ok(())
}

fn is_hex(text: &str) -> bool {
    text.bytes()
        .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_full_id(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    digits.len() == 64 && is_hex(digits)
}

/// Whether a text before the first slash is a host rather than a part of the repository.
pub(crate) fn names_host(first: &str) -> bool {
    first == "localhost"
        || first
            .bytes()
            .any(|byte| matches!(byte, b'.' | b':') || byte.is_ascii_uppercase())
}

/// Reads a repository name from `start` up to `:`, `@` or the end, and returns where it ends.
fn scan_repository(text: &str, start: usize, limit: usize) -> Result<usize, ReferenceError> {
    let fail = |offset, rule| Err(ReferenceError::new(offset, rule));
    let bytes = text.as_bytes();
    // Where the present component began, and the run of separators just before the present byte.
    let mut component = start;
    let mut run: Option<usize> = None;
    let mut at = start;
    while at < bytes.len() {
        let byte = bytes[at];
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => run = None,
            b'.' | b'_' | b'-' if at == component => {
                return fail(at, ReferenceRule::RepositorySeparator);
            }
            b'.' | b'_' | b'-' => match run {
                None => run = Some(at),
                Some(_) if byte == b'-' && bytes[at - 1] == b'-' => {}
                Some(first) if byte == b'_' && bytes[first] == b'_' && at - first == 1 => {}
                Some(_) => return fail(at, ReferenceRule::RepositorySeparator),
            },
            b'/' | b':' | b'@' => {
                if at == component {
                    return fail(at, ReferenceRule::RepositoryEmpty);
                }
                if let Some(first) = run {
                    return fail(first, ReferenceRule::RepositorySeparator);
                }
                if byte != b'/' {
                    return Ok(at);
                }
                component = at + 1;
            }
            b'A'..=b'Z' => return fail(at, ReferenceRule::RepositoryUpperCase),
            _ => return fail(at, ReferenceRule::RepositoryCharacter),
        }
        if at - start == limit {
            return fail(at, ReferenceRule::RepositoryTooLong);
        }
        at += 1;
    }
    if at == component {
        return fail(at, ReferenceRule::RepositoryEmpty);
    }
    if let Some(first) = run {
        return fail(first, ReferenceRule::RepositorySeparator);
    }
    Ok(at)
}

/// Reads a tag from `start` up to `@` or the end, and returns where it ends.
fn scan_tag(text: &str, start: usize) -> Result<usize, ReferenceError> {
    let fail = |offset, rule| Err(ReferenceError::new(offset, rule));
    let mut end = text.len();
    for (at, byte) in text.bytes().enumerate().skip(start) {
        match byte {
            b'@' => {
                end = at;
                break;
            }
            b'.' | b'-' if at == start => return fail(at, ReferenceRule::TagStart),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'.' | b'-' => {}
            _ => return fail(at, ReferenceRule::TagCharacter),
        }
        if at - start == MAX_TAG {
            return fail(at, ReferenceRule::TagTooLong);
        }
    }
    if end == start {
        return fail(end, ReferenceRule::TagEmpty);
    }
    Ok(end)
}
