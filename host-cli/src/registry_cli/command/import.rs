//! `import`: an image of another registry, or a list of them, every platform, bit for bit, with what
//! refers to it.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use serde_json::json;
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::loopback::{DEFAULT_GATEWAY, translate_prefix};
use vdkr_core::platform::Platform;
use vdkr_core::reference::Reference;
use vdkr_transfer::copy::copy_registry;
use vdkr_transfer::{Copier, CopyOptions, RegistryImages, Repository};

use super::copy::platforms;
use super::push::sink;
use crate::exit::Exit;
use crate::out;
use crate::progress::{Mode, Progress as Display};
use crate::registry_cli::args::{AuthArgs, SourceArgs};
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::{WithExit as _, exit_of, words};
use crate::registry_cli::images::{Images, Locks};
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::{Remote, client_with};

const EXAMPLES: &str = "\
Examples:
  container-registry import docker.io/library/alpine:3.20
  container-registry import ghcr.io/org/tool@sha256:… tool:v1
  container-registry import localhost:5001/team/app --src-insecure
  container-registry import --file images.toml

A list of images:
  [[image]]
  source = \"docker.io/library/alpine:3.20\"
  name = \"alpine\"                  # optional, with or without a tag
  platforms = [\"linux/amd64\"]      # optional
  referrers = false                # optional
The digests that were found are kept beside it (images.lock) and used from then on, until --update.";

/// Options of `import`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct ImportArgs {
    /// Image of another registry, e.g. docker.io/library/alpine:latest
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub source: Option<String>,
    /// Local name, with an optional tag [default: the source's last component and tag]
    pub name: Option<String>,
    /// Import the images of this list, at the digests of its lock file
    #[arg(long, value_name = "IMAGES.TOML")]
    pub file: Option<PathBuf>,
    /// Look the list's tags up again and write new digests to the lock file
    #[arg(long, requires = "file")]
    pub update: bool,
    /// Import this platform of an index only (repeatable); makes a new index
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    pub platforms: Vec<String>,
    /// Leave signatures, attestations and bills of material behind
    #[arg(long)]
    pub no_referrers: bool,
    /// Credentials for the source.
    #[command(flatten)]
    pub source_auth: SourceArgs,
    /// Credentials for the registry.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// Print one JSON object per imported image
    #[arg(long)]
    pub json: bool,
}

/// One image to import.
struct Wanted {
    source: Reference,
    destination: Reference,
    platforms: Vec<Platform>,
    referrers: bool,
}

/// Imports one image or a list. One that fails does not stop the others.
pub async fn run(config: &Config, args: &ImportArgs, progress: Mode) -> Result<Exit> {
    let registry = config.registry()?;
    let asked = platforms(&args.platforms)?;
    let Some(file) = &args.file else {
        let source = args.source.as_deref().unwrap_or_default();
        let source = parse_source(source)?;
        let wanted = Wanted {
            destination: destination(&source, args.name.as_deref(), &registry)?,
            source,
            platforms: asked,
            referrers: !args.no_referrers,
        };
        let importer = Importer::new(config, args, progress).await?;
        importer.import(&wanted).await?;
        importer.hint(&wanted);
        return Ok(Exit::Done);
    };
    let absent = !file.exists();
    let list = Images::read(file).exit(if absent { Exit::NotFound } else { Exit::Usage })?;
    let mut locks = Locks::beside(file).exit(Exit::Usage)?;
    let mut all = Vec::new();
    for image in &list.images {
        let source = parse_source(&image.source).with_context(|| format!("{}", file.display()))?;
        let own = platforms(&image.platforms).with_context(|| format!("{}", file.display()))?;
        all.push((
            image.source.clone(),
            Wanted {
                destination: destination(&source, image.name.as_deref(), &registry)
                    .with_context(|| format!("{}: {}", file.display(), image.source))?,
                source,
                platforms: if asked.is_empty() { own } else { asked.clone() },
                referrers: image.referrers.unwrap_or(true) && !args.no_referrers,
            },
        ));
    }
    for (at, (source, wanted)) in all.iter().enumerate() {
        let same = |(_, other): &&(String, Wanted)| other.destination == wanted.destination;
        if let Some((other, _)) = all[..at].iter().find(same) {
            return Err(anyhow!(
                "{}: {other} and {source} would both become {}; give one of them another name",
                file.display(),
                wanted.destination
            ))
            .exit(Exit::Usage);
        }
    }
    let importer = Importer::new(config, args, progress).await?;
    let mut outcomes = Vec::new();
    for (key, mut wanted) in all {
        let locked = locks.get(&key).filter(|_| !args.update).cloned();
        if let Some(digest) = locked {
            // The tag of the list stays the tag here.
            wanted.source = wanted.source.with_digest(digest);
        }
        match importer.import(&wanted).await {
            Ok(digest) => {
                locks.set(key, digest);
                outcomes.push(Exit::Done);
            }
            Err(error) => {
                importer
                    .display
                    .note(&format!("error: {}: {}", wanted.source, words(&error)));
                outcomes.push(exit_of(&error));
            }
        }
    }
    locks.keep_only(list.images.iter().map(|image| image.source.as_str()));
    locks.write()?;
    Ok(Exit::of_several(outcomes))
}

fn parse_source(text: &str) -> Result<Reference> {
    let name = text.strip_prefix("docker://").unwrap_or(text);
    let source = Reference::parse(name).with_context(|| format!("source {text:?}"))?;
    Ok(source.or_latest())
}

struct Importer<'a> {
    config: &'a Config,
    args: &'a ImportArgs,
    remote: Remote,
    display: Arc<Display>,
}

impl<'a> Importer<'a> {
    async fn new(config: &'a Config, args: &'a ImportArgs, progress: Mode) -> Result<Self> {
        Ok(Self {
            config,
            args,
            remote: Remote::connect(config, auth::destination(config, &args.auth)?).await?,
            display: Arc::new(Display::new(progress)),
        })
    }

    /// Imports one image and gives the digest that the source has.
    async fn import(&self, wanted: &Wanted) -> Result<vdkr_core::digest::Digest> {
        let Wanted {
            source,
            destination,
            ..
        } = wanted;
        let host = source.host();
        let insecure = self.args.source_auth.insecure(host);
        // A client of its own, so that neither side's credentials can reach the other.
        let credentials = auth::source(self.config, &self.args.source_auth, host)?;
        let from = client_with(self.config, credentials, insecure)?;
        let from_repository = Repository::new(host.clone(), source.repository())?;
        let to_repository = self.remote.repository(destination.repository())?;
        self.display
            .step(&format!("Importing {source} to {destination}"));
        let copier = Copier::new(CopyOptions {
            platforms: wanted.platforms.clone(),
            referrers: wanted.referrers,
            progress: sink(&self.display),
            ..CopyOptions::default()
        });
        let copied = copy_registry(
            &copier,
            RegistryImages::new(from, from_repository),
            source.selector(),
            RegistryImages::new(self.remote.client.clone(), to_repository),
            destination.tag(),
        )
        .await?;
        let digest = &copied.root.digest;
        if copied.subset {
            let words: Vec<_> = wanted.platforms.iter().map(ToString::to_string).collect();
            self.display.note(&format!(
                "Only {} was imported: {digest} is a new index, not the source's",
                words.join(", ")
            ));
        }
        if self.args.json {
            out!(
                "{}",
                json!({
                    "source": source.to_string(), "destination": destination.to_string(),
                    "sourceDigest": copied.source, "digest": digest, "subset": copied.subset,
                })
            );
        } else {
            out!("{destination} {digest}");
        }
        Ok(copied.source)
    }

    /// Says how a guest pulls it: for a guest, this machine is the gateway.
    fn hint(&self, wanted: &Wanted) {
        self.display
            .note(&pull_hint(&self.remote.prefix, &wanted.destination));
    }
}

fn pull_hint(registry: &RegistryPrefix, destination: &Reference) -> String {
    let prefix = translate_prefix(registry, DEFAULT_GATEWAY);
    let name = registry.namespace().and_then(|namespace| {
        destination
            .repository()
            .strip_prefix(namespace)?
            .strip_prefix('/')
    });
    let tag = match destination.tag() {
        None | Some("latest") => String::new(),
        Some(tag) => format!(":{tag}"),
    };
    match (name, prefix.namespace()) {
        (Some(name), Some(namespace)) => format!(
            "Pull it in a guest with: vdkr --registry {}/{namespace} pull {name}{tag}",
            prefix.host()
        ),
        _ => format!(
            "Pull it in a guest with: vdkr pull {}/{}{tag}",
            prefix.host(),
            destination.repository()
        ),
    }
}

/// Where the image goes: the given name, or the source's last component; the given tag, or the
/// source's. A source by digest alone is tagged `latest`.
fn destination(
    source: &Reference,
    name: Option<&str>,
    registry: &RegistryPrefix,
) -> Result<Reference> {
    let last = source.repository().rsplit('/').next().unwrap_or_default();
    let target = in_registry(name.unwrap_or(last), registry)?;
    if target.digest().is_some() {
        return Err(anyhow!(
            "{target}: an imported image gets a name and a tag; its digest is the source's"
        ))
        .exit(Exit::Usage);
    }
    match target.tag() {
        Some(_) => Ok(target),
        None => Ok(target.with_tag(source.tag().unwrap_or("latest"))?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Weakness 4b.24: digests, ports and names with tags were mis-parsed.
    #[test]
    fn weakness_4b_24_names_and_tags_come_from_the_source_unless_given() {
        let registry = RegistryPrefix::parse("localhost:5000/yocto").unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        for (source, name, expected) in [
            (
                "docker.io/library/alpine:3",
                None,
                "localhost:5000/yocto/alpine:3",
            ),
            ("alpine", None, "localhost:5000/yocto/alpine:latest"),
            ("docker://alpine:3", None, "localhost:5000/yocto/alpine:3"),
            ("host:5000/a/b:v1", None, "localhost:5000/yocto/b:v1"),
            ("host:5000/a/b", None, "localhost:5000/yocto/b:latest"),
            ("host:5000/a/b", Some("c"), "localhost:5000/yocto/c:latest"),
            (
                "host:5000/a/b:v1",
                Some("c:v2"),
                "localhost:5000/yocto/c:v2",
            ),
            ("host:5000/a/b:v1", Some("x/c"), "localhost:5000/x/c:v1"),
            (
                &*format!("alpine@{digest}"),
                None,
                "localhost:5000/yocto/alpine:latest",
            ),
            (
                &*format!("h:1/a:v1@{digest}"),
                None,
                "localhost:5000/yocto/a:v1",
            ),
        ] {
            let source = parse_source(source).unwrap();
            let destination = destination(&source, name, &registry).unwrap();
            assert_eq!(destination.to_string(), expected);
        }
    }

    #[test]
    fn weakness_4b_24_hints_work_in_the_guest() {
        for (registry, destination, hint) in [
            (
                "localhost:5000/yocto",
                "localhost:5000/yocto/alpine:3",
                "vdkr --registry 10.0.2.2:5000/yocto pull alpine:3",
            ),
            (
                "localhost:5000/yocto",
                "localhost:5000/yocto/alpine:latest",
                "vdkr --registry 10.0.2.2:5000/yocto pull alpine",
            ),
            (
                "127.0.0.1:5001/yocto",
                "127.0.0.1:5001/x/a:1",
                "vdkr pull 10.0.2.2:5001/x/a:1",
            ),
            (
                "r.example/ns",
                "r.example/ns/a:1",
                "vdkr --registry r.example/ns pull a:1",
            ),
        ] {
            let registry = RegistryPrefix::parse(registry).unwrap();
            let destination = Reference::parse(destination).unwrap();
            let said = pull_hint(&registry, &destination);
            assert!(said.ends_with(hint), "{said}");
        }
    }
}
