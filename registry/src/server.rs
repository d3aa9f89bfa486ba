//! Connections: accepting them, bounding them, and letting them end.

use std::future::Future;
use std::io::{self, Write as _};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown, Watcher};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, timeout};

use crate::access::Peer;
use crate::config::Limits;
use crate::pace::Pace;
use crate::registry::Registry;
use places::{Guest, Place};

mod places;

pub(crate) use places::Places;

/// Open files that connections leave for everything else: listeners, locks, the files of maintenance.
const RESERVED: u64 = 64;
/// How often the files of certificate and users are looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// How often expired upload sessions are looked for.
const SWEEP: Duration = Duration::from_hours(1);
/// How often is looked whether a peer with too many connections may have one more.
const LOOK: Duration = Duration::from_millis(20);
/// What a client is told that has too many connections.
const BUSY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 5\r\nconnection: close\r\n\
                      content-length: 0\r\n\r\n";

/// Serves a listener until `shutdown` completes, then lets the requests under way end within the
/// deadline of the configuration. Upload sessions stay on the disk.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let limits = registry.config().limits;
    let places = registry.places();
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let sweeping = tokio::spawn(sweep(registry.clone()));
    let refreshing = tokio::spawn(refresh(registry.clone()));
    let (closing, closed) = watch::channel(false);

    // Accepted, and waiting for a place: a listener that waits for clients must not hold one.
    let mut next: Option<(TcpStream, Guest)> = None;
    loop {
        let Some((stream, guest)) = next.take() else {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => {
                    let guest = places.enter(Peer::at(address.ip()));
                    next = Some((stream, guest));
                }
                Err(error) => {
                    // Out of file descriptors, mostly; others pass as quickly as they came.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                }
            }
            continue;
        };
        let client = Client {
            registry: registry.clone(),
            stream,
            closed: closed.clone(),
            watcher: graceful.watcher(),
        };
        if let Some(turn) = guest.turn() {
            let mut place = pin!(guest.place(turn));
            let place = loop {
                tokio::select! {
                    biased;
                    () = &mut shutdown => break None,
                    Some(_) = connections.join_next() => {}
                    place = &mut place => break place,
                }
            };
            let Some(place) = place else { break };
            connections.spawn(client.serve(place));
        } else if let Some(seat) = guest.seat() {
            connections.spawn(async move {
                let mut closed = client.closed.clone();
                let place = tokio::select! {
                    biased;
                    // Nothing was asked yet that the end of the server would have to wait for.
                    _ = closed.wait_for(|closed| *closed) => None,
                    place = async {
                        let turn = guest.wait().await?;
                        guest.place(turn).await
                    } => place,
                };
                drop(seat);
                if let Some(place) = place {
                    client.serve(place).await;
                }
            });
        } else if !guest.has_credit() {
            client.refuse();
        } else {
            let since = Instant::now();
            tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => {}
                () = sleep(LOOK) => {}
            }
            guest.spend(since.elapsed());
            next = Some((client.stream, guest));
        }
    }

    drop(listener);
    sweeping.abort();
    refreshing.abort();
    closing.send_replace(true);
    registry.stop_maintenance();
    if timeout(limits.shutdown_deadline, graceful.shutdown())
        .await
        .is_err()
    {
        tracing::warn!("requests were still under way at the deadline of the shutdown");
    }
    connections.shutdown().await;
    Ok(())
}

/// A connection that was accepted.
struct Client {
    registry: Registry,
    stream: TcpStream,
    closed: watch::Receiver<bool>,
    watcher: Watcher,
}

impl Client {
    async fn serve(self, place: Place) {
        let Self {
            registry,
            stream,
            mut closed,
            watcher,
        } = self;
        let limits = registry.config().limits;
        let peer = place.peer();
        // Those who come late make room sooner.
        let patience = match place.is_of_the_last() {
            true => limits.crowded_timeout.min(limits.header_timeout),
            false => limits.header_timeout,
        };
        let _ = stream.set_nodelay(true);
        let ended = if let Some(tls) = registry.tls() {
            let accepted = tokio::select! {
                biased;
                // Nothing was asked yet that the end of the server would have to wait for.
                _ = closed.wait_for(|closed| *closed) => return,
                accepted = tls.accept(stream, limits.handshake_timeout) => accepted,
            };
            let stream = match accepted {
                Ok(Some(stream)) => stream,
                Ok(None) => return,
                Err(error) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    return;
                }
            };
            watcher
                .watch(connection(&registry, TokioIo::new(stream), peer, patience))
                .await
        } else {
            watcher
                .watch(connection(&registry, TokioIo::new(stream), peer, patience))
                .await
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection ended early");
        }
    }

    /// Closes a connection whose peer has too many.
    fn refuse(self) {
        tracing::debug!("a client has too many connections");
        if self.registry.tls().is_none()
            && let Ok(mut stream) = self.stream.into_std()
        {
            // Into an empty buffer: it does not block, and more cannot be done.
            let _ = stream.write(BUSY);
        }
    }
}

/// Serves one connection to its end: for streams that this crate does not open itself, as those with
/// TLS.
pub async fn serve_connection<S>(registry: &Registry, stream: S) -> Result<(), hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let patience = registry.config().limits.header_timeout;
    connection(registry, TokioIo::new(stream), Peer::default(), patience).await
}

fn connection<S>(
    registry: &Registry,
    stream: S,
    peer: Peer,
    header_timeout: Duration,
) -> impl GracefulConnection<Error = hyper::Error, Output = Result<(), hyper::Error>> + use<S>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let limits: Limits = registry.config().limits;
    let registry = registry.clone();
    let service = service_fn(move |mut request| {
        let registry = registry.clone();
        request.extensions_mut().insert(peer);
        async move { Ok::<_, std::convert::Infallible>(registry.handle(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(limits.head_bytes.max(8192))
        .serve_connection(
            Impatient {
                stream,
                idle: limits.idle_timeout,
                pace: Pace::new(&limits),
                waiting: None,
            },
            service,
        )
}

/// How many connections there may be, of so many wanted, in a process that may have so many files open:
/// each is one, and has another open while it is answered.
pub(crate) fn connections(wanted: usize, files: Option<u64>) -> usize {
    let fitting = files.map_or(usize::MAX, |files| {
        usize::try_from(files.saturating_sub(RESERVED) / 2).unwrap_or(usize::MAX)
    });
    wanted.min(fitting).clamp(1, Semaphore::MAX_PERMITS)
}

/// Lets this process have as many files open as the system allows it, and tells how many that are;
/// `None` stands for any number.
pub(crate) fn raise_open_files() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    // Where it cannot be raised, the bound on connections follows it.
    let _ = setrlimit(Resource::Nofile, raised);
    getrlimit(Resource::Nofile).current
}

/// How many files more may be open than so many connections need.
pub(crate) fn spare(connections: usize, files: Option<u64>) -> usize {
    files.map_or(usize::MAX, |files| {
        let spare = files.saturating_sub(RESERVED);
        let spare = usize::try_from(spare).unwrap_or(usize::MAX);
        spare.saturating_sub(connections.saturating_mul(2))
    })
}

async fn refresh(registry: Registry) {
    if registry.tls().is_none() && registry.users().is_none() {
        return;
    }
    let mut seconds = interval(REFRESH);
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        seconds.tick().await;
        let registry = registry.clone();
        // A failure would be told when it panicked; the next look comes in any case.
        let _ = tokio::task::spawn_blocking(move || registry.refresh_when(false)).await;
    }
}

async fn sweep(registry: Registry) {
    let mut hours = interval(SWEEP);
    loop {
        hours.tick().await;
        let registry = registry.clone();
        let swept = tokio::task::spawn_blocking(move || registry.sweep_uploads()).await;
        match swept {
            Ok(Ok(swept)) if swept.removed > 0 => {
                tracing::info!(
                    removed = swept.removed,
                    kept = swept.kept,
                    "expired uploads removed"
                );
            }
            Ok(Err(error)) => tracing::warn!(%error, "expired uploads could not be looked for"),
            _ => {}
        }
    }
}

/// A stream that fails when its peer takes nothing for a while, or too little. (Reading has its own
/// limits: of the head in hyper, of the body where it is received.)
struct Impatient<S> {
    stream: S,
    idle: Duration,
    pace: Pace,
    /// Since when the peer takes nothing, and how long it may go on with that.
    waiting: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl<S> Impatient<S> {
    fn guard<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        bytes: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(outcome) = &written {
            let waited = self.waiting.take().map(|(since, _)| since.elapsed());
            let bytes = outcome.as_ref().map_or(0, bytes);
            if !self.pace.keeps(waited.unwrap_or_default(), bytes) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            return written;
        }
        let idle = self.idle;
        let (_, waiting) = self.waiting.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + idle)))
        });
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: Read + Unpin> Read for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: Write + Unpin> Write for Impatient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.guard(context, written, |bytes| *bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.guard(context, written, |bytes| *bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.guard(context, flushed, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.guard(context, shut, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Writes to a peer that takes 16 bytes after each pause.
    async fn written(pause: Duration, writes: usize) -> io::Result<()> {
        let limits = Limits {
            idle_timeout: Duration::from_secs(10),
            body_rate: 100,
            ..Limits::default()
        };
        let (ours, mut theirs) = tokio::io::duplex(16);
        let mut stream = Impatient {
            stream: TokioIo::new(ours),
            idle: limits.idle_timeout,
            pace: Pace::new(&limits),
            waiting: None,
        };
        tokio::spawn(async move {
            let mut taken = [0; 16];
            while theirs.read(&mut taken).await.is_ok_and(|n| n > 0) {
                sleep(pause).await;
            }
        });
        for _ in 0..writes {
            std::future::poll_fn(|context| Pin::new(&mut stream).poll_write(context, &[0; 16]))
                .await?;
        }
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_is_given_up() {
        let error = written(Duration::from_secs(1), 100).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        written(Duration::from_millis(100), 1000).await.unwrap();
    }

    #[test]
    fn connections_leave_files_for_their_answers() {
        for (wanted, files, expected) in [
            (1024, None, 1024),
            (1024, Some(1 << 20), 1024),
            (1024, Some(1024), 480),
            (100, Some(1024), 100),
            (1024, Some(66), 1),
            (1024, Some(10), 1),
            (0, None, 1),
            (usize::MAX, None, Semaphore::MAX_PERMITS),
        ] {
            assert_eq!(connections(wanted, files), expected, "{wanted} {files:?}");
        }
        for (places, files, expected) in [
            (1024, None, usize::MAX),
            (480, Some(1024), 0),
            (100, Some(1024), 760),
            (1, Some(10), 0),
        ] {
            assert_eq!(spare(places, files), expected, "{places} {files:?}");
        }
    }
}
