//! Images on their way to a registry: found, opened, and told apart from builds that are stale.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, anyhow};
use futures_util::{StreamExt as _, stream};
use vdkr_core::platform::Platform;
use vdkr_core::reference::Reference;
use vdkr_core::transport::Pick;
use vdkr_transfer::archive::Found;
use vdkr_transfer::layout::FULL_NAME;
use vdkr_transfer::{LayoutImage, OciLayout, archive};

use super::deploy::{Form, FoundImage};

/// Annotation with the name that a layout's list has for an image.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Layouts that are opened at the same time.
const PARALLEL: usize = 8;

/// An image that was opened.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// Where it was found and what it is called.
    pub image: FoundImage,
    /// Its content.
    pub layout: OciLayout,
    /// Its platforms.
    pub images: Vec<LayoutImage>,
    /// The tags that an archive of `docker save` has for it.
    pub tags: Vec<String>,
}

impl Candidate {
    /// Opens what was found, in the same order. An archive of `docker save` may give several
    /// candidates, by the names it has for its images.
    pub async fn open_all(found: Vec<FoundImage>) -> Vec<(FoundImage, Result<Vec<Self>>)> {
        let opened = found.into_iter().map(|image| async move {
            let asked = image.clone();
            let opened = match tokio::task::spawn_blocking(move || open(&asked)).await {
                Ok(opened) => opened,
                Err(error) => Err(error).context("the work was stopped"),
            };
            (image, opened)
        });
        stream::iter(opened).buffered(PARALLEL).collect().await
    }

    fn platforms(&self) -> impl Iterator<Item = Option<&Platform>> {
        self.images
            .iter()
            .map(|image| image.descriptor.platform.as_ref())
    }
}

fn open(found: &FoundImage) -> Result<Vec<Candidate>> {
    let (layout, kind) = if found.form == Form::Layout {
        (OciLayout::open(&found.path)?, Found::Oci)
    } else {
        archive::open(&found.path)?
    };
    let mut images = layout.images()?;
    if found.pick != Pick::Only {
        let picked = layout.pick(&found.pick)?.digest;
        images.retain(|image| image.descriptor.digest == picked || image.path.contains(&picked));
    }
    if images.is_empty() {
        return Err(anyhow!("{} holds no images", found.path.display()));
    }
    let groups = match kind {
        Found::Oci if found.form != Form::Pipe => {
            vec![(found.name.clone(), (images, BTreeSet::new()))]
        }
        _ => by_repository(&layout, images, &found.name),
    };
    let candidates = groups.into_iter().map(|(name, (images, tags))| {
        if name.is_empty() {
            return Err(anyhow!(
                "what came through the pipe does not say what it is called; write it to a file NAME.tar and push that"
            ));
        }
        let candidate = Candidate {
            image: FoundImage {
                name,
                ..found.clone()
            },
            layout: layout.clone(),
            images,
            tags: tags.into_iter().collect(),
        };
        one_per_platform(&candidate)?;
        Ok(candidate)
    });
    candidates.collect()
}

/// Images of one repository, and the tags that they have there.
type Group = (Vec<LayoutImage>, BTreeSet<String>);

/// Which image of an archive belongs to which repositories; those without a name get the file's.
fn by_repository(layout: &OciLayout, images: Vec<LayoutImage>, file: &str) -> Vec<(String, Group)> {
    let mut groups: BTreeMap<String, Group> = BTreeMap::new();
    for image in images {
        let mut own: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for name in names(layout, &image) {
            let named = Reference::parse(&name).ok();
            // A tag alone reads as the name of a repository, but says nothing about it.
            let named = named.filter(|named| named.tag().is_some() || named.has_explicit_host());
            if let Some(named) = named {
                let last = named.repository().rsplit('/').next().unwrap_or_default();
                let tags = own.entry(last.to_owned()).or_default();
                tags.extend(named.tag().map(str::to_owned));
            }
        }
        if own.is_empty() {
            own.insert(file.to_owned(), BTreeSet::new());
        }
        for (name, tags) in own {
            let group = groups.entry(name).or_default();
            group.0.push(image.clone());
            group.1.extend(tags);
        }
    }
    groups.into_iter().collect()
}

/// All names that an archive's list has for an image.
fn names(layout: &OciLayout, image: &LayoutImage) -> Vec<String> {
    let entries = layout.index().manifests.iter().filter(|entry| {
        let top = image.path.first().unwrap_or(&image.descriptor.digest);
        entry.digest == *top
    });
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let full = entry.annotations.get(FULL_NAME);
            full.or_else(|| entry.annotations.get(REF_NAME)).cloned()
        })
        .collect();
    if names.is_empty() {
        names.extend(image.name.clone());
    }
    names
}

/// One tag has one image for each platform: of several, somebody has to choose.
fn one_per_platform(candidate: &Candidate) -> Result<()> {
    for (at, image) in candidate.images.iter().enumerate() {
        let Some(platform) = &image.descriptor.platform else {
            continue;
        };
        let twin = candidate.images[..at].iter().find(|other| {
            let other = other.descriptor.platform.as_ref();
            other.is_some_and(|other| other.same_as(platform))
        });
        if let Some(twin) = twin {
            let name = |image: &LayoutImage| {
                let digest = image.descriptor.digest.to_string();
                image.name.clone().unwrap_or(digest)
            };
            return Err(anyhow!(
                "{} holds several images for {platform} ({}, {}); push the one you mean with: container-registry copy {}:{}:NAME docker://…",
                candidate.image.path.display(),
                name(twin),
                name(image),
                if candidate.image.form == Form::Layout {
                    "oci"
                } else {
                    "oci-archive"
                },
                candidate.image.path.display()
            ));
        }
    }
    Ok(())
}

/// Leaves out builds of a machine that newer builds of the same name and machine replace in full, and
/// gives notes on them; images of two machines that compete for a platform are warned of. The
/// candidates are ordered from the oldest to the newest.
pub fn drop_stale(candidates: &mut Vec<Candidate>) -> Vec<String> {
    let mut notes = Vec::new();
    let mut keep = vec![true; candidates.len()];
    for (at, older) in candidates.iter().enumerate() {
        let rivals = candidates[at + 1..]
            .iter()
            .filter(|other| other.image.name == older.image.name);
        let covers = |newer: &Candidate, platform: Option<&Platform>| {
            newer.platforms().any(|other| match (other, platform) {
                (Some(other), Some(platform)) => other.same_as(platform),
                (None, None) => true,
                _ => false,
            })
        };
        let same: Vec<_> = rivals
            .clone()
            .filter(|other| other.image.deployed && older.image.deployed)
            .filter(|other| other.image.machine == older.image.machine)
            .collect();
        let replaced = older
            .platforms()
            .all(|platform| same.iter().any(|newer| covers(newer, platform)));
        if replaced {
            keep[at] = false;
            notes.push(format!(
                "{} of {}: {} is an older build and is not pushed",
                older.image.name,
                older.image.machine,
                older.image.path.display()
            ));
            continue;
        }
        let other = rivals
            .filter(|other| other.image.machine != older.image.machine)
            .find_map(|newer| {
                let lost = older.images.iter().find(|image| {
                    let digest = &image.descriptor.digest;
                    covers(newer, image.descriptor.platform.as_ref())
                        && !newer.images.iter().any(|i| i.descriptor.digest == *digest)
                })?;
                Some((newer, lost))
            });
        if let Some((newer, lost)) = other {
            let platform = lost.descriptor.platform.as_ref();
            notes.push(format!(
                "warning: {} for {} is built for {} and {}; the newer one ({}) gets the tags",
                older.image.name,
                platform.map_or_else(|| "an unknown platform".to_owned(), ToString::to_string),
                older.image.machine,
                newer.image.machine,
                newer.image.machine
            ));
        }
    }
    let mut at = 0;
    candidates.retain(|_| {
        at += 1;
        keep[at - 1]
    });
    notes
}
