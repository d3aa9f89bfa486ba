//! What manifests name.

use std::collections::HashSet;

use serde_json::Value;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{self, MAX_DESCRIPTORS, MAX_MANIFEST};

use crate::storage::{Result, Storage, paths};

/// What a manifest names.
#[derive(Default)]
pub(super) struct Named {
    /// Blobs and manifests.
    pub(super) all: Vec<Digest>,
    /// The manifests of an index.
    pub(super) children: Vec<Digest>,
    pub(super) subject: Option<Digest>,
}

/// What a manifest needs that the repository has no link to, itself included, and whether that is all:
/// it is not when the content of a manifest is not there.
pub(super) fn closure(storage: &Storage, digest: &Digest) -> Result<(HashSet<Digest>, bool)> {
    let (mut found, mut whole) = (HashSet::from([digest.clone()]), true);
    let (mut open, mut looked) = (vec![digest.clone()], HashSet::new());
    while let Some(digest) = open.pop() {
        if found.len() > MAX_DESCRIPTORS {
            return Ok((found, false));
        }
        if !looked.insert(digest.clone()) {
            continue;
        }
        match storage.manifest_content(&digest)? {
            Some(cached) => {
                let named = named(&cached.body);
                open.extend(named.children);
                found.extend(named.all);
            }
            None => whole &= is_blob(storage, &digest)?,
        }
    }
    Ok((found, whole))
}

/// Whether what is stored under a digest is sound and no manifest: some builders list blobs in their
/// indexes.
fn is_blob(storage: &Storage, digest: &Digest) -> Result<bool> {
    match storage.fs.read(&paths::blob_data(digest), MAX_MANIFEST + 1) {
        Ok((content, _)) => {
            Ok(content.len() > MAX_MANIFEST || Digest::of(digest.algorithm(), &content) == *digest)
        }
        Err(error) if error.is_not_found() => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What a manifest names, and its subject. Of one that is of no known form, every digest in it: schemas
/// of old are still served, and those of tomorrow may be.
pub(super) fn named(body: &[u8]) -> Named {
    if let Ok(parsed) = manifest::parse(body, None) {
        let blobs = parsed.blobs().map(|blob| blob.digest.clone());
        let children = parsed.manifests().iter().map(|child| child.digest.clone());
        let children: Vec<_> = children.collect();
        return Named {
            all: blobs.chain(children.iter().cloned()).collect(),
            children,
            subject: parsed.subject().map(|subject| subject.digest.clone()),
        };
    }
    let mut found = Vec::new();
    let mut open: Vec<Value> = serde_json::from_slice(body).into_iter().collect();
    while let Some(value) = open.pop() {
        match value {
            Value::String(text) => found.extend(Digest::parse(&text)),
            Value::Array(values) => open.extend(values),
            Value::Object(fields) => open.extend(fields.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    Named {
        all: found,
        ..Named::default()
    }
}
