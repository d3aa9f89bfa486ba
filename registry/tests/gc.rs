//! Garbage collection: what goes, what stays, and what may happen meanwhile.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::collect::{STRICT, back_date, blob, gc, manifest, stored_files};
use common::disk::{Disk, Loss};
use common::{Bench, descriptor, digest_of, image, index, noise, scratch};
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::extension::GcOptions;
use vdkr_core::manifest::media_type;
use vdkr_registry::fs::{Fault, FaultPlan};
use vdkr_registry::storage::StorageError;

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
    for content in [&b"{}"[..], b"one", b"two"] {
        bench.push_blob(APP, content).await;
    }
    let (one, two) = (image(&[b"one"]), image(&[b"two"]));
    for manifest in [&one, &two] {
        let digest = digest_of(manifest).to_string();
        bench.put_manifest(APP, &digest, manifest).await.expect(201);
    }
    bench
        .put_manifest(APP, "both", &index(&[&one, &two]))
        .await
        .expect(201);
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

/// A short life with garbage at its end. Returns the number of operations before the collection.
async fn live(bench: &Bench, plan: &FaultPlan) -> usize {
    let (one, two) = (noise(200, 1), noise(300, 2));
    for content in [&b"{}"[..], &one, &two] {
        bench.push_blob(APP, content).await;
    }
    let (first, second) = (image(&[&one]), image(&[&one, &two]));
    for manifest in [&first, &second] {
        let digest = digest_of(manifest).to_string();
        bench.put_manifest(APP, &digest, manifest).await.expect(201);
    }
    bench
        .put_manifest(APP, "both", &index(&[&first, &second]))
        .await
        .expect(201);
    bench.put_manifest(APP, "kept", &first).await.expect(201);
    bench.push_image("gone", "v1", &two).await;
    bench.delete(&manifest("gone", "v1")).await.expect(202);
    bench.delete(&manifest(APP, "both")).await.expect(202);
    plan.count()
}

/// Whatever manifest is served has everything that it needs, and the tag is there.
async fn assert_legal(bench: &Bench, context: &str) {
    let (one, two) = (noise(200, 1), noise(300, 2));
    let (first, second) = (image(&[&one]), image(&[&one, &two]));
    let both = index(&[&first, &second]);
    bench.get(&manifest(APP, "kept")).await.expect(200);
    for repository in [APP, "gone"] {
        if bench
            .get(&manifest(repository, digest_of(&both)))
            .await
            .status
            == 200
        {
            for child in [&first, &second] {
                let answer = bench.get(&manifest(repository, digest_of(child))).await;
                assert_eq!(answer.status, 200, "{context}: an index without its image");
            }
        }
        for (image, layers) in [
            (first.clone(), vec![&one]),
            (second.clone(), vec![&one, &two]),
            (common::image(&[&two]), vec![&two]),
        ] {
            if bench
                .get(&manifest(repository, digest_of(&image)))
                .await
                .status
                != 200
            {
                continue;
            }
            for layer in layers {
                let answer = bench.get(&blob(repository, layer)).await;
                assert_eq!(answer.status, 200, "{context}: an image without its layer");
                assert!(answer.body == layer.as_slice(), "{context}");
            }
        }
    }
}

#[tokio::test]
async fn a_power_cut_at_any_point_of_a_collection_leaves_a_legal_state() {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::planned(&plan);
    let begun = live(&bench, &plan).await;
    let report = gc(&bench, STRICT);
    assert_eq!((report.removed_manifests, report.removed_blobs), (3, 4));
    let ops = plan.ops();
    let mut points = 0;
    for cut in begun..=ops.len() {
        if cut > begun && !ops[cut - 1].mutates() {
            continue;
        }
        let disk = Disk::after(&ops[..cut]);
        for loss in [
            Loss::Nothing,
            Loss::Unsynced,
            Loss::Some(cut as u64),
            Loss::Some(10_007 + cut as u64),
        ] {
            let dir = scratch();
            disk.materialise(loss, dir.path());
            let fast = Arc::new(FaultPlan::new());
            let bench = Bench::on(dir, |config| config.fault_plan = Some(fast));
            let context = format!("{loss:?} at {cut}");
            assert_legal(&bench, &context).await;
            // The next collection finishes the work.
            let report = gc(&bench, STRICT);
            assert_eq!(report.findings, [], "{context}");
            assert_legal(&bench, &context).await;
            assert_eq!(stored_files(&bench), 3, "{context}");
            points += 1;
        }
    }
    assert!(points > 60, "only {points} points");
}

#[tokio::test]
async fn any_operation_of_a_collection_may_fail_or_be_the_last() {
    let (begun, ops) = {
        let plan = Arc::new(FaultPlan::new());
        let bench = Bench::planned(&plan);
        let begun = live(&bench, &plan).await;
        gc(&bench, STRICT);
        (begun, plan.ops())
    };
    let mut told = 0;
    for (number, op) in ops.iter().enumerate().skip(begun) {
        for fault in [Fault::Error(rustix::io::Errno::IO), Fault::Crash] {
            let plan = Arc::new(FaultPlan::new());
            plan.spoil(number, fault);
            let bench = Bench::planned(&plan);
            live(&bench, &plan).await;
            let stop = AtomicBool::new(false);
            let ran = bench.registry.storage().collect_garbage(&STRICT, &stop);
            told += usize::from(ran.map_or(true, |report| !report.findings.is_empty()));
            let fast = Arc::new(FaultPlan::new());
            let bench = Bench::on(Arc::clone(&bench.dir), |config| {
                config.fault_plan = Some(fast);
            });
            let context = format!("{fault:?} at {number}: {op:?}");
            assert_legal(&bench, &context).await;
            assert_eq!(gc(&bench, STRICT).findings, [], "{context}");
            assert_eq!(stored_files(&bench), 3, "{context}");
        }
    }
    assert!(told > 50, "only {told} failures were told");
}
