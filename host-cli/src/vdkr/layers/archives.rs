//! Layers that this computer keeps, as the archives that they came as: of an image whose layers its
//! machine only mounts, `save` and `push` read them here.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    io::Read,
};

use vdkr_core::{
    channel::message::{
        ExportedImage, NeededLayers, PullRequest, RegistrySettings, Reply, Request,
    },
    digest::Digest,
    reference::{Host, Reference},
};
use vdkr_transfer::{
    layer::{UnpackError, Unpacked},
    pull::{Holding, ImageError, LayerStore, Wanted},
};

use super::{
    Cache, Hold, cache,
    cache::LayerArchive,
    note_use,
    pull::{fetch_again, for_pull},
    users::layers_of,
};
use crate::vdkr::{
    command::wrong_reply,
    error::Result,
    logins::Given,
    news::News,
    registry,
    session::Session,
    settings::{Settings, StatePlace},
};

/// The layers of an image that are here.
#[derive(Debug, Default)]
pub struct Archives {
    here: BTreeMap<Digest, LayerArchive>,
    _hold: Option<Hold>,
}

impl Archives {
    /// Finds the layers that the machine cannot make into archives itself. Those that are no longer
    /// here, or without their recipe, are pulled again; what cannot be had so is left out.
    pub async fn of(
        session: &mut Session,
        settings: &Settings,
        logins: &Given,
        image: &ExportedImage,
    ) -> Result<Self> {
        let wanted: BTreeSet<Digest> = image
            .layers
            .iter()
            .filter(|layer| layer.plain.is_none())
            .map(|layer| layer.diff_id.clone())
            .collect();
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let cache = cache(settings)?;
        let hold = cache.hold().await?;
        // The word of a machine is no proof that it may have a layer: another one's image may be
        // private.
        let given = match &settings.state {
            StatePlace::Directory(dir) => layers_of(&cache, dir)?,
            StatePlace::Nowhere => BTreeSet::new(),
        };
        let mut archives = Self {
            here: wanted
                .intersection(&given)
                .filter_map(|layer| Some((layer.clone(), cache.archive(layer)?)))
                .collect(),
            _hold: Some(hold),
        };
        let missing: BTreeSet<_> = wanted
            .into_iter()
            .filter(|layer| !archives.here.contains_key(layer))
            .collect();
        if missing.is_empty() {
            return Ok(archives);
        }
        for layer in pull_again(session, settings, logins, image, &cache, missing).await? {
            if let Some(archive) = cache.archive(&layer) {
                archives.here.insert(layer, archive);
            }
        }
        Ok(archives)
    }

    /// The archive of a layer, when it is here.
    pub fn get(&self, diff_id: &Digest) -> Option<&LayerArchive> {
        self.here.get(diff_id)
    }
}

/// Pulls an image's layers from where it came from, and says which of the missing ones it has.
async fn pull_again(
    session: &mut Session,
    settings: &Settings,
    logins: &Given,
    image: &ExportedImage,
    cache: &Cache,
    missing: BTreeSet<Digest>,
) -> Result<BTreeSet<Digest>> {
    let question = Request::Layers {
        image: Some(image.id.to_string()),
        of_container: false,
        settings: RegistrySettings::default(),
    };
    let NeededLayers {
        source,
        manifest,
        kept,
        ..
    } = match session.ask_plainly(&question).await? {
        Ok(Reply::Layers(needed)) => needed,
        // An agent that does not know has nothing of ours.
        Err(_) => return Ok(BTreeSet::new()),
        Ok(other) => return Err(wrong_reply(&other)),
    };
    // An image that was loaded or made here came from nowhere.
    let (Ok(source), Ok(manifest)) = (Reference::parse(&source), Digest::parse(&manifest)) else {
        return Ok(BTreeSet::new());
    };
    let source = source.without_tag().with_digest(manifest).to_string();
    let request = PullRequest {
        settings: registry::with_logins(settings, logins, &[&source])?,
        reference: source,
        platform: None,
    };
    let store = WithRecipe(for_pull(cache, settings, &kept)?);
    let mut news = News::new(settings.global.progress, settings.verbose);
    let news = RefCell::new(&mut news);
    let proved = fetch_again(&store, &request, settings.arch.oci_name(), &news).await?;
    let found: BTreeSet<Digest> = missing.intersection(&proved).cloned().collect();
    if let StatePlace::Directory(dir) = &settings.state {
        note_use(cache, dir, &found)?;
    }
    Ok(found)
}

/// The cache, for which a layer without its recipe is none.
#[derive(Clone)]
pub(super) struct WithRecipe(pub(super) Cache);

impl LayerStore for WithRecipe {
    fn has_layer(&self, diff_id: &Digest) -> bool {
        self.0.archive(diff_id).is_some()
    }

    fn holding(&self, layer: &Wanted, registry: Option<&Host>) -> Holding {
        if self.has_layer(&layer.diff_id) {
            self.0.holding(layer, registry)
        } else {
            Holding::Absent
        }
    }

    fn verified(
        &self,
        layer: &Wanted,
        registry: Option<&Host>,
    ) -> std::result::Result<(), ImageError> {
        self.0.verified(layer, registry)
    }

    fn take_layer(
        &self,
        source: impl Read + Send,
        diff_id: &Digest,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> std::result::Result<std::result::Result<Unpacked, UnpackError>, ImageError> {
        self.0.take_layer(source, diff_id, cancelled)
    }

    fn checkpoint(&self) -> std::result::Result<(), ImageError> {
        self.0.checkpoint()
    }
}
