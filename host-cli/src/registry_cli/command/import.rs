//! `import`: an image of another registry, every platform, bit for bit.

use std::sync::Arc;

use anyhow::Result;
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::reference::Reference;
use vdkr_transfer::copy::copy_registry;
use vdkr_transfer::{Copier, CopyOptions, RegistryImages, Repository};

use super::push::sink;
use crate::exit::Exit;
use crate::out;
use crate::progress::{Mode, Progress as Display};
use crate::registry_cli::args::ImportArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::{Remote, client};

/// Copies `args.source` into the configured registry.
pub async fn run(config: &Config, args: &ImportArgs, progress: Mode) -> Result<()> {
    let source = Reference::parse(&args.source)?.or_latest();
    let destination = destination(&source, args.name.as_deref(), &config.registry()?)?;
    let remote = Remote::connect(config, auth::destination(config, &args.auth)?).await?;
    // A client of its own, so that neither side's credentials can reach the other.
    let from = client(
        config,
        auth::source(config, &args.source_auth, source.host())?,
    )?;
    let from_repository = Repository::new(source.host().clone(), source.repository())?;
    let to_repository = remote.repository(destination.repository())?;
    let display = Arc::new(Display::new(progress));
    display.note(&format!("Importing {source} to {destination}"));
    let copier = Copier::new(CopyOptions {
        referrers: true,
        progress: sink(&display),
        ..CopyOptions::default()
    });
    let copied = copy_registry(
        &copier,
        RegistryImages::new(from, from_repository),
        source.selector(),
        RegistryImages::new(remote.client, to_repository),
        destination.tag(),
    )
    .await?;
    out!("{destination} {}", copied.root.digest);
    Ok(())
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
        return Err(anyhow::anyhow!(
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

    #[test]
    fn names_and_tags_come_from_the_source_unless_given() {
        let registry = RegistryPrefix::parse("localhost:5000/yocto").unwrap();
        let digest = format!("sha256:{}", "0".repeat(64));
        for (source, name, expected) in [
            (
                "docker.io/library/alpine:3",
                None,
                "localhost:5000/yocto/alpine:3",
            ),
            ("alpine", None, "localhost:5000/yocto/alpine:latest"),
            ("host:5000/a/b:v1", None, "localhost:5000/yocto/b:v1"),
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
        ] {
            let source = Reference::parse(source).unwrap();
            let destination = destination(&source, name, &registry).unwrap();
            assert_eq!(destination.to_string(), expected);
        }
    }
}
