//! What the tests of the server share.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod collect;
pub mod disk;
pub mod scenario;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::media_type;
use vdkr_registry::fs::FaultPlan;
use vdkr_registry::{Registry, ServerConfig};

/// A registry on a directory of its own.
pub struct Bench {
    pub dir: Arc<tempfile::TempDir>,
    pub registry: Registry,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Bench {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        Self::on(scratch(), change)
    }

    pub fn on(dir: Arc<tempfile::TempDir>, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = ServerConfig::new(dir.path());
        change(&mut config);
        let registry = Registry::open(config).unwrap();
        Self { dir, registry }
    }

    pub fn planned(plan: &Arc<FaultPlan>) -> Self {
        Self::with(|config| config.fault_plan = Some(Arc::clone(plan)))
    }

    /// The same storage, served by another process as it were.
    pub fn reopened(&self) -> Self {
        Self::on(Arc::clone(&self.dir), |_| {})
    }

    pub fn storage(&self) -> &std::path::Path {
        self.dir.path()
    }

    pub fn v2(&self) -> std::path::PathBuf {
        self.dir.path().join("docker/registry/v2")
    }

    pub fn repository(&self, name: &str) -> std::path::PathBuf {
        self.v2().join("repositories").join(name)
    }

    pub fn blob_file(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        let algorithm = digest.algorithm().name();
        self.v2()
            .join("blobs")
            .join(algorithm)
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    pub async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let mut request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.uri(path).body(Full::new(body.into())).unwrap();
        Answer::read(self.registry.handle(request).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], "").await
    }

    pub async fn head(&self, path: &str) -> Answer {
        self.send("HEAD", path, &[], "").await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, &[], "").await
    }

    /// Pushes a blob with POST and PUT.
    pub async fn push_blob(&self, repository: &str, content: &[u8]) -> Digest {
        let digest = Digest::sha256(content);
        let answer = self.try_push_blob(repository, content).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        digest
    }

    pub async fn try_push_blob(&self, repository: &str, content: &[u8]) -> Answer {
        let digest = Digest::sha256(content);
        let begun = self
            .send("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], "")
            .await;
        if begun.status != StatusCode::ACCEPTED {
            return begun;
        }
        let location = format!("{}?digest={digest}", begun.header("location"));
        self.send("PUT", &location, &[], content.to_vec()).await
    }

    pub async fn put_manifest(&self, repository: &str, target: &str, manifest: &Value) -> Answer {
        let media_type = manifest["mediaType"]
            .as_str()
            .unwrap_or(media_type::OCI_MANIFEST);
        let path = format!("/v2/{repository}/manifests/{target}");
        self.send(
            "PUT",
            &path,
            &[("content-type", media_type)],
            manifest.to_string(),
        )
        .await
    }

    /// Pushes a small image with a layer of this content; returns its digest.
    pub async fn push_image(&self, repository: &str, tag: &str, layer: &[u8]) -> Digest {
        self.push_blob(repository, b"{}").await;
        self.push_blob(repository, layer).await;
        let manifest = image(&[layer]);
        let answer = self.put_manifest(repository, tag, &manifest).await;
        assert_eq!(answer.status, StatusCode::CREATED, "{answer:?}");
        Digest::sha256(manifest.to_string().as_bytes())
    }

    /// Pushes small images with one layer each, and under a tag the index of them; returns the images.
    pub async fn push_index(&self, repository: &str, tag: &str, layers: [&[u8]; 2]) -> [Value; 2] {
        for content in [&b"{}"[..], layers[0], layers[1]] {
            self.push_blob(repository, content).await;
        }
        let images = layers.map(|layer| image(&[layer]));
        for manifest in &images {
            let digest = digest_of(manifest).to_string();
            let answer = self.put_manifest(repository, &digest, manifest).await;
            answer.expect(201);
        }
        let index = index(&[&images[0], &images[1]]);
        self.put_manifest(repository, tag, &index).await.expect(201);
        images
    }
}

impl Answer {
    pub async fn read(response: http::Response<vdkr_registry::Body>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// The code of the first error of the body.
    pub fn code(&self) -> String {
        self.json()["errors"][0]["code"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.code(), code, "{answer:?}");
        answer
    }
}

/// An empty directory, in memory where there is such a place: what is durable is not tested with a
/// real disk here.
pub fn scratch() -> Arc<tempfile::TempDir> {
    let memory = std::path::Path::new("/dev/shm");
    Arc::new(
        tempfile::tempdir_in(memory)
            .or_else(|_| tempfile::tempdir())
            .unwrap(),
    )
}

pub fn descriptor(media_type: &str, content: &[u8]) -> Value {
    descriptor_by(Algorithm::Sha256, media_type, content)
}

pub fn descriptor_by(algorithm: Algorithm, media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(algorithm, content), "size": content.len() })
}

/// An image manifest with the configuration `{}` and these layers.
pub fn image(layers: &[&[u8]]) -> Value {
    let layers: Vec<_> = layers
        .iter()
        .map(|l| descriptor(media_type::OCI_LAYER, l))
        .collect();
    json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, b"{}"),
        "layers": layers,
    })
}

/// An index of these manifests.
pub fn index(manifests: &[&Value]) -> Value {
    let manifests: Vec<_> = manifests
        .iter()
        .map(|m| descriptor(m["mediaType"].as_str().unwrap(), m.to_string().as_bytes()))
        .collect();
    json!({ "schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": manifests })
}

pub fn digest_of(manifest: &Value) -> Digest {
    Digest::sha256(manifest.to_string().as_bytes())
}

/// Bytes that do not repeat.
pub fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(len)
    .collect()
}
