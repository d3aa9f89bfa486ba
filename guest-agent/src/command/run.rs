//! `run`: a container on this target, as a user of the target types it.

use std::path::PathBuf;

use vdkr_core::{
    channel::message::{
        ContainerReply, Life, Network, PullPolicy, Reply, Request, RunRequest, Sandbox, Until,
    },
    engine::EngineKind,
};

use crate::args::EngineWish;

use super::{
    CommandError, PullFrom,
    local::{self, Local, Terms},
};

/// Options of `run`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct RunOptions {
    /// The image.
    pub image: String,
    /// Command and arguments instead of the image's.
    pub args: Vec<String>,
    /// Where from, when the image has to be pulled.
    pub from: PullFrom,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Program instead of the image's entry point; an empty one for none.
    pub entrypoint: Option<String>,
    /// Name of the container.
    pub name: Option<String>,
    /// Network instead of the machine's own.
    pub network: Option<Network>,
    /// Remove it at its end.
    pub rm: bool,
    /// Let it run behind.
    pub detach: bool,
    /// Hand the standard input on.
    pub interactive: bool,
    /// User instead of the image's.
    pub user: Option<String>,
    /// Working directory instead of the image's.
    pub workdir: Option<String>,
    /// Never ask a registry.
    pub no_pull: bool,
    /// Directory of images and containers.
    pub state: PathBuf,
    /// What runs it.
    pub engine: EngineWish,
}

/// Runs a container and gives its status.
pub fn run(options: &RunOptions) -> Result<u8, CommandError> {
    let native = options.engine.choice()?.kind == EngineKind::Native;
    if options.detach && native && !local::is_served(&options.state) {
        return Err(CommandError::Usage(
            "a container that runs behind needs the service, which keeps it: start vdkr-agent \
             serve, or systemctl start vdkr-agent"
                .to_owned(),
        ));
    }
    let request = Request::Run(RunRequest {
        image: options.image.clone(),
        args: options.args.clone(),
        env: options.env.clone(),
        entrypoint: options
            .entrypoint
            .clone()
            .map(|program| match program.as_str() {
                "" => Vec::new(),
                _ => vec![program],
            }),
        name: options.name.clone(),
        rm: options.rm,
        user: options.user.clone(),
        workdir: options.workdir.clone(),
        stdin: options.interactive,
        sandbox: Sandbox {
            network: options.network.clone().unwrap_or_default(),
            ..Sandbox::default()
        },
        life: Life {
            until: if options.detach {
                Until::Started
            } else {
                Until::Ended
            },
            ..Life::default()
        },
        pull: if options.no_pull {
            PullPolicy::Never
        } else {
            PullPolicy::Missing
        },
        settings: options.from.settings(&options.image)?,
        ..RunRequest::default()
    });
    let terms = Terms {
        stdin: options.interactive,
        signals: !options.detach,
    };
    local::within(
        &options.state,
        &options.engine,
        async |local: &mut Local| match local.ask(&request, terms).await? {
            Reply::Ran { status } => Ok(u8::try_from(status & 0xff).unwrap_or(125)),
            Reply::Container(ContainerReply::Created { id }) => {
                println!("{id}");
                Ok(0)
            }
            _ => Err(local::wrong_reply()),
        },
    )
}
