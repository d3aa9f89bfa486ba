//! `usage`: how much room images take.

use vdkr_core::channel::message::{Done, Reply, Usage};

use super::Agent;

/// Adds up what the store has.
pub fn usage(agent: &Agent) -> Done {
    let (state_total, state_available) = super::info::space(agent.state_dir());
    Ok(Reply::Usage(Usage {
        state_total,
        state_available,
        ..agent.store()?.usage()
    }))
}
