//! Requests about containers, with those of an engine.

use std::{rc::Rc, time::Duration};

use serde_json::Value;
use tokio::time::timeout;
use vdkr_core::{
    channel::{
        Pipe,
        message::{
            ContainerReply, ContainerRequest, ContainerState, Done, Event, Failure, FailureCode,
            LogsRequest, Reply,
        },
    },
    container::signal::KILL,
    engine::rows::{self, text, texts},
};

use super::{
    Engine,
    client::with_query,
    copy, done, exec, path,
    streams::{End, Of, Output, carry, send},
};
use crate::{
    channel::stream::SharedStream,
    machine,
    request::{cancelled, unknown},
};

/// How long a container has that is stopped with a signal of the request's, unless it says so.
const STOP: Duration = Duration::from_secs(10);

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
        ContainerRequest::Exec(request) => exec::exec(engine, &request, stream).await,
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
        ContainerRequest::Wait { name } => tokio::select! {
            status = engine.wait(&name) => Ok(Reply::Ran { status: status? }),
            () = stream.cancelled().cancelled() => Err(cancelled()),
        },
        ContainerRequest::Unknown => Err(unknown()),
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
    engine.ask(name, &format!("/kill?signal={signal}")).await?;
    let patience = match patience {
        None => Some(STOP),
        Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
    };
    let ended = match patience {
        None => engine.wait(name).await.is_ok(),
        Some(patience) => timeout(patience, engine.wait(name)).await.is_ok(),
    };
    if !ended {
        // It may have ended just now.
        let _ = engine.ask(name, &format!("/kill?signal={KILL}")).await;
        engine.wait(name).await?;
    }
    Ok(done())
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
    if names.is_empty() {
        let listed = engine.client.get("/containers/json").await?;
        let listed = listed.as_array().into_iter().flatten();
        names = listed.map(|one| text(one, "Id").to_owned()).collect();
    }
    let mut samples = Vec::new();
    for name in &names {
        let described = engine.container(name).await?;
        let rest = "/stats?stream=0&one-shot=1";
        let said = engine.client.get(&path(name, rest)?).await?;
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
    let row = rows::container(&engine.container(name).await?);
    if row.state != ContainerState::Running {
        let text = format!("container {name} does not run: it is {}", row.state.name());
        return Err(Failure::new(FailureCode::Failed, text));
    }
    let raw = engine.attach(&row.id, stdin && row.stdin).await?;
    stream.event(&Event::Started {
        pid: 0,
        container: row.id.clone(),
    });
    let of = Of::Container(row.id.clone());
    match carry(engine, raw, row.tty, stdin && row.stdin, stream, &of).await? {
        End::Over => Ok(Reply::Ran {
            status: engine.wait(&row.id).await?,
        }),
        End::Detached => Ok(done()),
    }
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
    let row = rows::container(&engine.container(name).await?);
    let stdin = stdin && row.stdin;
    let raw = engine.attach(&row.id, stdin).await?;
    engine.ask(&row.id, "/start").await?;
    stream.event(&Event::Started {
        pid: 0,
        container: row.id.clone(),
    });
    let of = Of::Container(row.id.clone());
    match carry(engine, raw, row.tty, stdin, stream, &of).await? {
        End::Over => Ok(Reply::Ran {
            status: engine.wait(&row.id).await?,
        }),
        End::Detached => Ok(done()),
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
    let cancel = stream.cancelled().clone();
    let sent = async {
        let answer = engine.client.open(&path(&row.id, &rest)?).await?;
        Output::new(row.tty, stream).put_all(answer).await
    };
    tokio::select! {
        sent = sent => sent.map(|()| done()),
        () = cancel.cancelled() => Err(cancelled()),
    }
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
