//! When a kept machine is idle: nobody has a request under way, and nobody is connected who may
//! send one. What runs in the machine itself is asked there, in the end.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use crate::vm::router::ClientId;

/// What a client is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// It has asked nothing yet.
    Unknown,
    /// It only looks how the machine is, which keeps nothing running.
    Look,
    /// It works, be it with requests or between them, as when this computer pulls.
    Work,
}

/// Who uses a machine, and since when nobody does.
#[derive(Debug)]
pub(super) struct Idle {
    /// How long the machine is kept without use; for ever when absent.
    patience: Option<Duration>,
    quiet_since: Instant,
    /// Clients that are about to greet.
    greeting: usize,
    clients: HashMap<ClientId, Purpose>,
}

impl Idle {
    /// Nobody yet.
    pub(super) fn new(patience: Option<Duration>) -> Self {
        Self {
            patience,
            quiet_since: Instant::now(),
            greeting: 0,
            clients: HashMap::new(),
        }
    }

    /// Somebody has connected.
    pub(super) fn comes(&mut self) {
        self.greeting += 1;
    }

    /// Somebody who had connected has greeted, or has gone without.
    pub(super) fn came(&mut self, id: Option<ClientId>) {
        self.greeting = self.greeting.saturating_sub(1);
        self.clients.extend(id.map(|id| (id, Purpose::Unknown)));
    }

    /// A client sends something; `looks` when it only asks how the machine is.
    pub(super) fn sends(&mut self, id: ClientId, looks: bool) {
        if let Some(purpose) = self.clients.get_mut(&id) {
            match (looks, *purpose) {
                (true, Purpose::Unknown) => *purpose = Purpose::Look,
                (true, _) => {}
                (false, _) => *purpose = Purpose::Work,
            }
        }
    }

    /// A client has gone.
    pub(super) fn goes(&mut self, id: ClientId) {
        if self.clients.remove(&id) == Some(Purpose::Work) {
            self.used();
        }
    }

    /// The machine was of use just now.
    pub(super) fn used(&mut self) {
        self.quiet_since = Instant::now();
    }

    /// When the machine has been without use for long enough, if it is without use now.
    pub(super) fn at(&self) -> Option<Instant> {
        let looks = |purpose: &Purpose| *purpose == Purpose::Look;
        let nobody = self.greeting == 0 && self.clients.values().all(looks);
        let patience = self.patience.filter(|_| nobody)?;
        Some(self.quiet_since + patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn whoever_is_connected_to_work_keeps_the_machine() {
        let pause = || tokio::time::advance(Duration::from_mins(1));
        let mut idle = Idle::new(Some(Duration::from_secs(100)));
        let end = idle.at().unwrap();
        // One that greets may want anything.
        idle.comes();
        assert_eq!(idle.at(), None);
        idle.came(Some(1));
        assert_eq!(idle.at(), None);
        // One that looks changes nothing, however often.
        pause().await;
        for _ in 0..2 {
            idle.sends(1, true);
            assert_eq!(idle.at(), Some(end));
        }
        // It may turn to work, and looks at the machine meanwhile.
        idle.sends(1, false);
        idle.sends(1, true);
        assert_eq!(idle.at(), None);
        idle.goes(1);
        assert_eq!(idle.at(), Some(end + Duration::from_mins(1)));
        // Those that ask nothing, do not greet, or were never there, leave no trace.
        idle.comes();
        idle.comes();
        idle.came(Some(2));
        pause().await;
        idle.came(None);
        assert_eq!(idle.at(), None);
        idle.goes(2);
        idle.goes(3);
        idle.sends(3, false);
        assert_eq!(idle.at(), Some(end + Duration::from_mins(1)));
        assert_eq!(Idle::new(None).at(), None);
    }
}
