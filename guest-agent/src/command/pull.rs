//! `pull`: an image into this target's store, the configured registry first.

use std::path::PathBuf;

use vdkr_core::channel::message::{PullRequest, Reply, Request};

use crate::args::EngineWish;

use super::{
    CommandError, PullFrom,
    local::{self, Local, Terms},
};

/// Options of `pull`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// Names of images.
    pub names: Vec<String>,
    /// Where from.
    pub from: PullFrom,
    /// `os/arch[/variant]` instead of this machine's.
    pub platform: Option<String>,
    /// Directory of images and containers.
    pub state: PathBuf,
    /// Whose store.
    pub engine: EngineWish,
}

/// Pulls the images, one after the other, and prints the names that they have here.
pub fn pull(options: &PullOptions) -> Result<(), CommandError> {
    // What the options say wrongly is told before anything is pulled.
    let settings = options.names.iter().map(|name| options.from.settings(name));
    let settings = settings.collect::<Result<Vec<_>, _>>()?;
    local::within(
        &options.state,
        &options.engine,
        async |local: &mut Local| {
            for (name, settings) in options.names.iter().zip(settings) {
                let request = Request::Pull(PullRequest {
                    reference: name.clone(),
                    settings,
                    platform: options.platform.clone(),
                });
                match local.ask(&request, Terms::default()).await? {
                    Reply::Pulled(pulled) => println!("{}", pulled.name),
                    _ => return Err(local::wrong_reply()),
                }
            }
            Ok(())
        },
    )
}
