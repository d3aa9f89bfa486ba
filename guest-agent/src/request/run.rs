//! `run`: a container from its image to its exit status.

use std::{os::fd::OwnedFd, rc::Rc};

use tokio::task::{JoinHandle, spawn_local};
use vdkr_core::{
    channel::{
        Pipe,
        message::{
            Done, Event, Failure, FailureCode, LogLevel, PullPolicy, PullRequest, Reply, RunRequest,
        },
    },
    manifest::ImageConfig,
};

use super::{Agent, cancelled};
use crate::{
    channel::{Control, stream::SharedStream},
    run::{
        Container, EXIT_NOT_CREATED, Image, Options, Report, RunError, Streams,
        container::new_id,
        process::{self, ImageDefaults},
        spec::Process,
        stdio::{self, Terminal},
    },
    store::StoredImage,
};

/// Host names and messages show this much of a container's id.
const SHORT_ID: usize = 12;

/// Runs a container to its end.
pub async fn run(agent: &Rc<Agent>, request: &RunRequest, stream: &SharedStream) -> Done {
    let stored = find_image(agent, request, stream).await?;
    let id = new_id().map_err(|error| failed(&RunError::io("make a container id")(error)))?;
    let options =
        options(request, &defaults(&stored.config), &id).map_err(|error| usage(&error))?;
    let image = Image {
        layers_dir: agent.store()?.layers_dir().to_owned(),
        layers: stored.layers.clone(),
    };
    let (mut container, streams) = Container::start(&agent.containers_dir(), &id, &image, options)
        .map_err(|error| failed(&error))?;
    agent.containers.set(agent.containers.get() + 1);

    let ended = supervise(&mut container, streams, stream).await;
    agent.containers.set(agent.containers.get() - 1);
    // The host need not wait for the cleaning; the agent's end does. The image keeps its layers
    // until then.
    agent.tasks.spawn_local(async move {
        let removed = tokio::task::spawn_blocking(move || container.remove()).await;
        if let Ok(Err(error)) = removed {
            eprintln!("vdkr-agent: {error}");
        }
        drop(stored);
    });
    ended
}

/// The image to run, pulled when the request says so.
async fn find_image(
    agent: &Agent,
    request: &RunRequest,
    stream: &SharedStream,
) -> Result<StoredImage, Failure> {
    let store = agent.store()?;
    let resolve = || {
        store
            .resolve(&request.image, &request.settings)
            .map_err(Failure::from)
    };
    if request.pull != PullPolicy::Always {
        match resolve() {
            Err(failure)
                if failure.code == FailureCode::NotFound && request.pull == PullPolicy::Missing => {
            }
            other => return other,
        }
    }
    let pull = PullRequest {
        reference: request.image.clone(),
        settings: request.settings.clone(),
        platform: None,
    };
    match super::pull::pull(agent, &pull, stream).await? {
        // Exactly what was pulled, whatever other names would match.
        Reply::Pulled(pulled) => Ok(store.resolve(&pulled.id, &request.settings)?),
        _ => resolve(),
    }
}

fn defaults(config: &ImageConfig) -> ImageDefaults {
    let config = &config.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        workdir: config.working_dir.clone(),
        user: config.user.clone(),
    }
}

fn options(request: &RunRequest, image: &ImageDefaults, id: &str) -> Result<Options, RunError> {
    let short = id.get(..SHORT_ID).unwrap_or(id);
    let hostname = request.hostname.as_deref().unwrap_or(short).to_owned();
    let process = Process {
        args: process::argv(image, request.entrypoint.as_deref(), &request.args)?,
        env: process::environment(&image.env, &request.env, &hostname, request.tty)?,
        cwd: process::workdir(&image.workdir, request.workdir.as_deref())?,
        user: request.user.as_ref().unwrap_or(&image.user).clone(),
        tty: request.tty,
    };
    Ok(Options {
        hostname,
        process,
        read_only: request.read_only,
        stdin: request.stdin,
    })
}

/// Carries streams, signals and sizes until the container ends.
async fn supervise(
    container: &mut Container,
    streams: Option<Streams>,
    stream: &SharedStream,
) -> Done {
    let mut pumps = Pumps::default();
    if let Some(streams) = streams {
        pumps.start_pipes(streams, stream);
    }
    let cancel = stream.cancelled().clone();
    let mut killed = false;
    let status = loop {
        tokio::select! {
            report = container.next_report() => match report {
                Ok(Some((Report::Created { pid }, _))) => pumps.pid = pid,
                Ok(Some((Report::Terminal, Some(master)))) => pumps.start_terminal(master, stream),
                Ok(Some((Report::Started, _))) => stream.event(&Event::Started {
                    pid: pumps.pid,
                    container: container.id().to_owned(),
                }),
                Ok(Some((Report::Exited { status }, _))) => break status,
                Ok(Some((Report::Failed { status, message }, _))) => {
                    if status == EXIT_NOT_CREATED {
                        pumps.stop().await;
                        return Err(Failure::new(
                            FailureCode::Failed,
                            format!("cannot start the container: {message}"),
                        ));
                    }
                    stream.event(&Event::Log { level: LogLevel::Warn, message });
                    break status;
                }
                Ok(Some((Report::Terminal, None)) | None) | Err(_) => {
                    pumps.stop().await;
                    let message = "the container's monitor died; see the log of the machine";
                    return Err(Failure::new(FailureCode::Failed, message));
                }
            },
            control = stream.control() => match control {
                Control::Signal(number) => {
                    let _ = container.signal(number);
                }
                Control::Resize(size) => pumps.resize(size),
            },
            () = cancel.cancelled(), if !killed => {
                container.kill();
                killed = true;
            }
        }
    };
    if killed {
        pumps.stop().await;
        return Err(cancelled());
    }
    tokio::select! {
        () = pumps.finish() => Ok(Reply::Ran { status }),
        () = cancel.cancelled() => Err(cancelled()),
    }
}

/// The tasks that move a container's bytes.
#[derive(Default)]
struct Pumps {
    pid: u32,
    input: Option<JoinHandle<()>>,
    outputs: Vec<JoinHandle<()>>,
    terminal: Option<Terminal>,
    size: Option<vdkr_core::channel::frame::Resize>,
}

impl Pumps {
    fn start_pipes(&mut self, streams: Streams, stream: &SharedStream) {
        let Streams {
            stdin,
            stdout,
            stderr,
        } = streams;
        self.outputs = vec![
            spawn_local(stdio::forward_output(stdout, stream.clone(), Pipe::Stdout)),
            spawn_local(stdio::forward_output(stderr, stream.clone(), Pipe::Stderr)),
        ];
        let stream = stream.clone();
        self.input = Some(match stdin {
            Some(stdin) => spawn_local(stdio::forward_input(stream, stdin)),
            None => spawn_local(async move { stdio::discard_input(&stream).await }),
        });
    }

    fn start_terminal(&mut self, master: OwnedFd, stream: &SharedStream) {
        let Ok(terminal) = Terminal::new(master) else {
            return;
        };
        if let Some(size) = self.size {
            let _ = terminal.resize(size);
        }
        self.outputs = vec![spawn_local(terminal.clone().forward_output(stream.clone()))];
        self.input = Some(spawn_local(terminal.clone().forward_input(stream.clone())));
        self.terminal = Some(terminal);
    }

    /// A size may come before the terminal is there.
    fn resize(&mut self, size: vdkr_core::channel::frame::Resize) {
        self.size = Some(size);
        if let Some(terminal) = &self.terminal {
            let _ = terminal.resize(size);
        }
    }

    /// Waits until all output is on its way.
    async fn finish(&mut self) {
        self.stop_input();
        for output in self.outputs.drain(..) {
            let _ = output.await;
        }
    }

    /// Gives up what the host has not taken.
    async fn stop(&mut self) {
        self.stop_input();
        for output in self.outputs.drain(..) {
            output.abort();
            let _ = output.await;
        }
    }

    fn stop_input(&mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }
}

impl Drop for Pumps {
    fn drop(&mut self) {
        self.stop_input();
        for output in &self.outputs {
            output.abort();
        }
    }
}

fn failed(error: &RunError) -> Failure {
    Failure::new(
        FailureCode::Failed,
        format!("cannot start the container: {error}"),
    )
}

fn usage(error: &RunError) -> Failure {
    Failure::new(FailureCode::Usage, error.to_string())
}
