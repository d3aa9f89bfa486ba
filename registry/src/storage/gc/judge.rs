//! What lives in one repository, and what goes.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use vdkr_core::digest::Digest;
use vdkr_core::extension::{Finding, GcOptions};
use vdkr_core::manifest::{self, MAX_DESCRIPTORS, MAX_MANIFEST};

use super::{ALGORITHMS, finding, trouble};
use crate::fs::{FsError, Kind};
use crate::storage::{Result, Storage, StorageError, paths};

/// Something that a repository loses.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) reason: &'static str,
    /// What it names, or points to.
    pub(super) names: Vec<Digest>,
}

/// What becomes of a repository.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Manifests that go, those that name others before them.
    pub(super) generations: Vec<Vec<Gone>>,
    /// Blobs that go.
    pub(super) links: Vec<Gone>,
    /// Entries of tags' histories that go.
    pub(super) history: Vec<(String, Digest)>,
    /// Directories of tags without a link.
    pub(super) dead_tags: Vec<String>,
    /// Empty directories of links.
    pub(super) husks: Vec<String>,
    /// Content that the repository has after that.
    pub(super) live: HashSet<Digest>,
    /// Whether `live` is all of it.
    pub(super) sure: bool,
    /// Unused, and within the grace.
    pub(super) young: usize,
    pub(super) manifests: usize,
    pub(super) findings: Vec<Finding>,
    /// Whether something stays: a tag, a manifest, a blob, an upload.
    stays: bool,
}

impl Verdict {
    pub(super) fn has_work(&self) -> bool {
        let goes = !self.generations.is_empty() || !self.links.is_empty();
        let trifles = !self.history.is_empty() || !self.dead_tags.is_empty();
        self.sure && (goes || trifles || !self.husks.is_empty() || !self.stays)
    }

    pub(super) fn will_be_empty(&self) -> bool {
        !self.stays
    }

    /// Takes everything back.
    pub(super) fn keep_all(&mut self) {
        for gone in self
            .generations
            .drain(..)
            .flatten()
            .chain(self.links.drain(..))
        {
            self.live.insert(gone.digest);
            self.live.extend(gone.names);
        }
    }
}

/// A manifest that the repository has.
struct Revision {
    /// Where its content lies; another algorithm's digest when the tree was written so.
    stored: Digest,
    size: u64,
    age: u64,
    names: Vec<Digest>,
    subject: Option<Digest>,
}

/// Judges a repository. What cannot be read makes it unsure, and then nothing of it goes.
pub(super) fn judge(storage: &Storage, name: &str, options: &GcOptions, now: u64) -> Verdict {
    let mut verdict = Verdict {
        sure: true,
        ..Verdict::default()
    };
    if let Err(error) = fill(storage, name, options, now, &mut verdict) {
        let found = finding(Some(name), None, &trouble(&error));
        verdict.findings.push(found);
        verdict.sure = false;
        verdict.stays = true;
        verdict.keep_all();
    }
    verdict
}

fn fill(
    storage: &Storage,
    name: &str,
    options: &GcOptions,
    now: u64,
    verdict: &mut Verdict,
) -> Result<()> {
    let mut revisions = HashMap::new();
    for digest in links(storage, &|a| paths::revisions(name, a))? {
        let link = paths::revision_link(name, &digest);
        match target(storage, &link)? {
            Target::None => verdict.husks.push(paths::parent(&link).to_owned()),
            Target::Torn => {
                verdict.stays = true;
                verdict.findings.push(torn(name, &digest));
                verdict.live.insert(digest);
            }
            Target::Digest(stored) => {
                let age = storage.age(&link, now);
                let revision = read(storage, name, &digest, stored, age, verdict)?;
                revisions.insert(digest, revision);
            }
        }
    }
    verdict.manifests = revisions.len();

    let roots = roots(storage, name, options, now, &revisions, verdict)?;
    let marked = mark(roots, &revisions);

    let mut dead = HashMap::new();
    for (digest, revision) in revisions {
        if marked.contains(&digest) {
            verdict.stays = true;
            verdict.live.insert(revision.stored);
            verdict.live.insert(digest);
        } else {
            dead.insert(digest, revision);
        }
    }
    verdict.generations = generations(dead);

    let uploading = has_live_upload(storage, name, options, now)?;
    for digest in links(storage, &|a| paths::layers_by(name, a))? {
        let link = paths::layer_link(name, &digest);
        let stored = match target(storage, &link)? {
            Target::None => {
                verdict.husks.push(paths::parent(&link).to_owned());
                continue;
            }
            Target::Torn => {
                verdict.stays = true;
                verdict.findings.push(torn(name, &digest));
                verdict.live.insert(digest);
                continue;
            }
            Target::Digest(stored) => stored,
        };
        let used = marked.contains(&digest);
        if used || uploading || storage.age(&link, now) < options.grace {
            verdict.young += usize::from(!used);
            verdict.stays = true;
            verdict.live.insert(stored);
            verdict.live.insert(digest);
            continue;
        }
        let size = storage.fs.stat(&paths::blob_data(&stored))?;
        verdict.links.push(Gone {
            digest,
            size: size.map_or(0, |stat| stat.size),
            reason: "no manifest of the repository names it",
            names: vec![stored],
        });
    }
    let mut sessions = false;
    match storage
        .fs
        .list(&paths::uploads(name), |_, _| sessions = true)
    {
        Err(error) if error.is_not_found() => {}
        listed => listed?,
    }
    verdict.stays |= sessions;
    Ok(())
}

/// What keeps things by itself: tags, their history, pins, and what is young.
fn roots(
    storage: &Storage,
    name: &str,
    options: &GcOptions,
    now: u64,
    revisions: &HashMap<Digest, Revision>,
    verdict: &mut Verdict,
) -> Result<Vec<Digest>> {
    let mut roots = Vec::new();
    for tag in storage.tag_names(name)?.unwrap_or_default() {
        let link = paths::tag_current(name, &tag);
        let current = match target(storage, &link)? {
            Target::Digest(current) => current,
            Target::Torn => {
                verdict.stays = true;
                let problem = "the tag's link holds no digest; push the tag again";
                verdict
                    .findings
                    .push(finding(Some(name), Some(&tag), &problem));
                continue;
            }
            Target::None => {
                verdict.dead_tags.push(tag);
                continue;
            }
        };
        verdict.stays = true;
        if !revisions.contains_key(&current) {
            let problem =
                format!("the tag points to {current}, which the repository does not have");
            verdict
                .findings
                .push(finding(Some(name), Some(&tag), &problem));
            // What is there of it waits for the next push, which needs to send only the rest.
            for needed in closure(storage, &current)? {
                verdict.live.insert(needed.clone());
                roots.push(needed);
            }
        }
        roots.push(current);
        let past = storage.past(name, &tag)?.unwrap_or_default();
        let mut rank = 0;
        for past in past {
            let Some(until) = past.until else { continue };
            let age = now.saturating_sub(until);
            let there = revisions.contains_key(&past.digest);
            rank += usize::from(there);
            let kept =
                age < options.grace || (rank <= options.history && age < options.history_age);
            if there && kept {
                roots.push(past.digest);
            } else if !kept || age >= options.grace {
                verdict.history.push((tag.clone(), past.digest));
            }
        }
    }
    roots.extend(storage.pins(name)?);
    for (digest, revision) in revisions {
        if revision.age < options.grace {
            roots.push(digest.clone());
        }
    }
    Ok(roots)
}

/// What a manifest needs that the repository has no link to, itself included, as far as its content is
/// there.
fn closure(storage: &Storage, digest: &Digest) -> Result<HashSet<Digest>> {
    let mut found = HashSet::new();
    let mut open = vec![digest.clone()];
    while let Some(digest) = open.pop() {
        if found.len() > MAX_DESCRIPTORS || !found.insert(digest.clone()) {
            continue;
        }
        // Most of these are layers; only what is short enough is read.
        let stat = storage.fs.stat(&paths::blob_data(&digest))?;
        if stat.is_some_and(|stat| stat.size <= MAX_MANIFEST as u64)
            && let Some(cached) = storage.manifest_content(&digest)?
            && manifest::parse(&cached.body, None).is_ok()
        {
            open.extend(named(&cached.body).0);
        }
    }
    Ok(found)
}

/// Everything that the roots need, and what refers to it.
fn mark(roots: Vec<Digest>, revisions: &HashMap<Digest, Revision>) -> HashSet<Digest> {
    let mut referrers: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
    for (digest, revision) in revisions {
        if let Some(subject) = &revision.subject {
            referrers.entry(subject).or_default().push(digest);
        }
    }
    let mut marked = HashSet::new();
    let mut open = roots;
    while let Some(digest) = open.pop() {
        if marked.contains(&digest) {
            continue;
        }
        if let Some(revision) = revisions.get(&digest) {
            open.extend(revision.names.iter().cloned());
        }
        open.extend(
            referrers
                .get(&digest)
                .into_iter()
                .flatten()
                .copied()
                .cloned(),
        );
        marked.insert(digest);
    }
    marked
}

/// Sorts manifests that go: each before those that it names.
fn generations(mut dead: HashMap<Digest, Revision>) -> Vec<Vec<Gone>> {
    let mut generations = Vec::new();
    while !dead.is_empty() {
        let named: HashSet<&Digest> = dead.values().flat_map(|revision| &revision.names).collect();
        let mut first: Vec<Digest> = dead
            .keys()
            .filter(|digest| !named.contains(digest))
            .cloned()
            .collect();
        if first.is_empty() {
            // Damaged content that names itself in a circle.
            first = dead.keys().cloned().collect();
        }
        first.sort_unstable();
        let generation = first.into_iter().filter_map(|digest| {
            let revision = dead.remove(&digest)?;
            let mut names = revision.names;
            names.push(revision.stored);
            Some(Gone {
                digest,
                size: revision.size,
                reason: if revision.subject.is_some() {
                    "no tag names it, and what it refers to is gone or unused"
                } else {
                    "no tag, history or index names it"
                },
                names,
            })
        });
        generations.push(generation.collect());
    }
    generations
}

fn read(
    storage: &Storage,
    name: &str,
    digest: &Digest,
    stored: Digest,
    age: u64,
    verdict: &mut Verdict,
) -> Result<Revision> {
    let mut revision = Revision {
        stored,
        size: 0,
        age,
        names: Vec::new(),
        subject: None,
    };
    let mut report = |problem: &str| {
        let found = finding(Some(name), Some(digest.as_str()), &problem);
        verdict.findings.push(found);
    };
    if let Some(cached) = storage.manifest_content(&revision.stored)? {
        revision.size = cached.body.len() as u64;
        (revision.names, revision.subject) = named(&cached.body);
        return Ok(revision);
    }
    match storage
        .fs
        .read(&paths::blob_data(&revision.stored), MAX_MANIFEST + 1)
    {
        Err(error) if error.is_not_found() => report("the manifest's content is missing"),
        Err(error) => return Err(error.into()),
        Ok((body, stat)) => {
            report("the manifest's content is damaged; fsck says what to push again");
            revision.size = stat.size;
            // What it still says may be right: more is kept for it, never less.
            (revision.names, revision.subject) = named(&body);
        }
    }
    Ok(revision)
}

/// What a manifest names, and its subject. Of one that is of no known form, every digest in it: schemas
/// of old are still served, and those of tomorrow may be.
fn named(body: &[u8]) -> (Vec<Digest>, Option<Digest>) {
    if let Ok(parsed) = manifest::parse(body, None) {
        let blobs = parsed.blobs().map(|blob| blob.digest.clone());
        let children = parsed.manifests().iter().map(|child| child.digest.clone());
        let subject = parsed.subject().map(|subject| subject.digest.clone());
        return (blobs.chain(children).collect(), subject);
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
    (found, None)
}

/// Whether a push into the repository is under way: a session that somebody has touched lately.
fn has_live_upload(storage: &Storage, name: &str, options: &GcOptions, now: u64) -> Result<bool> {
    let uploads = paths::uploads(name);
    let mut sessions = Vec::new();
    match storage.fs.list(&uploads, |id, kind| {
        if kind == Kind::Directory {
            sessions.push(format!("{uploads}/{id}/data"));
        }
    }) {
        Err(error) if error.is_not_found() => {}
        listed => listed?,
    }
    Ok(sessions
        .iter()
        .any(|data| storage.age(data, now) < options.grace))
}

enum Target {
    /// There is no link.
    None,
    /// There is one that holds no digest.
    Torn,
    Digest(Digest),
}

fn target(storage: &Storage, link: &str) -> Result<Target> {
    if let Some(found) = storage.read_link(link)? {
        return Ok(Target::Digest(found.target));
    }
    Ok(match storage.fs.stat(link)? {
        None => Target::None,
        Some(_) => Target::Torn,
    })
}

fn torn(name: &str, digest: &Digest) -> Finding {
    let problem = "its link holds no digest; fsck says what to push again";
    finding(Some(name), Some(digest.as_str()), &problem)
}

/// The digests that have a directory beneath these.
fn links(
    storage: &Storage,
    dir: &dyn Fn(vdkr_core::digest::Algorithm) -> String,
) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in ALGORITHMS {
        let listed: std::result::Result<(), FsError> =
            storage.fs.list(&dir(algorithm), |name, kind| {
                if kind == Kind::Directory {
                    digests.extend(Digest::parse(&format!("{}:{name}", algorithm.name())));
                }
            });
        match listed {
            Err(error) if error.is_not_found() => {}
            listed => listed.map_err(StorageError::from)?,
        }
    }
    Ok(digests)
}
