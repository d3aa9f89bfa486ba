//! `admit`: an image into the store that the host has pulled, and whose layers it keeps.

use vdkr_core::{
    channel::message::{AdmitRequest, Done, Failure, FailureCode, Reply},
    digest::Digest,
    reference::Reference,
};
use vdkr_transfer::{FetchedManifest, pull::Image};

use super::Agent;
use crate::pull::add;

/// Adds the image under its name. Its documents are checked as those of a registry are.
pub async fn admit(agent: &Agent, request: &AdmitRequest) -> Done {
    let store = agent.store()?;
    let wrong = |what: &str, reason: &dyn ToString| {
        let message = format!("the host\'s {what} cannot be used: {}", reason.to_string());
        Failure::new(FailureCode::Usage, message)
    };
    let reference = Reference::parse(&request.reference).map_err(|e| wrong("reference", &e))?;
    let digest = Digest::parse(&request.digest).map_err(|e| wrong("digest", &e))?;
    let raw = request.manifest.clone().into_bytes();
    let manifest = FetchedManifest {
        digest: Digest::sha256(&raw),
        raw: raw.into(),
        media_type: request.media_type.clone(),
    };
    let config = request.config.clone().into_bytes();
    let image = Image::from_documents(reference.to_string(), digest, manifest, config)?;
    let _lease = store.keep(image.config.rootfs.diff_ids.iter().cloned());
    for layer in &request.layers {
        let diff_id = Digest::parse(&layer.diff_id).map_err(|e| wrong("layer", &e))?;
        if image.config.rootfs.diff_ids.contains(&diff_id) {
            store.expect_layer(&diff_id, layer)?;
        }
    }
    for layer in image.layers()? {
        if !store.has_layer(&layer.diff_id) {
            return Err(wrong(
                "image",
                &format!("layer {} is missing", layer.diff_id),
            ));
        }
    }
    Ok(Reply::Pulled(add(store, &reference, image).await?))
}
