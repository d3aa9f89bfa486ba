//! `vdkr tag`: one more name for an image.

use vdkr_core::{
    channel::message::{Reply, Request},
    reference::Reference,
};

use super::wrong_reply;
use crate::vdkr::{
    error::{Error, Result},
    image_args::TagArgs,
    names, registry,
    session::with_session,
    settings::Settings,
};

/// Checks both names and asks the agent.
pub async fn run(settings: &Settings, args: &TagArgs) -> Result<u8> {
    registry::check_name(&args.source)?;
    let target = Reference::parse(&args.target)
        .map_err(|error| Error::usage(format!("{:?}: {error}", args.target)))?;
    if target.digest().is_some() {
        return Err(Error::usage(format!(
            "{:?} has a digest; give a name and a tag",
            args.target
        )));
    }
    let reply = with_session(settings, "vdkr tag", async |session| {
        let request = Request::Tag {
            source: names::for_agent(session, settings, &args.source).await?,
            target: registry::as_stored(session, &args.target),
        };
        session.ask(&request).await
    })
    .await?;
    match reply {
        Reply::Tagged => Ok(0),
        other => Err(wrong_reply(&other)),
    }
}
