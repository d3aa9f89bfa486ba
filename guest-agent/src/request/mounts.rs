//! What containers get mounted: settled when a container is made, found again at each start.

use std::collections::{BTreeMap, BTreeSet};

use vdkr_core::{
    channel::message::{Failure, FailureCode, MountSource, MountSpec},
    volume::check_target,
};

use super::{Agent, share, volume};
use crate::{
    container::{Coming, Entry},
    run::spec::{Volume, VolumeSource},
    share::ShareUse,
    volume::NewVolume,
};

/// Mounts of one container, those of its image included.
const MAX_MOUNTS: usize = 256;

/// Mounts of a new container, every volume with its name.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// In the order of mounting.
    pub(crate) specs: Vec<MountSpec>,
    /// Keeps what the host shares.
    pub(crate) shares: Vec<ShareUse>,
    /// Volumes that were made just now for this container alone.
    own: Vec<String>,
}

/// Settles what the user and the image want mounted.
pub(crate) async fn settle(
    agent: &Agent,
    coming: &Coming,
    wanted: &[MountSpec],
    of_image: &BTreeSet<String>,
) -> Result<Settled, Failure> {
    let usage = |text: String| Failure::new(FailureCode::Usage, text);
    if wanted.len() + of_image.len() > MAX_MOUNTS {
        let count = wanted.len() + of_image.len();
        return Err(usage(format!(
            "{count} mounts for one container; at most {MAX_MOUNTS} are possible"
        )));
    }
    let mut places: BTreeMap<String, MountSpec> = BTreeMap::new();
    for spec in wanted {
        let target = check_target(&spec.target).map_err(|error| usage(error.to_string()))?;
        if places.contains_key(&target) {
            return Err(usage(format!("two mounts on {target}")));
        }
        places.insert(target, spec.clone());
    }
    for path in of_image {
        let target =
            check_target(path).map_err(|error| usage(format!("a volume of the image: {error}")))?;
        places.entry(target).or_insert_with(|| MountSpec {
            source: MountSource::Volume {
                name: None,
                no_copy: false,
            },
            ..MountSpec::default()
        });
    }
    let mut settled = Settled::default();
    for (target, spec) in places {
        let spec = MountSpec { target, ..spec };
        if let Err(failure) = settled.add(agent, coming, spec).await {
            settled.give_up(agent).await;
            return Err(failure);
        }
    }
    // What is mounted on a directory of another mount comes after it.
    settled
        .specs
        .sort_by_key(|spec| spec.target.matches('/').count());
    Ok(settled)
}

impl Settled {
    async fn add(
        &mut self,
        agent: &Agent,
        coming: &Coming,
        mut spec: MountSpec,
    ) -> Result<(), Failure> {
        match &mut spec.source {
            MountSource::Share { share, .. } => {
                let held = agent.shares.hold(share);
                self.shares
                    .push(held.map_err(|error| share::failed(&error))?);
            }
            MountSource::Volume { name, .. } => {
                let fresh = NewVolume::named(name.take()).map_err(volume::failed)?;
                // Nobody removes it before the container is there to hold it.
                coming.has(fresh.name());
                let anonymous = fresh.is_anonymous();
                let made = volume::create(agent, fresh).await?;
                if anonymous {
                    self.own.push(made.clone());
                }
                *name = Some(made);
            }
            MountSource::Tmpfs { .. } => {}
            MountSource::Unknown => {
                return Err(Failure::new(
                    FailureCode::Unsupported,
                    "the agent does not know this kind of mount",
                )
                .with_hint("use a host program and an agent of the same release"));
            }
        }
        self.specs.push(spec);
        Ok(())
    }

    /// There will be no container: what was made for it goes, while it is still empty.
    pub(crate) async fn give_up(self, agent: &Agent) {
        if let Ok(gone) = agent.volumes.discard(&self.own, true, &|_| false) {
            let _ = tokio::task::spawn_blocking(move || gone.remove()).await;
        }
    }
}

/// Keeps what the host shares with a container, as far as it does now.
pub(crate) fn hold(agent: &Agent, specs: &[MountSpec]) -> Vec<ShareUse> {
    let shares = specs.iter().filter_map(|spec| match &spec.source {
        MountSource::Share { share, .. } => agent.shares.hold(share).ok(),
        _ => None,
    });
    shares.collect()
}

/// Finds what a container has mounted, for a start of it.
pub(crate) fn resolve(agent: &Agent, specs: &[MountSpec]) -> Result<Vec<Volume>, Failure> {
    specs
        .iter()
        .map(|spec| {
            let (source, copy) = match &spec.source {
                MountSource::Share { share, path } => {
                    // The container holds it for longer.
                    let held = agent.shares.hold(share).map_err(|_| not_shared(path))?;
                    (VolumeSource::Tree(held.point().to_owned()), false)
                }
                MountSource::Volume { name, no_copy } => {
                    let name = name.as_deref().unwrap_or_default();
                    let data = agent.volumes.data(name).map_err(volume::failed)?;
                    (VolumeSource::Tree(data), !no_copy)
                }
                MountSource::Tmpfs { size, mode } => {
                    let (size, mode) = (*size, *mode);
                    (VolumeSource::Tmpfs { size, mode }, false)
                }
                MountSource::Unknown => {
                    let text = format!("unknown mount on {}", spec.target);
                    return Err(Failure::new(FailureCode::Unsupported, text));
                }
            };
            Ok(Volume {
                source,
                target: spec.target.clone(),
                read_only: spec.read_only,
                copy,
            })
        })
        .collect()
}

fn not_shared(path: &str) -> Failure {
    Failure::new(
        FailureCode::NotFound,
        format!(
            "{path} of the host is not shared with this machine; remove the container and run it \
             again"
        ),
    )
}

/// Whether a container has a volume, or will have it.
pub(crate) fn is_used(agent: &Agent, name: &str) -> bool {
    let has = |entry: &Entry| {
        let record = entry.record.borrow();
        volumes_of(&record.request.mounts).any(|other| other == name)
    };
    agent.book().all().iter().any(|entry| has(entry)) || agent.book().is_coming_with(name)
}

fn volumes_of(specs: &[MountSpec]) -> impl Iterator<Item = &str> {
    specs.iter().filter_map(|spec| match &spec.source {
        MountSource::Volume { name, .. } => name.as_deref(),
        _ => None,
    })
}

/// A container is gone: so are the volumes that nobody has named, unless another one has them.
pub(crate) async fn remove_anonymous(agent: &Agent, entry: &Entry) {
    let names = {
        let record = entry.record.borrow();
        agent.volumes.anonymous(volumes_of(&record.request.mounts))
    };
    let unused: Vec<String> = names
        .into_iter()
        .filter(|name| !is_used(agent, name))
        .collect();
    match agent.volumes.discard(&unused, true, &|_| false) {
        Ok(gone) => {
            let removed = tokio::task::spawn_blocking(move || gone.remove()).await;
            if let Ok(Err(error)) = removed {
                eprintln!("vdkr-agent: {error}");
            }
        }
        Err(error) => eprintln!("vdkr-agent: {error}"),
    }
}

/// What a container has mounted, as docker describes it.
pub(crate) fn describe(agent: &Agent, specs: &[MountSpec]) -> serde_json::Value {
    let describe = |spec: &MountSpec| {
        let (kind, name, source) = match &spec.source {
            MountSource::Share { path, .. } => ("bind", None, path.clone()),
            MountSource::Volume { name, .. } => {
                let name = name.clone().unwrap_or_default();
                let data = agent.volumes.place(&name).display().to_string();
                ("volume", Some(name), data)
            }
            MountSource::Tmpfs { .. } => ("tmpfs", None, String::new()),
            MountSource::Unknown => ("unknown", None, String::new()),
        };
        let mut shown = serde_json::json!({
            "Type": kind,
            "Source": source,
            "Destination": spec.target,
            "Mode": if spec.read_only { "ro" } else { "" },
            "RW": !spec.read_only,
            "Propagation": if kind == "bind" { "rprivate" } else { "" },
        });
        if let Some(name) = name {
            shown["Name"] = name.into();
            shown["Driver"] = "local".into();
        }
        shown
    };
    specs.iter().map(describe).collect()
}
