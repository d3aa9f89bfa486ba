//! Images of layouts and archives into the machine's store, and root file systems that become
//! images.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Seek as _},
    sync::Arc,
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
use vdkr_transfer::{FetchedManifest, OciLayout, archive::inflated};

use super::{add_image, add_layer};
use crate::{
    exit::Exit,
    progress::{Mode, Progress},
    vdkr::{
        error::{Error, Result},
        session::Session,
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

/// An image of a layout, for one platform.
#[derive(Clone, Debug)]
pub struct Chosen {
    layout: OciLayout,
    manifest: FetchedManifest,
    /// What its configuration says.
    pub config: ImageConfig,
    raw_config: Vec<u8>,
    layers: Vec<Descriptor>,
    /// Whether it was chosen among several platforms.
    pub from_index: bool,
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
        if config.rootfs.diff_ids.len() != image.layers.len() {
            let reason = "its manifest and its configuration disagree about its layers";
            return Err(wrong(reason.to_owned()));
        }
        let layers = image.layers.clone();
        return Ok(Chosen {
            layout: layout.clone(),
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

/// Sends an image, layers first, and gives it its name.
pub async fn load(
    session: &mut Session,
    chosen: &Chosen,
    name: Option<String>,
    progress: Mode,
) -> Result<Loaded> {
    let display = Arc::new(Progress::new(progress));
    for (blob, diff_id) in chosen.layers.iter().zip(&chosen.config.rootfs.diff_ids) {
        let (layout, descriptor) = (chosen.layout.clone(), blob.clone());
        let open = move || {
            let blob = layout.open_blob(&descriptor).map_err(io::Error::other)?;
            // A decoder ends where its input ends, so the blob's digest is looked at.
            inflated(blob)
        };
        let shown = diff_id.to_string();
        let mut begun = 0;
        let mut moved = |bytes: usize| {
            if begun == 0 {
                display.started(&shown, "loading", 0);
            }
            begun += bytes as u64;
            display.advanced(&shown, begun);
        };
        let sent = add_layer(session, diff_id, open, &mut moved).await?;
        let word = if sent { "loaded" } else { "already present" };
        display.finished(&shown, word);
    }
    let media_type = &chosen.manifest.media_type;
    let (config, manifest) = (&chosen.raw_config, &chosen.manifest.raw);
    let (id, replaced) = add_image(session, name, media_type, config, manifest).await?;
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
    mut archive: File,
    making: &Making,
    name: Option<String>,
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
    let (diff_id, size) = match hashed.await {
        Ok(hashed) => hashed?,
        Err(error) => return Err(Error::new(Exit::Failed, error.to_string())),
    };
    let open = move || {
        archive.rewind()?;
        Ok(archive)
    };
    add_layer(session, &diff_id, open, &mut |_| {}).await?;
    let platform = match &making.platform {
        Some(platform) => platform.clone(),
        None => Platform::linux(&session.connection.hello().arch),
    };
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
    let config = serde_json::to_vec(&config).map_err(|error| failed(&error))?;
    let id = Digest::sha256(&config);
    let manifest = ImageManifest {
        artifact_type: None,
        config: Descriptor::new(OCI_CONFIG, id, config.len() as u64),
        layers: vec![Descriptor::new(OCI_LAYER, diff_id, size)],
        subject: None,
        annotations: BTreeMap::new(),
    };
    let manifest = manifest.to_json().map_err(|error| failed(&error))?;
    let (id, replaced) = add_image(session, name, OCI_MANIFEST, &config, &manifest).await?;
    Ok(Loaded { id, replaced })
}
