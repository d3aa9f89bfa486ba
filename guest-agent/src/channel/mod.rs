//! The agent's side of the channel to the host.
//!
//! [`listen`] waits for hosts on a virtio-serial port or a socket, [`server`] speaks the protocol
//! of `vdkr_core::channel` with one of them, [`stream`] is what a request sees of it.

pub mod listen;
pub mod port;
pub mod server;
pub mod stream;

pub use listen::{Address, listen};
pub use server::{LocalFuture, Service, serve};
pub use stream::{Control, Stream};
