//! Work that a signal ends.

use std::{future::Future, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::vdkr::error::{Error, Result};

/// How long work that was told to stop may take to end.
const CLEANING_PATIENCE: Duration = Duration::from_secs(5);

/// Does something unless a signal asks to end it; then the work is dropped where it stands.
pub async fn interruptible<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        result = work => result,
        _ = interrupt.recv() => Err(Error::interrupted(SignalKind::interrupt())),
        _ = terminate.recv() => Err(Error::interrupted(SignalKind::terminate())),
        _ = hangup.recv() => Err(Error::interrupted(SignalKind::hangup())),
    }
}

/// Does something unless a signal asks to end it; then `stop` is cancelled, and the work ends by itself
/// and cleans up.
pub async fn stoppable<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    tokio::pin!(work);
    let result = interruptible(work.as_mut()).await;
    if let Err(error) = &result
        && error.signalled().is_some()
    {
        stop.cancel();
        let _ = timeout(CLEANING_PATIENCE, work).await;
    }
    result
}
