//! Blobs over HTTP: ways out, names, mounts, deletion; ways in are in `uploads`.

#[path = "../common/mod.rs"]
mod common;
mod local_uploads;
mod remains;
mod uploads;

use common::{Bench, noise};
use vdkr_core::digest::Digest;

const UPLOADS: &str = "/v2/yocto/app/blobs/uploads/";

fn blob(digest: &Digest) -> String {
    format!("/v2/yocto/app/blobs/{digest}")
}

async fn assert_served(bench: &Bench, digest: &Digest, content: &[u8]) {
    let answer = bench.get(&blob(digest)).await.expect(200);
    assert!(answer.body == content, "{digest}");
    assert_eq!(answer.header("docker-content-digest"), digest.as_str());
    assert_eq!(answer.header("etag"), format!("\"{digest}\""));
    let answer = bench.head(&blob(digest)).await.expect(200);
    assert_eq!(answer.header("content-length"), content.len().to_string());
    assert_eq!(answer.header("docker-content-digest"), digest.as_str());
    assert!(answer.body.is_empty());
}

fn sessions(bench: &Bench) -> usize {
    std::fs::read_dir(bench.repository("yocto/app/_uploads")).map_or(0, Iterator::count)
}

fn temporary_files(bench: &Bench) -> usize {
    walk(&bench.v2().join("_vdkr"))
        .into_iter()
        .filter(|path| path.is_file())
        .count()
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

#[tokio::test]
async fn base_answers() {
    let bench = Bench::new();
    for path in ["/v2/", "/v2"] {
        let answer = bench.get(path).await.expect(200);
        assert_eq!(
            answer.header("docker-distribution-api-version"),
            "registry/2.0"
        );
        bench.head(path).await.expect(200);
    }
    bench.get("/").await.expect(404);
    bench.get("/v1/").await.expect(404);
    let answer = bench
        .send("POST", "/v2/", &[], "")
        .await
        .refused(405, "UNSUPPORTED");
    assert_eq!(answer.header("allow"), "GET, HEAD");
}

#[tokio::test]
async fn ranges() {
    let bench = Bench::new();
    let content = noise(200_000, 7);
    let digest = bench.push_blob("yocto/app", &content).await;
    for (range, first, last) in [
        ("bytes=0-0", 0, 0),
        ("bytes=500-1499", 500, 1499),
        ("bytes=500-", 500, 199_999),
        ("bytes=-500", 199_500, 199_999),
        ("bytes=-300000", 0, 199_999),
        ("bytes=199000-500000", 199_000, 199_999),
        ("bytes=100000-199999", 100_000, 199_999),
    ] {
        let answer = bench
            .send("GET", &blob(&digest), &[("range", range)], "")
            .await
            .expect(206);
        assert!(answer.body == content[first..=last], "{range}");
        assert_eq!(
            answer.header("content-range"),
            format!("bytes {first}-{last}/200000")
        );
    }
    for range in [
        "bytes=200000-",
        "bytes=500000-600000",
        "bytes=-0",
        "bytes=500-0",
    ] {
        let answer = bench
            .send("GET", &blob(&digest), &[("range", range)], "")
            .await;
        assert_eq!(
            answer.refused(416, "RANGE_INVALID").header("content-range"),
            "bytes */200000"
        );
    }
    for range in ["bytes=0-1,5-6", "lines=1-2", "bytes=x"] {
        let answer = bench
            .send("GET", &blob(&digest), &[("range", range)], "")
            .await
            .expect(200);
        assert!(answer.body == content, "{range}");
    }
    let etag = format!("\"{digest}\"");
    let headers = [("range", "bytes=0-9"), ("if-range", etag.as_str())];
    bench
        .send("GET", &blob(&digest), &headers, "")
        .await
        .expect(206);
    let headers = [("range", "bytes=0-9"), ("if-range", "\"other\"")];
    bench
        .send("GET", &blob(&digest), &headers, "")
        .await
        .expect(200);
    bench
        .send("GET", &blob(&digest), &[("if-none-match", &etag)], "")
        .await
        .expect(304);
}

#[tokio::test]
async fn mounts() {
    let bench = Bench::new();
    let digest = bench.push_blob("yocto/base", b"shared").await;
    bench.head(&blob(&digest)).await.expect(404);
    let elsewhere = format!("{UPLOADS}?mount={digest}&from=yocto/nothing");
    let answer = bench.send("POST", &elsewhere, &[], "").await.expect(202);
    bench.delete(answer.header("location")).await.expect(204);
    let mount = format!("{UPLOADS}?mount={digest}&from=yocto/base");
    let answer = bench.send("POST", &mount, &[], "").await.expect(201);
    assert_eq!(answer.header("location"), blob(&digest));
    assert_served(&bench, &digest, b"shared").await;

    let anonymous = format!("/v2/third/blobs/uploads/?mount={digest}");
    bench.send("POST", &anonymous, &[], "").await.expect(201);
    bench
        .head(&format!("/v2/third/blobs/{digest}"))
        .await
        .expect(200);
    let missing = Digest::sha256(b"missing");
    bench
        .send("POST", &format!("{UPLOADS}?mount={missing}"), &[], "")
        .await
        .expect(202);
    // What cannot be mounted is uploaded.
    for bad in [
        "mount=sha256:x".to_owned(),
        "mount=sha384:00&from=yocto/base".to_owned(),
        format!("mount={digest}&from=../x"),
        format!("mount={digest}&from=UPPER"),
    ] {
        let path = format!("/v2/fourth/blobs/uploads/?{bad}");
        let answer = bench.send("POST", &path, &[], "").await.expect(202);
        let location = format!("{}?digest={digest}", answer.header("location"));
        bench
            .head(&format!("/v2/fourth/blobs/{digest}"))
            .await
            .expect(404);
        bench
            .send("PUT", &location, &[], "shared")
            .await
            .expect(201);
        let there = format!("/v2/fourth/blobs/{digest}");
        bench.delete(&there).await.expect(202);
    }
}

#[tokio::test]
async fn deleting() {
    let bench = Bench::new();
    let digest = bench.push_blob("yocto/app", b"content").await;
    bench.push_blob("yocto/other", b"content").await;
    bench.get(&blob(&digest)).await.expect(200);
    bench.delete(&blob(&digest)).await.expect(202);
    bench.get(&blob(&digest)).await.refused(404, "BLOB_UNKNOWN");
    bench.head(&blob(&digest)).await.expect(404);
    bench
        .delete(&blob(&digest))
        .await
        .refused(404, "BLOB_UNKNOWN");
    bench
        .head(&format!("/v2/yocto/other/blobs/{digest}"))
        .await
        .expect(200);
    bench.push_blob("yocto/app", b"content").await;
    assert_served(&bench, &digest, b"content").await;
}

#[tokio::test]
async fn names_stay_beneath_the_storage() {
    let bench = Bench::new();
    let digest = Digest::sha256(b"x");
    for name in [
        "..",
        "a/..",
        "%2e%2e",
        "a%2f..%2fb",
        "A",
        "a//b",
        "_layers",
        "a/_uploads",
        "-",
        "a_",
    ] {
        let answer = bench
            .send("POST", &format!("/v2/{name}/blobs/uploads/"), &[], "")
            .await;
        assert!(
            matches!(answer.status.as_u16(), 400 | 404),
            "{name}: {answer:?}"
        );
        let answer = bench.get(&format!("/v2/{name}/blobs/{digest}")).await;
        assert!(
            matches!(answer.status.as_u16(), 400 | 404),
            "{name}: {answer:?}"
        );
    }
    let long = "a/".repeat(200);
    bench
        .send("POST", &format!("/v2/{long}b/blobs/uploads/"), &[], "")
        .await
        .refused(400, "NAME_INVALID");
    assert_eq!(
        std::fs::read_dir(bench.v2().join("repositories"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn read_only_and_undeletable() {
    let bench = Bench::new();
    let digest = bench.push_blob("yocto/app", b"content").await;
    let dir = std::sync::Arc::clone(&bench.dir);
    let keeper = Bench::on(dir.clone(), |config| config.delete_enabled = false);
    keeper
        .delete(&blob(&digest))
        .await
        .refused(405, "UNSUPPORTED");
    keeper.push_blob("yocto/app", b"more").await;
    let reader = Bench::on(dir, |config| config.read_only = true);
    reader
        .send("POST", UPLOADS, &[], "")
        .await
        .refused(405, "UNSUPPORTED");
    reader
        .delete(&blob(&digest))
        .await
        .refused(405, "UNSUPPORTED");
    assert_served(&reader, &digest, b"content").await;
}
