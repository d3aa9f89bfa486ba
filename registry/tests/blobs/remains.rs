//! What may lie in a storage: torn files, links, the work of others, remains of the dead.

use vdkr_core::digest::{Algorithm, Digest};

use crate::common::Bench;
use crate::{UPLOADS, assert_served, blob};

#[tokio::test]
async fn symbolic_links_in_the_storage_are_not_followed() {
    let bench = Bench::new();
    let digest = bench.push_blob("yocto/app", b"content").await;
    let outside = bench.dir.path().join("outside");
    std::fs::rename(bench.blob_file(&digest), &outside).unwrap();
    std::os::unix::fs::symlink(&outside, bench.blob_file(&digest)).unwrap();
    // It is not ours to serve, and whoever pushes may send it.
    bench.get(&blob(&digest)).await.refused(500, "UNKNOWN");
    bench.head(&blob(&digest)).await.expect(404);
    // And the next push mends it.
    bench.push_blob("yocto/app", b"content").await;
    assert_served(&bench, &digest, b"content").await;
    assert!(outside.is_file());
}

#[tokio::test]
async fn torn_files_are_not_served_and_mended_by_a_push() {
    let bench = Bench::new();
    let digest = bench.push_blob("yocto/app", b"content").await;
    let link = bench
        .repository("yocto/app/_layers/sha256")
        .join(digest.hex())
        .join("link");
    for broken in ["", "sha256:", "sha256:abc", "\0\0\0\0", &"x".repeat(10_000)] {
        std::fs::write(&link, broken).unwrap();
        bench.get(&blob(&digest)).await.refused(404, "BLOB_UNKNOWN");
        bench.push_blob("yocto/app", b"content").await;
        assert_served(&bench, &digest, b"content").await;
    }
    std::fs::write(bench.blob_file(&digest), "").unwrap();
    bench.get(&blob(&digest)).await.refused(404, "BLOB_UNKNOWN");
    bench.push_blob("yocto/app", b"content").await;
    assert_served(&bench, &digest, b"content").await;
    // Of another length, and of the same one: what was verified just now counts.
    for damaged in ["cont", "cOntent"] {
        std::fs::write(bench.blob_file(&digest), damaged).unwrap();
        bench.push_blob("yocto/app", b"content").await;
        assert_served(&bench, &digest, b"content").await;
    }
}

#[tokio::test]
async fn a_link_of_another_algorithm_is_followed_as_distribution_writes_it() {
    let bench = Bench::new();
    let stored = bench.push_blob("yocto/app", b"content").await;
    let alias = Digest::of(Algorithm::Sha512, b"content");
    let dir = bench
        .repository("yocto/app/_layers/sha512")
        .join(alias.hex());
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("link"), stored.as_str()).unwrap();
    assert_served(&bench, &alias, b"content").await;
}

#[tokio::test]
async fn expired_sessions_are_swept_and_strange_files_survive() {
    let bench =
        Bench::with(|config| config.limits.upload_expiry = std::time::Duration::from_hours(1));
    let fresh = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let old = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    bench
        .send("PATCH", old.header("location"), &[], "some")
        .await
        .expect(202);
    let uploads = bench.repository("yocto/app/_uploads");
    let id = old.header("location").rsplit('/').next().unwrap();
    let past = std::time::SystemTime::now() - std::time::Duration::from_hours(2);
    for path in [uploads.join(id).join("data"), uploads.join(id)] {
        std::fs::File::open(path)
            .unwrap()
            .set_modified(past)
            .unwrap();
    }
    std::fs::write(uploads.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(uploads.join("keep-me")).unwrap();
    std::fs::write(bench.v2().join("repositories/stray"), "mine").unwrap();
    let bench = bench.reopened();
    let swept = bench.registry.storage().sweep_uploads(3600).unwrap();
    assert_eq!((swept.kept, swept.removed), (1, 1));
    bench.get(fresh.header("location")).await.expect(204);
    bench
        .get(old.header("location"))
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(uploads.join("notes.txt").exists() && uploads.join("keep-me").exists());
}

#[tokio::test]
async fn what_a_dead_process_left_is_cleared_and_a_live_ones_is_not() {
    let bench = Bench::new();
    let temporary = bench.v2().join("_vdkr/tmp");
    std::fs::create_dir(temporary.join("dead")).unwrap();
    std::fs::write(temporary.join("dead/7"), "half a blob").unwrap();
    let live = std::fs::read_dir(&temporary).unwrap().count();
    assert_eq!(live, 2);
    let second = bench.reopened();
    assert!(!temporary.join("dead").exists());
    assert_eq!(
        std::fs::read_dir(&temporary).unwrap().count(),
        2,
        "the first and the second"
    );
    bench.push_blob("yocto/app", b"by the first").await;
    second.push_blob("yocto/app", b"by the second").await;
}
