//! Images of layouts and archives into the machine's store, and root file systems that become
//! images.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, Read, Seek as _},
};

use jiff::Timestamp;
use tokio::task::spawn_blocking;
use vdkr_core::{
    digest::{Algorithm, Digest, Hasher},
    manifest::{
        ContainerConfig, Descriptor, History, ImageConfig, ImageManifest, MAX_CONFIG, RootFs,
        media_type::{DOCKER_CONFIG, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, is_index},
    },
    platform::{Platform, choose},
};
use vdkr_transfer::{
    FetchedManifest, FileSource, OciLayout,
    pull::{LocalBlobs, PlainLayer, Wanted},
};

use super::{Documents, add_image, add_layer};
use crate::{
    exit::Exit,
    progress::{Mode, Progress},
    vdkr::{
        error::{Error, Result},
        layers,
        news::News,
        session::{Session, interruptible},
        settings::Settings,
    },
};

/// How deep an index may lie in an index.
const MAX_DEPTH: usize = 4;
/// Bytes that are hashed at once.
const PIECE: usize = 256 * 1024;

/// An image that was put into the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// Its id.
    pub id: Digest,
    /// The image that had its name before.
    pub replaced: Option<Digest>,
}

/// An image in files of this computer, for one platform.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// Where its layers are.
    pub blobs: LocalBlobs,
    manifest: FetchedManifest,
    /// What its configuration says.
    pub config: ImageConfig,
    raw_config: Vec<u8>,
    layers: Vec<Descriptor>,
    /// Whether it was chosen among several platforms.
    pub from_index: bool,
}

impl Chosen {
    /// Its layers, each once, lowest first.
    pub fn wanted(&self) -> Vec<Wanted> {
        let mut seen = BTreeSet::new();
        let pairs = self.layers.iter().zip(&self.config.rootfs.diff_ids);
        let layers = pairs.filter(|(_, diff_id)| seen.insert(*diff_id));
        layers
            .map(|(blob, diff_id)| Wanted {
                blob: blob.clone(),
                diff_id: diff_id.clone(),
            })
            .collect()
    }

    /// The rest of it.
    pub fn documents(&self) -> Documents<'_> {
        Documents {
            media_type: &self.manifest.media_type,
            config: &self.raw_config,
            manifest: &self.manifest.raw,
        }
    }
}

/// Finds the image for a platform behind a manifest or index. May block.
pub fn choose_image(
    layout: &OciLayout,
    top: FetchedManifest,
    platform: &Platform,
) -> Result<Chosen> {
    let wrong = |reason: String| {
        let message = format!("{}: {reason}", layout.path().display());
        Error::new(Exit::Failed, message)
    };
    let mut manifest = top;
    let mut from_index = false;
    for _ in 0..=MAX_DEPTH {
        let parsed = manifest.parse()?;
        if let Some(index) = parsed.as_index() {
            let Some(entry) = choose(&index.manifests, platform) else {
                return Err(no_platform(layout, &index.manifests, platform));
            };
            // Behind an entry of an index may be another index, with the same platforms or without any.
            from_index |= !is_index(&entry.media_type);
            manifest = layout.manifest(entry)?;
            continue;
        }
        let Some(image) = parsed.as_image() else {
            break;
        };
        let media_type = image.config.media_type.as_str();
        if media_type != OCI_CONFIG && media_type != DOCKER_CONFIG {
            let reason = format!("it is not a container image: its configuration is {media_type}");
            return Err(wrong(reason));
        }
        if image.config.size > MAX_CONFIG as u64 {
            return Err(wrong(format!(
                "its configuration is longer than {MAX_CONFIG} bytes"
            )));
        }
        let raw_config = layout.open_blob(&image.config)?.read_verified()?;
        let config = ImageConfig::parse(&raw_config).map_err(|error| wrong(error.to_string()))?;
        let (layers, diff_ids) = (image.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(wrong(format!(
                "its manifest has {layers} layers and its configuration {diff_ids}"
            )));
        }
        let layers = image.layers.clone();
        return Ok(Chosen {
            blobs: LocalBlobs::Layout(layout.clone()),
            manifest,
            config,
            raw_config,
            layers,
            from_index,
        });
    }
    Err(wrong(format!("its indexes lie more than {MAX_DEPTH} deep")))
}

fn no_platform(layout: &OciLayout, entries: &[Descriptor], wanted: &Platform) -> Error {
    let mut known: Vec<String> = entries
        .iter()
        .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
        .collect();
    known.sort_unstable();
    known.dedup();
    let known = match known.join(", ") {
        known if known.is_empty() => "no entry with a platform".to_owned(),
        known => known,
    };
    let message = format!(
        "{} has no image for {wanted}; it has {known}",
        layout.path().display()
    );
    Error::new(Exit::NotFound, message)
}

/// Puts an image into the machine's store, and gives it its name.
pub async fn load(
    session: &mut Session,
    settings: &Settings,
    chosen: &Chosen,
    name: Option<&str>,
    progress: Mode,
) -> Result<Loaded> {
    if layers::unpacks_here(session, settings) {
        let mut news = News::new(progress, settings.verbose).of_load();
        let news = RefCell::new(&mut news);
        if let Some((id, replaced)) = layers::load(session, settings, chosen, name, &news).await? {
            return Ok(Loaded { id, replaced });
        }
    }
    interruptible(send(session, chosen, name, progress)).await
}

/// Sends an image, layers first, and gives it its name.
async fn send(
    session: &mut Session,
    chosen: &Chosen,
    name: Option<&str>,
    progress: Mode,
) -> Result<Loaded> {
    let display = Progress::new(progress);
    for layer in chosen.wanted() {
        let shown = layer.diff_id.to_string();
        let mut begun = 0;
        let mut moved = |bytes: usize| {
            if begun == 0 {
                display.started(&shown, "loading", 0);
            }
            begun += bytes as u64;
            display.advanced(&shown, begun);
        };
        let (blobs, diff_id) = (chosen.blobs.clone(), layer.diff_id.clone());
        let open = move || {
            let blob = blobs.open_blob(&layer.blob)?;
            PlainLayer::new(blobs, layer, blob).map_err(io::Error::other)
        };
        let sent = add_layer(session, &diff_id, open, &mut moved).await?;
        let word = if sent { "loaded" } else { "already present" };
        display.finished(&shown, word);
    }
    let added = add_image(session, name, &chosen.documents(), Vec::new()).await?;
    let (id, replaced) = added?;
    Ok(Loaded { id, replaced })
}

/// How a root file system becomes an image.
#[derive(Clone, Debug, Default)]
pub struct Making {
    /// Architecture as in OCI platforms, and its variant.
    pub platform: Option<Platform>,
    /// How it is run.
    pub config: ContainerConfig,
    /// What its history says.
    pub comment: String,
}

/// Makes an image with one layer of a plain archive.
pub async fn make_image(
    session: &mut Session,
    settings: &Settings,
    archive: File,
    making: &Making,
    name: Option<&str>,
) -> Result<Loaded> {
    let mut copy = archive.try_clone()?;
    let hashed = spawn_blocking(move || -> io::Result<(Digest, u64)> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut buffer = vec![0; PIECE];
        let mut size = 0;
        copy.rewind()?;
        loop {
            match copy.read(&mut buffer)? {
                0 => return Ok((hasher.finish(), size)),
                count => {
                    hasher.update(&buffer[..count]);
                    size += count as u64;
                }
            }
        }
    });
    let (diff_id, size) = match interruptible(async { Ok(hashed.await) }).await? {
        Ok(hashed) => hashed?,
        Err(error) => return Err(Error::new(Exit::Failed, error.to_string())),
    };
    let platform = match &making.platform {
        Some(platform) => platform.clone(),
        None => Platform::linux(&session.connection.hello().arch),
    };
    let blobs = LocalBlobs::File(FileSource::new(archive, "the root file system's archive"));
    let image = made(blobs, diff_id, size, making, platform)?;
    // One layer, of which nothing is said.
    load(session, settings, &image, name, Mode::None).await
}

/// The image of an archive with this digest and length.
fn made(
    blobs: LocalBlobs,
    diff_id: Digest,
    size: u64,
    making: &Making,
    platform: Platform,
) -> Result<Chosen> {
    let created = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let config = ImageConfig {
        created: Some(created.clone()),
        architecture: platform.architecture,
        os: platform.os,
        variant: platform.variant,
        config: making.config.clone(),
        rootfs: RootFs {
            diff_ids: vec![diff_id.clone()],
            ..RootFs::default()
        },
        history: vec![History {
            created: Some(created),
            comment: Some(making.comment.clone()),
            ..History::default()
        }],
        ..ImageConfig::default()
    };
    let failed = |error: &dyn ToString| Error::new(Exit::Failed, error.to_string());
    let raw_config = serde_json::to_vec(&config).map_err(|error| failed(&error))?;
    let id = Digest::sha256(&raw_config);
    let layers = vec![Descriptor::new(OCI_LAYER, diff_id, size)];
    let manifest = ImageManifest {
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, id, raw_config.len() as u64),
        layers: layers.clone(),
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest = manifest.to_json().map_err(|error| failed(&error))?;
    Ok(Chosen {
        blobs,
        manifest: FetchedManifest {
            digest: Digest::sha256(&manifest),
            raw: manifest.into(),
            media_type: OCI_MANIFEST.to_owned(),
        },
        config,
        raw_config,
        layers,
        from_index: false,
    })
}
