//! What clients and other processes do while garbage is collected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::extension::GcOptions;
use vdkr_registry::storage::StorageError;

use crate::APP;
use crate::common::collect::{STRICT, back_date, blob, gc, manifest, stored_files};
use crate::common::{Bench, digest_of, image, noise};

#[tokio::test]
async fn what_was_touched_within_the_grace_stays() {
    let hour = GcOptions {
        grace: 3600,
        ..STRICT
    };
    let bench = Bench::new();
    for content in [&b"asked for"[..], b"mounted", b"old", b"{}"] {
        bench.push_blob(APP, content).await;
    }
    let untagged = image(&[b"old"]);
    let by_digest = digest_of(&untagged).to_string();
    bench
        .put_manifest(APP, &by_digest, &untagged)
        .await
        .expect(201);
    let report = gc(&bench, hour);
    assert_eq!((report.removed_links, report.removed_manifests), (0, 0));
    assert_eq!(
        report.young, 5,
        "two blobs that nothing names, and a manifest with what it needs"
    );
    let bytes: usize = ["asked for", "mounted", "old", "{}", &untagged.to_string()]
        .iter()
        .map(|content| content.len())
        .sum();
    assert_eq!(report.young_bytes, bytes as u64);

    back_date(&bench.v2(), Duration::from_hours(2));
    // Another process knows the times of the disk only.
    let bench = bench.reopened();
    bench.head(&blob(APP, b"asked for")).await.expect(200);
    bench.head(&manifest(APP, &by_digest)).await.expect(200);
    let mount = format!(
        "/v2/other/blobs/uploads/?mount={}&from={APP}",
        Digest::sha256(b"mounted")
    );
    bench.send("POST", &mount, &[], "").await.expect(201);
    for bench in [bench.reopened(), bench.reopened()] {
        let report = gc(&bench, hour);
        assert_eq!(report.removed_manifests, 0, "it was asked for");
        bench.get(&blob(APP, b"asked for")).await.expect(200);
        bench.get(&blob(APP, b"old")).await.expect(200);
        bench.get(&blob(APP, b"mounted")).await.expect(404);
        bench.get(&blob("other", b"mounted")).await.expect(200);
    }
    back_date(&bench.v2(), Duration::from_hours(2));
    let bench = bench.reopened();
    gc(&bench, hour);
    assert_eq!(stored_files(&bench), 0);
}

#[tokio::test]
async fn a_mount_onto_an_old_link_counts_as_a_touch() {
    let bench = Bench::new();
    for repository in [APP, "other"] {
        bench.push_blob(repository, b"mounted").await;
    }
    back_date(&bench.v2(), Duration::from_hours(2));
    let bench = bench.reopened();
    let mount = format!(
        "/v2/other/blobs/uploads/?mount={}&from={APP}",
        Digest::sha256(b"mounted")
    );
    bench.send("POST", &mount, &[], "").await.expect(201);
    let hour = GcOptions {
        grace: 3600,
        ..STRICT
    };
    gc(&bench.reopened(), hour);
    bench.get(&blob(APP, b"mounted")).await.expect(404);
    bench.get(&blob("other", b"mounted")).await.expect(200);
}

#[tokio::test]
async fn an_upload_under_way_keeps_the_blobs_pushed_before_it() {
    let bench = Bench::new();
    bench.push_blob(APP, b"small").await;
    back_date(&bench.v2(), Duration::from_hours(2));
    let bench = bench.reopened();
    let begun = bench
        .send("POST", &format!("/v2/{APP}/blobs/uploads/"), &[], "")
        .await
        .expect(202);
    let hour = GcOptions {
        grace: 3600,
        ..STRICT
    };
    gc(&bench, hour);
    bench.get(&blob(APP, b"small")).await.expect(200);
    bench.delete(begun.header("location")).await.expect(204);
    let bench = {
        back_date(&bench.v2(), Duration::from_hours(2));
        bench.reopened()
    };
    gc(&bench, hour);
    assert_eq!(stored_files(&bench), 0);
}

#[tokio::test]
async fn a_run_of_another_process_is_not_disturbed() {
    let bench = Bench::new();
    let ours = std::fs::File::open(bench.v2().join("_vdkr")).unwrap();
    ours.lock().unwrap();
    let stop = AtomicBool::new(false);
    let storage = bench.registry.storage();
    let refused = storage.collect_garbage(&STRICT, &stop).unwrap_err();
    assert!(matches!(refused, StorageError::Busy), "{refused}");
    let told = bench
        .send("POST", "/v2/_vdkr/storage/gc", &[], "")
        .await
        .expect(200)
        .json();
    assert!(
        told["failed"].as_str().unwrap().contains("another process"),
        "{told}"
    );
    ours.unlock().unwrap();
    gc(&bench, STRICT);
    stop.store(true, Ordering::Relaxed);
    let stopped = storage.collect_garbage(&STRICT, &stop).unwrap_err();
    assert!(matches!(stopped, StorageError::Stopped), "{stopped}");
}

/// Pushes as clients do: asks first, and sends only what is missing. Returns how often it had to begin
/// again, because what it was told was there was collected without any grace.
async fn push_as_clients_do(bench: &Bench, repository: &str, tag: &str, layers: &[&[u8]]) -> usize {
    for again in 0..1000 {
        for content in layers.iter().copied().chain([&b"{}"[..]]) {
            if bench.head(&blob(repository, content)).await.status != 200 {
                bench.push_blob(repository, content).await;
            }
        }
        let answer = bench.put_manifest(repository, tag, &image(layers)).await;
        if answer.status == 201 {
            return again;
        }
        answer.refused(404, "MANIFEST_BLOB_UNKNOWN");
    }
    panic!("the push never came through");
}

async fn assert_whole(bench: &Bench, repository: &str, tag: &str, layers: &[&[u8]]) {
    let answer = bench.get(&manifest(repository, tag)).await.expect(200);
    assert_eq!(answer.json(), image(layers));
    for content in layers.iter().copied().chain([&b"{}"[..]]) {
        let answer = bench.get(&blob(repository, content)).await.expect(200);
        assert!(answer.body == content);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pushes_mounts_and_deletes_go_on_while_garbage_is_collected_without_grace() {
    const CLIENTS: u64 = 4;
    let bench = Arc::new(Bench::new());
    let stop = Arc::new(AtomicBool::new(false));
    let collector = tokio::task::spawn_blocking({
        let (bench, stop) = (Arc::clone(&bench), Arc::clone(&stop));
        move || {
            let (mut runs, mut freed) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let report = gc(&bench, STRICT);
                assert_eq!(report.findings, []);
                runs += 1;
                freed += report.removed_blobs;
            }
            (runs, freed)
        }
    });
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let bench = Arc::clone(&bench);
            tokio::spawn(async move {
                // Two clients for each repository, layers shared among all.
                let repository = format!("soak/{}", client % 2);
                let tag = format!("t{client}");
                let shared: Vec<Vec<u8>> = (0..4).map(|n| noise(500, n)).collect();
                for round in 0..40_u64 {
                    let own = noise(300, 100 + client * 1000 + round);
                    let one = &shared[(client + round) as usize % 4];
                    let two = &shared[(client + round / 3) as usize % 4];
                    let layers: Vec<&[u8]> = vec![one, two, &own];
                    push_as_clients_do(&bench, &repository, &tag, &layers).await;
                    assert_whole(&bench, &repository, &tag, &layers).await;
                    let mount = format!(
                        "/v2/soak/{}/blobs/uploads/?mount={}&from={repository}",
                        (client + 1) % 2,
                        Digest::sha256(one)
                    );
                    bench.send("POST", &mount, &[], "").await.expect(201);
                    if round % 4 == 3 {
                        bench.delete(&manifest(&repository, &tag)).await.expect(202);
                    } else {
                        assert_whole(&bench, &repository, &tag, &layers).await;
                    }
                }
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let (runs, freed) = collector.await.unwrap();
    assert!(runs > 10 && freed > 50, "{runs} runs removed {freed} files");
    gc(&bench, STRICT);
    assert_eq!(stored_files(&bench), 0, "everything was deleted at the end");
    assert_eq!(
        bench.get("/v2/_catalog").await.json()["repositories"],
        json!([])
    );
}
