//! What the monitor needs of an emulator.

use std::time::Duration;

use vdkr_core::channel::message::{Done, Failure, FailureCode, Reply, Request};

use crate::vm::{disks::Health, forward::Commands, process::Qemu, qmp::QmpError};

/// What the monitor needs of an emulator.
pub(super) trait Emulator {
    async fn ended(&mut self);
    async fn finish(&mut self, patience: Duration);
    /// Attaches or detaches a disk.
    async fn disks(&mut self, request: &Request) -> Done;
    /// Serial numbers of the disks that are attached.
    fn attached(&mut self) -> Vec<String>;
    /// How the machine is.
    async fn health(&mut self) -> Health;
    async fn human(&mut self, line: &str) -> Result<String, QmpError>;
}

/// The emulator as the one who opens ports.
pub(super) struct Ports<'a, E>(pub(super) &'a mut E);

impl<E: Emulator> Commands for Ports<'_, E> {
    async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        self.0.human(line).await
    }
}

impl Emulator for Qemu {
    async fn ended(&mut self) {
        // An error means that there is nothing to wait for.
        let _ = Qemu::ended(self).await;
    }

    async fn finish(&mut self, patience: Duration) {
        Qemu::finish(self, patience).await;
    }

    async fn disks(&mut self, request: &Request) -> Done {
        match request {
            Request::AttachDisk(disk) => self.attach(disk).await.map(|()| Reply::Attached),
            Request::DetachDisk { serial } => self.detach(serial).await.map(|()| Reply::Detached),
            _ => {
                return Err(Failure::new(
                    FailureCode::Unsupported,
                    "no request about disks",
                ));
            }
        }
        .map_err(Failure::from)
    }

    fn attached(&mut self) -> Vec<String> {
        Qemu::attached(self)
    }

    async fn health(&mut self) -> Health {
        Qemu::health(self).await
    }

    async fn human(&mut self, line: &str) -> Result<String, QmpError> {
        self.control().human(line).await
    }
}
