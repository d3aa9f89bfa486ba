//! One process of a container, from its creation until its output has been handed on.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
    time::Duration,
};

use tokio::{
    sync::oneshot,
    task::{JoinHandle, spawn_local},
    time::sleep,
};
use vdkr_core::channel::{
    Pipe,
    frame::Resize,
    message::{self, ContainerState, Failure, FailureCode, Sandbox},
};

use super::{
    Entry,
    life::sync,
    record::now_ms,
    streams::{Inlet, Outlet},
};
use crate::{
    request::{Agent, mounts, run},
    run::{
        Container, EXIT_NOT_CREATED, Image, Remains, Report, RunError, Streams, cgroup,
        networks::Place, pipes::Reader,
    },
};

/// How long containers have to stop when the machine goes down.
const LAST_ORDERS: Duration = Duration::from_secs(5);

/// A container's process.
pub struct Live {
    /// The process and what is around it.
    pub container: Container,
    /// Its place among the networks.
    pub place: Place,
    pid: Cell<u32>,
    input: RefCell<Rc<Inlet>>,
}

impl Live {
    fn new(container: Container, place: Place, input: Inlet) -> Self {
        Self {
            container,
            place,
            pid: Cell::new(0),
            input: RefCell::new(Rc::new(input)),
        }
    }

    /// Number of the process in the machine.
    pub fn pid(&self) -> u32 {
        self.pid.get()
    }

    /// Where its input goes.
    pub fn input(&self) -> Rc<Inlet> {
        self.input.borrow().clone()
    }

    /// Tells the programs on its terminal the size of the user's window.
    pub fn resize(&self, size: Resize) {
        if let Inlet::Terminal(terminal) = &*self.input() {
            let _ = terminal.resize(size);
        }
    }
}

/// A process did not come to be.
#[derive(Clone, Debug)]
pub struct NotStarted {
    /// 125, 126 or 127.
    pub status: i32,
    /// Why.
    pub message: String,
    /// Whether the request is wrong, not the attempt.
    pub usage: bool,
}

impl From<&RunError> for NotStarted {
    fn from(error: &RunError) -> Self {
        Self {
            status: EXIT_NOT_CREATED,
            message: error.to_string(),
            usage: error.is_usage(),
        }
    }
}

impl From<NotStarted> for Failure {
    fn from(why: NotStarted) -> Self {
        if why.usage {
            return Self::new(FailureCode::Usage, why.message);
        }
        let message = format!("cannot start the container: {}", why.message);
        Self::new(FailureCode::Failed, message)
    }
}

/// Where the number of the process goes, or why there is none.
pub(super) type Told = oneshot::Sender<Result<u32, NotStarted>>;

/// One process's life: its status, once all its output has been handed on.
pub(super) async fn incarnation(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    told: &mut Option<Told>,
) -> (Result<i32, NotStarted>, Option<Remains>) {
    let (live, streams) = match begin(agent, entry) {
        Ok(begun) => begun,
        Err(why) => return (Err(why), None),
    };
    let live = Rc::new(live);
    *entry.live.borrow_mut() = Some(live.clone());
    if entry.halt.get() {
        live.container.kill();
    }
    let mut outputs: Vec<JoinHandle<()>> = Vec::new();
    if let Some((stdout, stderr)) = streams {
        outputs = vec![
            drain(entry, stdout, Pipe::Stdout),
            drain(entry, stderr, Pipe::Stderr),
        ];
    }
    let mut stopping = Some(agent.stopping());
    let mut deadline: Option<std::pin::Pin<Box<tokio::time::Sleep>>> = None;
    let ended = loop {
        let stop = async {
            match &mut stopping {
                Some(stopping) => stopping.await,
                None => std::future::pending().await,
            }
        };
        let late = async {
            match &mut deadline {
                Some(deadline) => deadline.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            report = live.container.next_report() => match report {
                Ok(Some((Report::Created { pid }, _))) => live.pid.set(pid),
                Ok(Some((Report::Terminal, Some(master)))) => {
                    outputs.extend(take_terminal(entry, &live, master));
                }
                Ok(Some((Report::Started, _))) => {
                    // Its network is whole by now.
                    live.place.started(live.pid());
                    entry.update(|now| {
                        now.state = ContainerState::Running;
                        now.started_ms = Some(now_ms());
                        now.exit_code = 0;
                        now.oom_killed = false;
                        now.error.clear();
                    });
                    sync(entry).await;
                    if let Some(told) = told.take() {
                        let _ = told.send(Ok(live.pid()));
                    }
                }
                Ok(Some((Report::Exited { status }, _))) => break Ok(status),
                Ok(Some((Report::Failed { status, message }, _))) => {
                    break Err(NotStarted { status, message, usage: false });
                }
                Ok(Some((Report::Terminal, None)) | None) | Err(_) => {
                    let message = "its monitor died; see the log of the machine".to_owned();
                    break Err(NotStarted { status: EXIT_NOT_CREATED, message, usage: false });
                }
            },
            () = stop => {
                stopping = None;
                let number = entry.record.borrow().stop_signal();
                thaw(&live);
                let _ = live.container.signal(number);
                deadline = Some(Box::pin(sleep(LAST_ORDERS)));
            }
            () = late => {
                deadline = None;
                live.container.kill();
            }
        }
    };
    // The process has ended even if a host takes its time with the output.
    if let Ok(status) = ended {
        let oom_killed = live.container.cgroup().is_some_and(cgroup::oom_killed);
        entry.update(|now| {
            now.state = ContainerState::Exited;
            now.exit_code = status;
            now.oom_killed = oom_killed;
            now.finished_ms = Some(now_ms());
        });
    }
    live.container.kill();
    entry.last_output(outputs).await;
    entry.live.borrow_mut().take();
    (ended, live.container.take_remains())
}

type Outputs = (Reader, Reader);

fn begin(agent: &Rc<Agent>, entry: &Rc<Entry>) -> Result<(Live, Option<Outputs>), NotStarted> {
    let record = entry.record.borrow();
    let Some(stored) = &entry.image else {
        return Err(NotStarted {
            status: EXIT_NOT_CREATED,
            message: format!(
                "its image {} is not in the store any more",
                record.image.short()
            ),
            usage: false,
        });
    };
    stored.ready().map_err(|error| NotStarted {
        status: EXIT_NOT_CREATED,
        message: error.to_string(),
        usage: false,
    })?;
    let layers_dir = agent
        .store()
        .map_err(|failure| NotStarted {
            status: EXIT_NOT_CREATED,
            message: failure.message,
            usage: false,
        })?
        .layers_dir()
        .to_owned();
    // After the machine's start the host shares what it has shared before.
    let shares = mounts::hold(agent, &record.request.mounts);
    entry.shares.replace(shares);
    let place = place(agent, entry, &record.request.sandbox)?;
    let defaults = run::defaults(&record.config);
    let mut options = run::options(&record.request, &defaults, &entry.id, Some(&place))
        .map_err(|error| NotStarted::from(&error))?;
    options.volumes =
        mounts::resolve(agent, &record.request.mounts).map_err(|failure| NotStarted {
            status: EXIT_NOT_CREATED,
            message: failure.message,
            usage: false,
        })?;
    let image = Image {
        layers_dir,
        layers: stored.layers.clone(),
    };
    let (container, streams) =
        Container::start(&entry.dir, &entry.id, &image, options, !record.passing())
            .map_err(|error| NotStarted::from(&error))?;
    Ok(match streams {
        Some(Streams {
            stdin,
            stdout,
            stderr,
        }) => (
            Live::new(container, place, Inlet::pipe(stdin)),
            Some((stdout, stderr)),
        ),
        None => (Live::new(container, place, Inlet::None), None),
    })
}

/// Where the container is among the networks, as the request has it.
fn place(agent: &Rc<Agent>, entry: &Entry, sandbox: &Sandbox) -> Result<Place, NotStarted> {
    let other = match &sandbox.network {
        message::Network::Container(wanted) => {
            let found = agent.book().find(wanted).map_err(|failure| NotStarted {
                status: EXIT_NOT_CREATED,
                message: failure.message,
                usage: true,
            })?;
            Some(found.id.clone())
        }
        _ => None,
    };
    let bridge = agent.bridge();
    agent
        .networks()
        .enter(&entry.id, &entry.dir, sandbox, bridge, other.as_deref())
        .map_err(|error| NotStarted::from(&error))
}

fn drain(entry: &Rc<Entry>, from: Reader, pipe: Pipe) -> JoinHandle<()> {
    let entry = entry.clone();
    spawn_local(async move {
        let outlet = Outlet {
            hub: &entry.hub,
            log: Some(&entry.log),
        };
        outlet.drain_pipe(from, pipe).await;
    })
}

fn take_terminal(entry: &Rc<Entry>, live: &Rc<Live>, master: OwnedFd) -> Option<JoinHandle<()>> {
    let input = Rc::new(Inlet::terminal(master).ok()?);
    *live.input.borrow_mut() = input.clone();
    if let Some(size) = entry.size.get() {
        live.resize(size);
    }
    let entry = entry.clone();
    Some(spawn_local(async move {
        let outlet = Outlet {
            hub: &entry.hub,
            log: Some(&entry.log),
        };
        if let Inlet::Terminal(terminal) = &*input {
            outlet.drain_terminal(terminal).await;
        }
    }))
}

/// What is frozen could not act on a signal.
pub(super) fn thaw(live: &Live) {
    if let Some(group) = live.container.cgroup() {
        let _ = crate::run::cgroup::freeze(group, false);
    }
}
