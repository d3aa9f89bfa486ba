//! `exec` with an engine: one more process in a container that runs.

use std::rc::Rc;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::time::sleep;
use vdkr_core::{
    channel::message::{Done, Event, ExecRequest, Failure, LogLevel, Reply},
    container::signal::KILL,
    engine::{NOT_CREATED, rows::text, start_status},
};

use super::{
    Engine, done,
    follow::{LOOKS, NO_KEYS, started},
    path,
    streams::{End, Of, carry, until_detached},
};
use crate::{channel::stream::SharedStream, request::cancelled, run::EXIT_NOT_EXECUTABLE};

/// Runs a process in a container: to its end, or with `detach` until it runs.
pub(super) async fn exec(
    engine: &Rc<Engine>,
    request: &ExecRequest,
    stream: &SharedStream,
) -> Done {
    let attached = !request.detach;
    let stdin = request.stdin && attached;
    let mut wanted = json!({
        "AttachStdin": stdin,
        "AttachStdout": attached,
        "AttachStderr": attached,
        "Tty": request.tty,
        "Cmd": request.args,
        "Env": request.env,
        "Privileged": request.privileged,
        "DetachKeys": NO_KEYS,
    });
    if let Some(fields) = wanted.as_object_mut() {
        for (name, text) in [("WorkingDir", &request.workdir), ("User", &request.user)] {
            if let Some(text) = text {
                fields.insert(name.to_owned(), json!(text));
            }
        }
    }
    let target = path(&request.name, "/exec")?;
    let made = engine.client.post(&target, Some(&wanted)).await?;
    let id = text(&made, "Id").to_owned();
    path(&id, "")?;
    let how = json!({"Detach": request.detach, "Tty": request.tty});
    let target = format!("/exec/{id}/start");
    let not_started = |failure: Failure| not_started(stream, failure);
    if request.detach {
        return match engine.client.post(&target, Some(&how)).await {
            Ok(_) => Ok(done()),
            Err(failure) => not_started(failure),
        };
    }
    let raw = match engine.client.hijack(&target, Some(&how)).await {
        Ok(raw) => raw,
        Err(failure) => return not_started(failure),
    };
    let work = async {
        let told = async {
            let said = engine.exec_said(&id).await;
            started(stream, text(&said, "ContainerID"));
        };
        let ((), carried) = tokio::join!(told, carry(raw, request.tty, stdin, stream));
        carried?;
        Ok(engine.exec_status(&id).await)
    };
    let of = Of::Exec(id.clone());
    let ended = tokio::select! {
        ended = until_detached(engine, stream, &of, work) => ended,
        () = stream.cancelled().cancelled() => Err(cancelled()),
    };
    match ended {
        Ok(End::Ended(status)) => Ok(Reply::Ran { status }),
        Ok(End::Detached) => Ok(done()),
        Err(failure) => {
            engine.signal_exec(&id, KILL).await;
            Err(failure)
        }
    }
}

/// The answer for a process that the engine could not start: as docker, no status of the command's own
/// is one of these by accident.
fn not_started(stream: &SharedStream, failure: Failure) -> Done {
    let status = match start_status(&failure.message) {
        NOT_CREATED if failure.message.contains("OCI runtime") => EXIT_NOT_EXECUTABLE,
        NOT_CREATED => return Err(failure),
        status => status,
    };
    stream.event(&Event::Log {
        level: LogLevel::Warn,
        message: failure.message,
    });
    Ok(Reply::Ran { status })
}

impl Engine {
    /// The status of a process whose streams have ended, once it has ended as well.
    async fn exec_status(&self, id: &str) -> i32 {
        let mut pause = LOOKS.0;
        loop {
            let said = self.exec_said(id).await;
            if said.get("Running").and_then(Value::as_bool) != Some(true) {
                let status = said.get("ExitCode").and_then(Value::as_i64);
                let status = status.and_then(|status| i32::try_from(status).ok());
                return status.unwrap_or(NOT_CREATED);
            }
            sleep(pause).await;
            pause = (pause * 2).min(LOOKS.1);
        }
    }

    async fn exec_said(&self, id: &str) -> Value {
        let said = self.client.get(&format!("/exec/{id}/json")).await;
        said.unwrap_or_default()
    }

    /// Sends a signal to a process that `exec` started: engines have no request for that, but say its
    /// number on this machine.
    pub(super) async fn signal_exec(&self, id: &str, number: u8) {
        let said = self.exec_said(id).await;
        let runs = said.get("Running").and_then(Value::as_bool) == Some(true);
        let pid = said.get("Pid").and_then(Value::as_i64);
        let pid = pid.and_then(|pid| i32::try_from(pid).ok());
        let pid = pid.filter(|pid| *pid > 1 && runs).and_then(Pid::from_raw);
        let signal = Signal::from_named_raw(i32::from(number));
        if let (Some(pid), Some(signal)) = (pid, signal) {
            let _ = kill_process(pid, signal);
        }
    }
}
