//! The last output of a container whose process has ended.

use std::time::Duration;

use tokio::{task::JoinHandle, time::sleep};
use vdkr_core::container::restart::RestartPolicy;

use super::Entry;

/// How long hosts may take for it when the container is to be gone.
const WHEN_HALTED: Duration = Duration::from_secs(2);
/// How long they may take for it when the container is to start again.
const BEFORE_RESTART: Duration = Duration::from_secs(10);

impl Entry {
    /// Waits until all output has been handed on. A host may take the time it likes for it, unless
    /// somebody wants the container stopped or it starts again: then the log alone gets the rest.
    pub(super) async fn last_output(&self, outputs: Vec<JoinHandle<()>>) {
        let drained = async {
            for output in outputs {
                let _ = output.await;
            }
        };
        tokio::pin!(drained);
        let hurried = async {
            tokio::select! {
                () = self.halted() => sleep(WHEN_HALTED).await,
                () = self.restarts() => {}
            }
        };
        tokio::select! {
            () = &mut drained => return,
            () = hurried => {}
        }
        self.hub.dismiss();
        drained.await;
    }

    async fn halted(&self) {
        let halted = self.halted.notified();
        if !self.halt.get() {
            halted.await;
        }
    }

    async fn restarts(&self) {
        let policy = self.record.borrow().request.life.restart;
        match policy {
            RestartPolicy::No => std::future::pending().await,
            _ => sleep(BEFORE_RESTART).await,
        }
    }
}
