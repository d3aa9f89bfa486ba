//! Layers into a machine: attached as disks, then mounted by its agent.

use std::{cell::RefCell, collections::BTreeSet, path::Path, time::Duration};

use tokio::time::timeout;

use vdkr_core::{
    channel::message::{
        DiskRequest, Failure, FailureCode, LayerDisk, NeededLayers, PullPolicy, PullRequest,
        RegistrySettings, Reply, Request, RunRequest,
    },
    digest::Digest,
    reference::Reference,
};
use vdkr_transfer::pull::LayerStore as _;

use super::{
    Cache, cache, collect, note_use, note_users_layers,
    pull::{self, fetch_again, for_pull, limit},
    pulls_here, repair,
    users::layers_of,
};
use crate::vdkr::{
    command::wrong_reply,
    error::{Error, Result},
    news::News,
    registry,
    session::Session,
    settings::{Settings, StatePlace},
};

/// How the serial numbers of layers' disks begin.
const SERIAL: &str = "layer-";
/// Digits of a layer's digest in its disk's serial number, which has 36 characters at most.
const DIGITS: usize = 30;
/// For how long others wait while a machine that has just answered says what layers it has.
const SETTLING: Duration = Duration::from_secs(5);

/// What the machine has of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It is there, and so are its layers.
    Ready,
    /// No image has this name.
    Absent,
    /// The agent is older than this program, and keeps all layers itself.
    Unknown,
}

/// Whose layers are asked for.
#[derive(Clone, Copy)]
enum Wanted<'a> {
    Image(&'a str),
    Container(&'a str),
}

/// Hands over the layers of containers that exist, before they are started again.
pub async fn prepare_containers(
    session: &mut Session,
    settings: &Settings,
    names: &[String],
) -> Result<()> {
    if session.is_target() {
        return Ok(());
    }
    let mut news = News::new(settings.global.progress, settings.verbose);
    let news = RefCell::new(&mut news);
    let registry = registry::for_request(settings, &[])?;
    for name in names {
        // One that is not there is told of by the request that follows.
        ready(session, settings, Wanted::Container(name), &registry, &news).await?;
    }
    Ok(())
}

/// Brings what the container of a request needs into the machine: the image, when it is not there or
/// shall be pulled anyway, and the layers that are kept here. Whatever the machine can do by itself is
/// left to it, and to the request.
pub async fn prepare(
    session: &mut Session,
    settings: &Settings,
    request: &mut RunRequest,
    news: &mut News,
) -> Result<()> {
    if session.is_target() {
        return session.check_reach(&request.image, &request.settings);
    }
    let news = RefCell::new(news);
    let image = Wanted::Image(&request.image);
    let presence = ready(session, settings, image, &request.settings, &news).await?;
    let pulls = match (request.pull, presence) {
        (_, Presence::Unknown) | (PullPolicy::Never, _) => false,
        (PullPolicy::Missing, presence) => presence == Presence::Absent,
        (PullPolicy::Always, _) => true,
    };
    if !pulls || !pulls_here(session, settings, &request.settings) {
        return Ok(());
    }
    let pull_request = PullRequest {
        reference: request.image.clone(),
        settings: request.settings.clone(),
        platform: None,
    };
    if let Some(pulled) = pull::pull(session, settings, &pull_request, &news).await? {
        // Exactly what was pulled, whatever other names would match.
        request.image = pulled.id;
        request.pull = PullPolicy::Never;
        let image = Wanted::Image(&request.image);
        ready(session, settings, image, &request.settings, &news).await?;
    }
    Ok(())
}

/// Notes which layers the images of a session's machine still have after some were removed, and takes
/// away the disks of the others.
pub async fn settle(session: &mut Session, settings: &Settings) -> Result<()> {
    let StatePlace::Directory(dir) = &settings.state else {
        return Ok(());
    };
    // Before the lock, so that waiting for this machine holds up nobody who uses others.
    if kept_layers(session).await?.is_none() {
        return Ok(());
    }
    let cache = cache(settings)?;
    // A pull under way has attached what no image has yet; whoever comes next settles.
    let Some(_own) = cache.try_own()? else {
        return Ok(());
    };
    // So it is when the machine stops answering now. Nothing is collected by that: until the machine
    // has answered, all that it was given counts as its own.
    match timeout(SETTLING, settle_alone(session, &cache, dir)).await {
        Ok(settled) => settled,
        Err(_) => Ok(()),
    }
}

/// Layers kept here that the images of a machine have; `None` of an agent that does not know.
async fn kept_layers(session: &mut Session) -> Result<Option<Vec<String>>> {
    let question = Request::Layers {
        image: None,
        of_container: false,
        settings: RegistrySettings::default(),
    };
    match session.ask_plainly(&question).await? {
        Ok(Reply::Layers(NeededLayers { kept, .. })) => Ok(Some(kept)),
        _ => Ok(None),
    }
}

/// Settles while no other command uses layers. The answer of before is none now: a pull may have
/// ended in between.
async fn settle_alone(session: &mut Session, cache: &Cache, dir: &Path) -> Result<()> {
    let Some(kept) = kept_layers(session).await? else {
        return Ok(());
    };
    let kept = kept.iter().filter_map(|layer| Digest::parse(layer).ok());
    // The machine's word may take layers away from it, and give it none.
    let given = layers_of(cache, dir)?;
    let kept: BTreeSet<Digest> = kept.filter(|layer| given.contains(layer)).collect();
    let serials: BTreeSet<String> = kept.iter().map(serial).collect();
    repair(cache, dir, &kept)?;
    note_users_layers(cache, dir, &kept)?;
    // A machine of this command's own goes with its disks.
    if let Ok(Reply::Machine(state)) = session.ask_plainly(&Request::Machine).await? {
        for disk in state.disks {
            if disk.starts_with(SERIAL) && !serials.contains(&disk) {
                session.detach(&disk).await?;
            }
        }
    }
    Ok(())
}

/// Looks whether the machine has an image, and hands over what it needs of it. Layers that are no
/// longer in the cache are pulled again.
async fn ready(
    session: &mut Session,
    settings: &Settings,
    wanted: Wanted<'_>,
    registry: &RegistrySettings,
    news: &RefCell<&mut News>,
) -> Result<Presence> {
    let (name, of_container) = match wanted {
        Wanted::Image(name) => (name, false),
        Wanted::Container(name) => (name, true),
    };
    let question = Request::Layers {
        image: Some(name.to_owned()),
        of_container,
        settings: RegistrySettings {
            registry: registry.registry.clone(),
            gateway: registry.gateway.clone(),
            ..RegistrySettings::default()
        },
    };
    let needed = match session.ask_plainly(&question).await? {
        Ok(Reply::Layers(needed)) => needed,
        Err(failure) if failure.code == FailureCode::NotFound => return Ok(Presence::Absent),
        Err(failure) if failure.code == FailureCode::Unsupported => return Ok(Presence::Unknown),
        Err(failure) => return Err(failure.into()),
        Ok(other) => return Err(wrong_reply(&other)),
    };
    if !needed.missing.is_empty() {
        hand_over(session, settings, &needed, registry, news).await?;
        session.mark("layers");
    }
    Ok(Presence::Ready)
}

/// Hands over what an image needs.
async fn hand_over(
    session: &mut Session,
    settings: &Settings,
    needed: &NeededLayers,
    registry: &RegistrySettings,
    news: &RefCell<&mut News>,
) -> Result<()> {
    let layers: BTreeSet<Digest> = needed
        .missing
        .iter()
        .map(|layer| Digest::parse(layer).map_err(|error| odd(&error)))
        .collect::<Result<_>>()?;
    let cache = cache(settings)?;
    let limit = limit(settings)?;
    let hold = cache.hold().await?;
    let cache = for_pull(&cache, settings, &needed.kept)?;
    let given = give(&cache, session, settings, needed, &layers, registry, news).await;
    drop(hold);
    if !matches!(given, Ok(false)) {
        // Who is in the way collects later.
        let _ = collect(&cache, limit);
    }
    given.map(drop)
}

/// Attaches and mounts layers; whether some had to be fetched.
async fn give(
    cache: &Cache,
    session: &mut Session,
    settings: &Settings,
    needed: &NeededLayers,
    layers: &BTreeSet<Digest>,
    registry: &RegistrySettings,
    news: &RefCell<&mut News>,
) -> Result<bool> {
    // The word of a machine is no proof that it may have a layer: another one's image may be private.
    let given = match &settings.state {
        StatePlace::Directory(dir) => layers_of(cache, dir)?,
        StatePlace::Nowhere => session.given().clone(),
    };
    let is_there = |layer| given.contains(layer) && cache.has_layer(layer);
    let must_fetch = !layers.iter().all(is_there);
    if must_fetch {
        if needed.source.is_empty() {
            return Err(gone(needed));
        }
        let source = Reference::parse(&needed.source).map_err(|error| odd(&error))?;
        let manifest = Digest::parse(&needed.manifest).map_err(|error| odd(&error))?;
        let request = PullRequest {
            reference: source.without_tag().with_digest(manifest).to_string(),
            settings: registry.clone(),
            platform: None,
        };
        let proved = fetch_again(cache, &request, settings.arch.oci_name(), news).await?;
        if let Some(foreign) = layers.iter().find(|layer| !proved.contains(layer)) {
            return Err(odd(&format!("{foreign} is none of {}", request.reference)));
        }
        note_given(cache, session, settings, layers)?;
    }
    attach(session, cache, layers).await?;
    mount(session, layers).await?;
    Ok(must_fetch)
}

/// Notes that a machine has layers which are proved to be those of an image that it got.
pub(super) fn note_given(
    cache: &Cache,
    session: &mut Session,
    settings: &Settings,
    layers: &BTreeSet<Digest>,
) -> Result<()> {
    match &settings.state {
        StatePlace::Directory(dir) => note_use(cache, dir, layers)?,
        StatePlace::Nowhere => session.gives(layers),
    }
    Ok(())
}

/// Attaches the disks of layers that are in the cache.
pub(super) async fn attach(
    session: &mut Session,
    cache: &Cache,
    layers: &BTreeSet<Digest>,
) -> Result<()> {
    for layer in layers {
        let (path, _) = cache.find(layer).ok_or_else(|| {
            let message = format!("the image's registry no longer has layer {layer} as it was");
            Error::from(Failure::new(FailureCode::NotFound, message))
        })?;
        let path = path.into_os_string().into_string().map_err(|path| {
            let message = format!("{} is not valid UTF-8", path.display());
            Error::from(Failure::new(FailureCode::Unsupported, message))
        })?;
        let disk = DiskRequest {
            path,
            serial: serial(layer),
            read_only: true,
        };
        session.attach(disk).await?;
    }
    Ok(())
}

/// Has the agent mount layers whose disks are attached.
async fn mount(session: &mut Session, layers: &BTreeSet<Digest>) -> Result<()> {
    let layers = layers.iter().map(|layer| LayerDisk {
        diff_id: layer.to_string(),
        serial: serial(layer),
    });
    let mount = Request::Mount {
        layers: layers.collect(),
    };
    match session.ask(&mount).await? {
        Reply::Mounted => Ok(()),
        other => Err(wrong_reply(&other)),
    }
}

fn serial(layer: &Digest) -> String {
    format!("{SERIAL}{}", &layer.hex()[..DIGITS])
}

/// Layers of an image that no registry is known to have.
fn gone(needed: &NeededLayers) -> Error {
    let id = needed.id.rsplit(':').next().unwrap_or_default();
    let message = format!(
        "image {} was loaded or made here, and this computer no longer has all of its layers",
        id.get(..12).unwrap_or(id)
    );
    let failure = Failure::new(FailureCode::NotFound, message);
    failure
        .with_hint("load, import or commit it once more")
        .into()
}

fn odd(reason: &dyn ToString) -> Error {
    let message = format!(
        "the machine's agent names a layer oddly: {}",
        reason.to_string()
    );
    Failure::new(FailureCode::Failed, message).into()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::{
        progress::Mode,
        vdkr::{args::Global, settings::tests::settings},
        vm::{channel::Connection, fake_agent::FakeAgent, pipe::greet_guest},
    };

    #[tokio::test]
    async fn a_machine_without_state_has_what_its_session_gave_it() {
        let root = tempfile::tempdir().unwrap();
        let variables = [
            ("VDKR_STATELESS", "1"),
            ("VDKR_STATE_ROOT", root.path().to_str().unwrap()),
        ];
        let settings = settings(Global::default(), &variables, "").unwrap();
        // The archive of nothing: a layer that another machine's image has brought.
        let plain = [0; 1024];
        let layer = Digest::sha256(&plain);
        let taken = cache(&settings)
            .unwrap()
            .take_layer(&plain[..], &layer, &|| false);
        taken.unwrap().unwrap();

        let agent = FakeAgent::default();
        *agent.layers.lock().unwrap() = Some(100);
        *agent.needed.lock().unwrap() = NeededLayers {
            missing: vec![layer.to_string()],
            ..NeededLayers::default()
        };
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(agent.clone().serve(guest));
        let (reader, mut writer) = host.into_split();
        let (reader, hello) = greet_guest(reader, &mut writer, "test").await.unwrap();
        let connection = Connection::new(reader, writer, hello);
        let mut session = Session::of_kept(connection, &settings);
        let mut news = News::new(Mode::None, false);
        let mut run = RunRequest::default();
        let attached = || {
            let asked = agent.requests.lock().unwrap();
            asked
                .iter()
                .any(|request| matches!(request, Request::AttachDisk(_)))
        };

        let prepared = prepare(&mut session, &settings, &mut run, &mut news).await;
        let words = prepared.unwrap_err().to_string();
        assert!(words.contains("no longer has all of its layers"), "{words}");
        assert!(!attached());
        session.gives(&BTreeSet::from([layer]));
        let prepared = prepare(&mut session, &settings, &mut run, &mut news).await;
        assert!(prepared.is_err(), "the fake agent takes no disks");
        assert!(attached());
    }
}
