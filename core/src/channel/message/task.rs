//! What a request has its receiver do, in words for whoever waits for it.

use super::{ContainerRequest, Request};

impl Request {
    /// What is done for this request, behind "waiting for the machine to", where its answer comes soon
    /// when all is well. `None` when it takes its time by nature, or speaks meanwhile: containers that
    /// run and whatever waits for them or gives them time to stop, content on its way, pulls.
    pub fn task(&self) -> Option<&'static str> {
        match self {
            Self::Admit(_) | Self::AddImage(_) => Some("take an image into its store"),
            Self::Layers { .. } | Self::Images | Self::Inspect { .. } | Self::Export { .. } => {
                Some("look at its images")
            }
            Self::Mount { .. } => Some("mount an image's layers"),
            Self::AttachDisk(_) => Some("take a disk"),
            Self::DetachDisk { .. } => Some("give a disk back"),
            Self::Remove { .. } | Self::Prune(_) => Some("remove images"),
            Self::Tag { .. } => Some("name an image"),
            Self::Info => Some("say how it is"),
            Self::Usage => Some("measure what takes room"),
            Self::Volume { .. } => Some("look after its volumes"),
            Self::Container(request) => request.task(),
            _ => None,
        }
    }
}

impl ContainerRequest {
    fn task(&self) -> Option<&'static str> {
        match self {
            Self::Inspect { .. }
            | Self::List
            | Self::Path { .. }
            | Self::Stats { .. }
            | Self::Top { .. } => Some("look at its containers"),
            Self::Kill { .. } => Some("send a signal"),
            Self::Pause { .. } | Self::Unpause { .. } => {
                Some("freeze a container, or let it go on")
            }
            Self::Place { .. } | Self::Rename { .. } => Some("change a container"),
            Self::Remove { .. } => Some("remove a container"),
            Self::Start { attach: false, .. } | Self::Resume => Some("start containers"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::super::{PullRequest, RunRequest};
    use super::*;

    #[test]
    fn what_takes_its_time_by_nature_is_no_task() {
        let name = || "web".into();
        let silent = [
            Request::Run(RunRequest::default()),
            Request::Pull(PullRequest::default()),
            Request::Shutdown,
            Request::Container(ContainerRequest::Stop {
                name: name(),
                timeout: None,
                signal: None,
            }),
            Request::Container(ContainerRequest::Start {
                name: name(),
                attach: true,
                stdin: false,
            }),
            Request::Unknown,
        ];
        for request in silent {
            assert_eq!(request.task(), None, "{request:?}");
        }
        let remove = Request::Remove {
            names: Vec::new(),
            force: false,
        };
        assert_eq!(remove.task(), Some("remove images"));
        let list = Request::Container(ContainerRequest::List);
        assert_eq!(list.task(), Some("look at its containers"));
    }
}
