//! `vdkr load`: images of an archive into the machine.

use std::{collections::BTreeMap, path::Path};

use tokio::task::spawn_blocking;
use vdkr_core::{
    manifest::{
        Descriptor,
        media_type::{is_image, is_index},
    },
    platform::Platform,
    reference::Reference,
};
use vdkr_transfer::{OciLayout, archive, layout::FULL_NAME};

use super::import::platform;
use crate::{
    exit::Exit,
    out,
    progress::Mode,
    vdkr::{
        content::{
            Input,
            load::{Chosen, Loaded, choose_image, load},
        },
        error::{Error, Result},
        image_args::LoadArgs,
        session::{Session, interruptible, with_session},
        settings::Settings,
        words::say,
    },
};

const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Loads every image of the archive, under its names.
pub async fn run(settings: &Settings, args: &LoadArgs) -> Result<u8> {
    let wanted = args.platform.as_deref().map(platform).transpose()?;
    let path = args.input.as_deref().unwrap_or(Path::new("-"));
    if args.input.is_none() && std::io::IsTerminal::is_terminal(&std::io::stdin()) {
        return Err(Error::usage("requested load from a terminal")
            .with_hint("name the file with -i FILE, or send it to standard input"));
    }
    if path.is_dir() {
        return Err(Error::usage(format!("{} is a directory", path.display()))
            .with_hint(format!("import it with: vdkr vimport {}", path.display())));
    }
    let input = Input::open(path).await?;
    let layout = open(input.path(), &input.shown).await?;
    let mode = match args.quiet {
        true => Mode::None,
        false => settings.global.progress,
    };
    with_session(settings, "vdkr load", async |session| {
        let platform = match &wanted {
            Some(platform) => platform.clone(),
            None => Platform::linux(&session.connection.hello().arch),
        };
        for (entry, names) in entries(&layout) {
            let chosen = interruptible(choose_blocking(&layout, entry, &platform)).await?;
            load_named(session, settings, &chosen, names, mode).await?;
        }
        Ok(())
    })
    .await?;
    Ok(0)
}

async fn open(path: &Path, shown: &str) -> Result<OciLayout> {
    let (path, shown) = (path.to_owned(), shown.to_owned());
    let opened = spawn_blocking(move || {
        archive::open(path).map_err(|error| {
            let told = Error::from(error);
            match shown.as_str() {
                "standard input" => {
                    told.with_hint("a root file system is imported with: vdkr import -")
                }
                _ => told.with_hint(format!(
                    "a root file system is imported with: vdkr import {shown}"
                )),
            }
        })
    });
    let (layout, _) = joined(opened.await)??;
    Ok(layout)
}

/// The result of work on another thread.
fn joined<T>(ended: Result<T, tokio::task::JoinError>) -> Result<T> {
    ended.map_err(|error| Error::new(Exit::Failed, error.to_string()))
}

/// Finds an image for a platform, on a thread that may block.
pub async fn choose_blocking(
    layout: &OciLayout,
    entry: Descriptor,
    platform: &Platform,
) -> Result<Chosen> {
    let (layout, platform) = (layout.clone(), platform.clone());
    let chosen = spawn_blocking(move || {
        let top = layout.manifest(&entry)?;
        choose_image(&layout, top, &platform)
    });
    joined(chosen.await)?
}

/// What the layout lists, each image once with all of its names.
fn entries(layout: &OciLayout) -> Vec<(Descriptor, Vec<String>)> {
    let mut order: Vec<Descriptor> = Vec::new();
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in &layout.index().manifests {
        if !(is_image(&entry.media_type) || is_index(&entry.media_type)) {
            continue;
        }
        let digest = entry.digest.to_string();
        if !names.contains_key(&digest) {
            order.push(entry.clone());
        }
        let known = names.entry(digest).or_default();
        known.extend(name_of(entry).filter(|name| !known.contains(name)));
    }
    order
        .into_iter()
        .map(|entry| {
            let names = names.remove(entry.digest.as_str()).unwrap_or_default();
            (entry, names)
        })
        .collect()
}

/// The name of an entry. A tag alone, which is what layouts often have, is none.
fn name_of(entry: &Descriptor) -> Option<String> {
    let full = entry.annotations.get(FULL_NAME);
    let short = entry.annotations.get(REF_NAME);
    let short = short.filter(|name| name.contains([':', '/']));
    let name = full.or(short)?;
    let reference = Reference::parse(name).ok()?;
    reference
        .digest()
        .is_none()
        .then(|| reference.or_latest().to_string())
}

async fn load_named(
    session: &mut Session,
    settings: &Settings,
    chosen: &Chosen,
    names: Vec<String>,
    mode: Mode,
) -> Result<()> {
    if names.is_empty() {
        let loaded = load(session, settings, chosen, None, mode).await?;
        out!("Loaded image ID: {}", loaded.id);
        return Ok(());
    }
    for name in names {
        let familiar = Reference::parse(&name)?.familiar();
        let loaded = load(session, settings, chosen, Some(&name), mode).await?;
        tell_replaced(&familiar, &loaded);
        out!("Loaded image: {familiar}");
    }
    Ok(())
}

/// Says whose name an image took over.
pub fn tell_replaced(name: &str, loaded: &Loaded) {
    if let Some(before) = &loaded.replaced {
        say(&format!(
            "{name} was image {} before, which has lost the name",
            before.short()
        ));
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::{digest::Digest, manifest::media_type::OCI_MANIFEST};

    use super::*;

    #[test]
    fn names_of_entries() {
        let entry = |annotations: &[(&str, &str)]| {
            let mut entry = Descriptor::new(OCI_MANIFEST, Digest::sha256(b"x"), 1);
            for (key, value) in annotations {
                entry
                    .annotations
                    .insert((*key).to_owned(), (*value).to_owned());
            }
            name_of(&entry)
        };
        let alpine = Some("docker.io/library/alpine:3".to_owned());
        assert_eq!(entry(&[(REF_NAME, "alpine:3")]), alpine);
        assert_eq!(
            entry(&[(REF_NAME, "3"), (FULL_NAME, "docker.io/library/alpine:3")]),
            alpine
        );
        assert_eq!(entry(&[(REF_NAME, "latest")]), None);
        assert_eq!(entry(&[(REF_NAME, "A//b")]), None);
        assert_eq!(entry(&[]), None);
    }
}
