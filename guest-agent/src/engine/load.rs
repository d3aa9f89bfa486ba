//! An image on its way from a registry into an engine: an archive as `docker save` writes it, made while
//! it is sent. Every blob is verified as it passes; the archive gets its end when all of them were
//! right, and without its end the engine takes nothing of it.

use std::{fs::File, io::Seek as _, path::Path};

use serde_json::json;
use tokio::{io::AsyncReadExt as _, task::spawn_blocking};
use vdkr_core::{
    channel::message::{Event, Failure, FailureCode, Phase},
    engine::{reads_zstd, rows::error_in},
    manifest::media_type::{Compression, layer_compression},
    reference::Reference,
    tar::write::{END, padding},
};
use vdkr_transfer::{
    TransferError,
    archive::member_header,
    pull::{Image, ImageError, LayerSource, PlainLayer, Remote, Wanted, joined},
};

use super::{Engine, client::Upload};
use crate::run::container::new_id;

/// Bytes taken in one go.
const PIECE: usize = 64 * 1024;
/// Bytes between two words of progress.
const STEP: u64 = 1 << 20;

impl Engine {
    /// Hands an image over.
    pub(super) async fn load(
        &self,
        remote: &Remote,
        image: &Image,
        names: &[Reference],
        version: &str,
        events: &dyn Fn(Event),
    ) -> Result<(), Failure> {
        let zstd = reads_zstd(self.kind(), version);
        let layers = image.layers()?;
        let mut upload = self.client.upload("POST", "/images/load?quiet=1").await?;
        let config = format!("{}.json", image.parsed.config.digest.hex());
        send_member(&mut upload, &config, &image.config_raw).await?;
        for layer in &layers {
            let name = member(layer);
            let compression = layer_compression(&layer.blob.media_type);
            if compression == Some(Compression::Zstd) && !zstd {
                self.send_inflated(&mut upload, remote, layer, &name, events)
                    .await?;
            } else {
                send_layer(&mut upload, remote, layer, &name, events).await?;
            }
            progress(events, layer, Phase::Complete, layer.blob.size);
        }
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        let diff_ids = image.config.rootfs.diff_ids.iter();
        let list = json!([{
            "Config": config,
            "RepoTags": names,
            "Layers": diff_ids.map(|diff_id| format!("{}.tar", diff_id.hex())).collect::<Vec<_>>(),
        }]);
        send_member(&mut upload, "manifest.json", list.to_string().as_bytes()).await?;
        upload.send(&END).await?;
        let said = upload.finish().await?;
        match error_in(&said) {
            None => Ok(()),
            Some(words) => {
                let text = format!("{} does not take the image: {words}", self.kind());
                Err(Failure::new(FailureCode::Failed, text))
            }
        }
    }

    async fn send_inflated(
        &self,
        upload: &mut Upload,
        remote: &Remote,
        layer: &Wanted,
        name: &str,
        events: &dyn Fn(Event),
    ) -> Result<(), Failure> {
        let reader = remote.open(&layer.blob).await;
        let reader = reader.map_err(|error| failed(remote, error))?;
        let (source, wanted) = (remote.clone(), layer.clone());
        let spool = self.spool.clone();
        let inflated = spawn_blocking(move || {
            let failed = |action| {
                let path = spool.clone();
                move |source| ImageError::Io {
                    action,
                    path,
                    source,
                }
            };
            let mut file = nameless(&spool).map_err(failed("make a temporary file in"))?;
            let mut plain = PlainLayer::new(source, wanted, reader)?;
            let copied = std::io::copy(&mut plain, &mut file);
            let size = copied.map_err(|error| match error.downcast::<ImageError>() {
                Ok(error) => error,
                Err(source) => failed("write a temporary file in")(source),
            })?;
            Ok((file, size))
        });
        let (mut file, size) = joined(inflated.await)?;
        let spool = self.spool.display();
        let unread = |error: std::io::Error| {
            let text = format!("cannot read a temporary file in {spool}: {error}");
            Failure::new(FailureCode::Failed, text)
        };
        file.rewind().map_err(unread)?;
        upload.send(&member_header(name, size)).await?;
        let mut left = size;
        let mut buffer = vec![0; PIECE];
        let mut told = 0;
        while left > 0 {
            use std::io::Read as _;
            let length = file.read(&mut buffer).map_err(unread)?;
            if length == 0 {
                let text = format!("a temporary file in {spool} was cut off");
                return Err(Failure::new(FailureCode::Failed, text));
            }
            upload.send(&buffer[..length]).await?;
            left = left.saturating_sub(length as u64);
            if size - left >= told + STEP {
                told = size - left;
                progress(events, layer, Phase::Unpack, layer.blob.size.min(told));
            }
        }
        upload.send(&END[..padding(size)]).await
    }
}

/// A file without a name in a directory, which goes with its last user.
fn nameless(dir: &Path) -> std::io::Result<File> {
    use rustix::{
        fs::{Mode, OFlags},
        io::Errno,
    };
    std::fs::create_dir_all(dir)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(dir, flags, Mode::RUSR | Mode::WUSR) {
        Ok(file) => Ok(file.into()),
        // Not every file system has such files.
        Err(Errno::OPNOTSUPP | Errno::ISDIR) => {
            let path = dir.join(format!(".layer-{}", new_id()?));
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create_new(true)
                .open(&path)?;
            std::fs::remove_file(&path)?;
            Ok(file)
        }
        Err(error) => Err(error.into()),
    }
}

async fn send_member(upload: &mut Upload, name: &str, data: &[u8]) -> Result<(), Failure> {
    let size = data.len() as u64;
    upload.send(&member_header(name, size)).await?;
    upload.send(data).await?;
    upload.send(&END[..padding(size)]).await
}

async fn send_layer(
    upload: &mut Upload,
    remote: &Remote,
    layer: &Wanted,
    name: &str,
    events: &dyn Fn(Event),
) -> Result<(), Failure> {
    let size = layer.blob.size;
    let reader = remote.open(&layer.blob).await;
    let mut reader = reader.map_err(|error| failed(remote, error))?;
    upload.send(&member_header(name, size)).await?;
    let mut buffer = vec![0; PIECE];
    let (mut done, mut told) = (0_u64, 0);
    progress(events, layer, Phase::Download, 0);
    loop {
        // Its end comes when all of it was right.
        let length = reader.read(&mut buffer).await;
        let length = length.map_err(|error| failed(remote, error.into()))?;
        if length == 0 {
            break;
        }
        upload.send(&buffer[..length]).await?;
        done += length as u64;
        if done >= told + STEP {
            told = done;
            progress(events, layer, Phase::Download, done);
        }
    }
    upload.send(&END[..padding(size)]).await
}

fn progress(events: &dyn Fn(Event), layer: &Wanted, phase: Phase, done: u64) {
    events(Event::Progress {
        layer: layer.blob.digest.to_string(),
        phase,
        done,
        total: Some(layer.blob.size),
    });
}

/// The name of a layer in the archive.
fn member(layer: &Wanted) -> String {
    format!("{}.tar", layer.diff_id.hex())
}

/// An error of a registry in the words of a pull.
fn failed(remote: &Remote, error: TransferError) -> Failure {
    LayerSource::failed(remote, error).into()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_file_without_a_name_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("state");
        let mut file = nameless(&place).unwrap();
        file.write_all(b"abc").unwrap();
        file.rewind().unwrap();
        let mut read = String::new();
        file.read_to_string(&mut read).unwrap();
        assert_eq!(read, "abc");
        assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
    }
}
