//! What tests do to the file system: record, fail, cut short, stop.

use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;

/// One operation, as the plan saw it before it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "each names a method of Fs or File and its arguments"
)]
pub enum Op {
    Mkdir {
        path: String,
    },
    Create {
        path: String,
        file: u64,
    },
    Open {
        path: String,
        file: u64,
    },
    Write {
        file: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    SyncFile {
        file: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    SyncDir {
        path: String,
    },
    RemoveFile {
        path: String,
    },
    RemoveDir {
        path: String,
    },
    Read {
        file: u64,
    },
    Stat {
        path: String,
    },
    List {
        path: String,
    },
    Lock {
        path: String,
    },
    Touch {
        path: String,
    },
}

impl Op {
    /// Whether it changes what is on the disk, or what of it is durable.
    pub fn mutates(&self) -> bool {
        !matches!(
            self,
            Self::Open { .. }
                | Self::Read { .. }
                | Self::Stat { .. }
                | Self::List { .. }
                | Self::Lock { .. }
                | Self::Touch { .. }
        )
    }
}

impl Op {
    fn takes_room(&self) -> bool {
        matches!(
            self,
            Self::Mkdir { .. } | Self::Create { .. } | Self::Write { .. }
        )
    }
}

/// What happens to one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It does nothing and returns this error.
    Error(Errno),
    /// A write takes this many bytes (at least one); any other operation succeeds.
    Short(usize),
    /// It does nothing, and no later operation does: the process has died.
    Crash,
}

/// Sees every operation of one or more [`Fs`](super::Fs) in order, counts them from 0, and spoils chosen
/// ones. Syncs are recorded and not done: what would be durable is for the test to say.
#[derive(Default)]
pub struct FaultPlan(Mutex<State>);

impl std::fmt::Debug for FaultPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FaultPlan({} operations)", self.count())
    }
}

#[derive(Default)]
struct State {
    ops: Vec<Op>,
    faults: Vec<(usize, Fault)>,
    refused: Option<Errno>,
    meanwhile: Option<(usize, Box<dyn FnOnce() + Send>)>,
    crashed: bool,
    openings: u64,
}

impl FaultPlan {
    /// A plan that records and spoils nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Spoils the operation with this number.
    pub fn spoil(&self, number: usize, fault: Fault) {
        self.state().faults.push((number, fault));
    }

    /// From now on, with `NOSPC`, everything fails that takes room on the disk; with any other error,
    /// everything that changes it. `None` ends it.
    pub fn refuse(&self, errno: Option<Errno>) {
        self.state().refused = errno;
    }

    /// Does something just before the operation with this number, in the thread that is about to do it.
    pub fn meanwhile(&self, number: usize, work: impl FnOnce() + Send + 'static) {
        self.state().meanwhile = Some((number, Box::new(work)));
    }

    /// Operations so far.
    pub fn count(&self) -> usize {
        self.state().ops.len()
    }

    /// The record so far.
    pub fn ops(&self) -> Vec<Op> {
        self.state().ops.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A number for one opening of a file.
    pub(super) fn opening(&self) -> u64 {
        let mut state = self.state();
        state.openings += 1;
        state.openings
    }

    pub(super) fn before(&self, op: Op) -> rustix::io::Result<()> {
        self.next(op).map(|_| ())
    }

    /// How many of the bytes may be written.
    pub(super) fn before_write(
        &self,
        file: u64,
        offset: u64,
        bytes: &[u8],
    ) -> rustix::io::Result<usize> {
        let fault = self.next(Op::Write {
            file,
            offset,
            bytes: bytes.to_vec(),
        })?;
        let Some(Fault::Short(allowed)) = fault else {
            return Ok(bytes.len());
        };
        let allowed = allowed.clamp(1, bytes.len());
        if let Some(Op::Write { bytes, .. }) = self.state().ops.last_mut() {
            bytes.truncate(allowed);
        }
        Ok(allowed)
    }

    fn next(&self, op: Op) -> rustix::io::Result<Option<Fault>> {
        let due = {
            let mut state = self.state();
            let number = state.ops.len();
            state.meanwhile.take_if(|(at, _)| *at == number)
        };
        if let Some((_, work)) = due {
            work();
        }
        let mut state = self.state();
        if state.crashed {
            return Err(Errno::OWNERDEAD);
        }
        if let Some(errno) = state.refused
            && match errno {
                Errno::NOSPC => op.takes_room(),
                _ => op.mutates() || matches!(op, Op::Touch { .. }),
            }
        {
            return Err(errno);
        }
        let number = state.ops.len();
        let fault = state
            .faults
            .iter()
            .find(|(at, _)| *at == number)
            .map(|(_, fault)| *fault);
        match fault {
            Some(Fault::Crash) => {
                state.crashed = true;
                return Err(Errno::OWNERDEAD);
            }
            Some(Fault::Error(errno)) => {
                // Kept in the record as something that changed nothing.
                state.ops.push(Op::Stat {
                    path: String::new(),
                });
                return Err(errno);
            }
            _ => state.ops.push(op),
        }
        Ok(fault)
    }
}
