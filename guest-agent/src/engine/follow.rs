//! A container as one sees it who is attached: from its start through all rounds that its policy gives
//! it to its last end.

use std::time::Duration;

use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use vdkr_core::{
    channel::message::{Event, Failure, FailureCode},
    engine::{
        EngineKind,
        rounds::{Outcome, outcome},
    },
};

use super::{
    Engine,
    client::{Answer, Raw, with_query},
    path,
    streams::{Output, carry, now_ms},
};
use crate::channel::stream::SharedStream;

/// How long an engine has to say that it waits for an end. One that says it only then does without.
const HEARD: Duration = Duration::from_secs(5);
/// The time between two looks at a container whose streams have ended, at first and at last.
pub(super) const LOOKS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// How long podman has to start a container again: it does not say that it is about to.
pub(super) const GRACE: Duration = Duration::from_secs(3);
/// How long the status of a container may take that has gone.
const LATE: Duration = Duration::from_secs(5);
/// What docker's engine is told to be the keys that detach: the host hears them itself, and these are
/// nobody's. Without any, docker's own hold.
pub(super) const NO_KEYS: &str = "ctrl-^,ctrl-_,ctrl-^,ctrl-@,ctrl-^,ctrl-_";

/// A container to be followed.
pub(super) struct Followed<'a> {
    pub(super) engine: &'a Engine,
    /// Its id.
    pub(super) id: &'a str,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    /// Whether the engine may start it again by itself.
    pub(super) restarts: bool,
    /// The round that it is in, or begins.
    pub(super) round: u64,
    pub(super) stream: &'a SharedStream,
}

/// What is open before a container starts, so that nothing of it is missed.
pub(super) struct Opened {
    raw: Raw,
    /// The answer that has its status, from an engine that waits from then on.
    ended: Option<Answer>,
}

impl Followed<'_> {
    /// Joins it.
    pub(super) async fn open(&self) -> Result<Opened, Failure> {
        // podman says that it waits before it does, and may miss an end.
        let ended = match self.engine.kind() {
            EngineKind::Podman => None,
            _ => self.waited("/wait?condition=next-exit").await,
        };
        let raw = self.engine.attach(self.id, self.stdin).await?;
        Ok(Opened { raw, ended })
    }

    /// An answer that has the status later. One who gets none looks for the end.
    async fn waited(&self, rest: &str) -> Option<Answer> {
        let target = path(self.id, rest).ok()?;
        let asked = timeout(HEARD, self.engine.client.open_post(&target));
        asked.await.ok()?.ok()
    }

    /// Shows it until its last end; gives the status.
    pub(super) async fn follow(&self, opened: Opened) -> Result<i32, Failure> {
        let ended = match opened.ended {
            Some(answer) => Some(answer),
            // It runs now, and podman takes more time for removing it than for this.
            None => self.waited("/wait").await,
        };
        let begun_ms = now_ms();
        let heard_ms = carry(opened.raw, self.tty, self.stdin, self.stream).await?;
        let ended = async { status(&ended?.document().await.ok()?) };
        tokio::pin!(ended);
        let (mut heard, mut told) = (false, None);
        let (mut round, mut pause) = (self.round, LOOKS.0);
        let (mut until, mut shown_ms) = (None, self.shown(heard_ms, begun_ms));
        loop {
            tokio::select! {
                status = &mut ended, if !heard => {
                    (heard, told) = (true, status);
                    if let (Some(status), false) = (told, self.restarts) {
                        return Ok(status);
                    }
                }
                () = sleep(pause) => pause = (pause * 2).min(LOOKS.1),
            }
            let said = match self.engine.container(self.id).await {
                Ok(said) => said,
                // It went with its end.
                Err(failure) if failure.code == FailureCode::NotFound => {
                    if !heard {
                        told = timeout(LATE, &mut ended).await.ok().flatten();
                    }
                    return told.ok_or(failure);
                }
                Err(failure) => return Err(failure),
            };
            match outcome(&said, round) {
                Outcome::Ended(status) => return Ok(status),
                Outcome::MayStart(status) => {
                    let until = *until.get_or_insert_with(|| Instant::now() + GRACE);
                    if self.engine.kind() != EngineKind::Podman || Instant::now() >= until {
                        return Ok(status);
                    }
                    pause = LOOKS.0;
                }
                Outcome::Starting => pause = pause.min(4 * LOOKS.0),
                Outcome::Runs => until = None,
                Outcome::Again {
                    round: later,
                    since_ms,
                    runs,
                } => {
                    // podman goes on with the log for a moment, maybe into the next round. And where one
                    // was missed, its log begins where the last one ended.
                    let is_next = self.engine.kind() == EngineKind::Docker && later == round + 1;
                    let since_ms = if is_next { since_ms } else { shown_ms };
                    let heard_ms = self.show(since_ms, runs).await?;
                    (round, pause, until) = (later, LOOKS.0, None);
                    shown_ms = self.shown(heard_ms, shown_ms);
                }
            }
        }
    }

    /// Shows a later round to its end: from its log, which has all of it, unless it has input as well.
    async fn show(&self, since_ms: u64, runs: bool) -> Result<Option<u64>, Failure> {
        if !self.stdin {
            let (seconds, fraction) = (since_ms / 1000, since_ms % 1000);
            let rest =
                format!("/logs?stdout=1&stderr=1&follow=1&since={seconds}.{fraction:03}000000");
            let log = self.engine.client.open(&path(self.id, &rest)?).await;
            // Not every log can be read.
            if let Ok(answer) = log {
                return Output::new(self.tty, self.stream).put_all(answer).await;
            }
        }
        if runs && let Ok(raw) = self.engine.attach(self.id, self.stdin).await {
            return carry(raw, self.tty, self.stdin, self.stream).await;
        }
        Ok(None)
    }

    /// Up to when all of the log has been shown. podman writes its log before it hands anything on, so
    /// that what came last is older than its coming: by the time that the stream has ended, the next
    /// round may have written already. docker's engine may write later than it hands on.
    fn shown(&self, heard_ms: Option<u64>, before_ms: u64) -> u64 {
        match self.engine.kind() {
            EngineKind::Podman => heard_ms.map_or(before_ms, |ms| ms.saturating_add(1)),
            _ => now_ms(),
        }
    }
}

/// Says that a container runs. Hosts want its id; its process's number is the engine's own affair.
pub(super) fn started(stream: &SharedStream, id: &str) {
    stream.event(&Event::Started {
        pid: 0,
        container: id.to_owned(),
    });
}

/// The status in the answer to a request that waits for an end.
pub(super) fn status(said: &Value) -> Option<i32> {
    let status = said.get("StatusCode").and_then(Value::as_i64);
    status
        .and_then(|status| i32::try_from(status).ok())
        .filter(|status| *status >= 0)
}

impl Engine {
    /// The streams of a container from now on.
    pub(super) async fn attach(&self, name: &str, stdin: bool) -> Result<Raw, Failure> {
        let keys = match self.kind() {
            EngineKind::Podman => "",
            _ => NO_KEYS,
        };
        let mut query = vec![
            ("detachKeys", keys),
            ("stream", "1"),
            ("stdout", "1"),
            ("stderr", "1"),
        ];
        if stdin {
            query.push(("stdin", "1"));
        }
        let target = with_query(&path(name, "/attach")?, &query);
        self.client.hijack(&target, None).await
    }

    /// Waits until a container does not run, and gives its status.
    pub(super) async fn wait(&self, name: &str) -> Result<i32, Failure> {
        let said = self.client.post(&path(name, "/wait")?, None).await?;
        Ok(status(&said).unwrap_or(vdkr_core::engine::NOT_CREATED))
    }
}
