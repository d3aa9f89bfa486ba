//! `run`: a container from its image to its exit status.

use std::rc::Rc;

use tokio::sync::oneshot;
use vdkr_core::{
    channel::message::{
        self, ContainerReply, Done, Event, Failure, FailureCode, LogLevel, PullPolicy, PullRequest,
        Reply, RunRequest, Until,
    },
    manifest::ImageConfig,
};

use super::{
    Agent,
    container::attach::{Mode, attach},
    mounts,
};
use crate::{
    channel::stream::SharedStream,
    container::{
        Entry,
        life::{remove, start},
    },
    run::{
        EXIT_NOT_CREATED, Options, RunError, isolation,
        networks::Place,
        process::{self, ImageDefaults},
        spec::{Network, Process},
    },
    store::StoredImage,
};

/// Host names and messages show this much of a container's id.
const SHORT_ID: usize = 12;

/// Makes a container, and runs it as far as the request goes.
pub async fn run(agent: &Rc<Agent>, request: &RunRequest, stream: &SharedStream) -> Done {
    let stored = find_image(agent, request, stream).await?;
    // What is wrong with the request shows before there is anything.
    let shared = matches!(
        request.sandbox.network,
        message::Network::Host | message::Network::Container(_)
    );
    let network = if shared { Network::Host } else { Network::None };
    options(request, &defaults(&stored.config), &"0".repeat(64), None)
        .and_then(|options| isolation::resolve(&options.sandbox, network))
        .map_err(|error| usage(&error))?;
    let entry = make(agent, stored, request.clone()).await?;
    let created = Ok(Reply::Container(ContainerReply::Created {
        id: entry.id.clone(),
    }));
    if request.life.until == Until::Created {
        return created;
    }
    let seat = (request.life.until == Until::Ended).then(|| entry.hub.join(stream));
    let pid = match start(agent, &entry).await {
        Ok(pid) => pid,
        Err(why) if why.status == EXIT_NOT_CREATED => return Err(why.into()),
        Err(why) => {
            stream.event(&Event::Log {
                level: LogLevel::Warn,
                message: why.message,
            });
            return Ok(Reply::Ran { status: why.status });
        }
    };
    stream.event(&Event::Started {
        pid,
        container: entry.id.clone(),
    });
    let Some(seat) = seat else {
        return created;
    };
    let mode = Mode {
        stdin: request.stdin,
        last_input: true,
        ends_with_host: true,
    };
    attach(&entry, stream, seat, mode).await
}

/// Makes a container, to its end also when the host goes away meanwhile: then it is removed, as
/// nobody has heard of it.
pub(super) async fn make(
    agent: &Rc<Agent>,
    image: StoredImage,
    request: RunRequest,
) -> Result<Rc<Entry>, Failure> {
    let (tell, told) = oneshot::channel();
    let maker = agent.clone();
    agent.tasks().spawn_local(async move {
        let made = make_whole(&maker, image, request).await;
        if let Err(Ok(entry)) = tell.send(made)
            && let Err(failure) = remove(&maker, &entry, true, true).await
        {
            eprintln!("vdkr-agent: {}", failure.message);
        }
    });
    let gone = |_| Failure::new(FailureCode::Failed, "the container was not made");
    told.await.map_err(gone)?
}

async fn make_whole(
    agent: &Rc<Agent>,
    image: StoredImage,
    request: RunRequest,
) -> Result<Rc<Entry>, Failure> {
    let coming = agent.book().begin(request.name.as_deref())?;
    let of_image = &image.config.config.volumes;
    let settled = mounts::settle(agent, &coming, &request.mounts, of_image).await?;
    let wanted = RunRequest {
        mounts: settled.specs.clone(),
        ..request
    };
    match agent.book().add(coming, image, &wanted).await {
        Ok(entry) => {
            entry.shares.replace(settled.shares);
            Ok(entry)
        }
        Err(failure) => {
            settled.give_up(agent).await;
            Err(failure)
        }
    }
}

/// The image to run, pulled when the request says so, with all its layers.
async fn find_image(
    agent: &Agent,
    request: &RunRequest,
    stream: &SharedStream,
) -> Result<StoredImage, Failure> {
    let image = find_or_pull(agent, request, stream).await?;
    image.ready()?;
    Ok(image)
}

async fn find_or_pull(
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

/// The image's part of what a container executes.
pub fn defaults(config: &ImageConfig) -> ImageDefaults {
    let config = &config.config;
    ImageDefaults {
        entrypoint: config.entrypoint.clone(),
        cmd: config.cmd.clone(),
        env: config.env.clone(),
        workdir: config.working_dir.clone(),
        user: config.user.clone(),
    }
}

/// What a container is made of, from the request and the image; without a place among the networks
/// it has the machine's.
pub fn options(
    request: &RunRequest,
    image: &ImageDefaults,
    id: &str,
    place: Option<&Place>,
) -> Result<Options, RunError> {
    let short = id.get(..SHORT_ID).unwrap_or(id);
    let hostname = match &request.hostname {
        Some(name) => name.clone(),
        None if request.sandbox.uts_host => rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned(),
        None => short.to_owned(),
    };
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
        volumes: Vec::new(),
        stdin: request.stdin,
        init: request.life.init,
        sandbox: request.sandbox.clone(),
        network: place.map_or(Network::Host, |place| place.network.clone()),
        shared_files: place.and_then(|place| place.shared_files.clone()),
    })
}

fn usage(error: &RunError) -> Failure {
    Failure::new(FailureCode::Usage, error.to_string())
}
