//! Checking what is stored.

mod common;

use std::sync::atomic::AtomicBool;

use common::{Bench, digest_of, image, noise};
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::extension::{FsckOptions, FsckReport, GcOptions};

const APP: &str = "yocto/app";

fn fsck(bench: &Bench, dry_run: bool) -> FsckReport {
    let stop = AtomicBool::new(false);
    let options = FsckOptions {
        dry_run,
        ..FsckOptions::default()
    };
    bench.registry.storage().check(&options, &stop).unwrap()
}

fn blob(content: &[u8]) -> String {
    format!("/v2/{APP}/blobs/{}", Digest::sha256(content))
}

#[tokio::test]
async fn a_sound_storage_has_nothing_to_tell() {
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"one").await;
    bench.push_image("other", "v1", &noise(3_000_000, 1)).await;
    let report = fsck(&bench, false);
    assert_eq!(report.problems, 0, "{report:?}");
    assert_eq!(
        (report.files, report.repositories, report.manifests),
        (5, 2, 2)
    );
    assert!(report.bytes > 3_000_000);
}

#[tokio::test]
async fn damaged_content_goes_to_the_quarantine_and_a_push_mends_it() {
    let bench = Bench::new();
    let manifest = bench.push_image(APP, "v1", b"sound content").await;
    bench.push_image(APP, "v2", b"other content").await;
    let layer = Digest::sha256(b"sound content");
    bench.get(&blob(b"sound content")).await.expect(200);
    std::fs::write(bench.blob_file(&layer), b"sOund content").unwrap();

    let told = fsck(&bench, true);
    assert_eq!(told.quarantined.len(), 1);
    assert_eq!(told.quarantined[0].path, None);
    assert_eq!(told.incomplete.len(), 1);
    assert!(bench.blob_file(&layer).exists(), "a dry run moves nothing");

    let report = fsck(&bench, false);
    assert_eq!(report.quarantined[0].digest, layer);
    let moved = bench
        .dir
        .path()
        .join(report.quarantined[0].path.as_ref().unwrap());
    assert_eq!(
        std::fs::read(moved).unwrap(),
        b"sOund content",
        "nothing is thrown away"
    );
    assert_eq!(report.incomplete.len(), 1);
    let image = &report.incomplete[0];
    assert_eq!(
        (image.repository.as_str(), image.tag.as_deref()),
        (APP, Some("v1"))
    );
    assert_eq!(
        (&image.digest, &image.missing[..]),
        (&manifest, &[layer.clone()][..])
    );
    bench
        .get(&blob(b"sound content"))
        .await
        .refused(404, "BLOB_UNKNOWN");
    bench.head(&blob(b"sound content")).await.expect(404);
    // Nor is the manifest, lest clients think that there is nothing to send.
    bench
        .get(&format!("/v2/{APP}/manifests/{manifest}"))
        .await
        .refused(404, "MANIFEST_UNKNOWN");
    // But who asks for the tag does not hear that it is unknown, to look for it elsewhere.
    bench
        .get(&format!("/v2/{APP}/manifests/v1"))
        .await
        .refused(500, "MANIFEST_DAMAGED");

    // Until it is pushed again, it is told again, and what is left of it is kept.
    let report = fsck(&bench, false);
    assert_eq!((report.quarantined.len(), report.incomplete.len()), (0, 1));
    assert_eq!(report.incomplete[0].missing, std::slice::from_ref(&layer));
    let strict = GcOptions {
        grace: 0,
        history: 0,
        ..GcOptions::default()
    };
    let storage = bench.registry.storage();
    storage
        .collect_garbage(&strict, &AtomicBool::new(false))
        .unwrap();
    assert!(bench.blob_file(&manifest).exists());
    bench.get(&blob(b"{}")).await.expect(200);
    bench.push_blob(APP, b"sound content").await;
    // A client that was told that the tag is not there asks that nobody else makes it meanwhile.
    let path = format!("/v2/{APP}/manifests/v1");
    let absent = [("if-none-match", "*")];
    let again = common::image(&[b"sound content"]).to_string();
    bench.send("PUT", &path, &absent, again).await.expect(201);
    assert_eq!(fsck(&bench, false).problems, 0);
    bench.get(&blob(b"sound content")).await.expect(200);
}

#[tokio::test]
async fn a_damaged_manifest_is_no_longer_served() {
    let bench = Bench::new();
    let digest = bench.push_image(APP, "v1", b"one").await;
    let path = format!("/v2/{APP}/manifests/{digest}");
    bench.get(&path).await.expect(200);
    let mut body = std::fs::read(bench.blob_file(&digest)).unwrap();
    body[10] ^= 1;
    std::fs::write(bench.blob_file(&digest), body).unwrap();
    let report = fsck(&bench, false);
    assert_eq!(report.quarantined[0].digest, digest);
    assert_eq!(report.incomplete[0].missing, [digest]);
    bench.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    bench.push_image(APP, "v1", b"one").await;
    assert_eq!(fsck(&bench, false).problems, 0);
    bench.get(&path).await.expect(200);
}

#[tokio::test]
async fn missing_parts_are_told_for_the_index_above_them() {
    let bench = Bench::new();
    let [one, two] = bench.push_index(APP, "both", [b"one", b"two"]).await;
    let lost = Digest::sha256(b"two");
    std::fs::remove_file(bench.blob_file(&lost)).unwrap();
    let report = fsck(&bench, false);
    let named: Vec<_> = report.incomplete.iter().map(|i| i.tag.clone()).collect();
    assert!(named.contains(&Some("both".to_owned())), "{report:?}");
    assert!(
        report
            .incomplete
            .iter()
            .all(|i| i.missing == [lost.clone()])
    );
    assert_eq!(report.incomplete.len(), 2, "the index and its second image");

    // What is whole of it can still be pulled.
    let path = |target: &str| format!("/v2/{APP}/manifests/{target}");
    bench.get(&path("both")).await.expect(200);
    let (one, two) = (digest_of(&one), digest_of(&two));
    bench.get(&path(one.as_str())).await.expect(200);
    bench.get(&path(two.as_str())).await.expect(404);
    // And the next look tells the same of the tag.
    let report = fsck(&bench, false);
    assert_eq!(report.incomplete.len(), 1, "{report:?}");
    assert_eq!(report.incomplete[0].tag.as_deref(), Some("both"));
    assert_eq!(report.incomplete[0].missing, std::slice::from_ref(&lost));
    let strict = GcOptions {
        grace: 0,
        history: 0,
        ..GcOptions::default()
    };
    let storage = bench.registry.storage();
    storage
        .collect_garbage(&strict, &AtomicBool::new(false))
        .unwrap();
    assert!(bench.blob_file(&two).exists(), "it waits for the push");
    bench.push_blob(APP, b"two").await;
    let again = image(&[b"two"]);
    bench
        .put_manifest(APP, two.as_str(), &again)
        .await
        .expect(201);
    assert_eq!(fsck(&bench, false).problems, 0);
}

#[tokio::test]
async fn what_the_registry_took_is_not_put_aside() {
    // A manifest of an older server, or another one, that tells a wrong size.
    let bench = Bench::new();
    bench.push_blob(APP, b"{}").await;
    bench.push_blob(APP, b"one").await;
    let mut wrong = image(&[b"one"]);
    wrong["layers"][0]["size"] = json!(4);
    let digest = digest_of(&wrong);
    let data = bench.blob_file(&digest);
    std::fs::create_dir_all(data.parent().unwrap()).unwrap();
    std::fs::write(data, wrong.to_string()).unwrap();
    let link = bench
        .repository(APP)
        .join("_manifests/revisions/sha256")
        .join(digest.hex());
    std::fs::create_dir_all(&link).unwrap();
    std::fs::write(link.join("link"), digest.as_str()).unwrap();
    let report = fsck(&bench, false);
    assert_eq!((report.problems, report.incomplete.len()), (1, 0));
    assert_eq!(report.findings[0].name.as_deref(), Some(digest.as_str()));
    let path = format!("/v2/{APP}/manifests/{digest}");
    bench.get(&path).await.expect(200);

    // One that lacks what it names, where such are taken.
    let bench = Bench::with(|config| config.sparse_manifests = true);
    bench.push_blob(APP, b"{}").await;
    let sparse = image(&[b"never pushed"]);
    bench.put_manifest(APP, "v1", &sparse).await.expect(201);
    let done = bench
        .send("POST", "/v2/_vdkr/storage/fsck?dry-run=0", &[], "")
        .await
        .expect(200)
        .json();
    assert_eq!(done["report"]["incomplete"].as_array().unwrap().len(), 1);
    let path = format!("/v2/{APP}/manifests/v1");
    bench.get(&path).await.expect(200);
}

#[tokio::test]
async fn links_that_hold_no_digest_are_told() {
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"one").await;
    let layer = Digest::sha256(b"one");
    let repository = bench.repository(APP);
    let link = repository
        .join("_layers/sha256")
        .join(layer.hex())
        .join("link");
    std::fs::write(&link, "").unwrap();
    let tag = repository.join("_manifests/tags/v2/current");
    std::fs::create_dir_all(&tag).unwrap();
    std::fs::write(tag.join("link"), "sha256:").unwrap();
    let report = fsck(&bench, false);
    let found: Vec<_> = report
        .findings
        .iter()
        .filter_map(|f| f.name.as_deref())
        .collect();
    assert!(
        found.contains(&"v2") && found.contains(&layer.as_str()),
        "{report:?}"
    );
    assert_eq!(report.incomplete.len(), 1);
}

#[tokio::test]
async fn over_http_it_is_a_job() {
    let bench = Bench::new();
    let digest = bench.push_image(APP, "v1", b"one").await;
    std::fs::write(bench.blob_file(&digest), "no").unwrap();
    let path = "/v2/_vdkr/storage/fsck";
    let done = bench
        .send("POST", &format!("{path}?dry-run=0"), &[], "")
        .await
        .expect(200)
        .json();
    assert_eq!(done["report"]["quarantined"][0]["digest"], json!(digest));
    assert_eq!(bench.get(path).await.expect(200).json()["id"], done["id"]);
}
