//! A layer on its way into the store.

use std::{
    fmt, fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
};

use vdkr_core::digest::Digest;
use vdkr_transfer::pull::LayerStore;

use super::{ImageError, Inner, Store, state::LayerRecord};
use crate::unpack::{UnpackError, Unpacked, recipe::Recorder, root::Root, unpack_recorded};

/// Digits of a layer's name, unless another layer has the same: short, because the kernel takes the
/// names of all layers of an overlay in one page.
const NAME: usize = 12;

/// A directory in which a layer is unpacked. Dropped without being published, it goes.
pub struct NewLayer {
    inner: Arc<Inner>,
    name: Option<String>,
}

impl Store {
    /// Makes a directory for a layer.
    pub fn new_layer(&self) -> Result<NewLayer, ImageError> {
        loop {
            let name = self.inner.new_name();
            let path = self.inner.layers_dir.join(&name);
            match fs::create_dir(&path) {
                Ok(()) => {
                    return Ok(NewLayer {
                        inner: self.inner.clone(),
                        name: Some(name),
                    });
                }
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(ImageError::io("make", path)(error)),
            }
        }
    }
}

impl Store {
    /// Unpacks a layer and publishes it.
    pub fn unpack_layer(
        &self,
        source: impl Read + Send,
        diff_id: &Digest,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Unpacked, UnpackError>, ImageError> {
        let options = self.unpacking()?;
        let layer = self.new_layer()?;
        let path = layer.path();
        let root = Root::open(&path).map_err(ImageError::io("open", path))?;
        let recipe = layer.recipe_path();
        // Without a recipe the layer can be run, but not saved.
        let _ = fs::remove_file(&recipe);
        let mut recorder = Recorder::create(&recipe).ok();
        match unpack_recorded(
            source,
            &root,
            diff_id,
            options,
            cancelled,
            recorder.as_mut(),
        ) {
            Ok(unpacked) => {
                if !recorder.is_some_and(|recorder| recorder.finish(unpacked.plain)) {
                    let _ = fs::remove_file(&recipe);
                }
                layer.publish(diff_id, &unpacked)?;
                Ok(Ok(unpacked))
            }
            Err(error) => Ok(Err(error)),
        }
    }
}

impl LayerStore for Store {
    fn has_layer(&self, diff_id: &Digest) -> bool {
        self.inner.lock().state.layers.contains_key(diff_id)
    }

    fn take_layer(
        &self,
        source: impl Read + Send,
        diff_id: &Digest,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Unpacked, UnpackError>, ImageError> {
        self.unpack_layer(source, diff_id, cancelled)
    }

    fn checkpoint(&self) -> Result<(), ImageError> {
        Self::checkpoint(self)
    }
}

impl NewLayer {
    /// The directory.
    pub fn path(&self) -> PathBuf {
        self.inner.layers_dir.join(self.name())
    }

    fn recipe_path(&self) -> PathBuf {
        self.inner.recipes_dir.join(self.name())
    }

    fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Makes it a layer of the store, unless that has the layer already. It outlives a crash only
    /// after [`Store::checkpoint`].
    pub fn publish(mut self, diff_id: &Digest, unpacked: &Unpacked) -> Result<(), ImageError> {
        let inner = self.inner.clone();
        let mut live = inner.lock();
        if live.state.layers.contains_key(diff_id) {
            return Ok(());
        }
        let name = free_name(&inner.layers_dir, diff_id);
        let path = inner.layers_dir.join(&name);
        let _ = fs::rename(self.recipe_path(), inner.recipes_dir.join(&name));
        fs::rename(self.path(), &path).map_err(ImageError::io("make", path))?;
        self.name = None;
        live.unsynced.insert(diff_id.clone());
        let record = LayerRecord {
            name,
            size: unpacked.bytes,
            opaque: unpacked.opaque_root,
            kept_by_host: false,
            spare: 0,
        };
        live.state.layers.insert(diff_id.clone(), record);
        Ok(())
    }
}

/// The shortest beginning of the digest that nothing has as its name.
pub(super) fn free_name(directory: &Path, diff_id: &Digest) -> String {
    let hex = diff_id.hex();
    let is_free = |name: &str| fs::symlink_metadata(directory.join(name)).is_err();
    let lengths = (NAME..=hex.len()).step_by(4);
    let mut names = lengths.map(|length| &hex[..length]);
    names.find(|name| is_free(name)).unwrap_or(hex).to_owned()
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.inner.discard_layer(name);
        }
    }
}

impl fmt::Debug for NewLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewLayer").field(&self.name).finish()
    }
}
