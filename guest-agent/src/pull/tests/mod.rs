//! Pulls from registries that answer by script.

mod content;
mod server;

use std::{cell::RefCell, fs, io::Write, path::Path};

use serde_json::json;
use vdkr_core::reference::Host;
use vdkr_core::{
    channel::message::{FailureCode, HostCredential, LogLevel, Mirror, Phase},
    credentials::{Credential, Secret},
    digest::Digest,
    manifest::{
        Descriptor,
        media_type::{OCI_CONFIG, OCI_INDEX, OCI_LAYER_GZIP, OCI_MANIFEST},
    },
    platform::Platform,
};
use vdkr_transfer::{Trust, pull::MAX_DEPTH};

use super::*;

use crate::store::fixture::{config, layer};
use server::{Answer, Server, Stall};

/// A client that does not wait for a registry to come back.
fn impatient(settings: &RegistrySettings) -> Client {
    connect(ClientConfig {
        retry: vdkr_transfer::RetryPolicy::never(),
        ..client_settings(settings).unwrap()
    })
    .unwrap()
}

/// A layer's blob beside its archive.
struct Blob {
    plain: Vec<u8>,
    packed: Vec<u8>,
}

impl Blob {
    fn new(file: &str, content: &str) -> Self {
        let plain = layer(file, content);
        let packed = gzip(&plain);
        Self { plain, packed }
    }

    fn digest(&self) -> Digest {
        Digest::sha256(&self.packed)
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(plain).unwrap();
    encoder.finish().unwrap()
}

/// Puts an image into a registry; the bytes of its manifest.
fn publish(server: &Server, repository: &str, tag: &str, layers: &[Blob]) -> Vec<u8> {
    let plain: Vec<Vec<u8>> = layers.iter().map(|layer| layer.plain.clone()).collect();
    publish_with(
        server,
        repository,
        tag,
        layers,
        &config(&plain, "2026-01-12T14:30:22Z"),
    )
}

fn publish_with(
    server: &Server,
    repository: &str,
    tag: &str,
    layers: &[Blob],
    config: &[u8],
) -> Vec<u8> {
    for layer in layers {
        server.blob(repository, &layer.packed);
    }
    let described = layers
        .iter()
        .map(|layer| Descriptor::new(OCI_LAYER_GZIP, layer.digest(), layer.packed.len() as u64));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor::new(OCI_CONFIG, server.blob(repository, config), config.len() as u64),
        "layers": described.collect::<Vec<_>>(),
    });
    let manifest = manifest.to_string().into_bytes();
    server.manifest(repository, tag, OCI_MANIFEST, &manifest);
    manifest
}

struct Place {
    directory: tempfile::TempDir,
    store: Option<Store>,
    events: RefCell<Vec<Event>>,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Some(Store::open(directory.path()).unwrap());
        Self {
            directory,
            store,
            events: RefCell::default(),
        }
    }

    fn store(&self) -> &Store {
        self.store.as_ref().unwrap()
    }

    fn reopen(&mut self) {
        self.store = None;
        self.store = Some(Store::open(self.directory.path()).unwrap());
    }

    async fn pull(&self, name: &str, settings: &RegistrySettings) -> Result<Pulled, ImageError> {
        self.pull_for(name, settings, None).await
    }

    async fn pull_for(
        &self,
        name: &str,
        settings: &RegistrySettings,
        platform: Option<&str>,
    ) -> Result<Pulled, ImageError> {
        let token = CancellationToken::new();
        let events = |event| self.events.borrow_mut().push(event);
        let client = impatient(settings);
        pull_with(
            self.store(),
            &client,
            name,
            settings,
            platform,
            &events,
            &token,
        )
        .await
    }

    fn tried(&self) -> Vec<String> {
        let events = self.events.borrow();
        let tried = events.iter().filter_map(|event| match event {
            Event::Trying { reference } => Some(reference.clone()),
            _ => None,
        });
        tried.collect()
    }

    fn phases(&self, layer: &Digest) -> Vec<Phase> {
        let events = self.events.borrow();
        let phases = events.iter().filter_map(|event| match event {
            Event::Progress {
                layer: of, phase, ..
            } if *of == layer.to_string() => Some(*phase),
            _ => None,
        });
        phases.collect()
    }

    fn read(&self, name: &str, layer: usize, file: &str) -> String {
        let image = self
            .store()
            .resolve(name, &RegistrySettings::default())
            .unwrap();
        let path = self
            .store()
            .layers_dir()
            .join(&image.layers[layer])
            .join(file);
        fs::read_to_string(path).unwrap()
    }

    /// Directories of layers, once nothing is on its way out.
    fn layers(&self) -> usize {
        self.store().finish_removals();
        fs::read_dir(self.store().layers_dir()).unwrap().count()
    }
}

/// A registry `yocto` there, and a mirror of Docker Hub.
fn settings(registry: &Server, hub: &Server) -> RegistrySettings {
    RegistrySettings {
        registry: Some(format!("{}/yocto", registry.host())),
        mirrors: vec![Mirror {
            host: "docker.io".into(),
            endpoints: vec![format!("http://{}", hub.host())],
        }],
        ..RegistrySettings::default()
    }
}

#[tokio::test]
async fn a_short_name_comes_from_the_registry() {
    let (server, hub) = (Server::start().await, Server::start().await);
    let layers = [Blob::new("a", "1"), Blob::new("b", "2")];
    let manifest = publish(&server, "yocto/container-base", "latest", &layers);
    publish(
        &hub,
        "library/container-base",
        "latest",
        &[Blob::new("a", "public")],
    );
    let place = Place::new();
    let settings = settings(&server, &hub);
    let pulled = place.pull("container-base", &settings).await.unwrap();
    let name = format!("{}/yocto/container-base:latest", server.host());
    assert_eq!(pulled.name, name);
    assert_eq!(pulled.digest, Digest::sha256(&manifest).to_string());
    assert_eq!(
        pulled.size,
        layers
            .iter()
            .map(|layer| layer.packed.len() as u64)
            .sum::<u64>()
    );
    assert_eq!(place.tried(), [name.as_str()]);
    assert_eq!(hub.heads(), [""; 0]);
    assert_eq!(place.read(&name, 0, "a"), "1");
    assert_eq!(place.read(&name, 1, "b"), "2");
    let image = place.store().resolve("container-base", &settings).unwrap();
    assert_eq!(image.id.to_string(), pulled.id);
    for layer in &layers {
        let phases = place.phases(&layer.digest());
        assert_eq!(phases.first(), Some(&Phase::Waiting), "{phases:?}");
        assert_eq!(phases.last(), Some(&Phase::Complete), "{phases:?}");
    }
}

#[tokio::test]
async fn what_the_registry_does_not_know_comes_from_docker_hub() {
    let (server, hub) = (Server::start().await, Server::start().await);
    publish(&hub, "library/public", "3.1", &[Blob::new("a", "public")]);
    let place = Place::new();
    let pulled = place
        .pull("public:3.1", &settings(&server, &hub))
        .await
        .unwrap();
    assert_eq!(pulled.name, "docker.io/library/public:3.1");
    let asked = format!("{}/yocto/public:3.1", server.host());
    assert_eq!(
        place.tried(),
        [asked.as_str(), "docker.io/library/public:3.1"]
    );
    assert_eq!(server.asked(), ["/v2/yocto/public/manifests/3.1"]);
    assert_eq!(place.read("public:3.1", 0, "a"), "public");
}

#[tokio::test]
async fn a_registry_that_fails_never_becomes_a_public_pull() {
    let manifest = |status, body: &str| Answer::new(status, OCI_MANIFEST, body);
    for (answer, code) in [
        (manifest(401, ""), FailureCode::Denied),
        (manifest(403, ""), FailureCode::Denied),
        (manifest(400, ""), FailureCode::Failed),
        (manifest(429, ""), FailureCode::Failed),
        (manifest(500, ""), FailureCode::Failed),
        (manifest(503, ""), FailureCode::Failed),
        (manifest(200, "{}"), FailureCode::Failed),
        (manifest(200, "no JSON"), FailureCode::Failed),
    ] {
        let (server, hub) = (Server::start().await, Server::start().await);
        publish(&hub, "library/app", "latest", &[Blob::new("a", "public")]);
        let status = answer.status;
        server.set_other(answer);
        let place = Place::new();
        let error = place
            .pull("app", &settings(&server, &hub))
            .await
            .unwrap_err();
        assert_eq!(error.code(), code, "{status} {error}");
        assert_eq!(hub.heads(), [""; 0], "{status}");
        assert!(error.to_string().contains(&server.host()), "{error}");
        let hint = error.hint().unwrap();
        assert!(hint.contains("--no-registry"), "{hint}");
        assert!(hint.contains("vconfig registry --reset"), "{hint}");
    }
}

#[tokio::test]
async fn a_registry_that_is_down_never_becomes_a_public_pull() {
    let (server, hub) = (Server::start().await, Server::start().await);
    publish(&hub, "library/app", "latest", &[Blob::new("a", "public")]);
    let settings = settings(&server, &hub);
    let host = server.host();
    drop(server);
    // The listener goes when its task has been dropped.
    tokio::task::yield_now().await;
    let place = Place::new();
    let error = place.pull("app", &settings).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::Unreachable, "{error}");
    assert!(error.to_string().contains(&host), "{error}");
    assert!(error.hint().unwrap().contains("--no-registry"));
    assert_eq!(hub.heads(), [""; 0]);
}

#[tokio::test]
async fn a_name_with_a_host_is_tried_there_alone() {
    let (server, hub) = (Server::start().await, Server::start().await);
    let settings = settings(&server, &hub);
    let other = Server::start().await;
    let place = Place::new();
    let name = format!("{}/x/app:1", other.host());
    let error = place.pull(&name, &settings).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
    assert!(error.to_string().contains(&name), "{error}");
    assert_eq!(place.tried(), [name]);
    assert_eq!((server.heads(), hub.heads()), (vec![], vec![]));
    for name in ["Foo//bar:", "deadbeefcafe"] {
        let error = place.pull(name, &settings).await.unwrap_err();
        assert_eq!(error.code(), FailureCode::Usage, "{name}");
    }
}

#[tokio::test]
async fn a_loopback_host_is_the_gateway() {
    let server = Server::start().await;
    publish(&server, "yocto/app", "latest", &[Blob::new("a", "1")]);
    let settings = RegistrySettings {
        gateway: "127.0.0.1".into(),
        ..RegistrySettings::default()
    };
    let place = Place::new();
    let name = format!("localhost:{}/yocto/app", server.port());
    let pulled = place.pull(&name, &settings).await.unwrap();
    assert_eq!(pulled.name, format!("{}/yocto/app:latest", server.host()));
    assert!(place.store().resolve(&name, &settings).is_ok());
}

#[tokio::test]
async fn the_machine_gets_its_own_image_of_an_index() {
    let server = Server::start().await;
    let entries: Vec<Descriptor> = ["amd64", "arm64"]
        .into_iter()
        .map(|arch| {
            let layer = Blob::new("arch", arch);
            let text = String::from_utf8(config(std::slice::from_ref(&layer.plain), "")).unwrap();
            let config = text.replace(machine::architecture(), arch);
            let manifest = publish_with(&server, "app", arch, &[layer], config.as_bytes());
            let digest = Digest::sha256(&manifest);
            let mut entry = Descriptor::new(OCI_MANIFEST, digest, manifest.len() as u64);
            entry.platform = Some(Platform::linux(arch));
            entry
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries});
    let index = index.to_string().into_bytes();
    server.manifest("app", "latest", OCI_INDEX, &index);
    let name = format!("{}/app", server.host());
    let settings = RegistrySettings::default();
    let place = Place::new();
    for arch in ["amd64", "arm64"] {
        let platform = format!("linux/{arch}");
        let pulled = place
            .pull_for(&name, &settings, Some(&platform))
            .await
            .unwrap();
        assert_eq!(pulled.digest, Digest::sha256(&index).to_string());
        assert_eq!(place.read(&name, 0, "arch"), arch);
    }
    place.pull(&name, &settings).await.unwrap();
    assert_eq!(place.read(&name, 0, "arch"), machine::architecture());
    let error = place
        .pull_for(&name, &settings, Some("linux/riscv64"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
    assert!(
        error.to_string().contains("linux/amd64, linux/arm64"),
        "{error}"
    );
    let error = place
        .pull_for(&name, &settings, Some("/"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), FailureCode::Usage);
}

#[tokio::test]
async fn an_image_for_another_machine_is_taken_with_a_warning() {
    let server = Server::start().await;
    let layer = Blob::new("a", "1");
    let text = String::from_utf8(config(std::slice::from_ref(&layer.plain), "")).unwrap();
    let config = text.replace(machine::architecture(), "s390x");
    publish_with(&server, "app", "latest", &[layer], config.as_bytes());
    let name = format!("{}/app", server.host());
    let place = Place::new();
    let settings = RegistrySettings::default();
    place.pull(&name, &settings).await.unwrap();
    let warned = place.events.borrow().iter().any(|event| {
        matches!(event, Event::Log { level: LogLevel::Warn, message } if message.contains("s390x"))
    });
    assert!(warned);
    let error = place
        .pull_for(&name, &settings, Some("linux/amd64"))
        .await
        .unwrap_err();
    assert_eq!(error.code(), FailureCode::NotFound);
}

#[tokio::test]
async fn layers_that_are_here_are_not_fetched() {
    let server = Server::start().await;
    let base = || Blob::new("base", "1");
    publish(&server, "base", "latest", &[base()]);
    publish(&server, "app", "latest", &[base(), Blob::new("app", "2")]);
    let place = Place::new();
    let settings = RegistrySettings::default();
    for name in ["base", "app", "app"] {
        let name = format!("{}/{name}", server.host());
        place.pull(&name, &settings).await.unwrap();
    }
    let digest = base().digest();
    assert_eq!(server.times(&Server::blob_path("base", &digest)), 1);
    assert_eq!(server.times(&Server::blob_path("app", &digest)), 0);
    let own = Blob::new("app", "2").digest();
    assert_eq!(server.times(&Server::blob_path("app", &own)), 1);
    assert_eq!(place.phases(&own).last(), Some(&Phase::Present));
    assert_eq!(place.layers(), 2);
}

#[tokio::test]
async fn an_interrupted_pull_goes_on_where_it_was() {
    let server = Server::start().await;
    let layers = [Blob::new("a", "1"), Blob::new("b", "2")];
    publish(&server, "app", "latest", &layers);
    let [first, second] = layers
        .each_ref()
        .map(|l| Server::blob_path("app", &l.digest()));
    server.change(&second, |answer| answer.stall = Some(Stall::Silent));
    let mut place = Place::new();
    let settings = RegistrySettings::default();
    let name = format!("{}/app", server.host());
    let cancel = CancellationToken::new();
    let events = |event: Event| {
        if matches!(
            event,
            Event::Progress {
                phase: Phase::Complete,
                ..
            }
        ) {
            cancel.cancel();
        }
    };
    let stopped = pull(place.store(), &name, &settings, None, &events, &cancel).await;
    assert_eq!(stopped.unwrap_err().code(), FailureCode::Cancelled);
    assert!(place.store().resolve(&name, &settings).is_err());
    place.reopen();
    assert_eq!(place.layers(), 1);
    server.change(&second, |answer| answer.stall = None);
    place.pull(&name, &settings).await.unwrap();
    assert_eq!((server.times(&first), server.times(&second)), (1, 2));
    assert_eq!(place.read(&name, 1, "b"), "2");
}

#[tokio::test]
async fn a_silent_registry_does_not_hold_up_who_cancels() {
    let server = Server::start().await;
    let layers = [Blob::new("a", &"1".repeat(100_000))];
    publish(&server, "app", "latest", &layers);
    let name = format!("{}/app", server.host());
    let settings = RegistrySettings::default();
    let paths = [
        "/v2/app/manifests/latest".to_owned(),
        Server::blob_path("app", &layers[0].digest()),
    ];
    for (path, stall) in paths.iter().zip([Stall::Silent, Stall::Halfway]) {
        server.change(path, |answer| answer.stall = Some(stall));
        let place = Place::new();
        let cancel = CancellationToken::new();
        let work = pull(place.store(), &name, &settings, None, &|_| {}, &cancel);
        let watch = async {
            while server.times(path) == 0 {
                tokio::task::yield_now().await;
            }
            cancel.cancel();
        };
        let (pulled, ()) = tokio::join!(work, watch);
        assert_eq!(pulled.unwrap_err().code(), FailureCode::Cancelled);
        server.change(path, |answer| answer.stall = None);
    }
}

#[tokio::test]
async fn credentials_go_to_their_registry() {
    let (server, other) = (Server::start().await, Server::start().await);
    let challenge = |server: &Server| {
        let mut answer = Answer::new(401, "application/json", "{}");
        answer.headers += "WWW-Authenticate: Basic realm=\"x\"\r\n";
        server.set("/v2/", answer.clone());
        server.set_other(answer);
    };
    challenge(&server);
    challenge(&other);
    let credential = Credential::Basic {
        username: "yocto".into(),
        password: Secret::new("hunter2"),
    };
    let settings = RegistrySettings {
        credentials: vec![HostCredential::new(server.host(), credential)],
        ..RegistrySettings::default()
    };
    let place = Place::new();
    for server in [&server, &other] {
        let error = place
            .pull(&format!("{}/app", server.host()), &settings)
            .await
            .unwrap_err();
        assert_eq!(error.code(), FailureCode::Denied);
        assert!(!format!("{error} {error:?}").contains("hunter2"));
    }
    let shown = |server: &Server| {
        let heads = server.heads();
        heads
            .iter()
            .any(|head| head.to_lowercase().contains("authorization: basic "))
    };
    assert!(shown(&server));
    assert!(!shown(&other));
}

#[test]
fn the_hosts_address_may_be_plain_where_the_route_leads_there() {
    let settings = RegistrySettings {
        gateway: "10.0.2.2".into(),
        ..RegistrySettings::default()
    };
    let host = Host::parse("10.0.2.2:5000").unwrap();
    for (route, expected) in [
        (Some(Ipv4Addr::new(10, 0, 2, 2)), Trust::PlainOrTls),
        (Some(Ipv4Addr::new(10, 0, 2, 1)), Trust::Tls),
        (None, Trust::Tls),
    ] {
        let config = client_config(&trusted(&settings, route)).unwrap();
        assert_eq!((config.trust)(&host), expected, "{route:?}");
    }
}

fn store_is_empty(root: &Path) -> bool {
    let text = fs::read_to_string(root.join("images.json")).unwrap_or_default();
    !text.contains("sha256:")
}
