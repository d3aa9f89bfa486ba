//! `vdkr vstorage`: what machines and layers take on this computer, and its removal.

use std::{
    collections::VecDeque,
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::memres;
use crate::{
    exit::Exit,
    out,
    vdkr::{
        error::{Error, Result},
        human,
        layers::{self, Cache, forget_user, unused},
        machine_args::{VstorageCleanArgs, VstorageCommand, VstorageListArgs, VstoragePathArgs},
        session::{LOCK_PATIENCE, no_machine},
        settings::{Settings, StatePlace},
        state::{self, Wait},
        words::say,
    },
    vm::arch::Arch,
};

/// Does what is asked for.
pub async fn run(settings: &Settings, command: &VstorageCommand) -> Result<u8> {
    no_machine(settings, "vstorage")?;
    match command {
        VstorageCommand::List(args) => list(settings, args),
        VstorageCommand::Path(args) => path(settings, args),
        VstorageCommand::Df(args) => df(settings, args),
        VstorageCommand::Clean(args) => clean(settings, args).await,
    }
}

/// A state directory.
pub(super) struct Place {
    pub(super) arch: Arch,
    pub(super) instance: Option<String>,
    pub(super) dir: PathBuf,
}

/// The state directories below the root, in order.
fn places(settings: &Settings) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    match fs::read_dir(&settings.state_root) {
        Ok(entries) => {
            for entry in entries {
                let name = entry?.file_name().to_string_lossy().into_owned();
                if let Some((arch, instance)) = state::parse_directory_name(&name) {
                    places.push(Place {
                        arch,
                        instance: instance.map(str::to_owned),
                        dir: settings.state_root.join(&name),
                    });
                }
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    places.sort_by(|a, b| a.dir.cmp(&b.dir));
    Ok(places)
}

/// As [`places`], with the directory that this command was given, which may be elsewhere.
pub(super) fn known_places(settings: &Settings) -> Result<Vec<Place>> {
    let mut places = places(settings)?;
    if let StatePlace::Directory(dir) = &settings.state
        && dir.is_dir()
        && places.iter().all(|place| place.dir != *dir)
    {
        places.push(Place {
            arch: state::architecture(dir).unwrap_or(settings.arch),
            instance: None,
            dir: dir.clone(),
        });
    }
    Ok(places)
}

/// Bytes that a directory takes on disk; links are not followed, and what goes meanwhile counts
/// nothing.
fn allocated(dir: &Path) -> u64 {
    let mut todo = VecDeque::from([dir.to_owned()]);
    let mut bytes = 0u64;
    while let Some(path) = todo.pop_front() {
        let Ok(meta) = fs::symlink_metadata(&path) else {
            continue;
        };
        bytes = bytes.saturating_add(meta.blocks().saturating_mul(512));
        if meta.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(entries.map(|entry| entry.path()));
        }
    }
    bytes
}

fn list(settings: &Settings, args: &VstorageListArgs) -> Result<u8> {
    let heads = ["ARCH", "INSTANCE", "SIZE", "IN USE BY", "DIRECTORY"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut objects = Vec::new();
    for Place {
        arch,
        instance,
        dir,
    } in known_places(settings)?
    {
        let bytes = allocated(&dir);
        let holder = state::locked_by(&dir);
        objects.push(json!({
            "arch": arch.name(), "instance": instance, "bytes": bytes, "in_use_by": holder,
            "directory": dir,
        }));
        rows.push(vec![
            arch.to_string(),
            instance.unwrap_or_else(|| "-".to_owned()),
            human::size(bytes),
            holder.unwrap_or_else(|| "-".to_owned()),
            dir.display().to_string(),
        ]);
    }
    show(args, &rows, objects);
    Ok(0)
}

fn show(args: &VstorageListArgs, rows: &[Vec<String>], objects: Vec<serde_json::Value>) {
    if args.json {
        out!("{:#}", serde_json::Value::Array(objects));
    } else {
        crate::output::write(format_args!("{}", human::columns(rows)));
    }
}

/// The state directory that a command means, with another architecture when one is named.
fn directory(settings: &Settings, arch: Option<&str>) -> Result<PathBuf> {
    let Some(arch) = arch else {
        return match &settings.state {
            StatePlace::Directory(dir) => Ok(dir.clone()),
            StatePlace::Nowhere => Err(Error::usage("--stateless has no state directory")),
        };
    };
    let arch: Arch = arch
        .parse()
        .map_err(|error| Error::usage(format!("{error}")))?;
    let name = state::directory_name(arch, settings.global.instance.as_deref())?;
    Ok(settings.state_root.join(name))
}

fn path(settings: &Settings, args: &VstoragePathArgs) -> Result<u8> {
    let dir = directory(settings, args.arch.as_deref())?;
    out!("{}", dir.display());
    Ok(0)
}

fn df(settings: &Settings, args: &VstorageListArgs) -> Result<u8> {
    let heads = ["TYPE", "COUNT", "SIZE", "RECLAIMABLE"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    let mut objects = Vec::new();
    let mut add = |kind: &str, count: usize, bytes: u64, reclaimable: u64| {
        objects.push(json!({
            "type": kind, "count": count, "bytes": bytes, "reclaimable": reclaimable,
        }));
        rows.push(vec![
            kind.to_owned(),
            count.to_string(),
            human::size(bytes),
            human::size(reclaimable),
        ]);
    };
    let places = known_places(settings)?;
    let sizes: Vec<(u64, bool)> = places
        .iter()
        .map(|place| {
            (
                allocated(&place.dir),
                state::locked_by(&place.dir).is_none(),
            )
        })
        .collect();
    let idle = sizes
        .iter()
        .filter(|(_, idle)| *idle)
        .map(|(bytes, _)| bytes);
    add(
        "State",
        places.len(),
        sizes.iter().map(|(bytes, _)| bytes).sum(),
        idle.sum(),
    );
    let cache = layers::cache(settings)?;
    let all = cache.layers()?;
    let free = unused(&cache)?;
    let sum = |layers: &[layers::CachedLayer]| layers.iter().map(|layer| layer.allocated).sum();
    add("Layers", all.len(), sum(&all), sum(&free));
    show(args, &rows, objects);
    Ok(0)
}

async fn clean(settings: &Settings, args: &VstorageCleanArgs) -> Result<u8> {
    let cache = layers::cache(settings)?;
    if args.all {
        for place in places(settings)? {
            remove(&cache, &place.dir).await?;
        }
    } else if !args.layers {
        remove(&cache, &directory(settings, args.arch.as_deref())?).await?;
    }
    let collected = layers::collect(&cache, 0)?;
    if collected.busy {
        let message = "another command is using layers; none was removed";
        return Err(Error::new(Exit::Failed, message).with_hint("try again when it has ended"));
    }
    let (count, size) = (collected.layers, human::size(collected.bytes));
    say(&format!("removed {count} layers ({size})"));
    Ok(0)
}

/// Stops the machine of a directory and removes its state; layers stay on this computer.
pub(super) async fn clean_state(settings: &Settings, dir: &Path) -> Result<()> {
    remove(&layers::cache(settings)?, dir).await
}

/// Stops the machine of a directory and removes the directory.
async fn remove(cache: &Cache, dir: &Path) -> Result<()> {
    if !dir.exists() {
        forget_user(cache, dir);
        say(&format!("{} is not there", dir.display()));
        return Ok(());
    }
    if memres::end(dir).await? {
        say("stopped the machine");
    }
    // Whoever waits for the lock finds another directory, or none.
    let lock = state::lock(dir, "vdkr vstorage clean", LOCK_PATIENCE, async |_| {
        Wait::Go
    })
    .await?;
    let size = human::size(allocated(dir));
    fs::remove_dir_all(dir).map_err(|error| {
        let message = format!("cannot remove {}: {error}", dir.display());
        Error::new(Exit::Failed, message)
    })?;
    drop(lock);
    forget_user(cache, dir);
    say(&format!("removed {} ({size})", dir.display()));
    Ok(())
}
