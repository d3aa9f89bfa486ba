//! `vdkr wait`: until containers have ended.

use vdkr_core::channel::message::{ContainerRequest, Reply, Request};

use super::outcome;
use crate::{
    exit::Exit,
    out,
    vdkr::{
        command::wrong_reply, container_args::NamesArgs, error::Result, session::with_session,
        settings::Settings,
    },
};

/// Waits for one after the other and prints their statuses.
pub async fn run(settings: &Settings, args: &NamesArgs) -> Result<u8> {
    let outcomes = with_session(settings, "vdkr wait", async |session| {
        let mut outcomes = Vec::new();
        for name in &args.containers {
            let request = Request::Container(ContainerRequest::Wait { name: name.clone() });
            let waited = match session.ask(&request).await {
                Ok(Reply::Ran { status }) => Ok(status),
                Ok(other) => Err(wrong_reply(&other)),
                Err(error) => Err(error),
            };
            if let Ok(status) = &waited {
                out!("{status}");
            }
            outcomes.push(outcome(waited)?);
        }
        Ok(outcomes)
    })
    .await?;
    Ok(Exit::of_several(outcomes).code())
}
