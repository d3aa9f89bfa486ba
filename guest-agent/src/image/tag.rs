//! `tag`: one more name for an image.

use vdkr_core::{
    channel::message::Reply,
    reference::{Reference, is_image_id},
};

use crate::store::{ImageError, Store};

/// Gives the image `source` (a name or an id) the name `target` as well.
pub fn tag(store: &Store, source: &str, target: &str) -> Result<Reply, ImageError> {
    let unfit = |reason| ImageError::Unfit {
        name: target.to_owned(),
        reason,
    };
    if is_image_id(target) {
        return Err(unfit("it reads as an image id"));
    }
    let reference = Reference::parse(target).map_err(|source| ImageError::Name {
        name: target.to_owned(),
        source,
    })?;
    if reference.digest().is_some() {
        return Err(unfit("a name with a digest can only come from a registry"));
    }
    let find =
        |state: &crate::store::state::State| Ok(state.find_either(source, None)?.image().clone());
    store.name(find, &reference.or_latest())?;
    Ok(Reply::Tagged)
}
