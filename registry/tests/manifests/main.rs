//! Manifests and tags over HTTP.

#[path = "../common/mod.rs"]
mod common;
mod conditions;
mod refused;

use std::time::Duration;

use common::{Bench, descriptor, descriptor_by, image};
use serde_json::json;
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_core::manifest::media_type;

const LATEST: &str = "/v2/yocto/app/manifests/latest";

fn by_digest(digest: &Digest) -> String {
    format!("/v2/yocto/app/manifests/{digest}")
}

#[tokio::test]
async fn stored_and_served_as_it_is() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    bench.push_blob("yocto/app", b"layer").await;
    // Bytes that no serialiser would give back.
    let body = serde_json::to_string_pretty(&image(&[b"layer"])).unwrap() + "\n\n";
    let digest = Digest::sha256(body.as_bytes());
    let headers = [("content-type", media_type::OCI_MANIFEST)];
    let put = bench
        .send("PUT", LATEST, &headers, body.clone())
        .await
        .expect(201);
    assert_eq!(put.header("location"), by_digest(&digest));
    assert_eq!(put.header("docker-content-digest"), digest.as_str());
    assert_eq!(put.header("etag"), format!("\"{digest}\""));
    assert!(put.headers.get("oci-subject").is_none());
    // Twice: from the disk and from memory.
    for _ in 0..2 {
        for path in [LATEST.to_owned(), by_digest(&digest)] {
            for accept in ["*/*", media_type::DOCKER_MANIFEST, "text/plain"] {
                let got = bench
                    .send("GET", &path, &[("accept", accept)], "")
                    .await
                    .expect(200);
                assert_eq!(got.body, body);
                assert_eq!(got.header("content-type"), media_type::OCI_MANIFEST);
                assert_eq!(got.header("docker-content-digest"), digest.as_str());
            }
            let head = bench.head(&path).await.expect(200);
            assert!(head.body.is_empty());
            assert_eq!(head.header("content-length"), body.len().to_string());
            assert_eq!(head.header("content-type"), media_type::OCI_MANIFEST);
            let etag = format!("\"{digest}\"");
            bench
                .send("GET", &path, &[("if-none-match", &etag)], "")
                .await
                .expect(304);
            bench
                .send("GET", &path, &[("if-none-match", digest.as_str())], "")
                .await
                .expect(304);
        }
    }
    bench
        .get("/v2/yocto/app/manifests/other")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    bench
        .get("/v2/yocto/nothing/manifests/latest")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    bench
        .head("/v2/yocto/nothing/manifests/latest")
        .await
        .expect(404);
    let by_blob = by_digest(&Digest::sha256(b"layer"));
    bench.get(&by_blob).await.refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn types_are_told_by_the_body() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    let empty = Digest::sha256(b"{}");
    let config = descriptor(media_type::DOCKER_CONFIG, b"{}");
    let docker = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_MANIFEST, "config": config, "layers": [],
    });
    bench
        .put_manifest("yocto/app", "docker", &docker)
        .await
        .expect(201);
    let list = json!({
        "schemaVersion": 2, "mediaType": media_type::DOCKER_LIST,
        "manifests": [descriptor(media_type::DOCKER_MANIFEST, docker.to_string().as_bytes())],
    });
    bench
        .put_manifest("yocto/app", "list", &list)
        .await
        .expect(201);
    let plain = json!({
        "schemaVersion": 2, "layers": [],
        "config": { "mediaType": "a/b", "digest": empty, "size": 2 },
    });
    bench
        .put_manifest("yocto/app", "plain", &plain)
        .await
        .expect(201);
    let other = json!({ "mediaType": "application/vnd.example.thing+json", "anything": [1, 2] });
    bench
        .put_manifest("yocto/app", "other", &other)
        .await
        .expect(201);
    for (tag, manifest, expected) in [
        ("docker", &docker, media_type::DOCKER_MANIFEST),
        ("list", &list, media_type::DOCKER_LIST),
        ("plain", &plain, media_type::OCI_MANIFEST),
        ("other", &other, "application/vnd.example.thing+json"),
    ] {
        let got = bench
            .get(&format!("/v2/yocto/app/manifests/{tag}"))
            .await
            .expect(200);
        assert_eq!(got.body, manifest.to_string());
        assert_eq!(got.header("content-type"), expected, "{tag}");
    }
    let headers = [(
        "content-type",
        "application/vnd.oci.image.index.v1+json; charset=utf-8",
    )];
    let body = json!({ "schemaVersion": 2, "manifests": [] }).to_string();
    bench.send("PUT", LATEST, &headers, body).await.expect(201);
    assert_eq!(
        bench.get(LATEST).await.header("content-type"),
        media_type::OCI_INDEX
    );
}

#[tokio::test]
async fn a_blob_deleted_through_every_cache_is_missed() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let layer = format!("/v2/yocto/app/blobs/{}", Digest::sha256(b"layer"));
    bench.get(&layer).await.expect(200);
    bench.head(&layer).await.expect(200);
    bench.delete(&layer).await.expect(202);
    bench.get(&layer).await.expect(404);
    bench.head(&layer).await.expect(404);
    let again = bench
        .put_manifest("yocto/app", "again", &image(&[b"layer"]))
        .await;
    again.refused(404, "MANIFEST_BLOB_UNKNOWN");
    bench.get(LATEST).await.expect(200);
    bench.delete(&by_digest(&digest)).await.expect(202);
    bench.get(LATEST).await.expect(404);
}

#[tokio::test]
async fn sha512_manifests_and_tags_by_parameter() {
    let bench = Bench::new();
    let content = b"{}";
    let digest = Digest::of(Algorithm::Sha512, content);
    let path = format!("/v2/yocto/app/blobs/uploads/?digest={digest}");
    bench
        .send("POST", &path, &[], content.to_vec())
        .await
        .expect(201);
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "layers": [],
        "config": descriptor_by(Algorithm::Sha512, media_type::OCI_CONFIG, content),
    });
    let body = manifest.to_string();
    let digest = Digest::of(Algorithm::Sha512, body.as_bytes());
    let path = format!("{}?tag=one&tag=two&tag=1.0", by_digest(&digest));
    let headers = [("content-type", media_type::OCI_MANIFEST)];
    let put = bench
        .send("PUT", &path, &headers, body.clone())
        .await
        .expect(201);
    let tags: Vec<_> = put
        .headers
        .get_all("oci-tag")
        .iter()
        .map(|t| t.to_str().unwrap())
        .collect();
    assert_eq!(tags, ["one", "two", "1.0"]);
    for target in [digest.as_str(), "one", "two", "1.0"] {
        let got = bench
            .get(&format!("/v2/yocto/app/manifests/{target}"))
            .await
            .expect(200);
        assert_eq!(got.body, body);
        assert_eq!(got.header("docker-content-digest"), digest.as_str());
    }
    let path = format!("{}?tag=../x", by_digest(&digest));
    bench
        .send("PUT", &path, &headers, body)
        .await
        .refused(400, "MANIFEST_INVALID");
}

#[tokio::test]
async fn deleting_a_tag_leaves_its_twins() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "one", b"layer").await;
    bench.push_image("yocto/app", "two", b"layer").await;
    bench
        .delete("/v2/yocto/app/manifests/one")
        .await
        .expect(202);
    bench
        .get("/v2/yocto/app/manifests/one")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    bench
        .delete("/v2/yocto/app/manifests/one")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    bench.get("/v2/yocto/app/manifests/two").await.expect(200);
    bench.get(&by_digest(&digest)).await.expect(200);
    assert!(!bench.repository("yocto/app/_manifests/tags/one").exists());
    bench.push_image("yocto/app", "one", b"layer").await;
    bench.get("/v2/yocto/app/manifests/one").await.expect(200);
}

#[tokio::test]
async fn deleting_a_manifest_takes_the_tags_that_point_to_it() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "one", b"layer").await;
    bench.push_image("yocto/app", "two", b"layer").await;
    bench.push_image("yocto/app", "other", b"other").await;
    bench.push_image("yocto/copy", "one", b"layer").await;
    bench.get("/v2/yocto/app/manifests/one").await.expect(200);
    bench.delete(&by_digest(&digest)).await.expect(202);
    for path in [
        by_digest(&digest),
        LATEST.replace("latest", "one"),
        LATEST.replace("latest", "two"),
    ] {
        bench.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    }
    bench
        .delete(&by_digest(&digest))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(
        bench.get("/v2/yocto/app/tags/list").await.json()["tags"],
        json!(["other"])
    );
    bench.get("/v2/yocto/copy/manifests/one").await.expect(200);
    let dir = std::sync::Arc::clone(&bench.dir);
    let keeper = Bench::on(dir, |config| config.delete_enabled = false);
    keeper
        .delete(&LATEST.replace("latest", "other"))
        .await
        .refused(405, "UNSUPPORTED");
    keeper
        .get(&LATEST.replace("latest", "other"))
        .await
        .expect(200);
}

#[tokio::test]
async fn another_process_on_the_same_tree_is_seen() {
    let bench = Bench::new();
    let one = bench.push_image("yocto/app", "latest", b"1").await;
    let other = bench.reopened();
    // Old enough for the caches to trust what they have seen.
    tokio::time::sleep(Duration::from_millis(3100)).await;
    for _ in 0..2 {
        assert_eq!(
            bench.get(LATEST).await.header("docker-content-digest"),
            one.as_str()
        );
    }
    let two = other.push_image("yocto/app", "latest", b"2").await;
    assert_eq!(
        bench.get(LATEST).await.header("docker-content-digest"),
        two.as_str()
    );
    // As the older Distribution writes: in place.
    let link = bench.repository("yocto/app/_manifests/tags/latest/current/link");
    std::fs::write(link, one.as_str()).unwrap();
    assert_eq!(
        bench.get(LATEST).await.header("docker-content-digest"),
        one.as_str()
    );
    other.delete(&by_digest(&one)).await.expect(202);
    bench.get(LATEST).await.expect(404);
    bench.get(&by_digest(&one)).await.expect(404);
    std::fs::remove_file(bench.blob_file(&two)).unwrap();
    // What the repository has and cannot give is not unknown.
    bench
        .get(&by_digest(&two))
        .await
        .refused(500, "MANIFEST_DAMAGED");
}

#[tokio::test]
async fn damaged_manifests_are_not_served_and_mended_by_a_push() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let whole = std::fs::read(bench.blob_file(&digest)).unwrap();
    let mut flipped = whole.clone();
    flipped[10] ^= 1;
    for broken in [&b""[..], &whole[..whole.len() / 2], &flipped] {
        std::fs::write(bench.blob_file(&digest), broken).unwrap();
        // Whoever hears that it is unknown asks the next registry for it.
        bench.get(LATEST).await.refused(500, "MANIFEST_DAMAGED");
        let told = bench.head(&by_digest(&digest)).await.expect(500);
        assert_eq!(told.header("vdkr-manifest-damaged"), "1");
        // Whoever pushes may ask that nothing is there.
        bench.push_blob("yocto/app", b"layer").await;
        let again = image(&[b"layer"]).to_string();
        let absent = [("if-none-match", "*")];
        bench.send("PUT", LATEST, &absent, again).await.expect(201);
        assert_eq!(bench.get(LATEST).await.expect(200).body, whole);
    }
    let link = bench.repository("yocto/app/_manifests/tags/latest/current/link");
    std::fs::write(&link, "sha256:12").unwrap();
    bench.get(LATEST).await.refused(500, "MANIFEST_DAMAGED");
    let link = bench
        .repository("yocto/app/_manifests/revisions/sha256")
        .join(digest.hex());
    std::fs::write(link.join("link"), "").unwrap();
    bench
        .get(&by_digest(&digest))
        .await
        .refused(500, "MANIFEST_DAMAGED");
    bench.push_image("yocto/app", "latest", b"layer").await;
    bench.get(LATEST).await.expect(200);
    // A tag whose manifest the repository does not have is damaged as well.
    let dir = bench
        .repository("yocto/app/_manifests/revisions/sha256")
        .join(digest.hex());
    std::fs::remove_dir_all(dir).unwrap();
    bench.head(LATEST).await.expect(500);
    bench
        .get(&by_digest(&digest))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    bench.delete(LATEST).await.expect(202);
    bench.get(LATEST).await.refused(404, "MANIFEST_UNKNOWN");
}
