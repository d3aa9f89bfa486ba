//! Streams that a request about a container brings.

use std::io::{self, Read};

use tokio::{io::AsyncWriteExt as _, sync::mpsc};
use vdkr_core::channel::message::{ContainerReply, Done, Reply, Request};

use crate::{
    vdkr::{
        command::wrong_reply,
        error::Result,
        session::{Session, interruptible},
    },
    vm::channel::{ChannelError, Incoming},
};

/// Pieces of a stream that wait between the machine and a file.
const AHEAD: usize = 16;

/// Passes a stream on as it comes.
pub async fn to_stdout(mut pieces: Pieces) -> Result<()> {
    let mut stdout = tokio::io::stdout();
    while let Some(piece) = pieces.queue.recv().await {
        stdout.write_all(&piece).await?;
    }
    Ok(stdout.flush().await?)
}

/// A stream of the machine, piece by piece.
pub struct Pieces {
    /// What has come.
    pub queue: mpsc::Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let length = Read::read(&mut self.piece, buffer)?;
            if length > 0 || buffer.is_empty() {
                return Ok(length);
            }
            match self.queue.blocking_recv() {
                Some(piece) => self.piece = io::Cursor::new(piece),
                None => return Ok(0),
            }
        }
    }
}

/// Asks for a stream and hands it to `taker`; how many bytes there were.
pub async fn receive<F: Future<Output = Result<()>>>(
    session: &mut Session,
    request: &Request,
    taker: impl FnOnce(Pieces) -> F,
) -> Result<u64> {
    let mut call = match session.connection.call(request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let sender = call.sender();
    let (give, queue) = mpsc::channel(AHEAD);
    let pieces = Pieces {
        queue,
        piece: io::Cursor::default(),
    };
    let mut count = 0;
    let give = async {
        let mut give = Some(give);
        loop {
            match call.next().await {
                Ok(Incoming::Data(pipe, bytes)) => {
                    let length = bytes.len();
                    count += length as u64;
                    // A taker that has failed says so itself.
                    if let Some(open) = &give
                        && open.send(bytes).await.is_err()
                    {
                        give = None;
                    }
                    sender.consumed(pipe, length).await?;
                }
                Ok(Incoming::Event(_)) => {}
                Ok(Incoming::Done(done)) => return Ok(done),
                Err(error) => return Err(error),
            }
        }
    };
    let both = async { Ok(tokio::join!(give, taker(pieces))) };
    let (done, taken): (Result<Done, ChannelError>, Result<()>) = interruptible(both).await?;
    match session.answer(done).await? {
        Reply::Container(ContainerReply::Done) => taken.map(|()| count),
        other => Err(wrong_reply(&other)),
    }
}
