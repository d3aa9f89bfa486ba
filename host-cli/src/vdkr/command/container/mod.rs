//! Commands about containers: one file each.

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
        session::{Session, with_session},
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
pub mod kill;
pub mod logs;
pub mod pause;
pub mod prune;
pub mod ps;
pub mod receive;
pub mod rename;
pub mod restart;
pub mod rm;
pub mod start;
pub mod stats;
pub mod stop;
pub mod top;
pub mod unpause;
pub mod wait;

/// Does what a command about containers says.
pub async fn run(settings: &Settings, command: ContainerCommand) -> Result<u8> {
    match command {
        ContainerCommand::Attach(args) => attach::run(settings, &args).await,
        ContainerCommand::Commit(args) => commit::run(settings, &args).await,
        ContainerCommand::Cp(args) => cp::run(settings, &args).await,
        ContainerCommand::Diff(args) => diff::run(settings, &args).await,
        ContainerCommand::Exec(args) => exec::run(settings, args).await,
        ContainerCommand::Export(args) => export::run(settings, &args).await,
        ContainerCommand::Kill(args) => kill::run(settings, &args).await,
        ContainerCommand::Logs(args) => logs::run(settings, &args).await,
        ContainerCommand::Pause(args) => pause::run(settings, &args).await,
        ContainerCommand::Ps(args) => ps::run(settings, &args).await,
        ContainerCommand::Rename(args) => rename::run(settings, &args).await,
        ContainerCommand::Restart(args) => restart::run(settings, &args).await,
        ContainerCommand::Rm(args) => rm::run(settings, &args).await,
        ContainerCommand::Start(args) => start::run(settings, &args).await,
        ContainerCommand::Stats(args) => stats::run(settings, &args).await,
        ContainerCommand::Stop(args) => stop::run(settings, &args).await,
        ContainerCommand::Top(args) => top::run(settings, &args).await,
        ContainerCommand::Unpause(args) => unpause::run(settings, &args).await,
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
