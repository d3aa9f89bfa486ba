//! Layers that the host keeps: known here like any other, mounted from disks that it attaches.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use vdkr_core::{
    channel::message::{KeptLayer, NeededLayers, RegistrySettings},
    digest::Digest,
};
use vdkr_transfer::erofs::Note;

use super::{ImageError, Store, StoredImage, layer::free_name, meant, state::LayerRecord};

impl StoredImage {
    /// Whether every layer is where it belongs, those that the host keeps among them.
    pub fn ready(&self) -> Result<(), ImageError> {
        let lease = &self.lease;
        let live = lease.inner.lock();
        let waits = lease.layers.iter().find(|&layer| {
            let known = live.state.layers.get(layer);
            known.is_some_and(|known| known.kept_by_host) && !live.mounted.contains(layer)
        });
        match waits {
            None => Ok(()),
            Some(layer) => Err(ImageError::NotHandedOver {
                image: self.id.short().to_owned(),
                layer: layer.clone(),
            }),
        }
    }
}

impl Store {
    /// Takes note of a layer that the host keeps, unless the store has it.
    pub fn expect_layer(&self, diff_id: &Digest, layer: &KeptLayer) -> Result<(), ImageError> {
        let inner = &self.inner;
        let mut live = inner.lock();
        if live.state.layers.contains_key(diff_id) {
            return Ok(());
        }
        let name = free_name(&inner.layers_dir, diff_id);
        let path = inner.layers_dir.join(&name);
        fs::create_dir(&path).map_err(ImageError::io("make", path))?;
        let record = LayerRecord {
            name,
            size: layer.bytes,
            opaque: layer.opaque,
            kept_by_host: true,
            spare: 0,
        };
        live.unsynced.insert(diff_id.clone());
        live.state.layers.insert(diff_id.clone(), record);
        Ok(())
    }

    /// Which layers the host keeps for an image, or for all.
    pub fn needed_layers(
        &self,
        image: Option<&str>,
        settings: &RegistrySettings,
    ) -> Result<NeededLayers, ImageError> {
        let live = self.inner.lock();
        let kept = live.state.layers.iter();
        let kept = kept.filter(|(_, layer)| layer.kept_by_host);
        let mut needed = NeededLayers {
            kept: kept.map(|(diff_id, _)| diff_id.to_string()).collect(),
            ..NeededLayers::default()
        };
        let Some(name) = image else {
            return Ok(needed);
        };
        let id = meant(&live.state, name, settings)?;
        let Some(image) = live.state.images.get(&id) else {
            return Ok(needed);
        };
        for diff_id in &image.layers {
            let text = diff_id.to_string();
            let is_missing = live
                .state
                .layers
                .get(diff_id)
                .is_some_and(|layer| layer.kept_by_host && !live.mounted.contains(diff_id));
            if is_missing && !needed.missing.contains(&text) {
                needed.missing.push(text);
            }
        }
        needed.source.clone_from(&image.source);
        needed.manifest = image.manifest.digest.to_string();
        needed.id = id.to_string();
        Ok(needed)
    }

    /// Mounts a layer that the host keeps from the device of its disk. Blocks.
    pub fn mount_layer(&self, diff_id: &Digest, device: &Path) -> Result<(), ImageError> {
        let unfit = |reason: String| ImageError::Damaged {
            path: device.to_owned(),
            reason,
        };
        let file = File::open(device).map_err(ImageError::io("open", device))?;
        let note = Note::of_disk(&file).map_err(|error| unfit(error.to_string()))?;
        if note.diff_id != *diff_id {
            return Err(unfit(format!("it holds layer {}", note.diff_id)));
        }
        // While it is locked nobody removes the layer.
        let mut live = self.inner.lock();
        let Some(layer) = live.state.layers.get(diff_id) else {
            return Err(unfit(format!("no image has layer {diff_id}")));
        };
        if !layer.kept_by_host || live.mounted.contains(diff_id) {
            return Ok(());
        }
        let target = self.inner.layers_dir.join(&layer.name);
        let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
        match mount(Some(device), &target, Some("erofs"), flags, None::<&str>) {
            Ok(()) => {}
            // By an agent that this one has taken the place of.
            Err(Errno::EBUSY) if is_mounted(&target) => {}
            Err(errno) => {
                let failed = ImageError::io("mount the layer at", &target);
                return Err(failed(io::Error::from(errno)));
            }
        }
        live.mounted.insert(diff_id.clone());
        Ok(())
    }
}

fn is_mounted(target: &Path) -> bool {
    const EROFS_MAGIC: i64 = 0xe0f5_e1e2;
    rustix::fs::statfs(target).is_ok_and(|stat| stat.f_type == EROFS_MAGIC)
}

/// Unmounts a layer. A container that still has it keeps it.
pub(super) fn let_go(target: &Path) {
    // Nothing is mounted there when the host has not handed it over since the start.
    let _ = umount2(target, MntFlags::MNT_DETACH);
}
