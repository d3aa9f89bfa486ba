//! `export` and `read-blob`: what an image is made of, and each part of it as it came.

use tokio::{sync::mpsc::channel, task::spawn_blocking};
use vdkr_core::{
    channel::{
        HEADER_LEN, Pipe,
        message::{Done, Failure, FailureCode, Reply},
    },
    digest::Digest,
};

use super::{Agent, cancelled};
use crate::{
    channel::{Stream, stream::OUTPUT_CHUNK},
    store::{ImageError, Part},
};

/// Pieces that wait to be sent.
const AHEAD: usize = 4;

/// Names the parts of images: of all that are asked for, or an error.
pub async fn export(agent: &Agent, names: Vec<String>) -> Done {
    let store = agent.store()?.clone();
    let images = spawn_blocking(move || {
        let images = names.iter().map(|name| store.export(name));
        images.collect::<Result<Vec<_>, _>>()
    });
    match images.await {
        Ok(images) => Ok(Reply::Exported { images: images? }),
        Err(error) => Err(Failure::new(FailureCode::Failed, error.to_string())),
    }
}

/// Sends one part, as fast as the host takes it.
pub async fn read_blob(agent: &Agent, digest: &Digest, stream: &Stream) -> Done {
    let (pieces, mut ready) = channel::<Vec<u8>>(AHEAD);
    let part = agent.store()?.part(digest)?;
    let work = spawn_blocking(move || {
        let mut waiting = Vec::with_capacity(OUTPUT_CHUNK);
        let mut send = |mut bytes: &[u8]| {
            while !bytes.is_empty() {
                let room = (OUTPUT_CHUNK - waiting.len()).min(bytes.len());
                waiting.extend_from_slice(&bytes[..room]);
                bytes = &bytes[room..];
                if waiting.len() == OUTPUT_CHUNK {
                    let full = std::mem::replace(&mut waiting, Vec::with_capacity(OUTPUT_CHUNK));
                    if pieces.blocking_send(full).is_err() {
                        return false;
                    }
                }
            }
            true
        };
        match part {
            Part::Document(bytes) if send(&bytes) => {}
            Part::Document(_) => return Err(ImageError::Cancelled),
            Part::Layer(layer) => layer.restore(&mut send)?,
        }
        match waiting.is_empty() || pieces.blocking_send(waiting).is_ok() {
            true => Ok(()),
            false => Err(ImageError::Cancelled),
        }
    });
    let cancel = stream.cancelled();
    let sending = async {
        while let Some(piece) = ready.recv().await {
            send(stream, &piece).await?;
        }
        Ok::<_, Failure>(())
    };
    tokio::select! {
        () = cancel.cancelled() => return Err(cancelled()),
        sent = sending => sent?,
    }
    match work.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(error.into()),
        Err(error) => return Err(Failure::new(FailureCode::Failed, error.to_string())),
    }
    stream.end(Pipe::Stdout).await;
    Ok(Reply::Sent)
}

async fn send(stream: &Stream, mut bytes: &[u8]) -> Result<(), Failure> {
    while !bytes.is_empty() {
        let room = stream.writable(Pipe::Stdout).await.min(bytes.len());
        let (now, later) = bytes.split_at(room);
        let mut frame = Vec::with_capacity(HEADER_LEN + room);
        frame.resize(HEADER_LEN, 0);
        frame.extend_from_slice(now);
        if stream.write(Pipe::Stdout, frame).await.is_err() {
            return Err(cancelled());
        }
        bytes = later;
    }
    Ok(())
}
