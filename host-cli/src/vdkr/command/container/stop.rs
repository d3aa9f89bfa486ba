//! `vdkr stop`: containers stopped by their stop signal, and after a while by KILL.

use std::{io, sync::Arc};

use tokio::sync::Semaphore;
use vdkr_core::channel::message::{ContainerRequest, Request};

use super::{expect_done, outcome, read_signal};
use crate::{
    exit::Exit,
    out_line,
    vdkr::{
        container_args::StopArgs,
        error::{Error, Result},
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Requests of one command that are under way at once at most.
const AT_ONCE: usize = 16;

/// Stops all of them side by side and prints their names.
pub async fn run(settings: &Settings, args: &StopArgs) -> Result<u8> {
    let signal = args.signal.as_deref().map(read_signal).transpose()?;
    let outcomes = with_session(settings, "vdkr stop", async |session| {
        each_at_once(session, &args.containers, |name| ContainerRequest::Stop {
            name,
            timeout: args.time,
            signal,
        })
        .await
    });
    Ok(Exit::of_several(outcomes.await?).code())
}

/// As [`each_of`](super::each_of), without waiting for one before the next is asked: what takes its time, takes it
/// once. The names are printed in their order.
async fn each_at_once(
    session: &mut Session,
    names: &[String],
    request: impl Fn(String) -> ContainerRequest,
) -> Result<Vec<Exit>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = Vec::new();
    for name in names {
        let (connection, turns) = (session.connection.clone(), Arc::clone(&turns));
        let request = Request::Container(request(name.clone()));
        asked.push(tokio::spawn(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            connection.ask(&request).await
        }));
    }
    let mut outcomes = Vec::new();
    for (name, asked) in names.iter().zip(asked) {
        let done =
            interruptible(async { asked.await.map_err(io::Error::other).map_err(Error::from) });
        let reply = session.answer(done.await?).await;
        outcomes.push(outcome(reply.and_then(expect_done))?);
        if outcomes.last() == Some(&Exit::Done) {
            out_line!("{name}");
        }
    }
    Ok(outcomes)
}
