//! Connections: accepting them, bounding them, and letting them end.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::{Read, ReadBufCursor, Write};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, Sleep, interval, sleep, timeout};

use crate::access::Peer;
use crate::config::Limits;
use crate::registry::Registry;

/// Open files that connections leave for everything else: listeners, locks, the files of maintenance.
const RESERVED: u64 = 64;
/// How often the files of certificate and users are looked at.
const REFRESH: Duration = Duration::from_secs(1);
/// How often expired upload sessions are looked for.
const SWEEP: Duration = Duration::from_hours(1);

/// Serves a listener until `shutdown` completes, then lets the requests under way end within the
/// deadline of the configuration. Upload sessions stay on the disk.
pub async fn serve(
    listener: TcpListener,
    registry: Registry,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let limits = registry.config().limits;
    let room = registry.room();
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    let sweeping = tokio::spawn(sweep(registry.clone()));
    let refreshing = tokio::spawn(refresh(registry.clone()));
    let (closing, closed) = watch::channel(false);

    // Accepted, and waiting for a place: a listener that waits for clients must not hold one.
    let mut next = None;
    loop {
        if next.is_none() {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, address)) => next = Some((stream, Peer::at(address.ip()))),
                Err(error) => {
                    // Out of file descriptors, mostly; others pass as quickly as they came.
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            }
        }
        let place = tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => continue,
            place = Arc::clone(room).acquire_owned() => place,
        };
        let Some((stream, peer)) = next.take() else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        let watcher = graceful.watcher();
        let registry = registry.clone();
        let mut closed = closed.clone();
        connections.spawn(async move {
            let _place = place;
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
                    .watch(connection(&registry, TokioIo::new(stream), peer))
                    .await
            } else {
                watcher
                    .watch(connection(&registry, TokioIo::new(stream), peer))
                    .await
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
        });
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

/// Serves one connection to its end: for streams that this crate does not open itself, as those with
/// TLS.
pub async fn serve_connection<S>(registry: &Registry, stream: S) -> Result<(), hyper::Error>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    connection(registry, TokioIo::new(stream), Peer::default()).await
}

fn connection<S>(
    registry: &Registry,
    stream: S,
    peer: Peer,
) -> impl GracefulConnection<Error = hyper::Error, Output = Result<(), hyper::Error>> + use<S>
where
    S: Read + Write + Unpin + Send + 'static,
{
    let Limits {
        header_timeout,
        head_bytes,
        idle_timeout,
        ..
    } = registry.config().limits;
    let registry = registry.clone();
    let service = service_fn(move |mut request| {
        let registry = registry.clone();
        request.extensions_mut().insert(peer);
        async move { Ok::<_, std::convert::Infallible>(registry.handle(request).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_buf_size(head_bytes.max(8192))
        .serve_connection(
            Impatient {
                stream,
                idle: idle_timeout,
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

/// A stream that fails when its peer takes nothing for a while. (Reading has its own limits: of the
/// head in hyper, of the body where it is received.)
struct Impatient<S> {
    stream: S,
    idle: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn guard<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        let idle = self.idle;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + idle)));
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
        self.guard(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.guard(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.guard(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.guard(context, shut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
