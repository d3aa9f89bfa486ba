//! `pull`, whoever pulls: from a name to an image whose layers are in a store of their owner.
//!
//! The candidates of the name are asked in order, and the next one only when a registry itself says
//! that it does not know the one before: a registry that is down, or refuses, is an error, never a
//! pull from somewhere else. Then the layers that are not there come, a few at a time, each from the
//! source through two digests into the store in one pass. What is finished stays when the pull is
//! stopped, and the next one goes on from there.

mod client;
mod error;
mod find;
mod from;
mod layers;
mod names;
mod plain;

pub use client::{client_config, connect};
pub use error::ImageError;
pub use find::{Image, MAX_DEPTH, Question, Remote};
pub use from::{LayerSource, LocalBlobs};
pub use layers::{Holding, LayerStore, Wanted, fetch, joined};
pub use names::{registry, translated};
pub use plain::PlainLayer;
