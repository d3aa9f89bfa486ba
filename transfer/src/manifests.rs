//! Manifests over the wire (OCI distribution specification, "Pulling manifests", "Pushing
//! Manifests", "Content Management").

use bytes::Bytes;
use reqwest::header::{
    ACCEPT, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use reqwest::{Method, StatusCode};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::media_type::{MANIFEST_TYPES, essence};
use vdkr_core::manifest::{self, Descriptor, MAX_MANIFEST, ParsedManifest};
use vdkr_core::reference::Selector;

use crate::client::{Client, Repository};
use crate::endpoint::Endpoint;
use crate::error::{Answer, TransferError, printable};
use crate::guard::redacted;
use crate::http::Response;

pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A manifest as it came: checked against every digest that was asked for or claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedManifest {
    /// The bytes; these are what is stored or sent on.
    pub raw: Bytes,
    /// `Content-Type` without parameters; where it says nothing useful, the `mediaType` of the body.
    pub media_type: String,
    /// The digest of `raw`.
    pub digest: Digest,
}

impl FetchedManifest {
    /// A manifest made here. The media type is what the bytes say.
    pub fn new(raw: Bytes) -> Result<Self, TransferError> {
        let digest = Digest::sha256(&raw);
        let media_type = read(&raw, None, &digest)?.media_type;
        Ok(Self {
            raw,
            media_type,
            digest,
        })
    }

    /// What it says.
    pub fn parse(&self) -> Result<ParsedManifest, TransferError> {
        read(&self.raw, Some(&self.media_type), &self.digest)
    }

    /// The descriptor that points to it, without platform.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.as_str(),
            self.digest.clone(),
            self.raw.len() as u64,
        )
    }
}

fn read(
    raw: &[u8],
    declared: Option<&str>,
    digest: &Digest,
) -> Result<ParsedManifest, TransferError> {
    manifest::parse(raw, declared).map_err(|source| TransferError::Manifest {
        what: format!("manifest {digest}"),
        source,
    })
}

/// What must hold for a tag to be moved (RFC 9110 §13.1). Registries that do not know conditions
/// ignore them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IfMatch<'a> {
    /// The tag still points to this manifest.
    Digest(&'a Digest),
    /// The tag does not exist yet.
    Absent,
}

/// A manifest that the registry has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutManifest {
    /// Its digest.
    pub digest: Digest,
    /// Whether the registry keeps the list of referrers itself (`OCI-Subject`); otherwise that is
    /// the client's duty, when the manifest has a subject.
    pub subject_listed: bool,
    /// Whether the answer carried the manifest's entity tag: such a registry looks at the condition
    /// of a request (RFC 9110 §13.1), others store whatever comes.
    pub conditional: bool,
}

impl Client {
    /// Asks for a manifest without fetching it: `None` when the registry does not have it.
    ///
    /// The answer is the server's word. For a digest, it is that digest; for a tag whose digest the
    /// server does not tell, the manifest is fetched and hashed.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<Option<Descriptor>, TransferError> {
        let places = self.places(repository.host())?;
        let mut last = Ok(None);
        for endpoint in places.readable() {
            last = self.head_manifest_at(endpoint, repository, selector).await;
            if places.settles(endpoint, &last) {
                break;
            }
        }
        last
    }

    /// As [`Client::head_manifest`], but mirrors are left out: what will be written to the registry
    /// depends on the registry.
    pub async fn head_manifest_at_origin(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<Option<Descriptor>, TransferError> {
        let places = self.places(repository.host())?;
        self.head_manifest_at(places.registry(), repository, selector)
            .await
    }

    async fn head_manifest_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<Option<Descriptor>, TransferError> {
        let path = format!("manifests/{selector}");
        let mut request = self
            .request(endpoint, Method::HEAD, repository, &path, &["pull"])
            .await?;
        request.headers.insert(ACCEPT, accept());
        let answer = self.call(endpoint, &request).await?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(None),
            _ => return Err(self.fail(endpoint, &request, answer, "manifest").await),
        }
        let claimed = claimed_digest(&answer)?;
        let digest = match (selector, claimed) {
            (Selector::Digest(asked), claimed) => {
                check_claim(&answer, asked, claimed)?;
                Some(asked.clone())
            }
            (Selector::Tag(_), claimed) => claimed,
        };
        if let (Some(digest), Some(media_type), Some(size)) =
            (digest, content_type(&answer), answer.content_length())
        {
            return Ok(Some(Descriptor::new(media_type, digest, size)));
        }
        let fetched = self.get_manifest_at(endpoint, repository, selector).await?;
        Ok(fetched.map(|manifest| manifest.descriptor()))
    }

    /// Fetches a manifest of at most [`MAX_MANIFEST`] bytes. It has the digest it was asked for by, and
    /// the one the server claims.
    pub async fn get_manifest(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<FetchedManifest, TransferError> {
        self.find_manifest(repository, selector)
            .await?
            .ok_or_else(|| TransferError::NotFound {
                what: format!("manifest {selector}"),
                url: repository.to_string(),
                answer: Box::new(Answer::of(404)),
            })
    }

    /// As [`Client::get_manifest`]; `None` when the registry does not have it.
    pub async fn find_manifest(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<Option<FetchedManifest>, TransferError> {
        let places = self.places(repository.host())?;
        let mut last = Ok(None);
        for endpoint in places.readable() {
            last = self.get_manifest_at(endpoint, repository, selector).await;
            if places.settles(endpoint, &last) {
                break;
            }
        }
        last
    }

    async fn get_manifest_at(
        &self,
        endpoint: &Endpoint,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<Option<FetchedManifest>, TransferError> {
        let path = format!("manifests/{selector}");
        let mut request = self
            .request(endpoint, Method::GET, repository, &path, &["pull"])
            .await?;
        request.headers.insert(ACCEPT, accept());
        let mut failures = 0;
        loop {
            let answer = self.call(endpoint, &request).await?;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => {
                    answer.drain().await;
                    return Ok(None);
                }
                _ => return Err(self.fail(endpoint, &request, answer, "manifest").await),
            }
            match receive(answer, selector).await {
                Err(error) if error.retryable() => {
                    failures += 1;
                    match self.config().retry.pause(failures, None) {
                        Some(pause) => tokio::time::sleep(pause).await,
                        None => return Err(error),
                    }
                }
                other => return other.map(Some),
            }
        }
    }

    /// Stores a manifest, byte for byte, under a tag or its digest.
    ///
    /// With `only_if`, a tag that is not as expected gives [`TransferError::Conflict`], unless it is
    /// already what was to be stored: a repeated request may meet its own success.
    pub async fn put_manifest(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
        raw: Bytes,
        media_type: &str,
        only_if: Option<IfMatch<'_>>,
    ) -> Result<PutManifest, TransferError> {
        let digest = match selector {
            Selector::Digest(expected) => {
                let got = Digest::of(expected.algorithm(), &raw);
                if got != *expected {
                    return Err(TransferError::DigestMismatch {
                        what: "manifest".to_owned(),
                        expected: expected.clone(),
                        got,
                    });
                }
                got
            }
            Selector::Tag(_) => Digest::sha256(&raw),
        };
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let path = format!("manifests/{selector}");
        let mut request = self
            .request(endpoint, Method::PUT, repository, &path, &["pull", "push"])
            .await?;
        let content_type = HeaderValue::from_str(media_type).map_err(|_| {
            TransferError::Config(format!("{} is no media type", printable(media_type, 100)))
        })?;
        request.headers.insert(CONTENT_TYPE, content_type);
        match only_if {
            Some(IfMatch::Digest(digest)) => {
                // A digest consists of characters that are legal in a header.
                if let Ok(tag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
                    request.headers.insert(IF_MATCH, tag);
                }
            }
            Some(IfMatch::Absent) => {
                request
                    .headers
                    .insert(IF_NONE_MATCH, HeaderValue::from_static("*"));
            }
            None => {}
        }
        request.body = Some(raw);
        let answer = self.call(endpoint, &request).await?;
        let mut put = PutManifest {
            subject_listed: answer.headers().contains_key(OCI_SUBJECT),
            conditional: answer
                .header(ETAG)
                .is_some_and(|tag| tag.trim_matches('"') == digest.as_str()),
            digest,
        };
        match answer.status() {
            StatusCode::CREATED
            | StatusCode::OK
            | StatusCode::ACCEPTED
            | StatusCode::NO_CONTENT => {
                let claimed = claimed_digest(&answer)?;
                let algorithm = claimed.as_ref().map(Digest::algorithm);
                if algorithm == Some(put.digest.algorithm()) {
                    check_claim(&answer, &put.digest, claimed)?;
                }
                answer.drain().await;
                Ok(put)
            }
            StatusCode::PRECONDITION_FAILED => {
                let conflict = self.fail(endpoint, &request, answer, "manifest").await;
                let now = self
                    .head_manifest_at(endpoint, repository, selector)
                    .await?;
                if now.is_some_and(|now| now.digest == put.digest) {
                    put.subject_listed = true;
                    put.conditional = true;
                    return Ok(put);
                }
                Err(conflict)
            }
            _ => Err(self.fail(endpoint, &request, answer, "repository").await),
        }
    }

    /// Removes a tag, or a manifest with all its tags. `false` when it was not there.
    pub async fn delete_manifest(
        &self,
        repository: &Repository,
        selector: Selector<'_>,
    ) -> Result<bool, TransferError> {
        self.delete(
            repository,
            &format!("manifests/{selector}"),
            "manifest",
            None,
        )
        .await
    }

    /// Removes a tag if it still points to `digest`; otherwise [`TransferError::Conflict`]. Registries
    /// that do not know conditions remove it all the same.
    pub async fn delete_tag_at(
        &self,
        repository: &Repository,
        tag: &str,
        digest: &Digest,
    ) -> Result<bool, TransferError> {
        self.delete(
            repository,
            &format!("manifests/{tag}"),
            "manifest",
            Some(digest),
        )
        .await
    }

    pub(crate) async fn delete(
        &self,
        repository: &Repository,
        path: &str,
        what: &str,
        only_if: Option<&Digest>,
    ) -> Result<bool, TransferError> {
        let places = self.places(repository.host())?;
        let endpoint = places.registry();
        let mut request = self
            .request(
                endpoint,
                Method::DELETE,
                repository,
                path,
                &["delete", "pull"],
            )
            .await?;
        if let Some(tag) = only_if.and_then(|d| HeaderValue::from_str(&format!("\"{d}\"")).ok()) {
            request.headers.insert(IF_MATCH, tag);
        }
        let answer = self.call(endpoint, &request).await?;
        let done = match answer.status() {
            StatusCode::NOT_FOUND => false,
            status if status.is_success() => true,
            StatusCode::METHOD_NOT_ALLOWED => {
                return Err(TransferError::Unsupported(format!(
                    "{} does not allow deletion: switch it on there (distribution: storage.delete.enabled)",
                    repository.host()
                )));
            }
            _ => return Err(self.fail(endpoint, &request, answer, what).await),
        };
        answer.drain().await;
        Ok(done)
    }
}

/// Reads a manifest's body and holds it against what was asked for and what is claimed.
async fn receive(
    answer: Response,
    selector: Selector<'_>,
) -> Result<FetchedManifest, TransferError> {
    let claimed = claimed_digest(&answer)?;
    let media_type = content_type(&answer);
    let url = redacted(answer.url());
    let what = format!("manifest {selector}");
    let promised = answer.content_length();
    let raw = answer.body(&what, MAX_MANIFEST as u64).await?;
    if let Some(promised) = promised
        && promised != raw.len() as u64
    {
        return Err(TransferError::SizeMismatch {
            what,
            expected: promised,
            got: raw.len() as u64,
        });
    }
    let check = |expected: &Digest| {
        let got = Digest::of(expected.algorithm(), &raw);
        if got == *expected {
            return Ok(());
        }
        Err(TransferError::DigestMismatch {
            what: format!("{what} from {url}"),
            expected: expected.clone(),
            got,
        })
    };
    if let Some(claimed) = &claimed {
        check(claimed)?;
    }
    let digest = match selector {
        Selector::Digest(asked) => {
            check(asked)?;
            asked.clone()
        }
        Selector::Tag(_) => claimed.unwrap_or_else(|| Digest::of(Algorithm::Sha256, &raw)),
    };
    let media_type = match media_type {
        Some(media_type) => media_type,
        None => read(&raw, None, &digest)?.media_type,
    };
    Ok(FetchedManifest {
        raw,
        media_type,
        digest,
    })
}

/// `Docker-Content-Digest`, when there is one. One that is no digest is against the protocol.
pub(crate) fn claimed_digest(answer: &Response) -> Result<Option<Digest>, TransferError> {
    let Some(text) = answer.header(DOCKER_CONTENT_DIGEST) else {
        return Ok(None);
    };
    match Digest::parse(text) {
        Ok(digest) => Ok(Some(digest)),
        Err(error) => Err(TransferError::Protocol {
            url: redacted(answer.url()),
            reason: format!("Docker-Content-Digest {}: {error}", printable(text, 80)),
        }),
    }
}

/// A server that claims another digest than it was asked for has other content.
fn check_claim(
    answer: &Response,
    expected: &Digest,
    claimed: Option<Digest>,
) -> Result<(), TransferError> {
    match claimed {
        // Under another algorithm the two cannot be compared without the content.
        Some(got) if got.algorithm() == expected.algorithm() && got != *expected => {
            Err(TransferError::DigestMismatch {
                what: format!("manifest at {}", redacted(answer.url())),
                expected: expected.clone(),
                got,
            })
        }
        _ => Ok(()),
    }
}

/// The content type, unless it is one that servers send for want of a better.
fn content_type(answer: &Response) -> Option<String> {
    let essence = essence(answer.header(CONTENT_TYPE)?);
    let vague = matches!(
        essence.as_str(),
        "" | "application/json" | "application/octet-stream" | "text/plain"
    );
    (!vague).then_some(essence)
}

fn accept() -> HeaderValue {
    // Media types are legal header text.
    HeaderValue::from_str(&MANIFEST_TYPES.join(", ")).unwrap_or(HeaderValue::from_static("*/*"))
}
