//! What a transfer tells the one who watches it.

use std::sync::Arc;

use vdkr_core::digest::Digest;

/// Receives events. Called from the tasks that move the data, so it must return at once.
pub trait ProgressSink: Send + Sync {
    /// Takes one event.
    fn event(&self, event: &ProgressEvent);
}

/// A shared sink.
pub type Progress = Arc<dyn ProgressSink>;

/// A sink that ignores everything.
pub fn silent() -> Progress {
    struct Silent;
    impl ProgressSink for Silent {
        fn event(&self, _: &ProgressEvent) {}
    }
    Arc::new(Silent)
}

impl<F: Fn(&ProgressEvent) + Send + Sync> ProgressSink for F {
    fn event(&self, event: &ProgressEvent) {
        self(event);
    }
}

/// One step of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// The blobs of an image are known: this many, of this many bytes together. Comes once for each
    /// image whose content is not already there.
    Planned {
        /// Number of different blobs.
        blobs: usize,
        /// Sum of their sizes.
        bytes: u64,
    },
    /// Work on this content begins.
    Started {
        /// Its digest.
        digest: Digest,
        /// Its size, bytes.
        size: u64,
        /// Blob or manifest.
        what: Item,
    },
    /// This many bytes from its start have been handed on. Falls back when a broken connection
    /// makes part of it go again.
    Advanced {
        /// Its digest.
        digest: Digest,
        /// Position, bytes from the start.
        done: u64,
    },
    /// A request failed and is repeated.
    Retrying {
        /// What is affected, when that is one blob.
        digest: Digest,
        /// The failure, as text.
        reason: String,
    },
    /// This content is in place.
    Finished {
        /// Its digest.
        digest: Digest,
        /// How it got there.
        outcome: Outcome,
    },
}

/// What moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Item {
    /// A layer or a configuration.
    Blob,
    /// A manifest or an index.
    Manifest,
}

/// How content came to be where it was wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Sent in full.
    Uploaded,
    /// Was there.
    Present,
    /// Taken over from another repository of the same registry.
    Mounted,
    /// Fetched in full.
    Downloaded,
    /// Left out: it may not be distributed.
    Skipped,
}
