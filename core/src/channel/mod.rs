//! The protocol between a host program and the agent inside a target.
//!
//! It runs over any reliable byte pipe (virtio-serial, vsock, a unix socket) and has four layers:
//!
//! 1. [`sync`]: a marker that both ends agree on before anything else, because a serial port may
//!    still hold bytes of an earlier connection;
//! 2. [`frame`]: length-prefixed frames, many streams on one pipe;
//! 3. [`message`]: the JSON messages carried by `Hello`, `Open`, `Event` and `Done` frames;
//! 4. [`window`]: credits, so that one slow reader of output never fills the memory of the other
//!    side or blocks its neighbours.
//!
//! Every length is compared with its cap before memory is reserved for it.

mod assembler;
mod control;
pub mod frame;
pub mod message;
pub mod sync;
pub mod window;

/// Requests of one host that an agent works on at a time.
pub const MAX_STREAMS: usize = 256;
/// On top of these, requests that make room for others ([`message::Request::makes_room`]).
pub const SPARE_STREAMS: usize = 32;

pub use frame::{
    Assembler, Credit, Decoder, Frame, FrameError, HEADER_LEN, Kind, MAX_MESSAGE, MAX_PAYLOAD,
    Pipe, Resize, encode, encode_data, encode_message, signal_from_payload, signal_payload,
};
pub use sync::{SYNC_LEN, SyncMarker, SyncScanner};
pub use window::{INITIAL_CREDIT, ReceiveWindow, SendWindow, WindowError};
