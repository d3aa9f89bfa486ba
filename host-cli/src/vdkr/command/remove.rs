//! `vdkr rmi`: removes names, and what nothing names any more.

use vdkr_core::{
    channel::message::{ContainerRow, ContainerState, ImageRow, Removed, Reply, Request},
    container::name::short,
};

use super::{
    container::list,
    images::{rows, shorten},
    wrong_reply,
};
use crate::{
    exit::Exit,
    out_line,
    vdkr::{
        error::{Error, Result},
        image_args::RemoveArgs,
        layers,
        names::{self, Found},
        registry,
        session::{Session, with_session},
        settings::Settings,
        words::say,
    },
};

/// Removes one after the other; one that cannot be removed does not stop the others.
pub async fn run(settings: &Settings, args: &RemoveArgs) -> Result<u8> {
    let outcomes = with_session(settings, "vdkr rmi", async |session| {
        let mut outcomes = Vec::new();
        for name in &args.names {
            match remove(session, settings, name, args.force).await {
                Ok(removed) => {
                    for step in removed {
                        match step {
                            Removed::Untagged(name) => out_line!("Untagged: {name}"),
                            Removed::Deleted(digest) => out_line!("Deleted: {digest}"),
                        }
                    }
                    outcomes.push(Exit::Done);
                }
                Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
                    return Err(error);
                }
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit().of_removal(args.force));
                }
            }
        }
        layers::settle(session, settings).await?;
        Ok(outcomes)
    })
    .await?;
    Ok(Exit::of_several(outcomes).code())
}

async fn remove(
    session: &mut Session,
    settings: &Settings,
    name: &str,
    force: bool,
) -> Result<Vec<Removed>> {
    if force {
        let images = rows(session).await?;
        let registry = registry::configured(settings)?;
        if let Some(Found { name: None, id }) = names::find_in(&images, registry.as_ref(), name)? {
            let containers = list(session).await?;
            if let Some(conflict) = conflict(&id, &images, &containers) {
                return Err(conflict);
            }
        }
    }
    let request = Request::Remove {
        names: vec![names::for_agent(session, settings, name).await?],
        force,
    };
    match session.ask(&request).await? {
        Reply::Removed { removed } => Ok(removed),
        other => Err(wrong_reply(&other)),
    }
}

/// Why not even force removes an image that was named by its id: as with docker, one of a container
/// that runs. One of a container that has ended loses its names, and stays for the container's next
/// start; when it has none, nothing can be done to it.
fn conflict(id: &str, images: &[ImageRow], containers: &[ContainerRow]) -> Option<Error> {
    let users = || containers.iter().filter(|row| row.image_id == id);
    let runs = |row: &&ContainerRow| row.state.is_live() || row.state == ContainerState::Restarting;
    let is_bare = images
        .iter()
        .filter(|row| row.id == id)
        .all(|row| row.tag.is_none() && row.digest.is_none());
    let image = shorten(id, false);
    let told = |how: &str, row: &ContainerRow, hint: &str| {
        let message = format!(
            "conflict: unable to delete {image} (cannot be forced) - image is being used by {how} \
             container {}",
            short(&row.id)
        );
        Error::new(Exit::Failed, message).with_hint(format!("first: vdkr {hint} {}", row.name))
    };
    match (users().find(runs), users().next()) {
        (Some(running), _) => Some(told("running", running, "rm -f")),
        (None, Some(stopped)) if is_bare => Some(told("stopped", stopped, "rm")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_containers_stay() {
        let id = format!("sha256:{}", "0a".repeat(32));
        let image = |tag: Option<&str>| ImageRow {
            name: "base".into(),
            tag: tag.map(Into::into),
            id: id.clone(),
            ..ImageRow::default()
        };
        let container = |state, image: &str| ContainerRow {
            id: "c".repeat(64),
            name: "box".into(),
            image_id: image.into(),
            state,
            ..ContainerRow::default()
        };
        let told = |tag, container| {
            conflict(&id, &[image(tag)], &[container]).map(|error| error.to_string())
        };
        let (running, stopped) = (ContainerState::Running, ContainerState::Exited);
        for state in [running, ContainerState::Paused, ContainerState::Restarting] {
            let words = told(Some("1"), container(state, &id)).unwrap();
            assert_eq!(
                words,
                "conflict: unable to delete 0a0a0a0a0a0a (cannot be forced) - image is being used \
                 by running container cccccccccccc\nfirst: vdkr rm -f box"
            );
        }
        assert_eq!(told(Some("1"), container(stopped, &id)), None);
        assert!(
            told(None, container(stopped, &id))
                .unwrap()
                .contains("stopped container")
        );
        assert_eq!(told(Some("1"), container(running, "sha256:other")), None);
    }
}
