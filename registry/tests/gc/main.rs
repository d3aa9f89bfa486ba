//! Garbage collection: what goes, what stays.

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod faults;
mod meanwhile;

use std::sync::Arc;

use common::collect::{STRICT, blob, gc, manifest, stored_files};
use common::{Bench, descriptor, digest_of, image};
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::extension::GcOptions;
use vdkr_core::manifest::media_type;

const APP: &str = "yocto/app";

#[tokio::test]
async fn weakness_4b_4_what_no_tag_names_goes_and_the_rest_stays() {
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"one").await;
    let second = bench.push_image(APP, "v2", b"two").await;
    bench.push_image("other", "v1", b"one").await;
    bench.push_blob(APP, b"never used").await;
    bench.delete(&manifest(APP, "v1")).await.expect(202);
    let before = stored_files(&bench);

    let told = gc(
        &bench,
        GcOptions {
            dry_run: true,
            ..STRICT
        },
    );
    assert_eq!(stored_files(&bench), before, "a dry run removes nothing");
    let done = gc(&bench, STRICT);
    assert_eq!(
        (
            told.removed_manifests,
            told.removed_links,
            told.removed_blobs,
            told.freed_bytes
        ),
        (
            done.removed_manifests,
            done.removed_links,
            done.removed_blobs,
            done.freed_bytes
        ),
        "the dry run said what would happen"
    );
    assert_eq!((done.removed_manifests, done.removed_links), (1, 2));
    // The manifest and the layer are still used by the other repository.
    assert_eq!((done.removed_blobs, done.freed_bytes), (1, 10));
    assert_eq!(done.by_repository.len(), 1);
    assert_eq!(done.findings, []);
    assert_eq!(stored_files(&bench), before - 1);
    bench.get(&blob(APP, b"one")).await.expect(404);
    bench.get(&blob(APP, b"never used")).await.expect(404);
    bench.get(&blob("other", b"one")).await.expect(200);
    bench.get(&manifest("other", "v1")).await.expect(200);
    bench.get(&manifest(APP, second)).await.expect(200);
    bench.get(&blob(APP, b"two")).await.expect(200);

    let again = gc(&bench, STRICT);
    assert_eq!((again.removed_manifests, again.removed_blobs), (0, 0));
    // And what was removed can be pushed again.
    bench.push_image(APP, "v1", b"one").await;
    bench.get(&blob(APP, b"one")).await.expect(200);
}

#[tokio::test]
async fn an_index_keeps_its_images_and_a_subject_its_referrers() {
    let bench = Bench::new();
    let [one, _] = bench.push_index(APP, "both", [b"one", b"two"]).await;
    // A signature of one image, and an attestation of the signature.
    let mut signature = image(&[]);
    signature["subject"] = descriptor(media_type::OCI_MANIFEST, one.to_string().as_bytes());
    let mut attestation = image(&[]);
    attestation["subject"] = descriptor(media_type::OCI_MANIFEST, signature.to_string().as_bytes());
    for manifest in [&signature, &attestation] {
        let digest = digest_of(manifest).to_string();
        bench.put_manifest(APP, &digest, manifest).await.expect(201);
    }
    let report = gc(&bench, STRICT);
    assert_eq!((report.removed_manifests, report.removed_blobs), (0, 0));
    bench.delete(&manifest(APP, "both")).await.expect(202);
    let report = gc(&bench, STRICT);
    assert_eq!(report.removed_manifests, 5);
    assert_eq!(stored_files(&bench), 0);
    assert_eq!(report.emptied, [APP]);
}

#[tokio::test]
async fn weakness_4b_2_deleting_one_tag_leaves_its_twin_whole() {
    let bench = Bench::new();
    let digest = bench.push_image(APP, "20260101-000000", b"one").await;
    assert_eq!(bench.push_image(APP, "latest", b"one").await, digest);
    bench
        .delete(&manifest(APP, "20260101-000000"))
        .await
        .expect(202);
    gc(&bench, STRICT);
    bench
        .get(&manifest(APP, "20260101-000000"))
        .await
        .expect(404);
    bench.get(&manifest(APP, "latest")).await.expect(200);
    bench.get(&blob(APP, b"one")).await.expect(200);
}

#[tokio::test]
async fn history_keeps_earlier_images_within_its_bounds() {
    let bench = Bench::new();
    let mut pushed = Vec::new();
    for content in [b"one", b"two", b"six", b"ten"] {
        pushed.push(bench.push_image(APP, "latest", content).await);
    }
    let history = bench
        .get(&format!("/v2/{APP}/_vdkr/history/latest"))
        .await
        .expect(200)
        .json();
    assert_eq!(history["entries"].as_array().unwrap().len(), 4);
    assert_eq!(history["entries"][0]["digest"], json!(pushed[3]));
    assert_eq!(history["entries"][0]["current"], json!(true));
    bench
        .get(&format!("/v2/{APP}/_vdkr/history/nothing"))
        .await
        .refused(404, "MANIFEST_UNKNOWN");

    let report = gc(
        &bench,
        GcOptions {
            history: 2,
            history_age: 3600,
            ..STRICT
        },
    );
    assert_eq!(report.removed_manifests, 1);
    let history = bench
        .get(&format!("/v2/{APP}/_vdkr/history/latest"))
        .await
        .expect(200)
        .json();
    assert_eq!(history["entries"].as_array().unwrap().len(), 3);
    // Whatever stays can be gone back to.
    for entry in history["entries"].as_array().unwrap() {
        assert_eq!(entry["available"], json!(true));
        bench
            .get(&manifest(APP, entry["digest"].as_str().unwrap()))
            .await
            .expect(200);
    }
    let report = gc(&bench, STRICT);
    assert_eq!(report.removed_manifests, 2);
    bench.get(&blob(APP, b"ten")).await.expect(200);
    bench.get(&blob(APP, b"six")).await.expect(404);
}

#[tokio::test]
async fn pinned_manifests_stay_until_the_pin_goes() {
    let bench = Bench::new();
    let digest = bench.push_image(APP, "v1", b"one").await;
    let pin = format!("/v2/{APP}/_vdkr/pins/{digest}");
    bench.get(&pin).await.refused(404, "MANIFEST_UNKNOWN");
    bench.send("PUT", &pin, &[], "").await.expect(204);
    bench.get(&pin).await.expect(204);
    bench.delete(&manifest(APP, "v1")).await.expect(202);
    gc(&bench, STRICT);
    bench.get(&manifest(APP, &digest)).await.expect(200);
    bench.get(&blob(APP, b"one")).await.expect(200);
    bench.delete(&pin).await.expect(204);
    bench.delete(&pin).await.refused(404, "MANIFEST_UNKNOWN");
    bench.get(&pin).await.refused(404, "MANIFEST_UNKNOWN");
    gc(&bench, STRICT);
    assert_eq!(stored_files(&bench), 0);
    bench
        .send("PUT", &pin, &[], "")
        .await
        .refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn manifests_of_unknown_form_keep_what_they_name() {
    let bench = Bench::new();
    let layer = bench.push_blob(APP, b"old layer").await;
    let old = json!({
        "schemaVersion": 1, "name": APP, "tag": "old", "signatures": [{}],
        "fsLayers": [{ "blobSum": layer }],
    })
    .to_string();
    let digest = Digest::sha256(old.as_bytes());
    // No server takes them any more; storages have them.
    let data = bench.blob_file(&digest);
    std::fs::create_dir_all(data.parent().unwrap()).unwrap();
    std::fs::write(data, &old).unwrap();
    let manifests = bench.repository(APP).join("_manifests");
    for dir in [
        format!("revisions/sha256/{}", digest.hex()),
        "tags/old/current".to_owned(),
    ] {
        std::fs::create_dir_all(manifests.join(&dir)).unwrap();
        std::fs::write(manifests.join(dir).join("link"), digest.as_str()).unwrap();
    }
    gc(&bench, STRICT);
    bench.get(&manifest(APP, "old")).await.expect(200);
    bench.get(&blob(APP, b"old layer")).await.expect(200);
}

#[tokio::test]
async fn empty_repositories_vanish() {
    let bench = Bench::new();
    bench.push_image("a", "v1", b"one").await;
    bench.push_image("a/b/c", "v1", b"one").await;
    bench.delete(&manifest("a/b/c", "v1")).await.expect(202);
    let report = gc(&bench, STRICT);
    assert_eq!(report.emptied, ["a/b/c"]);
    assert!(!bench.repository("a/b").exists());
    let catalog = bench.get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"], json!(["a"]));
    // Deleting a manifest by its digest is enough, too, when there is nothing else.
    let digest = bench.push_image("x", "v1", b"one").await;
    bench.delete(&manifest("x", digest)).await.expect(202);
    let catalog = bench.get("/v2/_catalog").await.json();
    assert_eq!(catalog["repositories"], json!(["a"]));
    bench.push_image("a/b/c", "v1", b"one").await;
    bench.get(&manifest("a/b/c", "v1")).await.expect(200);
}

#[tokio::test]
async fn over_http_it_is_asked_for_and_asked_about() {
    let bench = Bench::new();
    bench.push_blob(APP, b"garbage").await;
    let path = "/v2/_vdkr/storage/gc";
    bench.get(path).await.refused(404, "JOB_UNKNOWN");
    bench
        .send("POST", &format!("{path}?grace=soon"), &[], "")
        .await
        .refused(400, "QUERY_INVALID");
    let dry = bench
        .send("POST", &format!("{path}?dry-run=1&grace=0"), &[], "")
        .await
        .expect(200)
        .json();
    assert_eq!(dry["report"]["freed_bytes"], json!(7));
    assert_eq!(dry["report"]["removed"][0]["repository"], json!(APP));
    let done = bench
        .send("POST", &format!("{path}?grace=0"), &[], "")
        .await
        .expect(200)
        .json();
    assert_eq!(done["report"]["freed_bytes"], json!(7));
    let again = bench.get(path).await.expect(200).json();
    assert_eq!(again["id"], done["id"]);
    bench
        .send("DELETE", path, &[], "")
        .await
        .refused(405, "UNSUPPORTED");
    let sealed = Bench::on(Arc::clone(&bench.dir), |config| {
        config.delete_enabled = false;
    });
    sealed
        .send("POST", path, &[], "")
        .await
        .refused(405, "UNSUPPORTED");
}

#[tokio::test]
async fn a_tag_is_deleted_only_as_it_was_seen() {
    let bench = Bench::new();
    let first = bench.push_image(APP, "v1", b"one").await;
    let second = bench.push_image(APP, "v1", b"two").await;
    let (old, new) = (format!("\"{first}\""), format!("\"{second}\""));
    let path = manifest(APP, "v1");
    bench
        .send("DELETE", &path, &[("if-match", old.as_str())], "")
        .await
        .refused(412, "PRECONDITION_FAILED");
    bench.get(&path).await.expect(200);
    bench
        .send("DELETE", &path, &[("if-match", new.as_str())], "")
        .await
        .expect(202);
    bench
        .send("DELETE", &path, &[("if-match", new.as_str())], "")
        .await
        .expect(404);
}
