//! Upload sessions: the ways to begin, continue, end and give up one.

use vdkr_core::digest::{Algorithm, Digest};

use crate::common::{Bench, noise};
use crate::{UPLOADS, assert_served, blob, sessions, temporary_files};

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
