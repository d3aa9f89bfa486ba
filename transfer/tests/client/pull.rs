//! Layers of an image, into a store that has some of them.

use std::io::Read;
use std::sync::{Arc, Mutex};

use tokio_util::sync::CancellationToken;
use vdkr_core::channel::message::{Event, Phase, RegistrySettings};
use vdkr_core::manifest::media_type::{OCI_CONFIG, OCI_MANIFEST};
use vdkr_core::reference::Reference;
use vdkr_transfer::layer::{UnpackError, Unpacked};
use vdkr_transfer::pull::{
    Holding, ImageError, LayerStore, Question, Wanted, client_config, connect, fetch,
};

use super::double::{Double, Reply};
use super::*;

const LAYER: &[u8] = b"a layer";

/// A store that says the same of every layer.
#[derive(Clone)]
struct Store {
    holding: Holding,
    taken: Arc<Mutex<Vec<Vec<u8>>>>,
    verified: Arc<Mutex<Vec<(Digest, String)>>>,
}

impl LayerStore for Store {
    fn has_layer(&self, _: &Digest) -> bool {
        true
    }

    fn holding(&self, _: &Wanted, _: Option<&Host>) -> Holding {
        self.holding
    }

    fn verified(&self, layer: &Wanted, registry: Option<&Host>) -> Result<(), ImageError> {
        let pair = (layer.blob.digest.clone(), registry.unwrap().to_string());
        self.verified.lock().unwrap().push(pair);
        Ok(())
    }

    fn take_layer(
        &self,
        source: impl Read + Send,
        _: &Digest,
        _: &(dyn Fn() -> bool + Sync),
    ) -> Result<Result<Unpacked, UnpackError>, ImageError> {
        let mut bytes = Vec::new();
        // As a decompressor that has seen its end mark: not to the end of the stream.
        let read = source.take(LAYER.len() as u64).read_to_end(&mut bytes);
        if let Err(error) = read {
            return Ok(Err(UnpackError::Stream(error)));
        }
        self.taken.lock().unwrap().push(bytes);
        Ok(Ok(Unpacked::default()))
    }

    fn checkpoint(&self) -> Result<(), ImageError> {
        Ok(())
    }
}

/// Pulls an image with one layer, which `server` answers for; the last phase of it.
async fn pull(server: &Double, store: &Store) -> Result<Phase, ImageError> {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [Digest::sha256(b"plain")]},
    });
    let config = config.to_string();
    let layer = blob(LAYER);
    let described = Descriptor::new(
        OCI_CONFIG,
        Digest::sha256(config.as_bytes()),
        config.len() as u64,
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": described, "layers": [layer],
    });
    server
        .on("GET", "/v2/a/manifests/t")
        .reply(Reply::ok(manifest.to_string()).header("Content-Type", OCI_MANIFEST));
    server
        .on("GET", format!("/v2/a/blobs/{}", described.digest))
        .reply(Reply::ok(config));
    let settings = RegistrySettings::default();
    let name = format!("{}/a:t", server.host());
    let question = Question {
        reference: &name,
        platform: None,
        architecture: "amd64",
        settings: &settings,
        reach: &Clone::clone,
    };
    let client = connect(ClientConfig {
        retry: RetryPolicy::never(),
        ..client_config(&settings).unwrap()
    });
    let (client, stop) = (client.unwrap(), CancellationToken::new());
    let (remote, image) = question.ask(&client, &|_| (), &stop).await?;
    let last = Mutex::new(Phase::Unknown);
    let events = |event| {
        if let Event::Progress { phase, .. } = event {
            *last.lock().unwrap() = phase;
        }
    };
    fetch(store, &remote, image.layers()?, &events, &stop).await?;
    let last = *last.lock().unwrap();
    Ok(last)
}

/// Asks for `app:t` with `ours` as the registry; `public` stands for the one that is asked next.
async fn ask(ours: &Double, public: &Double) -> Result<(), ImageError> {
    let settings = RegistrySettings {
        registry: Some(ours.host()),
        ..RegistrySettings::default()
    };
    let elsewhere = Reference::parse(&format!("{}/library/app:t", public.host())).unwrap();
    let question = Question {
        reference: "app:t",
        platform: None,
        architecture: "amd64",
        settings: &settings,
        reach: &|reference| match reference.host().to_string().as_str() {
            "docker.io" => elsewhere.clone(),
            _ => reference.clone(),
        },
    };
    let client = connect(ClientConfig {
        retry: quick().retry,
        ..client_config(&settings).unwrap()
    });
    let stop = CancellationToken::new();
    question
        .ask(&client.unwrap(), &|_| (), &stop)
        .await
        .map(drop)
}

#[tokio::test]
async fn what_a_registry_has_and_cannot_give_is_not_looked_for_elsewhere() {
    let (ours, public) = (Double::start().await, Double::start().await);
    let body = r#"{"errors":[{"code":"MANIFEST_DAMAGED","message":"push it again"}]}"#;
    // Once: damage does not pass, and is not asked about again.
    ours.on("GET", "/v2/app/manifests/t").reply(
        Reply::status(500)
            .header("Vdkr-Manifest-Damaged", 1)
            .body(body),
    );
    let error = ask(&ours, &public).await.unwrap_err();
    let ImageError::Pull { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(source.is_damaged(), "{source:?}");
    assert!(source.to_string().contains("push it again"), "{source}");
    ours.finish();
    assert!(public.seen().is_empty());
    public.finish();

    // What it does not know is another matter.
    let (ours, public) = (Double::start().await, Double::start().await);
    ours.on("GET", "/v2/app/manifests/t")
        .reply(Reply::status(404));
    public
        .on("GET", "/v2/library/app/manifests/t")
        .reply(Reply::status(404));
    let error = ask(&ours, &public).await.unwrap_err();
    assert!(matches!(error, ImageError::Unknown { .. }), "{error:?}");
    ours.finish();
    public.finish();
}

fn store(holding: Holding) -> Store {
    Store {
        holding,
        taken: Arc::default(),
        verified: Arc::default(),
    }
}

fn layer_path() -> String {
    format!("/v2/a/blobs/{}", Digest::sha256(LAYER))
}

#[tokio::test]
async fn a_layer_of_others_is_taken_when_its_registry_offers_the_blob() {
    let server = Double::start().await;
    server
        .on("HEAD", layer_path())
        .reply(Reply::ok("").header("Content-Length", LAYER.len()));
    let store = store(Holding::IfOffered);
    assert_eq!(pull(&server, &store).await.unwrap(), Phase::Present);
    assert!(store.taken.lock().unwrap().is_empty());
    server.finish();
}

/// An image that merely names the diff ID of a layer gets what its own blob is, or nothing.
#[tokio::test]
async fn a_layer_of_others_is_fetched_when_the_blob_is_not_offered() {
    for status in [401, 404, 500] {
        let server = Double::start().await;
        server.on("HEAD", layer_path()).reply(Reply::status(status));
        server.on("GET", layer_path()).reply(Reply::status(status));
        let store = store(Holding::IfOffered);
        assert!(pull(&server, &store).await.is_err(), "{status}");
        assert!(store.verified.lock().unwrap().is_empty());
        server.finish();
    }
    for (holding, asks) in [(Holding::IfOffered, true), (Holding::Absent, false)] {
        let server = Double::start().await;
        if asks {
            server.on("HEAD", layer_path()).reply(Reply::status(404));
        }
        server.on("GET", layer_path()).reply(Reply::ok(LAYER));
        let store = store(holding);
        assert_eq!(pull(&server, &store).await.unwrap(), Phase::Complete);
        assert_eq!(*store.taken.lock().unwrap(), [LAYER]);
        let pair = (Digest::sha256(LAYER), server.host());
        assert_eq!(*store.verified.lock().unwrap(), [pair]);
        server.finish();
    }
}

/// What is only like the blob at its beginning is not noted as the blob.
#[tokio::test]
async fn a_blob_is_verified_to_its_end() {
    let server = Double::start().await;
    let longer = [LAYER, b" and more"].concat();
    server.on("GET", layer_path()).reply(Reply::ok(longer));
    let store = store(Holding::Absent);
    assert!(pull(&server, &store).await.is_err());
    assert!(store.verified.lock().unwrap().is_empty());
}
