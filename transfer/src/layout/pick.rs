//! Which image of a layout is meant.

use std::collections::HashSet;

use vdkr_core::manifest::Descriptor;
use vdkr_core::manifest::media_type::{is_image, is_index};
use vdkr_core::reference::Reference;
use vdkr_core::transport::Pick;

use super::REF_NAME;
use super::read::OciLayout;
use crate::error::{TransferError, printable};
use crate::manifests::FetchedManifest;

/// The annotation by which containerd and Docker call an image in full.
pub const FULL_NAME: &str = "io.containerd.image.name";
/// Most names that an error lists.
const SHOWN: usize = 20;

impl OciLayout {
    /// The image or index that `pick` means. Of a layout that lists several platforms of one image
    /// side by side, that is `index.json` itself.
    pub fn pick(&self, pick: &Pick) -> Result<FetchedManifest, TransferError> {
        let listed = &self.index().manifests;
        match pick {
            Pick::At(number) => match listed.get(*number) {
                Some(entry) => self.manifest(entry),
                None => Err(self.no(&format!(
                    "it has {} images, none at @{number}; they are counted from 0",
                    listed.len()
                ))),
            },
            Pick::Named(name) => {
                let mut found = listed.iter().filter(|entry| is_called(entry, name));
                match (found.next(), found.next()) {
                    (Some(entry), None) => self.manifest(entry),
                    (Some(first), Some(second)) if first.digest == second.digest => {
                        self.manifest(first)
                    }
                    (Some(_), Some(_)) => {
                        Err(self.no(&format!("it has several images called {name}")))
                    }
                    (None, _) => Err(self.no(&format!(
                        "it has no image called {name}, only {}",
                        self.names()
                    ))),
                }
            }
            Pick::Only => self.only(),
        }
    }

    fn only(&self) -> Result<FetchedManifest, TransferError> {
        let mut images: Vec<&Descriptor> = Vec::new();
        // Each is read once, however often it is listed.
        let mut referring = HashSet::new();
        for entry in &self.index().manifests {
            let known = images.iter().any(|known| known.digest == entry.digest);
            if known || !(is_image(&entry.media_type) || is_index(&entry.media_type)) {
                continue;
            }
            // What refers to an image is listed beside it, without name and platform.
            let bare = entry.platform.is_none() && names_of(entry).next().is_none();
            let known = (&entry.media_type, &entry.digest, entry.size);
            if bare && referring.contains(&known) {
                continue;
            }
            if bare && self.manifest(entry)?.parse()?.subject().is_some() {
                referring.insert(known);
                continue;
            }
            images.push(entry);
        }
        match images[..] {
            [] => Err(self.no("it has no images")),
            [only] => self.manifest(only),
            _ if is_one_image_of_platforms(&images) => {
                FetchedManifest::new(bytes::Bytes::copy_from_slice(self.raw_index()))
            }
            _ => Err(self.no(&format!(
                "it has several images; choose one with :NAME or :@N: {}",
                self.names()
            ))),
        }
    }

    /// The top-level entry or entries of this name, as indexes of tags are looked up.
    pub(crate) fn named(&self, name: &str) -> Option<&Descriptor> {
        let mut listed = self.index().manifests.iter();
        listed.find(|entry| entry.annotations.get(REF_NAME).map(String::as_str) == Some(name))
    }

    fn names(&self) -> String {
        let mut names: Vec<String> = self
            .index()
            .manifests
            .iter()
            .enumerate()
            .map(|(at, entry)| match names_of(entry).next() {
                Some(name) => printable(name, 200),
                None => format!("@{at}"),
            })
            .collect();
        if names.len() > SHOWN {
            let more = names.len() - SHOWN;
            names.truncate(SHOWN);
            names.push(format!("and {more} more"));
        }
        names.join(", ")
    }

    fn no(&self, reason: &str) -> TransferError {
        TransferError::layout(self.path(), reason)
    }
}

/// Whether these entries are the platforms of one image: each has one of its own, and at most
/// one name among them.
fn is_one_image_of_platforms(images: &[&Descriptor]) -> bool {
    let mut name = None;
    images.iter().enumerate().all(|(at, entry)| {
        let Some(platform) = &entry.platform else {
            return false;
        };
        let others = &images[..at];
        let alone = !others
            .iter()
            .any(|other| other.platform.as_ref().is_some_and(|p| p.same_as(platform)));
        let own = entry.annotations.get(REF_NAME);
        let fits = own.is_none() || name.is_none() || own == name;
        name = own.or(name);
        alone && fits
    })
}

/// The names of an entry of `index.json`, the fullest first.
pub(crate) fn names_of(entry: &Descriptor) -> impl Iterator<Item = &str> {
    [FULL_NAME, REF_NAME]
        .into_iter()
        .filter_map(|key| entry.annotations.get(key).map(String::as_str))
}

/// Whether an entry has this name, in this or another spelling (`app:v1` is `docker.io/library/app:v1`).
fn is_called(entry: &Descriptor, wanted: &str) -> bool {
    let same = |name: &str| {
        name == wanted
            || match (Reference::parse(name), Reference::parse(wanted)) {
                (Ok(name), Ok(wanted)) => name.or_latest() == wanted.or_latest(),
                _ => false,
            }
    };
    names_of(entry).any(same)
}
