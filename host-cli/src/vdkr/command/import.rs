//! `vdkr import`: an image with one layer, of a root file system's archive.

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;
use vdkr_core::{
    manifest::{ContainerConfig, change},
    platform::Platform,
    reference::{Reference, is_image_id},
};
use vdkr_transfer::archive::open_plain;

use crate::{
    exit::Exit,
    out,
    vdkr::{
        content::{
            Input,
            load::{Making, make_image},
        },
        error::{Error, Result},
        image_args::ImportArgs,
        session::with_session,
        settings::Settings,
    },
};

/// Makes the image and prints its id.
pub async fn run(settings: &Settings, args: &ImportArgs) -> Result<u8> {
    let file = args.file.to_string_lossy();
    if file.contains("://") {
        return Err(Error::usage(format!("{file}: only files are imported"))
            .with_hint(format!("curl -L {file} | vdkr import - NAME")));
    }
    let name = args.name.as_deref().map(new_name).transpose()?;
    let config = changed(&args.change)?;
    let platform = args.platform.as_deref().map(platform).transpose()?;
    if args.file.is_dir() {
        return Err(Error::usage(format!("{file} is a directory"))
            .with_hint(format!("import it with: vdkr vimport {file} [NAME]")));
    }
    let input = Input::open(&args.file).await?;
    let making = Making {
        platform,
        config,
        comment: match &args.message {
            Some(text) => text.clone(),
            None => format!("Imported from {}", if file == "-" { "-" } else { &*file }),
        },
    };
    let archive = tarball(input.path()).await?;
    let made = with_session(settings, "vdkr import", async |session| {
        make_image(session, settings, archive, &making, name.as_deref()).await
    })
    .await?;
    out!("{}", made.id);
    Ok(0)
}

/// A name that an image can get.
pub fn new_name(name: &str) -> Result<String> {
    let reference = Reference::parse(name)
        .map_err(|error| Error::usage(format!("{name:?} is no image name: {error}")))?;
    if reference.digest().is_some() || is_image_id(name) {
        let message = format!("{name:?} cannot be given to an image; use a name and a tag");
        return Err(Error::usage(message));
    }
    Ok(reference.or_latest().to_string())
}

/// How an image is run after these changes.
pub fn changed(changes: &[String]) -> Result<ContainerConfig> {
    let mut config = ContainerConfig::default();
    for change in changes {
        change::apply(&mut config, change).map_err(|error| Error::usage(error.to_string()))?;
    }
    Ok(config)
}

/// A platform as the user wrote it.
pub fn platform(text: &str) -> Result<Platform> {
    Platform::parse(text).map_err(|error| Error::usage(format!("--platform {text:?}: {error}")))
}

/// A root file system's archive, plain.
pub async fn tarball(path: &Path) -> Result<File> {
    let path: PathBuf = path.to_owned();
    let opened = spawn_blocking(move || {
        let file = open_plain(&path)?;
        match file.metadata()?.len() {
            0 => Err(Error::usage(format!("{} is empty", path.display()))),
            _ => Ok(file),
        }
    });
    match opened.await {
        Ok(file) => file,
        Err(error) => Err(Error::new(Exit::Failed, error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_an_image_can_get() {
        assert_eq!(new_name("board").unwrap(), "docker.io/library/board:latest");
        assert_eq!(
            new_name("localhost:5000/x:1").unwrap(),
            "localhost:5000/x:1"
        );
        for bad in ["A", "0123456789ab", &format!("x@sha256:{}", "0".repeat(64))] {
            assert!(new_name(bad).is_err(), "{bad}");
        }
    }
}
