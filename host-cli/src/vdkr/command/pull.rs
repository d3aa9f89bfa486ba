//! `vdkr pull`: an image from a registry into the machine.

use std::cell::RefCell;

use vdkr_core::channel::message::{PullRequest, Pulled, Reply, Request};

use super::wrong_reply;
use crate::{
    out,
    progress::Mode,
    vdkr::{
        args::PullArgs,
        error::Result,
        layers,
        news::News,
        registry,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
    vm::channel::Incoming,
};

/// Pulls, and prints the name under which the image is stored.
pub async fn run(settings: &Settings, args: &PullArgs) -> Result<u8> {
    registry::check_name(&args.name)?;
    let request = PullRequest {
        reference: registry::translate_name(&args.name),
        settings: registry::for_request(settings)?,
        platform: args.platform.clone(),
    };
    let pulled = with_session(settings, "vdkr pull", async |session| {
        let mode = if args.quiet {
            Mode::None
        } else {
            settings.global.progress
        };
        let mut news = News::new(mode, settings.verbose);
        pull(session, settings, request, &mut news).await
    })
    .await?;
    if !args.quiet && settings.global.progress != Mode::None {
        eprintln!("Digest: {}", pulled.digest);
    }
    out!("{}", pulled.name);
    Ok(0)
}

/// Pulls in the place that the user wants, or where it can be done.
async fn pull(
    session: &mut Session,
    settings: &Settings,
    request: PullRequest,
    news: &mut News,
) -> Result<Pulled> {
    if layers::pulls_here(settings) {
        let shown = RefCell::new(&mut *news);
        if let Some(pulled) = layers::pull(session, settings, &request, &shown).await? {
            return Ok(pulled);
        }
    }
    let request = Request::Pull(request);
    let done = interruptible(async {
        let mut call = session.connection.call(&request).await?;
        loop {
            match call.next().await {
                Ok(Incoming::Event(event)) => news.show(&event),
                Ok(Incoming::Data(pipe, bytes)) => {
                    call.sender().consumed(pipe, bytes.len()).await?;
                }
                Ok(Incoming::Done(done)) => return Ok(Ok(done)),
                Err(error) => return Ok(Err(error)),
            }
        }
    })
    .await?;
    match session.answer(done).await? {
        Reply::Pulled(pulled) => Ok(pulled),
        other => Err(wrong_reply(&other)),
    }
}
