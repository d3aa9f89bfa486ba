//! Which stored image a user means by a name or an id: the rules of [`vdkr_core::stored`], with what
//! the machine has and the registry that is configured here.

use vdkr_core::{
    candidates::RegistryPrefix,
    channel::message::ImageRow,
    loopback::{DEFAULT_GATEWAY, translate_prefix},
    reference::is_image_id,
    stored::{Meant, NotMeant, Shelf, find_stored},
};

use super::{
    command::images::rows,
    error::{Error, Result},
    registry,
    session::Session,
    settings::Settings,
};

/// A stored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name by which it was found, in full; absent when it was found by its id.
    pub name: Option<String>,
    /// Its id in full.
    pub id: String,
}

/// Finds what a user means among these images. `None` when there is no such image.
pub fn find_in(
    rows: &[ImageRow],
    registry: Option<&RegistryPrefix>,
    text: &str,
) -> Result<Option<Found>> {
    let named: Vec<(Option<String>, &str)> = rows
        .iter()
        .map(|row| (full_name(row), row.id.as_str()))
        .collect();
    let mut shelf = Shelf::default();
    for (name, id) in &named {
        if let Some(name) = name {
            shelf.names.push((name, id));
        }
        if !shelf.ids.contains(id) {
            shelf.ids.push(id);
        }
    }
    // The machine calls a registry of this computer by its gateway.
    let registry = registry.map(|prefix| translate_prefix(prefix, DEFAULT_GATEWAY));
    match find_stored(text, registry.as_ref(), Some(DEFAULT_GATEWAY), &shelf) {
        Ok(meant) => Ok(Some(Found {
            name: match meant {
                Meant::Name { name, .. } => Some(name.to_owned()),
                Meant::Id(_) => None,
            },
            id: meant.id().to_owned(),
        })),
        Err(NotMeant::Nothing) => Ok(None),
        Err(NotMeant::Name(error)) => Err(Error::usage(format!("{text:?}: {error}"))),
        Err(NotMeant::Several(several)) => Err(Error::usage(format!(
            "{text:?} can mean several images: {}",
            several.join(", ")
        ))
        .with_hint("write the whole name")),
    }
}

/// Finds what a user means in the machine of a session.
pub async fn find(session: &mut Session, settings: &Settings, text: &str) -> Result<Option<Found>> {
    let registry = registry::configured(settings)?;
    find_in(&rows(session).await?, registry.as_ref(), text)
}

/// The name by which the agent finds what a user means. The agent goes by the same rules, and knows
/// of no registry unless a request says one: only then there is something to say.
pub async fn for_agent(session: &mut Session, settings: &Settings, text: &str) -> Result<String> {
    let alone = is_image_id(text) || text.contains('@') || session.is_target();
    if alone || registry::configured(settings)?.is_none() {
        return Ok(text.to_owned());
    }
    let found = find(session, settings, text).await?;
    // The agent says best what it has instead.
    Ok(found.map_or_else(|| text.to_owned(), |found| found.name.unwrap_or(found.id)))
}

/// Several at once.
pub async fn all_for_agent(
    session: &mut Session,
    settings: &Settings,
    texts: &[String],
) -> Result<Vec<String>> {
    let mut names = Vec::with_capacity(texts.len());
    for text in texts {
        names.push(for_agent(session, settings, text).await?);
    }
    Ok(names)
}

/// A row's name with its tag, or with its digest when it has none.
fn full_name(row: &ImageRow) -> Option<String> {
    match (&row.tag, &row.digest) {
        (Some(tag), _) => Some(format!("{}:{tag}", row.name)),
        (None, Some(digest)) => Some(format!("{}@{digest}", row.name)),
        (None, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, tag: Option<&str>, byte: &str) -> ImageRow {
        ImageRow {
            name: name.into(),
            tag: tag.map(Into::into),
            digest: Some(format!("sha256:{}", "ee".repeat(32))),
            id: format!("sha256:{}", byte.repeat(32)),
            ..ImageRow::default()
        }
    }

    #[test]
    fn rows_are_found_under_the_registry_of_this_computer() {
        let rows = [
            row("10.0.2.2:5000/yocto/base", Some("latest"), "0a"),
            row("h.x/base", Some("latest"), "0b"),
            row("docker.io/library/old", None, "0c"),
        ];
        let find = |registry: &str, text: &str| {
            let registry = (!registry.is_empty()).then(|| RegistryPrefix::parse(registry).unwrap());
            let found = find_in(&rows, registry.as_ref(), text);
            found.map(|found| found.map(|found| found.name.unwrap_or(found.id)))
        };
        let ours = "10.0.2.2:5000/yocto/base:latest";
        assert_eq!(find("localhost:5000/yocto", "base").unwrap().unwrap(), ours);
        assert_eq!(find("h.x", "base").unwrap().unwrap(), "h.x/base:latest");
        assert_eq!(
            find("", "localhost:5000/yocto/base").unwrap().unwrap(),
            ours
        );
        let several = find("", "base").unwrap_err().to_string();
        assert!(
            several.contains(ours) && several.contains("h.x/base:latest"),
            "{several}"
        );
        assert_eq!(find("", "0c0").unwrap().unwrap(), rows[2].id);
        assert_eq!(find("", "old").unwrap(), None);
        let by_digest = format!("old@sha256:{}", "ee".repeat(32));
        let stored = format!("docker.io/library/{by_digest}");
        assert_eq!(find("", &by_digest).unwrap().unwrap(), stored);
        assert!(find("", "a//b").is_err());
    }
}
