//! Commands about containers: one file each.

use std::{io, sync::Arc};

use tokio::sync::Semaphore;
use vdkr_core::{
    channel::message::{ContainerReply, ContainerRequest, ContainerRow, Reply, Request},
    container::signal,
};

use super::{memres, wrong_reply};
use crate::{
    exit::Exit,
    out_line,
    vdkr::{
        container_args::ContainerCommand,
        error::{Error, Result},
        granted,
        session::{Session, interruptible, with_session},
        settings::Settings,
        words::say,
    },
};

pub mod attach;
pub mod commit;
pub mod cp;
pub mod diff;
pub mod exec;
pub mod export;
pub mod logs;
pub mod prune;
pub mod ps;
pub mod receive;
pub mod restart;
pub mod start;
pub mod stats;
pub mod top;
pub mod wait;

/// Requests of one command that are under way at once at most.
const AT_ONCE: usize = 16;

/// Does what a command about containers says.
pub async fn run(settings: &Settings, command: ContainerCommand) -> Result<u8> {
    match command {
        ContainerCommand::Attach(args) => attach::run(settings, &args).await,
        ContainerCommand::Commit(args) => commit::run(settings, &args).await,
        ContainerCommand::Cp(args) => cp::run(settings, &args).await,
        ContainerCommand::Diff(args) => diff::run(settings, &args).await,
        ContainerCommand::Exec(args) => exec::run(settings, args).await,
        ContainerCommand::Export(args) => export::run(settings, &args).await,
        ContainerCommand::Kill(args) => {
            let signal = read_signal(&args.signal)?;
            each(settings, "vdkr kill", &args.containers, |name| {
                ContainerRequest::Kill { name, signal }
            })
            .await
        }
        ContainerCommand::Logs(args) => logs::run(settings, &args).await,
        ContainerCommand::Pause(args) => {
            each(settings, "vdkr pause", &args.containers, |name| {
                ContainerRequest::Pause { name }
            })
            .await
        }
        ContainerCommand::Ps(args) => ps::run(settings, &args).await,
        ContainerCommand::Rename(args) => {
            with_session(settings, "vdkr rename", async |session| {
                let request = ContainerRequest::Rename {
                    name: args.container.clone(),
                    new_name: args.new_name.clone(),
                };
                ask(session, request).await
            })
            .await?;
            Ok(0)
        }
        ContainerCommand::Restart(args) => restart::run(settings, &args).await,
        ContainerCommand::Rm(args) => {
            let outcomes = with_session(settings, "vdkr rm", async |session| {
                let outcomes =
                    each_of(session, &args.containers, |name| ContainerRequest::Remove {
                        name,
                        force: args.force,
                        volumes: args.volumes,
                    })
                    .await?;
                granted::forget_gone(session, settings).await?;
                Ok(outcomes)
            });
            let outcomes = outcomes.await?.into_iter();
            Ok(Exit::of_several(outcomes.map(|outcome| outcome.of_removal(args.force))).code())
        }
        ContainerCommand::Start(args) => start::run(settings, &args).await,
        ContainerCommand::Stats(args) => stats::run(settings, &args).await,
        ContainerCommand::Stop(args) => {
            let signal = args.signal.as_deref().map(read_signal).transpose()?;
            let outcomes = with_session(settings, "vdkr stop", async |session| {
                each_at_once(session, &args.containers, |name| ContainerRequest::Stop {
                    name,
                    timeout: args.time,
                    signal,
                })
                .await
            });
            Ok(Exit::of_several(outcomes.await?).code())
        }
        ContainerCommand::Top(args) => top::run(settings, &args).await,
        ContainerCommand::Unpause(args) => {
            each(settings, "vdkr unpause", &args.containers, |name| {
                ContainerRequest::Unpause { name }
            })
            .await
        }
        ContainerCommand::Wait(args) => wait::run(settings, &args).await,
    }
}

fn read_signal(text: &str) -> Result<u8> {
    signal::parse(text).map_err(|error| Error::usage(error.to_string()))
}

/// Does the same to one container after the other and prints their names; one that cannot be done
/// does not stop the others.
async fn each(
    settings: &Settings,
    purpose: &str,
    names: &[String],
    request: impl Fn(String) -> ContainerRequest,
) -> Result<u8> {
    let outcomes = with_session(settings, purpose, async |session| {
        each_of(session, names, request).await
    });
    Ok(Exit::of_several(outcomes.await?).code())
}

async fn each_of(
    session: &mut Session,
    names: &[String],
    request: impl Fn(String) -> ContainerRequest,
) -> Result<Vec<Exit>> {
    let mut outcomes = Vec::new();
    for name in names {
        let asked = ask(session, request(name.clone())).await;
        outcomes.push(outcome(asked)?);
        if outcomes.last() == Some(&Exit::Done) {
            out_line!("{name}");
        }
    }
    Ok(outcomes)
}

/// As [`each_of`], without waiting for one before the next is asked: what takes its time, takes it
/// once. The names are printed in their order.
async fn each_at_once(
    session: &mut Session,
    names: &[String],
    request: impl Fn(String) -> ContainerRequest,
) -> Result<Vec<Exit>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut asked = Vec::new();
    for name in names {
        let (connection, turns) = (session.connection.clone(), Arc::clone(&turns));
        let request = Request::Container(request(name.clone()));
        asked.push(tokio::spawn(async move {
            // Never closed.
            let _turn = turns.acquire().await;
            connection.ask(&request).await
        }));
    }
    let mut outcomes = Vec::new();
    for (name, asked) in names.iter().zip(asked) {
        let done =
            interruptible(async { asked.await.map_err(io::Error::other).map_err(Error::from) });
        let reply = session.answer(done.await?).await;
        outcomes.push(outcome(reply.and_then(expect_done))?);
        if outcomes.last() == Some(&Exit::Done) {
            out_line!("{name}");
        }
    }
    Ok(outcomes)
}

/// What became of one of several; an error that is all of theirs ends the command.
fn outcome<T>(result: Result<T>) -> Result<Exit> {
    match result {
        Ok(_) => Ok(Exit::Done),
        Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
            Err(error)
        }
        Err(error) => {
            say(&error.to_string());
            Ok(error.exit())
        }
    }
}

/// Asks for something that is done or not.
async fn ask(session: &mut Session, request: ContainerRequest) -> Result<()> {
    expect_done(session.ask(&Request::Container(request)).await?)
}

fn expect_done(reply: Reply) -> Result<()> {
    match reply {
        Reply::Container(ContainerReply::Done) => Ok(()),
        other => Err(wrong_reply(&other)),
    }
}

/// Every container.
pub(super) async fn list(session: &mut Session) -> Result<Vec<ContainerRow>> {
    match session
        .ask(&Request::Container(ContainerRequest::List))
        .await?
    {
        Reply::Container(ContainerReply::List { containers }) => Ok(containers),
        other => Err(wrong_reply(&other)),
    }
}

/// The container that a name or the start of an id means.
async fn find(session: &mut Session, wanted: &str) -> Result<ContainerRow> {
    Ok(named(&list(session).await?, wanted)?.clone())
}

/// As [`find`], among containers that are known.
pub(super) fn named<'a>(rows: &'a [ContainerRow], wanted: &str) -> Result<&'a ContainerRow> {
    let names = rows.iter().map(|row| (row.id.as_str(), row.name.as_str()));
    let id = vdkr_core::container::name::find(wanted, names)
        .map_err(|error| Error::new(Exit::NotFound, error.to_string()))?;
    rows.iter()
        .find(|row| row.id == id)
        .ok_or_else(|| Error::new(Exit::NotFound, format!("no such container: {wanted}")))
}
