//! Garbage collection, while the registry goes on.
//!
//! What lives is told by names: in each repository its tags, their history within a bound, its pins, and
//! whatever was made or asked for within the grace; through indexes, manifests and referrers (a manifest
//! keeps those that have it as their subject, not the other way round). See [`judge`]. Then, one
//! repository after the other:
//!
//! 1. A repository that has something to lose is judged a second time with nobody else changing it, and
//!    loses it in waves, each durable before the next: indexes before the manifests they name, manifests
//!    before blobs. A crash between any two leaves nothing that is served without all it needs.
//! 2. At the end, stored files go that no repository has. What a push links meanwhile is claimed (see
//!    [`super::uses`]) and stays.
//!
//! What cannot be read is kept, reported, and stops nothing else.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::os::fd::OwnedFd;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::extension::{Finding, GcItem, GcOptions, GcReport, GcRepository, MAX_NAMED};
use vdkr_core::reference::check_repository;

use super::{Result, Storage, StorageError, now, paths};
use crate::fs::Kind;
use judge::{Rules, Verdict};

mod content;
mod judge;

/// Both algorithms that content is stored by.
pub(super) const ALGORITHMS: [Algorithm; 2] = [Algorithm::Sha256, Algorithm::Sha512];
/// What is said of an entry that is neither a file nor a directory.
pub(super) const NOT_FOLLOWED: &str = "it is a symbolic link or has an unreadable name; what lies \
                                       behind it is neither served nor known, and may need anything";
/// How deep repositories lie at most; names have 255 bytes.
const DEEPEST: usize = 128;

/// One run.
struct Run<'s> {
    storage: &'s Storage,
    options: GcOptions,
    now: u64,
    stop: &'s AtomicBool,
    /// What `fsck` has put aside, by its digits.
    aside: HashSet<String>,
    /// Content that some repository has.
    live: HashSet<Digest>,
    /// What of it tags and pins need.
    firm: HashSet<Digest>,
    /// What is kept by the history of tags alone in some repository, with bytes.
    past: HashMap<Digest, u64>,
    /// What is kept by its grace alone in some repository, with bytes.
    young: HashMap<Digest, u64>,
    /// Whether `live` is all of it.
    sure: bool,
    report: GcReport,
}

impl Storage {
    /// Removes what nothing names, or says what would go. Blocks until done; `stop` ends it early, in
    /// a legal state.
    ///
    /// One run at a time: another one waits. [`StorageError::Busy`] when another process is at it.
    pub fn collect_garbage(&self, options: &GcOptions, stop: &AtomicBool) -> Result<GcReport> {
        let begun = Instant::now();
        let mut run = Run {
            storage: self,
            options: *options,
            now: now(),
            stop,
            aside: self.aside()?,
            live: HashSet::new(),
            firm: HashSet::new(),
            past: HashMap::new(),
            young: HashMap::new(),
            sure: true,
            report: GcReport {
                dry_run: options.dry_run,
                grace: options.grace,
                ..GcReport::default()
            },
        };
        if options.dry_run {
            run.all()?;
        } else {
            let _turn = self.maintenance()?;
            let _collecting = self.uses.collect();
            // Whoever began before does not claim: what they link is seen when they are done.
            self.locks.quiesce();
            run.all()?;
        }
        let mut report = run.sums();
        report.milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }

    /// The right to do maintenance on this storage, for one thread of one process.
    pub(super) fn maintenance(&self) -> Result<Maintenance<'_>> {
        let guard = self
            .maintenance
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Tests that decide the order of operations are alone anyway.
        let lock = self.fs.try_lock_dir(paths::OURS, true)?;
        let Some(lock) = lock else {
            return Err(StorageError::Busy);
        };
        Ok(Maintenance {
            _lock: lock,
            _guard: guard,
        })
    }

    /// The digits of all digests that `fsck` has moved something of to the quarantine.
    fn aside(&self) -> Result<HashSet<String>> {
        let mut aside = HashSet::new();
        match self.fs.list(paths::QUARANTINE, |name, _| {
            // A file's name begins with its algorithm, a link's with that word.
            aside.extend(name.split('-').nth(1).map(str::to_owned));
        }) {
            Err(error) if error.is_not_found() => {}
            listed => listed?,
        }
        Ok(aside)
    }

    /// The names of all repositories, those without manifests included, and what could not be read.
    pub(super) fn all_repositories(&self) -> (Vec<String>, Vec<Finding>) {
        let (mut names, mut findings) = (Vec::new(), Vec::new());
        self.walk("", DEEPEST, &mut names, &mut findings);
        (names, findings)
    }

    fn walk(&self, name: &str, depth: usize, names: &mut Vec<String>, findings: &mut Vec<Finding>) {
        let dir = match name {
            "" => paths::REPOSITORIES.to_owned(),
            name => paths::repository(name),
        };
        let (mut here, mut below) = (false, Vec::new());
        let listed = self.fs.list(&dir, |entry, kind| {
            if kind == Kind::Other {
                let repository = Some(name).filter(|name| !name.is_empty());
                findings.push(finding(repository, Some(entry), &NOT_FOLLOWED));
            } else if kind == Kind::Directory {
                if entry.starts_with('_') {
                    here = true;
                } else {
                    below.push(entry.to_owned());
                }
            }
        });
        match listed {
            Err(error) if error.is_not_found() => return,
            Err(error) => {
                findings.push(finding(Some(name), None, &trouble(&error.into())));
                return;
            }
            Ok(()) => {}
        }
        if here && !name.is_empty() {
            names.push(name.to_owned());
        }
        if depth == 0 {
            let problem = "its directories lie too deep";
            findings.push(finding(Some(name), None, &problem));
            return;
        }
        below.sort_unstable();
        for entry in below {
            let name = match name {
                "" => entry,
                name => format!("{name}/{entry}"),
            };
            self.walk(&name, depth - 1, names, findings);
        }
    }

    /// Removes the directories of a repository that has nothing left, and those above that hold nothing
    /// else. To be called with the repository excluded. `true`: it is gone.
    pub(super) fn remove_if_empty(&self, repository: &str) -> bool {
        let is_empty = |dir: &str| {
            let mut empty = true;
            let listed = self.fs.list(dir, |_, _| empty = false);
            match listed {
                Err(error) => error.is_not_found(),
                Ok(()) => empty,
            }
        };
        let remove = |dir: &str| {
            self.durable.forget_dir(dir);
            self.fs.remove_dir(dir).is_ok()
        };
        let manifests = paths::manifests(repository);
        let by_algorithm = |of: &dyn Fn(Algorithm) -> String| ALGORITHMS.map(of);
        let revisions = by_algorithm(&|algorithm| paths::revisions(repository, algorithm));
        if !is_empty(&paths::tags(repository)) || !revisions.iter().all(|dir| is_empty(dir)) {
            return false;
        }
        for dir in &revisions {
            remove(dir);
        }
        remove(&format!("{manifests}/revisions"));
        remove(&paths::tags(repository));
        remove(&manifests);
        let layers = by_algorithm(&|algorithm| paths::layers_by(repository, algorithm));
        let pins = by_algorithm(&|algorithm| paths::pins(repository, algorithm));
        let uploads = paths::uploads(repository);
        if !layers.iter().chain(&pins).all(|dir| is_empty(dir)) || !is_empty(&uploads) {
            return false;
        }
        for dir in layers.iter().chain(&pins) {
            remove(dir);
        }
        remove(&paths::layers(repository));
        let deleted = paths::deleted(repository);
        self.durable.forget(&deleted);
        let _ = self.remove_tree(&deleted);
        remove(&format!("{}/_vdkr/pins", paths::repository(repository)));
        remove(&format!("{}/_vdkr", paths::repository(repository)));
        remove(&uploads);
        let dir = paths::repository(repository);
        let gone = remove(&dir);
        let mut above = paths::parent(&dir);
        while gone && above != paths::REPOSITORIES && remove(above) {
            above = paths::parent(above);
        }
        gone
    }
}

/// The right to do maintenance, as long as it lives.
pub(super) struct Maintenance<'s> {
    _lock: OwnedFd,
    _guard: std::sync::MutexGuard<'s, ()>,
}

impl Run<'_> {
    fn all(&mut self) -> Result<()> {
        let (names, findings) = self.storage.all_repositories();
        // Repositories that cannot be seen may have anything.
        self.sure &= findings.is_empty();
        self.report.findings.extend(findings);
        for name in names {
            self.go_on()?;
            self.repository(&name);
        }
        self.go_on()?;
        if self.sure {
            self.blobs()?;
        }
        Ok(())
    }

    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(StorageError::Stopped);
        }
        Ok(())
    }

    /// The report, with the sums over all repositories.
    fn sums(mut self) -> GcReport {
        let firm = &self.firm;
        self.past.retain(|digest, _| !firm.contains(digest));
        let past = &self.past;
        let only = |digest: &Digest| !firm.contains(digest) && !past.contains_key(digest);
        self.young.retain(|digest, _| only(digest));
        let report = &mut self.report;
        report.young = self.young.len();
        report.young_bytes = self.young.values().sum();
        report.history = self.past.len();
        report.history_bytes = self.past.values().sum();
        self.report
    }

    fn repository(&mut self, name: &str) {
        let rules = Rules {
            options: &self.options,
            now: self.now,
            aside: &self.aside,
        };
        let mut verdict = judge::judge(self.storage, name, &rules);
        let legal = check_repository(name).is_ok();
        let sweeps = verdict.has_work() && !self.options.dry_run;
        // What looks wrong may only be half of a push that went on meanwhile.
        if legal && (sweeps || !verdict.findings.is_empty()) {
            match self.storage.locks.exclude(name) {
                Ok(_alone) => {
                    verdict = judge::judge(self.storage, name, &rules);
                    if verdict.has_work() && !self.options.dry_run {
                        if let Err(error) = self.sweep(name, &mut verdict) {
                            // What was removed may come back with the next power cut: its content
                            // stays.
                            self.sure = false;
                            let found = finding(Some(name), None, &trouble(&error));
                            self.report.findings.push(found);
                        }
                        if self.storage.remove_if_empty(name) {
                            self.report.emptied.push(name.to_owned());
                        }
                    }
                }
                // Somebody else is at it. What it has is known, and nothing of it goes.
                Err(error) => {
                    verdict.keep_all();
                    let found = finding(Some(name), None, &trouble(&error));
                    verdict.findings.push(found);
                }
            }
        }
        if self.options.dry_run && legal && verdict.has_work() && verdict.will_be_empty() {
            self.report.emptied.push(name.to_owned());
        }
        self.report.repositories += 1;
        self.report.manifests += verdict.manifests;
        self.firm.extend(verdict.firm.drain());
        self.past.extend(verdict.past.drain());
        self.young.extend(verdict.young.drain());
        self.sure &= verdict.sure;
        if legal {
            self.count(name, &verdict);
        } else {
            verdict.keep_all();
        }
        self.report.findings.append(&mut verdict.findings);
        self.report.findings.truncate(MAX_NAMED);
        self.live.extend(verdict.live);
    }

    fn count(&mut self, name: &str, verdict: &Verdict) {
        let report = &mut self.report;
        let mut sum = GcRepository {
            repository: name.to_owned(),
            ..GcRepository::default()
        };
        let manifests = verdict.generations.iter().flatten();
        for gone in manifests.clone().chain(&verdict.links) {
            sum.bytes += gone.size;
            if report.removed.len() < MAX_NAMED {
                report.removed.push(GcItem {
                    repository: Some(name.to_owned()),
                    digest: gone.digest.clone(),
                    size: gone.size,
                    reason: gone.reason.to_owned(),
                });
            }
        }
        sum.manifests = manifests.count();
        sum.blobs = verdict.links.len();
        report.removed_manifests += sum.manifests;
        report.removed_links += sum.blobs;
        if sum.manifests + sum.blobs > 0 {
            report.by_repository.push(sum);
        }
    }

    /// Removes what was judged, from a repository that nobody else changes.
    fn sweep(&self, name: &str, verdict: &mut Verdict) -> Result<()> {
        for tag in &verdict.dead_tags {
            // Remains of a tag: its directory without a link.
            let dir = paths::tag(name, tag);
            self.storage.durable.forget(&dir);
            self.storage.remove_tree(&dir)?;
        }
        let mut dirs = BTreeSet::new();
        for (tag, digest) in &verdict.history {
            self.drop_link(&paths::tag_index_link(name, tag, digest), &mut dirs)?;
        }
        // Which of these removals survives a power cut does not matter: nothing relies on them.
        dirs.clear();
        let mut done = Vec::new();
        for generation in std::mem::take(&mut verdict.generations) {
            let mut gone = Vec::new();
            for manifest in generation {
                let claims = self.storage.uses.claims();
                if claims.has(&manifest.digest) || verdict.live.contains(&manifest.digest) {
                    // What it names stays as well: later generations and blobs ask for `live`.
                    verdict.live.insert(manifest.digest);
                    verdict.live.extend(manifest.names);
                    continue;
                }
                self.drop_link(&paths::revision_link(name, &manifest.digest), &mut dirs)?;
                gone.push(manifest);
            }
            self.sync(&mut dirs)?;
            done.push(gone);
        }
        verdict.generations = done;
        let mut gone = Vec::new();
        for link in std::mem::take(&mut verdict.links) {
            let claims = self.storage.uses.claims();
            if claims.has(&link.digest) || verdict.live.contains(&link.digest) {
                verdict.live.insert(link.digest);
                verdict.live.extend(link.names);
                continue;
            }
            self.drop_link(&paths::layer_link(name, &link.digest), &mut dirs)?;
            gone.push(link);
        }
        self.sync(&mut dirs)?;
        verdict.links = gone;
        for dir in &verdict.husks {
            self.storage.durable.forget_dir(dir);
            let _ = self.storage.fs.remove_dir(dir);
        }
        self.storage.forget_deleted(name)
    }

    /// Removes a link with its directory. `dirs` are to be synced for it to be durable.
    fn drop_link(&self, path: &str, dirs: &mut BTreeSet<String>) -> Result<()> {
        let storage = self.storage;
        let dir = paths::parent(path);
        storage.durable.forget_file(path);
        storage.links.remove(path);
        storage.fs.remove_file(path)?;
        // With the directory's own name gone, the link in it is gone as well.
        if !matches!(storage.fs.remove_dir(dir), Ok(true)) {
            dirs.insert(dir.to_owned());
        }
        dirs.insert(paths::parent(dir).to_owned());
        Ok(())
    }

    fn sync(&self, dirs: &mut BTreeSet<String>) -> Result<()> {
        let mut batch = self.storage.durable.batch();
        for dir in std::mem::take(dirs) {
            batch.removed_from(&dir);
        }
        Ok(batch.commit()?)
    }

    /// Removes stored files that no repository has.
    fn blobs(&mut self) -> Result<()> {
        for algorithm in ALGORITHMS {
            let top = format!("{}/{}", paths::BLOBS, algorithm.name());
            for prefix in self.directories(&top) {
                self.go_on()?;
                let prefix = format!("{top}/{prefix}");
                let before = self.report.removed_blobs;
                let names = self.directories(&prefix);
                for name in &names {
                    if let Ok(digest) = Digest::parse(&format!("{}:{name}", algorithm.name())) {
                        self.blob(&digest);
                    }
                }
                let shrunk = names.is_empty() || self.report.removed_blobs > before;
                if shrunk && !self.options.dry_run && self.directories(&prefix).is_empty() {
                    // Forgotten first: whoever makes it again must make it durable.
                    self.storage.durable.forget_dir(&prefix);
                    let _ = self.storage.fs.remove_dir(&prefix);
                }
            }
        }
        Ok(())
    }

    fn blob(&mut self, digest: &Digest) {
        if self.live.contains(digest) {
            return;
        }
        let storage = self.storage;
        let path = paths::blob_data(digest);
        let young = storage.age(&path, now()) < self.options.grace;
        let size = match storage.fs.stat(&path) {
            Ok(Some(stat)) if stat.kind == Kind::File => Some(stat.size),
            Ok(None) => None,
            // A symbolic link or the like: whoever put it there may want it.
            Ok(Some(_)) => return,
            Err(error) => {
                let name = Some(digest.as_str());
                self.report
                    .findings
                    .push(finding(None, name, &trouble(&error.into())));
                return;
            }
        };
        if young {
            self.young.insert(digest.clone(), size.unwrap_or(0));
            return;
        }
        if !self.options.dry_run {
            let claims = storage.uses.claims();
            if claims.has(digest) {
                return;
            }
            storage.durable.forget_file(&path);
            if let Err(error) = storage.fs.remove_file(&path) {
                let name = Some(digest.as_str());
                self.report
                    .findings
                    .push(finding(None, name, &trouble(&error.into())));
                return;
            }
            drop(claims);
            storage.manifests.remove(digest);
            storage.subjects.remove(digest);
            let _ = storage.fs.remove_dir(paths::parent(&path));
        }
        let Some(size) = size else { return };
        let report = &mut self.report;
        report.removed_blobs += 1;
        report.freed_bytes += size;
        if report.removed.len() < MAX_NAMED {
            report.removed.push(GcItem {
                repository: None,
                digest: digest.clone(),
                size,
                reason: "no repository has it".to_owned(),
            });
        }
    }

    fn directories(&mut self, dir: &str) -> Vec<String> {
        let mut names = Vec::new();
        let listed = self.storage.fs.list(dir, |name, kind| {
            if kind == Kind::Directory {
                names.push(name.to_owned());
            }
        });
        match listed {
            Err(error) if !error.is_not_found() => {
                self.report
                    .findings
                    .push(finding(None, None, &trouble(&error.into())));
            }
            _ => {}
        }
        names.sort_unstable();
        names
    }
}

/// An error as a report shows it: paths stay in the log, for reports go to clients.
pub(super) fn trouble(error: &StorageError) -> String {
    tracing::warn!(%error, "maintenance has met an error");
    match error {
        StorageError::Fs(error) => format!("cannot {} it: {}", error.action, error.errno),
        StorageError::Locked(_) => "another process keeps it locked; see the log".to_owned(),
        other => other.to_string(),
    }
}

/// Something that was found wrong.
pub(super) fn finding(
    repository: Option<&str>,
    name: Option<&str>,
    problem: &dyn std::fmt::Display,
) -> Finding {
    Finding {
        repository: repository.map(str::to_owned),
        name: name.map(str::to_owned),
        problem: problem.to_string(),
    }
}
