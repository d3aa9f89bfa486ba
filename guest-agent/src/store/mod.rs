//! The images of this machine, in one directory.
//!
//! ```text
//! images.json              the document: images, names, layers (see `state`)
//! blobs/<algorithm>/<hex>  manifests and configurations
//! layers/<name>/           unpacked layers, lower directories of overlays
//! layers/new-<n>/          a layer under way
//! layers/gone-<n>/         a layer on its way out
//! recipes/<name>           how that layer becomes its archive again
//! ```
//!
//! The document says what there is. It is replaced as a whole, and only after everything that it
//! names is durable; so a crash at any moment leaves the images that were there before, and rubbish
//! that the next opening clears away.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use vdkr_core::{
    channel::message::{RegistrySettings, Removed},
    digest::Digest,
    loopback::DEFAULT_GATEWAY,
    manifest::{ImageConfig, MAX_CONFIG, MAX_MANIFEST},
    reference::Reference,
};

use crate::unpack::{self, root::Root};

mod disk;
mod export;
mod kept;
mod layer;
mod prune;
pub mod state;
mod sweep;

#[cfg(test)]
pub(crate) mod fixture;
#[cfg(test)]
mod tests;

pub use export::Part;
pub use layer::NewLayer;
pub use vdkr_transfer::pull::ImageError;
pub(crate) use vdkr_transfer::pull::{registry, translated};

use disk::Disk;
use state::{ImageRecord, LayerRecord, NameRecord, State, Target};
use sweep::Sweeper;

/// How names of layers under way start; names of layers are hexadecimal.
const NEW: &str = "new-";

/// The store. Clones are the same store; the last one lets go of the directory.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Disk,
    blobs_dir: PathBuf,
    layers_dir: PathBuf,
    recipes_dir: PathBuf,
    serial: AtomicU64,
    unpacking: OnceLock<unpack::Options>,
    live: Mutex<Live>,
    sweeper: Sweeper,
}

/// The document, and what holds only while this process lives.
#[derive(Default)]
struct Live {
    state: State,
    /// Layers that the disk may not have yet: left out of the document when it is written.
    unsynced: BTreeSet<Digest>,
    /// How many leases there are of a layer.
    leased: BTreeMap<Digest, usize>,
    /// How many containers there are of an image.
    running: BTreeMap<Digest, usize>,
    /// Leased layers whose last image was removed.
    doomed: BTreeSet<Digest>,
    /// Layers that the host keeps and has handed over.
    mounted: BTreeSet<Digest>,
}

/// An image that can be run. While it lives, its layers stay.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Digest of the configuration.
    pub id: Digest,
    /// How to run it.
    pub config: ImageConfig,
    /// Names of directories in [`Store::layers_dir`], lowest first: what an overlay needs, so
    /// without layers that nothing can be seen of.
    pub layers: Vec<PathBuf>,
    lease: Arc<Lease>,
}

/// Keeps layers from being removed.
pub struct Lease {
    inner: Arc<Inner>,
    layers: BTreeSet<Digest>,
    /// Set when a container uses the image.
    image: Option<Digest>,
}

/// An image to be added, all of whose layers are there.
#[derive(Clone, Debug)]
pub struct NewImage<'a> {
    /// The configuration, as it came.
    pub config: &'a [u8],
    /// Its digest.
    pub id: &'a Digest,
    /// The manifest, as it came.
    pub manifest: &'a [u8],
    /// The rest of what there is to know.
    pub record: ImageRecord,
    /// Canonical reference with a tag.
    pub name: Option<(String, NameRecord)>,
}

impl Store {
    /// Opens the store in `root`, a directory that is made if it is missing, and clears away what a
    /// crash left. One process at a time may have it open.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        let disk = Disk::open(root)?;
        let layers_dir = root.join("layers");
        let blobs_dir = root.join("blobs");
        disk::make_private(&layers_dir)?;
        disk::make_private(&blobs_dir)?;
        let recipes_dir = root.join("recipes");
        disk::make_private(&recipes_dir)?;
        let state = disk.load()?;
        let store = Self {
            inner: Arc::new(Inner {
                disk,
                blobs_dir,
                sweeper: Sweeper::new(layers_dir.clone()),
                layers_dir,
                recipes_dir,
                serial: AtomicU64::new(0),
                unpacking: OnceLock::new(),
                live: Mutex::new(Live {
                    state,
                    ..Live::default()
                }),
            }),
        };
        store.clear_up()?;
        Ok(store)
    }

    /// The directory in which the layers are.
    pub fn layers_dir(&self) -> &Path {
        &self.inner.layers_dir
    }

    /// The image that a name or an id means, to be run. With a registry in the settings, a name
    /// without host means the image under that registry first, and none of another registry that
    /// merely ends in it.
    pub fn resolve(
        &self,
        name: &str,
        settings: &RegistrySettings,
    ) -> Result<StoredImage, ImageError> {
        let mut live = self.inner.lock();
        let id = meant(&live.state, name, settings)?;
        let image = live.state.images[&id].clone();
        let config = self.inner.config(&id)?;
        let mut layers = Vec::new();
        for diff_id in image.layers.iter().rev() {
            let Some(layer) = live.state.layers.get(diff_id) else {
                return Err(ImageError::Damaged {
                    path: self.inner.layers_dir.clone(),
                    reason: format!("layer {diff_id} of image {} is missing", id.short()),
                });
            };
            let directory = PathBuf::from(&layer.name);
            // What the same layer does further down, it does again on top.
            if !layers.contains(&directory) {
                layers.push(directory);
            }
            if layer.opaque {
                break;
            }
        }
        layers.reverse();
        *live.running.entry(id.clone()).or_default() += 1;
        let lease = live.lease(&self.inner, image.layers.iter().cloned(), Some(id.clone()));
        Ok(StoredImage {
            id,
            config,
            layers,
            lease: Arc::new(lease),
        })
    }

    /// Looks at the document.
    pub fn view<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.inner.lock().state)
    }

    /// The configuration of an image.
    pub fn config(&self, id: &Digest) -> Result<ImageConfig, ImageError> {
        self.inner.config(id)
    }

    /// Removes what `targets` finds, all or nothing; what was removed, in order.
    pub fn remove(
        &self,
        targets: impl FnOnce(&State) -> Result<Vec<Target>, ImageError>,
        force: bool,
    ) -> Result<Vec<Removed>, ImageError> {
        let mut live = self.inner.lock();
        let targets = targets(&live.state)?;
        let running = live.running.clone();
        let (mut removed, layers) = self.inner.update(&mut live, |state| {
            state.remove(&targets, force, &|id| running.contains_key(id))
        })?;
        removed.extend(
            layers
                .iter()
                .map(|layer| Removed::Deleted(layer.to_string())),
        );
        Ok(removed)
    }

    /// Gives an image a name; an image that had it loses it.
    pub fn name(
        &self,
        image: impl FnOnce(&State) -> Result<Digest, ImageError>,
        name: &Reference,
    ) -> Result<(), ImageError> {
        let mut live = self.inner.lock();
        let image = image(&live.state)?;
        self.inner.update(&mut live, |state| {
            let record = NameRecord {
                image,
                digest: None,
            };
            state.names.insert(name.to_string(), record);
            Ok(())
        })?;
        Ok(())
    }

    /// Keeps these layers, those that are there and those that come, until the lease ends.
    pub fn keep(&self, layers: impl IntoIterator<Item = Digest>) -> Lease {
        self.inner.lock().lease(&self.inner, layers, None)
    }

    /// Whether a layer is there.
    pub fn has_layer(&self, diff_id: &Digest) -> bool {
        self.inner.lock().state.layers.contains_key(diff_id)
    }

    /// Makes finished layers durable, so that they outlive a crash. Blocks while the disk writes.
    pub fn checkpoint(&self) -> Result<(), ImageError> {
        let unsynced = self.inner.lock().unsynced.clone();
        if unsynced.is_empty() {
            return Ok(());
        }
        self.inner.disk.sync()?;
        let mut live = self.inner.lock();
        live.unsynced.retain(|layer| !unsynced.contains(layer));
        self.inner.save(&live.state, &live.unsynced)
    }

    /// Adds an image whose layers are kept by a lease. When this returns, it stays. Blocks while the
    /// disk writes. Gives the image that had the name before, when it was another one.
    pub fn add(&self, image: NewImage<'_>) -> Result<Option<Digest>, ImageError> {
        self.checkpoint()?;
        let mut live = self.inner.lock();
        let missing = image.record.layers.iter();
        let mut missing = missing.filter(|layer| !live.state.layers.contains_key(*layer));
        if let Some(layer) = missing.next() {
            return Err(ImageError::NoLayer(layer.clone()));
        }
        let before = image
            .name
            .as_ref()
            .and_then(|(name, _)| live.state.names.get(name));
        let replaced = before.map(|record| record.image.clone());
        let replaced = replaced.filter(|before| before != image.id);
        for (digest, content) in [
            (image.id, image.config),
            (&image.record.manifest.digest, image.manifest),
        ] {
            self.inner
                .disk
                .write_new(&self.inner.blob_path(digest), content)?;
        }
        self.inner.update(&mut live, |state| {
            let mut record = image.record;
            if let Some(known) = state.images.get(image.id) {
                record.digests.extend(known.digests.iter().cloned());
            }
            for layer in &record.layers {
                if let Some(layer) = state.layers.get_mut(layer) {
                    layer.spare = 0;
                }
            }
            state.images.insert(image.id.clone(), record);
            state.names.extend(image.name);
            Ok(())
        })?;
        Ok(replaced)
    }

    /// How layers are unpacked here.
    pub fn unpacking(&self) -> Result<&unpack::Options, ImageError> {
        let path = self.layers_dir();
        if let Some(known) = self.inner.unpacking.get() {
            return Ok(known);
        }
        let root = Root::open(path).map_err(ImageError::io("open", path))?;
        let found = self
            .inner
            .unpacking
            .get_or_init(|| unpack::Options::detect(&root));
        Ok(found)
    }

    /// Waits until everything removed is off the disk.
    pub fn finish_removals(&self) {
        self.inner.sweeper.finish();
    }

    /// Puts disk and document in agreement: the document is right.
    fn clear_up(&self) -> Result<(), ImageError> {
        let inner = &self.inner;
        let mut live = inner.lock();
        let state = &mut live.state;
        let before = state.clone();
        let present: BTreeSet<_> = disk::names(&inner.layers_dir)?.into_iter().collect();
        state
            .layers
            .retain(|_, layer| present.contains(OsStr::new(&layer.name)));
        let used = state.used_layers();
        state.layers.retain(|diff_id, layer| {
            if used.contains(diff_id) {
                layer.spare = 0;
                return true;
            }
            layer.spare += 1;
            layer.spare <= state::SPARE_OPENINGS
        });
        if *state != before {
            inner.disk.save(state)?;
        }
        let known: BTreeSet<&OsStr> = state.layers.values().map(|l| OsStr::new(&l.name)).collect();
        for name in present
            .iter()
            .filter(|name| !known.contains(name.as_os_str()))
        {
            inner.sweeper.discard(name);
        }
        for recipe in disk::names(&inner.recipes_dir)? {
            if !known.contains(recipe.as_os_str()) {
                let _ = fs::remove_file(inner.recipes_dir.join(recipe));
            }
        }
        let used = state.used_blobs();
        let used: BTreeSet<PathBuf> = used.iter().map(|digest| inner.blob_path(digest)).collect();
        for directory in disk::names(&inner.blobs_dir)? {
            let directory = inner.blobs_dir.join(directory);
            // Somebody's file in between is no reason to refuse the images.
            for blob in disk::names(&directory).unwrap_or_default() {
                let path = directory.join(blob);
                if !used.contains(&path) {
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(())
    }
}

/// The image that a name or an id means to a request with these settings that runs it.
fn meant(state: &State, name: &str, settings: &RegistrySettings) -> Result<Digest, ImageError> {
    let registry = registry(settings)?;
    let name = translated(name, settings)?;
    // Where there is a gateway, a registry of the host has two names.
    let gateway = (!settings.gateway.is_empty()).then_some(DEFAULT_GATEWAY);
    let found = state.find_to_run(&name, registry.as_ref(), gateway)?;
    Ok(found.image().clone())
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let directory = self.blobs_dir.join(digest.algorithm().name());
        directory.join(digest.hex())
    }

    fn config(&self, id: &Digest) -> Result<ImageConfig, ImageError> {
        let path = self.blob_path(id);
        let raw = disk::read_bounded(&path, MAX_CONFIG.max(MAX_MANIFEST) as u64)?;
        let got = Digest::of(id.algorithm(), &raw);
        if got != *id {
            return Err(ImageError::Damaged {
                path,
                reason: format!("its digest is {got}"),
            });
        }
        ImageConfig::parse(&raw).map_err(|source| ImageError::Manifest {
            what: format!("configuration {id}"),
            source,
        })
    }

    fn save(&self, state: &State, unsynced: &BTreeSet<Digest>) -> Result<(), ImageError> {
        if unsynced.is_empty() {
            return self.disk.save(state);
        }
        let mut durable = state.clone();
        durable.layers.retain(|layer, _| !unsynced.contains(layer));
        self.disk.save(&durable)
    }

    /// Changes the document, on disk and here, or nothing. Layers and blobs that it no longer needs
    /// go; these layers are returned beside the closure's value.
    fn update<T>(
        &self,
        live: &mut Live,
        change: impl FnOnce(&mut State) -> Result<T, ImageError>,
    ) -> Result<(T, Vec<Digest>), ImageError> {
        let mut next = live.state.clone();
        let value = change(&mut next)?;
        let used = next.used_layers();
        let mut removed = Vec::new();
        let mut gone = Vec::new();
        let mut doomed = Vec::new();
        for layer in live.state.used_layers().difference(&used) {
            if live.leased.contains_key(layer) {
                doomed.push(layer.clone());
            } else if let Some(record) = next.layers.remove(layer) {
                gone.push(record);
                removed.push(layer.clone());
            }
        }
        if next != live.state {
            self.save(&next, &live.unsynced)?;
        }
        // From here on nothing fails: what cannot be removed now is found at the next opening.
        let blobs = live.state.used_blobs();
        for blob in blobs.difference(&next.used_blobs()) {
            let _ = fs::remove_file(self.blob_path(blob));
        }
        live.doomed.retain(|layer| !used.contains(layer));
        live.doomed.extend(doomed);
        live.unsynced
            .retain(|layer| next.layers.contains_key(layer));
        live.state = next;
        live.mounted
            .retain(|layer| live.state.layers.contains_key(layer));
        for record in gone {
            self.discard(&record);
        }
        Ok((value, removed))
    }

    /// Takes a layer out of sight.
    fn discard(&self, layer: &LayerRecord) {
        if layer.kept_by_host {
            kept::let_go(&self.layers_dir.join(&layer.name));
        }
        self.discard_layer(&layer.name);
    }

    /// Takes a layer's directory and its recipe out of sight.
    fn discard_layer(&self, name: &str) {
        self.sweeper.discard(OsStr::new(name));
        let _ = fs::remove_file(self.recipes_dir.join(name));
    }

    /// Names for layers under way.
    fn new_name(&self) -> String {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        format!("{NEW}{serial}")
    }
}

impl Live {
    fn lease(
        &mut self,
        inner: &Arc<Inner>,
        layers: impl IntoIterator<Item = Digest>,
        image: Option<Digest>,
    ) -> Lease {
        let layers: BTreeSet<Digest> = layers.into_iter().collect();
        for layer in &layers {
            *self.leased.entry(layer.clone()).or_default() += 1;
        }
        Lease {
            inner: inner.clone(),
            layers,
            image,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut live = self.inner.lock();
        if let Some(image) = &self.image {
            release(&mut live.running, image);
        }
        let mut gone = Vec::new();
        for layer in &self.layers {
            release(&mut live.leased, layer);
            if !live.leased.contains_key(layer)
                && live.doomed.remove(layer)
                && let Some(record) = live.state.layers.remove(layer)
            {
                live.unsynced.remove(layer);
                live.mounted.remove(layer);
                gone.push(record);
            }
        }
        if gone.is_empty() {
            return;
        }
        let live = &*live;
        // Should this fail, the next opening sees a layer without a directory, and forgets it.
        let _ = self.inner.save(&live.state, &live.unsynced);
        for record in gone {
            self.inner.discard(&record);
        }
    }
}

fn release(counts: &mut BTreeMap<Digest, usize>, key: &Digest) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store")
            .field(&self.inner.layers_dir)
            .finish()
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.layers).finish()
    }
}
