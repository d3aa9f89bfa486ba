//! A container's life: its starts, its ends, and what happens in between without any host.

use std::{
    cell::{Cell, RefCell},
    fs,
    net::Ipv4Addr,
    os::fd::OwnedFd,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    task::{JoinHandle, spawn_blocking, spawn_local},
    time::{sleep, timeout},
};
use vdkr_core::{
    channel::{
        Pipe,
        frame::Resize,
        message::{self, ContainerState, Failure, FailureCode, Sandbox},
    },
    container::{
        restart::{RestartPolicy, pause_ms},
        signal,
    },
};

use super::{
    Entry,
    record::{Record, now_ms},
    streams::{Inlet, Outlet},
};
use crate::{
    request::{Agent, mounts, run},
    run::{
        Container, EXIT_NOT_CREATED, Image, Remains, Report, RunError, Streams, cgroup,
        networks::Place,
    },
};

/// How long containers have to stop when the machine goes down.
const LAST_ORDERS: Duration = Duration::from_secs(5);

/// How long a killed container's processes have to end: they may stand in the kernel, writing.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

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

/// Starts a container and gives its process's number once the command runs. One that runs already
/// is left alone.
pub async fn start(agent: &Rc<Agent>, entry: &Rc<Entry>) -> Result<u32, NotStarted> {
    let pid = |entry: &Entry| entry.live().map_or(0, |live| live.pid());
    if entry.is_active() {
        return Ok(pid(entry));
    }
    // What is left of an earlier start is cleaned up first.
    let gate = entry.gate.clone().lock_owned().await;
    if entry.is_active() {
        return Ok(pid(entry));
    }
    let refuse = |message: &str| NotStarted {
        status: EXIT_NOT_CREATED,
        message: message.to_owned(),
        usage: false,
    };
    if entry.is_removed() {
        return Err(refuse("it was removed meanwhile"));
    }
    let (tell, told) = oneshot::channel();
    entry.active.set(true);
    entry.halt.set(false);
    agent
        .tasks()
        .spawn_local(live(agent.clone(), entry.clone(), tell, gate));
    told.await
        .unwrap_or_else(|_| Err(refuse("the agent is shutting down")))
}

type Told = oneshot::Sender<Result<u32, NotStarted>>;

/// From a start to an end that is followed by none.
async fn live(agent: Rc<Agent>, entry: Rc<Entry>, told: Told, gate: OwnedMutexGuard<()>) {
    let mut told = Some(told);
    let (mut pause, mut restarts) = (0, 0);
    let policy = entry.record.borrow().request.life.restart;
    entry.record.borrow_mut().status.stopped_by_user = false;
    let remains = loop {
        let begun = Instant::now();
        let (ended, remains) = incarnation(&agent, &entry, &mut told).await;
        let status = match ended {
            Ok(status) => status,
            Err(why) => {
                settle(&entry, why.status, &why.message);
                if let Some(told) = told.take() {
                    let _ = told.send(Err(why));
                    break remains;
                }
                why.status
            }
        };
        let halted = entry.halt.get() || agent.is_stopping();
        if !policy.again(status, halted, restarts) {
            if told.is_none() && entry.state() != ContainerState::Exited {
                settle(&entry, status, "");
            }
            break remains;
        }
        restarts += 1;
        entry.update(|now| {
            now.state = ContainerState::Restarting;
            now.exit_code = status;
            now.finished_ms = Some(now_ms());
            now.restarts = restarts;
        });
        clear(remains).await;
        let ran = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        pause = pause_ms(pause, ran);
        let halted = entry.halted.notified();
        if !entry.halt.get() {
            tokio::select! {
                () = sleep(Duration::from_millis(pause)) => {}
                () = halted => {}
                () = agent.stopping() => {}
            }
        }
        if entry.halt.get() || agent.is_stopping() {
            settle(&entry, status, "");
            break None;
        }
    };
    let passing = entry.record.borrow().passing();
    if passing {
        agent.book().forget(&entry);
    } else {
        sync(&entry).await;
    }
    let cleaning = &agent.book().cleaning;
    cleaning.set(cleaning.get() + 1);
    entry.log.close();
    entry.active.set(false);
    // Those who wait for the end need not wait for the cleaning.
    entry.tell();
    clear(remains).await;
    if passing {
        let dir = entry.dir.clone();
        remove_dir(dir).await;
        mounts::remove_anonymous(&agent, &entry).await;
    }
    let cleaning = &agent.book().cleaning;
    cleaning.set(cleaning.get() - 1);
    drop(gate);
}

/// It has ended, or did not start.
fn settle(entry: &Entry, status: i32, error: &str) {
    entry.update(|now| {
        now.exit_code = status;
        error.clone_into(&mut now.error);
        // As docker has it: what never ran stays created.
        if now.started_ms.is_some() {
            now.state = ContainerState::Exited;
            now.finished_ms = Some(now_ms());
        } else {
            now.state = ContainerState::Created;
        }
    });
}

async fn clear(remains: Option<Remains>) {
    if let Some(remains) = remains
        && let Ok(Err(error)) = spawn_blocking(|| remains.clear()).await
    {
        eprintln!("vdkr-agent: {error}");
    }
}

/// Makes what was written last about a container outlive the machine.
async fn sync(entry: &Entry) {
    if entry.record.borrow().passing() || entry.is_removed() {
        return;
    }
    let dir = entry.dir.clone();
    if let Ok(Err(error)) = spawn_blocking(move || Record::sync(&dir)).await {
        eprintln!("vdkr-agent: {}: {error}", entry.dir.display());
    }
}

/// Removes the directory of a container that is in the book no more.
async fn remove_dir(dir: std::path::PathBuf) {
    let shown = dir.display().to_string();
    if let Ok(Err(error)) = spawn_blocking(|| fs::remove_dir_all(dir)).await {
        eprintln!("vdkr-agent: cannot remove {shown}: {error}");
    }
}

/// One process's life: its status, once all its output has been handed on.
async fn incarnation(
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

type Outputs = (
    tokio::net::unix::pipe::Receiver,
    tokio::net::unix::pipe::Receiver,
);

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

/// Gives a container that does not run another address.
pub fn place_at(entry: &Entry, address: Option<Ipv4Addr>) -> Result<(), Failure> {
    if entry.is_active() {
        let message = format!("container {} is running", entry.name());
        return Err(Failure::new(FailureCode::Failed, message));
    }
    {
        let sandbox = &mut entry.record.borrow_mut().request.sandbox;
        if address.is_some() {
            sandbox.network = message::Network::Bridge;
        }
        sandbox.address = address;
    }
    entry.placed.set(true);
    entry.save();
    Ok(())
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

fn drain(entry: &Rc<Entry>, from: tokio::net::unix::pipe::Receiver, pipe: Pipe) -> JoinHandle<()> {
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
fn thaw(live: &Live) {
    if let Some(group) = live.container.cgroup() {
        let _ = crate::run::cgroup::freeze(group, false);
    }
}

/// Stops a container for good: its stop signal, and after `timeout` seconds (below zero: never)
/// the one that cannot be ignored.
pub async fn stop(entry: &Rc<Entry>, timeout: Option<i64>, number: Option<u8>) {
    if !entry.is_active() {
        return;
    }
    let (own_signal, own_timeout) = {
        let record = entry.record.borrow();
        (record.stop_signal(), record.stop_timeout())
    };
    entry.halt(true);
    if let Some(live) = entry.live() {
        thaw(&live);
        let _ = live.container.signal(number.unwrap_or(own_signal));
    }
    let patience = u64::try_from(timeout.unwrap_or(own_timeout)).ok();
    let late = async {
        match patience {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = entry.ended() => return,
        () = late => {}
    }
    entry.kill(true);
    entry.ended().await;
}

/// Sends a signal as `kill` does: one that is meant to end it ends it for good, and one that nothing
/// withstands is waited for.
pub async fn kill(entry: &Entry, number: u8) -> Result<(), Failure> {
    let Some(live) = entry.live() else {
        let name = entry.name();
        let message = format!("container {name} is not running");
        return Err(Failure::new(FailureCode::Failed, message));
    };
    if number == signal::KILL || number == entry.record.borrow().stop_signal() {
        entry.halt(true);
    }
    if number == signal::KILL {
        thaw(&live);
        live.container.kill();
        // Whoever kills it may remove it next.
        return timeout(KILL_PATIENCE, entry.ended()).await.map_err(|_| {
            let text = format!("container {} has not ended yet", entry.name());
            Failure::new(FailureCode::Failed, text)
        });
    }
    live.container.signal(number).map_err(|error| {
        Failure::new(
            FailureCode::Failed,
            format!("cannot send signal {number}: {error}"),
        )
    })
}

/// Removes a container that does not run, or kills it first when `force` says so; with `volumes`
/// also those of its volumes that nobody has named.
pub async fn remove(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    force: bool,
    volumes: bool,
) -> Result<(), Failure> {
    // What has ended may still be about to hand its last output on.
    let over = entry.state() == ContainerState::Exited
        && entry.record.borrow().request.life.restart == RestartPolicy::No;
    if entry.is_active() {
        if !force && !over {
            let name = entry.name();
            let message = format!("container {name} is {}", entry.state().name());
            return Err(Failure::new(FailureCode::Failed, message)
                .with_hint("stop it first, or use rm --force"));
        }
        entry.kill(true);
        entry.ended().await;
    }
    let _gate = entry.gate.clone().lock_owned().await;
    if entry.is_removed() {
        return Ok(());
    }
    if entry.is_active() {
        let message = format!("container {} was started meanwhile", entry.name());
        return Err(Failure::new(FailureCode::Failed, message));
    }
    agent.book().forget(entry);
    entry.shares.take();
    remove_dir(entry.dir.clone()).await;
    if volumes || entry.record.borrow().request.rm {
        mounts::remove_anonymous(agent, entry).await;
    }
    Ok(())
}

/// Starts what starts with the machine.
pub async fn resume(agent: &Rc<Agent>) {
    for entry in agent.book().all() {
        let starts = entry.record.borrow().resumes();
        if starts && let Err(why) = start(agent, &entry).await {
            let name = entry.name();
            eprintln!(
                "vdkr-agent: container {name} does not start: {}",
                why.message
            );
        }
    }
}
