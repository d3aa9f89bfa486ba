//! `add-image` and `add-layer`: what the host sends on standard input becomes part of the store.

use std::{
    io::{self, Read},
    rc::Rc,
};

use tokio::{
    sync::mpsc::{Receiver, Sender, channel},
    task::spawn_blocking,
};
use vdkr_core::{
    channel::message::{AddImage, Done, Failure, FailureCode, Reply},
    digest::Digest,
    manifest::{MAX_CONFIG, MAX_MANIFEST},
};

use super::{Agent, cancelled};
use crate::{
    channel::{Stream, stream::SharedStream},
    image,
};

/// Pieces of input that wait to be unpacked; the stream's window bounds their bytes.
const AHEAD: usize = 4;

/// Unpacks a layer.
pub async fn layer(agent: &Agent, diff_id: Digest, stream: &SharedStream) -> Done {
    let store = agent.store()?.clone();
    if store.has_layer(&diff_id) {
        return Ok(Reply::LayerAdded { present: true });
    }
    let (pieces, input) = channel(AHEAD);
    let feeder = tokio::task::spawn_local(feed(Rc::clone(stream), pieces));
    let cancel = stream.cancelled().clone();
    let work = spawn_blocking(move || {
        let input = Input {
            pieces: input,
            piece: Vec::new(),
            at: 0,
            ended: false,
        };
        image::add_layer(&store, input, &diff_id, &|| cancel.is_cancelled())
    });
    let done = work.await;
    feeder.abort();
    match done {
        Ok(Ok(reply)) => Ok(reply),
        _ if stream.cancelled().is_cancelled() => Err(cancelled()),
        Ok(Err(error)) => Err(error.into()),
        Err(error) => Err(Failure::new(FailureCode::Failed, error.to_string())),
    }
}

/// Puts an image together.
pub async fn image(agent: &Agent, request: AddImage, stream: &SharedStream) -> Done {
    let store = agent.store()?.clone();
    let too_long = |what: &str, limit: usize| {
        let message = format!("the {what} is longer than {limit} bytes");
        Failure::new(FailureCode::Usage, message)
    };
    let config_size = usize::try_from(request.config_size).unwrap_or(usize::MAX);
    let manifest_size = usize::try_from(request.manifest_size).unwrap_or(usize::MAX);
    if config_size > MAX_CONFIG {
        return Err(too_long("configuration", MAX_CONFIG));
    }
    if manifest_size > MAX_MANIFEST {
        return Err(too_long("manifest", MAX_MANIFEST));
    }
    let wanted = config_size + manifest_size;
    let mut input = Vec::new();
    let read = read_exactly(stream, wanted, &mut input);
    tokio::select! {
        () = stream.cancelled().cancelled() => return Err(cancelled()),
        () = read => {}
    }
    if input.len() != wanted {
        let message = format!(
            "{wanted} bytes of documents were announced, {} came",
            input.len()
        );
        return Err(Failure::new(FailureCode::Usage, message));
    }
    let added = spawn_blocking(move || {
        let (config, manifest) = input.split_at(config_size);
        let name = request.name.as_deref();
        let kept = &request.kept;
        image::add_image(&store, name, &request.media_type, config, manifest, kept)
    });
    match added.await {
        Ok(reply) => Ok(reply?),
        Err(error) => Err(Failure::new(FailureCode::Failed, error.to_string())),
    }
}

/// Reads to the end of the input, and keeps one byte more than wanted at most.
async fn read_exactly(stream: &Stream, wanted: usize, input: &mut Vec<u8>) {
    while let Some(bytes) = stream.read().await {
        let room = (wanted + 1).saturating_sub(input.len());
        input.extend_from_slice(&bytes[..bytes.len().min(room)]);
        stream.consumed(bytes.len()).await;
    }
}

/// Hands input on, as fast as it is taken. Without its end, a reader sees that the host is gone.
async fn feed(stream: SharedStream, pieces: Sender<Option<Vec<u8>>>) {
    let cancel = stream.cancelled().clone();
    loop {
        let bytes = tokio::select! {
            () = cancel.cancelled() => return,
            bytes = stream.read() => bytes,
        };
        let (length, last) = (bytes.as_ref().map_or(0, Vec::len), bytes.is_none());
        // A reader that has enough is the end as well.
        if pieces.send(bytes).await.is_err() || last {
            return;
        }
        stream.consumed(length).await;
    }
}

/// The input on a thread that may block.
struct Input {
    pieces: Receiver<Option<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => (self.piece, self.at) = (piece, 0),
                Some(None) => self.ended = true,
                None => return Err(io::Error::other("the host is gone")),
            }
        }
        let length = (self.piece.len() - self.at).min(buffer.len());
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
