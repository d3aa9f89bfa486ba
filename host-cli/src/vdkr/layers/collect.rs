//! Layers go when the cache has grown over its limit: those first that were not used for longest,
//! and none that an image of any state directory has. A machine that runs keeps what it was handed,
//! because the emulator has the file open.

use std::collections::BTreeSet;

use vdkr_core::digest::Digest;
use vdkr_transfer::pull::ImageError;

use super::{Cache, CachedLayer, users};

/// What a collection came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers removed.
    pub layers: usize,
    /// Bytes that they took.
    pub bytes: u64,
    /// A command used layers; nothing was removed.
    pub busy: bool,
}

/// Removes unused layers until those that are left take `limit` bytes at most, or none is unused.
pub fn collect(cache: &Cache, limit: u64) -> Result<Collected, ImageError> {
    let Some(_own) = cache.try_own()? else {
        return Ok(Collected {
            busy: true,
            ..Collected::default()
        });
    };
    cache.clear_unfinished();
    let used = users::used(cache)?;
    let mut collected = Collected::default();
    for layer in victims(cache.layers()?, &used, limit) {
        if cache.remove(&layer).is_ok() {
            collected.layers += 1;
            collected.bytes += layer.allocated;
        }
    }
    Ok(collected)
}

/// Layers that no image of any state directory has.
pub fn unused(cache: &Cache) -> Result<Vec<CachedLayer>, ImageError> {
    let used = users::used(cache)?;
    let mut layers = cache.layers()?;
    layers.retain(|layer| !used.contains(&layer.diff_id));
    Ok(layers)
}

/// The layers to go, of those in the order of their last use.
fn victims(layers: Vec<CachedLayer>, used: &BTreeSet<Digest>, limit: u64) -> Vec<CachedLayer> {
    let sizes = layers.iter().map(|layer| layer.allocated);
    let mut total = sizes.fold(0, u64::saturating_add);
    let unused = layers
        .into_iter()
        .filter(|layer| !used.contains(&layer.diff_id));
    unused
        .take_while(|layer| {
            let goes = total > limit;
            total = total.saturating_sub(layer.allocated);
            goes
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Read as _,
        os::unix::fs::PermissionsExt as _,
        path::Path,
        time::{Duration, SystemTime},
    };

    use proptest::prelude::*;
    use vdkr_transfer::pull::LayerStore as _;

    use super::super::{note_use, note_users_layers};
    use super::*;

    /// An empty archive with something behind its end, so that there are many.
    fn take(cache: &Cache, n: u8) -> Digest {
        let plain = [vec![0; 1024], vec![n; 10]].concat();
        let digest = Digest::sha256(&plain);
        cache
            .take_layer(&plain[..], &digest, &|| false)
            .unwrap()
            .unwrap();
        digest
    }

    fn age(cache: &Cache, layer: &Digest, seconds: u64) {
        let then = SystemTime::now() - Duration::from_secs(seconds);
        File::open(cache.path(layer))
            .unwrap()
            .set_modified(then)
            .unwrap();
    }

    fn cache(root: &Path) -> Cache {
        Cache::open(root).unwrap()
    }

    #[test]
    fn what_nobody_has_goes_longest_unused_first() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let [a, b, c] = [1, 2, 3].map(|n| take(&cache, n));
        age(&cache, &a, 100);
        age(&cache, &b, 300);
        age(&cache, &c, 200);
        let one = cache.layers().unwrap()[0].allocated;
        note_use(&cache, root.path(), [&b]).unwrap();
        assert_eq!(collect(&cache, one * 3).unwrap(), Collected::default());
        let collected = collect(&cache, one * 2).unwrap();
        assert_eq!((collected.layers, collected.bytes), (1, one));
        assert!(cache.has_layer(&a) && cache.has_layer(&b) && !cache.has_layer(&c));
        // Even when nothing may stay.
        assert_eq!(collect(&cache, 0).unwrap().layers, 1);
        assert!(cache.has_layer(&b));
        note_users_layers(&cache, root.path(), &BTreeSet::new()).unwrap();
        assert_eq!(collect(&cache, 0).unwrap().layers, 1);
        assert!(cache.layers().unwrap().is_empty());
    }

    #[test]
    fn a_recipe_goes_with_its_layer() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let layer = take(&cache, 1);
        let recipe = cache.path(&layer).with_extension("recipe");
        let archive = cache.archive(&layer).unwrap();
        let mut plain = Vec::new();
        archive.read().unwrap().read_to_end(&mut plain).unwrap();
        assert_eq!(Digest::sha256(&plain), layer);
        assert_eq!(archive.length, plain.len() as u64);
        // One whose layer never came.
        let orphan = recipe.with_file_name("00.recipe");
        fs::copy(&recipe, &orphan).unwrap();
        collect(&cache, u64::MAX).unwrap();
        assert!(recipe.exists() && !orphan.exists());
        collect(&cache, 0).unwrap();
        assert!(!recipe.exists());
        // Layers of older versions have none.
        let layer = take(&cache, 2);
        fs::remove_file(cache.path(&layer).with_extension("recipe")).unwrap();
        assert!(cache.has_layer(&layer) && cache.archive(&layer).is_none());
    }

    #[test]
    fn a_state_directory_that_is_gone_has_nothing() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let layer = take(&cache, 1);
        let state = root.path().join("x86_64");
        fs::create_dir(&state).unwrap();
        note_use(&cache, &state, [&layer]).unwrap();
        assert_eq!(collect(&cache, 0).unwrap().layers, 0);
        fs::remove_dir(&state).unwrap();
        assert_eq!(collect(&cache, 0).unwrap().layers, 1);
    }

    #[tokio::test]
    async fn nothing_goes_while_a_command_holds_the_cache() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let layer = take(&cache, 1);
        let hold = cache.hold().await.unwrap();
        assert!(collect(&cache, 0).unwrap().busy);
        assert!(cache.has_layer(&layer));
        drop(hold);
        assert_eq!(collect(&cache, 0).unwrap().layers, 1);
    }

    #[tokio::test]
    async fn a_command_waits_for_a_collector() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let own = cache.try_own().unwrap().unwrap();
        let patience = std::time::Duration::from_millis(50);
        let early = tokio::time::timeout(patience, cache.hold()).await;
        assert!(early.is_err());
        drop(own);
        cache.hold().await.unwrap();
    }

    #[test]
    fn what_a_killed_writer_left_goes_and_what_is_under_way_stays() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let new = root.path().join("layers/new");
        fs::write(new.join("1-0"), "left").unwrap();
        fs::write(new.join("1-1"), "under way").unwrap();
        let writer = File::open(new.join("1-1")).unwrap();
        writer.lock().unwrap();
        collect(&cache, 0).unwrap();
        assert!(!new.join("1-0").exists() && new.join("1-1").exists());
    }

    #[test]
    fn layers_are_private_and_damage_is_noticed() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let layer = take(&cache, 1);
        let path = cache.path(&layer);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(cache.root()), mode(&path)), (0o700, 0o400));
        // Another layer's image under this one's name, and one that is cut short.
        let other = take(&cache, 2);
        fs::rename(cache.path(&other), &path).unwrap();
        assert!(!cache.has_layer(&layer) && !path.exists());
        let layer = take(&cache, 1);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.set_len(5000).unwrap();
        assert!(!cache.has_layer(&layer) && !path.exists());
    }

    #[test]
    fn a_layer_that_is_refused_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let refused = cache.take_layer(&[7; 600][..], &Digest::sha256(b""), &|| false);
        assert!(refused.unwrap().is_err());
        let endless = std::io::repeat(0).take(1 << 20);
        let wrong = cache.take_layer(endless, &Digest::sha256(b""), &|| false);
        assert!(wrong.unwrap().is_err());
        assert_eq!(
            fs::read_dir(root.path().join("layers/new"))
                .unwrap()
                .count(),
            0
        );
        assert!(cache.layers().unwrap().is_empty());
    }

    #[test]
    fn a_note_that_cannot_be_read_stops_the_collection() {
        let root = tempfile::tempdir().unwrap();
        let cache = cache(root.path());
        let layer = take(&cache, 1);
        fs::write(cache.users_directory().join("x.json"), "{").unwrap();
        assert!(collect(&cache, 0).is_err());
        assert!(cache.has_layer(&layer));
    }

    proptest! {
        #[test]
        fn as_few_go_as_must(sizes in proptest::collection::vec((0..100u64, any::<bool>()), 0..20), limit in 0..1000u64) {
            let layers: Vec<CachedLayer> = sizes.iter().enumerate().map(|(n, (size, _))| CachedLayer {
                diff_id: Digest::sha256(&[n as u8]),
                path: n.to_string().into(),
                allocated: *size,
                used: SystemTime::UNIX_EPOCH,
            }).collect();
            let used: BTreeSet<Digest> = sizes.iter().zip(&layers)
                .filter(|((_, used), _)| *used).map(|(_, layer)| layer.diff_id.clone()).collect();
            let gone = victims(layers.clone(), &used, limit);
            prop_assert!(gone.iter().all(|layer| !used.contains(&layer.diff_id)));
            let total: u64 = layers.iter().map(|layer| layer.allocated).sum();
            let freed: u64 = gone.iter().map(|layer| layer.allocated).sum();
            let unused = layers.len() - used.len();
            prop_assert!(total - freed <= limit || gone.len() == unused);
            if let Some(last) = gone.last() {
                prop_assert!(total - freed + last.allocated > limit);
            }
        }
    }
}
