//! `run` with an engine: a container from its image to its exit status.

use std::{cell::Cell, rc::Rc, time::Duration};

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use vdkr_core::{
    channel::message::{
        ContainerReply, ContainerState, Done, Event, Failure, FailureCode, LogLevel, MountSource,
        PullPolicy, PullRequest, Reply, RunRequest, Until,
    },
    container::restart::RestartPolicy,
    engine::{
        EngineKind, NOT_CREATED,
        create::{self, REMOVED_AT_ITS_END},
        rows::{self, text},
        start_status,
    },
};

use super::{
    Engine,
    client::with_query,
    done, familiar,
    follow::{Followed, GRACE, LOOKS, started},
    path,
    streams::{End, Of, until_detached},
};
use crate::{
    channel::stream::SharedStream,
    request::{Agent, cancelled},
    share::ShareUse,
};

/// The time between two tries with an engine that does not answer, at first and at last.
const FIRST_TRY: Duration = Duration::from_millis(500);
const LAST_TRY: Duration = Duration::from_mins(1);
/// How long a container may take to end that is killed.
const KILLED: Duration = Duration::from_secs(8);

/// Makes a container, and runs it as far as the request goes.
pub(super) async fn run(
    agent: &Rc<Agent>,
    engine: &Rc<Engine>,
    request: &RunRequest,
    stream: &SharedStream,
) -> Done {
    let image = find_or_pull(engine, request, stream).await?;
    let shares = hold(agent, request)?;
    let place = |name: &str| {
        let held = shares.iter().find(|(known, _)| known == name);
        held.map(|(_, held)| held.point().display().to_string())
    };
    let document = create::document(engine.kind(), request, &image, &place).map_err(|error| {
        Failure::new(FailureCode::Unsupported, error.to_string()).with_hint(format!(
            "leave it out, or run it with {} itself",
            engine.kind()
        ))
    })?;
    let target = match &request.name {
        Some(name) => with_query("/containers/create", &[("name", name)]),
        None => "/containers/create".to_owned(),
    };
    let made = engine.client.post(&target, Some(&document)).await?;
    for warning in made
        .get("Warnings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        warn(stream, warning.as_str().unwrap_or_default());
    }
    let id = text(&made, "Id").to_owned();
    let created = Ok(Reply::Container(ContainerReply::Created { id: id.clone() }));
    if request.life.until == Until::Created {
        return created;
    }
    let not_begun = async |failure: Failure| {
        engine.discard(&id, request.rm).await;
        // Some look for the command when somebody attaches.
        let status = start_status(&failure.message);
        if status == NOT_CREATED {
            return Err(failure);
        }
        warn(stream, &failure.message);
        Ok(Reply::Ran { status })
    };
    if request.life.until != Until::Ended {
        return match begin(engine, &id, stream).await {
            Ok(()) => created,
            Err(failure) => not_begun(failure).await,
        };
    }
    let followed = Followed {
        engine,
        id: &id,
        tty: request.tty,
        stdin: request.stdin,
        restarts: request.life.restart != RestartPolicy::No,
        round: 0,
        stream,
    };
    let begun = Cell::new(false);
    let work = async {
        // Whoever is attached sees everything from the start on.
        let opened = followed.open().await?;
        begin(engine, &id, stream).await?;
        begun.set(true);
        followed.follow(opened).await
    };
    let of = Of::Container(id.clone());
    let ended = tokio::select! {
        ended = until_detached(engine, stream, &of, work) => ended,
        () = stream.cancelled().cancelled() => Err(cancelled()),
    };
    match ended {
        Ok(End::Ended(status)) => {
            engine.discard(&id, request.rm).await;
            Ok(Reply::Ran { status })
        }
        Ok(End::Detached) => {
            if request.rm {
                remove_later(agent, engine, id, shares);
            }
            Ok(done())
        }
        Err(failure) if !begun.get() && failure.code != FailureCode::Cancelled => {
            not_begun(failure).await
        }
        Err(failure) => {
            // The container ends with its host.
            engine.end(&id, followed.restarts).await;
            engine.discard(&id, request.rm).await;
            Err(failure)
        }
    }
}

/// The image to run as the engine calls it, pulled when the request says so.
async fn find_or_pull(
    engine: &Rc<Engine>,
    request: &RunRequest,
    stream: &SharedStream,
) -> Result<String, Failure> {
    if request.pull != PullPolicy::Always {
        match engine.find(&request.image, &request.settings).await {
            Ok(known) => return Ok(familiar(known.called())),
            Err(failure)
                if failure.code == FailureCode::NotFound && request.pull == PullPolicy::Missing => {
            }
            Err(failure) => return Err(failure),
        }
    }
    let pull = PullRequest {
        reference: request.image.clone(),
        settings: request.settings.clone(),
        platform: None,
    };
    let pulled = engine.pull(&pull, stream).await?;
    Ok(familiar(&pulled.name))
}

/// What the host shares with the container.
fn hold(agent: &Agent, request: &RunRequest) -> Result<Vec<(String, ShareUse)>, Failure> {
    let shares = request.mounts.iter().filter_map(|spec| match &spec.source {
        MountSource::Share { share, .. } => Some(share),
        _ => None,
    });
    shares
        .map(|name| Ok((name.clone(), agent.hold_share(name)?)))
        .collect()
}

fn warn(stream: &SharedStream, message: &str) {
    stream.event(&Event::Log {
        level: LogLevel::Warn,
        message: message.to_owned(),
    });
}

/// Starts a container.
async fn begin(engine: &Engine, id: &str, stream: &SharedStream) -> Result<(), Failure> {
    engine.client.post(&path(id, "/start")?, None).await?;
    started(stream, id);
    Ok(())
}

/// Removes a container at its end that no host waits for any more.
fn remove_later(
    agent: &Rc<Agent>,
    engine: &Rc<Engine>,
    id: String,
    shares: Vec<(String, ShareUse)>,
) {
    let engine = engine.clone();
    let stopping = agent.stopping();
    agent.tasks().spawn_local(async move {
        let _shares = shares;
        tokio::select! {
            () = engine.remove_at_its_end(&id) => {}
            () = stopping => {}
        }
    });
}

/// Sees to the containers that are to go at their end and that an earlier agent left: those that have
/// ended go now.
pub async fn take_over(agent: &Rc<Agent>, engine: &Rc<Engine>) {
    let mut pause = FIRST_TRY;
    let left = loop {
        match engine.left_behind().await {
            Ok(left) => break left,
            // It may be on its way up.
            Err(_) => sleep(pause).await,
        }
        pause = (pause * 2).min(LAST_TRY);
    };
    for id in left {
        remove_later(agent, engine, id, Vec::new());
    }
}

impl Engine {
    /// Containers that run or have ended and that an agent removes at their end.
    async fn left_behind(&self) -> Result<Vec<String>, Failure> {
        let filters = format!(r#"{{"label":["{REMOVED_AT_ITS_END}=1"]}}"#);
        let query = [("all", "1"), ("filters", filters.as_str())];
        let target = with_query("/containers/json", &query);
        let listed = self.client.get(&target).await?;
        let listed = listed.as_array().into_iter().flatten();
        // One that has never run may be about to: somebody else made it.
        let begun = listed
            .filter(|one| !matches!(text(one, "State"), "created" | "configured" | "initialized"));
        let mut left = Vec::new();
        for one in begun {
            // One that was made of an image of such a container has its label, and is somebody else's.
            let image = format!("/images/{}/json", text(one, "ImageID"));
            let own = match self.client.get(&image).await {
                Ok(image) => image["Config"]["Labels"][REMOVED_AT_ITS_END].is_null(),
                Err(_) => false,
            };
            if own {
                left.push(text(one, "Id").to_owned());
            }
        }
        Ok(left)
    }

    /// Waits for a container's end and removes it.
    async fn remove_at_its_end(&self, id: &str) {
        let mut pause = FIRST_TRY;
        loop {
            let said = match self.wait(id).await {
                Ok(_) => self.container(id).await,
                Err(failure) => Err(failure),
            };
            match said.map(|said| rows::container(&said).state) {
                // Not by force: somebody may start it just now.
                Ok(ContainerState::Exited) => match path(id, "?v=1") {
                    Ok(target) if self.client.delete(&target).await.is_err() => sleep(pause).await,
                    _ => return,
                },
                Err(failure) if failure.code == FailureCode::NotFound => return,
                // It starts again, or the engine does.
                _ => sleep(pause).await,
            }
            pause = (pause * 2).min(LAST_TRY);
        }
    }

    /// Ends a container, also one that it `restarts` by itself.
    async fn end(&self, id: &str, restarts: bool) {
        let ended = async {
            let until = Instant::now() + GRACE;
            loop {
                let killed = self.client.post(&path(id, "/kill")?, None).await;
                // One between two rounds has nothing that could be killed.
                let _ = self.client.post(&path(id, "/stop?t=0")?, None).await;
                // podman starts that one all the same.
                let may_start = restarts && self.kind() == EngineKind::Podman;
                if killed.is_ok() || !may_start || Instant::now() >= until {
                    return Ok::<(), Failure>(());
                }
                sleep(LOOKS.0).await;
            }
        };
        let _ = timeout(KILLED, ended).await;
    }

    /// Removes a container, with the volumes that were made for it, if that was `wanted`.
    pub(super) async fn discard(&self, id: &str, wanted: bool) {
        if wanted && let Ok(target) = path(id, "?force=1&v=1") {
            let _ = self.client.delete(&target).await;
        }
    }
}
