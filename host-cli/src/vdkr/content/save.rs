//! Archives of images, written as their parts come: an OCI layout in a tar file, and beside its
//! list the one that `docker load` reads.

use std::{
    collections::{BTreeMap, HashSet},
    io::{self, Write},
};

use serde_json::json;
use tokio::task::spawn_blocking;
use vdkr_core::{
    channel::message::ExportedImage,
    digest::Digest,
    manifest::{
        Descriptor, ImageConfig, ImageIndex, ImageManifest,
        media_type::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST},
    },
    reference::Reference,
};
use vdkr_transfer::{archive::member_header, layout::FULL_NAME};

use super::{document, out::Out, plain_size, read_layer};
use crate::{
    exit::Exit,
    vdkr::{
        error::{Error, Result},
        layers::Archives,
        session::Session,
    },
};

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const BLOCK: u64 = 512;

/// An image to be saved, and the names it gets in the archive, in full.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The image.
    pub image: ExportedImage,
    /// Canonical references with a tag.
    pub names: Vec<String>,
}

/// An archive under way.
#[derive(Debug)]
pub struct Archive {
    out: Out,
    docker: bool,
    directories: HashSet<String>,
    written: HashSet<Digest>,
    index: ImageIndex,
    list: Vec<serde_json::Value>,
}

fn member_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// What fills the last block of a member.
fn padding(size: u64) -> Vec<u8> {
    vec![0; usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or_default()]
}

impl Archive {
    /// Begins an archive; with `docker`, one that `docker load` reads.
    pub fn new(out: Out, docker: bool) -> Self {
        Self {
            out,
            docker,
            directories: HashSet::new(),
            written: HashSet::new(),
            index: ImageIndex::default(),
            list: Vec::new(),
        }
    }

    /// Writes an image, of whose layers `kept` has those that the machine only mounts. `saved` hears of
    /// every layer and how many bytes it has.
    pub async fn add(
        &mut self,
        session: &mut Session,
        wanted: &Wanted,
        kept: &Archives,
        saved: &mut dyn FnMut(&Digest, u64),
    ) -> Result<()> {
        let image = &wanted.image;
        let config = document(session, &image.id, image.config_size).await?;
        let parsed = ImageConfig::parse(&config).map_err(|error| {
            let message = format!("configuration {}: {error}", image.id);
            Error::new(Exit::Failed, message)
        })?;
        let ids = image.layers.iter().map(|layer| &layer.diff_id);
        if !ids.eq(&parsed.rootfs.diff_ids) {
            let message = format!("the machine lists other layers than image {} has", image.id);
            return Err(Error::new(Exit::Mismatch, message));
        }
        let mut layers = Vec::new();
        for layer in &image.layers {
            let size = plain_size(layer, kept)?;
            layers.push(Descriptor::new(OCI_LAYER, layer.diff_id.clone(), size));
            if !self.written.insert(layer.diff_id.clone()) {
                continue;
            }
            let mut writer = self.out.writer()?;
            let header = self.blob_header(&layer.diff_id, size);
            read_layer(session, layer, kept, move |mut part| {
                writer.write_all(&header)?;
                io::copy(&mut part, &mut writer)?;
                writer.write_all(&padding(size))
            })
            .await?;
            saved(&layer.diff_id, size);
        }
        self.blob(&image.id, config).await?;
        let manifest = ImageManifest {
            artifact_type: None,
            config: Descriptor::new(OCI_CONFIG, image.id.clone(), image.config_size),
            layers,
            subject: None,
            annotations: BTreeMap::new(),
        };
        let raw = manifest
            .to_json()
            .map_err(|error| Error::new(Exit::Failed, error.to_string()))?;
        let digest = Digest::sha256(&raw);
        let mut entry = Descriptor::new(OCI_MANIFEST, digest.clone(), raw.len() as u64);
        let platform = parsed.platform();
        entry.platform = (!platform.architecture.is_empty()).then_some(platform);
        self.blob(&digest, raw).await?;
        self.list(&entry, &manifest, &wanted.names)
    }

    fn list(
        &mut self,
        entry: &Descriptor,
        manifest: &ImageManifest,
        names: &[String],
    ) -> Result<()> {
        let mut familiar = Vec::new();
        for name in names {
            let reference = Reference::parse(name)?;
            let mut named = entry.clone();
            named.annotations.insert(FULL_NAME.to_owned(), name.clone());
            let tag = reference.tag_or_latest().to_owned();
            named.annotations.insert(REF_NAME.to_owned(), tag);
            self.index.manifests.push(named);
            familiar.push(reference.familiar());
        }
        if names.is_empty() {
            self.index.manifests.push(entry.clone());
        }
        let layers: Vec<_> = manifest
            .layers
            .iter()
            .map(|layer| member_name(&layer.digest))
            .collect();
        self.list.push(json!({
            "Config": member_name(&manifest.config.digest),
            "RepoTags": familiar,
            "Layers": layers,
        }));
        Ok(())
    }

    async fn blob(&mut self, digest: &Digest, bytes: Vec<u8>) -> Result<()> {
        if self.written.insert(digest.clone()) {
            let header = self.blob_header(digest, bytes.len() as u64);
            self.data(header, bytes).await?;
        }
        Ok(())
    }

    /// The header of a blob, behind those of directories that the archive does not have yet: skopeo
    /// unpacks, and where it has to make a directory itself, it gives that away to root, which
    /// ordinary users cannot.
    fn blob_header(&mut self, digest: &Digest, size: u64) -> Vec<u8> {
        let mut headers = Vec::new();
        for directory in [
            "blobs/".to_owned(),
            format!("blobs/{}/", digest.algorithm()),
        ] {
            if !self.directories.contains(&directory) {
                headers.extend(member_header(&directory, 0));
                self.directories.insert(directory);
            }
        }
        headers.extend(member_header(&member_name(digest), size));
        headers
    }

    async fn member(&self, name: &str, bytes: Vec<u8>) -> Result<()> {
        let header = member_header(name, bytes.len() as u64);
        self.data(header, bytes).await
    }

    async fn data(&self, header: Vec<u8>, bytes: Vec<u8>) -> Result<()> {
        let padding = padding(bytes.len() as u64);
        self.write(vec![header, bytes, padding]).await
    }

    async fn write(&self, pieces: Vec<Vec<u8>>) -> Result<()> {
        let mut writer = self.out.writer()?;
        let written = spawn_blocking(move || {
            pieces
                .iter()
                .try_for_each(|piece| writer.write_all(piece))?;
            writer.flush()
        });
        match written.await {
            Ok(result) => Ok(result?),
            Err(error) => Err(Error::new(Exit::Failed, error.to_string())),
        }
    }

    /// Writes the lists and gives the archive its name.
    pub async fn finish(self) -> Result<()> {
        let failed = |error: &dyn ToString| Error::new(Exit::Failed, error.to_string());
        let index = self.index.to_json().map_err(|error| failed(&error))?;
        self.member("index.json", index).await?;
        if self.docker {
            let list = serde_json::to_vec(&self.list).map_err(|error| failed(&error))?;
            self.member("manifest.json", list).await?;
        }
        let marker = br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec();
        self.member("oci-layout", marker).await?;
        // Two blocks of zeros end an archive.
        self.write(vec![vec![0; 1024]]).await?;
        self.out.keep()
    }
}
