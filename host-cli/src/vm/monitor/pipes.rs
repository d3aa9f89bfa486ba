//! The tasks between the sockets and the monitor.

use std::sync::Arc;

use tokio::{
    io::AsyncWriteExt as _,
    sync::{Semaphore, mpsc},
};
use vdkr_core::channel::HEADER_LEN;

use super::Input;
use crate::vm::{
    pipe::FrameReader,
    router::{ClientFrames, ClientId, ToGuest},
};

/// Bytes that one client may have on the way to the agent.
const CLIENT_SHARE: usize = 1 << 20;

pub(super) async fn read_from_client<R: tokio::io::AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    id: ClientId,
    sender: mpsc::Sender<Input>,
) {
    let share = Arc::new(Semaphore::new(CLIENT_SHARE));
    while let Ok(frame) = reader.next().await {
        let size = u32::try_from(frame.payload.len() + HEADER_LEN).unwrap_or(u32::MAX);
        let Ok(permit) = Arc::clone(&share).acquire_many_owned(size).await else {
            break;
        };
        if sender.send(Input::Client(id, frame, permit)).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Input::ClientGone(id)).await;
}

pub(super) async fn write_to_client<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: ClientFrames,
) {
    while let Some(bytes) = frames.next().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

pub(super) async fn read_from_guest<R: tokio::io::AsyncRead + Unpin>(
    mut reader: FrameReader<R>,
    sender: mpsc::Sender<Input>,
) {
    // The end of the pipe and a broken protocol come to the same: this machine is of no more use.
    while let Ok(frame) = reader.next().await {
        if sender.send(Input::Guest(frame)).await.is_err() {
            return;
        }
    }
    let _ = sender.send(Input::GuestGone).await;
}

pub(super) async fn write_to_guest<W: tokio::io::AsyncWrite + Unpin>(
    mut writer: W,
    mut frames: mpsc::UnboundedReceiver<ToGuest>,
) {
    while let Some(ToGuest { bytes, share }) = frames.recv().await {
        if writer.write_all(&bytes).await.is_err() {
            return;
        }
        drop(share);
    }
}
