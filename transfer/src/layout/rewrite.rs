//! Changing the configurations of a layout's images, and all digests that follow from them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FlockOperation, Mode, OFlags, fchmod, flock, fsync, openat, renameat, unlinkat,
};
use serde_json::Value;
use vdkr_core::digest::Digest;
use vdkr_core::json_text::{self, JsonTextError, Step};
use vdkr_core::manifest::media_type::{DOCKER_CONFIG, OCI_CONFIG, is_image, is_index};
use vdkr_core::manifest::{Descriptor, ImageConfig, MAX_CONFIG, MAX_MANIFEST, ManifestKind};
use vdkr_core::platform::Platform;

use super::{INDEX, OciLayout, REF_NAME, beneath, blob_path};
use crate::error::TransferError;

/// How deep an index may nest.
const MAX_DEPTH: usize = 8;

/// Gives the text of a configuration another, or `None` for as it is; an error says why it cannot.
pub type ConfigEdit<'e> = dyn FnMut(&str, &ImageConfig) -> Result<Option<String>, String> + 'e;

/// What [`rewrite_configs`] did.
#[derive(Clone, Debug, Default)]
pub struct Rewritten {
    /// The images of the layout, each once.
    pub images: Vec<RewrittenImage>,
    /// Manifests that say something about an image as it was: signatures, attestations.
    pub stale: Vec<Digest>,
    /// Blobs that nothing refers to any more and that were removed.
    pub removed: Vec<Digest>,
}

/// One image of a layout.
#[derive(Clone, Debug)]
pub struct RewrittenImage {
    /// The name that the layout gives it, or gives the index it is part of.
    pub name: Option<String>,
    /// The platform that its configuration names.
    pub platform: Platform,
    /// Its manifest before.
    pub before: Digest,
    /// Its manifest now.
    pub now: Digest,
    /// Its configuration now.
    pub config: ImageConfig,
}

impl Rewritten {
    /// Whether the layout is another than before.
    pub fn is_changed(&self) -> bool {
        self.images.iter().any(|image| image.before != image.now)
    }
}

/// Gives every image configuration of a layout to `edit`, and writes what comes back: the
/// configurations, the manifests and indexes above them, and last `index.json`, which is replaced in
/// one step. A configuration for which `edit` gives `None` stays.
///
/// New blobs are on the disk before `index.json` names them. Blobs are never changed in place, so
/// hard links to them keep what they had; those that nothing refers to any more are removed.
pub fn rewrite_configs(path: &Path, edit: &mut ConfigEdit<'_>) -> Result<Rewritten, TransferError> {
    let editor = Editor::open(path)?;
    let layout = OciLayout::open(path)?;
    let mut run = Run {
        editor: &editor,
        layout: &layout,
        edit,
        done: BTreeMap::new(),
        outcome: Rewritten::default(),
    };
    let raw = text_of(&editor.path.join(INDEX), layout.raw_index())?;
    let new = run.list(raw, &layout.index().manifests, None, 0)?;
    let Run {
        done, mut outcome, ..
    } = run;
    let Some(new) = new else {
        return Ok(outcome);
    };
    editor.replace_index(new.as_bytes())?;
    let changed = done.into_iter().filter(|(_, new)| new.is_some());
    let old: BTreeSet<Digest> = changed.map(|(old, _)| old).collect();
    let (named, stale) = editor.reachable(new.as_bytes(), &old);
    outcome.stale = stale;
    for digest in old {
        // Whoever still says something about the old image keeps it.
        if !named.contains(&digest) {
            editor.remove(&digest)?;
            outcome.removed.push(digest);
        }
    }
    Ok(outcome)
}

struct Run<'r> {
    editor: &'r Editor,
    layout: &'r OciLayout,
    edit: &'r mut ConfigEdit<'r>,
    /// What became of each blob that was looked at.
    done: BTreeMap<Digest, Option<(Digest, u64)>>,
    outcome: Rewritten,
}

impl Run<'_> {
    /// A list of manifests with the digests of those that changed; `None` when none did.
    fn list(
        &mut self,
        raw: &str,
        entries: &[Descriptor],
        name: Option<&str>,
        depth: usize,
    ) -> Result<Option<String>, TransferError> {
        let mut places = Vec::new();
        for (at, entry) in entries.iter().enumerate() {
            let own = entry.annotations.get(REF_NAME).map(String::as_str);
            if let Some(new) = self.descriptor(entry, name.or(own), depth)? {
                places.push(([Step::Key("manifests"), Step::At(at)], new));
            }
        }
        if places.is_empty() {
            return Ok(None);
        }
        redirect(raw, &places)
            .map(Some)
            .map_err(|error| TransferError::layout(self.layout.path(), error.to_string()))
    }

    /// The digest and size that a descriptor shall have instead; `None` when it may stay.
    fn descriptor(
        &mut self,
        entry: &Descriptor,
        name: Option<&str>,
        depth: usize,
    ) -> Result<Option<(Digest, u64)>, TransferError> {
        if let Some(done) = self.done.get(&entry.digest) {
            return Ok(done.clone());
        }
        if depth == MAX_DEPTH {
            let reason = format!("its indexes nest more than {MAX_DEPTH} deep");
            return Err(TransferError::layout(self.layout.path(), reason));
        }
        let new = if is_index(&entry.media_type) {
            self.index(entry, name, depth)?
        } else if is_image(&entry.media_type) {
            self.image(entry, name)?
        } else {
            None
        };
        self.done.insert(entry.digest.clone(), new.clone());
        Ok(new)
    }

    fn index(
        &mut self,
        entry: &Descriptor,
        name: Option<&str>,
        depth: usize,
    ) -> Result<Option<(Digest, u64)>, TransferError> {
        let fetched = self.layout.manifest(entry)?;
        let parsed = fetched.parse()?;
        let raw = text_of(&self.blob(entry), &fetched.raw)?;
        match self.list(raw, parsed.manifests(), name, depth + 1)? {
            Some(new) => self.put(entry, &new, MAX_MANIFEST).map(Some),
            None => Ok(None),
        }
    }

    fn image(
        &mut self,
        entry: &Descriptor,
        name: Option<&str>,
    ) -> Result<Option<(Digest, u64)>, TransferError> {
        let fetched = self.layout.manifest(entry)?;
        let parsed = fetched.parse()?;
        let ManifestKind::Image(manifest) = &parsed.kind else {
            return Ok(None);
        };
        let old = &manifest.config;
        // An artifact's configuration is none.
        if ![OCI_CONFIG, DOCKER_CONFIG].contains(&old.media_type.as_str()) {
            return Ok(None);
        }
        if old.size > MAX_CONFIG as u64 {
            return Err(TransferError::TooLarge {
                what: old.digest.to_string(),
                limit: MAX_CONFIG as u64,
            });
        }
        let raw_config = self.layout.open_blob(old)?.read_verified()?;
        let config_text = text_of(&self.blob(old), &raw_config)?;
        let mut config = parse_config(old, config_text)?;
        let edited = (self.edit)(config_text, &config)
            .map_err(|reason| TransferError::layout(self.blob(old), reason))?;
        let mut new = None;
        if let Some(text) = edited {
            config = parse_config(old, &text)?;
            let put = self.put(old, &text, MAX_CONFIG)?;
            self.done.insert(old.digest.clone(), Some(put.clone()));
            let raw = text_of(&self.blob(entry), &fetched.raw)?;
            let text = redirect(raw, &[([Step::Key("config")], put)])
                .map_err(|error| TransferError::layout(self.blob(entry), error.to_string()))?;
            new = Some(self.put(entry, &text, MAX_MANIFEST)?);
        }
        let now = new.as_ref().map_or(&entry.digest, |(digest, _)| digest);
        self.outcome.images.push(RewrittenImage {
            name: name.map(str::to_owned),
            platform: config.platform(),
            before: entry.digest.clone(),
            now: now.clone(),
            config,
        });
        Ok(new)
    }

    /// Writes the successor of a blob.
    fn put(
        &self,
        old: &Descriptor,
        text: &str,
        limit: usize,
    ) -> Result<(Digest, u64), TransferError> {
        if text.len() > limit {
            return Err(TransferError::TooLarge {
                what: format!("what {} becomes", old.digest),
                limit: limit as u64,
            });
        }
        let digest = Digest::of(old.digest.algorithm(), text.as_bytes());
        self.editor.put(&digest, text.as_bytes())?;
        Ok((digest, text.len() as u64))
    }

    fn blob(&self, descriptor: &Descriptor) -> PathBuf {
        self.layout.path().join(blob_path(&descriptor.digest))
    }
}

fn parse_config(descriptor: &Descriptor, text: &str) -> Result<ImageConfig, TransferError> {
    ImageConfig::parse(text.as_bytes()).map_err(|source| TransferError::Manifest {
        what: format!("configuration {}", descriptor.digest),
        source,
    })
}

fn text_of<'b>(path: &Path, bytes: &'b [u8]) -> Result<&'b str, TransferError> {
    std::str::from_utf8(bytes).map_err(|_| TransferError::layout(path, "it is not UTF-8 text"))
}

/// A document whose descriptors at these places have another digest and size. What they embed of the
/// old content goes.
fn redirect<'a, const N: usize>(
    raw: &str,
    places: &[([Step<'a>; N], (Digest, u64))],
) -> Result<String, JsonTextError> {
    let member = |place: &[Step<'a>], name: &'a str| -> Vec<Step<'a>> {
        place.iter().copied().chain([Step::Key(name)]).collect()
    };
    let edits = places.iter().flat_map(|(place, (digest, size))| {
        [
            (member(place, "digest"), Value::from(digest.as_str())),
            (member(place, "size"), Value::from(*size)),
        ]
    });
    let mut text = json_text::replace(raw, &edits.collect::<Vec<_>>())?;
    for (place, _) in places {
        let data = member(place, "data");
        if json_text::get(&text, &data)?.is_some() {
            text = json_text::remove(&text, &data)?;
        }
    }
    Ok(text)
}

/// A layout that is being changed, locked against a second editor.
struct Editor {
    path: PathBuf,
    root: OwnedFd,
}

impl Editor {
    fn open(path: &Path) -> Result<Self, TransferError> {
        let failed = |error: std::io::Error| TransferError::io("open", path, error);
        let root = beneath::root(path).map_err(failed)?;
        flock(&root, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
        Ok(Self {
            path: path.to_owned(),
            root,
        })
    }

    /// Writes a blob, and syncs it and its name.
    fn put(&self, digest: &Digest, bytes: &[u8]) -> Result<(), TransferError> {
        self.write(&blob_path(digest), bytes, 0o644)
    }

    fn replace_index(&self, bytes: &[u8]) -> Result<(), TransferError> {
        let path = self.path.join(INDEX);
        let old = beneath::file(&self.root, INDEX)
            .and_then(|file| file.metadata())
            .map_err(|error| TransferError::io("open", &path, error))?;
        let mode = std::os::unix::fs::MetadataExt::mode(&old) & 0o7777;
        self.write(INDEX, bytes, mode)
    }

    fn write(&self, name: &str, bytes: &[u8], mode: u32) -> Result<(), TransferError> {
        let failed =
            |error: std::io::Error| TransferError::io("write", &self.path.join(name), error);
        let (directory, file_name) = match name.rsplit_once('/') {
            Some((directory, name)) => (beneath::directory(&self.root, directory), name),
            None => (self.root.try_clone(), name),
        };
        let directory = directory.map_err(failed)?;
        let draft = format!(".draft-{}-rewrite", std::process::id());
        let written = (|| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
            let flags = flags | OFlags::NOFOLLOW;
            let opened = openat(&self.root, draft.as_str(), flags, Mode::from(0o600))?;
            fchmod(&opened, Mode::from(mode))?;
            let mut file = File::from(opened);
            file.write_all(bytes)?;
            file.sync_all()?;
            renameat(&self.root, draft.as_str(), &directory, file_name)?;
            fsync(&directory)?;
            Ok(())
        })();
        if written.is_err() {
            let _ = unlinkat(&self.root, draft.as_str(), AtFlags::empty());
        }
        written.map_err(failed)
    }

    fn remove(&self, digest: &Digest) -> Result<(), TransferError> {
        let name = blob_path(digest);
        let failed =
            |error: std::io::Error| TransferError::io("remove", &self.path.join(&name), error);
        let (directory, file) = name.rsplit_once('/').unwrap_or(("", &name));
        let directory = beneath::directory(&self.root, directory).map_err(failed)?;
        unlinkat(&directory, file, AtFlags::empty()).map_err(|error| failed(error.into()))
    }

    /// Every digest that is named in `index` or in a document that it leads to, and the documents
    /// that name one of `old`. Whatever has the form of a digest counts, wherever it stands.
    fn reachable(&self, index: &[u8], old: &BTreeSet<Digest>) -> (BTreeSet<Digest>, Vec<Digest>) {
        let mut named = BTreeSet::new();
        let mut stale = Vec::new();
        let mut todo = mentions(index);
        while let Some(digest) = todo.pop() {
            if !named.insert(digest.clone()) {
                continue;
            }
            let found = mentions(&self.document(&digest));
            if !old.contains(&digest) && found.iter().any(|digest| old.contains(digest)) {
                stale.push(digest);
            }
            todo.extend(found);
        }
        (named, stale)
    }

    /// A blob that could be a document; empty when it could not.
    fn document(&self, digest: &Digest) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Ok(file) = beneath::file(&self.root, &blob_path(digest))
            && file
                .metadata()
                .is_ok_and(|meta| meta.len() <= MAX_MANIFEST as u64)
            && file
                .take(MAX_MANIFEST as u64)
                .read_to_end(&mut bytes)
                .is_ok()
            && bytes.trim_ascii_start().first() == Some(&b'{')
        {
            return bytes;
        }
        Vec::new()
    }
}

fn mentions(document: &[u8]) -> Vec<Digest> {
    fn walk(value: &Value, found: &mut Vec<Digest>) {
        match value {
            Value::String(text) => found.extend(Digest::parse(text).ok()),
            Value::Array(items) => items.iter().for_each(|item| walk(item, found)),
            Value::Object(members) => members.values().for_each(|item| walk(item, found)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }
    let mut found = Vec::new();
    if let Ok(value) = serde_json::from_slice(document) {
        walk(&value, &mut found);
    }
    found
}
