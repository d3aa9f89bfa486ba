//! `changes`, `commit`, `copy_in`, `copy_out`, `export`, `path`: the files of a container, whether it
//! runs or not.

use std::rc::Rc;

use vdkr_core::channel::message::{
    ContainerReply, Done, Failure, FailureCode, MountSource, MountSpec, PathFacts, PathKind, Reply,
};

use super::{
    Agent, done,
    exec::{Joined, Tasks, clear},
};
use crate::{
    channel::stream::SharedStream,
    container::{
        Entry,
        streams::{Hub, Inlet},
    },
    request::{cancelled, mounts},
    run::{
        Container, Image, Report, RunError, Streams,
        container::{make_directories, root_of},
        files,
        spec::{FilesJob, IdleRoot, Root, Volume},
    },
};

/// Works on the files of a container.
pub async fn files(agent: &Rc<Agent>, name: &str, job: FilesJob, stream: &SharedStream) -> Done {
    let entry = agent.book().find(name)?;
    let looks = matches!(job, FilesJob::Look { .. });
    let reads = matches!(job, FilesJob::Unpack { .. });
    let failed = |error: RunError| Failure::new(FailureCode::Failed, error.to_string());
    // While the overlay of a container that does not run is mounted, it cannot start.
    let mut _gate = None;
    let live = entry.live();
    let started = if let Some(live) = live.as_ref().filter(|_| !job.of_changes()) {
        Container::work_on_files(&Ok(&live.container), job)
    } else {
        if live.is_none() {
            _gate = Some(entry.lock().await);
        }
        if entry.is_removed() {
            let message = format!("no such container: {name}");
            return Err(Failure::new(FailureCode::NotFound, message));
        }
        let volumes = match job.path() {
            Some(path) => mounted(agent, &entry, path)?,
            None => Vec::new(),
        };
        let root = root(agent, &entry)?;
        Container::work_on_files(&Err(IdleRoot { root, volumes }), job)
    };
    let (container, streams) = started.map_err(failed)?;
    let joined = Rc::new(Joined {
        container,
        hub: Hub::default(),
    });
    let status = supervise(&joined, streams, stream, reads).await;
    clear(&joined).await;
    let status = status?;
    if !looks {
        return Ok(done());
    }
    let kind = match status {
        files::NOTHING => None,
        files::DIRECTORY => Some(PathKind::Directory),
        files::FILE => Some(PathKind::File),
        files::LINK => Some(PathKind::Link),
        _ => Some(PathKind::Other),
    };
    Ok(Reply::Container(ContainerReply::Path(PathFacts { kind })))
}

/// The volumes of a container that does not run. What the host shares is there while it runs only.
fn mounted(agent: &Agent, entry: &Entry, path: &str) -> Result<Vec<Volume>, Failure> {
    let specs = entry.record.borrow().request.mounts.clone();
    let shared = |spec: &MountSpec| matches!(spec.source, MountSource::Share { .. });
    let inside = specs
        .iter()
        .find(|spec| shared(spec) && lies_in(path, &spec.target));
    if let Some(spec) = inside {
        let text = format!(
            "{} is a directory of the host, which the container has only while it runs",
            spec.target
        );
        return Err(Failure::new(FailureCode::Failed, text)
            .with_hint("copy on the host itself, or start the container first"));
    }
    let volumes: Vec<MountSpec> = specs
        .into_iter()
        .filter(|spec| matches!(spec.source, MountSource::Volume { .. }))
        .collect();
    let mut volumes = mounts::resolve(agent, &volumes)?;
    for volume in &mut volumes {
        // Only a start fills a volume, and only the container is bound not to write.
        (volume.copy, volume.read_only) = (false, false);
    }
    Ok(volumes)
}

/// Whether a path is `place` or lies in it, links left aside.
fn lies_in(path: &str, place: &str) -> bool {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let place: Vec<&str> = place.split('/').filter(|part| !part.is_empty()).collect();
    parts.starts_with(&place)
}

/// The root of a container that does not run.
fn root(agent: &Agent, entry: &Entry) -> Result<Root, Failure> {
    let Some(stored) = &entry.image else {
        let text = "the container's image is not in the store any more";
        return Err(Failure::new(FailureCode::Failed, text));
    };
    stored.ready()?;
    make_directories(&entry.dir)
        .map_err(|error| Failure::new(FailureCode::Failed, error.to_string()))?;
    let image = Image {
        layers_dir: agent.store()?.layers_dir().to_owned(),
        layers: stored.layers.clone(),
    };
    Ok(root_of(&entry.dir, &image, false, true))
}

async fn supervise(
    joined: &Rc<Joined>,
    streams: Option<Streams>,
    stream: &SharedStream,
    reads: bool,
) -> Result<i32, Failure> {
    let seat = joined.hub.join(stream);
    let mut tasks = Tasks::default();
    if let Some(mut streams) = streams {
        tasks.take_input(Inlet::pipe(streams.stdin.take()), stream, reads);
        tasks.take_pipes(streams, joined);
    }
    let cancel = stream.cancelled().clone();
    let status = loop {
        tokio::select! {
            report = joined.container.next_report() => match report {
                Ok(Some((Report::Exited { status }, _))) => break status,
                Ok(Some((Report::Failed { message, .. }, _))) => {
                    return Err(Failure::new(FailureCode::Failed, message));
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => {
                    let text = "the process at the container's files died";
                    return Err(Failure::new(FailureCode::Failed, text));
                }
            },
            () = cancel.cancelled() => {
                joined.container.kill();
                return Err(cancelled());
            }
        }
    };
    let drained = async {
        for output in &mut tasks.outputs {
            let _ = output.await;
        }
    };
    tokio::select! {
        () = drained => {}
        () = cancel.cancelled() => return Err(cancelled()),
    }
    drop(seat);
    Ok(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_a_place() {
        for path in [
            "/data",
            "data",
            "/data/",
            "/data/x",
            "/x/../data/y",
            "/./data/.",
        ] {
            assert!(lies_in(path, "/data"), "{path}");
        }
        for path in ["/", "/dat", "/database", "/data/..", "/x/data"] {
            assert!(!lies_in(path, "/data"), "{path}");
        }
    }
}
