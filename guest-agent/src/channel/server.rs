//! The protocol with one host, over any pair of byte streams.

use std::{
    cell::RefCell, collections::HashMap, future::Future, io, pin::Pin, rc::Rc, time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::timeout,
};
use vdkr_core::channel::{
    Assembler, Decoder, Frame, FrameError, Kind, MAX_STREAMS, SPARE_STREAMS, SYNC_LEN, SyncScanner,
    encode,
    message::{
        Done, Failure, FailureCode, GuestHello, HostHello, Message, MessageError, Request,
        negotiate,
    },
};

use super::stream::{Outbox, Outgoing, SharedStream, Stream, Violation};

/// Frames that wait for the host; with [`super::stream::OUTPUT_CHUNK`] each about 256 KiB.
const OUTBOX_FRAMES: usize = 8;
/// Input taken in one go.
const READ_CHUNK: usize = 64 * 1024;
/// Small frames are joined into writes of at most this many bytes.
const WRITE_CHUNK: usize = 32 * 1024;

/// A host that is alive does not pause this long within a frame, right behind a marker.
const QUIET: Duration = Duration::from_millis(200);

/// A future that stays on its thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// What the agent does for a host.
pub trait Service {
    /// A host has come: its clock and entropy are taken here. Gives the agent's greeting.
    fn greet(self: Rc<Self>, hello: HostHello) -> LocalFuture<GuestHello>;

    /// Carries out a request. Must end soon after [`Stream::cancelled`] fires.
    fn handle(self: Rc<Self>, request: Request, stream: SharedStream) -> LocalFuture<Done>;

    /// An answer was written to the host.
    fn answered(&self, done: &Done);
}

/// How a connection ended that its pipe may outlive.
enum End {
    /// No more bytes.
    Closed,
    /// Frames no longer make sense: a new host may be there already, whose marker is in `rest` or
    /// comes later.
    Lost { reason: String, rest: Vec<u8> },
}

/// Serves hosts, one after the other, until the pipe ends. The requests of a host that is gone are
/// cancelled.
///
/// Must run in a [`tokio::task::LocalSet`].
pub async fn serve(
    pipe: impl AsyncRead + AsyncWrite,
    service: Rc<impl Service + 'static>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(pipe);
    tokio::pin!(reader, writer);
    let mut input = Vec::new();
    loop {
        let Some((marker, rest)) = find_marker(&mut reader, input).await? else {
            return Ok(());
        };
        let (outbox, frames) = mpsc::channel(OUTBOX_FRAMES);
        // There is room: nothing else was sent yet.
        let _ = outbox.try_send(Outgoing::Frames(marker));
        let connection = Connection {
            service: service.clone(),
            outbox,
            streams: Rc::default(),
        };
        let end = tokio::select! {
            end = connection.read_frames(&mut reader, &rest) => end,
            written = write_frames(&mut writer, frames) => written.map(|()| End::Closed),
        };
        connection.cancel_all();
        match end? {
            End::Closed => return Ok(()),
            End::Lost { reason, rest } => {
                // A new host in the place of the old one is nothing to talk about.
                if SyncScanner::any().push(&rest).is_none() {
                    eprintln!("vdkr-agent: connection given up: {reason}");
                }
                input = rest;
            }
        }
    }
}

/// The marker of a new host at the end of a frame that the old one never finished.
///
/// When a host dies and the next one comes at once, the port never reads as ended. The new marker
/// then disappears in the old frame, and its sender waits for an answer: nothing follows it.
fn cut_off(decoder: &Decoder, tail: &[u8]) -> Option<Vec<u8>> {
    (is_marker(tail) && !decoder.clone().take_buffered().is_empty()).then(|| tail.to_vec())
}

fn is_marker(bytes: &[u8]) -> bool {
    SyncScanner::any()
        .push(bytes)
        .is_some_and(|(_, rest)| rest.is_empty())
}

/// Reads until a marker comes; gives it and what follows.
async fn find_marker(
    reader: &mut (impl AsyncRead + Unpin),
    mut input: Vec<u8>,
) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
    let mut scanner = SyncScanner::any();
    loop {
        if let Some((marker, rest)) = scanner.push(&input) {
            return Ok(Some((marker.to_bytes().to_vec(), rest.to_vec())));
        }
        input.resize(READ_CHUNK, 0);
        let length = reader.read(&mut input).await?;
        if length == 0 {
            return Ok(None);
        }
        input.truncate(length);
    }
}

/// Writes what comes, small frames several in one go.
async fn write_frames(
    writer: &mut (impl AsyncWrite + Unpin),
    mut outgoing: mpsc::Receiver<Outgoing>,
) -> io::Result<()> {
    let mut joined = Vec::with_capacity(WRITE_CHUNK);
    while let Some(first) = outgoing.recv().await {
        let mut next = Some(first);
        while let Some(item) = next {
            match item {
                Outgoing::Frames(frames) => {
                    if joined.len() + frames.len() > WRITE_CHUNK {
                        writer.write_all(&joined).await?;
                        joined.clear();
                    }
                    if frames.len() >= WRITE_CHUNK {
                        writer.write_all(&frames).await?;
                    } else {
                        joined.extend_from_slice(&frames);
                    }
                }
                Outgoing::Flush(done) => {
                    writer.write_all(&joined).await?;
                    joined.clear();
                    writer.flush().await?;
                    let _ = done.send(());
                }
            }
            next = outgoing.try_recv().ok();
        }
        writer.write_all(&joined).await?;
        joined.clear();
        writer.flush().await?;
    }
    Ok(())
}

struct Connection<S> {
    service: Rc<S>,
    outbox: Outbox,
    streams: Rc<RefCell<HashMap<u32, SharedStream>>>,
}

impl<S: Service + 'static> Connection<S> {
    async fn read_frames(
        &self,
        reader: &mut (impl AsyncRead + Unpin),
        first: &[u8],
    ) -> io::Result<End> {
        let mut decoder = Decoder::new();
        let mut assembler = Assembler::new();
        let mut greeted = false;
        let mut buffer = vec![0; READ_CHUNK];
        let mut tail = Vec::with_capacity(2 * SYNC_LEN);
        decoder.push(first);
        loop {
            loop {
                let frame = match decoder.next() {
                    Ok(Some(frame)) => frame,
                    Ok(None) => break,
                    Err(error) => {
                        // The one error that a new host's marker makes. Its beginning may have
                        // filled up a frame of the old host.
                        let mut rest = decoder.take_buffered();
                        if is_marker(&tail) {
                            rest = tail;
                        }
                        return Ok(End::Lost {
                            reason: error.to_string(),
                            rest,
                        });
                    }
                };
                let taken = self.take(frame, &mut assembler, &mut greeted);
                if let Err(reason) = taken.await {
                    return Ok(End::Lost {
                        reason,
                        rest: decoder.take_buffered(),
                    });
                }
            }
            let read = reader.read(&mut buffer);
            let length = match cut_off(&decoder, &tail) {
                None => read.await?,
                Some(rest) => {
                    let Ok(length) = timeout(QUIET, read).await else {
                        let reason = "a frame was cut off by a new host".to_owned();
                        return Ok(End::Lost { reason, rest });
                    };
                    length?
                }
            };
            if length == 0 {
                return Ok(End::Closed);
            }
            let input = &buffer[..length];
            decoder.push(input);
            tail.extend_from_slice(&input[length.saturating_sub(SYNC_LEN)..]);
            tail.drain(..tail.len().saturating_sub(SYNC_LEN));
        }
    }

    /// Takes one frame; the error says why the connection cannot go on.
    async fn take(
        &self,
        frame: Frame,
        assembler: &mut Assembler,
        greeted: &mut bool,
    ) -> Result<(), String> {
        let text = |error: FrameError| error.to_string();
        let Some(frame) = assembler.push(frame).map_err(text)? else {
            return Ok(());
        };
        match frame.kind {
            Kind::Hello => {
                let hello = HostHello::decode(&frame.payload).map_err(|error| error.to_string())?;
                let (oldest, newest) = (hello.min_version, hello.version);
                let answer = self.service.clone().greet(hello).await;
                let mut bytes = Vec::new();
                answer
                    .encode(&mut bytes, 0)
                    .map_err(|error| error.to_string())?;
                self.outbox
                    .send(Outgoing::Frames(bytes))
                    .await
                    .map_err(|error| error.to_string())?;
                // The host has heard the agent's versions and can say what is wrong.
                negotiate(oldest, newest).map_err(|error| error.to_string())?;
                *greeted = true;
            }
            _ if !*greeted => return Err(format!("{:?} came before the greeting", frame.kind)),
            Kind::Open => {
                assembler.forget(frame.stream);
                self.open(&frame)?;
            }
            Kind::Ping => {
                let mut bytes = Vec::new();
                encode(&mut bytes, Kind::Pong, frame.stream, &[]).map_err(text)?;
                // A host that does not read its answers gets fewer of them.
                let _ = self.outbox.try_send(Outgoing::Frames(bytes));
            }
            _ => {
                // What comes for a stream that has just ended is of no interest.
                let stream = self.streams.borrow().get(&frame.stream).cloned();
                if let Some(stream) = stream {
                    stream
                        .take(&frame)
                        .map_err(|error: Violation| error.to_string())?;
                }
            }
        }
        Ok(())
    }

    fn open(&self, frame: &Frame) -> Result<(), String> {
        let id = frame.stream;
        if id == 0 || self.streams.borrow().contains_key(&id) {
            return Err(format!(
                "stream {id} was opened twice, or is the connection's own"
            ));
        }
        let stream = Rc::new(Stream::new(id, self.outbox.clone()));
        let request = Request::decode(&frame.payload);
        let refused = match &request {
            Err(error) => Some(unreadable(error)),
            Ok(request) if self.streams.borrow().len() >= most(request) => Some(
                Failure::new(FailureCode::Failed, "too many requests at a time").with_hint(
                    format!("at most {MAX_STREAMS} may be open on one connection"),
                ),
            ),
            Ok(_) => None,
        };
        let streams = self.streams.clone();
        let service = self.service.clone();
        if refused.is_none() {
            streams.borrow_mut().insert(id, stream.clone());
        }
        tokio::task::spawn_local(async move {
            let done = match (refused, request) {
                (None, Ok(request)) => service.clone().handle(request, stream.clone()).await,
                (Some(failure), _) => Err(failure),
                (None, Err(error)) => Err(unreadable(&error)),
            };
            stream.finish(&done).await;
            service.answered(&done);
            let mut streams = streams.borrow_mut();
            if streams
                .get(&id)
                .is_some_and(|known| Rc::ptr_eq(known, &stream))
            {
                streams.remove(&id);
            }
        });
        Ok(())
    }

    fn cancel_all(&self) {
        for (_, stream) in self.streams.borrow_mut().drain() {
            stream.cancelled().cancel();
        }
    }
}

/// How many requests may be open for one more of this kind; one host may speak for many commands.
fn most(request: &Request) -> usize {
    match request {
        // The machine can always be stopped.
        Request::Shutdown => usize::MAX,
        request if request.makes_room() => MAX_STREAMS + SPARE_STREAMS,
        _ => MAX_STREAMS,
    }
}

fn unreadable(error: &MessageError) -> Failure {
    Failure::new(FailureCode::Usage, format!("unreadable request: {error}"))
        .with_hint("use a host program and an agent of the same release")
}

#[cfg(test)]
mod tests;
