//! An image in files of this computer, whose layers become those of the cache as a pull's do.

use std::cell::RefCell;

use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::message::{Event, FailureCode, LogLevel},
    digest::Digest,
};
use vdkr_transfer::pull::fetch;

use super::{
    archives::WithRecipe,
    pull::{diff_ids, hand_in, kept_layers, too_many, with_cache},
};
use crate::vdkr::{
    content::{add_image, load::Chosen},
    error::Result,
    news::News,
    session::{Session, interruptible, stoppable},
    settings::Settings,
};

/// Puts an image into the store of a session's machine, under a name if there is one; its id, and the
/// image that had the name. `None` when the machine has to take the layers itself: its agent is older
/// than this program, or it takes no disks, or the image has too many layers.
pub async fn load(
    session: &mut Session,
    settings: &Settings,
    image: &Chosen,
    name: Option<&str>,
    news: &RefCell<&mut News>,
) -> Result<Option<(Digest, Option<Digest>)>> {
    let layers = diff_ids(&image.config);
    let told = |reason: &str| {
        news.borrow_mut().show(&Event::Log {
            level: LogLevel::Info,
            message: format!("loading in the machine: {reason}"),
        });
    };
    if let Some(reason) = too_many(&layers) {
        told(&reason);
        return Ok(None);
    }
    with_cache(session, settings, async |session, cache| {
        let stop = CancellationToken::new();
        let events = |event: Event| news.borrow_mut().show(&event);
        // No registry has it again for `save` and `push`, so a recipe belongs to it.
        let store = WithRecipe(cache.clone());
        let fetched = fetch(&store, &image.blobs, image.wanted(), &events, &stop);
        stoppable(&stop, async { Ok(fetched.await?) }).await?;
        session.mark("load");
        if let Some(reason) = hand_in(session, settings, cache, &layers).await? {
            told(&reason);
            return Ok(None);
        }
        let kept = kept_layers(cache, &layers)?;
        let documents = image.documents();
        match interruptible(add_image(session, name, &documents, kept)).await? {
            Ok(added) => Ok(Some(added)),
            // Older agents want all layers in their own store.
            Err(failure) if failure.code == FailureCode::NotFound => Ok(None),
            Err(failure) => Err(failure.into()),
        }
    })
    .await
}
