//! `exec`: one more process in a container that runs.

use std::rc::Rc;

use tokio::task::{JoinHandle, spawn_blocking, spawn_local};
use vdkr_core::{
    channel::{
        Pipe,
        message::{Done, Event, ExecRequest, Failure, FailureCode, LogLevel, Reply},
    },
    container::name,
};

use super::{Agent, done};
use crate::{
    channel::{Control, stream::SharedStream},
    container::{
        Entry,
        record::Record,
        streams::{Hub, Inlet, Outlet, Seat, discard},
    },
    request::{cancelled, run},
    run::{
        Container, EXIT_NOT_CREATED, EXIT_NOT_EXECUTABLE, Report, RunError, Streams,
        process::{environment, workdir},
        spec::Process,
    },
};

/// Runs a process in a container: to its end, or with `detach` until it runs.
pub async fn exec(agent: &Rc<Agent>, request: &ExecRequest, stream: &SharedStream) -> Done {
    let entry = agent.book().find(&request.name)?;
    let process = process(&entry.record.borrow(), request).map_err(|error| usage(&error))?;
    let stdin = request.stdin && !request.detach;
    // Not held on to: what the container has, its address too, is given up when it ends.
    let (container, streams) = entry
        .running()?
        .container
        .join(process, stdin, request.privileged)
        .map_err(|error| {
            let message = format!("cannot run a process in the container: {error}");
            Failure::new(FailureCode::Failed, message)
        })?;
    let joined = Rc::new(Joined {
        container,
        hub: Hub::default(),
    });
    let seat = (!request.detach).then(|| joined.hub.join(stream));
    let result = supervise(agent, &entry, &joined, streams, stream, request, seat).await;
    // One that was let go of lives on.
    if !matches!(result, Ok(Reply::Container(_))) {
        clear(&joined).await;
    }
    result
}

/// A process in a container.
pub(super) struct Joined {
    pub(super) container: Container,
    pub(super) hub: Hub,
}

pub(super) async fn clear(joined: &Joined) {
    if let Some(remains) = joined.container.take_remains()
        && let Ok(Err(error)) = spawn_blocking(|| remains.clear()).await
    {
        eprintln!("vdkr-agent: {error}");
    }
}

fn process(record: &Record, request: &ExecRequest) -> Result<Process, RunError> {
    if request.args.is_empty() {
        return Err(RunError::NoCommand);
    }
    if request.args.iter().any(|word| word.contains('\0')) {
        return Err(RunError::NulByte("argument"));
    }
    let own = &record.request;
    let image = run::defaults(&record.config);
    let hostname = own
        .hostname
        .as_deref()
        .unwrap_or_else(|| name::short(&record.id));
    let env: Vec<_> = own.env.iter().chain(&request.env).cloned().collect();
    let wanted = request.workdir.as_deref().or(own.workdir.as_deref());
    let user = request.user.as_ref().or(own.user.as_ref());
    Ok(Process {
        args: request.args.clone(),
        env: environment(&image.env, &env, hostname, request.tty)?,
        cwd: workdir(&image.workdir, wanted)?,
        user: user.unwrap_or(&image.user).clone(),
        tty: request.tty,
    })
}

fn usage(error: &RunError) -> Failure {
    Failure::new(FailureCode::Usage, error.to_string())
}

/// What is under way for one process; ends with it.
#[derive(Default)]
pub(super) struct Tasks {
    inlet: Option<Rc<Inlet>>,
    input: Option<JoinHandle<()>>,
    pub(super) outputs: Vec<JoinHandle<()>>,
}

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in self.input.iter().chain(&self.outputs) {
            task.abort();
        }
    }
}

impl Tasks {
    pub(super) fn take_input(&mut self, inlet: Inlet, stream: &SharedStream, wanted: bool) {
        let inlet = Rc::new(inlet);
        self.inlet = Some(inlet.clone());
        let stream = stream.clone();
        self.input = Some(if wanted {
            spawn_local(async move {
                while let Some(bytes) = stream.read().await {
                    inlet.write(&bytes).await;
                    stream.consumed(bytes.len()).await;
                }
                inlet.end().await;
            })
        } else {
            spawn_local(discard(stream))
        });
    }

    pub(super) fn take_pipes(&mut self, streams: Streams, joined: &Rc<Joined>) {
        let Streams { stdout, stderr, .. } = streams;
        for (from, pipe) in [(stdout, Pipe::Stdout), (stderr, Pipe::Stderr)] {
            let joined = joined.clone();
            self.outputs.push(spawn_local(async move {
                let outlet = Outlet {
                    hub: &joined.hub,
                    log: None,
                };
                outlet.drain_pipe(from, pipe).await;
            }));
        }
    }

    fn take_terminal(&mut self, joined: &Rc<Joined>) {
        if let Some(inlet) = self.inlet.clone() {
            let joined = joined.clone();
            self.outputs.push(spawn_local(async move {
                let outlet = Outlet {
                    hub: &joined.hub,
                    log: None,
                };
                if let Inlet::Terminal(terminal) = &*inlet {
                    outlet.drain_terminal(terminal).await;
                }
            }));
        }
    }
}

async fn supervise(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    joined: &Rc<Joined>,
    streams: Option<Streams>,
    stream: &SharedStream,
    request: &ExecRequest,
    seat: Option<Seat>,
) -> Done {
    let mut tasks = Tasks::default();
    let mut size = None;
    if let Some(mut streams) = streams {
        let inlet = Inlet::pipe(streams.stdin.take());
        tasks.take_input(inlet, stream, request.stdin && !request.detach);
        tasks.take_pipes(streams, joined);
    }
    let cancel = stream.cancelled().clone();
    let mut pid = 0;
    let mut killed = false;
    let status = loop {
        tokio::select! {
            report = joined.container.next_report() => match report {
                Ok(Some((Report::Created { pid: number }, _))) => pid = number,
                Ok(Some((Report::Terminal, Some(master)))) => {
                    let inlet = Inlet::terminal(master).map_err(|error| {
                        Failure::new(FailureCode::Failed, format!("open the terminal: {error}"))
                    })?;
                    tasks.take_input(inlet, stream, request.stdin && !request.detach);
                    tasks.take_terminal(joined);
                    resize(&tasks, size);
                }
                Ok(Some((Report::Started, _))) => {
                    if request.detach {
                        outlive(agent, joined.clone(), std::mem::take(&mut tasks));
                        return Ok(done());
                    }
                    let container = entry.id.clone();
                    stream.event(&Event::Started { pid, container });
                }
                Ok(Some((Report::Exited { status }, _))) => break status,
                Ok(Some((Report::Failed { status, message }, _))) => {
                    // As docker says it: no status of the command's own is 126 by accident.
                    let (status, message) = match status {
                        EXIT_NOT_CREATED => (
                            EXIT_NOT_EXECUTABLE,
                            format!("cannot run a process in the container: {message}"),
                        ),
                        status => (status, message),
                    };
                    stream.event(&Event::Log { level: LogLevel::Warn, message });
                    return Ok(Reply::Ran { status });
                }
                Ok(Some((Report::Terminal, None)) | None) | Err(_) => {
                    return Err(Failure::new(
                        FailureCode::Failed,
                        "the process's monitor died; see the log of the machine",
                    ));
                }
            },
            control = stream.control() => match control {
                Control::Signal(number) => {
                    let _ = joined.container.signal(number);
                }
                Control::Resize(new) => {
                    size = Some(new);
                    resize(&tasks, size);
                }
                Control::Detach => {
                    if let Some(input) = tasks.input.take() {
                        input.abort();
                    }
                    outlive(agent, joined.clone(), std::mem::take(&mut tasks));
                    return Ok(done());
                }
            },
            () = cancel.cancelled(), if !killed => {
                joined.container.kill();
                killed = true;
            }
        }
    };
    if killed {
        return Err(cancelled());
    }
    // A process that it left behind may hold its output open for as long as the container runs.
    let drained = async {
        for output in &mut tasks.outputs {
            let _ = output.await;
        }
    };
    let done = tokio::select! {
        () = drained => Ok(Reply::Ran { status }),
        () = cancel.cancelled() => Err(cancelled()),
        () = entry.ended() => Ok(Reply::Ran { status }),
    };
    drop(seat);
    done
}

fn resize(tasks: &Tasks, size: Option<vdkr_core::channel::frame::Resize>) {
    if let (Some(Inlet::Terminal(terminal)), Some(size)) = (tasks.inlet.as_deref(), size) {
        let _ = terminal.resize(size);
    }
}

/// Lets a process live without a host: its output is thrown away, its end is noticed.
fn outlive(agent: &Rc<Agent>, joined: Rc<Joined>, tasks: Tasks) {
    let stopping = agent.stopping();
    agent.tasks().spawn_local(async move {
        let ended = async {
            while let Ok(Some((report, _))) = joined.container.next_report().await {
                if matches!(report, Report::Exited { .. } | Report::Failed { .. }) {
                    return;
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = stopping => {}
        }
        drop(tasks);
        clear(&joined).await;
    });
}
