//! `images`: the list of the store.

use std::collections::{BTreeMap, BTreeSet};

use vdkr_core::{
    channel::message::{ImageRow, Reply},
    digest::Digest,
    reference::Reference,
};

use crate::store::{
    ImageError, Store,
    state::{ImageRecord, State, repository},
};

/// What `docker images` shows where there is no name.
const NONE: &str = "<none>";

/// Lists every name, and images that have none; the newest first.
pub fn images(store: &Store) -> Result<Reply, ImageError> {
    let known: Vec<Digest> = store.view(|state| state.images.keys().cloned().collect());
    let labels: BTreeMap<Digest, BTreeMap<String, String>> = known
        .into_iter()
        // One that is damaged, or was removed meanwhile, has none.
        .filter_map(|id| Some((id.clone(), store.config(&id).ok()?.config.labels)))
        .collect();
    let none = BTreeMap::new();
    let mut rows = store.view(|state| {
        let images = state.images.iter();
        images
            .flat_map(|(id, image)| rows(state, id, image, labels.get(id).unwrap_or(&none)))
            .collect::<Vec<_>>()
    });
    rows.sort_by(|a, b| {
        let newest = b.created.cmp(&a.created);
        newest.then_with(|| (&a.name, &a.tag, &a.id).cmp(&(&b.name, &b.tag, &b.id)))
    });
    Ok(Reply::Images { images: rows })
}

fn rows(
    state: &State,
    id: &Digest,
    image: &ImageRecord,
    labels: &BTreeMap<String, String>,
) -> Vec<ImageRow> {
    let row = |name: String, tag: Option<&str>, digest: Option<&str>| ImageRow {
        name,
        tag: tag.map(ToOwned::to_owned),
        digest: digest.map(ToOwned::to_owned),
        id: id.to_string(),
        created: image.created.clone(),
        size: state.size_of(image),
        labels: labels.clone(),
    };
    let mut rows = Vec::new();
    let mut repositories = BTreeSet::new();
    for (name, record) in state.names_of(id) {
        repositories.insert(repository(name));
        if let Ok(reference) = Reference::parse(name) {
            let digest = record.digest.as_ref().map(Digest::as_str);
            rows.push(row(short(&reference), reference.tag(), digest));
        }
    }
    for name in &image.digests {
        // One line a repository: its tags say it already.
        if repositories.insert(repository(name))
            && let Ok(reference) = Reference::parse(name)
        {
            let digest = reference.digest().map(Digest::as_str);
            rows.push(row(short(&reference), None, digest));
        }
    }
    if rows.is_empty() {
        rows.push(row(NONE.to_owned(), None, None));
    }
    rows
}

/// Host and repository as users write them.
fn short(reference: &Reference) -> String {
    reference.without_digest().without_tag().familiar()
}
