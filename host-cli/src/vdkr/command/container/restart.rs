//! `vdkr restart`: containers stopped and started.

use std::time::Duration;

use tokio::time::{sleep, timeout};
use vdkr_core::channel::message::ContainerRequest;

use super::{ask, find, memres, outcome, start::start_one};
use crate::{
    exit::Exit,
    out,
    vdkr::{
        container_args::StopArgs,
        error::{Error, Result},
        granted::has_ports,
        session::with_session,
        settings::Settings,
    },
};

/// How long ports may take to close behind a container that has ended, and how often that is looked at.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// Restarts one after the other and prints their names. Each is stopped before it is started, so that
/// its ports are free to be published again.
pub async fn run(settings: &Settings, args: &StopArgs) -> Result<u8> {
    if args.signal.is_some() {
        return Err(Error::usage(
            "restart sends the container's own stop signal; use stop -s, then start",
        ));
    }
    memres::ensure(settings).await?;
    with_session(settings, "vdkr restart", async |session| {
        let mut outcomes = Vec::new();
        for name in &args.containers {
            let restarted = async {
                let row = find(session, name).await?;
                let id = row.id;
                let request = ContainerRequest::Stop {
                    name: id.clone(),
                    timeout: args.time,
                    signal: None,
                };
                ask(session, request).await?;
                let closed = async {
                    while has_ports(session, &id).await {
                        sleep(PAUSE).await;
                    }
                };
                // The ports that stay open are told of when they are published again.
                let _ = timeout(PATIENCE, closed).await;
                start_one(session, settings, &id).await
            };
            match outcome(restarted.await)? {
                Exit::Done => {
                    out!("{name}");
                    outcomes.push(Exit::Done);
                }
                other => outcomes.push(other),
            }
        }
        Ok(Exit::of_several(outcomes).code())
    })
    .await
}
