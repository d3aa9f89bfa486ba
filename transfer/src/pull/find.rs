//! From a name to an image of a registry.

use std::collections::BTreeSet;

use tokio::io::AsyncReadExt as _;
use tokio_util::sync::CancellationToken;
use vdkr_core::{
    candidates::{Candidate, FetchOutcome, Source, falls_through, pull_candidates},
    channel::message::{Event, LogLevel, RegistrySettings},
    digest::Digest,
    manifest::{
        Descriptor, ImageConfig, ImageManifest, MAX_CONFIG, ManifestError, ManifestKind,
        media_type::{DOCKER_CONFIG, OCI_CONFIG, layer_compression},
    },
    platform::{Platform, choose},
    reference::{Reference, Selector},
};

use super::{ImageError, layers::Wanted, names};
use crate::client::{Client, Repository};
use crate::error::TransferError;
use crate::manifests::FetchedManifest;

/// How deep an index may lie in an index.
pub const MAX_DEPTH: usize = 4;

/// What is asked for.
pub struct Question<'a> {
    /// The name as the user wrote it.
    pub reference: &'a str,
    /// `os/arch[/variant]` when the user named one.
    pub platform: Option<&'a str>,
    /// The architecture of the machine that shall run it.
    pub architecture: &'a str,
    /// How registries are reached, and which comes first.
    pub settings: &'a RegistrySettings,
    /// Under which name this computer reaches what the settings call otherwise.
    pub reach: &'a dyn Fn(&Reference) -> Reference,
}

impl Question<'_> {
    /// Asks the candidates of the name in order, the next one only when a registry says that it does
    /// not know the one before, and brings all of the image but its layers. `events` hears what
    /// happens.
    pub async fn ask(
        &self,
        client: &Client,
        events: &dyn Fn(Event),
        stop: &CancellationToken,
    ) -> Result<(Remote, Image), ImageError> {
        let wanted = match self.platform {
            Some(text) => Platform::parse(text).map_err(|source| ImageError::Platform {
                text: text.to_owned(),
                source,
            })?,
            None => Platform::linux(self.architecture),
        };
        let settings = self.settings;
        let name = names::translated(self.reference, settings)?;
        let registry = names::registry(settings)?;
        let candidates =
            pull_candidates(&name, registry.as_ref()).map_err(|source| ImageError::Name {
                name: self.reference.to_owned(),
                source,
            })?;
        let find = async {
            let found = first_known(
                client,
                self.reference,
                candidates,
                settings,
                self.reach,
                events,
            )
            .await;
            let (remote, fetched) = found?;
            let insist = self.platform.is_some();
            let image = remote.image(fetched, &wanted, insist, events).await?;
            Ok::<_, ImageError>((remote, image))
        };
        tokio::select! {
            () = stop.cancelled() => Err(ImageError::Cancelled),
            found = find => found,
        }
    }
}

/// An image of one registry.
#[derive(Clone)]
pub struct Remote {
    pub(super) client: Client,
    /// Where it is asked for.
    pub(super) repository: Repository,
    /// What it is called.
    pub reference: Reference,
    /// The configured registry, when the reference comes from there.
    registry: Option<String>,
    /// References asked for before.
    unknown: Vec<String>,
}

/// All of an image but its layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// What the name points to.
    pub digest: Digest,
    /// The manifest of the image itself.
    pub manifest: FetchedManifest,
    /// What it says.
    pub parsed: ImageManifest,
    /// The configuration, as it came.
    pub config_raw: Vec<u8>,
    /// What it says.
    pub config: ImageConfig,
    /// What the image is called.
    pub reference: String,
}

/// The first candidate that its registry knows.
async fn first_known(
    client: &Client,
    name: &str,
    candidates: Vec<Candidate>,
    settings: &RegistrySettings,
    reach: &dyn Fn(&Reference) -> Reference,
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
            repository: Repository::from(&reach(&reference)),
            registry: settings
                .registry
                .clone()
                .filter(|_| source == Source::Registry),
            reference,
            unknown: unknown.clone(),
        };
        let selector = remote.reference.selector();
        let error = match client.find_manifest(&remote.repository, selector).await {
            Ok(Some(fetched)) => return Ok((remote, fetched)),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        let outcome = error
            .as_ref()
            .map_or(FetchOutcome::Unknown, TransferError::outcome);
        match error {
            Some(error) if !falls_through(&outcome) => return Err(remote.failed(error)),
            _ => {
                events(Event::Log {
                    level: LogLevel::Debug,
                    message: format!("manifest {selector} is not at {}", remote.repository),
                });
                unknown.push(shown);
            }
        }
    }
    Err(ImageError::Unknown {
        name: name.to_owned(),
        tried: unknown,
    })
}

impl Remote {
    pub(super) fn failed(&self, source: TransferError) -> ImageError {
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
        let Some(parsed) = parsed else {
            return Err(ImageError::NotAnImage {
                reference,
                reason: format!("its indexes lie more than {MAX_DEPTH} deep"),
            });
        };
        check_config_type(&reference, &parsed)?;
        let config_raw = self.config(&parsed.config).await?;
        let image = Image::new(reference, digest, manifest, parsed, config_raw)?;
        check_platform(&image.reference, &image.config, wanted, insist, events)?;
        Ok(image)
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

fn check_config_type(reference: &str, parsed: &ImageManifest) -> Result<(), ImageError> {
    let config_type = parsed.config.media_type.as_str();
    if config_type == OCI_CONFIG || config_type == DOCKER_CONFIG {
        return Ok(());
    }
    Err(ImageError::NotAnImage {
        reference: reference.to_owned(),
        reason: format!("its configuration is of type {config_type:?}"),
    })
}

impl Image {
    /// Puts an image together from parts whose digests are known to be right.
    fn new(
        reference: String,
        digest: Digest,
        manifest: FetchedManifest,
        parsed: ImageManifest,
        config_raw: Vec<u8>,
    ) -> Result<Self, ImageError> {
        let config = ImageConfig::parse(&config_raw).map_err(|source| ImageError::Manifest {
            what: format!("configuration {}", parsed.config.digest),
            source,
        })?;
        let (layers, diff_ids) = (parsed.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            return Err(ImageError::NotAnImage {
                reference,
                reason: format!(
                    "its manifest has {layers} layers and its configuration {diff_ids}"
                ),
            });
        }
        Ok(Self {
            digest,
            manifest,
            parsed,
            config_raw,
            config,
            reference,
        })
    }

    /// Puts an image together from documents that somebody else fetched, and checks them as if they
    /// had come from a registry.
    pub fn from_documents(
        reference: String,
        digest: Digest,
        manifest: FetchedManifest,
        config_raw: Vec<u8>,
    ) -> Result<Self, ImageError> {
        let not_an_image = |reason: String| ImageError::NotAnImage {
            reference: reference.clone(),
            reason,
        };
        let parsed = match manifest
            .parse()
            .map_err(|e| not_an_image(e.to_string()))?
            .kind
        {
            ManifestKind::Image(parsed) => parsed,
            ManifestKind::Index(_) => return Err(not_an_image("it is an index".to_owned())),
        };
        check_config_type(&reference, &parsed)?;
        let id = &parsed.config.digest;
        if Digest::of(id.algorithm(), &config_raw) != *id {
            return Err(not_an_image(format!("its configuration is not {id}")));
        }
        Self::new(reference, digest, manifest, parsed, config_raw)
    }

    /// Compressed bytes of all layers.
    pub fn compressed(&self) -> u64 {
        let sizes = self.parsed.layers.iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }

    /// The layers, each once, lowest first.
    pub fn layers(&self) -> Result<Vec<Wanted>, ImageError> {
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
