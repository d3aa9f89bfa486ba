//! `vdkr push`: images of the machine to a registry. This computer sends them: what it reaches, and
//! the logins it has, are what `push` works with.

use std::{
    fs::File,
    io::{self, Read, Write},
    sync::Arc,
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use vdkr_core::{
    candidates::pull_candidates,
    channel::message::{ExportedImage, ExportedLayer},
    credentials::Credential,
    digest::{Algorithm, Digest, Hasher},
    manifest::{
        Descriptor, ImageConfig, ImageManifest,
        media_type::{OCI_LAYER_GZIP, is_nondistributable},
        parse,
    },
    platform::Platform,
    reference::{Host, Reference, Selector, is_image_id},
};
use vdkr_transfer::{Client, FileSource, MountOutcome, Repository, UploadOptions};

use super::images::rows;
use crate::{
    exit::Exit,
    out,
    progress::{Mode, Progress},
    registry_cli::index::add_to_tag,
    vdkr::{
        content::{document, export, plain_size, read_layer},
        error::{Error, Result},
        human,
        image_args::PushArgs,
        layers::Archives,
        logins::{self, Given},
        names::{self, Found},
        registry,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Bytes of a layer that are compressed at once.
const PIECE: usize = 256 * 1024;

/// Pushes one tag, or all of a repository.
pub async fn run(settings: &Settings, args: &PushArgs) -> Result<u8> {
    let no_name = || {
        Error::usage("an id says nothing about a registry")
            .with_hint("give the image a name first: vdkr tag ID HOST/NAME:TAG")
    };
    if is_image_id(&args.name) {
        return Err(no_name());
    }
    let reference = Reference::parse(&args.name)
        .map_err(|error| Error::usage(format!("{:?}: {error}", args.name)))?;
    if reference.digest().is_some() || (args.all_tags && reference.tag().is_some()) {
        return Err(Error::usage(format!(
            "{:?}: push takes a name with a tag, and with --all-tags a name alone",
            args.name
        )));
    }
    let target = target(settings, &args.name)?;
    let prefix = registry::configured(settings)?;
    let given = logins::given(settings)?;
    let namespace = prefix.as_ref().and_then(|prefix| prefix.namespace());
    let login = given.for_host(
        target.host(),
        namespace.unwrap_or_default(),
        prefix.as_ref(),
    )?;
    let own = target.host().clone();
    let credentials = move |asked: &Host| {
        Ok(match *asked == own {
            true => login.clone(),
            false => Credential::Anonymous,
        })
    };
    let mode = match args.quiet {
        true => Mode::None,
        false => settings.global.progress,
    };
    let push = Push {
        client: registry::client(settings, Arc::new(credentials))?,
        repository: Repository::from(&target),
        logins: given,
        display: Arc::new(Progress::new(mode)),
    };
    if mode != Mode::None {
        eprintln!("The push refers to repository [{}]", target.without_tag());
    }
    with_session(settings, "vdkr push", async |session| {
        interruptible(async {
            let name = match names::find(session, settings, &args.name).await {
                Ok(Some(Found { name: None, .. })) => return Err(no_name()),
                Ok(Some(Found {
                    name: Some(name), ..
                })) => name,
                // All tags of a repository are looked for by other means.
                Ok(None) => args.name.clone(),
                Err(_) if args.all_tags => args.name.clone(),
                Err(error) => return Err(error),
            };
            let tags = match args.all_tags {
                true => tags_of(session, &reference, &target).await?,
                false => vec![(name, target.or_latest())],
            };
            for (name, target) in tags {
                let tag = target.tag_or_latest();
                let manifest = push.image(session, settings, &name, tag).await?;
                match args.quiet {
                    true => out!("{target}"),
                    false => out!("{tag}: digest: {} size: {}", manifest.digest, manifest.size),
                }
            }
            Ok(())
        })
        .await
    })
    .await?;
    Ok(0)
}

/// Where a name is pushed to, as this computer calls it: a name without a host to the configured
/// registry.
fn target(settings: &Settings, name: &str) -> Result<Reference> {
    let prefix = registry::configured(settings)?;
    let candidates = pull_candidates(name, prefix.as_ref())?;
    let first = candidates.into_iter().next();
    let first = first.ok_or_else(|| Error::usage(format!("{name:?} names no registry")))?;
    let reference = first.reference;
    let host = registry::host_side(reference.host());
    Ok(Reference::from_parts(
        host,
        reference.repository(),
        reference.tag(),
        None,
    )?)
}

/// The tags that the machine has of a repository, each with where it goes.
async fn tags_of(
    session: &mut Session,
    reference: &Reference,
    target: &Reference,
) -> Result<Vec<(String, Reference)>> {
    let mut tags = Vec::new();
    for row in rows(session).await? {
        let (Ok(stored), Some(tag)) = (Reference::parse(&row.name), row.tag) else {
            continue;
        };
        let stored = stored.without_tag();
        let local = Reference::from_parts(
            registry::host_side(stored.host()),
            stored.repository(),
            None,
            None,
        )?;
        if stored == *reference || local == target.without_tag() {
            tags.push((stored.with_tag(&tag)?.to_string(), target.with_tag(&tag)?));
        }
    }
    if tags.is_empty() {
        let message = format!("no tag of {reference} here");
        return Err(Error::new(Exit::NotFound, message));
    }
    Ok(tags)
}

struct Push {
    client: Client,
    repository: Repository,
    logins: Given,
    display: Arc<Progress>,
}

impl Push {
    /// Sends what the registry does not have, and the manifest last, which is given.
    async fn image(
        &self,
        session: &mut Session,
        settings: &Settings,
        name: &str,
        tag: &str,
    ) -> Result<Descriptor> {
        let image = find(session, name, &self.repository, tag).await?;
        let raw = document(session, &image.manifest.digest, image.manifest.size).await?;
        let original = parse(&raw, Some(&image.manifest.media_type));
        let original = original.map_err(|error| {
            let message = format!("manifest {}: {error}", image.manifest.digest);
            Error::new(Exit::Failed, message)
        })?;
        let Some(original) = original.as_image().cloned() else {
            return Err(Error::new(
                Exit::Failed,
                format!("{name} has no image's manifest"),
            ));
        };
        if original.layers.len() != image.layers.len() || original.config.digest != image.id {
            let message = format!("the machine's parts of {name} do not belong together");
            return Err(Error::new(Exit::Mismatch, message));
        }
        let sources = sources(&image, self.repository.host());
        let mut manifest = ImageManifest {
            layers: Vec::new(),
            ..original.clone()
        };
        let mut kept = None;
        for (blob, layer) in original.layers.iter().zip(&image.layers) {
            let there = is_nondistributable(&blob.media_type) || self.has(blob, &sources).await?;
            manifest.layers.push(match there {
                true => blob.clone(),
                false => {
                    if kept.is_none() {
                        kept = Some(Archives::of(session, settings, &self.logins, &image).await?);
                    }
                    let kept = kept.get_or_insert_default();
                    self.layer(session, layer, kept).await?
                }
            });
        }
        let platform = self.config(session, &image, &original.config).await?;
        let (raw, media_type) = match manifest.layers == original.layers {
            true => (raw, image.manifest.media_type.as_str()),
            false => {
                let raw = manifest.to_json();
                let raw = raw.map_err(|error| Error::new(Exit::Failed, error.to_string()))?;
                (raw, vdkr_core::manifest::media_type::OCI_MANIFEST)
            }
        };
        let mut descriptor = Descriptor::new(media_type, Digest::sha256(&raw), raw.len() as u64);
        let selector = Selector::Digest(&descriptor.digest);
        self.client
            .put_manifest(&self.repository, selector, raw.into(), media_type, None)
            .await?;
        descriptor.platform = Some(platform);
        // As `container-registry push`: a tag is an index, and keeps what it has for other machines.
        let entries = std::slice::from_ref(&descriptor);
        add_to_tag(&self.client, &self.repository, tag, entries).await?;
        Ok(descriptor)
    }

    /// Whether the registry has a blob in this repository, or can take it from another of its own.
    async fn has(&self, blob: &Descriptor, sources: &[String]) -> Result<bool> {
        let shown = blob.digest.to_string();
        if self
            .client
            .head_blob(&self.repository, &blob.digest)
            .await?
            .is_some()
        {
            self.display.finished(&shown, "already there");
            return Ok(true);
        }
        for from in sources
            .iter()
            .filter(|from| *from != self.repository.name())
        {
            let mounted = self
                .client
                .mount_blob(&self.repository, Some(from), &blob.digest)
                .await?;
            if matches!(mounted, MountOutcome::Mounted) {
                self.display.finished(&shown, "mounted");
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sends a layer, compressed here.
    async fn layer(
        &self,
        session: &mut Session,
        layer: &ExportedLayer,
        kept: &Archives,
    ) -> Result<Descriptor> {
        let size = plain_size(layer, kept)?;
        let shown = layer.diff_id.to_string();
        self.display.started(&shown, "compressing", size);
        let (file, digest, length) = read_layer(session, layer, kept, compress).await?;
        let blob = Descriptor::new(OCI_LAYER_GZIP, digest, length);
        let known = self
            .client
            .head_blob(&self.repository, &blob.digest)
            .await?;
        if known.is_some() {
            self.display.finished(&shown, "already there");
            return Ok(blob);
        }
        let source = Arc::new(FileSource::new(file, "a compressed layer"));
        self.client
            .upload_blob(&self.repository, &blob, source, UploadOptions::default())
            .await?;
        let outcome = format!("pushed ({})", human::size(length));
        self.display.finished(&shown, &outcome);
        Ok(blob)
    }

    /// Sends the configuration, and says which machines the image is for.
    async fn config(
        &self,
        session: &mut Session,
        image: &ExportedImage,
        blob: &Descriptor,
    ) -> Result<Platform> {
        let raw = document(session, &image.id, image.config_size).await?;
        let config = ImageConfig::parse(&raw).map_err(|error| {
            let message = format!("configuration {}: {error}", image.id);
            Error::new(Exit::Failed, message)
        })?;
        let known = self
            .client
            .head_blob(&self.repository, &blob.digest)
            .await?;
        if known.is_none() {
            let source = Arc::new(Bytes::from(raw));
            self.client
                .upload_blob(&self.repository, blob, source, UploadOptions::default())
                .await?;
        }
        Ok(config.platform())
    }
}

/// The image to push: by the name as it was written, else by the name that it would be pulled as.
async fn find(
    session: &mut Session,
    name: &str,
    repository: &Repository,
    tag: &str,
) -> Result<ExportedImage> {
    let error = match export(session, &[name.to_owned()]).await {
        Ok(images) => return first(images),
        Err(error) if error.exit() == Exit::NotFound => error,
        Err(error) => return Err(error),
    };
    let pulled = format!("{}/{}:{tag}", repository.host(), repository.name());
    match export(session, &[registry::translate_name(&pulled)]).await {
        Ok(images) => first(images),
        Err(other) if other.exit() == Exit::NotFound => Err(error),
        Err(other) => Err(other),
    }
}

fn first(images: Vec<ExportedImage>) -> Result<ExportedImage> {
    let first = images.into_iter().next();
    first.ok_or_else(|| Error::new(Exit::Failed, "the machine's agent named no image"))
}

/// The repositories of a registry that an image came from.
fn sources(image: &ExportedImage, host: &Host) -> Vec<String> {
    let known = image.digests.iter().chain(&image.names);
    let mut sources: Vec<String> = known
        .filter_map(|name| Reference::parse(name).ok())
        .filter(|reference| registry::host_side(reference.host()) == *host)
        .map(|reference| reference.repository().to_owned())
        .collect();
    sources.sort_unstable();
    sources.dedup();
    sources
}

/// Compresses a layer into a temporary file: the file, its digest and its length. The same layer gives
/// the same bytes every time.
fn compress(mut part: impl Read) -> io::Result<(File, Digest, u64)> {
    let out = Hashed {
        file: tempfile::tempfile()?,
        hasher: Hasher::new(Algorithm::Sha256),
        length: 0,
    };
    // No time and no name: these would be different every time.
    let mut encoder = GzEncoder::new(
        io::BufWriter::with_capacity(1 << 20, out),
        Compression::new(6),
    );
    // What comes out depends on how it goes in; so it goes in in pieces of one size.
    let mut piece = Vec::with_capacity(PIECE);
    loop {
        piece.clear();
        (&mut part).take(PIECE as u64).read_to_end(&mut piece)?;
        if piece.is_empty() {
            break;
        }
        encoder.write_all(&piece)?;
    }
    let out = encoder
        .finish()?
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    Ok((out.file, out.hasher.finish(), out.length))
}

struct Hashed {
    file: File,
    hasher: Hasher,
    length: u64,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.file.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdkr::{args::Global, settings::tests::settings};

    #[test]
    fn names_and_where_they_go() {
        let global = || Global {
            registry: Some("localhost:5000/yocto".into()),
            ..Global::default()
        };
        let with = settings(global(), &[], "").unwrap();
        for (name, expected) in [
            ("app", "localhost:5000/yocto/app:latest"),
            ("app:2", "localhost:5000/yocto/app:2"),
            ("10.0.2.2:5000/x/app:1", "localhost:5000/x/app:1"),
            ("ghcr.io/x/app", "ghcr.io/x/app:latest"),
        ] {
            assert_eq!(
                target(&with, name).unwrap().or_latest().to_string(),
                expected
            );
        }
    }

    #[test]
    fn the_same_layer_is_compressed_to_the_same_bytes() {
        let noise = |i: u32| (i.wrapping_mul(2_654_435_761) >> 27) as u8;
        let layer: Vec<u8> = (0..1_500_000).map(noise).collect();
        // However it comes.
        let crumbs = layer[..70_001]
            .chain(&layer[70_001..70_002])
            .chain(&layer[70_002..]);
        let (_, first, length) = compress(crumbs).unwrap();
        let (mut file, second, _) = compress(layer.as_slice()).unwrap();
        assert_eq!(first, second);
        let mut bytes = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut bytes).unwrap();
        assert_eq!(
            (Digest::sha256(&bytes), bytes.len() as u64),
            (first, length)
        );
        let mut plain = Vec::new();
        flate2::read::GzDecoder::new(bytes.as_slice())
            .read_to_end(&mut plain)
            .unwrap();
        assert!(plain == layer);
    }
}
