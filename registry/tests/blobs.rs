//! Blobs over HTTP: every way in, every way out, every way to be refused.

mod common;

use std::os::unix::fs::FileExt as _;

use common::{Bench, noise};
use vdkr_core::digest::{Algorithm, Digest};
use vdkr_registry::storage::{LocalUploads, Sink, StorageError, UploadId};

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
async fn post_then_put() {
    let bench = Bench::new();
    for content in [&b""[..], b"{}", &noise(3_000_000, 1)] {
        let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
        assert!(
            begun
                .header("location")
                .starts_with("/v2/yocto/app/blobs/uploads/")
        );
        assert_eq!(begun.header("range"), "0-0");
        assert_eq!(begun.header("docker-upload-uuid").len(), 36);
        let digest = Digest::sha256(content);
        let path = format!("{}?digest={digest}", begun.header("location"));
        let done = bench
            .send("PUT", &path, &[], content.to_vec())
            .await
            .expect(201);
        assert_eq!(done.header("location"), blob(&digest));
        assert_eq!(done.header("docker-content-digest"), digest.as_str());
        assert_served(&bench, &digest, content).await;
        bench
            .get(begun.header("location"))
            .await
            .refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    assert_eq!((sessions(&bench), temporary_files(&bench)), (0, 0));
}

#[tokio::test]
async fn single_post() {
    let bench = Bench::new();
    for content in [&b""[..], b"small", &noise(2_000_000, 2)] {
        for algorithm in [Algorithm::Sha256, Algorithm::Sha512] {
            let digest = Digest::of(algorithm, content);
            let path = format!("{UPLOADS}?digest={digest}");
            let done = bench
                .send("POST", &path, &[], content.to_vec())
                .await
                .expect(201);
            assert_eq!(done.header("location"), blob(&digest));
            assert_served(&bench, &digest, content).await;
        }
    }
    let path = format!("{UPLOADS}?digest={}", Digest::sha256(b"expected"));
    bench
        .send("POST", &path, &[], "something else")
        .await
        .refused(400, "DIGEST_INVALID");
    bench.send("POST", &path, &[], "").await.expect(202);
    assert_eq!(temporary_files(&bench), 0);
}

#[tokio::test]
async fn chunks_in_order_and_out_of_it() {
    let bench = Bench::new();
    let content = noise(1_000_000, 3);
    let digest = Digest::sha256(&content);
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let mut location = begun.header("location").to_owned();
    for (first, last) in [(0, 399_999), (400_000, 400_000), (400_001, 899_999)] {
        let wrong = format!("{}-{}", first + 1, last + 1);
        let chunk = content[first..=last].to_vec();
        let refused = bench
            .send(
                "PATCH",
                &location,
                &[("content-range", &wrong)],
                chunk.clone(),
            )
            .await;
        let refused = refused.refused(416, "RANGE_INVALID");
        assert_eq!(refused.header("location"), location);
        assert_eq!(
            refused.header("range"),
            format!("0-{}", first.saturating_sub(1))
        );

        let range = format!("{first}-{last}");
        let taken = bench
            .send("PATCH", &location, &[("content-range", &range)], chunk)
            .await
            .expect(202);
        assert_eq!(taken.header("range"), format!("0-{last}"));
        location = taken.header("location").to_owned();
        let status = bench.get(&location).await.expect(204);
        assert_eq!(status.header("range"), format!("0-{last}"));
    }
    let path = format!("{location}?digest={digest}");
    let rest = content[900_000..].to_vec();
    bench
        .send("PUT", &path, &[("content-range", "1-100000")], rest.clone())
        .await
        .refused(416, "RANGE_INVALID");
    let short = [("content-range", "900000-900009")];
    bench
        .send("PUT", &path, &short, rest.clone())
        .await
        .refused(400, "SIZE_INVALID");
    bench
        .send("PUT", &path, &[("content-range", "x")], rest.clone())
        .await
        .refused(400, "RANGE_INVALID");
    bench
        .send("PUT", &path, &[("content-range", "900000-999999")], rest)
        .await
        .expect(201);
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn streamed_patches_append() {
    let bench = Bench::new();
    let content = noise(700_001, 4);
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    for piece in content.chunks(300_000) {
        bench
            .send("PATCH", location, &[], piece.to_vec())
            .await
            .expect(202);
    }
    let digest = Digest::sha256(&content);
    bench
        .send("PUT", &format!("{location}?digest={digest}"), &[], "")
        .await
        .expect(201);
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn another_algorithm_at_the_end() {
    let bench = Bench::new();
    let content = noise(100_000, 5);
    let digest = Digest::of(Algorithm::Sha512, &content);
    for query in ["", "?digest-algorithm=sha512"] {
        let begun = bench
            .send("POST", &format!("{UPLOADS}{query}"), &[], "")
            .await
            .expect(202);
        let location = begun.header("location");
        bench
            .send("PATCH", location, &[], content.clone())
            .await
            .expect(202);
        bench
            .send("PUT", &format!("{location}?digest={digest}"), &[], "")
            .await
            .expect(201);
        assert_served(&bench, &digest, &content).await;
    }
    let refused = bench
        .send("POST", &format!("{UPLOADS}?digest-algorithm=md5"), &[], "")
        .await;
    refused.refused(400, "DIGEST_INVALID");
}

#[tokio::test]
async fn sessions_survive_a_restart() {
    let bench = Bench::new();
    let content = noise(500_000, 6);
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    bench
        .send("PATCH", location, &[], content[..300_000].to_vec())
        .await
        .expect(202);

    let bench = bench.reopened();
    let status = bench.get(location).await.expect(204);
    assert_eq!(status.header("range"), "0-299999");
    let rest = content[300_000..].to_vec();
    bench
        .send(
            "PATCH",
            location,
            &[("content-range", "300000-499999")],
            rest,
        )
        .await
        .expect(202);
    let bench = bench.reopened();
    let digest = Digest::sha256(&content);
    bench
        .send("PUT", &format!("{location}?digest={digest}"), &[], "")
        .await
        .expect(201);
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn wrong_digests_end_the_session() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location").to_owned();
    bench
        .send("PUT", &location, &[], "content")
        .await
        .refused(400, "DIGEST_INVALID");
    for bad in [
        "sha256:abc",
        "md5:d41d8cd98f00b204e9800998ecf8427e",
        "../../x",
        "sha256%3A..%2F",
    ] {
        let answer = bench
            .send("PUT", &format!("{location}?digest={bad}"), &[], "content")
            .await;
        answer.refused(400, "DIGEST_INVALID");
    }
    bench.get(&location).await.expect(204);
    let wrong = Digest::sha256(b"other");
    let answer = bench
        .send("PUT", &format!("{location}?digest={wrong}"), &[], "content")
        .await;
    let answer = answer.refused(400, "DIGEST_INVALID");
    assert_eq!(
        answer.json()["errors"][0]["detail"]["got"],
        Digest::sha256(b"content").as_str()
    );
    bench
        .get(&location)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    bench.head(&blob(&wrong)).await.expect(404);
    assert_eq!((sessions(&bench), temporary_files(&bench)), (0, 0));
}

#[tokio::test]
async fn cancelled_and_unknown_sessions() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    bench.send("PATCH", location, &[], "some").await.expect(202);
    let elsewhere = location.replace("yocto/app", "yocto/other");
    bench
        .get(&elsewhere)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    bench.delete(location).await.expect(204);
    assert_eq!(sessions(&bench), 0);
    let digest = Digest::sha256(b"some");
    for id in [
        location.rsplit('/').next().unwrap(),
        "00000000-0000-4000-8000-000000000000",
        "x",
        "..",
        "%2e%2e",
        "..%2f..%2f_manifests",
    ] {
        for method in ["GET", "PATCH", "PUT", "DELETE"] {
            let answer = bench
                .send(method, &format!("{UPLOADS}{id}?digest={digest}"), &[], "")
                .await;
            assert!(
                matches!(answer.status.as_u16(), 404 | 400),
                "{method} {id}: {answer:?}"
            );
        }
    }
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

#[tokio::test]
async fn two_requests_on_one_session_do_not_mix() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    let (one, two) = (noise(2_000_000, 8), noise(2_000_000, 9));
    let headers = [("content-range", "0-1999999")];
    let (first, second) = tokio::join!(
        bench.send("PATCH", location, &headers, one.clone()),
        bench.send("PATCH", location, &headers, two.clone()),
    );
    let taken = if first.status == 202 { &one } else { &two };
    let mut statuses = [first.status.as_u16(), second.status.as_u16()];
    statuses.sort_unstable();
    assert_eq!(statuses, [202, 416]);
    let digest = Digest::sha256(taken);
    bench
        .send("PUT", &format!("{location}?digest={digest}"), &[], "")
        .await
        .expect(201);
    assert_served(&bench, &digest, taken).await;
}

#[tokio::test]
async fn one_blob_pushed_many_times_at_once() {
    let bench = Bench::new();
    let content = noise(100_000, 10);
    let pushes = (0..16).map(|n| {
        let (bench, content) = (&bench, &content);
        async move {
            let repository = ["yocto/app", "yocto/other"][n % 2];
            bench.push_blob(repository, content).await
        }
    });
    let digests = futures_util::future::join_all(pushes).await;
    assert_served(&bench, &digests[0], &content).await;
    assert_eq!(temporary_files(&bench), 0);
}

#[tokio::test]
async fn a_client_on_this_machine_writes_to_the_session_itself() {
    let bench = Bench::new();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let content = noise(5_000_000, 9);
    let digest = Digest::sha256(&content);
    for good in [false, true] {
        let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
        let id = begun.header("docker-upload-uuid").to_owned();
        let file = uploads.session("yocto/app", &id).unwrap();
        file.write_all_at(&content, 0).unwrap();
        if !good {
            file.write_all_at(b"wrong", 1000).unwrap();
        }
        drop(file);
        let path = begun.header("location").to_owned();
        let told = bench.get(&path).await.expect(204);
        assert_eq!(told.header("range"), format!("0-{}", content.len() - 1));
        let path = format!("{path}?digest={digest}");
        let done = bench.send("PUT", &path, &[], "").await;
        if good {
            done.expect(201);
        } else {
            done.refused(400, "DIGEST_INVALID");
            bench.get(&blob(&digest)).await.expect(404);
        }
        assert_eq!(sessions(&bench), 0);
    }
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn nothing_else_of_the_storage_is_lent_to_a_client_on_this_machine() {
    let bench = Bench::new();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let id = begun.header("docker-upload-uuid");
    assert!(uploads.session("yocto/other", id).is_none());
    assert!(uploads.session("yocto/../yocto/app", id).is_none());
    assert!(uploads.session("yocto/app", "..").is_none());
    let unknown = "0f0f0f0f-0f0f-4f0f-8f0f-0f0f0f0f0f0f";
    assert!(uploads.session("yocto/app", unknown).is_none());
    let data = bench.repository("yocto/app/_uploads").join(id).join("data");
    std::os::unix::fs::symlink("/etc/hostname", data).unwrap();
    assert!(uploads.session("yocto/app", id).is_none());
    assert!(LocalUploads::open(&bench.storage().join("absent")).is_none());
}

/// The right to write to the session that an answer has begun.
fn sink(bench: &Bench, begun: &common::Answer) -> Option<Sink> {
    let storage = bench.registry.storage();
    let id = UploadId::parse(begun.header("docker-upload-uuid")).unwrap();
    let session = storage.upload("yocto/app", &id).unwrap().unwrap();
    storage.resume(&session).unwrap()
}

#[tokio::test]
async fn a_session_has_one_writer_whatever_is_asked_under_other_names() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let location = begun.header("location");
    let (content, digest) = (noise(300_000, 21), Digest::sha256(&noise(300_000, 21)));
    let mut first = sink(&bench, &begun).unwrap();
    first.write(&[content.clone().into()]).unwrap();

    let elsewhere = location.replace("yocto/app", "yocto/other");
    bench
        .get(&elsewhere)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    bench
        .delete(&elsewhere)
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert!(sink(&bench, &begun).is_none(), "the first one is at it");
    assert!(
        sink(&bench.reopened(), &begun).is_none(),
        "nor is another process let in"
    );
    bench
        .send("PATCH", location, &[], noise(400_000, 22))
        .await
        .refused(416, "RANGE_INVALID");

    let storage = bench.registry.storage();
    storage.finish("yocto/app", first, &digest).unwrap();
    assert_served(&bench, &digest, &content).await;
    bench
        .send("PATCH", location, &[], "more")
        .await
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    assert_served(&bench, &digest, &content).await;
}

#[tokio::test]
async fn a_cancelled_session_becomes_no_blob() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let digest = Digest::sha256(b"content");
    let mut writing = sink(&bench, &begun).unwrap();
    writing.write(&[bytes::Bytes::from("content")]).unwrap();
    bench.delete(begun.header("location")).await.expect(204);
    let storage = bench.registry.storage();
    let error = storage.finish("yocto/app", writing, &digest).unwrap_err();
    assert!(matches!(error, StorageError::UploadUnknown), "{error}");
    bench.get(&blob(&digest)).await.expect(404);
    assert_eq!(sessions(&bench), 0);
}

#[tokio::test]
async fn what_somebody_else_wrote_to_a_session_gets_into_no_blob() {
    let bench = Bench::new();
    let begun = bench.send("POST", UPLOADS, &[], "").await.expect(202);
    let digest = Digest::sha256(b"content");
    let mut writing = sink(&bench, &begun).unwrap();
    writing.write(&[bytes::Bytes::from("content")]).unwrap();
    let uploads = LocalUploads::open(bench.storage()).unwrap();
    let file = uploads
        .session("yocto/app", begun.header("docker-upload-uuid"))
        .unwrap();
    file.write_all_at(b" and more", 7).unwrap();
    let storage = bench.registry.storage();
    let error = storage.finish("yocto/app", writing, &digest).unwrap_err();
    assert!(
        matches!(
            error,
            StorageError::UploadDisturbed {
                length: 16,
                offset: 7
            }
        ),
        "{error}"
    );
    bench.get(&blob(&digest)).await.expect(404);
}
