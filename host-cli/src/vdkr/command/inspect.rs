//! `vdkr inspect`: everything about images, as JSON or in the words of a template.

use vdkr_core::channel::message::{Reply, Request};

use super::wrong_reply;
use crate::{
    exit::Exit,
    vdkr::{
        error::{Error, Result},
        format::Format,
        image_args::InspectArgs,
        session::{say, with_session},
        settings::Settings,
    },
};

/// Describes what is found; what is not gives a sentence each, and the exit status.
pub async fn run(settings: &Settings, args: &InspectArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
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
    match format {
        Format::Template { .. } => {
            for document in &documents {
                crate::output::write(format_args!("{}", format.object(document)?));
            }
        }
        _ => crate::output::write(format_args!("{}", format.object(&documents.into())?)),
    }
    Ok(Exit::of_several(outcomes).code())
}
