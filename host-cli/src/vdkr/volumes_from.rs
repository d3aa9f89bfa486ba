//! `--volumes-from`: the volumes and host paths that another container has.

use serde_json::Value;
use vdkr_core::{
    channel::message::{ContainerRequest, MountSource, MountSpec, Reply, Request},
    volume::from::VolumesFrom,
};

use super::{
    command::wrong_reply,
    error::{Error, Result},
    granted::{Granted, SharedPath},
    session::Session,
    settings::{Settings, StatePlace},
};
use crate::exit::Exit;

/// What another container has in one place.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Theirs {
    target: String,
    read_only: bool,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// A volume, by its name.
    Volume(String),
    /// A path of this computer, as the machine calls it.
    Path(String),
}

/// Adds to `mounts` what other containers have. As with docker, what the command says of a place
/// holds there, and of several containers the last one.
pub async fn add(
    session: &mut Session,
    settings: &Settings,
    from: &[VolumesFrom],
    mounts: &mut Vec<MountSpec>,
) -> Result<()> {
    let own = mounts.len();
    for other in from {
        let (id, theirs) = theirs(session, &other.container).await?;
        for Theirs {
            target,
            read_only,
            what,
        } in theirs
        {
            let said = |mount: &MountSpec| mount.target == target;
            if mounts.iter().take(own).any(said) {
                continue;
            }
            let read_only = read_only || other.read_only;
            let (source, read_only) = match what {
                What::Volume(name) => {
                    let name = Some(name);
                    (
                        MountSource::Volume {
                            name,
                            no_copy: true,
                        },
                        read_only,
                    )
                }
                What::Path(path) => {
                    let known = noted(session, settings, &other.container, &id, &path)?;
                    let read_only = read_only || known.read_only;
                    let source = known.open()?;
                    let path = source.path().display().to_string();
                    let share = session.share(source, read_only, None).await?;
                    (MountSource::Share { share, path }, read_only)
                }
            };
            let mount = MountSpec {
                target,
                source,
                read_only,
            };
            match mounts
                .iter_mut()
                .skip(own)
                .find(|other| other.target == mount.target)
            {
                Some(other) => *other = mount,
                None => mounts.push(mount),
            }
        }
    }
    Ok(())
}

/// Asks what a container has. Its id and its mounts.
async fn theirs(session: &mut Session, name: &str) -> Result<(String, Vec<Theirs>)> {
    let name = name.to_owned();
    let request = Request::Container(ContainerRequest::Inspect { name });
    match session.ask(&request).await? {
        Reply::Inspected { documents } if documents.len() == 1 => {
            let document = documents.into_iter().next().unwrap_or_default();
            let id = document["Id"].as_str().unwrap_or_default().to_owned();
            Ok((id, read(&document)))
        }
        other => Err(wrong_reply(&other)),
    }
}

/// The mounts in a description; memory is nobody else's.
fn read(document: &Value) -> Vec<Theirs> {
    let mounts = document["Mounts"].as_array().into_iter().flatten();
    mounts
        .filter_map(|mount| {
            let text = |key: &str| {
                let text = mount[key].as_str().filter(|text| !text.is_empty());
                text.map(str::to_owned)
            };
            Some(Theirs {
                target: text("Destination")?,
                read_only: mount["RW"] == false,
                what: match mount["Type"].as_str()? {
                    "volume" => What::Volume(text("Name")?),
                    "bind" => What::Path(text("Source")?),
                    _ => return None,
                },
            })
        })
        .collect()
}

/// What the user gave to a container on this path. The machine's word alone opens no path of this
/// computer.
fn noted(
    session: &Session,
    settings: &Settings,
    name: &str,
    id: &str,
    path: &str,
) -> Result<SharedPath> {
    let granted = match &settings.state {
        StatePlace::Directory(dir) if !session.is_target() => Granted::read(dir, id)?,
        _ => Granted::default(),
    };
    let mut known = granted.paths.into_iter();
    known
        .find(|known| known.path.to_str() == Some(path))
        .ok_or_else(|| {
            let message = format!(
                "--volumes-from {name}: {path} of this computer is known to be that container's by \
                 the machine alone"
            );
            Error::new(Exit::Failed, message).with_hint(format!(
                "containers with --rm, and those of a target, leave no note of their paths here; \
                 name the directory itself: -v {path}:DIR"
            ))
        })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mounts_of_another_container() {
        let document = json!({ "Mounts": [
            { "Type": "volume", "Name": "data", "Source": "/x", "Destination": "/d", "RW": true },
            { "Type": "bind", "Source": "/home/me", "Destination": "/h", "RW": false },
            { "Type": "tmpfs", "Source": "", "Destination": "/t", "RW": true },
            { "Type": "volume", "Destination": "/nameless" },
            { "Type": "bind", "Source": "/y" },
            "no mount",
        ] });
        let theirs = |target: &str, read_only, what| Theirs {
            target: target.into(),
            read_only,
            what,
        };
        assert_eq!(
            read(&document),
            [
                theirs("/d", false, What::Volume("data".into())),
                theirs("/h", true, What::Path("/home/me".into())),
            ]
        );
        assert_eq!(read(&json!({})), []);
    }
}
