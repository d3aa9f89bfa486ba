//! `vdkr inspect`: everything about images, as JSON.

use vdkr_core::channel::message::{Reply, Request};

use super::wrong_reply;
use crate::{
    exit::Exit,
    out,
    vdkr::{
        args::InspectArgs,
        error::{Error, Result},
        session::{say, with_session},
        settings::Settings,
    },
};

/// Describes what is found; what is not gives a sentence each, and the exit status.
pub async fn run(settings: &Settings, args: &InspectArgs) -> Result<u8> {
    if let Some(format) = args.format.as_deref().filter(|&format| format != "json") {
        return Err(Error::usage(format!(
            "format {format:?} is not supported; use json"
        )));
    }
    if let Some(kind) = args.kind.as_deref().filter(|&kind| kind != "image") {
        return Err(Error::usage(format!(
            "objects of type {kind:?} cannot be inspected; only image"
        )));
    }
    let (documents, outcomes) = with_session(settings, "vdkr inspect", async |session| {
        let (mut found, mut outcomes) = (Vec::new(), Vec::new());
        for name in &args.names {
            // One by one, so that a missing one does not hide the others.
            let request = Request::Inspect {
                names: vec![name.clone()],
            };
            match session.ask(&request).await {
                Ok(Reply::Inspected { documents }) => {
                    found.extend(documents);
                    outcomes.push(Exit::Done);
                }
                Ok(other) => return Err(wrong_reply(&other)),
                Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
                    return Err(error);
                }
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit());
                }
            }
        }
        Ok((found, outcomes))
    })
    .await?;
    let text = serde_json::to_string_pretty(&documents)
        .map_err(|error| Error::new(Exit::Failed, error.to_string()))?;
    out!("{text}");
    Ok(Exit::of_several(outcomes).code())
}
