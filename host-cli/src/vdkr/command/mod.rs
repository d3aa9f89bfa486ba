//! One module for each command.

pub mod container;
pub mod df;
pub mod history;
pub mod images;
pub mod import;
pub mod info;
pub mod inspect;
pub mod load;
pub mod login;
pub mod logout;
pub mod memres;
pub mod port;
pub mod prune;
pub mod pull;
pub mod push;
pub mod remove;
pub mod run;
pub mod save;
pub mod search;
pub mod system_prune;
pub mod tag;
pub mod vconfig;
pub mod version;
pub mod vimport;
pub mod volume;
pub mod vstorage;

use vdkr_core::channel::message::Reply;

use super::error::Error;
use crate::exit::Exit;

/// The agent's answer is not one to the request that was sent.
pub(super) fn wrong_reply(reply: &Reply) -> Error {
    let kind = match reply {
        Reply::Unknown => "of a later version",
        _ => "to another request",
    };
    Error::new(
        Exit::Failed,
        format!("the machine's agent sent an answer {kind}"),
    )
}
