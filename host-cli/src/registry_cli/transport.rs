//! Places of images, opened: the sources and destinations of `copy`, and what `inspect` looks at.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use vdkr_core::reference::{Host, Reference, Selector};
use vdkr_core::transport::{Engine, Format, Pick, Place};
use vdkr_transfer::layout::FULL_NAME;
use vdkr_transfer::{
    ArchiveKind, ArchiveWriter, Client, DirWriter, FetchedManifest, ImageDestination, ImageSource,
    LayoutWriter, OciLayout, RegistryImages, Repository, TransferError, archive, dir,
};

use super::args::SourceArgs;
use super::auth;
use super::config::Config;
use super::error::WithExit as _;
use super::remote::client_with;
use crate::exit::Exit;

/// Most of an engine's complaint that is repeated, bytes.
const MAX_COMPLAINT: u64 = 2000;

/// An image that was found.
pub struct Opened {
    /// Where the image's content is.
    pub images: Arc<dyn ImageSource>,
    /// Its manifest or index.
    pub root: FetchedManifest,
    /// The registry and repository, when it is in one.
    pub registry: Option<(Client, Repository)>,
}

/// Opens a source. A registry's image without a tag is found by [`choose_tag`]; with `insecure` its host
/// may do without verified TLS, whatever `args` say.
pub async fn open(
    config: &Config,
    place: &Place,
    args: &SourceArgs,
    insecure: bool,
) -> Result<Opened> {
    match place {
        Place::Registry(reference) => {
            let mut hosts = args.insecure(reference.host());
            hosts.extend(insecure.then(|| reference.host().clone()));
            let credentials = auth::source(config, args, reference.host())?;
            let client = client_with(config, credentials, hosts)?;
            open_registry(client, reference).await
        }
        Place::File {
            format,
            path,
            image,
        } => {
            let (format, path, image) = (*format, path.clone(), image.clone());
            blocking(move || {
                let layout = match format {
                    Format::Oci => OciLayout::open(path)?,
                    Format::OciArchive => archive::open_oci(path)?,
                    Format::DockerArchive => archive::open_docker(path)?,
                    Format::Dir => dir::open(path)?,
                };
                picked(layout, &image)
            })
            .await
        }
        Place::Engine { engine, image } => {
            let (engine, image) = (*engine, image.clone());
            blocking(move || picked(save(engine, &image)?, &Pick::Only)).await
        }
    }
}

/// Opens what stands at a path, whichever format it has.
pub async fn open_path(path: &Path) -> Result<Opened> {
    let path = path.to_owned();
    blocking(move || {
        let layout = if !path.is_dir() {
            archive::open(path)?.0
        } else if path.join("index.json").exists() {
            OciLayout::open(path)?
        } else {
            dir::open(path)?
        };
        picked(layout, &Pick::Only)
    })
    .await
}

/// Opens an image of a registry.
pub async fn open_registry(client: Client, reference: &Reference) -> Result<Opened> {
    let repository = Repository::from(reference);
    let chosen = choose_tag(&client, &repository, reference).await?;
    let root = client.get_manifest(&repository, chosen.selector()).await?;
    let images = RegistryImages::new(client.clone(), repository.clone());
    Ok(Opened {
        images: Arc::new(images),
        root,
        registry: Some((client, repository)),
    })
}

/// The reference with a tag: the given one, else `latest`, else the only one there is.
async fn choose_tag(
    client: &Client,
    repository: &Repository,
    reference: &Reference,
) -> Result<Reference> {
    if reference.tag().is_some() || reference.digest().is_some() {
        return Ok(reference.clone());
    }
    let latest = reference.or_latest();
    if client
        .head_manifest(repository, latest.selector())
        .await?
        .is_some()
    {
        return Ok(latest);
    }
    let tags = client.tags(repository).await?;
    match &tags[..] {
        [] => Err(anyhow!("{repository} has no tags")).exit(Exit::NotFound),
        [only] => Ok(reference.with_tag(only)?),
        several => {
            const SHOWN: usize = 20;
            let mut list = several
                .iter()
                .take(SHOWN)
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(", ");
            if several.len() > SHOWN {
                list.push_str(", …");
            }
            Err(anyhow!(
                "{repository} has no tag latest; name one of its {}: {list}",
                several.len()
            ))
            .exit(Exit::NotFound)
        }
    }
}

fn picked(layout: OciLayout, pick: &Pick) -> Result<Opened> {
    let root = layout.pick(pick)?;
    Ok(Opened {
        images: Arc::new(layout),
        root,
        registry: None,
    })
}

/// Has an engine write an image and opens what it wrote.
fn save(engine: Engine, image: &str) -> Result<OciLayout> {
    let program = engine.program();
    let file = tempfile::NamedTempFile::new().context("cannot create a temporary file")?;
    let mut command = Command::new(program);
    match engine {
        Engine::Docker => command.args(["save", image]),
        Engine::Podman => command.args(["save", "--format", "docker-archive", image]),
    };
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.reopen().context("cannot open a temporary file")?)
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| {
            format!(
                "{} is read by the program {program}, which cannot be run; install it, or save the image elsewhere and use docker-archive:FILE",
                engine.name()
            )
        })
        .exit(Exit::Unreachable)?;
    let mut complaint = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        // All of it is read, so that the program does not wait for a reader.
        let mut stderr = stderr;
        stderr
            .by_ref()
            .take(MAX_COMPLAINT)
            .read_to_end(&mut complaint)?;
        std::io::copy(&mut stderr, &mut std::io::sink())?;
    }
    let status = child.wait()?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint);
        let complaint: String = complaint
            .trim()
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let unknown = ["o such image", "not known", "not found", "does not exist"]
            .iter()
            .any(|words| complaint.contains(words));
        let exit = if unknown {
            Exit::NotFound
        } else {
            Exit::Failed
        };
        return Err(anyhow!("{program} save {image} failed: {complaint}")).exit(exit);
    }
    // The archive stays open without its name.
    Ok(archive::open_docker(file.path())?)
}

/// A destination.
pub enum Target {
    /// A repository; the tag, or the digest that the image must have.
    Registry(Box<RegistryImages>, Reference),
    /// A layout directory, and the image's name there.
    Layout(LayoutWriter, Option<String>),
    /// An archive, and the image's name there.
    Archive(ArchiveWriter, ArchiveKind, Option<String>),
    /// skopeo's directory.
    Dir(DirWriter),
}

impl Target {
    /// Opens a destination. Files and directories are begun, registries are not asked anything yet.
    pub fn open(place: &Place, client: impl FnOnce(&Host) -> Result<Client>) -> Result<Self> {
        let name = |image: &Pick| match image {
            Pick::Only => Ok(None),
            Pick::Named(name) => Ok(Some(name.clone())),
            Pick::At(_) => Err(anyhow!(
                "{place}: an image is written under a name, not a place"
            ))
            .exit(Exit::Usage),
        };
        Ok(match place {
            Place::Registry(reference) => {
                let client = client(reference.host())?;
                let images = RegistryImages::new(client, Repository::from(reference));
                Self::Registry(Box::new(images), reference.or_latest())
            }
            Place::File {
                format,
                path,
                image,
            } => {
                let image = name(image)?;
                match format {
                    Format::Oci => Self::Layout(LayoutWriter::create(path)?, image),
                    Format::Dir => Self::Dir(DirWriter::create(path)?),
                    Format::OciArchive => {
                        let kind = ArchiveKind::Oci;
                        Self::Archive(ArchiveWriter::create(path, kind)?, kind, image)
                    }
                    Format::DockerArchive => {
                        let kind = ArchiveKind::Docker;
                        if let Some(name) = &image {
                            Reference::parse(name)
                                .with_context(|| format!("{place}: {name} is no image name"))?;
                        }
                        Self::Archive(ArchiveWriter::create(path, kind)?, kind, image)
                    }
                }
            }
            Place::Engine { engine, .. } => {
                return Err(anyhow!(
                    "{} is only read; to fill it, copy to docker-archive:FILE and run {} load -i FILE",
                    engine.name(),
                    engine.program()
                ))
                .exit(Exit::Usage);
            }
        })
    }

    /// Where content is written to.
    pub fn images(&self) -> Arc<dyn ImageDestination> {
        match self {
            Self::Registry(images, _) => Arc::new(RegistryImages::clone(images)),
            Self::Layout(writer, _) => Arc::new(writer.clone()),
            Self::Archive(writer, ..) => Arc::new(writer.clone()),
            Self::Dir(writer) => Arc::new(writer.clone()),
        }
    }

    /// The tag that the copy itself gives.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Registry(_, reference) if reference.digest().is_none() => reference.tag(),
            _ => None,
        }
    }

    /// Refuses an image that is not the one that the destination names by digest.
    pub fn check(&self, root: &FetchedManifest) -> Result<()> {
        if let Self::Registry(_, reference) = self
            && let Selector::Digest(expected) = reference.selector()
            && *expected != root.digest
        {
            return Err(TransferError::DigestMismatch {
                what: "the source's image".to_owned(),
                expected: expected.clone(),
                got: root.digest.clone(),
            }
            .into());
        }
        Ok(())
    }

    /// Ends a copy: what was written becomes an image. `root` is what the copy reported.
    pub async fn finish(self, root: FetchedManifest) -> Result<()> {
        match self {
            Self::Registry(..) => Ok(()),
            Self::Layout(writer, name) => {
                blocking(move || Ok(writer.list(&root.descriptor(), name.as_deref())?)).await
            }
            Self::Archive(writer, kind, name) => {
                blocking(move || {
                    let mut entry = root.descriptor();
                    let mut names = Vec::new();
                    let mut listed = name.clone();
                    if let (ArchiveKind::Docker, Some(name)) = (kind, &name) {
                        let reference = Reference::parse(name)?.or_latest();
                        listed = reference.tag().map(str::to_owned);
                        entry
                            .annotations
                            .insert(FULL_NAME.to_owned(), reference.to_string());
                        names.push(reference.familiar());
                    }
                    writer.list(&entry, listed.as_deref());
                    Ok(writer.finish(&names)?)
                })
                .await
            }
            Self::Dir(writer) => blocking(move || Ok(writer.finish(&root.raw)?)).await,
        }
    }
}

/// Runs file work where it may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("the work was stopped")?
}
