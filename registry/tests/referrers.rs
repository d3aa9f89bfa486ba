//! Referrers over HTTP: pages, filter, what counts as one.

mod common;

use std::sync::Arc;

use common::{Bench, descriptor, digest_of, image, index};
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type;
use vdkr_registry::fs::FaultPlan;

fn by_digest(digest: &Digest) -> String {
    format!("/v2/yocto/app/manifests/{digest}")
}

#[tokio::test]
async fn referrers() {
    let bench = Bench::with(|config| config.limits.referrers_bytes = 700);
    let subject = bench.push_image("yocto/app", "latest", b"layer").await;
    let path = format!("/v2/yocto/app/referrers/{subject}");
    let answer = bench.get(&path).await.expect(200);
    assert_eq!(answer.header("content-type"), media_type::OCI_INDEX);
    assert_eq!(answer.json()["manifests"], json!([]));

    let refer = |kind: &str, n: usize| {
        let mut manifest = image(&[b"layer"]);
        manifest["artifactType"] = json!(kind);
        manifest["subject"] = descriptor(
            media_type::OCI_MANIFEST,
            image(&[b"layer"]).to_string().as_bytes(),
        );
        manifest["annotations"] = json!({ "n": n.to_string() });
        manifest
    };
    for n in 0..7 {
        let kind = ["application/vnd.sbom+json", "application/vnd.signature"][n % 2];
        let put = bench
            .put_manifest("yocto/app", &format!("r{n}"), &refer(kind, n))
            .await
            .expect(201);
        assert_eq!(put.header("oci-subject"), subject.as_str());
    }
    let mut untyped = index(&[]);
    untyped["subject"] = refer("x/y", 0)["subject"].clone();
    bench
        .put_manifest("yocto/app", "index", &untyped)
        .await
        .expect(201);

    let follow = |path: String| {
        let bench = &bench;
        async move {
            let (mut listed, mut pages, mut next) = (Vec::new(), 0, Some(path));
            while let Some(path) = next {
                let answer = bench.get(&path).await.expect(200);
                assert!(answer.body.len() < 1000);
                let filtered = answer.header("oci-filters-applied") == "artifactType";
                assert_eq!(filtered, path.contains("artifactType="));
                listed.extend(answer.json()["manifests"].as_array().unwrap().clone());
                next = vdkr_core::distribution::next_link(answer.header("link")).map(str::to_owned);
                pages += 1;
            }
            assert!(listed.is_sorted_by_key(|d| d["digest"].as_str().unwrap().to_owned()));
            (listed, pages)
        }
    };
    let (listed, pages) = follow(path.clone()).await;
    assert_eq!(listed.len(), 8);
    assert!(pages > 2);
    let of_index = listed
        .iter()
        .find(|d| d["mediaType"] == media_type::OCI_INDEX)
        .unwrap();
    assert!(of_index.get("artifactType").is_none());
    let one = listed
        .iter()
        .find(|d| d["annotations"]["n"] == "3")
        .unwrap();
    assert_eq!(one["artifactType"], "application/vnd.signature");
    assert_eq!(
        one["size"],
        refer("application/vnd.signature", 3).to_string().len()
    );

    let filtered = format!("{path}?artifactType=application/vnd.sbom%2Bjson");
    let (listed, pages) = follow(filtered).await;
    assert_eq!(listed.len(), 4);
    assert!(pages > 1);
    assert!(
        listed
            .iter()
            .all(|d| d["artifactType"] == "application/vnd.sbom+json")
    );

    let gone = digest_of(&refer("application/vnd.signature", 3));
    bench.delete(&by_digest(&gone)).await.expect(202);
    let (listed, _) = follow(format!("{path}?artifactType=application/vnd.signature")).await;
    assert_eq!(listed.len(), 2);
    bench
        .get("/v2/yocto/app/referrers/sha256:x")
        .await
        .refused(400, "DIGEST_INVALID");
    let nobody = format!("/v2/yocto/nobody/referrers/{subject}");
    assert_eq!(
        bench.get(&nobody).await.expect(200).json()["manifests"],
        json!([])
    );
}

#[tokio::test]
async fn a_subject_need_not_exist() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    let mut manifest = image(&[]);
    manifest["subject"] = descriptor(media_type::OCI_MANIFEST, b"not yet pushed");
    let missing = Digest::sha256(b"not yet pushed");
    let put = bench
        .put_manifest("yocto/app", "signature", &manifest)
        .await
        .expect(201);
    assert_eq!(put.header("oci-subject"), missing.as_str());
    let listed = bench
        .get(&format!("/v2/yocto/app/referrers/{missing}"))
        .await
        .expect(200)
        .json();
    assert_eq!(
        listed["manifests"][0]["artifactType"],
        media_type::OCI_CONFIG
    );
}

#[tokio::test]
async fn manifests_that_refer_to_nothing_are_read_once() {
    let plan = Arc::new(FaultPlan::new());
    let bench = Bench::with(|config| {
        config.fault_plan = Some(Arc::clone(&plan));
        // Little room for what is said and for manifests: neither is what is remembered here.
        config.memory.referrer_bytes = 8 << 10;
        config.memory.manifest_bytes = 8 << 10;
    });
    let subject = bench.push_image("yocto/app", "latest", b"layer").await;
    for n in 0..200 {
        let mut manifest = index(&[]);
        manifest["annotations"] = json!({ "n": n.to_string() });
        let target = digest_of(&manifest);
        bench
            .put_manifest("yocto/app", target.as_str(), &manifest)
            .await
            .expect(201);
    }
    let path = format!("/v2/yocto/app/referrers/{subject}");
    bench.get(&path).await.expect(200);
    let before = plan.count();
    bench.get(&path).await.expect(200);
    let operations = plan.ops()[before..].to_vec();
    // The directories of both algorithms.
    assert!(operations.len() <= 2, "{operations:?}");

    // One more that does refer is found all the same.
    let mut referrer = index(&[]);
    referrer["subject"] = descriptor(
        media_type::OCI_MANIFEST,
        image(&[b"layer"]).to_string().as_bytes(),
    );
    bench
        .put_manifest("yocto/app", "signature", &referrer)
        .await
        .expect(201);
    let listed = bench.get(&path).await.expect(200).json();
    assert_eq!(listed["manifests"].as_array().unwrap().len(), 1);
}
