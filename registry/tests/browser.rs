//! What web pages of others can make a browser do to a registry, and what it shows of stored content.

mod common;

use common::Bench;
use serde_json::json;
use vdkr_core::digest::Digest;

const GC: &str = "/v2/_vdkr/storage/gc";
const EVIL: [(&str, &str); 4] = [
    ("host", "localhost:5000"),
    ("origin", "http://evil.example"),
    ("sec-fetch-site", "cross-site"),
    ("content-type", "text/plain"),
];

#[tokio::test]
async fn a_foreign_page_can_change_nothing() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let manifest = format!("/v2/yocto/app/manifests/{digest}");
    let layer = format!("/v2/yocto/app/blobs/{}", Digest::sha256(b"layer"));
    let pin = format!("/v2/yocto/app/_vdkr/pins/{digest}");
    for (method, path) in [
        ("POST", GC),
        ("POST", "/v2/_vdkr/storage/fsck"),
        ("POST", "/v2/yocto/app/blobs/uploads/"),
        ("PUT", "/v2/yocto/app/manifests/other"),
        ("DELETE", "/v2/yocto/app/manifests/latest"),
        ("DELETE", &manifest),
        ("DELETE", &layer),
        ("PUT", &pin),
    ] {
        // Browsers of today, and such as say less.
        for said in [&EVIL[..], &EVIL[..2], &EVIL[2..]] {
            let answer = bench.send(method, path, said, "{}").await;
            answer.refused(403, "DENIED");
        }
    }
    bench.get(&layer).await.expect(200);
    bench.get(GC).await.expect(404);
    bench.send("GET", &manifest, &EVIL, "").await.expect(200);
}

#[tokio::test]
async fn a_page_that_has_a_foreign_name_lead_here_can_change_nothing() {
    let bench = Bench::with(|config| config.names = vec!["registry.example".to_owned()]);
    let ask = async |host: &str| {
        let origin = format!("http://{host}");
        bench
            .send("POST", GC, &[("host", host), ("origin", &origin)], "")
            .await
    };
    ask("evil.example:5000").await.refused(403, "DENIED");
    for own in ["localhost:5000", "10.0.2.2:5000", "registry.example:5000"] {
        ask(own).await.expect(200);
    }
}

#[tokio::test]
async fn clients_that_are_no_browsers_may_call_the_registry_as_they_like() {
    let bench = Bench::new();
    for host in ["10.0.2.2:5000", "registry.some.where", "localhost:5000"] {
        let answer = bench.send("POST", GC, &[("host", host)], "").await;
        answer.expect(200);
    }
}

#[tokio::test]
async fn what_a_browser_would_show_as_a_page_is_no_manifest() {
    let bench = Bench::new();
    for (media_type, taken) in [
        ("text/html", false),
        ("image/svg+xml", false),
        ("application/xhtml+xml", false),
        ("text/x+json", false),
        ("Text/HTML; charset=utf-8", false),
        ("application/json", true),
        ("application/vnd.example.thing.v1+json", true),
    ] {
        let body = json!({ "mediaType": media_type, "x": "<script>alert(1)</script>" });
        for declared in [Some(media_type), None] {
            let headers: Vec<_> = declared.map(|d| ("content-type", d)).into_iter().collect();
            let path = "/v2/yocto/app/manifests/page";
            let answer = bench.send("PUT", path, &headers, body.to_string()).await;
            if taken {
                answer.expect(201);
            } else {
                answer.refused(400, "MANIFEST_INVALID");
            }
        }
    }
}

#[tokio::test]
async fn no_answer_may_run_anything_in_a_browser() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    for path in [
        "/v2/".to_owned(),
        "/v2/_catalog".to_owned(),
        format!("/v2/yocto/app/manifests/{digest}"),
        format!("/v2/yocto/app/blobs/{}", Digest::sha256(b"layer")),
        "/v2/yocto/app/manifests/none".to_owned(),
        "/else".to_owned(),
    ] {
        let answer = bench.get(&path).await;
        let policy = answer.header("content-security-policy");
        assert_eq!(policy, "default-src 'none'; sandbox", "{path}");
        assert_eq!(answer.header("x-content-type-options"), "nosniff");
    }
}
