//! `push`: OCI images of the deploy directories, or of given paths, under tags of a strategy.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use serde_json::json;
use vdkr_core::manifest::Descriptor;
use vdkr_core::reference::check_repository;
use vdkr_core::tags::{Strategy, TagFacts, explicit_tags, parse_strategies, tags};
use vdkr_transfer::copy::push_layout;
use vdkr_transfer::{Copier, CopyOptions, OciLayout, Progress, ProgressEvent};

use crate::exit::Exit;
use crate::out;
use crate::progress::{Mode, Progress as Display};
use crate::registry_cli::args::PushArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::{Config, DeployRoots};
use crate::registry_cli::deploy::{FoundImage, find_images, image_at};
use crate::registry_cli::error::{WithExit as _, exit_of};
use crate::registry_cli::facts;
use crate::registry_cli::index::add_to_tag;
use crate::registry_cli::remote::Remote;

/// Pushes what the arguments select. One image that fails does not stop the others.
pub async fn run(config: &Config, args: &PushArgs, progress: Mode) -> Result<Exit> {
    let tagging = Tagging::new(config, &args.tags)?;
    let images = select(config, &args.images)?;
    if images.is_empty() {
        eprintln!("No images found; nothing to push");
        return Ok(Exit::Done);
    }
    let remote = Remote::connect(config, auth::destination(config, &args.auth)?).await?;
    let display = Arc::new(Display::new(progress));
    let copier = Copier::new(CopyOptions {
        progress: sink(&display),
        ..CopyOptions::default()
    });
    warn_of_twins(&images, &display);
    let mut outcomes = Vec::new();
    for image in &images {
        match push(&remote, &copier, image, &tagging).await {
            Ok(pushed) => {
                report(&remote, image, &pushed, args.json);
                outcomes.push(Exit::Done);
            }
            Err(error) => {
                display.note(&format!(
                    "error: {} ({}): {error:#}",
                    image.name, image.machine
                ));
                outcomes.push(exit_of(&error));
            }
        }
    }
    Ok(Exit::of_several(outcomes))
}

/// How tags come about: as given, or by strategies from facts gathered once.
enum Tagging {
    Explicit(Vec<String>),
    Strategies(Vec<Strategy>, TagFacts),
}

impl Tagging {
    fn new(config: &Config, explicit: &[String]) -> Result<Self> {
        if !explicit.is_empty() {
            return Ok(Self::Explicit(explicit_tags(explicit).exit(Exit::Usage)?));
        }
        let words = config.value("tag_strategy").unwrap_or_default();
        let strategies = parse_strategies(words).exit(Exit::Usage)?;
        let facts = facts::gather(config);
        // Said once for the run; `arch` alone depends on the image.
        for warning in tags(&strategies, &with_arch(&facts, "amd64")).warnings {
            eprintln!("warning: {warning}");
        }
        Ok(Self::Strategies(strategies, facts))
    }

    fn for_image(&self, entries: &[Descriptor]) -> Vec<String> {
        match self {
            Self::Explicit(tags) => tags.clone(),
            Self::Strategies(strategies, facts) => {
                let architectures: Vec<_> = entries
                    .iter()
                    .filter_map(|entry| Some(entry.platform.as_ref()?.architecture.as_str()))
                    .collect();
                let facts = match architectures[..] {
                    [one] => with_arch(facts, one),
                    // An index of several architectures has no tag of one of them.
                    _ => TagFacts {
                        arch: None,
                        ..facts.clone()
                    },
                };
                tags(strategies, &facts).tags
            }
        }
    }
}

/// The facts with an architecture: `TARGET_ARCH`, or the image's in the spelling of Yocto.
fn with_arch(facts: &TagFacts, architecture: &str) -> TagFacts {
    let own = match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        other => other,
    };
    TagFacts {
        arch: facts.arch.clone().or_else(|| Some(own.to_owned())),
        ..facts.clone()
    }
}

fn select(config: &Config, wanted: &[String]) -> Result<Vec<FoundImage>> {
    let mut selected = Vec::new();
    let mut names = Vec::new();
    for word in wanted {
        let path = Path::new(word);
        if path.is_dir() {
            let image = image_at(path)
                .with_context(|| format!("{word} is not an OCI layout: it has no index.json"))
                .exit(Exit::NotFound)?;
            selected.push(image);
        } else if path.is_file() {
            return Err(anyhow::anyhow!(
                "{word} is a file; push takes OCI layout directories. Unpack an OCI archive with: mkdir DIR && tar -C DIR -xf {word}"
            ))
            .exit(Exit::Usage);
        } else if word.contains('/') && (word.starts_with(['/', '.']) || word.ends_with('/')) {
            return Err(anyhow::anyhow!("{word}: no such directory")).exit(Exit::NotFound);
        } else {
            names.push(word.as_str());
        }
    }
    if names.is_empty() && !wanted.is_empty() {
        return Ok(selected);
    }
    let roots = config.deploy_roots();
    let place = match &roots {
        DeployRoots::AllMachines(dir) | DeployRoots::Machine(dir) => dir.display().to_string(),
        DeployRoots::Unknown => {
            return Err(anyhow::anyhow!(
                "where are the images? Set DEPLOY_DIR_IMAGES, pass --deploy-dir-images DIR, or give the path of an OCI layout"
            ))
            .exit(Exit::Usage);
        }
    };
    let found = find_images(&roots)
        .with_context(|| format!("cannot read the deploy directory {place}"))
        .exit(Exit::NotFound)?;
    if names.is_empty() {
        return Ok(found);
    }
    for name in &names {
        if !found.iter().any(|image| image.name == *name) {
            let mut available: Vec<_> = found
                .iter()
                .map(|i| format!("  {} ({})", i.name, i.machine))
                .collect();
            available.sort();
            available.dedup();
            return Err(anyhow::anyhow!(
                "image '{name}' not found in {place}\nAvailable images:\n{}",
                if available.is_empty() {
                    "  (none)".to_owned()
                } else {
                    available.join("\n")
                }
            ))
            .exit(Exit::NotFound);
        }
    }
    selected.extend(
        found
            .into_iter()
            .filter(|image| names.contains(&image.name.as_str())),
    );
    Ok(selected)
}

/// Two machines of one architecture that build the same name share its tags: the newer wins.
fn warn_of_twins(images: &[FoundImage], display: &Display) {
    let entries_of = |image: &FoundImage| -> Option<Vec<Descriptor>> {
        let images = OciLayout::open(&image.path).ok()?.images().ok()?;
        Some(images.into_iter().map(|image| image.descriptor).collect())
    };
    for (at, image) in images.iter().enumerate() {
        let Some(later) = images[at + 1..]
            .iter()
            .find(|other| other.name == image.name)
        else {
            continue;
        };
        let (Some(before), Some(after)) = (entries_of(image), entries_of(later)) else {
            continue;
        };
        let replaced = before.iter().find_map(|old| {
            let platform = old.platform.as_ref()?;
            let new = after
                .iter()
                .find(|new| new.platform.as_ref().is_some_and(|p| p.same_as(platform)))?;
            (new.digest != old.digest).then_some(platform)
        });
        if let Some(platform) = replaced {
            display.note(&format!(
                "warning: {} for {platform} is built for {} and {}; the newer one ({}) gets the tags",
                image.name, image.machine, later.machine, later.machine
            ));
        }
    }
}

struct Pushed {
    repository: String,
    entries: Vec<Descriptor>,
    tags: Vec<(String, String)>,
}

async fn push(
    remote: &Remote,
    copier: &Copier,
    image: &FoundImage,
    tagging: &Tagging,
) -> Result<Pushed> {
    let name = match remote.prefix.namespace() {
        Some(namespace) => format!("{namespace}/{}", image.name),
        None => image.name.clone(),
    };
    check_repository(&name).with_context(|| {
        format!(
            "{} cannot be a repository's name; rename the directory",
            image.name
        )
    })?;
    let repository = remote.repository(&name)?;
    let layout = OciLayout::open(&image.path)?;
    let images = layout.images()?;
    let entries = push_layout(copier, &layout, &images, &remote.client, &repository).await?;
    let mut pushed = Vec::new();
    for tag in tagging.for_image(&entries) {
        let digest = add_to_tag(&remote.client, &repository, &tag, &entries).await?;
        pushed.push((tag, digest.to_string()));
    }
    Ok(Pushed {
        repository: name,
        entries,
        tags: pushed,
    })
}

/// Shows the events of a transfer.
pub fn sink(display: &Arc<Display>) -> Progress {
    let display = Arc::clone(display);
    Arc::new(move |event: &ProgressEvent| match event {
        ProgressEvent::Planned { blobs, bytes } => display.planned(*blobs, *bytes),
        ProgressEvent::Started { digest, size, what } => {
            display.started(digest.as_str(), &format!("{what:?}").to_lowercase(), *size);
        }
        ProgressEvent::Advanced { digest, done } => display.advanced(digest.as_str(), *done),
        ProgressEvent::Finished { digest, outcome } => {
            display.finished(digest.as_str(), &format!("{outcome:?}").to_lowercase());
        }
        ProgressEvent::Retrying { digest, reason } => {
            display.note(&format!("{}: {reason}; trying again", digest.short()));
        }
        _ => {}
    })
}

fn report(remote: &Remote, image: &FoundImage, pushed: &Pushed, as_json: bool) {
    let platforms: Vec<_> = pushed
        .entries
        .iter()
        .map(|e| {
            e.platform
                .as_ref()
                .map_or_else(|| "unknown".to_owned(), ToString::to_string)
        })
        .collect();
    if as_json {
        out!(
            "{}",
            json!({
                "image": image.name,
                "machine": image.machine,
                "repository": format!("{}/{}", remote.host(), pushed.repository),
                "platforms": platforms,
                "tags": pushed.tags.iter().map(|(tag, digest)| json!({"tag": tag, "digest": digest})).collect::<Vec<_>>(),
            })
        );
        return;
    }
    for (tag, digest) in &pushed.tags {
        out!(
            "{}/{}:{tag} {digest} ({}, from {})",
            remote.host(),
            pushed.repository,
            platforms.join(" "),
            image.machine
        );
    }
}
