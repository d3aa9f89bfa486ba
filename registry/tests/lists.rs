//! Tags and catalog: order, pages, strange files, hostile parameters.

mod common;

use common::Bench;
use serde_json::{Value, json};
use vdkr_core::distribution::next_link;

/// Follows a list to its end.
async fn follow(bench: &Bench, path: &str, key: &str) -> (Vec<String>, usize) {
    let (mut all, mut pages, mut next) = (Vec::new(), 0, Some(path.to_owned()));
    while let Some(path) = next {
        let answer = bench.get(&path).await.expect(200);
        pages += 1;
        let page = answer.json()[key].as_array().unwrap().clone();
        all.extend(page.iter().map(|name| name.as_str().unwrap().to_owned()));
        next = next_link(answer.header("link")).map(str::to_owned);
        assert!(
            next.as_deref().is_none_or(|next| next.starts_with("/v2/")),
            "{next:?}"
        );
    }
    (all, pages)
}

#[tokio::test]
async fn tags_in_pages() {
    let bench = Bench::new();
    let mut expected: Vec<_> = (0..25).map(|n| format!("v{n}")).collect();
    expected.extend(["Latest".to_owned(), "latest".to_owned(), "_x".to_owned()]);
    for tag in &expected {
        bench.push_image("yocto/app", tag, b"layer").await;
    }
    expected.sort_unstable();
    let list = "/v2/yocto/app/tags/list";
    assert_eq!(bench.get(list).await.json()["name"], "yocto/app");
    for (n, pages) in [(0, 1), (1, 28), (7, 4), (27, 2), (28, 1), (29, 1)] {
        let path = if n == 0 {
            list.to_owned()
        } else {
            format!("{list}?n={n}")
        };
        assert_eq!(
            follow(&bench, &path, "tags").await,
            (expected.clone(), pages),
            "n={n}"
        );
    }
    let answer = bench.get(&format!("{list}?n=0")).await.expect(200);
    assert_eq!(
        (answer.json()["tags"].clone(), answer.header("link")),
        (json!([]), "")
    );
    let after = bench.get(&format!("{list}?last=v7")).await.expect(200);
    assert_eq!(after.json()["tags"], json!(["v8", "v9"]));
    let after = bench
        .get(&format!("{list}?last=nowhere&n=2"))
        .await
        .expect(200);
    assert_eq!(after.json()["tags"], json!(["v0", "v1"]));
    for huge in [
        "9223372036854775808",
        "18446744073709551616",
        &"9".repeat(200),
    ] {
        let answer = bench.get(&format!("{list}?n={huge}")).await.expect(200);
        assert_eq!(answer.json()["tags"].as_array().unwrap().len(), 28);
    }
    for bad in ["-1", "x", "1.5", "%00"] {
        let answer = bench.get(&format!("{list}?n={bad}")).await;
        assert_eq!(answer.status, 400, "{bad}: {answer:?}");
    }
    bench
        .get("/v2/yocto/nothing/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
    bench
        .get("/v2/yocto/nothing/tags/list?n=0")
        .await
        .refused(404, "NAME_UNKNOWN");
    bench
        .get("/v2/yocto/tags/list")
        .await
        .refused(404, "NAME_UNKNOWN");
    bench.push_blob("only/blobs", b"x").await;
    assert_eq!(
        bench.get("/v2/only/blobs/tags/list").await.json()["tags"],
        json!([])
    );
}

#[tokio::test]
async fn catalog_in_pages() {
    let bench = Bench::new();
    assert_eq!(
        bench.get("/v2/_catalog").await.expect(200).json(),
        json!({ "repositories": [] })
    );
    // In the order of Distribution: by component.
    let expected = [
        "a",
        "a/b",
        "a/b/c",
        "a/bc",
        "a-b",
        "a.b",
        "ab",
        "b/tags/list",
        "manifests/blobs",
        "z9",
    ];
    for name in expected.iter().rev() {
        bench.push_image(name, "latest", b"layer").await;
    }
    bench.push_blob("only/blobs", b"x").await;
    let expected: Vec<_> = expected.map(str::to_owned).into();
    for n in 1..=11 {
        let (names, pages) = follow(&bench, &format!("/v2/_catalog?n={n}"), "repositories").await;
        assert_eq!(names, expected, "n={n}");
        assert_eq!(pages, expected.len().div_ceil(n), "n={n}");
    }
    let page = |query: &'static str| {
        let bench = &bench;
        async move {
            bench
                .get(&format!("/v2/_catalog?{query}"))
                .await
                .expect(200)
                .json()["repositories"]
                .clone()
        }
    };
    assert_eq!(page("n=2&last=a/b/c").await, json!(["a/bc", "a-b"]));
    assert_eq!(page("n=2&last=a/zzz").await, json!(["a-b", "a.b"]));
    assert_eq!(page("last=z9").await, json!([]));
    assert_eq!(page("n=0").await, json!([]));
    bench
        .get("/v2/_catalog?n=-5")
        .await
        .refused(400, "PAGINATION_NUMBER_INVALID");
}

#[tokio::test]
async fn strange_files_are_skipped_and_survive() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let root = bench.v2();
    let strange = [
        "repositories/README",
        "repositories/UPPER/_manifests/tags/x/current",
        "repositories/yocto/app/_manifests/notes",
        "repositories/yocto/app/_manifests/tags/file",
        "repositories/yocto/app/_manifests/tags/-bad-/current",
        "repositories/yocto/app/_manifests/tags/empty",
        "repositories/yocto/app/_manifests/tags/half/current",
        "repositories/yocto/app/_manifests/tags/torn/current/link",
        "repositories/yocto/app/_manifests/revisions/md5/abc/link",
        "repositories/yocto/app/_manifests/revisions/sha256/short/link",
        "repositories/yocto/app/_layers/sha256/short/link",
        "blobs/sha256/zz/x/data",
        "blobs/notes",
        "notes",
    ];
    for path in strange {
        let path = root.join(path);
        if path.extension().is_none()
            && ["link", "data", "README", "notes", "file"]
                .contains(&path.file_name().unwrap().to_str().unwrap())
        {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        } else {
            std::fs::create_dir_all(path).unwrap();
        }
    }
    let tags = root.join("repositories/yocto/app/_manifests/tags");
    std::os::unix::fs::symlink("latest", tags.join("linked")).unwrap();
    std::os::unix::fs::symlink("yocto", root.join("repositories/linked")).unwrap();
    for bench in [&bench, &bench.reopened()] {
        let listed: Value = bench
            .get("/v2/yocto/app/tags/list")
            .await
            .expect(200)
            .json();
        assert_eq!(listed["tags"], json!(["latest"]));
        let listed = bench.get("/v2/_catalog").await.expect(200).json();
        assert_eq!(listed["repositories"], json!(["yocto/app"]));
        for (tag, status) in [
            ("file", 404),
            ("empty", 404),
            ("half", 404),
            // There is something, and it cannot be served.
            ("torn", 500),
            ("linked", 500),
        ] {
            bench
                .get(&format!("/v2/yocto/app/manifests/{tag}"))
                .await
                .expect(status);
        }
        bench
            .get("/v2/linked/app/manifests/latest")
            .await
            .expect(500);
        bench
            .get(&format!("/v2/yocto/app/referrers/{digest}"))
            .await
            .expect(200);
        bench.registry.sweep_uploads().unwrap();
    }
    bench.push_image("yocto/app", "empty", b"layer").await;
    bench.push_image("yocto/app", "torn", b"layer").await;
    bench
        .delete(&format!("/v2/yocto/app/manifests/{digest}"))
        .await
        .expect(202);
    let there = |path: &&str| root.join(path).exists();
    let kept = strange
        .iter()
        .filter(|path| !path.contains("/torn") && !path.contains("/empty"));
    assert!(
        kept.clone().all(there),
        "{:?}",
        kept.filter(|path| !there(path)).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn heads_of_lists_are_the_answers_without_their_bodies() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    bench.push_image("yocto/app", "other", b"layer").await;
    for path in [
        "/v2/_catalog".to_owned(),
        "/v2/yocto/app/tags/list?n=1".to_owned(),
        format!("/v2/yocto/app/referrers/{digest}"),
        "/v2/_vdkr/images/list".to_owned(),
        "/v2/yocto/app/_vdkr/history/latest".to_owned(),
    ] {
        let get = bench.get(&path).await.expect(200);
        let head = bench.head(&path).await.expect(200);
        assert!(head.body.is_empty() && !get.body.is_empty(), "{path}");
        assert_eq!(head.header("content-length"), get.body.len().to_string());
        for header in ["content-type", "link"] {
            assert_eq!(head.header(header), get.header(header), "{path}");
        }
        let options = bench.send("OPTIONS", &path, &[], "").await.expect(204);
        assert_eq!(options.header("allow"), "GET, HEAD", "{path}");
    }
    bench.head("/v2/yocto/nothing/tags/list").await.expect(404);
}

#[tokio::test]
async fn the_history_of_a_tag_in_pages() {
    let bench = Bench::new();
    for number in 0..7 {
        let layer = format!("layer {number}");
        bench.push_image("a", "v1", layer.as_bytes()).await;
        if number == 2 {
            bench.delete("/v2/a/manifests/v1").await.expect(202);
        }
    }
    let list = "/v2/a/_vdkr/history/v1";
    let all = bench.get(list).await.expect(200);
    assert_eq!(all.header("link"), "");
    let all = all.json()["entries"].as_array().unwrap().clone();
    assert_eq!(all.len(), 7);
    assert_eq!(all[0]["current"], json!(true));
    assert!(all[4..].iter().all(|entry| entry["deleted"].is_u64()));
    for n in [1, 2, 3, 6, 7, 8] {
        let (mut found, mut pages, mut next) = (Vec::new(), 0, Some(format!("{list}?n={n}")));
        while let Some(path) = next {
            let answer = bench.get(&path).await.expect(200);
            let page = answer.json();
            assert_eq!(
                (&page["repository"], &page["tag"]),
                (&json!("a"), &json!("v1"))
            );
            found.extend(page["entries"].as_array().unwrap().clone());
            pages += 1;
            next = next_link(answer.header("link")).map(str::to_owned);
        }
        assert_eq!(
            (found, pages),
            (all.clone(), 7_usize.div_ceil(n)),
            "pages of {n}"
        );
    }
    let none = bench.get(&format!("{list}?n=0")).await.expect(200);
    assert_eq!(
        (none.json()["entries"].clone(), none.header("link")),
        (json!([]), "")
    );
    // Nothing is left out after an entry that has gone meanwhile.
    let gone = vdkr_core::digest::Digest::sha256(b"gone");
    let again = bench.get(&format!("{list}?last={gone}")).await.expect(200);
    assert_eq!(again.json()["entries"], json!(all));
    let last = all[6]["digest"].as_str().unwrap();
    let end = bench.get(&format!("{list}?last={last}")).await.expect(200);
    assert_eq!(end.json()["entries"], json!([]));
    bench
        .get(&format!("{list}?last=v1"))
        .await
        .refused(400, "DIGEST_INVALID");
}
