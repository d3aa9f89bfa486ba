//! Garbage collection beside damage, and what it tells and keeps in mind.

use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::json;
use vdkr_core::extension::{FsckOptions, GcOptions};
use vdkr_registry::fs::FaultPlan;

use crate::APP;
use crate::common::collect::{STRICT, blob, gc, manifest, stored_files};
use crate::common::{Bench, digest_of, image, index, noise};

#[tokio::test]
async fn damage_is_reported_and_stops_nothing_else() {
    let bench = Bench::new();
    let torn = bench.push_image(APP, "torn", b"one").await;
    let gone = bench.push_image(APP, "gone", b"two").await;
    bench.push_image(APP, "sound", b"six").await;
    bench.push_blob(APP, b"garbage").await;
    bench.push_blob("other", b"garbage").await;
    std::fs::write(bench.blob_file(&torn), "{ half").unwrap();
    std::fs::remove_file(bench.blob_file(&gone)).unwrap();
    let link = bench.repository(APP).join("_manifests/tags/empty/current");
    std::fs::create_dir_all(&link).unwrap();
    std::fs::write(link.join("link"), "").unwrap();
    let stray = bench.v2().join("blobs/sha256/ab");
    std::fs::create_dir_all(&stray).unwrap();
    std::fs::write(stray.join("notes.txt"), "mine").unwrap();

    let report = gc(&bench, STRICT);
    let found: Vec<_> = report
        .findings
        .iter()
        .filter_map(|f| f.name.as_deref())
        .collect();
    assert!(found.contains(&torn.as_str()), "{found:?}");
    assert!(found.contains(&gone.as_str()), "{found:?}");
    assert!(found.contains(&"empty"), "{found:?}");
    assert!(
        report.findings.iter().all(|f| !f.problem.contains('/')),
        "paths are nobody's business: {:?}",
        report.findings
    );
    bench.get(&blob("other", b"garbage")).await.expect(404);
    bench.get(&manifest(APP, "sound")).await.expect(200);
    bench.get(&blob(APP, b"six")).await.expect(200);
    assert!(stray.join("notes.txt").exists());
    // Nobody knows what the damaged ones need: nothing of their repository goes.
    for content in [&b"one"[..], b"two", b"garbage"] {
        bench.get(&blob(APP, content)).await.expect(200);
    }
    // Not even when they are put aside.
    let storage = bench.registry.storage();
    let checked = storage.check(&FsckOptions::default(), &AtomicBool::new(false));
    assert!(checked.unwrap().problems > 1);
    gc(&bench, STRICT);
    for content in [&b"one"[..], b"two"] {
        bench.get(&blob(APP, content)).await.expect(200);
    }
    // Until somebody says that they are not wanted any more.
    for tag in ["torn", "gone", "empty"] {
        bench.delete(&manifest(APP, tag)).await.expect(202);
    }
    gc(&bench, STRICT);
    for content in [&b"one"[..], b"two", b"garbage"] {
        bench.get(&blob(APP, content)).await.expect(404);
    }
    bench.get(&blob(APP, b"six")).await.expect(200);
}

#[tokio::test]
async fn a_volume_that_is_not_there_costs_nothing() {
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"one").await;
    let digest = digest_of(&image(&[b"one"]));
    let (blobs, away) = (bench.v2().join("blobs"), bench.v2().join("away"));
    std::fs::rename(&blobs, &away).unwrap();
    std::fs::create_dir(&blobs).unwrap();
    let report = gc(&bench.reopened(), STRICT);
    assert!(!report.findings.is_empty());
    std::fs::remove_dir_all(&blobs).unwrap();
    std::fs::rename(&away, &blobs).unwrap();
    let bench = bench.reopened();
    bench.get(&manifest(APP, "v1")).await.expect(200);
    bench.get(&manifest(APP, digest)).await.expect(200);
    bench.get(&blob(APP, b"one")).await.expect(200);
}

#[tokio::test]
async fn a_damaged_image_of_an_index_keeps_its_layers_also_when_it_is_put_aside() {
    let bench = Bench::new();
    let [_, two] = bench.push_index(APP, "both", [b"one", b"two"]).await;
    std::fs::write(bench.blob_file(&digest_of(&two)), "no").unwrap();
    let storage = bench.registry.storage();
    let checked = storage.check(&FsckOptions::default(), &AtomicBool::new(false));
    assert_eq!(checked.unwrap().quarantined.len(), 1);
    bench.get(&manifest(APP, "both")).await.expect(200);
    gc(&bench, STRICT);
    bench.get(&blob(APP, b"two")).await.expect(200);
    bench
        .put_manifest(APP, digest_of(&two).as_str(), &two)
        .await
        .expect(201);
    assert_eq!(gc(&bench, STRICT).findings, []);
}

#[tokio::test]
async fn what_lies_behind_a_symbolic_link_is_not_garbage() {
    for (part, elsewhere) in [
        ("repositories/yocto", "moved"),
        ("repositories/yocto/app", "moved"),
        ("repositories/yocto/app/_layers", "moved"),
        ("repositories/yocto/app/_layers/sha256", "moved"),
        ("repositories/yocto/app/_manifests/tags/v1", "moved"),
    ] {
        let bench = Bench::new();
        bench.push_image(APP, "v1", b"one").await;
        let (from, to) = (bench.v2().join(part), bench.v2().join(elsewhere));
        std::fs::rename(&from, &to).unwrap();
        std::os::unix::fs::symlink(&to, &from).unwrap();
        let bench = bench.reopened();
        for path in [manifest(APP, "v1"), blob(APP, b"one")] {
            assert_ne!(bench.get(&path).await.status, 404, "{part}: {path}");
        }
        let report = gc(&bench, STRICT);
        assert!(!report.findings.is_empty(), "{part}");
        assert_eq!(stored_files(&bench), 3, "{part}");
        std::fs::remove_file(&from).unwrap();
        std::fs::rename(&to, &from).unwrap();
        let bench = bench.reopened();
        bench.get(&manifest(APP, "v1")).await.expect(200);
        bench.get(&blob(APP, b"one")).await.expect(200);
    }
    // Nor what lies under a name that nobody can ask for.
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"one").await;
    bench.push_blob("other", b"garbage").await;
    let odd = std::ffi::OsStr::from_bytes(b"repositories/\xff\xfe");
    std::fs::create_dir(bench.v2().join(odd)).unwrap();
    let report = gc(&bench, STRICT);
    assert_eq!((report.findings.len(), report.removed_blobs), (1, 0));
}

#[tokio::test]
async fn what_is_kept_is_told_by_reason() {
    let bench = Bench::new();
    bench.push_image(APP, "v1", b"first").await;
    bench.push_image(APP, "v1", b"second one").await;
    bench.push_image("other", "v1", &noise(1000, 5)).await;
    bench.delete(&manifest("other", "v1")).await.expect(202);
    let hour = GcOptions {
        grace: 3600,
        history: 5,
        history_age: 3600,
        dry_run: true,
    };
    let report = gc(&bench, hour);
    let former = image(&[b"first"]).to_string().len() as u64;
    let deleted = image(&[&noise(1000, 5)]).to_string().len() as u64;
    assert_eq!((report.history, report.history_bytes), (2, former + 5));
    // The configuration is used elsewhere.
    assert_eq!((report.young, report.young_bytes), (2, deleted + 1000));
    let report = gc(&bench, STRICT);
    assert_eq!((report.history, report.young), (0, 0));
    assert_eq!(report.freed_bytes, former + 5 + deleted + 1000);
}

#[tokio::test]
async fn a_deleted_tag_can_be_brought_back_until_its_image_is_collected() {
    let bench = Bench::new();
    let first = bench.push_image(APP, "v1", b"first").await;
    let second = bench.push_image(APP, "v1", b"second").await;
    bench.push_image(APP, "v2", b"other").await;
    bench.delete(&manifest(APP, "v1")).await.expect(202);
    let path = format!("/v2/{APP}/_vdkr/history/v1");
    let told = bench.reopened().get(&path).await.expect(200).json();
    let entries = told["entries"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert_eq!(entries[0]["digest"], json!(second));
    assert_eq!(entries[1]["digest"], json!(first));
    for entry in entries {
        assert_eq!(
            (&entry["current"], &entry["available"]),
            (&json!(false), &json!(true))
        );
        assert!(entry["deleted"].is_u64());
    }
    let listed = bench.get(&format!("/v2/{APP}/tags/list")).await.json();
    assert_eq!(listed["tags"], json!(["v2"]), "it is deleted all the same");

    // Back, and deleted again: nothing is told twice.
    let body = image(&[b"second"]);
    bench.put_manifest(APP, "v1", &body).await.expect(201);
    let told = bench.get(&path).await.expect(200).json();
    assert_eq!(told["entries"][0]["current"], json!(true));
    assert_eq!(told["entries"][0].get("deleted"), None);
    assert_eq!(told["entries"].as_array().unwrap().len(), 2);
    bench.delete(&manifest(APP, "v1")).await.expect(202);
    let told = bench.get(&path).await.expect(200).json();
    assert_eq!(told["entries"].as_array().unwrap().len(), 2);

    // A record that is none says nothing, and stands in nobody's way.
    let records = bench.repository(APP).join("_vdkr/deleted");
    for (number, content) in ["", "{", "[{}]", "[1]", &"[".repeat(100_000)]
        .into_iter()
        .enumerate()
    {
        let tag = format!("broken{number}");
        std::fs::write(records.join(&tag), content).unwrap();
        let path = format!("/v2/{APP}/_vdkr/history/{tag}");
        bench.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    }

    // It keeps nothing, and goes with what it speaks of.
    assert_eq!(gc(&bench, STRICT).removed_manifests, 2);
    bench.get(&path).await.refused(404, "MANIFEST_UNKNOWN");
    assert_eq!(std::fs::read_dir(&records).unwrap().count(), 0);
    bench.delete(&manifest(APP, "v2")).await.expect(202);
    assert_eq!(gc(&bench, STRICT).emptied, [APP]);
    assert!(!bench.repository(APP).exists());
}

#[tokio::test]
async fn a_manifest_that_was_asked_for_while_garbage_is_collected_stays_whole() {
    let one = image(&[b"one"]);
    let list = index(&[&one]);
    let path = manifest(APP, digest_of(&list));
    let (mut at, mut kept, mut gone) = (0, 0, 0);
    // Somebody asks at each point of a collection, from its first look at a repository on.
    loop {
        let plan = Arc::new(FaultPlan::new());
        let bench = Bench::planned(&plan);
        bench.push_image(APP, "v1", b"one").await;
        let target = digest_of(&list).to_string();
        bench.put_manifest(APP, &target, &list).await.expect(201);
        bench.delete(&manifest(APP, "v1")).await.expect(202);
        let (registry, asked) = (bench.registry.clone(), path.clone());
        let (tell, told) = std::sync::mpsc::channel();
        // Before that come the look for what was put aside, and the lock.
        let begun = plan.count() + 2;
        plan.meanwhile(begun + at, move || {
            // In a thread of its own: the collection may hold what it waits for.
            let (done, wait) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let request = http::Request::head(asked.as_str());
                let body = http_body_util::Empty::<bytes::Bytes>::new();
                let request = request.body(body).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                let answer = runtime.block_on(registry.handle(request));
                let _ = tell.send(answer.status().as_u16());
                let _ = done.send(());
            });
            let _ = wait.recv_timeout(Duration::from_millis(100));
        });
        gc(&bench, STRICT);
        if begun + at >= plan.count() {
            break;
        }
        match told.recv_timeout(Duration::from_mins(1)).unwrap() {
            200 => {
                for path in [&path, &manifest(APP, digest_of(&one)), &blob(APP, b"one")] {
                    let status = bench.get(path).await.status;
                    assert_eq!(status, 200, "{path} went after it was promised at {at}");
                }
                kept += 1;
            }
            status => {
                assert_eq!(status, 404, "at {at}");
                gone += 1;
            }
        }
        at += 1;
    }
    assert!(kept > 5 && gone > 5, "kept {kept}, gone {gone}");
}
