//! Checking what is stored: every file against its digest, every name against what it needs.
//!
//! What is not what its name says is moved to the quarantine, where nobody serves it and nothing is lost;
//! the next push of the image brings the content back.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use vdkr_core::digest::{Digest, Hasher};
use vdkr_core::extension::{Finding, FsckOptions, FsckReport, Incomplete, MAX_NAMED, Quarantined};
use vdkr_core::manifest::{self, media_type};

use super::gc::{ALGORITHMS, finding, trouble};
use super::{Result, Storage, StorageError, make_dirs, now, paths};
use crate::fs::{FsError, Kind, Stamp};

/// How much of a file is read at once.
const PIECE: usize = 1 << 20;
/// Missing digests that are named for one image.
const NAMED: usize = 100;
/// How deep an index is looked through for what its images lack; what is deeper is judged by itself.
const DEEPEST: usize = 16;

struct Check<'s> {
    storage: &'s Storage,
    options: FsckOptions,
    stop: &'s AtomicBool,
    /// Damaged content. In a dry run it is still there.
    bad: HashSet<Digest>,
    report: FsckReport,
}

impl Storage {
    /// Hashes everything that is stored, and checks that every image is whole. Blocks until done; `stop`
    /// ends it early. The registry goes on meanwhile.
    pub fn check(&self, options: &FsckOptions, stop: &AtomicBool) -> Result<FsckReport> {
        let begun = Instant::now();
        let mut check = Check {
            storage: self,
            options: *options,
            stop,
            bad: HashSet::new(),
            report: FsckReport {
                dry_run: options.dry_run,
                ..FsckReport::default()
            },
        };
        {
            let _turn = self.maintenance()?;
            check.files()?;
        }
        check.names()?;
        let mut report = check.report;
        report.milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        Ok(report)
    }
}

/// What an image is without.
#[derive(Clone, Debug, Default)]
struct Lack {
    /// What is missing or damaged, of the images of an index as well.
    missing: Vec<Digest>,
    /// Whether it lacks something itself, so that nobody can pull it whole.
    own: bool,
    /// What it names with another size than it has.
    sizes: Vec<Digest>,
}

impl Lack {
    /// Forgets what is not told: what indexes over indexes lack must not fill the memory.
    fn shorten(&mut self) {
        self.missing.sort_unstable();
        self.missing.dedup();
        self.missing.truncate(NAMED);
        self.sizes.truncate(1);
    }
}

/// What hashing a file showed.
enum Hashed {
    Right(u64),
    Wrong {
        size: u64,
        stamp: Stamp,
        problem: String,
    },
    Gone,
}

impl Check<'_> {
    fn go_on(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(StorageError::Stopped);
        }
        Ok(())
    }

    fn found(&mut self, found: Finding) {
        self.report.problems += 1;
        if self.report.findings.len() < MAX_NAMED {
            self.report.findings.push(found);
        }
    }

    /// Every stored file against its digest.
    fn files(&mut self) -> Result<()> {
        let mut buffer = vec![0; PIECE];
        for algorithm in ALGORITHMS {
            let top = format!("{}/{}", paths::BLOBS, algorithm.name());
            for prefix in self.directories(&top)? {
                for name in self.directories(&format!("{top}/{prefix}"))? {
                    self.go_on()?;
                    let Ok(digest) = Digest::parse(&format!("{}:{name}", algorithm.name())) else {
                        continue;
                    };
                    match self.file(&digest, &mut buffer) {
                        Ok(()) => {}
                        Err(StorageError::Stopped) => return Err(StorageError::Stopped),
                        // One file that cannot be looked at stops nothing else.
                        Err(error) => {
                            let name = Some(digest.as_str());
                            self.found(finding(None, name, &trouble(&error)));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn file(&mut self, digest: &Digest, buffer: &mut [u8]) -> Result<()> {
        let path = paths::blob_data(digest);
        let (size, stamp, problem) = match self.hash(digest, buffer)? {
            Hashed::Gone => return Ok(()),
            Hashed::Right(size) => {
                self.report.files += 1;
                self.report.bytes += size;
                return Ok(());
            }
            Hashed::Wrong {
                size,
                stamp,
                problem,
            } => (size, stamp, problem),
        };
        self.report.files += 1;
        self.report.bytes += size;
        let mut moved = None;
        if !self.options.dry_run {
            match self.quarantine(digest, &path, stamp) {
                Ok(Some(to)) => moved = Some(to),
                // Pushed again meanwhile, or gone.
                Ok(None) => return Ok(()),
                Err(error) => {
                    let name = Some(digest.as_str());
                    self.found(finding(None, name, &trouble(&error)));
                }
            }
        }
        self.bad.insert(digest.clone());
        self.report.problems += 1;
        if self.report.quarantined.len() < MAX_NAMED {
            self.report.quarantined.push(Quarantined {
                digest: digest.clone(),
                size,
                problem,
                path: moved,
            });
        }
        Ok(())
    }

    fn hash(&self, digest: &Digest, buffer: &mut [u8]) -> Result<Hashed> {
        let path = paths::blob_data(digest);
        let (file, stat) = match self.storage.fs.open_file(&path) {
            Ok(opened) => opened,
            Err(error) if error.is_not_found() => return Ok(Hashed::Gone),
            Err(error) => return Err(error.into()),
        };
        let wrong = |problem: String| Hashed::Wrong {
            size: stat.size,
            stamp: stat.stamp,
            problem,
        };
        let (mut hasher, mut at) = (Hasher::new(digest.algorithm()), 0);
        loop {
            self.go_on()?;
            match file.read_at(buffer, at) {
                Ok(0) => break,
                Ok(n) => {
                    hasher.update(&buffer[..n]);
                    at += n as u64;
                }
                Err(error) if error.errno == rustix::io::Errno::IO => {
                    tracing::warn!(%error, "a stored file cannot be read");
                    return Ok(wrong(format!(
                        "the disk does not give it back: {}",
                        error.errno
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let got = hasher.finish();
        Ok(if got == *digest {
            Hashed::Right(at)
        } else {
            wrong(format!("its content has the digest {got}"))
        })
    }

    /// Moves a file away from under its name, if it is still the one that was hashed. Returns where it is.
    fn quarantine(&self, digest: &Digest, path: &str, stamp: Stamp) -> Result<Option<String>> {
        let storage = self.storage;
        make_dirs(&storage.fs, paths::QUARANTINE)?;
        let name = format!("{}-{}-{}", digest.algorithm().name(), digest.hex(), now());
        let to = format!("{}/{name}", paths::QUARANTINE);
        let same = |path: &str| -> Result<bool> {
            let found = storage.fs.stat(path)?;
            Ok(found.is_some_and(|found| found.stamp.same_content(&stamp)))
        };
        if !same(path)? {
            return Ok(None);
        }
        storage.durable.forget_file(path);
        storage.fs.rename(path, &to)?;
        if !same(&to)? {
            // A push has put it right in this very moment.
            storage.fs.rename(&to, path)?;
            return Ok(None);
        }
        storage.manifests.remove(digest);
        storage.subjects.remove(digest);
        let mut batch = storage.durable.batch();
        batch.removed_from(paths::parent(path));
        batch.removed_from(paths::QUARANTINE);
        batch.commit()?;
        Ok(Some(to))
    }

    /// Every name against what it needs.
    fn names(&mut self) -> Result<()> {
        let (names, findings) = self.storage.all_repositories();
        for found in findings {
            self.found(found);
        }
        for name in names {
            self.go_on()?;
            self.report.repositories += 1;
            if let Err(error) = self.repository(&name) {
                if matches!(error, StorageError::Stopped) {
                    return Err(error);
                }
                self.found(finding(Some(&name), None, &trouble(&error)));
            }
        }
        Ok(())
    }

    fn repository(&mut self, name: &str) -> Result<()> {
        let storage = self.storage;
        // Manifest by manifest what each lacks itself; indexes add what their images lack.
        let mut lacking: HashMap<Digest, Lack> = HashMap::new();
        let mut tagged: BTreeMap<String, Digest> = BTreeMap::new();
        for tag in storage.tag_names(name)?.unwrap_or_default() {
            let link = paths::tag_current(name, &tag);
            match storage.read_link(&link)? {
                Some(link) => drop(tagged.insert(tag, link.target)),
                None if storage.fs.stat(&link)?.is_some() => {
                    let problem = "the tag's link holds no digest; push the tag again";
                    self.found(finding(Some(name), Some(&tag), &problem));
                }
                None => {}
            }
        }
        self.torn_links(name)?;
        let mut images: Vec<(Option<String>, Digest)> = tagged
            .into_iter()
            .map(|(tag, digest)| (Some(tag), digest))
            .collect();
        let named: HashSet<Digest> = images.iter().map(|(_, digest)| digest.clone()).collect();
        let revisions = storage.revisions(name)?;
        self.report.manifests += revisions.len();
        for digest in revisions {
            if !named.contains(&digest)
                && storage
                    .read_link(&paths::revision_link(name, &digest))?
                    .is_some()
            {
                images.push((None, digest));
            }
        }
        for (tag, digest) in images {
            self.go_on()?;
            let Lack { missing, sizes, .. } = self.lack(name, &digest, &mut lacking, 0)?;
            if let Some(named) = sizes.first() {
                let place = tag.as_deref().unwrap_or(digest.as_str());
                let problem =
                    format!("it tells another size of {named} than that has; build it again");
                self.found(finding(Some(name), Some(place), &problem));
            }
            if missing.is_empty() || !self.put_aside(name, tag.as_deref(), &digest)? {
                continue;
            }
            self.report.problems += 1;
            if self.report.incomplete.len() < MAX_NAMED {
                self.report.incomplete.push(Incomplete {
                    repository: name.to_owned(),
                    tag,
                    digest,
                    missing: missing.into_iter().take(NAMED).collect(),
                });
            }
        }
        Ok(())
    }

    /// Links of the repository that are files without a digest.
    fn torn_links(&mut self, name: &str) -> Result<()> {
        for algorithm in ALGORITHMS {
            for (dir, what) in [
                (paths::layers_by(name, algorithm), "a blob"),
                (paths::revisions(name, algorithm), "a manifest"),
            ] {
                for hex in self.directories(&dir)? {
                    let link = format!("{dir}/{hex}/link");
                    let digest = format!("{}:{hex}", algorithm.name());
                    let named = Digest::parse(&digest);
                    let found = self.storage.read_link(&link)?;
                    let there = found.is_some() || self.storage.fs.stat(&link)?.is_some();
                    let problem = match (named, found) {
                        _ if !there => continue,
                        (Err(_), _) => {
                            format!("the link of {what} lies under a name that is no digest")
                        }
                        (_, None) => format!("the link of {what} holds no digest"),
                        (Ok(named), Some(link))
                            if named != link.target
                                && named.algorithm() == link.target.algorithm() =>
                        {
                            format!("the link of {what} points to {}", link.target)
                        }
                        _ => continue,
                    };
                    self.found(finding(Some(name), Some(&digest), &problem));
                }
            }
        }
        Ok(())
    }

    /// What a manifest needs and the repository does not have, itself included.
    fn lack(
        &self,
        name: &str,
        digest: &Digest,
        known: &mut HashMap<Digest, Lack>,
        depth: usize,
    ) -> Result<Lack> {
        if let Some(lack) = known.get(digest) {
            return Ok(lack.clone());
        }
        let storage = self.storage;
        let (mut lack, mut whole) = (Lack::default(), true);
        let found = storage.manifest(name, digest)?;
        let there = found.is_some();
        // One that was put aside before still says what it lacks, as long as its content is there.
        let body = match found {
            Some(found) => Some(found.body),
            None => storage
                .manifest_content(digest)?
                .map(|cached| cached.body.clone()),
        };
        let mut children = Vec::new();
        match body {
            Some(body) if !self.bad.contains(digest) => {
                // One of another form is served as it is; nobody knows what it needs.
                if let Ok(parsed) = manifest::parse(&body, None) {
                    for blob in parsed.blobs() {
                        if media_type::is_nondistributable(&blob.media_type) {
                            continue;
                        }
                        match self.size(name, &blob.digest)? {
                            Some(size) if size == blob.size => {}
                            Some(_) => lack.sizes.push(blob.digest.clone()),
                            None => {
                                lack.missing.push(blob.digest.clone());
                                lack.own |= !self.may_lack(name, &blob.digest)?;
                            }
                        }
                    }
                    let named = parsed.manifests().iter();
                    children.extend(named.map(|child| child.digest.clone()));
                }
            }
            _ => {
                lack.missing.push(digest.clone());
                lack.own = true;
            }
        }
        for child in children {
            let revision = paths::revision_link(name, &child);
            if storage.read_link(&revision)?.is_none() && self.size(name, &child)?.is_some() {
                // Some builders list blobs in their indexes.
                continue;
            }
            if depth == DEEPEST {
                whole = false;
                break;
            }
            let below = self.lack(name, &child, known, depth + 1)?;
            lack.missing.extend(below.missing);
            lack.shorten();
        }
        if !there && lack.missing.is_empty() {
            lack.missing.push(digest.clone());
        }
        lack.shorten();
        if whole {
            known.insert(digest.clone(), lack.clone());
        }
        Ok(lack)
    }

    /// The size of a blob that the repository has, and that is sound as far as is known.
    fn size(&self, name: &str, digest: &Digest) -> Result<Option<u64>> {
        let found = self.storage.blob(name, digest)?;
        Ok(found
            .filter(|blob| !self.bad.contains(&blob.stored))
            .map(|blob| blob.size))
    }

    /// Whether a manifest without this blob is as the registry took it.
    fn may_lack(&self, name: &str, digest: &Digest) -> Result<bool> {
        let link = paths::layer_link(name, digest);
        Ok(self.options.sparse && self.storage.fs.stat(&link)?.is_none())
    }

    /// Looks again, with nobody else changing the repository, whether an image lacks something: it may
    /// have been deleted, collected or pushed again since. If it lacks something itself, its link goes to
    /// the quarantine: clients that are told that a manifest is there do not send what it needs. Its tags
    /// stay, and garbage collection keeps what is there of it for them. An index stays with the images that
    /// are whole; those that are not are put aside by themselves.
    fn put_aside(&self, name: &str, tag: Option<&str>, digest: &Digest) -> Result<bool> {
        let storage = self.storage;
        let _alone = storage.locks.exclude(name)?;
        let link = paths::revision_link(name, digest);
        let there = match tag {
            Some(tag) => storage.tag(name, tag)?.as_ref() == Some(digest),
            None => storage.read_link(&link)?.is_some(),
        };
        let lack = self.lack(name, digest, &mut HashMap::new(), 0)?;
        if !there || lack.missing.is_empty() {
            return Ok(false);
        }
        if lack.own && !self.options.dry_run && storage.read_link(&link)?.is_some() {
            make_dirs(&storage.fs, paths::QUARANTINE)?;
            let kept = format!(
                "{}/link-{}-{}",
                paths::QUARANTINE,
                digest.hex(),
                super::random_hex(4)
            );
            storage.durable.forget_file(&link);
            storage.links.remove(&link);
            storage.fs.rename(&link, &kept)?;
            let mut batch = storage.durable.batch();
            batch.removed_from(paths::parent(&link));
            batch.removed_from(paths::QUARANTINE);
            batch.commit()?;
        }
        Ok(true)
    }

    fn directories(&self, dir: &str) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let listed: std::result::Result<(), FsError> = self.storage.fs.list(dir, |name, kind| {
            if kind == Kind::Directory {
                names.push(name.to_owned());
            }
        });
        match listed {
            Err(error) if error.is_not_found() => {}
            listed => listed?,
        }
        names.sort_unstable();
        Ok(names)
    }
}
