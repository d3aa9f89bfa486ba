//! `vdkr start`: containers that exist, again.

use std::io::{self, IsTerminal as _};

use vdkr_core::channel::message::{ContainerReply, ContainerRequest, Event, Reply, Request};

use super::{find, memres, outcome};
use crate::{
    exit::Exit,
    out,
    vdkr::{
        attach::{FAILED, Terms, attach},
        command::wrong_reply,
        container_args::StartArgs,
        error::{Error, Result},
        granted, layers,
        news::News,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
    vm::channel::Incoming,
};

/// Starts one after the other and prints their names, or stays at the streams of one.
pub async fn run(settings: &Settings, args: &StartArgs) -> Result<u8> {
    let attached = args.attach || args.interactive;
    if attached && args.containers.len() > 1 {
        return Err(Error::usage(
            "only one container at a time can be attached to",
        ));
    }
    if !attached {
        memres::ensure(settings).await?;
    }
    with_session(settings, "vdkr start", async |session| {
        if let ([name], true) = (&args.containers[..], attached) {
            return stay(session, settings, args, name).await;
        }
        let mut outcomes = Vec::new();
        for name in &args.containers {
            match outcome(start_one(session, settings, name).await)? {
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

/// Starts one that exists, with its layers and with what it was given when it was made.
pub(super) async fn start_one(
    session: &mut Session,
    settings: &Settings,
    name: &str,
) -> Result<()> {
    let row = find(session, name).await?;
    let id = std::slice::from_ref(&row.id);
    layers::prepare_containers(session, settings, id).await?;
    let published = granted::give_again(session, settings, &row).await?;
    let news = News::new(settings.global.progress, settings.verbose);
    begin(session, name, news).await?;
    if published {
        session.adopt_ports(&row.id).await?;
    }
    Ok(())
}

async fn begin(session: &mut Session, name: &str, mut news: News) -> Result<()> {
    let request = Request::Container(ContainerRequest::Start {
        name: name.to_owned(),
        attach: false,
        stdin: false,
    });
    let mut call = match session.connection.call(&request).await {
        Ok(call) => call,
        Err(error) => return Err(session.explain(error).await),
    };
    let mut told = false;
    let work = async {
        loop {
            match call.next().await {
                Ok(Incoming::Event(event)) => {
                    told |= matches!(event, Event::Log { .. });
                    news.show(&event);
                }
                Ok(Incoming::Data(..)) => {}
                Ok(Incoming::Done(done)) => return Ok(Ok(done)),
                Err(error) => return Ok(Err(error)),
            }
        }
    };
    let done = interruptible(work).await?;
    match session.answer(done).await? {
        Reply::Container(ContainerReply::Done) => Ok(()),
        Reply::Ran { status } => {
            let text = format!("container {name} does not start (status {status})");
            Err(Error::new(Exit::Failed, text))
        }
        other => Err(wrong_reply(&other)),
    }
}

async fn stay(
    session: &mut Session,
    settings: &Settings,
    args: &StartArgs,
    name: &str,
) -> Result<u8> {
    let row = find(session, name).await?;
    let interactive = args.interactive && row.stdin;
    if row.tty && interactive && !io::stdin().is_terminal() {
        return Err(Error::usage("the input device is not a TTY"));
    }
    let id = std::slice::from_ref(&row.id);
    layers::prepare_containers(session, settings, id).await?;
    let published = granted::give_again(session, settings, &row).await?;
    let request = Request::Container(ContainerRequest::Start {
        name: row.id,
        attach: true,
        stdin: interactive,
    });
    let terms = Terms {
        tty: row.tty,
        interactive,
        sig_proxy: true,
        detach_keys: Terms::keys(args.detach_keys.as_deref())?,
    };
    let news = News::new(settings.global.progress, settings.verbose);
    let news = news.with_ports(published.then(|| session.adoption()).flatten());
    match attach(session, &request, terms, news).await {
        Err(error) if error.exit() == Exit::Failed && error.signalled().is_none() => {
            crate::vdkr::words::say(&error.to_string());
            Ok(FAILED)
        }
        other => other,
    }
}
