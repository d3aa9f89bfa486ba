//! `vdkr inspect`: everything about containers and images, as JSON or in the words of a template.

use vdkr_core::channel::message::{ContainerRequest, Reply, Request};

use super::wrong_reply;
use crate::{
    exit::Exit,
    vdkr::{
        error::{Error, Result},
        format::Format,
        image_args::InspectArgs,
        session::{Session, say, with_session},
        settings::Settings,
    },
};

/// Describes what is found; what is not gives a sentence each, and the exit status.
pub async fn run(settings: &Settings, args: &InspectArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    if let Some(kind) = args.kind.as_deref()
        && !["container", "image"].contains(&kind)
    {
        return Err(Error::usage(format!(
            "objects of type {kind:?} cannot be inspected; only container and image"
        )));
    }
    let (documents, outcomes) = with_session(settings, "vdkr inspect", async |session| {
        let (mut found, mut outcomes) = (Vec::new(), Vec::new());
        for name in &args.names {
            // One by one, so that a missing one does not hide the others.
            match describe(session, name, args.kind.as_deref()).await {
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

/// Asks for a container of that name, and when there is none for an image.
async fn describe(session: &mut Session, name: &str, kind: Option<&str>) -> Result<Reply> {
    if kind != Some("image") {
        let name = name.to_owned();
        let request = Request::Container(ContainerRequest::Inspect { name });
        match session.ask(&request).await {
            Err(error) if kind.is_none() && error.exit() == Exit::NotFound => {}
            other => return other,
        }
    }
    let names = vec![name.to_owned()];
    session.ask(&Request::Inspect { names }).await
}
