//! All images at once, with what people want to know of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use vdkr_core::digest::Digest;
use vdkr_core::extension::ImageEntry;
use vdkr_core::manifest::{self, Descriptor, ImageConfig, media_type};
use vdkr_core::platform::Platform;
use vdkr_core::reference::check_repository;

use super::nesting::DEEPEST;
use super::{Result, Storage, paths};

/// Repositories that are read ahead.
const AHEAD: usize = 100;
/// Labels of one image that are shown, and bytes of the longest value.
const LABELS: (usize, usize) = (100, 4096);
/// Longest configuration that is looked into, in bytes.
const CONFIG: usize = 1 << 20;
/// Manifests and blobs of one tag that are added up.
const MANY: usize = 100_000;
/// Bytes of the manifests of one tag that are read.
const BYTES: usize = 64 << 20;
/// Bytes of labels after which a page ends.
const PAGE_BYTES: usize = 4 << 20;
/// Bytes of manifests read after which a page ends, and what looking for something counts as.
const PAGE_WORK: (usize, usize) = (256 << 20, 1 << 10);

const TOO_MUCH: &str = "more hangs from it than is looked through; what is left is not counted";
const TOO_DEEP: &str = "its indexes nest so deep that clients do not copy it; what is deeper is not \
                        counted";

/// What a manifest says of an image. Never changes; what is there of it does.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    media_type: String,
    platforms: Vec<String>,
    size: u64,
    created: Option<String>,
    labels: BTreeMap<String, String>,
    /// The manifests below it, and the blobs, with their sizes; looked for each time.
    children: Vec<(Digest, u64)>,
    blobs: Vec<(Digest, u64)>,
    /// What its indexes name that was not there, so that this is not all.
    lacks: Vec<(Digest, u64)>,
    /// Why not all of it was looked at.
    unseen: Option<&'static str>,
}

/// A walk through all that hangs from a manifest.
#[derive(Default)]
struct Walk {
    summary: Summary,
    seen: HashSet<Digest>,
    /// Bytes of the manifests read.
    bytes: usize,
}

/// A manifest that a walk has yet to look at.
struct Open {
    digest: Digest,
    size: u64,
    /// What the index says of it.
    platform: Option<Platform>,
    depth: usize,
    body: Option<Bytes>,
}

/// What a page has taken so far.
#[derive(Default)]
struct Spent {
    labels: usize,
    work: usize,
}

impl Spent {
    fn is_enough(&self) -> bool {
        self.labels > PAGE_BYTES || self.work > PAGE_WORK.0
    }
}

impl Summary {
    fn weight(&self) -> usize {
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        512 + labels.sum::<usize>() + self.platforms.len() * 32 + self.needs() * 128
    }

    /// How many things are looked for each time.
    fn needs(&self) -> usize {
        self.children.len() + self.blobs.len() + self.lacks.len()
    }
}

impl Storage {
    /// At most `limit` images after the tag `last` (`repository:tag`), and whether there are more.
    pub fn images(&self, last: &str, limit: usize) -> Result<(Vec<ImageEntry>, bool)> {
        let (repository, tag) = last.rsplit_once(':').unwrap_or((last, ""));
        let (mut after, mut from) = (repository.to_owned(), tag.to_owned());
        let mut names = Vec::new();
        if !from.is_empty() && check_repository(&after).is_ok() {
            // The page may have ended in the middle of it.
            names.push(after.clone());
        }
        let (mut images, mut spent) = (Vec::new(), Spent::default());
        loop {
            if names.is_empty() {
                (names, _) = self.catalog(&after, AHEAD)?;
                if names.is_empty() {
                    return Ok((images, false));
                }
            }
            for name in std::mem::take(&mut names) {
                if images.len() >= limit || spent.is_enough() {
                    return Ok((images, true));
                }
                let from = std::mem::take(&mut from);
                let listed = self.tags(&name, &from, limit - images.len())?;
                let (tags, cut) = listed.unwrap_or_default();
                if tags.is_empty() && from.is_empty() {
                    images.push(ImageEntry {
                        repository: name.clone(),
                        ..ImageEntry::default()
                    });
                }
                let pins = self.pins(&name)?;
                for tag in tags {
                    if spent.is_enough() {
                        return Ok((images, true));
                    }
                    if let Some(entry) = self.image(&name, tag, &pins, &mut spent)? {
                        spent.labels += entry.labels.values().map(String::len).sum::<usize>();
                        images.push(entry);
                    }
                }
                if cut {
                    return Ok((images, true));
                }
                after = name;
            }
        }
    }

    /// One image of the list. `None`: the tag is gone.
    fn image(
        &self,
        name: &str,
        tag: String,
        pins: &[Digest],
        spent: &mut Spent,
    ) -> Result<Option<ImageEntry>> {
        let Some(link) = self.read_link(&paths::tag_current(name, &tag))? else {
            return Ok(None);
        };
        let (summary, problem) = match self.summary(name, &link.target, spent)? {
            Some(summary) => {
                spent.work += summary.needs() * PAGE_WORK.1;
                let problem = match self.lacks(name, &summary)? {
                    Some(digest) => Some(format!("it lacks {digest}; push it again")),
                    None => summary.unseen.map(str::to_owned),
                };
                (summary, problem)
            }
            None => (
                Arc::default(),
                Some("its manifest is missing or damaged; push it again".to_owned()),
            ),
        };
        Ok(Some(ImageEntry {
            repository: name.to_owned(),
            tag: Some(tag),
            pinned: pins.contains(&link.target),
            digest: Some(link.target),
            media_type: summary.media_type.clone(),
            platforms: summary.platforms.clone(),
            size: summary.size,
            created: summary.created.clone(),
            pushed: u64::try_from(link.stamp.modified_secs()).ok(),
            pushed_nanos: link.stamp.modified_nanos(),
            labels: summary.labels.clone(),
            problem,
        }))
    }

    /// What of an image the repository does not have, or has with another size.
    fn lacks(&self, name: &str, summary: &Summary) -> Result<Option<Digest>> {
        if let Some((digest, _)) = summary.lacks.first() {
            return Ok(Some(digest.clone()));
        }
        for (digest, size) in &summary.children {
            let link = self.read_link(&paths::revision_link(name, digest))?;
            let found = match link {
                Some(link) => self.content(link.target)?,
                None => self.blob(name, digest)?,
            };
            if found.is_none_or(|found| found.size != *size) {
                return Ok(Some(digest.clone()));
            }
        }
        for (digest, size) in &summary.blobs {
            if self
                .blob(name, digest)?
                .is_none_or(|found| found.size != *size)
            {
                return Ok(Some(digest.clone()));
            }
        }
        Ok(None)
    }

    /// What a manifest of the repository says. `None`: it is missing or damaged.
    fn summary(
        &self,
        name: &str,
        digest: &Digest,
        spent: &mut Spent,
    ) -> Result<Option<Arc<Summary>>> {
        // Another repository may have the index without all of its images.
        let key = format!("{name}@{digest}");
        let Some(found) = self.manifest(name, digest)? else {
            return Ok(None);
        };
        if let Some(known) = self.summaries.get(&key)
            && !self.has_come(name, &known)?
        {
            return Ok(Some(known));
        }
        let mut walk = Walk::default();
        walk.summary.media_type = found.media_type.to_string();
        self.summarise(name, digest, found.body, &mut walk)?;
        spent.work += walk.bytes;
        let summary = Arc::new(walk.summary);
        self.summaries
            .insert(key, Arc::clone(&summary), summary.weight());
        Ok(Some(summary))
    }

    /// Whether something has come that was missing.
    fn has_come(&self, name: &str, summary: &Summary) -> Result<bool> {
        for (digest, _) in &summary.lacks {
            if self.blob(name, digest)?.is_some() || self.manifest(name, digest)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds up a manifest and all below it, each before what it names.
    fn summarise(&self, name: &str, digest: &Digest, body: Bytes, walk: &mut Walk) -> Result<()> {
        let mut open = vec![Open {
            digest: digest.clone(),
            size: 0,
            platform: None,
            depth: 0,
            body: Some(body),
        }];
        while let Some(next) = open.pop() {
            if walk.seen.contains(&next.digest) {
                continue;
            }
            if walk.seen.len() >= MANY || walk.bytes > BYTES {
                walk.summary.unseen = Some(TOO_MUCH);
                return Ok(());
            }
            let body = match next.body {
                Some(body) => Some(body),
                None => self.manifest(name, &next.digest)?.map(|found| found.body),
            };
            walk.seen.insert(next.digest.clone());
            let Some(body) = body else {
                walk.summary.size += next.size;
                // Some builders list blobs in their indexes.
                let there = self.blob(name, &next.digest)?.is_some();
                let list = if there {
                    &mut walk.summary.children
                } else {
                    &mut walk.summary.lacks
                };
                list.push((next.digest, next.size));
                continue;
            };
            if next.depth > 0 {
                walk.summary.children.push((next.digest, next.size));
            }
            if next.depth == DEEPEST {
                walk.summary.unseen = Some(TOO_DEEP);
                continue;
            }
            walk.bytes += body.len();
            let before = open.len();
            self.add(&body, next.platform, next.depth, walk, &mut open)?;
            // The first one named is the next.
            open[before..].reverse();
        }
        Ok(())
    }

    /// Adds up what one manifest says. What it names is left open.
    fn add(
        &self,
        body: &[u8],
        platform: Option<Platform>,
        depth: usize,
        walk: &mut Walk,
        open: &mut Vec<Open>,
    ) -> Result<()> {
        let (summary, seen) = (&mut walk.summary, &mut walk.seen);
        summary.size += body.len() as u64;
        let Ok(parsed) = manifest::parse(body, None) else {
            return Ok(());
        };
        for (key, value) in parsed.annotations() {
            summary.label(key, value);
        }
        open.extend(parsed.manifests().iter().map(|child| Open {
            digest: child.digest.clone(),
            size: child.size,
            platform: child.platform.clone(),
            depth: depth + 1,
            body: None,
        }));
        for blob in parsed.blobs() {
            if seen.insert(blob.digest.clone()) {
                summary.size += blob.size;
                if !media_type::is_nondistributable(&blob.media_type) {
                    summary.blobs.push((blob.digest.clone(), blob.size));
                }
            }
        }
        let Some(image) = parsed.as_image() else {
            return Ok(());
        };
        let config = self.image_config(&image.config)?;
        let platform = platform.or_else(|| config.as_ref().map(ImageConfig::platform));
        // Builders give their attestations the platform unknown/unknown.
        if let Some(platform) = platform.filter(|p| !p.os.is_empty() && p.os != "unknown") {
            let text = platform.to_string();
            if !summary.platforms.contains(&text) {
                summary.platforms.push(text);
            }
        }
        let Some(config) = config else { return Ok(()) };
        summary.created = summary.created.take().or(config.created);
        for (key, value) in config.config.labels {
            summary.label(&key, &value);
        }
        Ok(())
    }

    /// The configuration of an image, if it is one and is what its digest says.
    fn image_config(&self, descriptor: &Descriptor) -> Result<Option<ImageConfig>> {
        let known = [media_type::OCI_CONFIG, media_type::DOCKER_CONFIG];
        if !known.contains(&descriptor.media_type.as_str()) || descriptor.size > CONFIG as u64 {
            return Ok(None);
        }
        let digest = &descriptor.digest;
        let raw = match self.fs.read(&paths::blob_data(digest), CONFIG) {
            Ok((raw, _)) => raw,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if Digest::of(digest.algorithm(), &raw) != *digest {
            return Ok(None);
        }
        Ok(ImageConfig::parse(&raw).ok())
    }
}

impl Summary {
    /// Notes a label, unless there are many already; the first one of a name counts.
    fn label(&mut self, key: &str, value: &str) {
        let (many, long) = LABELS;
        if self.labels.len() < many && key.len() <= long && value.len() <= long {
            self.labels
                .entry(key.to_owned())
                .or_insert_with(|| value.to_owned());
        }
    }
}
