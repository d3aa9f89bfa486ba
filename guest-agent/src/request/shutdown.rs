//! `shutdown`: the end of the agent, and of the machine when it is the agent's own.

use std::time::{Duration, Instant};

use vdkr_core::channel::message::{Done, Reply};

use super::{Agent, STOP_TIME};
use crate::boot::state;

const PAUSE: Duration = Duration::from_millis(2);

/// Ends every other request and makes what the store has durable, so that nothing is left to be
/// written. The agent itself ends once the answer is on its way.
pub async fn shutdown(agent: &Agent) -> Done {
    agent.stopping.cancel();
    let deadline = Instant::now() + STOP_TIME;
    // This request is one of the tasks.
    while agent.tasks.len() > 1 && Instant::now() < deadline {
        tokio::time::sleep(PAUSE).await;
    }
    let dir = agent.state_dir().to_owned();
    let own = agent.own_machine;
    let in_memory = agent.report.borrow().state != "disk";
    let settled = tokio::task::spawn_blocking(move || {
        nix::unistd::sync();
        own && (in_memory || state::freeze(&dir))
    });
    Ok(match settled.await {
        Ok(true) => Reply::Settled,
        _ => Reply::Bye,
    })
}
