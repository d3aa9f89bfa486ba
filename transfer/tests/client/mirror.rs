//! Mirrors: asked first, passed over when they lack something or are away, never a way around a
//! refusal.

use std::sync::Arc;

use bytes::Bytes;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type::OCI_INDEX;
use vdkr_core::reference::{Host, Selector};
use vdkr_transfer::{Mirror, TransferError, UploadOptions};

use super::double::{Double, Reply};
use super::*;

const INDEX: &str =
    r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

fn manifest() -> Reply {
    Reply::ok(INDEX).header("Content-Type", OCI_INDEX)
}

fn mirrored(origin: &Double, endpoints: &[String]) -> Client {
    Client::new(ClientConfig {
        mirrors: vec![Mirror {
            host: Host::parse(&origin.host()).unwrap(),
            endpoints: endpoints.to_vec(),
        }],
        credentials: Arc::new(|host: &Host| {
            // Each host has its own credential; mixing them up would show.
            Ok(Credential::Basic {
                username: host.port().unwrap_or_default().to_string(),
                password: Secret::new("p"),
            })
        }),
        ..quick()
    })
    .unwrap()
}

async fn pull(client: &Client, origin: &Double) -> Result<(), TransferError> {
    let repository = repository(&origin.host(), "library/x");
    client
        .get_manifest(&repository, Selector::Tag("t"))
        .await
        .map(drop)
}

#[tokio::test]
async fn a_mirror_that_has_it_is_enough() {
    let origin = Double::start().await;
    let mirror = Double::start().await;
    mirror
        .on("GET", "/v2/hub/library/x/manifests/t")
        .reply(manifest());
    let content = pattern(1000);
    let digest = Digest::sha256(&content);
    mirror
        .on("GET", format!("/v2/hub/library/x/blobs/{digest}"))
        .reply(Reply::ok(&content));
    let client = mirrored(&origin, &[mirror.url("/hub")]);
    pull(&client, &origin).await.unwrap();
    let mut reader = client
        .get_blob(&repository(&origin.host(), "library/x"), &blob(&content))
        .await
        .unwrap();
    let mut read = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut read)
        .await
        .unwrap();
    assert_eq!(read, content);
    mirror.finish();
    assert!(origin.finish().is_empty());
}

#[tokio::test]
async fn a_mirror_that_lacks_it_or_is_away_is_passed_over() {
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    };
    let lacking = Double::start().await;
    lacking
        .on("GET", "/v2/library/x/manifests/t")
        .times(2)
        .reply(Reply::status(404));
    let broken = Double::start().await;
    // Four tries, then it is left alone.
    broken
        .on("GET", "/v2/library/x/manifests/t")
        .times(4)
        .reply(Reply::status(503));
    let origin = Double::start().await;
    origin
        .on("GET", "/v2/library/x/manifests/t")
        .times(2)
        .reply(manifest());
    let client = mirrored(&origin, &[closed, lacking.host(), broken.host()]);
    pull(&client, &origin).await.unwrap();
    pull(&client, &origin).await.unwrap();
    lacking.finish();
    broken.finish();
    origin.finish();
}

#[tokio::test]
async fn a_mirror_that_refuses_or_lies_is_an_error() {
    let digest = Digest::sha256(b"other");
    for reply in [
        Reply::status(403),
        manifest().header("Docker-Content-Digest", digest),
    ] {
        let origin = Double::start().await;
        let mirror = Double::start().await;
        mirror.on("GET", "/v2/library/x/manifests/t").reply(reply);
        let client = mirrored(&origin, &[mirror.url("")]);
        assert!(pull(&client, &origin).await.is_err());
        mirror.finish();
        assert!(origin.finish().is_empty());
    }
}

#[tokio::test]
async fn mirror_and_registry_have_their_own_credentials() {
    let origin = Double::start().await;
    let mirror = Double::start().await;
    let refused = || Reply::status(401).header("WWW-Authenticate", "Basic realm=r");
    for (server, reply) in [(&mirror, Reply::status(404)), (&origin, manifest())] {
        server.on("GET", "/v2/").reply(refused());
        let name = server.port().to_string();
        server
            .on("GET", "/v2/library/x/manifests/t")
            .when(move |seen| {
                let shown = seen.header("authorization").unwrap_or_default();
                shown == format!("Basic {}", base64(&format!("{name}:p")))
            })
            .reply(reply);
    }
    // Without a scheme, both are asked how they want to be spoken to, and say so.
    let client = mirrored(&origin, &[mirror.host()]);
    pull(&client, &origin).await.unwrap();
    mirror.finish();
    origin.finish();
}

fn base64(text: &str) -> String {
    vdkr_core::base64::encode(text.as_bytes())
}

#[tokio::test]
async fn a_mirror_that_breaks_in_the_middle_of_a_blob_is_replaced() {
    let content = pattern(300_000);
    let path = format!("/v2/library/x/blobs/{}", blob(&content).digest);
    let mirror = Double::start().await;
    mirror
        .on("GET", &path)
        .reply(Reply::ok(&content).cut(100_000));
    mirror.on("GET", &path).times(4).reply(Reply::status(502));
    let origin = Double::start().await;
    origin
        .on("GET", &path)
        .when(|seen| seen.header("range") == Some("bytes=100000-"))
        .reply(
            Reply::status(206)
                .header("Content-Range", "bytes 100000-299999/300000")
                .body(&content[100_000..]),
        );
    let client = mirrored(&origin, &[mirror.url("")]);
    let mut reader = client
        .get_blob(&repository(&origin.host(), "library/x"), &blob(&content))
        .await
        .unwrap();
    let mut read = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut reader, &mut read)
        .await
        .unwrap();
    assert!(read == content);
    mirror.finish();
    origin.finish();
}

#[tokio::test]
async fn nothing_is_written_to_a_mirror() {
    let origin = Double::start().await;
    let mirror = Double::start().await;
    let descriptor = blob(b"x");
    let digest = descriptor.digest.to_string().replace(':', "%3A");
    origin
        .on("HEAD", format!("/v2/library/x/blobs/{}", descriptor.digest))
        .reply(Reply::status(404));
    origin
        .on("POST", "/v2/library/x/blobs/uploads/")
        .reply(Reply::status(202).header("Location", "/up"));
    origin
        .on("PUT", format!("/up?digest={digest}"))
        .reply(Reply::status(201));
    origin
        .on("PUT", "/v2/library/x/manifests/t")
        .reply(Reply::status(201));
    origin
        .on("GET", "/v2/library/x/tags/list?n=1000")
        .reply(Reply::ok("{}"));
    let client = mirrored(&origin, &[mirror.url("")]);
    let repository = repository(&origin.host(), "library/x");
    assert_eq!(
        client
            .head_blob(&repository, &descriptor.digest)
            .await
            .unwrap(),
        None
    );
    client
        .upload_blob(
            &repository,
            &descriptor,
            Arc::new(Bytes::from("x")),
            UploadOptions::default(),
        )
        .await
        .unwrap();
    client
        .put_manifest(
            &repository,
            Selector::Tag("t"),
            INDEX.into(),
            OCI_INDEX,
            None,
        )
        .await
        .unwrap();
    assert!(client.tags(&repository).await.unwrap().is_empty());
    origin.finish();
    assert!(mirror.finish().is_empty());
}

#[tokio::test]
async fn a_plain_mirror_needs_leave() {
    let origin = Double::start().await;
    let client = mirrored(&origin, &["http://mirror.example:5000".to_owned()]);
    let error = pull(&client, &origin).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("plain HTTP to mirror.example:5000"),
        "{error}"
    );
    assert!(origin.finish().is_empty());
}
