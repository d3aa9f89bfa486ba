//! Redirects.

use vdkr_core::reference::Selector;
use vdkr_transfer::{TransferError, VerifyingReader, anonymous};

use super::double::{Double, Reply};
use super::*;

const CONTENT: &[u8] = b"some layer";

async fn read<R: tokio::io::AsyncRead + Unpin>(mut reader: VerifyingReader<R>) -> Vec<u8> {
    let mut all = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut all)
        .await
        .unwrap();
    all
}

#[tokio::test]
async fn a_blob_may_be_elsewhere_and_is_fetched_without_credentials() {
    let storage = Double::start().await;
    storage
        .on("GET", "/bucket/x?sig=1")
        .authorized("")
        .reply(Reply::ok(CONTENT));
    let registry = Double::start().await;
    let descriptor = blob(CONTENT);
    let path = format!("/v2/a/blobs/{}", descriptor.digest);
    let refused = Reply::status(401).header("WWW-Authenticate", "Basic realm=r");
    registry.on("GET", "/v2/").reply(refused);
    registry
        .on("GET", &path)
        .authorized("Basic dTpw")
        .reply(Reply::status(307).header("Location", storage.url("/bucket/x?sig=1")));
    let client = client_as("u", "p");
    let reader = client
        .get_blob(&repository(&registry.host(), "a"), &descriptor)
        .await
        .unwrap();
    assert_eq!(read(reader).await, CONTENT);
    registry.finish();
    storage.finish();
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_credentials() {
    let registry = Double::start().await;
    let descriptor = blob(CONTENT);
    let refused = Reply::status(401).header("WWW-Authenticate", "Basic realm=r");
    registry.on("GET", "/v2/").reply(refused);
    registry
        .on("GET", format!("/v2/a/blobs/{}", descriptor.digest))
        .reply(Reply::status(302).header("Location", "/other"));
    registry
        .on("GET", "/other")
        .authorized("Basic dTpw")
        .reply(Reply::ok(CONTENT));
    let client = client_as("u", "p");
    let reader = client
        .get_blob(&repository(&registry.host(), "a"), &descriptor)
        .await
        .unwrap();
    assert_eq!(read(reader).await, CONTENT);
    registry.finish();
}

#[tokio::test]
async fn a_circle_ends() {
    let registry = Double::start().await;
    registry
        .on("GET", "/v2/a/manifests/t")
        .times(6)
        .reply(Reply::status(307).header("Location", "/v2/a/manifests/t"));
    let error = client()
        .get_manifest(&repository(&registry.host(), "a"), Selector::Tag("t"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    registry.finish();
}

#[tokio::test]
async fn a_stranger_may_not_lead_into_this_machine() {
    let inside = Double::start().await;
    for target in [
        format!("http://127.0.0.1:{}/secret", inside.port()),
        format!("http://localhost:{}/secret", inside.port()),
        format!("http://2130706433:{}/secret", inside.port()),
        format!("http://[::ffff:127.0.0.1]:{}/secret", inside.port()),
        // The name is a stranger's, its address is ours.
        format!("http://rebound.test:{}/secret", inside.port()),
        "http://169.254.169.254/latest/meta-data".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://x/".to_owned(),
    ] {
        let registry = Double::start().await;
        registry
            .on("GET", "/v2/a/manifests/t")
            .maybe()
            .reply(Reply::status(307).header("Location", &target));
        let host = format!("reg.test:{}", registry.port());
        let error = client_abroad(anonymous())
            .get_manifest(&repository(&host, "a"), Selector::Tag("t"))
            .await
            .unwrap_err();
        let refused = match &error {
            TransferError::UnsafeTarget { .. } => true,
            TransferError::Unreachable { reason, .. } => reason.contains("of this machine"),
            _ => false,
        };
        assert!(refused, "{target}: {error}");
        registry.finish();
    }
    assert!(inside.finish().is_empty());
}

#[tokio::test]
async fn writing_is_not_redirected() {
    let stranger = Double::start().await;
    let registry = Double::start().await;
    let elsewhere = stranger.url("/v2/a/manifests/t");
    registry
        .on("PUT", "/v2/a/manifests/t")
        .reply(Reply::status(307).header("Location", elsewhere));
    let error = client()
        .put_manifest(
            &repository(&registry.host(), "a"),
            Selector::Tag("t"),
            "{}".into(),
            "application/vnd.oci.image.manifest.v1+json",
            None,
        )
        .await
        .unwrap_err();
    assert!(matches!(error, TransferError::Status { .. }), "{error}");
    registry.finish();
    assert!(stranger.finish().is_empty());
}

#[tokio::test]
async fn urls_in_a_layers_descriptor_are_not_asked() {
    let stranger = Double::start().await;
    let registry = Double::start().await;
    let (layer, config) = (blob(CONTENT), blob(b"{}"));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json",
        "config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":2}},
        "layers":[{{"mediaType":"{}","digest":"{}","size":{},"urls":["{}"]}}]}}"#,
        config.digest,
        layer.media_type,
        layer.digest,
        layer.size,
        stranger.url("/layer")
    );
    let declared = Some("application/vnd.oci.image.manifest.v1+json");
    let manifest = vdkr_core::manifest::parse(manifest.as_bytes(), declared).unwrap();
    let found = manifest.blobs().find(|found| found.digest == layer.digest);
    registry
        .on("GET", "/v2/")
        .maybe()
        .reply(Reply::status(401).header("WWW-Authenticate", "Basic realm=r"));
    registry
        .on("GET", format!("/v2/a/blobs/{}", layer.digest))
        .reply(Reply::status(404));
    let outcome = client_as("u", "p")
        .get_blob(&repository(&registry.host(), "a"), found.unwrap())
        .await;
    let error = outcome.expect_err("the registry does not have it");
    assert!(matches!(error, TransferError::NotFound { .. }), "{error}");
    registry.finish();
    assert!(stranger.finish().is_empty());
}
