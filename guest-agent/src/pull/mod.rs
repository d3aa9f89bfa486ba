//! `pull`: from a name to an image in the store.
//!
//! The candidates of the name are asked in order, and the next one only when a registry itself says
//! that it does not know the one before: a registry that is down, or refuses, is an error, never a
//! pull from somewhere else. Then the layers that are not here come, a few at a time, each from the
//! network through two digests into a directory in one pass. What is finished stays when the pull is
//! stopped, and the next one goes on from there.

use std::{
    collections::BTreeSet,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::{io::AsyncReadExt as _, task::spawn_blocking};
use tokio_util::sync::CancellationToken;
use vdkr_core::{
    candidates::{Candidate, Source, falls_through, pull_candidates},
    channel::message::{Event, LogLevel, Pulled, RegistrySettings},
    digest::Digest,
    manifest::{
        Descriptor, ImageConfig, ImageManifest, MAX_CONFIG, ManifestError, ManifestKind,
        media_type::{DOCKER_CONFIG, OCI_CONFIG, layer_compression},
    },
    platform::{Platform, choose},
    reference::{Reference, Selector},
};
use vdkr_transfer::{Client, FetchedManifest, Repository, TransferError};

use crate::{
    machine,
    store::{
        ImageError, NewImage, Store, registry,
        state::{ImageRecord, NameRecord},
        translated,
    },
};

mod client;
mod layers;
mod resolver;

#[cfg(test)]
mod tests;

use layers::Wanted;

/// How deep an index may lie in an index.
const MAX_DEPTH: usize = 4;

/// Fetches an image into the store.
///
/// `platform` is `os/arch[/variant]`, the machine's own when absent. `events` hears what happens.
/// Dropping the future stops the pull, as `cancel` does.
pub async fn pull(
    store: &Store,
    reference: &str,
    settings: &RegistrySettings,
    platform: Option<&str>,
    events: &dyn Fn(Event),
    cancel: &CancellationToken,
) -> Result<Pulled, ImageError> {
    let client = client::client(settings)?;
    pull_with(
        store, &client, reference, settings, platform, events, cancel,
    )
    .await
}

async fn pull_with(
    store: &Store,
    client: &Client,
    reference: &str,
    settings: &RegistrySettings,
    platform: Option<&str>,
    events: &dyn Fn(Event),
    cancel: &CancellationToken,
) -> Result<Pulled, ImageError> {
    let wanted = match platform {
        Some(text) => Platform::parse(text).map_err(|source| ImageError::Platform {
            text: text.to_owned(),
            source,
        })?,
        None => Platform::linux(machine::architecture()),
    };
    let name = translated(reference, settings)?;
    let candidates = pull_candidates(&name, registry(settings)?.as_ref()).map_err(|source| {
        ImageError::Name {
            name: reference.to_owned(),
            source,
        }
    })?;
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let find = async {
        let found = first_known(client, reference, candidates, settings, events).await;
        let (remote, fetched) = found?;
        let image = remote
            .image(fetched, &wanted, platform.is_some(), events)
            .await?;
        Ok::<_, ImageError>((remote, image))
    };
    let (remote, image) = tokio::select! {
        () = stop.cancelled() => return Err(ImageError::Cancelled),
        found = find => found?,
    };
    let _lease = store.keep(image.config.rootfs.diff_ids.iter().cloned());
    layers::fetch(store, &remote, image.layers()?, events, &stop).await?;
    add(store, &remote, image).await
}

/// An image of one registry.
struct Remote {
    client: Client,
    repository: Repository,
    reference: Reference,
    /// The configured registry, when the reference comes from there.
    registry: Option<String>,
    /// References asked for before.
    unknown: Vec<String>,
}

/// All of an image but its layers.
struct Image {
    /// What the name points to.
    digest: Digest,
    manifest: FetchedManifest,
    parsed: ImageManifest,
    config_raw: Vec<u8>,
    config: ImageConfig,
    reference: String,
}

/// The first candidate that its registry knows.
async fn first_known(
    client: &Client,
    name: &str,
    candidates: Vec<Candidate>,
    settings: &RegistrySettings,
    events: &dyn Fn(Event),
) -> Result<(Remote, FetchedManifest), ImageError> {
    let mut unknown = Vec::new();
    for Candidate { reference, source } in candidates {
        let shown = reference.to_string();
        events(Event::Trying {
            reference: shown.clone(),
        });
        let remote = Remote {
            client: client.clone(),
            repository: Repository::from(&reference),
            registry: settings
                .registry
                .clone()
                .filter(|_| source == Source::Registry),
            reference,
            unknown: unknown.clone(),
        };
        let selector = remote.reference.selector();
        match client.get_manifest(&remote.repository, selector).await {
            Ok(fetched) => return Ok((remote, fetched)),
            Err(error) if falls_through(&error.outcome()) => {
                events(Event::Log {
                    level: LogLevel::Debug,
                    message: error.to_string(),
                });
                unknown.push(shown);
            }
            Err(error) => return Err(remote.failed(error)),
        }
    }
    Err(ImageError::Unknown {
        name: name.to_owned(),
        tried: unknown,
    })
}

impl Remote {
    fn failed(&self, source: TransferError) -> ImageError {
        if matches!(source, TransferError::Cancelled) {
            return ImageError::Cancelled;
        }
        ImageError::Pull {
            reference: self.reference.to_string(),
            unknown: self.unknown.clone(),
            source: Box::new(source),
            registry: self.registry.clone(),
        }
    }

    /// From the manifest or index that the name points to, to the image for a platform.
    async fn image(
        &self,
        fetched: FetchedManifest,
        wanted: &Platform,
        insist: bool,
        events: &dyn Fn(Event),
    ) -> Result<Image, ImageError> {
        let reference = self.reference.to_string();
        let digest = fetched.digest.clone();
        let mut manifest = fetched;
        let mut parsed = None;
        for _ in 0..MAX_DEPTH {
            match manifest.parse().map_err(|error| self.failed(error))?.kind {
                ManifestKind::Image(image) => {
                    parsed = Some(image);
                    break;
                }
                ManifestKind::Index(index) => {
                    let Some(entry) = choose(&index.manifests, wanted) else {
                        return Err(ImageError::NoPlatform {
                            reference,
                            wanted: wanted.to_string(),
                            available: platforms(&index.manifests),
                        });
                    };
                    let selector = Selector::Digest(&entry.digest);
                    let next = self.client.get_manifest(&self.repository, selector).await;
                    manifest = next.map_err(|error| self.failed(error))?;
                }
            }
        }
        let not_an_image = |reason: String| ImageError::NotAnImage {
            reference: reference.clone(),
            reason,
        };
        let Some(parsed) = parsed else {
            return Err(not_an_image(format!(
                "its indexes lie more than {MAX_DEPTH} deep"
            )));
        };
        let config_type = parsed.config.media_type.as_str();
        if config_type != OCI_CONFIG && config_type != DOCKER_CONFIG {
            let reason = format!("its configuration is of type {config_type:?}");
            return Err(not_an_image(reason));
        }
        let config_raw = self.config(&parsed.config).await?;
        let config = ImageConfig::parse(&config_raw).map_err(|source| ImageError::Manifest {
            what: format!("configuration {}", parsed.config.digest),
            source,
        })?;
        let (layers, diff_ids) = (parsed.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(not_an_image(format!(
                "its manifest has {layers} layers and its configuration {diff_ids}"
            )));
        }
        check_platform(&reference, &config, wanted, insist, events)?;
        Ok(Image {
            digest,
            manifest,
            parsed,
            config_raw,
            config,
            reference,
        })
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        if descriptor.size > MAX_CONFIG as u64 {
            return Err(ImageError::Manifest {
                what: format!("configuration {}", descriptor.digest),
                source: ManifestError::TooLarge {
                    what: "image configuration",
                    length: descriptor.size as usize,
                    limit: MAX_CONFIG,
                },
            });
        }
        let reader = self.client.get_blob(&self.repository, descriptor).await;
        let mut reader = reader.map_err(|error| self.failed(error))?;
        let mut raw = Vec::new();
        match reader.read_to_end(&mut raw).await {
            Ok(_) => Ok(raw),
            Err(error) => Err(self.failed(error.into())),
        }
    }
}

/// An image for another machine is refused when the user named the platform, and else taken with a
/// warning, as it may be made for this machine and say so wrongly.
fn check_platform(
    reference: &str,
    config: &ImageConfig,
    wanted: &Platform,
    insist: bool,
    events: &dyn Fn(Event),
) -> Result<(), ImageError> {
    let platform = config.platform();
    if config.architecture.is_empty() || wanted.distance(&platform).is_some() {
        return Ok(());
    }
    if insist {
        return Err(ImageError::NoPlatform {
            reference: reference.to_owned(),
            wanted: wanted.to_string(),
            available: vec![platform.to_string()],
        });
    }
    events(Event::Log {
        level: LogLevel::Warn,
        message: format!("{reference} is for {platform}, this machine is {wanted}"),
    });
    Ok(())
}

/// The platforms in an index, for an error message.
fn platforms(entries: &[Descriptor]) -> Vec<String> {
    /// Nobody reads more.
    const MOST: usize = 20;
    let platforms = entries.iter().filter_map(|entry| entry.platform.as_ref());
    let unique: BTreeSet<String> = platforms.map(ToString::to_string).collect();
    unique.into_iter().take(MOST).collect()
}

impl Image {
    /// The layers, each once, lowest first.
    fn layers(&self) -> Result<Vec<Wanted>, ImageError> {
        let mut seen = BTreeSet::new();
        let mut layers = Vec::new();
        for (blob, diff_id) in self.parsed.layers.iter().zip(&self.config.rootfs.diff_ids) {
            if layer_compression(&blob.media_type).is_none() {
                let media_type = &blob.media_type;
                return Err(ImageError::NotAnImage {
                    reference: self.reference.clone(),
                    reason: format!("it has a layer of type {media_type:?}"),
                });
            }
            if seen.insert(diff_id) {
                layers.push(Wanted {
                    blob: blob.clone(),
                    diff_id: diff_id.clone(),
                });
            }
        }
        Ok(layers)
    }
}

/// Puts an image whose layers are there into the store.
async fn add(store: &Store, remote: &Remote, image: Image) -> Result<Pulled, ImageError> {
    let reference = &remote.reference;
    let by_digest = reference.without_tag().with_digest(image.digest.clone());
    // A digest says which image it is; a tag beside it says nothing more.
    let name = match reference.digest() {
        Some(_) => by_digest.to_string(),
        None => reference.to_string(),
    };
    let id = image.parsed.config.digest.clone();
    let compressed = image.parsed.layers.iter().map(|layer| layer.size);
    let compressed = compressed.fold(0, u64::saturating_add);
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let record = ImageRecord {
        manifest: image.manifest.descriptor(),
        layers: image.config.rootfs.diff_ids.clone(),
        compressed,
        digests: BTreeSet::from([by_digest.to_string()]),
        created: image.config.created.clone(),
        source: reference.to_string(),
        pulled_at: now.map_or(0, |since| since.as_secs()),
    };
    let pulled = Pulled {
        name: name.clone(),
        digest: image.digest.to_string(),
        id: id.to_string(),
        size: compressed,
    };
    let name_record = NameRecord {
        image: id.clone(),
        digest: Some(image.digest),
    };
    let name = reference.digest().is_none().then_some((name, name_record));
    let store = store.clone();
    let added = spawn_blocking(move || {
        store.add(NewImage {
            config: &image.config_raw,
            id: &id,
            manifest: &image.manifest.raw,
            record,
            name,
        })
    });
    layers::joined(added.await)?;
    Ok(pulled)
}
