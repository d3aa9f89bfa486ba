//! `layers` and `mount`: what the host keeps for images, and its disks.

use std::time::Duration;

use tokio::task::spawn_blocking;
use vdkr_core::{
    channel::message::{Done, Failure, FailureCode, LayerDisk, RegistrySettings, Reply},
    digest::Digest,
};
use vdkr_transfer::pull::joined;

use super::Agent;
use crate::{boot::disks, store::ImageError};

/// How long a disk that the host has attached may take to appear.
const PATIENCE: Duration = Duration::from_secs(20);
/// Disks in one request.
const MAX_DISKS: usize = 256;

/// Says which layers of an image, or of a container's image, the host has yet to hand over.
pub fn layers(
    agent: &Agent,
    name: Option<&str>,
    of_container: bool,
    settings: &RegistrySettings,
) -> Done {
    let image = match name {
        Some(name) if of_container => {
            let entry = agent.book().find(name)?;
            let image = entry.record.borrow().image.to_string();
            Some(image)
        }
        name => name.map(str::to_owned),
    };
    let needed = agent.store()?.needed_layers(image.as_deref(), settings)?;
    Ok(Reply::Layers(needed))
}

/// Mounts the layers of disks that the host has attached.
pub async fn mount(agent: &Agent, disks: Vec<LayerDisk>) -> Done {
    if disks.len() > MAX_DISKS {
        let message = format!("more than {MAX_DISKS} disks at once");
        return Err(Failure::new(FailureCode::Usage, message));
    }
    let store = agent.store()?.clone();
    let mounted = spawn_blocking(move || {
        for LayerDisk { diff_id, serial } in disks {
            let layer = Digest::parse(&diff_id).map_err(|error| ImageError::Damaged {
                path: serial.clone().into(),
                reason: error.to_string(),
            })?;
            let device = disks::wait_for(&serial, PATIENCE)
                .map_err(ImageError::io("find the host\'s disk", &serial))?;
            store.mount_layer(&layer, &device)?;
        }
        Ok(())
    });
    joined(mounted.await)?;
    Ok(Reply::Mounted)
}
