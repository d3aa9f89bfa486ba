//! What nothing needs any more, and how much room things take.

use std::collections::BTreeSet;

use vdkr_core::{
    channel::message::{Removed, Usage},
    digest::Digest,
};

use super::{ImageError, Store, state::Target};

impl Store {
    /// Removes images without a name, with `all` those without a container, and layers without an image;
    /// what was removed, and how many bytes of layers that were. `only` leaves other images alone,
    /// and spare layers too.
    pub fn prune(
        &self,
        all: bool,
        only: Option<&[Digest]>,
        dry_run: bool,
    ) -> Result<(Vec<Removed>, u64), ImageError> {
        let mut live = self.inner.lock();
        let running = live.running.clone();
        let wanted: Vec<Target> = live
            .state
            .images
            .keys()
            .filter(|id| only.is_none_or(|only| only.contains(id)))
            .filter(|id| !running.contains_key(*id))
            .filter(|id| all || live.state.names_of(id).next().is_none())
            .cloned()
            .map(Target::Id)
            .collect();
        let mut next = live.state.clone();
        let mut removed = next.remove(&wanted, true, &|_| false)?;
        let used = next.used_layers();
        let spare: BTreeSet<Digest> = match only {
            Some(_) => BTreeSet::new(),
            None => {
                let unused = live
                    .state
                    .layers
                    .keys()
                    .filter(|layer| !used.contains(*layer));
                let free = unused.filter(|layer| !live.leased.contains_key(*layer));
                free.cloned().collect()
            }
        };
        let before = live.state.used_layers();
        let gone = before
            .difference(&used)
            .chain(&spare)
            .collect::<BTreeSet<_>>();
        let sizes = gone
            .iter()
            .filter_map(|layer| live.state.layers.get(*layer));
        let freed = sizes.map(|layer| layer.size).fold(0, u64::saturating_add);
        removed.extend(gone.iter().map(|layer| Removed::Deleted(layer.to_string())));
        if dry_run {
            return Ok((removed, freed));
        }
        let mut records = Vec::new();
        self.inner.update(&mut live, |state| {
            state.remove(&wanted, true, &|_| false)?;
            for layer in &spare {
                // Those that an image had until now are taken by the update itself.
                if !before.contains(layer)
                    && let Some(record) = state.layers.remove(layer)
                {
                    records.push(record);
                }
            }
            Ok(())
        })?;
        drop(live);
        for record in records {
            self.inner.discard(&record);
        }
        Ok((removed, freed))
    }

    /// How much room images and layers take.
    pub fn usage(&self) -> Usage {
        let live = self.inner.lock();
        let state = &live.state;
        let size = |layers: &BTreeSet<Digest>| {
            let sizes = layers.iter().filter_map(|layer| state.layers.get(layer));
            sizes.map(|layer| layer.size).fold(0, u64::saturating_add)
        };
        let used = state.used_layers();
        let active: BTreeSet<Digest> = state
            .images
            .iter()
            .filter(|(id, _)| live.running.contains_key(*id))
            .flat_map(|(_, image)| image.layers.iter().cloned())
            .collect();
        let all: BTreeSet<Digest> = state.layers.keys().cloned().collect();
        Usage {
            images: state.images.len() as u64,
            images_active: live.running.len() as u64,
            layers_size: size(&used),
            layers_reclaimable: size(&used.difference(&active).cloned().collect()),
            spare_size: size(&all.difference(&used).cloned().collect()),
            ..Usage::default()
        }
    }
}
