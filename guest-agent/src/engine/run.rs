//! `run` with an engine: a container from its image to its exit status.

use std::rc::Rc;

use serde_json::Value;
use vdkr_core::{
    channel::message::{
        ContainerReply, Done, Event, Failure, FailureCode, LogLevel, MountSource, PullPolicy,
        PullRequest, Reply, RunRequest, Until,
    },
    engine::{NOT_CREATED, create, rows::text, start_status},
};

use super::{
    Engine,
    client::with_query,
    done, familiar, path,
    streams::{End, Of, carry},
};
use crate::{channel::stream::SharedStream, request::Agent, share::ShareUse};

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
    // Whoever is attached sees everything from the start on.
    let begun = async {
        let raw = match request.life.until {
            Until::Ended => Some(engine.attach(&id, request.stdin).await?),
            _ => None,
        };
        begin(engine, &id, stream).await.map(|()| raw)
    };
    let raw = match begun.await {
        Ok(raw) => raw,
        Err(failure) => {
            engine.discard(&id, request.rm).await;
            // Some look for the command when somebody attaches.
            let status = start_status(&failure.message);
            if status == NOT_CREATED {
                return Err(failure);
            }
            warn(stream, &failure.message);
            return Ok(Reply::Ran { status });
        }
    };
    let Some(raw) = raw else {
        return created;
    };
    let of = Of::Container(id.clone());
    match carry(engine, raw, request.tty, request.stdin, stream, &of).await {
        Ok(End::Over) => {
            let status = engine.wait(&id).await;
            engine.discard(&id, request.rm).await;
            Ok(Reply::Ran { status: status? })
        }
        Ok(End::Detached) => {
            if request.rm {
                remove_later(agent, engine, id, shares);
            }
            Ok(done())
        }
        Err(failure) => {
            // The container ends with its host.
            let _ = engine.client.post(&path(&id, "/kill")?, None).await;
            let _ = engine.wait(&id).await;
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
async fn begin(engine: &Rc<Engine>, id: &str, stream: &SharedStream) -> Result<(), Failure> {
    engine.client.post(&path(id, "/start")?, None).await?;
    let said = engine.container(id).await.unwrap_or_default();
    let pid = said.pointer("/State/Pid").and_then(Value::as_u64);
    stream.event(&Event::Started {
        pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or(0),
        container: id.to_owned(),
    });
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
            _ = engine.wait(&id) => engine.discard(&id, true).await,
            () = stopping => {}
        }
    });
}

impl Engine {
    /// The streams of a container from now on.
    pub(super) async fn attach(
        &self,
        name: &str,
        stdin: bool,
    ) -> Result<super::client::Raw, Failure> {
        let stdin = if stdin { "&stdin=1" } else { "" };
        let rest = format!("/attach?stream=1&stdout=1&stderr=1{stdin}");
        self.client.hijack(&path(name, &rest)?, None).await
    }

    /// Waits for a container's end and gives its status.
    pub(super) async fn wait(&self, name: &str) -> Result<i32, Failure> {
        let said = self.client.post(&path(name, "/wait")?, None).await?;
        let status = said.get("StatusCode").and_then(Value::as_i64);
        Ok(status
            .and_then(|status| i32::try_from(status).ok())
            .unwrap_or(NOT_CREATED))
    }

    /// Removes a container, with the volumes that were made for it, if that was `wanted`.
    pub(super) async fn discard(&self, id: &str, wanted: bool) {
        if wanted && let Ok(target) = path(id, "?force=1&v=1") {
            let _ = self.client.delete(&target).await;
        }
    }
}
