//! `remove`: names and content out of the store.

use vdkr_core::channel::message::Reply;

use crate::store::{ImageError, Store};

/// Removes what the names and ids mean: all of it, or nothing and an error. The image of a container
/// stays, by force without a name.
pub fn remove(store: &Store, names: &[String], force: bool) -> Result<Reply, ImageError> {
    let removed = store.remove(
        |state| {
            names
                .iter()
                .map(|name| state.find_either(name, None))
                .collect()
        },
        force,
    )?;
    Ok(Reply::Removed { removed })
}
