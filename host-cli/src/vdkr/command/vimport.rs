//! `vdkr vimport`: an image from this computer, whatever form it has.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use vdkr_core::{platform::Platform, transport::Pick};
use vdkr_transfer::{FetchedManifest, OciLayout, archive, dir};

use super::{
    import::{changed, new_name, tarball},
    load::tell_replaced,
};
use crate::{
    exit::Exit,
    out,
    vdkr::{
        content::{
            Input,
            directory::pack,
            load::{Chosen, Making, choose_image, load, make_image},
        },
        error::{Error, Result},
        image_args::VimportArgs,
        session::{Session, with_session},
        settings::Settings,
        words::say,
    },
};

/// The name of an image that nobody named.
const UNNAMED: &str = "imported:latest";
/// Most layouts that an error lists.
const SHOWN: usize = 20;

/// What stands at a path.
enum Found {
    /// Images.
    Layout(Box<OciLayout>, FetchedManifest),
    /// A root file system, as a plain archive.
    Root(File),
}

/// Imports, and prints the name.
pub async fn run(settings: &Settings, args: &VimportArgs) -> Result<u8> {
    let name = match args.name.as_deref() {
        None | Some("-") => UNNAMED,
        Some(name) => name,
    };
    let full = new_name(name)?;
    let config = changed(&args.change)?;
    let input = Input::open(&args.path).await?;
    let found = find(input.path()).await?;
    if let (Found::Layout(..), false) = (&found, args.change.is_empty()) {
        return Err(Error::usage(format!(
            "--change is for root file systems; {} is an image with a configuration of its own",
            input.shown
        )));
    }
    let platform = Platform::parse(&format!("linux/{}", settings.arch));
    let platform = platform
        .map_err(|error| Error::usage(error.to_string()))?
        .normalised();
    // Whether it fits is known before a machine is started.
    let ready = match found {
        Found::Layout(layout, top) => Ready::Image(Box::new(
            chosen(*layout, top, &platform, &input.shown).await?,
        )),
        Found::Root(archive) => Ready::Root(archive),
    };
    let loaded = with_session(settings, "vdkr vimport", async |session| {
        check_architecture(session, settings)?;
        match ready {
            Ready::Image(chosen) => {
                let progress = settings.global.progress;
                load(session, settings, &chosen, Some(&full), progress).await
            }
            Ready::Root(archive) => {
                let making = Making {
                    platform: None,
                    config,
                    comment: format!("Imported from {}", input.shown),
                };
                make_image(session, settings, archive, &making, Some(&full)).await
            }
        }
    })
    .await?;
    tell_replaced(name, &loaded);
    out!("{name}");
    eprintln!("Imported {} as {name} ({})", input.shown, loaded.id.short());
    Ok(0)
}

/// A target has the architecture that it has, whatever this computer's settings say.
fn check_architecture(session: &Session, settings: &Settings) -> Result<()> {
    let its = &session.connection.hello().arch;
    if !session.is_target() || its.is_empty() || its == settings.arch.oci_name() {
        return Ok(());
    }
    Err(Error::usage(format!(
        "the target is {its}, not {}",
        settings.arch.oci_name()
    ))
    .with_hint("name its architecture: vdkr -a aarch64 (or x86_64) --target …"))
}

enum Ready {
    Image(Box<Chosen>),
    Root(File),
}

async fn find(path: &Path) -> Result<Found> {
    let path: PathBuf = path.to_owned();
    if path.is_dir() {
        return blocking(move || in_directory(&path)).await;
    }
    let archive_path = path.clone();
    let opened = blocking(move || match archive::open(&archive_path) {
        Ok((layout, _)) => {
            let top = layout.pick(&Pick::Only)?;
            Ok(Some(Found::Layout(Box::new(layout), top)))
        }
        // No images in it: a root file system, or damaged, which the machine will see.
        Err(_) => Ok(None),
    })
    .await?;
    match opened {
        Some(found) => Ok(found),
        None => Ok(Found::Root(tarball(&path).await?)),
    }
}

fn in_directory(path: &Path) -> Result<Found> {
    let has = |name: &str| path.join(name).exists();
    if has("index.json") || has("oci-layout") {
        let layout = OciLayout::open(path)?;
        let top = layout.pick(&Pick::Only)?;
        return Ok(Found::Layout(Box::new(layout), top));
    }
    if has("manifest.json") && has("version") {
        let layout = dir::open(path)?;
        let top = layout.pick(&Pick::Only)?;
        return Ok(Found::Layout(Box::new(layout), top));
    }
    let layouts = layouts_in(path)?;
    if !layouts.is_empty() {
        let shown = path.display();
        let mut list: Vec<String> = layouts
            .iter()
            .take(SHOWN)
            .map(|name| format!("  vdkr vimport {}", path.join(name).display()))
            .collect();
        if layouts.len() > SHOWN {
            list.push(format!("  and {} more", layouts.len() - SHOWN));
        }
        let message = format!("{shown} is not an image, but holds images; import one of them:");
        return Err(Error::usage(format!("{message}\n{}", list.join("\n"))));
    }
    let packed =
        pack(path).map_err(|error| Error::new(Exit::Failed, format!("cannot pack {error}")))?;
    if packed.members == 1 {
        return Err(Error::usage(format!("{} is empty", path.display())));
    }
    if packed.skipped > 0 {
        say(&format!("{} sockets were left out", packed.skipped));
    }
    Ok(Found::Root(packed.archive))
}

/// The layouts of a deploy directory.
fn layouts_in(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with("-oci") && entry.path().join("index.json").is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

async fn chosen(
    layout: OciLayout,
    top: FetchedManifest,
    wanted: &Platform,
    shown: &str,
) -> Result<Chosen> {
    let platform = wanted.clone();
    let chosen = blocking(move || choose_image(&layout, top, &platform)).await?;
    let own = chosen.config.platform();
    if chosen.from_index {
        eprintln!("Selected platform: {own}");
    }
    if own.architecture.is_empty() {
        say(&format!(
            "{shown} does not say which architecture it is for"
        ));
    } else if wanted.distance(&own).is_none() {
        let message = format!("{shown} is for {own}, the machine is {wanted}");
        let hint = match own.architecture.as_str() {
            "amd64" => "import it with: vdkr -a x86_64 vimport ...",
            "arm64" => "import it with: vdkr -a aarch64 vimport ...",
            _ => "vdkr has machines for x86_64 and aarch64",
        };
        return Err(Error::new(Exit::Failed, message).with_hint(hint));
    }
    Ok(chosen)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::new(Exit::Failed, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_deploy_directory_names_its_images() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["base-latest-oci", "app-latest-oci", "empty-oci"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        for name in ["base-latest-oci", "app-latest-oci"] {
            fs::write(dir.path().join(name).join("index.json"), "{}").unwrap();
        }
        let error = in_directory(dir.path()).err().unwrap().to_string();
        let (app, base) = (error.find("app-latest-oci"), error.find("base-latest-oci"));
        assert!(
            app.is_some() && app < base && !error.contains("empty-oci"),
            "{error}"
        );
        let empty = tempfile::tempdir().unwrap();
        assert!(
            in_directory(empty.path())
                .err()
                .unwrap()
                .to_string()
                .contains("empty")
        );
    }
}
