//! All images at once, with what people want to know of them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use vdkr_core::digest::Digest;
use vdkr_core::extension::ImageEntry;
use vdkr_core::manifest::{self, Descriptor, ImageConfig, media_type};
use vdkr_core::reference::check_repository;

use super::{Result, Storage, paths};

/// Repositories that are read ahead.
const AHEAD: usize = 100;
/// Labels of one image that are shown, and bytes of the longest value.
const LABELS: (usize, usize) = (100, 4096);
/// Longest configuration that is looked into, in bytes.
const CONFIG: usize = 1 << 20;
/// Manifests and blobs of one tag that are added up.
const MANY: usize = 100_000;
/// Bytes of labels after which a page ends.
const PAGE_BYTES: usize = 4 << 20;

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
    /// A manifest below it that was not there, so that this is not all.
    lacks: Option<Digest>,
}

impl Summary {
    fn weight(&self) -> usize {
        let labels = self
            .labels
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let needs = self.children.len() + self.blobs.len();
        512 + labels.sum::<usize>() + self.platforms.len() * 32 + needs * 128
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
        let (mut images, mut bytes) = (Vec::new(), 0);
        loop {
            if names.is_empty() {
                (names, _) = self.catalog(&after, AHEAD)?;
                if names.is_empty() {
                    return Ok((images, false));
                }
            }
            for name in std::mem::take(&mut names) {
                if images.len() >= limit || bytes > PAGE_BYTES {
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
                    if bytes > PAGE_BYTES {
                        return Ok((images, true));
                    }
                    if let Some(entry) = self.image(&name, tag, &pins)? {
                        bytes += entry.labels.values().map(String::len).sum::<usize>();
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
    fn image(&self, name: &str, tag: String, pins: &[Digest]) -> Result<Option<ImageEntry>> {
        let Some(link) = self.read_link(&paths::tag_current(name, &tag))? else {
            return Ok(None);
        };
        let (summary, problem) = match self.summary(name, &link.target)? {
            Some(summary) => {
                let lacks = self.lacks(name, &summary)?;
                let problem = lacks.map(|digest| format!("it lacks {digest}; push it again"));
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
        if summary.lacks.is_some() {
            return Ok(summary.lacks.clone());
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
    fn summary(&self, name: &str, digest: &Digest) -> Result<Option<Arc<Summary>>> {
        // Another repository may have the index without all of its images.
        let key = format!("{name}@{digest}");
        let Some(found) = self.manifest(name, digest)? else {
            return Ok(None);
        };
        if let Some(known) = self.summaries.get(&key) {
            return Ok(Some(known));
        }
        let mut summary = Summary {
            media_type: found.media_type.to_string(),
            ..Summary::default()
        };
        let mut seen = HashSet::new();
        self.summarise(name, &found.body, digest, None, &mut summary, &mut seen)?;
        let summary = Arc::new(summary);
        if summary.lacks.is_none() {
            self.summaries
                .insert(key, Arc::clone(&summary), summary.weight());
        }
        Ok(Some(summary))
    }

    fn summarise(
        &self,
        name: &str,
        body: &[u8],
        digest: &Digest,
        entry: Option<&Descriptor>,
        summary: &mut Summary,
        seen: &mut HashSet<Digest>,
    ) -> Result<()> {
        if !seen.insert(digest.clone()) || seen.len() > MANY {
            return Ok(());
        }
        summary.size += body.len() as u64;
        let Ok(parsed) = manifest::parse(body, None) else {
            return Ok(());
        };
        for (key, value) in parsed.annotations() {
            summary.label(key, value);
        }
        for child in parsed.manifests() {
            match self.manifest(name, &child.digest)? {
                Some(found) => {
                    if !seen.contains(&child.digest) {
                        summary.children.push((child.digest.clone(), child.size));
                    }
                    let (body, digest) = (&found.body, &child.digest);
                    self.summarise(name, body, digest, Some(child), summary, seen)?;
                }
                None if seen.insert(child.digest.clone()) => {
                    summary.size += child.size;
                    // Some builders list blobs in their indexes.
                    if self.blob(name, &child.digest)?.is_some() {
                        summary.children.push((child.digest.clone(), child.size));
                    } else {
                        summary.lacks = Some(child.digest.clone());
                    }
                }
                None => {}
            }
        }
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
        let platform = match entry.and_then(|entry| entry.platform.clone()) {
            Some(platform) => Some(platform),
            None => config.as_ref().map(ImageConfig::platform),
        };
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
