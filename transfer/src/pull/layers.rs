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

use super::{
    ImageError, LayerSource,
    from::drain,
    plain::{LayerError, damaged},
};
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
    /// The layer, for whoever may read its blob: the source is asked.
    IfOffered,
}

/// Where layers are kept.
pub trait LayerStore: Clone + Send + 'static {
    /// Whether a layer is there.
    fn has_layer(&self, diff_id: &Digest) -> bool;

    /// What is there of a layer of an image in a registry, or in files here when that is absent. A
    /// store of several owners says more than [`LayerStore::has_layer`]: an image may name any diff_id.
    fn holding(&self, layer: &Wanted, registry: Option<&Host>) -> Holding {
        let _ = registry;
        if self.has_layer(&layer.diff_id) {
            Holding::Present
        } else {
            Holding::Absent
        }
    }

    /// Takes note that a blob of a registry, or of files here, was read to its end and is this layer.
    fn verified(&self, layer: &Wanted, registry: Option<&Host>) -> Result<(), ImageError> {
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
    /// How its source has it.
    pub blob: Descriptor,
    /// What it is, unpacked.
    pub diff_id: Digest,
}

/// Brings every layer that is not there into the store. Those finished before an error stay.
pub async fn fetch<S: LayerStore>(
    store: &S,
    source: &impl LayerSource,
    wanted: Vec<Wanted>,
    events: &dyn Fn(Event),
    stop: &CancellationToken,
) -> Result<(), ImageError> {
    let mut waiting = VecDeque::new();
    for layer in wanted {
        let called = source.called(&layer);
        match store.holding(&layer, source.registry()) {
            Holding::Present => {
                let size = layer.blob.size;
                events(progress(called, size, Phase::Present, size));
            }
            held => {
                events(progress(called, layer.blob.size, Phase::Waiting, 0));
                waiting.push_back((layer, held));
            }
        }
    }
    if waiting.is_empty() {
        return Ok(());
    }
    let mut running = JoinSet::new();
    let result = run(store, source, waiting, events, stop, &mut running).await;
    if result.is_err() {
        stop.cancel();
        let drain = async { while running.join_next().await.is_some() {} };
        let _ = timeout(PATIENCE, drain).await;
        // Best effort, and beside the error that matters.
        let _ = checkpoint(store).await;
    }
    result
}

async fn run<S: LayerStore, F: LayerSource>(
    store: &S,
    source: &F,
    mut waiting: VecDeque<(Wanted, Holding)>,
    events: &dyn Fn(Event),
    stop: &CancellationToken,
    running: &mut JoinSet<Result<(Wanted, Phase), LayerError>>,
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
                called: source.called(&layer).clone(),
                size: layer.blob.size,
                meter: meter.clone(),
                last: 0,
            });
            running.spawn(
                Job {
                    store: store.clone(),
                    source: source.clone(),
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
                let (layer, phase) = joined(ended.map(Ok))?.map_err(|error| error.explain(source))?;
                let called = source.called(&layer);
                shown.retain(|shown| shown.called != *called);
                events(progress(called, layer.blob.size, phase, layer.blob.size));
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

fn progress(called: &Digest, size: u64, phase: Phase, done: u64) -> Event {
    Event::Progress {
        layer: called.to_string(),
        phase,
        done,
        total: Some(size),
    }
}

/// What the host was told of a layer.
struct Shown {
    called: Digest,
    size: u64,
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
        let phase = if done < self.size {
            Phase::Download
        } else {
            Phase::Unpack
        };
        Some(progress(&self.called, self.size, phase, done))
    }
}

/// One layer under way.
struct Job<S, F> {
    store: S,
    source: F,
    layer: Wanted,
    held: Holding,
    meter: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl<S: LayerStore, F: LayerSource> Job<S, F> {
    /// Brings the layer, and says whether it was there or came.
    async fn run(self) -> Result<(Wanted, Phase), LayerError> {
        if self.held == Holding::IfOffered {
            let offered = self.source.offers(&self.layer.blob, &self.stop);
            let offered = tokio::select! {
                () = self.stop.cancelled() => return Err(ImageError::Cancelled.into()),
                offered = offered => offered,
            };
            if offered {
                return Ok((self.layer, Phase::Present));
            }
        }
        let opened = self.source.open(&self.layer.blob);
        let reader = tokio::select! {
            () = self.stop.cancelled() => return Err(ImageError::Cancelled.into()),
            opened = opened => opened.map_err(LayerError::from)?,
        };
        let work = spawn_blocking(move || self.unpack(reader));
        joined(work.await.map(Ok))?
    }

    /// On a thread that may block.
    fn unpack(self, mut reader: VerifyingReader<F::Reader>) -> Result<(Wanted, Phase), LayerError> {
        let cancelled = || self.stop.is_cancelled();
        let metered = Metered {
            reader: &mut reader,
            meter: &self.meter,
        };
        let unpacked = self
            .store
            .take_layer(metered, &self.layer.diff_id, &cancelled)?;
        if let Err(error) = unpacked {
            let mut rest = Metered {
                reader: &mut reader,
                meter: &self.meter,
            };
            let called = self.source.called(&self.layer);
            return Err(damaged(called, error, &mut rest, &cancelled));
        }
        // At its end it is known that the blob is what was asked for.
        drain(&mut reader, &cancelled).map_err(TransferError::from)?;
        if reader.is_verified() {
            self.store.verified(&self.layer, self.source.registry())?;
        }
        Ok((self.layer, Phase::Complete))
    }
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
