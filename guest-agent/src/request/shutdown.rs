//! `shutdown`: the end of the agent, and of the machine when it is the agent's own.

use std::time::{Duration, Instant};

use vdkr_core::channel::message::{Done, Reply};

use super::{Agent, STOP_TIME};

const PAUSE: Duration = Duration::from_millis(2);

/// Ends every other request and makes what the store has durable. The agent itself ends once the
/// answer is on its way.
pub async fn shutdown(agent: &Agent) -> Done {
    agent.stopping.cancel();
    let deadline = Instant::now() + STOP_TIME;
    // This request is one of the tasks.
    while agent.tasks.len() > 1 && Instant::now() < deadline {
        tokio::time::sleep(PAUSE).await;
    }
    let _ = tokio::task::spawn_blocking(nix::unistd::sync).await;
    Ok(Reply::Bye)
}
