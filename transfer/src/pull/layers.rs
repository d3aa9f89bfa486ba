//! The layers of an image, a few at a time: network, digest, decompression, diff_id and files in one
//! pass for each.

use std::{
    collections::VecDeque,
    io::{self, Read},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::message::{Event, Phase},
    digest::Digest,
    manifest::Descriptor,
    reference::Host,
};

use super::{ImageError, Remote};
use crate::client::{Client, Repository};
use crate::error::TransferError;
use crate::layer::{UnpackError, Unpacked};
use crate::verify::VerifyingReader;

/// Layers under way at once. One is unpacked as fast as the processor can; the others have their
/// connections made and buffers filled meanwhile.
const AT_ONCE: usize = 3;
/// Time between two lots of progress events.
const TICK: Duration = Duration::from_millis(100);
/// Finished layers are made durable at least this often.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// How long what is under way may take to end once a pull is stopped.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a store has of a layer that an image names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing that may be taken for it.
    Absent,
    /// The layer itself.
    Present,
    /// The layer, for whoever may read its blob: its registry is asked.
    IfOffered,
}

/// Where layers are kept.
pub trait LayerStore: Clone + Send + 'static {
    /// Whether a layer is there.
    fn has_layer(&self, diff_id: &Digest) -> bool;

    /// What is there of a layer of a registry's image. A store of several owners says more than
    /// [`LayerStore::has_layer`]: an image may name any diff_id.
    fn holding(&self, layer: &Wanted, registry: &Host) -> Holding {
        let _ = registry;
        if self.has_layer(&layer.diff_id) {
            Holding::Present
        } else {
            Holding::Absent
        }
    }

    /// Takes note that a registry's blob was read to its end, and is this layer.
    fn verified(&self, layer: &Wanted, registry: &Host) -> Result<(), ImageError> {
        let _ = (layer, registry);
        Ok(())
    }

    /// Takes the layer that `source` gives, all of it or nothing. The outer error is the store's, the
    /// inner one the layer's.
    fn take_layer(
        &self,
        source: impl Read + Send,
        diff_id: &Digest,
        cancelled: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Unpacked, UnpackError>, ImageError>;

    /// Makes finished layers durable, so that they outlive a crash. Blocks while the disk writes.
    fn checkpoint(&self) -> Result<(), ImageError>;
}

/// A layer to be there in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How the registry has it.
    pub blob: Descriptor,
    /// What it is, unpacked.
    pub diff_id: Digest,
}

/// Brings every layer that is not there into the store. Those finished before an error stay.
pub async fn fetch<S: LayerStore>(
    store: &S,
    remote: &Remote,
    wanted: Vec<Wanted>,
    events: &dyn Fn(Event),
    stop: &CancellationToken,
) -> Result<(), ImageError> {
    let mut waiting = VecDeque::new();
    for layer in wanted {
        match store.holding(&layer, remote.repository.host()) {
            Holding::Present => {
                let size = layer.blob.size;
                events(progress(&layer.blob, Phase::Present, size));
            }
            held => {
                events(progress(&layer.blob, Phase::Waiting, 0));
                waiting.push_back((layer, held));
            }
        }
    }
    if waiting.is_empty() {
        return Ok(());
    }
    let mut running = JoinSet::new();
    let result = run(store, remote, waiting, events, stop, &mut running).await;
    if result.is_err() {
        stop.cancel();
        let drain = async { while running.join_next().await.is_some() {} };
        let _ = timeout(PATIENCE, drain).await;
        // Best effort, and beside the error that matters.
        let _ = checkpoint(store).await;
    }
    result
}

async fn run<S: LayerStore>(
    store: &S,
    remote: &Remote,
    mut waiting: VecDeque<(Wanted, Holding)>,
    events: &dyn Fn(Event),
    stop: &CancellationToken,
    running: &mut JoinSet<Result<(Descriptor, Phase), LayerError>>,
) -> Result<(), ImageError> {
    let mut shown: Vec<Shown> = Vec::new();
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut saved = Instant::now();
    loop {
        while running.len() < AT_ONCE
            && let Some((layer, held)) = waiting.pop_front()
        {
            let meter = Arc::new(AtomicU64::new(0));
            shown.push(Shown {
                blob: layer.blob.clone(),
                meter: meter.clone(),
                last: 0,
            });
            running.spawn(
                Job {
                    store: store.clone(),
                    client: remote.client.clone(),
                    repository: remote.repository.clone(),
                    layer,
                    held,
                    meter,
                    stop: stop.clone(),
                }
                .run(),
            );
        }
        tokio::select! {
            () = stop.cancelled() => return Err(ImageError::Cancelled),
            ended = running.join_next() => {
                let Some(ended) = ended else { return Ok(()) };
                let (blob, phase) = joined(ended.map(Ok))?.map_err(|error| error.explain(remote))?;
                shown.retain(|shown| shown.blob.digest != blob.digest);
                events(progress(&blob, phase, blob.size));
                if saved.elapsed() >= CHECKPOINT && !waiting.is_empty() {
                    checkpoint(store).await?;
                    saved = Instant::now();
                }
            }
            _ = tick.tick() => shown.iter_mut().filter_map(Shown::news).for_each(events),
        }
    }
}

async fn checkpoint<S: LayerStore>(store: &S) -> Result<(), ImageError> {
    let store = store.clone();
    joined(spawn_blocking(move || store.checkpoint()).await)
}

/// The result of a thread or task.
pub fn joined<T>(ended: Result<Result<T, ImageError>, JoinError>) -> Result<T, ImageError> {
    match ended {
        Ok(result) => result,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ImageError::Cancelled),
    }
}

fn progress(blob: &Descriptor, phase: Phase, done: u64) -> Event {
    Event::Progress {
        layer: blob.digest.to_string(),
        phase,
        done,
        total: Some(blob.size),
    }
}

/// What the host was told of a layer.
struct Shown {
    blob: Descriptor,
    meter: Arc<AtomicU64>,
    last: u64,
}

impl Shown {
    fn news(&mut self) -> Option<Event> {
        let done = self.meter.load(Ordering::Relaxed);
        if done == self.last {
            return None;
        }
        self.last = done;
        // What comes after the last byte is files.
        let phase = if done < self.blob.size {
            Phase::Download
        } else {
            Phase::Unpack
        };
        Some(progress(&self.blob, phase, done))
    }
}

/// One layer under way.
struct Job<S> {
    store: S,
    client: Client,
    repository: Repository,
    layer: Wanted,
    held: Holding,
    meter: Arc<AtomicU64>,
    stop: CancellationToken,
}

enum LayerError {
    Transfer(Box<TransferError>),
    Image(ImageError),
}

impl LayerError {
    fn explain(self, remote: &Remote) -> ImageError {
        match self {
            Self::Transfer(error) => remote.failed(*error),
            Self::Image(error) => error,
        }
    }
}

impl From<TransferError> for LayerError {
    fn from(error: TransferError) -> Self {
        Self::Transfer(Box::new(error))
    }
}

impl From<ImageError> for LayerError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl<S: LayerStore> Job<S> {
    /// Brings the layer; its blob, and whether it was there or came.
    async fn run(self) -> Result<(Descriptor, Phase), LayerError> {
        if self.held == Holding::IfOffered {
            let blob = &self.layer.blob.digest;
            let offered = self.client.offers_blob(&self.repository, blob);
            let offered = tokio::select! {
                () = self.stop.cancelled() => return Err(ImageError::Cancelled.into()),
                offered = offered => offered,
            };
            // Whatever else it answers, it answers once more when the blob is asked for.
            if matches!(offered, Ok(true)) {
                return Ok((self.layer.blob, Phase::Present));
            }
        }
        let opened = self.client.get_blob(&self.repository, &self.layer.blob);
        let reader = tokio::select! {
            () = self.stop.cancelled() => return Err(ImageError::Cancelled.into()),
            opened = opened => opened.map_err(LayerError::from)?,
        };
        let work = spawn_blocking(move || self.unpack(reader));
        joined(work.await.map(Ok))?
    }

    /// On a thread that may block.
    fn unpack<R>(self, mut reader: VerifyingReader<R>) -> Result<(Descriptor, Phase), LayerError>
    where
        VerifyingReader<R>: Read + Send,
    {
        let cancelled = || self.stop.is_cancelled();
        let metered = Metered {
            reader: &mut reader,
            meter: &self.meter,
        };
        let unpacked = self
            .store
            .take_layer(metered, &self.layer.diff_id, &cancelled)?;
        let Err(error) = unpacked else {
            // At its end it is known that the blob is what was asked for.
            drain(&mut reader, &cancelled).map_err(TransferError::from)?;
            if reader.is_verified() {
                self.store.verified(&self.layer, self.repository.host())?;
            }
            return Ok((self.layer.blob, Phase::Complete));
        };
        match error {
            UnpackError::Cancelled => Err(ImageError::Cancelled.into()),
            UnpackError::Stream(error) if error.get_ref().is_some_and(is_transfer) => {
                Err(TransferError::from(error).into())
            }
            UnpackError::Stream(_) | UnpackError::Archive(_) | UnpackError::DiffId { .. } => {
                // Damage has a simpler explanation when the rest shows that the blob itself is not
                // what was asked for.
                let mut rest = Metered {
                    reader: &mut reader,
                    meter: &self.meter,
                };
                match drain(&mut rest, &cancelled) {
                    Ok(()) => Err(self.damaged(error)),
                    Err(blob) => match TransferError::from(blob) {
                        blob if blob.is_content() => Err(blob.into()),
                        _ => Err(self.damaged(error)),
                    },
                }
            }
            error => Err(self.damaged(error)),
        }
    }

    fn damaged(self, source: UnpackError) -> LayerError {
        let layer = self.layer.blob.digest;
        let source = Box::new(source);
        ImageError::Layer { layer, source }.into()
    }
}

fn is_transfer(error: &(dyn std::error::Error + Send + Sync + 'static)) -> bool {
    error.is::<TransferError>()
}

/// Reads to the end.
fn drain(reader: &mut impl Read, cancelled: &dyn Fn() -> bool) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    while !cancelled() && reader.read(&mut buffer)? > 0 {}
    Ok(())
}

/// Counts what arrives.
struct Metered<'a, R> {
    reader: &'a mut R,
    meter: &'a AtomicU64,
}

impl<R: Read> Read for Metered<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.meter.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}
