//! A pull on this computer, with the same candidates, words and stored name as in the machine.

use std::{cell::RefCell, collections::BTreeSet};

use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::message::{
        AdmitRequest, Event, Failure, FailureCode, KeptLayer, LogLevel, PullRequest, Pulled,
        RegistrySettings, Reply, Request,
    },
    digest::Digest,
    loopback::reference_from_gateway,
    manifest::ImageConfig,
    reference::Reference,
};
use vdkr_transfer::{
    Client,
    pull::{Image, ImageError, LayerStore, Question, Remote, client_config, connect, fetch},
};

use super::{
    Cache, cache, collect,
    hand_over::{attach, note_given},
    repair,
    users::layers_of,
};
use crate::vdkr::{
    command::wrong_reply,
    error::{Error, Result},
    news::News,
    registry::as_seen_here,
    session::{Session, stoppable},
    settings::{Settings, StatePlace},
    value::parse_room,
};

/// Layers that one image may bring as disks: with those of other images they must find room on one
/// controller.
const MAX_LAYERS: usize = 64;

/// Pulls an image for the machine of a session. `None` when the machine has to do it itself: its
/// agent is older than this program, or it takes no disks, or the image has too many layers.
pub async fn pull(
    session: &mut Session,
    settings: &Settings,
    request: &PullRequest,
    news: &RefCell<&mut News>,
) -> Result<Option<Pulled>> {
    with_cache(session, settings, async |session, cache| {
        pull_into(cache, session, settings, request, news).await
    })
    .await
}

/// Does something with the cache, in which nothing is removed meanwhile, for the machine of a session.
/// `None` when its agent is older than this program.
pub(super) async fn with_cache<T>(
    session: &mut Session,
    settings: &Settings,
    work: impl AsyncFnOnce(&mut Session, &Cache) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let here = Request::Layers {
        image: None,
        of_container: false,
        settings: RegistrySettings::default(),
    };
    let kept = match session.ask_plainly(&here).await? {
        Ok(Reply::Layers(needed)) => needed.kept,
        Err(failure) if failure.code == FailureCode::Unsupported => return Ok(None),
        Err(failure) => return Err(failure.into()),
        Ok(other) => return Err(wrong_reply(&other)),
    };
    let cache = cache(settings)?;
    let limit = limit(settings)?;
    let hold = cache.hold().await?;
    let cache = for_pull(&cache, settings, &kept)?;
    let done = work(session, &cache).await;
    drop(hold);
    // Who is in the way collects later. What a pull that failed has brought, nobody uses.
    let _ = collect(&cache, limit);
    done
}

/// Bytes that the cache may grow to.
pub(super) fn limit(settings: &Settings) -> Result<u64> {
    let limit = parse_room(settings.value("layer-cache").0).map_err(Error::usage)?;
    Ok(u64::from(limit) << 20)
}

/// The cache as a pull of these settings may use it. `kept` is what the machine says that it has.
pub(super) fn for_pull(cache: &Cache, settings: &Settings, kept: &[String]) -> Result<Cache> {
    let given = match &settings.state {
        StatePlace::Directory(dir) => {
            let kept = kept.iter().filter_map(|layer| Digest::parse(layer).ok());
            repair(cache, dir, &kept.collect())?;
            layers_of(cache, dir)?
        }
        StatePlace::Nowhere => BTreeSet::new(),
    };
    Ok(cache.for_pull(given)?)
}

async fn pull_into(
    cache: &Cache,
    session: &mut Session,
    settings: &Settings,
    request: &PullRequest,
    news: &RefCell<&mut News>,
) -> Result<Option<Pulled>> {
    let architecture = settings.arch.oci_name();
    let (remote, image) = find_and_fetch(cache, request, architecture, news).await?;
    session.mark("pull");
    let layers = diff_ids(&image.config);
    if let Some(reason) = hand_in(session, settings, cache, &layers).await? {
        news.borrow_mut().show(&Event::Log {
            level: LogLevel::Info,
            message: format!("pulling in the machine: {reason}"),
        });
        return Ok(None);
    }
    let admit = Request::Admit(admission(cache, &remote, &image)?);
    match session.ask(&admit).await? {
        Reply::Pulled(pulled) => Ok(Some(pulled)),
        other => Err(wrong_reply(&other)),
    }
}

/// Brings an image's layers back into the cache, and says which it has. `reference` names the image
/// by its digest.
pub(super) async fn fetch_again(
    store: &impl LayerStore,
    request: &PullRequest,
    architecture: &str,
    news: &RefCell<&mut News>,
) -> Result<BTreeSet<Digest>> {
    let (_, image) = find_and_fetch(store, request, architecture, news).await?;
    let layers = diff_ids(&image.config);
    match too_many(&layers) {
        None => Ok(layers),
        // None of them was looked at.
        Some(reason) => {
            let message = format!("cannot hand over {}: {reason}", request.reference);
            Err(Failure::new(FailureCode::Unsupported, message).into())
        }
    }
}

async fn find_and_fetch(
    store: &impl LayerStore,
    request: &PullRequest,
    architecture: &str,
    news: &RefCell<&mut News>,
) -> Result<(Remote, Image)> {
    let stop = CancellationToken::new();
    let client = client(&request.settings)?;
    let gateway = request.settings.gateway.clone();
    let reach = |reference: &Reference| reference_from_gateway(reference, &gateway);
    let events = |event: Event| news.borrow_mut().show(&event);
    let question = Question {
        reference: &request.reference,
        platform: request.platform.as_deref(),
        architecture,
        settings: &request.settings,
        reach: &reach,
    };
    let found = async {
        let (remote, image) = question.ask(&client, &events, &stop).await?;
        let layers = image.layers()?;
        if too_many(&diff_ids(&image.config)).is_none() {
            fetch(store, &remote, layers, &events, &stop).await?;
        }
        Ok((remote, image))
    };
    stoppable(&stop, found).await
}

/// Why so many layers cannot be handed over, when they cannot.
pub(super) fn too_many(layers: &BTreeSet<Digest>) -> Option<String> {
    let layers = layers.len();
    (layers > MAX_LAYERS).then(|| format!("the image has {layers} layers"))
}

/// Attaches the layers of an image that is about to be put into the machine's store, and notes that it
/// has them; why that cannot be done, when it cannot.
pub(super) async fn hand_in(
    session: &mut Session,
    settings: &Settings,
    cache: &Cache,
    layers: &BTreeSet<Digest>,
) -> Result<Option<String>> {
    if let Some(reason) = too_many(layers) {
        return Ok(Some(reason));
    }
    match attach(session, cache, layers).await {
        Ok(()) => {}
        Err(error) if error.is_unsupported() => return Ok(Some(error.to_string())),
        Err(error) => return Err(error),
    }
    note_given(cache, session, settings, layers)?;
    Ok(None)
}

/// The layers that a configuration lists.
pub(super) fn diff_ids(config: &ImageConfig) -> BTreeSet<Digest> {
    config.rootfs.diff_ids.iter().cloned().collect()
}

/// Layers of the cache as an agent is told of them.
pub(super) fn kept_layers(cache: &Cache, layers: &BTreeSet<Digest>) -> Result<Vec<KeptLayer>> {
    let layers = layers.iter().map(|diff_id| {
        let (_, note) = cache.find(diff_id).ok_or_else(|| {
            let message = format!("layer {diff_id} went out of the cache meanwhile; try again");
            Error::from(Failure::new(FailureCode::Failed, message))
        })?;
        Ok(KeptLayer {
            diff_id: diff_id.to_string(),
            bytes: note.bytes,
            opaque: note.opaque,
        })
    });
    layers.collect()
}

/// The image as the agent is told of it.
fn admission(cache: &Cache, remote: &Remote, image: &Image) -> Result<AdmitRequest> {
    let text = |bytes: &[u8], what: &str| {
        String::from_utf8(bytes.to_vec()).map_err(|_| {
            let message = format!("{}: its {what} is not UTF-8", image.reference);
            Error::from(Failure::new(FailureCode::Unsupported, message))
        })
    };
    Ok(AdmitRequest {
        reference: remote.reference.to_string(),
        digest: image.digest.to_string(),
        manifest: text(&image.manifest.raw, "manifest")?,
        media_type: image.manifest.media_type.clone(),
        config: text(&image.config_raw, "configuration")?,
        layers: kept_layers(cache, &diff_ids(&image.config))?,
    })
}

/// A client for registries as the machine would reach them: what is the gateway there, is this
/// computer.
fn client(settings: &RegistrySettings) -> Result<Client, ImageError> {
    connect(client_config(&as_seen_here(settings))?)
}

#[cfg(test)]
mod tests {
    use vdkr_core::channel::message::{HostCredential, Mirror};

    use super::*;

    #[test]
    fn the_gateway_is_this_computer() {
        let settings = RegistrySettings {
            registry: Some("10.0.2.2:5000/ns".into()),
            insecure: vec!["10.0.2.2:5000".into(), "10.0.2.20:5000".into()],
            mirrors: vec![Mirror {
                host: "docker.io".into(),
                endpoints: vec![
                    "http://10.0.2.2:5001".into(),
                    "https://m.example.com".into(),
                ],
            }],
            credentials: vec![HostCredential {
                host: "10.0.2.2:5000".into(),
                ..HostCredential::default()
            }],
            gateway: "10.0.2.2".into(),
            ..RegistrySettings::default()
        };
        let seen = as_seen_here(&settings);
        assert_eq!(seen.registry.as_deref(), Some("localhost:5000/ns"));
        assert_eq!(seen.insecure, ["localhost:5000", "10.0.2.20:5000"]);
        assert_eq!(
            seen.mirrors[0].endpoints,
            ["http://localhost:5001", "https://m.example.com"]
        );
        assert_eq!(seen.credentials[0].host, "localhost:5000");
        assert_eq!(seen.gateway, "localhost");
    }
}
