//! What lives in one repository, and what goes.

use std::collections::{HashMap, HashSet};

use vdkr_core::digest::Digest;
use vdkr_core::extension::{Finding, GcOptions};
use vdkr_core::manifest::MAX_MANIFEST;

use super::content::{Named, closure, named};
use super::{ALGORITHMS, NOT_FOLLOWED, finding, trouble};
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
    /// Whether something of it cannot be read that may name anything: then nothing of it goes.
    pub(super) doubtful: bool,
    /// What tags and pins need.
    pub(super) firm: HashSet<Digest>,
    /// What is kept by the history of tags alone, with bytes.
    pub(super) past: HashMap<Digest, u64>,
    /// What is kept by its grace alone, with bytes.
    pub(super) young: HashMap<Digest, u64>,
    pub(super) manifests: usize,
    pub(super) findings: Vec<Finding>,
    /// Whether something stays: a tag, a manifest, a blob, an upload.
    stays: bool,
}

impl Verdict {
    pub(super) fn has_work(&self) -> bool {
        let goes = !self.generations.is_empty() || !self.links.is_empty();
        let trifles = !self.history.is_empty() || !self.dead_tags.is_empty();
        let husks = !self.husks.is_empty();
        self.sure && !self.doubtful && (goes || trifles || husks || !self.stays)
    }

    pub(super) fn will_be_empty(&self) -> bool {
        !self.stays
    }

    /// Takes everything back.
    pub(super) fn keep_all(&mut self) {
        self.stays = true;
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
    named: Named,
}

impl Verdict {
    /// Notes by what something is kept: what of the repository, its content, its bytes.
    fn kept(&mut self, (digest, stored, size): (&Digest, &Digest, u64), firm: bool, past: bool) {
        if firm {
            self.firm.insert(digest.clone());
            self.firm.insert(stored.clone());
        } else if past {
            self.past.insert(stored.clone(), size);
        } else {
            self.young.insert(stored.clone(), size);
        }
    }
}

/// By what is judged.
pub(super) struct Rules<'r> {
    pub(super) options: &'r GcOptions,
    /// Seconds since the epoch.
    pub(super) now: u64,
    /// What `fsck` has put aside, by its digits.
    pub(super) aside: &'r HashSet<String>,
}

/// What keeps things by itself.
#[derive(Default)]
struct Roots {
    /// Tags and pins, with what is left of those whose manifest is not there.
    firm: Vec<Digest>,
    /// The history of tags.
    past: Vec<Digest>,
    /// What is within the grace.
    young: Vec<Digest>,
}

/// Judges a repository. What cannot be read makes it unsure, and then nothing of it goes.
pub(super) fn judge(storage: &Storage, name: &str, rules: &Rules<'_>) -> Verdict {
    let mut verdict = Verdict {
        sure: true,
        ..Verdict::default()
    };
    if let Err(error) = fill(storage, name, rules, &mut verdict) {
        let found = finding(Some(name), None, &trouble(&error));
        verdict.findings.push(found);
        verdict.sure = false;
        verdict.keep_all();
    } else if verdict.doubtful {
        let problem = "nothing of this repository is removed until what is missing or damaged there is \
                       pushed again or deleted";
        verdict.findings.push(finding(Some(name), None, &problem));
        verdict.keep_all();
    }
    verdict
}

fn fill(storage: &Storage, name: &str, rules: &Rules<'_>, verdict: &mut Verdict) -> Result<()> {
    let (options, now) = (rules.options, rules.now);
    let mut revisions = HashMap::new();
    for digest in links(storage, name, &|a| paths::revisions(name, a), verdict)? {
        let link = paths::revision_link(name, &digest);
        match target(storage, &link)? {
            Target::None => verdict.husks.push(paths::parent(&link).to_owned()),
            Target::Torn => {
                verdict.doubtful = true;
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

    let roots = roots(storage, name, rules, &revisions, verdict)?;
    let mut firm = mark(roots.firm, &revisions);
    for needed in absent(storage, name, rules, &firm, &revisions, verdict)? {
        firm.insert(needed);
    }
    let mut past = firm.clone();
    past.extend(mark(roots.past, &revisions));
    let mut marked = past.clone();
    marked.extend(mark(roots.young, &revisions));
    for needed in absent(storage, name, rules, &marked, &revisions, verdict)? {
        past.insert(needed.clone());
        marked.insert(needed);
    }

    let mut dead = HashMap::new();
    for (digest, revision) in revisions {
        if marked.contains(&digest) {
            verdict.stays = true;
            let kept = (&digest, &revision.stored, revision.size);
            verdict.kept(kept, firm.contains(&digest), past.contains(&digest));
            verdict.live.insert(revision.stored);
            verdict.live.insert(digest);
        } else {
            dead.insert(digest, revision);
        }
    }
    verdict.generations = generations(dead);

    let uploading = has_live_upload(storage, name, options, now)?;
    for digest in links(storage, name, &|a| paths::layers_by(name, a), verdict)? {
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
        let (firm, past) = (firm.contains(&digest), past.contains(&digest));
        let size = match storage.fs.stat(&paths::blob_data(&stored)) {
            // Of what tags need the size is of no use.
            _ if firm => 0,
            Ok(stat) => stat.map_or(0, |stat| stat.size),
            Err(_) if used => 0,
            Err(error) => return Err(error.into()),
        };
        if used || uploading || storage.age(&link, now) < options.grace {
            verdict.kept((&digest, &stored, size), firm, past);
            verdict.stays = true;
            verdict.live.insert(stored);
            verdict.live.insert(digest);
            continue;
        }
        verdict.links.push(Gone {
            digest,
            size,
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
    rules: &Rules<'_>,
    revisions: &HashMap<Digest, Revision>,
    verdict: &mut Verdict,
) -> Result<Roots> {
    let (options, now) = (rules.options, rules.now);
    let mut roots = Roots::default();
    odd(storage, name, &paths::tags(name), verdict)?;
    for tag in storage.tag_names(name)?.unwrap_or_default() {
        let link = paths::tag_current(name, &tag);
        let current = match target(storage, &link)? {
            Target::Digest(current) => current,
            Target::Torn => {
                verdict.doubtful = true;
                let problem = "the tag's link holds no digest; push the tag again, or delete it";
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
            let (needed, whole) = closure(storage, &current)?;
            verdict.live.extend(needed.iter().cloned());
            roots.firm.extend(needed);
            verdict.doubtful |= !whole;
        }
        roots.firm.push(current);
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
                roots.past.push(past.digest);
            } else if !kept || age >= options.grace {
                verdict.history.push((tag.clone(), past.digest));
            }
        }
    }
    roots.firm.extend(storage.pins(name)?);
    for (digest, revision) in revisions {
        if revision.age < options.grace {
            roots.young.push(digest.clone());
        }
    }
    Ok(roots)
}

/// What is left of manifests that are needed and that the repository does not have. What `fsck` has put
/// aside may need anything, unless its content is there and tells.
fn absent(
    storage: &Storage,
    name: &str,
    rules: &Rules<'_>,
    marked: &HashSet<Digest>,
    revisions: &HashMap<Digest, Revision>,
    verdict: &mut Verdict,
) -> Result<HashSet<Digest>> {
    let mut wanted: HashSet<&Digest> = HashSet::new();
    for digest in marked {
        match revisions.get(digest) {
            Some(revision) => wanted.extend(&revision.named.children),
            // A pin of something that is not there.
            None if rules.aside.contains(digest.hex()) => drop(wanted.insert(digest)),
            None => {}
        }
    }
    let mut left = HashSet::new();
    for digest in wanted {
        if revisions.contains_key(digest)
            || storage
                .read_link(&paths::layer_link(name, digest))?
                .is_some()
        {
            continue;
        }
        let (needed, whole) = closure(storage, digest)?;
        verdict.doubtful |= !whole && rules.aside.contains(digest.hex());
        verdict.live.extend(needed.iter().cloned());
        left.extend(needed);
    }
    Ok(left)
}

/// Everything that the roots need, and what refers to it.
fn mark(roots: Vec<Digest>, revisions: &HashMap<Digest, Revision>) -> HashSet<Digest> {
    let mut referrers: HashMap<&Digest, Vec<&Digest>> = HashMap::new();
    for (digest, revision) in revisions {
        if let Some(subject) = &revision.named.subject {
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
            open.extend(revision.named.all.iter().cloned());
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
        let named: HashSet<&Digest> = dead
            .values()
            .flat_map(|revision| &revision.named.all)
            .collect();
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
            let mut names = revision.named.all;
            names.push(revision.stored);
            Some(Gone {
                digest,
                size: revision.size,
                reason: if revision.named.subject.is_some() {
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
        named: Named::default(),
    };
    let mut report = |problem: &str| {
        let found = finding(Some(name), Some(digest.as_str()), &problem);
        verdict.findings.push(found);
    };
    if let Some(cached) = storage.manifest_content(&revision.stored)? {
        revision.size = cached.body.len() as u64;
        revision.named = named(&cached.body);
        return Ok(revision);
    }
    // What it named is needed once it is pushed again, and nobody knows what that was.
    verdict.doubtful = true;
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
            revision.named = named(&body);
        }
    }
    Ok(revision)
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
    name: &str,
    dir: &dyn Fn(vdkr_core::digest::Algorithm) -> String,
    verdict: &mut Verdict,
) -> Result<Vec<Digest>> {
    let mut digests = Vec::new();
    for algorithm in ALGORITHMS {
        odd(storage, name, &dir(algorithm), verdict)?;
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

/// Whether a directory has entries that cannot be looked into, such as symbolic links: they may hold
/// names that need anything.
fn odd(storage: &Storage, name: &str, dir: &str, verdict: &mut Verdict) -> Result<()> {
    let mut odd = Vec::new();
    match storage.fs.list(dir, |entry, kind| {
        if kind == Kind::Other {
            odd.push(entry.to_owned());
        }
    }) {
        Err(error) if error.is_not_found() => {}
        listed => listed?,
    }
    for entry in odd {
        verdict.doubtful = true;
        let found = finding(Some(name), Some(&entry), &NOT_FOLLOWED);
        verdict.findings.push(found);
    }
    Ok(())
}
