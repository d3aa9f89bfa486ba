//! JSON messages of the channel.
//!
//! Fields that a later version adds carry a default and fields that are not known are ignored, so
//! that host and agent of different versions understand each other; a request that an agent does
//! not know reads as [`Request::Unknown`] and is answered by [`FailureCode::Unsupported`].

use alloc::vec::Vec;

use serde::{Serialize, Serializer, de::DeserializeOwned};

use super::frame::{FrameError, Kind, MAX_MESSAGE, encode_message};
use crate::credentials::Secret;

mod bounds;
mod container;
mod greeting;
mod layers;
mod ports;
mod reply;
mod request;
mod sandbox;
mod task;
mod volume;

pub use bounds::MAX_VALUES;
pub use container::{
    ContainerReply, ContainerRequest, ContainerRow, ContainerState, ExecRequest, Life, LogsRequest,
    PathFacts, PathKind, RowMount, Sample, Until,
};
pub use greeting::{GuestHello, HostHello, MIN_PROTOCOL_VERSION, PROTOCOL_VERSION, negotiate};
pub use layers::{AdmitRequest, KeptLayer, LayerDisk, NeededLayers};
pub use ports::{Publication, PublishRequest};
pub use reply::{
    Done, Event, ExportedImage, ExportedLayer, Failure, FailureCode, ImageRow, Info, LogLevel,
    MachineState, Phase, Pulled, Removed, Reply, Usage,
};
pub use request::{
    AddImage, DiskRequest, HostCredential, Mirror, PruneRequest, PullPolicy, PullRequest,
    RegistryDefaults, RegistrySettings, Request, RunRequest,
};
pub use sandbox::{HostEntry, Network, Sandbox, Seccomp};
pub use volume::{MountSource, MountSpec, VolumeAction, VolumeRow};

/// A message could not be written or read.
///
/// The text never repeats the message, which may hold credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is too long, or its frames are wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is no JSON, or not of the expected form.
    #[error("{problem} at line {line} column {column} of a channel message")]
    Json {
        /// What is wrong.
        problem: &'static str,
        /// Line, from 1; 0 when the position is not known.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// It has more than [`MAX_VALUES`] values.
    #[error("a channel message has more than {MAX_VALUES} values")]
    TooManyValues,
    /// The versions of both sides have nothing in common.
    #[error(
        "the other side speaks channel versions {min_version} to {version}, this one \
         {MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}; use programs of the same release"
    )]
    Version {
        /// Oldest version of the other side.
        min_version: u32,
        /// Newest version of the other side.
        version: u32,
    },
}

impl From<serde_json::Error> for MessageError {
    fn from(error: serde_json::Error) -> Self {
        let problem = match error.classify() {
            serde_json::error::Category::Syntax => "invalid JSON",
            serde_json::error::Category::Eof => "unexpected end",
            serde_json::error::Category::Data => "missing or mistyped field",
            serde_json::error::Category::Io => "unreadable text",
        };
        Self::Json {
            problem,
            line: error.line(),
            column: error.column(),
        }
    }
}

/// A type that travels as JSON in frames of one kind.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of frame that carries it.
    const KIND: Kind;

    /// Appends this message to `out` as the frames that carry it.
    fn encode(&self, out: &mut Vec<u8>, stream: u32) -> Result<(), MessageError> {
        let json = serde_json::to_vec(self)?;
        if !bounds::has_few_values(&json) {
            return Err(MessageError::TooManyValues);
        }
        Ok(encode_message(out, Self::KIND, stream, &json)?)
    }

    /// Reads the payload of a frame that an [`Assembler`](super::Assembler) let through.
    fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        if payload.len() > MAX_MESSAGE {
            return Err(FrameError::TooLarge {
                length: payload.len(),
            }
            .into());
        }
        if !bounds::has_few_values(payload) {
            return Err(MessageError::TooManyValues);
        }
        Ok(serde_json::from_slice(payload)?)
    }
}

impl Message for Request {
    const KIND: Kind = Kind::Open;
}
impl Message for Event {
    const KIND: Kind = Kind::Event;
}
impl Message for Done {
    const KIND: Kind = Kind::Done;
}

// The channel is the one place where a secret is written out; the type itself cannot be serialised.
fn exposed<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

#[cfg(test)]
#[expect(
    clippy::large_stack_arrays,
    reason = "a list of requests, once in a test"
)]
mod tests;
