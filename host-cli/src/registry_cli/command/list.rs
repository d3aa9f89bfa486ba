//! `list`: every image with digest, platforms, size and time.

use std::cmp::Reverse;
use std::sync::Arc;

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use vdkr_core::extension::ImageEntry;
use vdkr_core::manifest::ManifestKind;
use vdkr_core::reference::Selector;
use vdkr_transfer::copy::read_config;
use vdkr_transfer::{FetchedManifest, ImageSource, RegistryImages, Repository, TransferError};

use super::history::time;
use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::remote::Remote;
use crate::vdkr::human::{columns, size};

/// Requests at the same time to a registry that is asked tag by tag.
const PARALLEL: usize = 16;

/// Options of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only images with this label, or with this value of it (repeatable; all must hold)
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    pub labels: Vec<String>,
    /// Order of the images
    #[arg(long, value_enum, default_value_t = Sort::Name)]
    pub sort: Sort,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Orders of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// By repository and tag
    Name,
    /// Newest first
    Time,
    /// Largest first
    Size,
}

/// Prints the images. Our own server tells them all at once; others are asked tag by tag.
pub async fn run(config: &Config, args: &ListArgs) -> Result<()> {
    let labels = labels(&args.labels)?;
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    let mut images = match remote.client.images(remote.host()).await? {
        Some(images) => images,
        None => ask_each(&remote).await?,
    };
    images.retain(|image| {
        labels.iter().all(|(key, value)| {
            image
                .labels
                .get(*key)
                .is_some_and(|found| value.is_none_or(|value| value == found))
        })
    });
    match args.sort {
        Sort::Name => {}
        Sort::Time => images.sort_by_key(|image| Reverse(image.pushed)),
        Sort::Size => images.sort_by_key(|image| Reverse(image.size)),
    }
    if args.json {
        out!("{}", serde_json::to_string_pretty(&images)?);
        return Ok(());
    }
    eprintln!("Images in {}:", remote.host());
    if images.is_empty() {
        eprintln!("  (none)");
        return Ok(());
    }
    let head = ["IMAGE", "DIGEST", "PLATFORMS", "SIZE", "TIME"];
    let rows: Vec<_> = std::iter::once(head.map(str::to_owned).to_vec())
        .chain(images.iter().map(row))
        .collect();
    out!("{}", columns(&rows).trim_end());
    for image in &images {
        if let Some(problem) = &image.problem {
            let tag = image.tag.as_deref().unwrap_or_default();
            eprintln!("warning: {}:{tag}: {problem}", image.repository);
        }
    }
    Ok(())
}

fn row(image: &ImageEntry) -> Vec<String> {
    let name = match &image.tag {
        Some(tag) => format!("{}:{tag}", image.repository),
        None => format!("{} (no tags)", image.repository),
    };
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let platforms = image.platforms.join(",");
    vec![
        name,
        or_dash(
            image
                .digest
                .as_ref()
                .map(|digest| digest.short().to_owned()),
        ),
        or_dash(Some(platforms).filter(|platforms| !platforms.is_empty())),
        or_dash((image.size > 0).then(|| size(image.size))),
        or_dash(image.pushed.map(time).or_else(|| image.created.clone())),
    ]
}

fn labels(wanted: &[String]) -> Result<Vec<(&str, Option<&str>)>> {
    wanted
        .iter()
        .map(|label| {
            let (key, value) = match label.split_once('=') {
                Some((key, value)) => (key, Some(value)),
                None => (label.as_str(), None),
            };
            if key.is_empty() {
                return Err(anyhow!("--label {label}: expected KEY or KEY=VALUE"))
                    .exit(Exit::Usage);
            }
            Ok((key, value))
        })
        .collect()
}

/// The same by the requests that every registry answers.
async fn ask_each(remote: &Remote) -> Result<Vec<ImageEntry>> {
    let names = remote.client.catalog(remote.host()).await?;
    let tagged: Vec<Vec<ImageEntry>> = stream::iter(names)
        .map(|name| async move {
            let repository = remote.repository(&name)?;
            let bare = |tag: Option<String>| ImageEntry {
                repository: name.clone(),
                tag,
                ..ImageEntry::default()
            };
            match remote.client.tags(&repository).await {
                Ok(tags) if !tags.is_empty() => {
                    anyhow::Ok(tags.into_iter().map(|tag| bare(Some(tag))).collect())
                }
                // Removed since the catalog was read, or never given a tag.
                Ok(_) | Err(TransferError::NotFound { .. }) => Ok(vec![bare(None)]),
                Err(error) => Err(error.into()),
            }
        })
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    let images: Vec<Option<ImageEntry>> = stream::iter(tagged.into_iter().flatten())
        .map(|image| describe(remote, image))
        .buffered(PARALLEL)
        .try_collect()
        .await?;
    Ok(images.into_iter().flatten().collect())
}

/// Fills in what the manifests and the first configuration say. `None`: the tag is gone.
async fn describe(remote: &Remote, mut image: ImageEntry) -> Result<Option<ImageEntry>> {
    let Some(tag) = image.tag.clone() else {
        return Ok(Some(image));
    };
    let repository = remote.repository(&image.repository)?;
    let found = remote
        .client
        .find_manifest(&repository, Selector::Tag(&tag))
        .await?;
    let Some(found) = found else { return Ok(None) };
    image.digest = Some(found.digest.clone());
    image.media_type.clone_from(&found.media_type);
    match found.parse() {
        Ok(parsed) => {
            image.size = found.raw.len() as u64;
            image.labels.extend(parsed.annotations().clone());
            if let ManifestKind::Index(index) = &parsed.kind {
                for entry in &index.manifests {
                    let platform = entry.platform.as_ref().filter(|p| p.os != "unknown");
                    image.platforms.extend(platform.map(ToString::to_string));
                    let child = Selector::Digest(&entry.digest);
                    match remote.client.find_manifest(&repository, child).await? {
                        Some(child) => look_into(remote, &repository, &child, &mut image).await?,
                        None => image.problem = Some(format!("it lacks {}", entry.digest)),
                    }
                }
            } else {
                image.size = 0;
                look_into(remote, &repository, &found, &mut image).await?;
            }
        }
        Err(error) => image.problem = Some(error.to_string()),
    }
    image.platforms.sort_unstable();
    image.platforms.dedup();
    Ok(Some(image))
}

async fn look_into(
    remote: &Remote,
    repository: &Repository,
    manifest: &FetchedManifest,
    image: &mut ImageEntry,
) -> Result<()> {
    image.size += manifest.raw.len() as u64;
    let Ok(parsed) = manifest.parse() else {
        return Ok(());
    };
    image.size += parsed.blobs().map(|blob| blob.size).sum::<u64>();
    let Some(found) = parsed.as_image() else {
        return Ok(());
    };
    let images: Arc<dyn ImageSource> = Arc::new(RegistryImages::new(
        remote.client.clone(),
        repository.clone(),
    ));
    // An artifact has none; what cannot be read says nothing.
    if let Ok(config) = read_config(&images, &found.config).await {
        if image.platforms.is_empty() && !config.os.is_empty() {
            image.platforms.push(config.platform().to_string());
        }
        image.created = image.created.take().or(config.created);
        for (key, value) in config.config.labels {
            image.labels.entry(key).or_insert(value);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_keys_with_or_without_a_value() {
        let given = ["a=b=c".to_owned(), "d".to_owned(), "e=".to_owned()];
        assert_eq!(
            labels(&given).unwrap(),
            [("a", Some("b=c")), ("d", None), ("e", Some(""))]
        );
        assert!(labels(&["=x".to_owned()]).is_err());
    }
}
