//! Requests about containers: one file each, where there is more to do than to pass it on.

use std::rc::Rc;

use vdkr_core::channel::message::{
    ContainerReply, ContainerRequest, Done, Failure, FailureCode, Reply,
};

use super::Agent;
use crate::{
    channel::stream::SharedStream,
    container::{freeze, life},
    run::spec::FilesJob,
};

pub mod attach;
pub mod copy;
pub mod exec;
pub mod inspect;
pub mod list;
pub mod logs;
pub mod start;
pub mod stats;
pub mod top;

/// Does what a request about containers asks for.
pub async fn carry_out(
    agent: &Rc<Agent>,
    request: ContainerRequest,
    stream: &SharedStream,
) -> Done {
    // Without a state disk there is nothing to say about containers but that.
    agent.store()?;
    let find = |name: &str| agent.book().find(name);
    match request {
        ContainerRequest::Attach { name, stdin } => attach::join(agent, &name, stdin, stream).await,
        ContainerRequest::Changes { name } => {
            copy::files(agent, &name, FilesJob::ListChanges, stream).await
        }
        ContainerRequest::Commit { name, pause } => {
            let entry = find(&name)?;
            let _frozen = match pause {
                true => freeze::for_a_while(&entry)?,
                false => None,
            };
            copy::files(agent, &name, FilesJob::PackChanges, stream).await
        }
        ContainerRequest::CopyIn { name, path } => {
            copy::files(agent, &name, FilesJob::Unpack { path }, stream).await
        }
        ContainerRequest::CopyOut {
            name,
            path,
            entry,
            follow,
        } => {
            let job = FilesJob::Pack {
                path,
                entry,
                follow,
            };
            copy::files(agent, &name, job, stream).await
        }
        ContainerRequest::Path { name, path, follow } => {
            copy::files(agent, &name, FilesJob::Look { path, follow }, stream).await
        }
        ContainerRequest::Export { name } => {
            copy::files(agent, &name, FilesJob::PackRoot, stream).await
        }
        ContainerRequest::Exec(request) => exec::exec(agent, &request, stream).await,
        ContainerRequest::Inspect { name } => inspect::inspect(agent, &name),
        ContainerRequest::Kill { name, signal } => {
            life::kill(&*find(&name)?, signal).await.map(|()| done())
        }
        ContainerRequest::List => Ok(list::list(agent)),
        ContainerRequest::Logs(request) => logs::logs(agent, &request, stream).await,
        ContainerRequest::Pause { name } => freeze::freeze(&*find(&name)?, true).map(|()| done()),
        ContainerRequest::Place { name, address } => {
            life::place_at(&*find(&name)?, address).map(|()| done())
        }
        ContainerRequest::Remove {
            name,
            force,
            volumes,
        } => life::remove(agent, &find(&name)?, force, volumes)
            .await
            .map(|()| done()),
        ContainerRequest::Rename { name, new_name } => agent
            .book()
            .rename(&*find(&name)?, &new_name)
            .map(|()| done()),
        ContainerRequest::Restart { name, timeout } => {
            let entry = find(&name)?;
            life::stop(&entry, timeout, None).await;
            life::start(agent, &entry).await?;
            start::warn_of_ports(&entry, stream);
            Ok(done())
        }
        ContainerRequest::Resume => {
            life::resume(agent).await;
            Ok(done())
        }
        ContainerRequest::Start {
            name,
            attach,
            stdin,
        } => start::start(agent, &name, attach, stdin, stream).await,
        ContainerRequest::Stats { names } => stats::stats(agent, &names),
        ContainerRequest::Stop {
            name,
            timeout,
            signal,
        } => {
            life::stop(&find(&name)?, timeout, signal).await;
            Ok(done())
        }
        ContainerRequest::Top { name } => top::top(agent, &name),
        ContainerRequest::Unpause { name } => {
            freeze::freeze(&*find(&name)?, false).map(|()| done())
        }
        ContainerRequest::Wait { name } => {
            let entry = find(&name)?;
            tokio::select! {
                () = entry.ended() => Ok(ran(&entry)),
                () = stream.cancelled().cancelled() => Err(super::cancelled()),
            }
        }
        ContainerRequest::Unknown => Err(Failure::new(
            FailureCode::Unsupported,
            "the agent does not know this request about containers",
        )
        .with_hint("use a host program and an agent of the same release")),
    }
}

fn done() -> Reply {
    Reply::Container(ContainerReply::Done)
}

/// The answer at a container's end.
fn ran(entry: &crate::container::Entry) -> Reply {
    Reply::Ran {
        status: entry.record.borrow().status.exit_code,
    }
}
