//! `/v2/<name>/manifests/<reference>`: manifests and tags (end-3, end-7, end-9).

use bytes::Bytes;
use http::header::{
    CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH,
};
use http::{Method, Response, StatusCode};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::distribution::{ErrorCode, Target};
use vdkr_core::manifest::{self, MAX_MANIFEST, ManifestError, ParsedManifest, media_type};

use super::{CONTENT_DIGEST, created, empty, entity_tags, etag, has_already, not_modified, value};
use crate::body::Body;
use crate::budget::Room;
use crate::error::Refusal;
use crate::receive::Incoming;
use crate::router::Ask;
use crate::storage::{Condition, Manifest, NewManifest, Storage, Wanted, type_of};

const SUBJECT: HeaderName = HeaderName::from_static("oci-subject");
const TAG: HeaderName = HeaderName::from_static("oci-tag");

pub(crate) async fn get(
    ask: &Ask<'_>,
    name: String,
    target: Target,
) -> Result<Response<Body>, Refusal> {
    let storage = ask.registry.storage();
    if let Target::Digest(digest) = &target {
        storage.claim(digest);
    }
    let known = known(storage, &name, &target);
    let found =
        if let Some(manifest) = known.map_err(|error| Refusal::of_storage(&error, storage))? {
            Some(manifest)
        } else {
            let (name, target) = (name.clone(), target.clone());
            ask.registry
                .blocking(move |storage| find(storage, &name, &target))
                .await?
        };
    let manifest = found.ok_or_else(|| unknown(&name, &target))?;
    // Who is told that it is there may count on it for a while.
    if !storage.use_manifest(&name, &manifest.digest) {
        return Err(unknown(&name, &target));
    }
    if has_already(&ask.head.headers, &manifest.digest) {
        return not_modified(&manifest.digest);
    }
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, value(&manifest.media_type)?);
    headers.insert(CONTENT_DIGEST, value(manifest.digest.as_str())?);
    headers.insert(
        ETAG,
        etag(&manifest.digest).map_err(|_| super::unwritable())?,
    );
    headers.insert(CONTENT_LENGTH, manifest.body.len().into());
    if ask.head.method == Method::GET {
        *response.body_mut() = manifest.body.into();
    }
    Ok(response)
}

pub(crate) async fn put(
    ask: &Ask<'_>,
    name: String,
    target: Target,
    body: &mut Incoming,
) -> Result<Response<Body>, Refusal> {
    let condition = condition(&ask.head.headers)?;
    let declared = match ask.head.headers.get(CONTENT_TYPE).map(HeaderValue::to_str) {
        None => None,
        Some(Ok(declared)) => Some(declared.to_owned()),
        Some(Err(_)) => return Err(invalid("Content-Type is no media type")),
    };
    let (raw, room) = receive(ask, body).await?;
    let algorithm = match &target {
        Target::Tag(_) => Algorithm::Sha256,
        Target::Digest(digest) => digest.algorithm(),
    };
    let mut tags: Vec<String> = match &target {
        Target::Tag(tag) => vec![tag.clone()],
        Target::Digest(_) => Vec::new(),
    };
    tags.extend(ask.query.tags.iter().cloned());
    let sparse = ask.registry.config().sparse_manifests;
    let repository = name.clone();
    let stored = ask
        .registry
        .blocking(move |storage| {
            // Held to the end of the work, also when nobody waits for it.
            let _room = room;
            let (digest, checked) = match check(&raw, algorithm, &target, declared.as_deref()) {
                Ok(checked) => checked,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let manifest = NewManifest {
                digest: digest.clone(),
                body: raw,
                blobs: checked.blobs,
                children: checked.children,
                sparse,
            };
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            storage.put_manifest(&repository, &manifest, &tags, &condition)?;
            Ok(Ok((digest, checked.subject)))
        })
        .await?;
    let (digest, subject) = stored?;
    let mut response = created(&format!("/v2/{name}/manifests/{digest}"), &digest)?;
    let headers = response.headers_mut();
    headers.insert(ETAG, etag(&digest).map_err(|_| super::unwritable())?);
    if let Some(subject) = subject {
        headers.insert(SUBJECT, value(subject.as_str())?);
    }
    for tag in &ask.query.tags {
        headers.append(TAG, value(tag)?);
    }
    Ok(response)
}

pub(crate) async fn delete(
    ask: &Ask<'_>,
    name: String,
    target: Target,
) -> Result<Response<Body>, Refusal> {
    let condition = condition(&ask.head.headers)?;
    let (repository, asked) = (name.clone(), target.clone());
    let deleted = ask
        .registry
        .blocking(move |storage| match &asked {
            Target::Tag(tag) => storage.delete_tag(&repository, tag, &condition),
            Target::Digest(digest) => storage.delete_manifest(&repository, digest, &condition),
        })
        .await?;
    if deleted {
        Ok(empty(StatusCode::ACCEPTED))
    } else {
        Err(unknown(&name, &target))
    }
}

fn known(
    storage: &Storage,
    name: &str,
    target: &Target,
) -> crate::storage::Result<Option<Manifest>> {
    match target {
        Target::Digest(digest) => storage.known_manifest(name, digest),
        Target::Tag(tag) => match storage.known_tag(name, tag)? {
            Some(digest) => {
                storage.claim(&digest);
                storage.known_manifest(name, &digest)
            }
            None => Ok(None),
        },
    }
}

fn find(
    storage: &Storage,
    name: &str,
    target: &Target,
) -> crate::storage::Result<Option<Manifest>> {
    match target {
        Target::Digest(digest) => storage.sound_manifest(name, digest),
        Target::Tag(tag) => storage.sound_tag(name, tag),
    }
}

/// Receives a manifest within its time, and gets the room to read it.
async fn receive(ask: &Ask<'_>, body: &mut Incoming) -> Result<(Bytes, Room), Refusal> {
    let budget = ask.registry.budget();
    let deadline = ask.registry.config().limits.manifest_deadline;
    let (raw, mut room) = body.whole(MAX_MANIFEST, deadline, budget).await?;
    budget.read(&mut room, raw.len()).await?;
    Ok((raw, room))
}

/// What a pushed manifest says.
#[derive(Default)]
struct Checked {
    blobs: Vec<(Digest, u64)>,
    children: Vec<(Digest, u64)>,
    subject: Option<Digest>,
}

fn check(
    raw: &Bytes,
    algorithm: Algorithm,
    target: &Target,
    declared: Option<&str>,
) -> Result<(Digest, Checked), Refusal> {
    let digest = Digest::of(algorithm, raw);
    if let Target::Digest(expected) = target
        && *expected != digest
    {
        let message = format!("the manifest has the digest {digest}, not {expected}");
        return Err(Refusal::new(ErrorCode::DigestInvalid, message));
    }
    let checked = match manifest::parse(raw, declared) {
        Ok(parsed) => Checked::of(&parsed),
        // Another kind of manifest is kept as it is, if its type can be told again from its body and is
        // no type that a browser would make a page of.
        Err(ManifestError::UnsupportedMediaType(_)) if keeps_its_type(raw, declared) => {
            Checked::default()
        }
        Err(error @ ManifestError::TooLarge { .. }) => {
            return Err(Refusal::new(ErrorCode::SizeInvalid, error.to_string())
                .with_status(StatusCode::PAYLOAD_TOO_LARGE));
        }
        Err(error) => return Err(invalid(&error.to_string())),
    };
    // What could not be served as what it was declared must not be taken.
    let served = type_of(raw);
    let stays = declared.is_none_or(|d| served.as_deref() == Some(&media_type::essence(d)));
    if served.is_none() || !stays {
        return Err(invalid(
            "its media type is not in its body and cannot be told from its form; \
             add the field \"mediaType\"",
        ));
    }
    Ok((digest, checked))
}

impl Checked {
    fn of(parsed: &ParsedManifest) -> Self {
        Self {
            blobs: parsed
                .blobs()
                .filter(|blob| !media_type::is_nondistributable(&blob.media_type))
                .map(|blob| (blob.digest.clone(), blob.size))
                .collect(),
            children: parsed
                .manifests()
                .iter()
                .map(|child| (child.digest.clone(), child.size))
                .collect(),
            subject: parsed.subject().map(|subject| subject.digest.clone()),
        }
    }
}

fn keeps_its_type(raw: &[u8], declared: Option<&str>) -> bool {
    #[derive(serde::Deserialize)]
    struct Typed {
        #[serde(rename = "mediaType")]
        media_type: String,
    }
    let typed: Result<Typed, _> = serde_json::from_slice(raw);
    typed.is_ok_and(|typed| {
        let told = media_type::essence(&typed.media_type);
        media_type::is_json(&told) && declared.is_none_or(|d| media_type::essence(d) == told)
    })
}

pub(super) fn condition(headers: &HeaderMap) -> Result<Condition, Refusal> {
    let wanted = |name: HeaderName| -> Result<Option<Wanted>, Refusal> {
        let mut wanted: Option<Wanted> = None;
        for header in headers.get_all(name) {
            let header = header.to_str().map_err(|_| {
                Refusal::new(
                    ErrorCode::PreconditionFailed,
                    "the condition cannot be read",
                )
            })?;
            if header.trim() == "*" {
                return Ok(Some(Wanted::Any));
            }
            let digests = entity_tags(header).filter_map(|tag| Digest::parse(tag).ok());
            match wanted.get_or_insert(Wanted::OneOf(Vec::new())) {
                Wanted::OneOf(list) => list.extend(digests),
                Wanted::Any => {}
            }
        }
        Ok(wanted)
    };
    Ok(Condition {
        matches: wanted(IF_MATCH)?,
        none_match: wanted(IF_NONE_MATCH)?,
    })
}

fn invalid(message: &str) -> Refusal {
    Refusal::new(ErrorCode::ManifestInvalid, message)
}

fn unknown(name: &str, target: &Target) -> Refusal {
    Refusal::new(
        ErrorCode::ManifestUnknown,
        format!("the repository {name} has no manifest {target}"),
    )
}
