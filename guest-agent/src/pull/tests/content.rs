//! Content of all kinds, good and bad.

use vdkr_core::manifest::media_type::{DOCKER_LAYER_GZIP, OCI_LAYER, OCI_LAYER_ZSTD};

use super::*;

#[tokio::test]
async fn every_compression() {
    let server = Server::start().await;
    let plain = layer("a", &"content ".repeat(1000));
    let (one, two) = plain.split_at(700);
    for (media_type, packed) in [
        (OCI_LAYER, plain.clone()),
        (OCI_LAYER_GZIP, gzip(&plain)),
        (DOCKER_LAYER_GZIP, [gzip(one), gzip(two)].concat()),
        (
            OCI_LAYER_ZSTD,
            zstd::encode_all(plain.as_slice(), 3).unwrap(),
        ),
        // Media types are known to be wrong.
        (OCI_LAYER, gzip(&plain)),
    ] {
        let blob = Blob {
            plain: plain.clone(),
            packed,
        };
        let manifest = publish(&server, "app", "latest", &[blob]);
        let text = String::from_utf8(manifest).unwrap();
        let manifest = text.replace(OCI_LAYER_GZIP, media_type);
        server.manifest("app", "latest", OCI_MANIFEST, manifest.as_bytes());
        let place = Place::new();
        let name = format!("{}/app", server.host());
        place
            .pull(&name, &RegistrySettings::default())
            .await
            .unwrap();
        assert_eq!(place.read(&name, 0, "a").len(), 8000, "{media_type}");
    }
}

#[tokio::test]
async fn content_that_is_not_what_was_promised() {
    let flip = |body: &mut Vec<u8>| {
        let middle = body.len() / 2;
        body[middle] ^= 1;
    };
    let cut = |body: &mut Vec<u8>| body.truncate(body.len() - 7);
    let grow = |body: &mut Vec<u8>| body.extend(b"more");
    let ways: [fn(&mut Vec<u8>); 3] = [flip, cut, grow];
    for (way, change) in ways.into_iter().enumerate() {
        let server = Server::start().await;
        // Random enough not to be a few bytes.
        let content: String = (0..3000).map(|n: u32| (n * n).to_string()).collect();
        let blob = Blob::new("a", &content);
        let path = Server::blob_path("app", &blob.digest());
        publish(&server, "app", "latest", &[blob]);
        server.change(&path, |answer| change(&mut answer.body));
        let place = Place::new();
        let name = format!("{}/app", server.host());
        let error = place
            .pull(&name, &RegistrySettings::default())
            .await
            .unwrap_err();
        assert_eq!(error.code(), FailureCode::DigestMismatch, "{way} {error}");
        assert_eq!(place.layers(), 0, "{way}");
        assert!(store_is_empty(place.directory.path()), "{way}");
    }
}

#[tokio::test]
async fn a_layer_that_is_not_the_configured_one() {
    let server = Server::start().await;
    let config = config(&[layer("other", "1")], "");
    publish_with(&server, "app", "latest", &[Blob::new("a", "1")], &config);
    let place = Place::new();
    let name = format!("{}/app", server.host());
    let error = place
        .pull(&name, &RegistrySettings::default())
        .await
        .unwrap_err();
    assert_eq!(error.code(), FailureCode::DigestMismatch, "{error}");
    assert_eq!(place.layers(), 0);
}

#[tokio::test]
async fn what_is_no_image() {
    let server = Server::start().await;
    let name = format!("{}/app", server.host());
    let settings = RegistrySettings::default();
    let good = String::from_utf8(publish(&server, "app", "latest", &[Blob::new("a", "1")]));
    let good = good.unwrap();
    for (from, to) in [
        (OCI_CONFIG, "application/vnd.cncf.helm.config.v1+json"),
        (
            OCI_LAYER_GZIP,
            "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        ),
    ] {
        let manifest = good.replace(from, to);
        server.manifest("app", "latest", OCI_MANIFEST, manifest.as_bytes());
        let place = Place::new();
        let error = place.pull(&name, &settings).await.unwrap_err();
        assert_eq!(error.code(), FailureCode::Unsupported, "{error}");
        assert!(error.to_string().contains(to), "{error}");
        assert_eq!(place.layers(), 0);
    }
    let config = config(&[], "");
    publish_with(&server, "app", "latest", &[Blob::new("a", "1")], &config);
    let error = Place::new().pull(&name, &settings).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::Unsupported, "{error}");
}

#[tokio::test]
async fn indexes_in_indexes_have_an_end() {
    let server = Server::start().await;
    let manifest = publish(&server, "app", "deep", &[Blob::new("a", "1")]);
    let mut inner = Descriptor::new(
        OCI_MANIFEST,
        Digest::sha256(&manifest),
        manifest.len() as u64,
    );
    let name = format!("{}/app", server.host());
    let settings = RegistrySettings::default();
    for depth in 1..=MAX_DEPTH {
        inner.platform = Some(Platform::linux(machine::architecture()));
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [inner]});
        let index = index.to_string().into_bytes();
        server.manifest("app", "latest", OCI_INDEX, &index);
        inner = Descriptor::new(OCI_INDEX, Digest::sha256(&index), index.len() as u64);
        let pulled = Place::new().pull(&name, &settings).await;
        assert_eq!(pulled.is_ok(), depth < MAX_DEPTH, "{depth}");
    }
}

#[tokio::test]
async fn a_name_by_digest() {
    let server = Server::start().await;
    let manifest = publish(&server, "app", "latest", &[Blob::new("a", "1")]);
    let digest = Digest::sha256(&manifest);
    let place = Place::new();
    let settings = RegistrySettings::default();
    let name = format!("{}/app@{digest}", server.host());
    let pulled = place.pull(&name, &settings).await.unwrap();
    assert_eq!((&pulled.name, &pulled.digest), (&name, &digest.to_string()));
    assert!(place.store().resolve(&name, &settings).is_ok());
    assert!(
        place
            .store()
            .resolve(&format!("{}/app", server.host()), &settings)
            .is_err()
    );
    // A registry that gives something else under that digest.
    server.change(&format!("/v2/app/manifests/{digest}"), |answer| {
        answer.body.push(b' ');
    });
    let error = Place::new().pull(&name, &settings).await.unwrap_err();
    assert_eq!(error.code(), FailureCode::DigestMismatch, "{error}");
}
