//! Layers that this computer keeps for all machines: pulled, or read from files, and verified here, by
//! the user, turned into read-only disk images, and handed to a machine when it runs something of them.

mod archives;
mod cache;
mod collect;
mod hand_over;
mod load;
mod origins;
mod pull;
mod users;

pub use archives::Archives;
pub use cache::{Archive, Cache, CachedLayer, Hold};
pub use collect::{Collected, collect, unused};
pub use hand_over::{prepare, prepare_containers, settle};
pub use load::load;
pub use pull::pull;
pub use users::{forget_user, note_use, note_users_layers, repair};

use vdkr_core::channel::message::RegistrySettings;

use super::{error::Result, session::Session, settings::Settings};

/// Whether layers are unpacked here rather than in the machine. A target unpacks by itself, and so does
/// a machine that could not be handed them.
pub fn unpacks_here(session: &Session, settings: &Settings) -> bool {
    settings.value("pull-in").0 == "host" && session.takes_disks(settings.verbose)
}

/// Whether images are pulled here rather than in the machine. A machine that alone knows the registry
/// and its CA, from its image, pulls by itself.
pub fn pulls_here(session: &Session, settings: &Settings, registry: &RegistrySettings) -> bool {
    let knows = registry.defaults && session.connection.hello().registry.is_some();
    unpacks_here(session, settings) && !knows
}

/// The cache of these settings.
pub fn cache(settings: &Settings) -> Result<Cache> {
    Ok(Cache::open(&settings.state_root)?)
}
