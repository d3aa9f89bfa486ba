//! `vdkr rmi`: removes names, and what nothing names any more.

use vdkr_core::channel::message::{Removed, Reply, Request};

use super::wrong_reply;
use crate::{
    exit::Exit,
    out,
    vdkr::{
        error::Result,
        image_args::RemoveArgs,
        layers,
        session::{say, with_session},
        settings::Settings,
    },
};

/// Removes one after the other; one that cannot be removed does not stop the others.
pub async fn run(settings: &Settings, args: &RemoveArgs) -> Result<u8> {
    let outcomes = with_session(settings, "vdkr rmi", async |session| {
        let mut outcomes = Vec::new();
        for name in &args.names {
            let request = Request::Remove {
                names: vec![name.clone()],
                force: args.force,
            };
            match session.ask(&request).await {
                Ok(Reply::Removed { removed }) => {
                    for step in removed {
                        match step {
                            Removed::Untagged(name) => out!("Untagged: {name}"),
                            Removed::Deleted(digest) => out!("Deleted: {digest}"),
                        }
                    }
                    outcomes.push(Exit::Done);
                }
                Ok(other) => return Err(wrong_reply(&other)),
                Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
                    return Err(error);
                }
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit().of_removal(args.force));
                }
            }
        }
        layers::settle(session, settings).await?;
        Ok(outcomes)
    })
    .await?;
    Ok(Exit::of_several(outcomes).code())
}
