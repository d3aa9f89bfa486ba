//! Docker's engine and podman in the place of the agent's own store and runtime, on images that carry
//! them. The agent pulls itself, with the settings of each request, and hands the engine what it has
//! verified; the engine's configuration is neither read nor changed.

use std::{
    path::{Path, PathBuf},
    rc::Rc,
};

use serde_json::Value;
use vdkr_core::{
    channel::message::{
        ContainerReply, ContainerRequest, Done, Event, Failure, FailureCode, LogLevel,
        RegistrySettings, Reply, Request, VolumeAction,
    },
    engine::{
        EngineKind, is_container_name,
        rows::{EngineImage, text},
    },
    reference::Reference,
    stored::{Meant, NotMeant, Shelf, find_to_run},
};
use vdkr_transfer::pull::{ImageError, registry};

use crate::{
    args::EngineChoice,
    channel::stream::SharedStream,
    request::{Agent, cancelled, monitors_own, share, shutdown, unknown},
};

pub mod client;
mod containers;
mod copy;
mod exec;
mod follow;
mod images;
mod load;
mod pull;
mod run;
#[cfg(test)]
mod scripted;
mod streams;
mod system;
mod volumes;

use client::Client;
pub use run::take_over;

/// An engine that keeps the images and runs the containers of this target.
#[derive(Debug)]
pub struct Engine {
    client: Client,
    /// Where files wait that the engine cannot take as they are.
    spool: PathBuf,
}

/// An image as a user means it.
struct Known {
    image: EngineImage,
    /// The name that was meant, in full; none for an id.
    name: Option<String>,
}

impl Known {
    /// What requests to the engine call it.
    fn called(&self) -> &str {
        self.name.as_deref().unwrap_or(&self.image.id)
    }
}

impl Engine {
    /// The engine that was chosen; none when that is the agent itself. `state` is the agent's own
    /// directory.
    pub fn chosen(choice: &EngineChoice, state: &Path) -> Option<Self> {
        let socket = choice.socket.clone();
        let socket = socket.or_else(|| choice.kind.socket().map(Into::into));
        let socket = socket.filter(|_| choice.kind != EngineKind::Native)?;
        Some(Self {
            client: Client::new(choice.kind, socket),
            spool: state.to_owned(),
        })
    }

    /// Which one it is.
    pub fn kind(&self) -> EngineKind {
        self.client.kind()
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        self.client.socket()
    }

    /// Asks whether it answers; gives its version.
    pub async fn version(&self) -> Result<String, Failure> {
        let versions = self.client.versions().await?;
        Ok(text(&versions, "Version").to_owned())
    }

    /// All images.
    async fn images(&self) -> Result<Vec<EngineImage>, Failure> {
        let listed = self.client.get("/images/json").await?;
        let listed = listed.as_array().into_iter().flatten();
        Ok(listed.map(EngineImage::read).collect())
    }

    /// The image that a user means, by the rules of the agent's own store. Only `run` comes with a
    /// registry.
    async fn find(&self, name: &str, settings: &RegistrySettings) -> Result<Known, Failure> {
        let images = self.images().await?;
        let mut shelf = Shelf::default();
        for image in &images {
            let names = image.tags.iter().chain(&image.digests);
            shelf
                .names
                .extend(names.map(|name| (name.as_str(), image.id.as_str())));
            // What is pulled has a name without the registry as well, and only an owner moves it.
            shelf.given.extend(image.tags.iter().map(String::as_str));
            shelf.ids.push(&image.id);
        }
        let own = registry(settings)?;
        let gateway = Some(settings.gateway.as_str()).filter(|gateway| !gateway.is_empty());
        let meant = find_to_run(name, own.as_ref(), gateway, &shelf).map_err(|error| {
            let name = name.to_owned();
            Failure::from(match error {
                NotMeant::Name(source) => ImageError::Name { name, source },
                NotMeant::Nothing => ImageError::NoImage(name),
                NotMeant::Several(matches) => ImageError::Ambiguous { name, matches },
            })
        })?;
        let (id, name) = match meant {
            Meant::Name { name, id } => (id, Some(name.to_owned())),
            Meant::Id(id) => (id, None),
        };
        let image = images.iter().find(|image| image.id == id);
        Ok(Known {
            image: image.cloned().unwrap_or_default(),
            name,
        })
    }

    /// What the engine says of a container.
    async fn container(&self, name: &str) -> Result<Value, Failure> {
        self.client.get(&path(name, "/json")?).await
    }

    fn unsupported(&self, what: &str, instead: &str) -> Failure {
        let kind = self.kind();
        Failure::new(
            FailureCode::Unsupported,
            format!("{what} is not possible where {kind} keeps the images"),
        )
        .with_hint(instead.replace("ENGINE", kind.as_str()))
    }
}

/// The path of a request about a container, by its name or id.
fn path(name: &str, rest: &str) -> Result<String, Failure> {
    if !is_container_name(name) {
        let text = format!("no such container: {name}");
        return Err(Failure::new(FailureCode::NotFound, text));
    }
    Ok(format!("/containers/{name}{rest}"))
}

/// A name as the engine's own command writes it.
fn familiar(name: &str) -> String {
    Reference::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar())
}

/// Tells what was done before something failed: the answer to that has no room for it.
fn tell(stream: &SharedStream, done: impl Iterator<Item = String>) {
    for message in done {
        let level = LogLevel::Info;
        stream.event(&Event::Log { level, message });
    }
}

fn done() -> Reply {
    Reply::Container(ContainerReply::Done)
}

/// Carries a request out with the engine. One that its host cancels ends at once: what the engine was
/// asked for is its own affair from then on.
pub async fn carry_out(
    agent: &Rc<Agent>,
    engine: &Rc<Engine>,
    request: Request,
    stream: &SharedStream,
) -> Done {
    match request {
        // These end in their own way.
        Request::Run(request) => Box::pin(run::run(agent, engine, &request, stream)).await,
        Request::Container(ContainerRequest::Exec(request)) => {
            Box::pin(exec::exec(engine, &request, stream)).await
        }
        Request::Shutdown => shutdown::shutdown(agent).await,
        Request::MountShare {
            share,
            directory,
            read_only,
        } => share::mount(agent, &share, directory, read_only, stream).await,
        request => tokio::select! {
            done = Box::pin(answer(agent, engine, request, stream)) => done,
            () = stream.cancelled().cancelled() => Err(cancelled()),
        },
    }
}

async fn answer(
    agent: &Rc<Agent>,
    engine: &Rc<Engine>,
    request: Request,
    stream: &SharedStream,
) -> Done {
    match request {
        Request::Pull(request) => engine.pull(&request, stream).await.map(Reply::Pulled),
        Request::Container(request) => {
            Box::pin(containers::carry_out(engine, request, stream)).await
        }
        Request::Images => engine.list_images().await,
        Request::Inspect { names } => engine.inspect_images(&names).await,
        Request::Remove { names, force } => engine.remove_images(&names, force, stream).await,
        Request::Tag { source, target } => engine.tag_image(&source, &target).await,
        Request::Prune(request) => engine.prune_images(&request).await,
        Request::Info => system::info(agent, engine).await,
        Request::Usage => system::usage(engine).await,
        Request::Volume {
            action: VolumeAction::Unknown,
        } => Err(unknown()),
        Request::Volume { action } => volumes::volume(engine, action, stream).await,
        Request::Release { share } => share::release(agent, &share),
        Request::KeepShare { share } => share::keep(agent, share),
        Request::Export { .. } | Request::ReadBlob { .. } => Err(engine.unsupported(
            "reading images out of the store (history, save, push)",
            "on the target: ENGINE history, ENGINE save, ENGINE push",
        )),
        Request::AddImage(_) | Request::AddLayer { .. } => Err(engine.unsupported(
            "taking an image from files (load, import, vimport, commit)",
            "push it to the registry and pull it, or on the target: ENGINE load, ENGINE import",
        )),
        Request::Admit(_) | Request::Layers { .. } | Request::Mount { .. } => {
            Err(engine.unsupported("using layers that the host keeps", "pull the image"))
        }
        Request::AttachDisk(_)
        | Request::DetachDisk { .. }
        | Request::Machine
        | Request::AdoptPorts { .. }
        | Request::Publish(_)
        | Request::Published
        | Request::Share { .. } => Err(monitors_own()),
        Request::Run(_) | Request::Shutdown | Request::MountShare { .. } | Request::Unknown => {
            Err(unknown())
        }
    }
}

#[cfg(test)]
mod tests;
