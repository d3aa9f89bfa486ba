//! `pull`: from a name to an image in the store.
//!
//! The candidates of the name are asked in order, and the next one only when a registry itself says
//! that it does not know the one before: a registry that is down, or refuses, is an error, never a
//! pull from somewhere else. Then the layers that are not here come, a few at a time, each from the
//! network through two digests into a directory in one pass. What is finished stays when the pull is
//! stopped, and the next one goes on from there.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    net::Ipv4Addr,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::message::{Event, Pulled, RegistrySettings},
    reference::Reference,
};
use vdkr_transfer::{
    Client, ClientConfig,
    pull::{Image, Question, client_config, connect, fetch, joined},
};

use crate::{
    boot::network,
    machine,
    store::{
        ImageError, NewImage, Store,
        state::{ImageRecord, NameRecord},
    },
};

mod resolver;

#[cfg(test)]
mod tests;

use resolver::Resolver;

/// Fetches an image into the store.
///
/// `platform` is `os/arch[/variant]`, the machine's own when absent. `events` hears what happens.
/// Dropping the future stops the pull, as `cancel` does.
pub async fn pull(
    store: &Store,
    reference: &str,
    settings: &RegistrySettings,
    platform: Option<&str>,
    events: &dyn Fn(Event),
    cancel: &CancellationToken,
) -> Result<Pulled, ImageError> {
    let client = client(settings)?;
    pull_with(
        store, &client, reference, settings, platform, events, cancel,
    )
    .await
}

/// A client of registries on this machine.
pub(crate) fn client(settings: &RegistrySettings) -> Result<Client, ImageError> {
    connect(client_settings(settings)?)
}

/// The client's settings on this machine.
fn client_settings(settings: &RegistrySettings) -> Result<ClientConfig, ImageError> {
    let settings = trusted(settings, network::gateway());
    Ok(ClientConfig {
        resolver: Some(Arc::new(Resolver::default())),
        user_agent: machine::SOFTWARE.replace(' ', "/"),
        ..client_config(&settings)?
    })
}

/// The settings as a machine with this default route may trust them: the address that a host calls
/// its own may do without TLS where the route leads there. Elsewhere it may be anybody's.
fn trusted(settings: &RegistrySettings, route: Option<Ipv4Addr>) -> Cow<'_, RegistrySettings> {
    let is_host = route.is_some_and(|route| settings.gateway == route.to_string());
    if is_host || settings.gateway.is_empty() {
        return Cow::Borrowed(settings);
    }
    Cow::Owned(RegistrySettings {
        gateway: String::new(),
        ..settings.clone()
    })
}

async fn pull_with(
    store: &Store,
    client: &Client,
    reference: &str,
    settings: &RegistrySettings,
    platform: Option<&str>,
    events: &dyn Fn(Event),
    cancel: &CancellationToken,
) -> Result<Pulled, ImageError> {
    let stop = cancel.child_token();
    let _stop_when_dropped = stop.clone().drop_guard();
    let question = Question {
        reference,
        platform,
        architecture: machine::architecture(),
        settings,
        reach: &Clone::clone,
    };
    let (remote, image) = question.ask(client, events, &stop).await?;
    let _lease = store.keep(image.config.rootfs.diff_ids.iter().cloned());
    fetch(store, &remote, image.layers()?, events, &stop).await?;
    add(store, &remote.reference, image).await
}

/// Puts an image whose layers are there into the store.
pub(crate) async fn add(
    store: &Store,
    reference: &Reference,
    image: Image,
) -> Result<Pulled, ImageError> {
    let by_digest = reference.without_tag().with_digest(image.digest.clone());
    // A digest says which image it is; a tag beside it says nothing more.
    let name = match reference.digest() {
        Some(_) => by_digest.to_string(),
        None => reference.to_string(),
    };
    let id = image.parsed.config.digest.clone();
    let compressed = image.compressed();
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let record = ImageRecord {
        manifest: image.manifest.descriptor(),
        layers: image.config.rootfs.diff_ids.clone(),
        compressed,
        digests: BTreeSet::from([by_digest.to_string()]),
        created: image.config.created.clone(),
        source: reference.to_string(),
        pulled_at: now.map_or(0, |since| since.as_secs()),
    };
    let pulled = Pulled {
        name: name.clone(),
        digest: image.digest.to_string(),
        id: id.to_string(),
        size: compressed,
    };
    let name_record = NameRecord {
        image: id.clone(),
        digest: Some(image.digest),
    };
    let name = reference.digest().is_none().then_some((name, name_record));
    let store = store.clone();
    let added = spawn_blocking(move || {
        store.add(NewImage {
            config: &image.config_raw,
            id: &id,
            manifest: &image.manifest.raw,
            record,
            name,
        })
    });
    joined(added.await)?;
    Ok(pulled)
}
