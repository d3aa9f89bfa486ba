//! Content of images between this computer and the machine: parts of images out of its store and into
//! it, a stream each, verified here whatever the other side says.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use tokio::{
    sync::mpsc::{Receiver, channel},
    task::spawn_blocking,
};
use vdkr_core::{
    channel::{
        MAX_PAYLOAD, Pipe,
        message::{AddImage, ExportedImage, ExportedLayer, Failure, KeptLayer, Reply, Request},
    },
    digest::Digest,
    manifest::{Descriptor, MAX_CONFIG, MAX_MANIFEST},
};
use vdkr_transfer::{VerifyingReader, pull::ImageError};

use super::{
    error::{Error, Result},
    layers::{Archive, Archives},
    session::Session,
};
use crate::{exit::Exit, vdkr::command::wrong_reply, vm::channel::Incoming};

pub mod commit;
pub mod directory;
pub mod load;
pub mod out;
pub mod save;

/// Pieces that wait between the channel and a file.
const AHEAD: usize = 4;

/// The parts of the images that these names or ids mean, in order.
pub async fn export(session: &mut Session, names: &[String]) -> Result<Vec<ExportedImage>> {
    let request = Request::Export {
        names: names.to_vec(),
    };
    match session.ask(&request).await? {
        Reply::Exported { images } if images.len() == names.len() => Ok(images),
        other => Err(wrong_reply(&other)),
    }
}

/// A document of an image in the store: its configuration or manifest.
pub async fn document(session: &mut Session, digest: &Digest, size: u64) -> Result<Vec<u8>> {
    let limit = MAX_CONFIG.max(MAX_MANIFEST) as u64;
    if size > limit {
        return Err(Error::new(
            Exit::Failed,
            format!("{digest} has {size} bytes; a document of an image has {limit} at most"),
        ));
    }
    read_part(session, digest, size, |mut part| {
        let mut bytes = Vec::new();
        part.read_to_end(&mut bytes)?;
        Ok(bytes)
    })
    .await
}

/// The length of a layer's archive, when the machine or this computer can make it.
pub fn plain_size(layer: &ExportedLayer, kept: &Archives) -> Result<u64> {
    let here = kept.get(&layer.diff_id).map(|archive| archive.length);
    layer.plain.or(here).ok_or_else(|| {
        let message = format!("how layer {} was archived is not known", layer.diff_id);
        Error::new(Exit::Failed, message)
            .with_hint("remove the image and pull or load it again, then save or push it")
    })
}

/// What comes of a part of an image; its end is an error unless size and digest are right.
pub type Part = VerifyingReader<Place>;

/// Where a part of an image is read from.
#[derive(Debug)]
pub enum Place {
    /// The machine.
    Machine(Incomings),
    /// The cache of this computer.
    Kept(Box<Archive>),
}

impl Read for Place {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Machine(incoming) => incoming.read(buffer),
            Self::Kept(archive) => archive.read(buffer),
        }
    }
}

/// Reads the archive of a layer on a thread that may block. `consume` must read it to its end.
pub async fn read_layer<T: Send + 'static>(
    session: &mut Session,
    layer: &ExportedLayer,
    kept: &Archives,
    consume: impl FnOnce(Part) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let size = plain_size(layer, kept)?;
    let (None, Some(archive)) = (layer.plain, kept.get(&layer.diff_id)) else {
        return read_part(session, &layer.diff_id, size, consume).await;
    };
    let archive = archive.clone();
    let descriptor = Descriptor::new("application/octet-stream", layer.diff_id.clone(), size);
    let work = spawn_blocking(move || {
        let archive = Box::new(archive.read().map_err(io::Error::other)?);
        consume(VerifyingReader::new(Place::Kept(archive), &descriptor))
    });
    match work.await {
        Ok(result) => result.map_err(explain),
        Err(error) => Err(Error::new(Exit::Failed, error.to_string())),
    }
}

/// Reads a part of an image on a thread that may block. `consume` must read it to its end.
pub async fn read_part<T: Send + 'static>(
    session: &mut Session,
    digest: &Digest,
    size: u64,
    consume: impl FnOnce(Part) -> io::Result<T> + Send + 'static,
) -> Result<T> {
    let request = Request::ReadBlob {
        digest: digest.clone(),
    };
    let mut call = session.connection.call(&request).await?;
    let (pieces, ready) = channel(AHEAD);
    let descriptor = Descriptor::new("application/octet-stream", digest.clone(), size);
    let incoming = Place::Machine(Incomings {
        ready,
        piece: Vec::new(),
        at: 0,
        ended: false,
    });
    let work = spawn_blocking(move || consume(VerifyingReader::new(incoming, &descriptor)));
    let done = loop {
        match call.next().await {
            Ok(Incoming::Data(pipe, bytes)) => {
                let length = bytes.len();
                // A reader that has failed says so itself.
                if pipe == Pipe::Stdout && pieces.send(Some(bytes)).await.is_err() {
                    break None;
                }
                call.sender().consumed(pipe, length).await?;
            }
            Ok(Incoming::Event(_)) => {}
            Ok(Incoming::Done(done)) => break Some(Ok(done)),
            Err(error) => break Some(Err(error)),
        }
    };
    drop(call);
    match done {
        None => {}
        Some(done) => match session.answer(done).await? {
            Reply::Sent => {
                let _ = pieces.send(None).await;
            }
            other => return Err(wrong_reply(&other)),
        },
    }
    drop(pieces);
    match work.await {
        Ok(result) => result.map_err(explain),
        Err(error) => Err(Error::new(Exit::Failed, error.to_string())),
    }
}

/// An error of a reader or writer, with what is within it.
fn explain(error: io::Error) -> Error {
    let error = match error.downcast::<ImageError>() {
        Ok(error) => return error.into(),
        Err(error) => error,
    };
    let is_transfer = error
        .get_ref()
        .is_some_and(<dyn std::error::Error + Send + Sync>::is::<vdkr_transfer::TransferError>);
    if is_transfer {
        return vdkr_transfer::TransferError::from(error).into();
    }
    error.into()
}

/// Output of the machine, on a thread that may block.
#[derive(Debug)]
pub struct Incomings {
    ready: Receiver<Option<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Incomings {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            match self.ready.blocking_recv() {
                Some(Some(piece)) => (self.piece, self.at) = (piece, 0),
                Some(None) => self.ended = true,
                None => return Err(io::Error::other("the machine did not send all of it")),
            }
        }
        let length = (self.piece.len() - self.at).min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Sends a layer unless the machine has it; whether it was sent. `open` gives the plain archive, on a
/// thread that may block, and is called only when it is needed. `moved` hears of every piece.
pub async fn add_layer<R: Read>(
    session: &mut Session,
    diff_id: &Digest,
    open: impl FnOnce() -> io::Result<R> + Send + 'static,
    moved: &mut dyn FnMut(usize),
) -> Result<bool> {
    let request = Request::AddLayer {
        diff_id: diff_id.clone(),
    };
    let mut call = session.connection.call(&request).await?;
    let sender = call.sender();
    let (pieces, mut ready) = channel::<Vec<u8>>(AHEAD);
    let reading = async {
        // The machine answers at once when it has the layer; until it asks for more than fits into its
        // window, some of it is read for nothing.
        let work = spawn_blocking(move || -> io::Result<()> {
            let mut source = open()?;
            loop {
                let mut piece = vec![0; MAX_PAYLOAD];
                let mut length = 0;
                while length < piece.len() {
                    match source.read(&mut piece[length..]) {
                        Ok(0) => break,
                        Ok(count) => length += count,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(error),
                    }
                }
                if length == 0 {
                    return Ok(());
                }
                piece.truncate(length);
                if pieces.blocking_send(piece).is_err() {
                    return Ok(());
                }
            }
        });
        let mut wanted = true;
        while let Some(piece) = ready.recv().await {
            if !sender.stdin(&piece).await? {
                wanted = false;
                break;
            }
            moved(piece.len());
        }
        drop(ready);
        match work.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(explain(error)),
            Err(error) => return Err(Error::new(Exit::Failed, error.to_string())),
        }
        if wanted {
            sender.end_stdin().await?;
        }
        Ok::<_, Error>(())
    };
    let answering = async {
        loop {
            match call.next().await {
                Ok(Incoming::Done(done)) => return Ok(done),
                Ok(Incoming::Data(pipe, bytes)) => {
                    call.sender().consumed(pipe, bytes.len()).await?;
                }
                Ok(Incoming::Event(_)) => {}
                Err(error) => return Err(error),
            }
        }
    };
    tokio::pin!(reading);
    tokio::pin!(answering);
    // An answer before the end of the layer is one that makes the rest needless.
    let done = tokio::select! {
        biased;
        done = &mut answering => done,
        read = &mut reading => match read {
            Ok(()) => answering.await,
            Err(error) => return Err(error),
        },
    };
    match session.answer(done).await? {
        Reply::LayerAdded { present } => Ok(!present),
        other => Err(wrong_reply(&other)),
    }
}

/// What makes an image of its layers.
#[derive(Clone, Copy, Debug)]
pub struct Documents<'a> {
    /// Media type of the manifest.
    pub media_type: &'a str,
    /// The configuration.
    pub config: &'a [u8],
    /// The manifest.
    pub manifest: &'a [u8],
}

/// Puts an image whose layers are there, or kept here, into the store: its id, and the image that had
/// the name.
pub async fn add_image(
    session: &mut Session,
    name: Option<&str>,
    documents: &Documents<'_>,
    kept: Vec<KeptLayer>,
) -> Result<Result<(Digest, Option<Digest>), Failure>> {
    let request = Request::AddImage(AddImage {
        name: name.map(str::to_owned),
        media_type: documents.media_type.to_owned(),
        config_size: documents.config.len() as u64,
        manifest_size: documents.manifest.len() as u64,
        kept,
    });
    let mut call = session.connection.call(&request).await?;
    let sender = call.sender();
    for document in [documents.config, documents.manifest] {
        if !sender.stdin(document).await? {
            break;
        }
    }
    sender.end_stdin().await?;
    let done = loop {
        match call.next().await {
            Ok(Incoming::Done(done)) => break done,
            Ok(_) => {}
            Err(error) => return Err(session.explain(error).await),
        }
    };
    match done {
        Ok(Reply::Added { id, replaced }) => Ok(Ok((id, replaced))),
        Ok(other) => Err(wrong_reply(&other)),
        Err(failure) => Ok(Err(failure)),
    }
}

/// A file to read from: the one at a path, or standard input copied to a temporary file.
#[derive(Debug)]
pub struct Input {
    path: PathBuf,
    /// What errors and messages call it.
    pub shown: String,
    _copy: Option<tempfile::NamedTempFile>,
}

impl Input {
    /// Opens `path`; `-` is standard input, which is read to its end here.
    pub async fn open(path: &Path) -> Result<Self> {
        if path != Path::new("-") {
            if let Err(error) = std::fs::metadata(path) {
                let message = format!("{}: {error}", path.display());
                return Err(match error.kind() {
                    io::ErrorKind::NotFound => Error::new(Exit::NotFound, message),
                    _ => Error::new(Exit::Failed, message),
                });
            }
            return Ok(Self {
                path: path.to_owned(),
                shown: path.display().to_string(),
                _copy: None,
            });
        }
        let copy = tempfile::NamedTempFile::new()
            .map_err(|error| Error::new(Exit::Failed, format!("no temporary file: {error}")))?;
        let mut file = copy.reopen()?;
        let copied = spawn_blocking(move || io::copy(&mut io::stdin().lock(), &mut file)).await;
        match copied {
            Ok(Ok(0)) => return Err(Error::usage("standard input is empty")),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => {
                let message = format!("cannot copy standard input to a temporary file: {error}");
                let hint = "set TMPDIR to a directory with more room";
                return Err(Error::new(Exit::Failed, message).with_hint(hint));
            }
            Err(error) => return Err(Error::new(Exit::Failed, error.to_string())),
        }
        Ok(Self {
            path: copy.path().to_owned(),
            shown: "standard input".to_owned(),
            _copy: Some(copy),
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
