//! `attach`: a host at a container's streams, until one of them goes.

use std::rc::Rc;

use tokio::task::{JoinHandle, spawn_local};
use vdkr_core::channel::message::{Done, Event};

use super::{Agent, done, ran};
use crate::{
    channel::{Control, stream::SharedStream},
    container::{
        Entry,
        streams::{Seat, discard, feed},
    },
    request::cancelled,
};

/// What a host is to a container.
#[derive(Clone, Copy, Debug)]
pub struct Mode {
    /// It sends input.
    pub stdin: bool,
    /// The end of its input is the end of all input.
    pub last_input: bool,
    /// The container dies when the host goes.
    pub ends_with_host: bool,
}

/// Joins a container that runs.
pub async fn join(agent: &Rc<Agent>, name: &str, stdin: bool, stream: &SharedStream) -> Done {
    let entry = agent.book().find(name)?;
    let live = entry.running()?;
    let seat = entry.hub.join(stream);
    let stdin = stdin && entry.record.borrow().request.stdin;
    stream.event(&Event::Started {
        pid: live.pid(),
        container: entry.id.clone(),
    });
    drop(live);
    let mode = Mode {
        stdin,
        last_input: false,
        ends_with_host: false,
    };
    attach(&entry, stream, seat, mode).await
}

/// Carries input, signals and sizes until the container ends for good or the host goes. The output
/// goes to the host for as long as it has its seat.
pub async fn attach(entry: &Rc<Entry>, stream: &SharedStream, seat: Seat, mode: Mode) -> Done {
    let input = Input(if mode.stdin {
        spawn_local(feed(stream.clone(), entry.clone(), mode.last_input))
    } else {
        spawn_local(discard(stream.clone()))
    });
    let cancel = stream.cancelled().clone();
    loop {
        tokio::select! {
            () = entry.ended() => break,
            control = stream.control() => match control {
                Control::Signal(number) => {
                    let _ = entry.signal(number);
                }
                Control::Resize(size) => entry.resize(size),
                Control::Detach => {
                    drop((seat, input));
                    return Ok(done());
                }
            },
            () = cancel.cancelled() => {
                drop((seat, input));
                if mode.ends_with_host {
                    entry.kill(true);
                    entry.ended().await;
                }
                return Err(cancelled());
            }
        }
    }
    drop((seat, input));
    Ok(ran(entry))
}

/// The task that moves input.
pub(crate) struct Input(pub(crate) JoinHandle<()>);

impl Drop for Input {
    fn drop(&mut self) {
        self.0.abort();
    }
}
