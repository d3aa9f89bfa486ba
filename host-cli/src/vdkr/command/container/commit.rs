//! `vdkr commit`: an image of a container.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::task::spawn_blocking;
use vdkr_core::{
    channel::message::{ContainerRequest, Reply, Request},
    digest::{Algorithm, Digest, Hasher},
    manifest::{change, media_type::OCI_MANIFEST, parse},
};

use super::receive::{Pieces, receive};
use crate::{
    exit::Exit,
    out,
    vdkr::{
        command::{
            import::{changed, new_name},
            wrong_reply,
        },
        container_args::CommitArgs,
        content::{
            Documents, add_image, add_layer,
            commit::{Basis, committed, layer},
            document, export,
        },
        error::{Error, Result},
        layers,
        session::{Session, interruptible, with_session},
        settings::Settings,
    },
};

/// Bytes that are moved at once.
const PIECE: usize = 256 * 1024;

/// Makes the image and prints its id.
pub async fn run(settings: &Settings, args: &CommitArgs) -> Result<u8> {
    let name = args.name.as_deref().map(new_name).transpose()?;
    // What is wrong with them is said before anything is done.
    changed(&args.change)?;
    let id = with_session(settings, "vdkr commit", async |session| {
        let containers = std::slice::from_ref(&args.container);
        layers::prepare_containers(session, settings, containers).await?;
        interruptible(commit(session, args, name)).await
    })
    .await?;
    out!("{id}");
    Ok(0)
}

async fn commit(session: &mut Session, args: &CommitArgs, name: Option<String>) -> Result<Digest> {
    let failed = |error: &dyn ToString| Error::new(Exit::Failed, error.to_string());
    let container = inspected(session, &args.container).await?;
    let image = container["Image"].as_str().unwrap_or_default().to_owned();
    let images = export(session, &[image]).await?;
    let [image] = images.as_slice() else {
        return Err(Error::new(
            Exit::Failed,
            "the container's image is not in the store",
        ));
    };
    let config = document(session, &image.id, image.config_size).await?;
    let manifest = &image.manifest;
    let raw = document(session, &manifest.digest, manifest.size).await?;
    let parsed = parse(&raw, Some(&manifest.media_type)).map_err(|error| failed(&error))?;
    let manifest = parsed
        .as_image()
        .ok_or_else(|| Error::new(Exit::Failed, "the container's image is an index"))?;

    let request = Request::Container(ContainerRequest::Commit {
        name: args.container.clone(),
        pause: args.pause,
    });
    let mut taken = None;
    receive(session, &request, async |pieces| {
        let work = spawn_blocking(move || store(pieces));
        taken = Some(work.await.map_err(io::Error::other)??);
        Ok(())
    })
    .await?;
    let Some((mut archive, diff_id, size)) = taken else {
        return Err(Error::new(Exit::Failed, "the machine sent no layer"));
    };
    let basis = Basis {
        config: &config,
        manifest,
        container: &container,
        layer: layer(diff_id.clone(), size),
        created: Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        author: args.author.as_deref(),
        comment: args.message.as_deref(),
    };
    let (config, manifest) = committed(basis, |config| {
        let mut changes = args.change.iter();
        changes.try_for_each(|text| change::apply(config, text).map_err(|error| error.to_string()))
    })
    .map_err(|error| failed(&error))?;
    let open = move || {
        archive.rewind()?;
        Ok(archive)
    };
    add_layer(session, &diff_id, open, &mut |_| {}).await?;
    let manifest = manifest.to_json().map_err(|error| failed(&error))?;
    let documents = Documents {
        media_type: OCI_MANIFEST,
        config: &config,
        manifest: &manifest,
    };
    // Layers of its base that are kept here are known to the machine.
    let added = add_image(session, name.as_deref(), &documents, Vec::new()).await?;
    let (id, _) = added?;
    Ok(id)
}

async fn inspected(session: &mut Session, name: &str) -> Result<Value> {
    let request = Request::Container(ContainerRequest::Inspect {
        name: name.to_owned(),
    });
    match session.ask(&request).await? {
        Reply::Inspected { documents } if documents.len() == 1 => {
            Ok(documents.into_iter().next().unwrap_or_default())
        }
        other => Err(wrong_reply(&other)),
    }
}

/// Keeps a stream in a file that goes with its handle; its digest and length.
fn store(mut pieces: Pieces) -> io::Result<(File, Digest, u64)> {
    let mut file = tempfile::tempfile()?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut buffer = vec![0; PIECE];
    let mut size = 0;
    loop {
        match pieces.read(&mut buffer)? {
            0 => return Ok((file, hasher.finish(), size)),
            count => {
                let bytes = buffer.get(..count).unwrap_or_default();
                hasher.update(bytes);
                file.write_all(bytes)?;
                size += count as u64;
            }
        }
    }
}
