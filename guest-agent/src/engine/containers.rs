//! Requests about containers, with those of an engine.

use std::{rc::Rc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;
use vdkr_core::{
    channel::{
        Pipe,
        message::{
            ContainerReply, ContainerRequest, ContainerRow, ContainerState, Done, Failure,
            FailureCode, LogsRequest, Reply,
        },
    },
    engine::{
        rounds,
        rows::{self, text, texts},
    },
};

use super::{
    Engine,
    client::with_query,
    copy, done,
    follow::{Followed, started},
    path,
    streams::{End, Of, Output, send, until_detached},
};
use crate::{channel::stream::SharedStream, machine, request::unknown};

/// Seconds that a container has to stop, unless the request or it says so.
const STOP: i64 = 10;

/// Does what a request about containers asks for.
pub(super) async fn carry_out(
    engine: &Rc<Engine>,
    request: ContainerRequest,
    stream: &SharedStream,
) -> Done {
    match request {
        ContainerRequest::Attach { name, stdin } => join(engine, &name, stdin, stream).await,
        ContainerRequest::Changes { name } => changes(engine, &name, stream).await,
        ContainerRequest::Commit { .. } => {
            Err(engine.unsupported("commit", "on the target: ENGINE commit CONTAINER NAME"))
        }
        ContainerRequest::CopyIn { name, path } => {
            copy::copy_in(engine, &name, &path, stream).await
        }
        ContainerRequest::CopyOut {
            name,
            path,
            entry,
            follow,
        } => copy::copy_out(engine, &name, &path, &entry, follow, stream).await,
        ContainerRequest::Path { name, path, follow } => {
            copy::look(engine, &name, &path, follow).await
        }
        ContainerRequest::Export { name } => {
            let mut answer = engine.client.open(&path(&name, "/export")?).await?;
            while let Some(piece) = answer.piece().await? {
                send(stream, Pipe::Stdout, &piece).await?;
            }
            Ok(done())
        }
        ContainerRequest::Inspect { name } => {
            let documents = vec![engine.container(&name).await?];
            Ok(Reply::Inspected { documents })
        }
        ContainerRequest::Kill { name, signal } => {
            engine.ask(&name, &format!("/kill?signal={signal}")).await
        }
        ContainerRequest::List => list(engine).await,
        ContainerRequest::Logs(request) => logs(engine, &request, stream).await,
        ContainerRequest::Pause { name } => engine.ask(&name, "/pause").await,
        ContainerRequest::Unpause { name } => engine.ask(&name, "/unpause").await,
        ContainerRequest::Place { .. } => Err(engine.unsupported(
            "an address for ports of the host",
            "run the container on the target with ENGINE run -p",
        )),
        ContainerRequest::Remove {
            name,
            force,
            volumes,
        } => {
            let flag = u8::from;
            let rest = format!("?force={}&v={}", flag(force), flag(volumes));
            engine.client.delete(&path(&name, &rest)?).await?;
            Ok(done())
        }
        ContainerRequest::Rename { name, new_name } => {
            let target = with_query(&path(&name, "/rename")?, &[("name", &new_name)]);
            engine.client.post(&target, None).await?;
            Ok(done())
        }
        ContainerRequest::Restart { name, timeout } => {
            engine
                .ask(&name, &format!("/restart{}", seconds(timeout)))
                .await
        }
        // What starts with the machine, the engine starts.
        ContainerRequest::Resume => Ok(done()),
        ContainerRequest::Start {
            name,
            attach,
            stdin,
        } => start(engine, &name, attach, stdin, stream).await,
        ContainerRequest::Stats { names } => stats(engine, names).await,
        ContainerRequest::Stop {
            name,
            timeout,
            signal: None,
        } => {
            engine
                .ask(&name, &format!("/stop{}", seconds(timeout)))
                .await
        }
        ContainerRequest::Stop {
            name,
            timeout,
            signal: Some(signal),
        } => stop_with(engine, &name, timeout, signal).await,
        ContainerRequest::Top { name } => {
            let said = engine.client.get(&path(&name, "/top")?).await?;
            let list = |name: &str| said.get(name).unwrap_or(&Value::Null);
            if !list("Titles").is_array() {
                let kind = engine.kind();
                let text = format!("{kind} does not say which processes {name} has");
                return Err(Failure::new(FailureCode::Failed, text)
                    .with_hint("look from inside: vdkr exec CONTAINER ps"));
            }
            let processes = list("Processes").as_array().into_iter().flatten();
            Ok(Reply::Container(ContainerReply::Top {
                titles: texts(list("Titles")),
                processes: processes.map(texts).collect(),
            }))
        }
        ContainerRequest::Wait { name } => {
            let status = engine.wait(&name).await?;
            Ok(Reply::Ran { status })
        }
        ContainerRequest::Exec(_) | ContainerRequest::Unknown => Err(unknown()),
    }
}

fn seconds(timeout: Option<i64>) -> String {
    timeout.map_or_else(String::new, |seconds| format!("?t={seconds}"))
}

impl Engine {
    /// Asks for something that is answered by being done.
    async fn ask(&self, name: &str, rest: &str) -> Done {
        self.client.post(&path(name, rest)?, None).await?;
        Ok(done())
    }
}

/// Engines before API 1.42 stop with the container's own signal alone, and do not say that.
async fn stop_with(engine: &Engine, name: &str, patience: Option<i64>, signal: u8) -> Done {
    let said = engine.container(name).await?;
    let row = rows::container(&said);
    if !is_active(row.state) {
        return Ok(done());
    }
    let own = said
        .pointer("/Config/StopTimeout")
        .and_then(Value::as_i64)
        .unwrap_or(STOP);
    // Below zero there is no end to it.
    let patience = u64::try_from(patience.unwrap_or(own)).map(Duration::from_secs);
    let id = &row.id;
    if let Err(failure) = engine.ask(id, &format!("/kill?signal={signal}")).await {
        return match engine.container(id).await {
            // It has ended just now.
            Ok(said) if !is_active(rows::container(&said).state) => Ok(done()),
            Err(gone) if gone.code == FailureCode::NotFound => Ok(done()),
            _ => Err(failure),
        };
    }
    let waited = match patience {
        Err(_) => Ok(engine.wait(id).await),
        Ok(patience) => timeout(patience, engine.wait(id)).await,
    };
    let stopped = match waited {
        Ok(Err(failure)) => Err(failure),
        // One that has not listened is killed, and one that would start again does not.
        Ok(Ok(_)) | Err(_) => engine.ask(id, "/stop?t=0").await,
    };
    match stopped {
        Err(failure) if failure.code == FailureCode::NotFound => Ok(done()),
        stopped => stopped,
    }
}

/// Whether a container runs, or is about to.
fn is_active(state: ContainerState) -> bool {
    state.is_live() || state == ContainerState::Restarting
}

/// All containers, the newest first.
async fn list(engine: &Engine) -> Done {
    let listed = engine.client.get("/containers/json?all=1").await?;
    let mut containers = Vec::new();
    for one in listed.as_array().into_iter().flatten() {
        // Only this says all that there is to say.
        match engine.container(text(one, "Id")).await {
            Ok(said) => containers.push(rows::container(&said)),
            // It has gone meanwhile.
            Err(failure) if failure.code == FailureCode::NotFound => {}
            Err(failure) => return Err(failure),
        }
    }
    containers.sort_by_key(|row| std::cmp::Reverse(row.created_ms));
    Ok(Reply::Container(ContainerReply::List { containers }))
}

async fn stats(engine: &Engine, mut names: Vec<String>) -> Done {
    let all = names.is_empty();
    if all {
        let listed = engine.client.get("/containers/json").await?;
        let listed = listed.as_array().into_iter().flatten();
        names = listed.map(|one| text(one, "Id").to_owned()).collect();
    }
    let mut samples = Vec::new();
    for name in &names {
        let asked = async {
            let described = engine.container(name).await?;
            let target = path(name, "/stats?stream=0&one-shot=1")?;
            Ok((described, engine.client.get(&target).await?))
        };
        let (described, said) = match asked.await {
            // It has gone meanwhile.
            Err(Failure {
                code: FailureCode::NotFound,
                ..
            }) if all => continue,
            asked => asked?,
        };
        let at_us = u64::try_from(machine::uptime().as_micros()).unwrap_or(u64::MAX);
        let mut sample = rows::sample(&said, at_us);
        // Not every engine repeats them.
        let row = rows::container(&described);
        (sample.id, sample.name) = (row.id, row.name);
        samples.push(sample);
    }
    Ok(Reply::Container(ContainerReply::Stats { samples }))
}

/// Joins a container that runs.
async fn join(engine: &Rc<Engine>, name: &str, stdin: bool, stream: &SharedStream) -> Done {
    let said = engine.container(name).await?;
    let row = rows::container(&said);
    let still = |state: ContainerState| match state {
        ContainerState::Running => Ok(()),
        state => {
            let text = format!("container {name} does not run: it is {}", state.name());
            Err(Failure::new(FailureCode::Failed, text))
        }
    };
    still(row.state)?;
    let followed = followed(engine, &said, &row, stdin, stream);
    let of = Of::Container(row.id.clone());
    let work = async {
        let opened = followed.open().await?;
        // podman makes one ready to start anew when somebody attaches that has ended just now.
        match rows::container(&engine.container(&row.id).await?) {
            ended if ended.state == ContainerState::Exited => return Ok(ended.exit_code),
            now if is_active(now.state) => {}
            other => still(other.state)?,
        }
        started(stream, &row.id);
        followed.follow(opened).await
    };
    Ok(ran(until_detached(engine, stream, &of, work).await?))
}

async fn start(
    engine: &Rc<Engine>,
    name: &str,
    attach: bool,
    stdin: bool,
    stream: &SharedStream,
) -> Done {
    if !attach {
        return engine.ask(name, "/start").await;
    }
    let said = engine.container(name).await?;
    let row = rows::container(&said);
    let followed = followed(engine, &said, &row, stdin, stream);
    let of = Of::Container(row.id.clone());
    let work = async {
        let opened = followed.open().await?;
        engine.ask(&row.id, "/start").await?;
        started(stream, &row.id);
        followed.follow(opened).await
    };
    Ok(ran(until_detached(engine, stream, &of, work).await?))
}

/// A container that exists already, to be followed from now on.
fn followed<'a>(
    engine: &'a Engine,
    said: &Value,
    row: &'a ContainerRow,
    stdin: bool,
    stream: &'a SharedStream,
) -> Followed<'a> {
    Followed {
        engine,
        id: &row.id,
        tty: row.tty,
        stdin: stdin && row.stdin,
        restarts: rounds::has_policy(said),
        // A start by hand is the first of its rounds.
        round: match is_active(row.state) {
            true => rounds::round(said),
            false => 0,
        },
        stream,
    }
}

fn ran(end: End) -> Reply {
    match end {
        End::Ended(status) => Reply::Ran { status },
        End::Detached => done(),
    }
}

/// Sends a container's log, and with `follow` what comes until it ends.
async fn logs(engine: &Rc<Engine>, request: &LogsRequest, stream: &SharedStream) -> Done {
    let row = rows::container(&engine.container(&request.name).await?);
    let mut rest = "/logs?stdout=1&stderr=1".to_owned();
    for (name, wanted) in [
        ("follow", request.follow),
        ("timestamps", request.timestamps),
    ] {
        if wanted {
            rest += &format!("&{name}=1");
        }
    }
    if let Some(tail) = request.tail {
        rest += &format!("&tail={tail}");
    }
    for (name, ns) in [("since", request.since_ns), ("until", request.until_ns)] {
        if let Some(ns) = ns {
            let (seconds, fraction) = (ns / 1_000_000_000, ns % 1_000_000_000);
            rest += &format!("&{name}={seconds}.{fraction:09}");
        }
    }
    let answer = engine.client.open(&path(&row.id, &rest)?).await?;
    Output::new(row.tty, stream).put_all(answer).await?;
    Ok(done())
}

/// Which paths of a container differ from its image.
async fn changes(engine: &Engine, name: &str, stream: &SharedStream) -> Done {
    let said = engine.client.get(&path(name, "/changes")?).await?;
    let mut bytes = Vec::new();
    for change in said.as_array().into_iter().flatten() {
        bytes.push(match rows::number(change, "Kind") {
            0 => b'C',
            1 => b'A',
            _ => b'D',
        });
        let name = text(change, "Path").trim_start_matches('/');
        bytes.extend(name.bytes().filter(|byte| *byte != 0));
        bytes.push(0);
    }
    send(stream, Pipe::Stdout, &bytes).await?;
    Ok(done())
}
