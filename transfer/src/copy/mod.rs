//! Copies images: blobs in parallel under a limit of memory, children before parents, nothing that
//! is there already, every byte verified and none changed.

mod ends;
mod files;
mod plan;
mod referrers;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::{Descriptor, ImageConfig, MAX_CONFIG};
use vdkr_core::platform::Platform;
use vdkr_core::reference::{Host, Selector};

use crate::client::{Client, Repository};
use crate::error::TransferError;
use crate::feed::WINDOW;
use crate::layout::{FULL_NAME, LayoutImage, OciLayout, REF_NAME};
use crate::manifests::FetchedManifest;
use crate::progress::{Item, Outcome, Progress, ProgressEvent, silent};
use crate::source::BlobSource;
use crate::verify::Verifier;
use plan::Plan;

pub use ends::{BlobState, BoxFuture, ImageDestination, ImageSource, RegistryImages};

/// How copies are made.
#[derive(Clone)]
pub struct CopyOptions {
    /// How many blobs move at a time.
    pub parallel: usize,
    /// The most memory that content on its way may take, bytes. One blob always may move.
    pub byte_budget: u64,
    /// Repositories of the destination's registry that may have some of the blobs.
    pub mount_from: Vec<String>,
    /// The platforms to copy; empty copies all. A subset of an index is a new index.
    pub platforms: Vec<Platform>,
    /// Copy what refers to the image too: signatures, attestations, bills of material.
    pub referrers: bool,
    /// Look for every blob, also of manifests that the destination has. A registry that lost a blob
    /// it once had is mended this way; otherwise a manifest stands for what it names.
    pub thorough: bool,
    /// Who watches.
    pub progress: Progress,
}

impl Default for CopyOptions {
    /// Eight blobs and 16 MiB at a time.
    fn default() -> Self {
        Self {
            parallel: 8,
            byte_budget: 8 * WINDOW,
            mount_from: Vec::new(),
            platforms: Vec::new(),
            referrers: false,
            thorough: false,
            progress: silent(),
        }
    }
}

/// What a copy did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// What the destination has now. Differs from the source's digest only for a subset.
    pub root: Descriptor,
    /// What the source has.
    pub source: Digest,
    /// Whether an index was made anew because only some platforms were wanted.
    pub subset: bool,
    /// Blobs that were written, and their bytes.
    pub written: (usize, u64),
    /// Blobs that were there.
    pub present: usize,
    /// Blobs that were taken over from another repository.
    pub mounted: usize,
    /// Blobs that may not be distributed and were left out.
    pub skipped: usize,
    /// Manifests that were written.
    pub manifests: usize,
}

/// Makes copies. Clones and concurrent copies share limits and what was learned: a blob that one
/// copy wrote is mounted, or found, by the next.
#[derive(Clone)]
pub struct Copier {
    shared: Arc<Shared>,
}

type BlobLock = Arc<tokio::sync::Mutex<()>>;

struct Shared {
    options: CopyOptions,
    /// How many tasks of one kind a copy has at a time; `slots` is for all copies together.
    at_once: usize,
    slots: Semaphore,
    /// In KiB.
    budget: Semaphore,
    budget_size: u32,
    /// For each blob that is being looked after, a lock; one copy works, others wait and find it.
    blobs: Mutex<HashMap<(String, Digest), BlobLock>>,
    /// A repository of the registry in which a blob is known to be.
    homes: Mutex<HashMap<(Host, Digest), String>>,
}

impl Copier {
    /// A copier with these limits.
    pub fn new(options: CopyOptions) -> Self {
        let at_once = options.parallel.clamp(1, 1024);
        let budget_size = (options.byte_budget / 1024).clamp(1, u64::from(u32::MAX >> 3)) as u32;
        Self {
            shared: Arc::new(Shared {
                at_once,
                slots: Semaphore::new(at_once),
                budget: Semaphore::new(budget_size as usize),
                budget_size,
                blobs: Mutex::default(),
                homes: Mutex::default(),
                options,
            }),
        }
    }

    /// Copies an image or index with all its content, and gives it a tag there if one is named.
    pub async fn copy(
        &self,
        source: Arc<dyn ImageSource>,
        root: FetchedManifest,
        destination: Arc<dyn ImageDestination>,
        tag: Option<&str>,
    ) -> Result<CopyReport, TransferError> {
        let copied = self.copy_root(source, root, destination, tag).await?;
        Ok(copied.0)
    }

    /// As [`Copier::copy`], and gives the manifest or index that the destination has now.
    pub async fn copy_root(
        &self,
        source: Arc<dyn ImageSource>,
        root: FetchedManifest,
        destination: Arc<dyn ImageDestination>,
        tag: Option<&str>,
    ) -> Result<(CopyReport, FetchedManifest), TransferError> {
        let options = &self.shared.options;
        let wanted = if options.platforms.is_empty() {
            root.clone()
        } else {
            plan::subset(&source, root.clone(), &options.platforms).await?
        };
        let mut report = CopyReport {
            root: wanted.descriptor(),
            source: root.digest.clone(),
            subset: wanted.digest != root.digest,
            written: (0, 0),
            present: 0,
            mounted: 0,
            skipped: 0,
            manifests: 0,
        };
        let mut seen = self
            .copy_tree(&source, &wanted, &destination, tag, &mut report)
            .await?;
        if options.referrers {
            // Even what was there may have got new referrers.
            seen.extend(
                wanted
                    .parse()?
                    .manifests()
                    .iter()
                    .map(|entry| entry.digest.clone()),
            );
            self.copy_tagged(&source, &destination, &seen, &mut report)
                .await?;
            self.copy_referrers(&source, &destination, seen, &mut report)
                .await?;
        }
        Ok((report, wanted))
    }

    /// Copies one image or index and says which manifests it looked at.
    async fn copy_tree(
        &self,
        source: &Arc<dyn ImageSource>,
        root: &FetchedManifest,
        destination: &Arc<dyn ImageDestination>,
        tag: Option<&str>,
        report: &mut CopyReport,
    ) -> Result<std::collections::HashSet<Digest>, TransferError> {
        let tagged = async {
            match tag {
                Some(tag) => destination.is_tagged(&root.digest, tag).await,
                None => Ok(true),
            }
        };
        let thorough = self.shared.options.thorough;
        let (complete, tagged) = tokio::try_join!(destination.is_complete(&root.digest), tagged)?;
        if complete && !thorough && plan::has_children(destination, root).await? {
            if tagged {
                self.finished(&root.digest, Outcome::Present);
            } else {
                self.put(destination, root, tag).await?;
                report.manifests += 1;
            }
            return Ok(std::iter::once(root.digest.clone()).collect());
        }
        let plan = Plan::make(source, destination, root, thorough).await?;
        self.event(&ProgressEvent::Planned {
            blobs: plan.blobs.len(),
            bytes: plan.blobs.iter().map(|blob| blob.size).sum(),
        });
        for blob in &plan.skipped {
            self.finished(&blob.digest, Outcome::Skipped);
        }
        report.skipped += plan.skipped.len();
        self.copy_blobs(source, destination, plan.blobs, report)
            .await?;
        let mut levels = plan.levels;
        // The root is the first level, and alone in it.
        while levels.len() > 1 {
            let level = levels.pop().unwrap_or_default();
            report.manifests += level.len();
            self.put_level(destination, level).await?;
        }
        self.put(destination, root, tag).await?;
        report.manifests += 1;
        Ok(plan.seen)
    }

    async fn copy_blobs(
        &self,
        source: &Arc<dyn ImageSource>,
        destination: &Arc<dyn ImageDestination>,
        mut blobs: Vec<Descriptor>,
        report: &mut CopyReport,
    ) -> Result<(), TransferError> {
        // The largest first: what is left at the end then fits beside it.
        blobs.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.digest.cmp(&b.digest)));
        destination.announce(&blobs).await?;
        let work = blobs.into_iter().map(|blob| {
            let copier = self.clone();
            let (source, destination) = (source.clone(), destination.clone());
            async move {
                let outcome = copier.copy_blob(&*source, &*destination, &blob).await?;
                Ok((outcome, blob.size))
            }
        });
        each(work, self.shared.at_once, |(outcome, size)| {
            match outcome {
                Outcome::Uploaded | Outcome::Downloaded => {
                    report.written.0 += 1;
                    report.written.1 += size;
                }
                Outcome::Mounted => report.mounted += 1,
                Outcome::Present | Outcome::Skipped => report.present += 1,
            }
            true
        })
        .await
    }

    async fn copy_blob(
        &self,
        source: &dyn ImageSource,
        destination: &dyn ImageDestination,
        blob: &Descriptor,
    ) -> Result<Outcome, TransferError> {
        let shared = &self.shared;
        let lock = {
            let mut blobs = shared.blobs.lock().unwrap_or_else(PoisonError::into_inner);
            let key = (destination.place(), blob.digest.clone());
            blobs.entry(key).or_default().clone()
        };
        let _held = lock.lock().await;
        let _slot = shared.slots.acquire().await.map_err(closed)?;
        self.event(&ProgressEvent::Started {
            digest: blob.digest.clone(),
            size: blob.size,
            what: Item::Blob,
        });
        let mount_from = self.homes(source, destination, &blob.digest);
        let outcome = match destination.find_blob(blob, &mount_from).await? {
            BlobState::Present => Outcome::Present,
            BlobState::Mounted => Outcome::Mounted,
            BlobState::Missing(session) => {
                let window =
                    u32::try_from(blob.size.min(WINDOW).div_ceil(1024)).unwrap_or(u32::MAX);
                let share = window.clamp(1, shared.budget_size);
                let _budget = shared.budget.acquire_many(share).await.map_err(closed)?;
                let content = source.blob(blob);
                let progress = &shared.options.progress;
                destination
                    .put_blob(blob, content, session, progress)
                    .await
                    .map_err(|error| name_blob(error, blob))?;
                match destination.repository() {
                    Some(_) => Outcome::Uploaded,
                    None => Outcome::Downloaded,
                }
            }
        };
        if let Some(repository) = destination.repository() {
            let mut homes = shared.homes.lock().unwrap_or_else(PoisonError::into_inner);
            homes
                .entry((repository.host().clone(), blob.digest.clone()))
                .or_insert_with(|| repository.name().to_owned());
        }
        self.finished(&blob.digest, outcome);
        Ok(outcome)
    }

    /// Repositories from which a blob may be mounted, the surest first.
    fn homes(
        &self,
        source: &dyn ImageSource,
        destination: &dyn ImageDestination,
        digest: &Digest,
    ) -> Vec<String> {
        let Some(here) = destination.repository() else {
            return Vec::new();
        };
        let mut homes = Vec::new();
        {
            let known = self
                .shared
                .homes
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            homes.extend(known.get(&(here.host().clone(), digest.clone())).cloned());
        }
        if let Some(from) = source.repository()
            && from.host() == here.host()
        {
            homes.push(from.name().to_owned());
        }
        homes.extend(self.shared.options.mount_from.iter().cloned());
        homes.retain(|name| name != here.name());
        homes.dedup();
        homes
    }

    async fn put_level(
        &self,
        destination: &Arc<dyn ImageDestination>,
        level: Vec<FetchedManifest>,
    ) -> Result<(), TransferError> {
        let work = level.into_iter().map(|manifest| {
            let copier = self.clone();
            let destination = destination.clone();
            async move {
                let _slot = copier.shared.slots.acquire().await.map_err(closed)?;
                copier.put(&destination, &manifest, None).await.map(drop)
            }
        });
        each(work, self.shared.at_once, |()| true).await
    }

    async fn put(
        &self,
        destination: &Arc<dyn ImageDestination>,
        manifest: &FetchedManifest,
        tag: Option<&str>,
    ) -> Result<crate::manifests::PutManifest, TransferError> {
        self.event(&ProgressEvent::Started {
            digest: manifest.digest.clone(),
            size: manifest.raw.len() as u64,
            what: Item::Manifest,
        });
        let put = destination.put_manifest(manifest, tag).await?;
        self.finished(&manifest.digest, Outcome::Uploaded);
        Ok(put)
    }

    fn event(&self, event: &ProgressEvent) {
        self.shared.options.progress.event(event);
    }

    fn finished(&self, digest: &Digest, outcome: Outcome) {
        self.event(&ProgressEvent::Finished {
            digest: digest.clone(),
            outcome,
        });
    }
}

/// Pushes images of a layout into a repository by digest, without a tag, and gives their
/// descriptors with platforms and without the names they had in the layout: what
/// [`merge_index`](vdkr_core::manifest::merge_index) wants next.
pub async fn push_layout(
    copier: &Copier,
    layout: &OciLayout,
    images: &[LayoutImage],
    client: &Client,
    repository: &Repository,
) -> Result<Vec<Descriptor>, TransferError> {
    let source: Arc<dyn ImageSource> = Arc::new(layout.clone());
    let destination: Arc<dyn ImageDestination> =
        Arc::new(RegistryImages::new(client.clone(), repository.clone()));
    let work = images.iter().map(|image| {
        let (copier, descriptor) = (copier.clone(), image.descriptor.clone());
        let (source, destination) = (source.clone(), destination.clone());
        async move {
            let root = source.manifest(&descriptor).await?;
            copier.copy(source, root, destination, None).await
        }
    });
    each(work, copier.shared.at_once, |_| true).await?;
    let mut pushed: Vec<_> = images
        .iter()
        .map(|image| image.descriptor.clone())
        .collect();
    for descriptor in &mut pushed {
        for name in [REF_NAME, FULL_NAME] {
            descriptor.annotations.remove(name);
        }
    }
    Ok(pushed)
}

/// Copies what a reference of one repository names into another, bit for bit.
pub async fn copy_registry(
    copier: &Copier,
    from: RegistryImages,
    selector: Selector<'_>,
    to: RegistryImages,
    tag: Option<&str>,
) -> Result<CopyReport, TransferError> {
    let repository = ImageSource::repository(&from).cloned();
    let root = match &repository {
        Some(repository) => from.client().get_manifest(repository, selector).await?,
        None => return Err(TransferError::Cancelled),
    };
    copier.copy(Arc::new(from), root, Arc::new(to), tag).await
}

/// Reads an image's configuration from wherever the image is.
pub async fn read_config(
    source: &Arc<dyn ImageSource>,
    config: &Descriptor,
) -> Result<ImageConfig, TransferError> {
    let raw = read_raw_config(source, config).await?;
    ImageConfig::parse(&raw).map_err(|source| TransferError::Manifest {
        what: format!("configuration {}", config.digest),
        source,
    })
}

/// The bytes of an image's configuration, verified; at most [`MAX_CONFIG`] of them.
pub async fn read_raw_config(
    source: &Arc<dyn ImageSource>,
    config: &Descriptor,
) -> Result<Vec<u8>, TransferError> {
    if config.size > MAX_CONFIG as u64 {
        return Err(TransferError::TooLarge {
            what: format!("configuration {}", config.digest),
            limit: MAX_CONFIG as u64,
        });
    }
    let content = source.blob(config);
    let descriptor = config.clone();
    let read = tokio::task::spawn_blocking(move || read_blob(&*content, &descriptor));
    read.await.map_err(|_| TransferError::Cancelled)?
}

fn read_blob(content: &dyn BlobSource, descriptor: &Descriptor) -> Result<Vec<u8>, TransferError> {
    let mut reader = content.open(0)?;
    let mut verifier = Verifier::new(&descriptor.digest, descriptor.size);
    let mut all = Vec::new();
    while let Some(piece) = reader.next_chunk()? {
        verifier.update(&piece)?;
        all.extend_from_slice(&piece);
    }
    verifier.finish()?;
    Ok(all)
}

/// A mismatch is of some use only with the name of what does not match.
fn name_blob(error: TransferError, blob: &Descriptor) -> TransferError {
    match error {
        TransferError::DigestMismatch { expected, got, .. } => TransferError::DigestMismatch {
            what: format!("blob {}", blob.digest.short()),
            expected,
            got,
        },
        other => other,
    }
}

/// Does pieces of work as tasks, at most so many at a time. `done` takes what each came to, and says
/// whether to go on; an error, or its `false`, stops the others.
async fn each<T, W>(
    work: impl Iterator<Item = W>,
    at_once: usize,
    mut done: impl FnMut(T) -> bool,
) -> Result<(), TransferError>
where
    T: Send + 'static,
    W: Future<Output = Result<T, TransferError>> + Send + 'static,
{
    let mut running = JoinSet::new();
    for piece in work {
        if running.len() >= at_once
            && let Some(ended) = joined(running.join_next().await)?
            && !done(ended)
        {
            return Ok(());
        }
        running.spawn(piece);
    }
    while let Some(ended) = running.join_next().await {
        if !joined(Some(ended))?.is_none_or(&mut done) {
            return Ok(());
        }
    }
    Ok(())
}

/// What a task of a set came to. `None` when there was none.
fn joined<T>(
    done: Option<Result<Result<T, TransferError>, JoinError>>,
) -> Result<Option<T>, TransferError> {
    match done {
        None => Ok(None),
        Some(Ok(result)) => result.map(Some),
        Some(Err(_)) => Err(TransferError::Cancelled),
    }
}

fn closed(_: tokio::sync::AcquireError) -> TransferError {
    TransferError::Cancelled
}
