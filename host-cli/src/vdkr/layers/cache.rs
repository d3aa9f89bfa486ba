//! The directory of layers.
//!
//! ```text
//! layers/sha256/<hex>.erofs   a layer by its diff ID, whole and read-only
//! layers/sha256/<hex>.recipe  how its files become its archive again, for `save` and `push`
//! layers/blobs/<digest>.json  which blobs of registries a layer was unpacked from
//! layers/new/<n>              a layer under way, locked by its writer
//! layers/users/<hex>.json     which layers the images of one state directory have
//! layers/lock                 shared by commands that use layers, exclusive for a collector
//! ```
//!
//! A layer appears by a rename when its whole content has been verified, so a kill at any moment
//! leaves nothing but a file in `new` that the next collector takes away; so does a power cut, as the
//! content is on the disk before it has its name. The time of a layer's last
//! use is its time of modification.

use std::{
    collections::BTreeSet,
    fs::{self, File, TryLockError},
    io::{self, Read},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use vdkr_core::{
    digest::{Algorithm, Digest},
    reference::Host,
};
use vdkr_transfer::{
    erofs::{Data, Files, Note, write_image},
    layer::{
        Limits, Pool, UnpackError, Unpacked,
        recipe::{ReadError, Recorder, Restored, plain_length},
    },
    pull::{Holding, ImageError, LayerStore, Wanted},
};

use super::origins::{self, Origin};
use crate::vdkr::words::telling;

/// Name of the directory in the root of all state.
const NAME: &str = "layers";
/// End of a layer's name.
const SUFFIX: &str = ".erofs";
/// End of its recipe's name.
const RECIPE: &str = ".recipe";
/// Directory of the lists of layers' blobs.
const ORIGINS: &str = "blobs";
/// Directory of layers under way.
const NEW: &str = "new";
/// Bytes that a pull leaves free on the disk.
const RESERVE: u64 = 256 << 20;
/// Between two tries for the lock.
const PAUSE: Duration = Duration::from_millis(10);

/// The layers of this user. Clones are the same cache.
#[derive(Clone, Debug)]
pub struct Cache {
    root: Arc<Path>,
    serial: Arc<AtomicU64>,
    /// Layers that whoever pulls has been given before.
    given: Arc<BTreeSet<Digest>>,
    /// What the layers of one pull may take together.
    pool: Pool,
}

/// A layer that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CachedLayer {
    /// Digest of its plain archive.
    pub diff_id: Digest,
    /// The file.
    pub path: PathBuf,
    /// Bytes that it takes on disk, its recipe among them.
    pub allocated: u64,
    /// When it was last used.
    pub used: SystemTime,
}

/// A layer that can be made into its archive again.
#[derive(Clone, Debug)]
pub struct LayerArchive {
    files: Files,
    recipe: PathBuf,
    /// Bytes of the archive.
    pub length: u64,
}

/// The archive of a layer, as it is read. Its digest is for the reader to check.
pub type Archive = Restored<Box<dyn FnMut(&[u8]) -> io::Result<Data> + Send>, Data>;

impl LayerArchive {
    /// Begins to read it.
    pub fn read(&self) -> Result<Archive, ReadError> {
        let files = self.files.clone();
        Restored::open(&self.recipe, Box::new(move |path| files.file(path)))
    }
}

/// While it lives, no layer is removed.
#[derive(Debug)]
pub struct Hold {
    _lock: File,
}

impl Cache {
    /// Opens the cache below the root of all state; it is made when it is not there.
    pub fn open(state_root: &Path) -> Result<Self, ImageError> {
        let root = state_root.join(NAME);
        let cache = Self {
            root: root.into(),
            serial: Arc::default(),
            given: Arc::default(),
            pool: Pool::default(),
        };
        for directory in [
            cache.root.to_path_buf(),
            cache.directory(Algorithm::Sha256),
            cache.directory(Algorithm::Sha512),
            cache.root.join(ORIGINS),
            cache.new_directory(),
            cache.users_directory(),
        ] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&directory)
                .map_err(ImageError::io("make", directory))?;
        }
        Ok(cache)
    }

    /// The cache as one pull may use it, for somebody who was given these layers before: all layers of
    /// the pull find room in what is free now, less a reserve.
    pub(super) fn for_pull(&self, given: BTreeSet<Digest>) -> Result<Self, ImageError> {
        let root = File::open(&*self.root).map_err(ImageError::io("open", &*self.root))?;
        let free = Limits::default().within_free(root).total;
        Ok(Self {
            given: Arc::new(given),
            pool: Pool::of_bytes(free.saturating_sub(RESERVE)),
            ..self.clone()
        })
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn directory(&self, algorithm: Algorithm) -> PathBuf {
        self.root.join(algorithm.name())
    }

    fn new_directory(&self) -> PathBuf {
        self.root.join(NEW)
    }

    /// The directory of the notes about who uses what.
    pub(super) fn users_directory(&self) -> PathBuf {
        self.root.join("users")
    }

    /// Where a layer is, when it is there.
    pub fn path(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}{SUFFIX}", diff_id.hex());
        self.directory(diff_id.algorithm()).join(name)
    }

    /// Where the list of a layer's blobs is.
    pub(super) fn origins_path(&self, diff_id: &Digest) -> PathBuf {
        let name = format!("{}-{}.json", diff_id.algorithm(), diff_id.hex());
        self.root.join(ORIGINS).join(name)
    }

    /// Keeps every layer where it is, until the hold is dropped. Waits for a collector to end, and
    /// says so when it takes long: it may have asked a machine that does not answer.
    pub async fn hold(&self) -> Result<Hold, ImageError> {
        let lock = self.lock_file()?;
        let words = "waiting for another command that clears up the layers";
        telling(words, async {
            while let Err(error) = lock.try_lock_shared() {
                match error {
                    TryLockError::WouldBlock => tokio::time::sleep(PAUSE).await,
                    TryLockError::Error(error) => {
                        return Err(ImageError::io("lock", self.root.join("lock"))(error));
                    }
                }
            }
            Ok(())
        })
        .await?;
        Ok(Hold { _lock: lock })
    }

    /// The right to remove layers; `None` while a command uses some.
    pub(super) fn try_own(&self) -> Result<Option<Hold>, ImageError> {
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Hold { _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(ImageError::io("lock", self.root.join("lock"))(error))
            }
        }
    }

    fn lock_file(&self) -> Result<File, ImageError> {
        let path = self.root.join("lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let opened = options.mode(0o600).open(&path);
        opened.map_err(ImageError::io("open", path))
    }

    /// A layer that is there and whole, and notes that it is used now. One that is not whole is
    /// removed.
    pub fn find(&self, diff_id: &Digest) -> Option<(PathBuf, Note)> {
        let path = self.path(diff_id);
        let file = File::options()
            .read(true)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .ok()?;
        match Note::read(&file) {
            Ok(note) if note.diff_id == *diff_id => {
                // A cache that cannot be written to still serves.
                let _ = file.set_modified(SystemTime::now());
                Some((path, note))
            }
            _ => {
                let _ = fs::remove_file(&path);
                None
            }
        }
    }

    /// A layer as its archive. `None` when it is not here, or its recipe is not: older versions of
    /// this program kept none.
    pub fn archive(&self, diff_id: &Digest) -> Option<LayerArchive> {
        let (path, _) = self.find(diff_id)?;
        let recipe = recipe_of(&path);
        let length = plain_length(&recipe).ok()?;
        let files = Files::open(File::open(path).ok()?).ok()?;
        Some(LayerArchive {
            files,
            recipe,
            length,
        })
    }

    /// Removes a layer.
    pub(super) fn remove(&self, layer: &CachedLayer) -> io::Result<()> {
        fs::remove_file(&layer.path)?;
        let _ = fs::remove_file(recipe_of(&layer.path));
        let _ = fs::remove_file(self.origins_path(&layer.diff_id));
        Ok(())
    }

    /// Every layer.
    pub fn layers(&self) -> Result<Vec<CachedLayer>, ImageError> {
        let mut layers = Vec::new();
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let directory = self.directory(algorithm);
            let list = ImageError::io("list", &directory);
            for entry in fs::read_dir(&directory).map_err(list)?.flatten() {
                let name = entry.file_name();
                let hex = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
                let digest = hex.map(|hex| Digest::parse(&format!("{algorithm}:{hex}")));
                // Gone since, or not ours.
                let (Some(Ok(diff_id)), Ok(meta)) = (digest, entry.metadata()) else {
                    continue;
                };
                let recipe = fs::metadata(recipe_of(&entry.path()));
                let blocks = meta.blocks() + recipe.map_or(0, |recipe| recipe.blocks());
                layers.push(CachedLayer {
                    diff_id,
                    path: entry.path(),
                    allocated: blocks.saturating_mul(512),
                    used: meta.modified().unwrap_or(SystemTime::UNIX_EPOCH),
                });
            }
        }
        layers.sort_by(|a, b| (a.used, &a.diff_id).cmp(&(b.used, &b.diff_id)));
        Ok(layers)
    }

    /// Removes what writers that are gone have left.
    pub(super) fn clear_unfinished(&self) {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let entries = fs::read_dir(self.directory(algorithm))
                .into_iter()
                .flatten();
            for path in entries.flatten().map(|entry| entry.path()) {
                let is_recipe = path.extension().is_some_and(|end| RECIPE[1..] == *end);
                if is_recipe && !path.with_extension(&SUFFIX[1..]).exists() {
                    let _ = fs::remove_file(path);
                }
            }
        }
        let entries = fs::read_dir(self.new_directory()).into_iter().flatten();
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if file.try_lock().is_ok() {
                let _ = fs::remove_file(path);
            }
        }
    }

    /// A new file under a name of its own, locked.
    fn new_file(&self) -> Result<(PathBuf, File), ImageError> {
        loop {
            let serial = self.serial.fetch_add(1, Ordering::Relaxed);
            let path = self
                .new_directory()
                .join(format!("{}-{serial}", process::id()));
            let mut options = File::options();
            options.read(true).write(true).create_new(true).mode(0o600);
            match options.open(&path) {
                Ok(file) => {
                    // A collector that has it now takes it for a leftover; then there is another.
                    if file.try_lock().is_ok() && path.exists() {
                        return Ok((path, file));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ImageError::io("make", path)(error)),
            }
        }
    }
}

/// Where the recipe of the layer at a path is.
fn recipe_of(layer: &Path) -> PathBuf {
    layer.with_extension(&RECIPE[1..])
}

/// Removes a file unless it was given another name.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

impl LayerStore for Cache {
    fn has_layer(&self, diff_id: &Digest) -> bool {
        self.find(diff_id).is_some()
    }

    fn holding(&self, layer: &Wanted, registry: Option<&Host>) -> Holding {
        let origins = origins::read(&self.origins_path(&layer.diff_id));
        let origin = Origin::new(registry, &layer.blob.digest);
        let is_plain = origin.blob == layer.diff_id;
        let is_layer = is_plain || origins.iter().any(|known| known.blob == origin.blob);
        if !is_layer || !self.has_layer(&layer.diff_id) {
            Holding::Absent
        } else if self.given.contains(&layer.diff_id) {
            Holding::Present
        } else if registry.is_none() || origins.contains(&origin) {
            Holding::IfOffered
        } else {
            // Any registry can say that it offers a blob; a file has to show it.
            Holding::Absent
        }
    }

    fn verified(&self, layer: &Wanted, registry: Option<&Host>) -> Result<(), ImageError> {
        let path = self.origins_path(&layer.diff_id);
        let origin = Origin::new(registry, &layer.blob.digest);
        origins::add(&path, &self.new_directory(), &origin).map_err(ImageError::io("write", path))
    }

    fn take_layer(
        &self,
        source: impl Read + Send,
        diff_id: &Digest,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Unpacked, UnpackError>, ImageError> {
        let (path, file) = self.new_file()?;
        let mut unfinished = Unfinished(Some(path.clone()));
        let (recipe, recipe_file) = self.new_file()?;
        let mut unfinished_recipe = Unfinished(Some(recipe.clone()));
        let writing = recipe_file
            .try_clone()
            .map_err(ImageError::io("open", &recipe))?;
        let mut recorder = Recorder::new(writing);
        let scratch = tempfile::tempfile_in(self.new_directory())
            .map_err(ImageError::io("make a file in", self.new_directory()))?;
        let limits = Limits {
            pool: self.pool.clone(),
            ..Limits::default()
        };
        let recording = Some(&mut recorder);
        let written = write_image(
            source, diff_id, &limits, cancelled, &file, &scratch, recording,
        );
        let unpacked = match written {
            Ok(unpacked) => unpacked,
            Err(error) => return Ok(Err(error)),
        };
        let target = self.path(diff_id);
        let publish = |file: &File, path: &Path, target: &Path| {
            file.sync_all()?;
            fs::set_permissions(path, fs::Permissions::from_mode(0o400))?;
            fs::rename(path, target)
        };
        // Without a recipe a layer can be run, but not saved. It comes first, so that a layer that is
        // there has its own.
        if recorder.finish(unpacked.plain)
            && publish(&recipe_file, &recipe, &recipe_of(&target)).is_ok()
        {
            unfinished_recipe.0 = None;
        }
        publish(&file, &path, &target).map_err(ImageError::io("make", target))?;
        unfinished.0 = None;
        Ok(Ok(unpacked))
    }

    /// A layer is durable before it has its name; one whose name a power cut took is pulled again.
    fn checkpoint(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::{
        manifest::{Descriptor, media_type::OCI_LAYER_GZIP},
        tar::write::{END, Member, Type, header, padding},
    };

    use super::*;

    /// The archive of one file.
    fn archive(name: &str, size: usize) -> Vec<u8> {
        let member = Member {
            kind: Type::File,
            name: name.as_bytes(),
            link: b"",
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: size as u64,
            mtime: 5,
        };
        let mut plain = header(&member);
        plain.extend(vec![7; size]);
        plain.extend(&END[..padding(size as u64)]);
        plain.extend(END);
        plain
    }

    fn wanted(blob: &[u8], plain: &[u8]) -> Wanted {
        Wanted {
            blob: Descriptor::new(OCI_LAYER_GZIP, Digest::sha256(blob), blob.len() as u64),
            diff_id: Digest::sha256(plain),
        }
    }

    #[test]
    fn an_image_gets_a_layer_for_its_blob_and_not_for_its_name() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let [home, evil] =
            ["localhost:5000", "evil.example"].map(|host| Host::parse(host).unwrap());
        let plain = archive("secret", 100);
        let (private, other) = (wanted(b"blob", &plain), wanted(b"other blob", &plain));
        let (home, evil) = (Some(&home), Some(&evil));
        let own = cache
            .for_pull(BTreeSet::from([private.diff_id.clone()]))
            .unwrap();
        let others = cache.for_pull(BTreeSet::new()).unwrap();
        let taken = own.take_layer(&plain[..], &private.diff_id, &|| false);
        taken.unwrap().unwrap();
        // Nobody has seen a blob that is this layer.
        for cache in [&own, &others] {
            assert_eq!(cache.holding(&private, home), Holding::Absent);
        }
        own.verified(&private, home).unwrap();
        assert_eq!(own.holding(&private, home), Holding::Present);
        assert_eq!(others.holding(&private, home), Holding::IfOffered);
        // An image with a blob of its own that says it were this layer.
        for cache in [&own, &others] {
            assert_eq!(cache.holding(&other, home), Holding::Absent);
        }
        // A registry that may say anything about a blob it never served.
        assert_eq!(others.holding(&private, evil), Holding::Absent);
        assert_eq!(own.holding(&private, evil), Holding::Present);
        // Another compression of the same layer, once it was unpacked.
        others.verified(&other, evil).unwrap();
        assert_eq!(others.holding(&other, evil), Holding::IfOffered);
        assert_eq!(others.holding(&private, home), Holding::IfOffered);
        // In a file it has to be shown; plain, its name says all.
        assert_eq!(own.holding(&private, None), Holding::Present);
        assert_eq!(others.holding(&private, None), Holding::IfOffered);
        let itself = wanted(&plain, &plain);
        assert_eq!(others.holding(&itself, None), Holding::IfOffered);
        assert_eq!(others.holding(&itself, home), Holding::Absent);
        let lying = wanted(b"a third blob", &plain);
        assert_eq!(own.holding(&lying, None), Holding::Absent);
        // What a file showed no registry may offer.
        own.verified(&lying, None).unwrap();
        assert_eq!(others.holding(&lying, evil), Holding::Absent);
        assert_eq!(others.holding(&lying, None), Holding::IfOffered);
        // The list goes with the layer, and says nothing without it.
        fs::remove_file(cache.path(&private.diff_id)).unwrap();
        assert_eq!(own.holding(&private, home), Holding::Absent);
        let taken = own.take_layer(&plain[..], &private.diff_id, &|| false);
        taken.unwrap().unwrap();
        super::super::collect(&cache, 0).unwrap();
        assert!(!cache.origins_path(&private.diff_id).exists());
    }

    #[test]
    fn the_layers_of_one_pull_find_room_together() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache {
            pool: Pool::of_bytes(50_000),
            ..Cache::open(root.path()).unwrap()
        };
        let take = |cache: &Cache, name: &str| {
            let plain = archive(name, 30_000);
            let taken = cache.take_layer(&plain[..], &Digest::sha256(&plain), &|| false);
            taken.unwrap()
        };
        take(&cache, "a").unwrap();
        let full = take(&cache.clone(), "b");
        assert!(
            matches!(full, Err(UnpackError::TooLarge { limit: 50_000 })),
            "{full:?}"
        );
        assert_eq!(cache.layers().unwrap().len(), 1);
        // The next pull has what is free then, and leaves some of it.
        let next = cache.for_pull(BTreeSet::new()).unwrap();
        let free = Limits::default().within_free(File::open(root.path()).unwrap());
        assert!(next.pool.max_bytes() < free.total);
        take(&next, "b").unwrap();
    }
}
