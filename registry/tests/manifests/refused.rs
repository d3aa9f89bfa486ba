//! Manifests that are not taken: malformed, too long, or naming what is not there.

use http_body_util::BodyExt as _;
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type;

use crate::common::{Bench, descriptor, digest_of, image, index};
use crate::{LATEST, by_digest};

#[tokio::test]
async fn refused_manifests() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    let good = image(&[]);
    let mut both = good.clone();
    both["manifests"] = json!([]);
    let mut untyped =
        json!({ "schemaVersion": 2, "config": descriptor("a/b", b"{}"), "layers": [] });
    let oci = media_type::OCI_MANIFEST;
    for (declared, body, why) in [
        (oci, String::new(), "empty"),
        (oci, "{".to_owned(), "no JSON"),
        (oci, "[]".to_owned(), "no object"),
        (oci, both.to_string(), "manifest and index"),
        (
            media_type::OCI_INDEX,
            good.to_string(),
            "declared as what it is not",
        ),
        (
            media_type::DOCKER_MANIFEST,
            untyped.to_string(),
            "would be served as another type",
        ),
        (
            "application/vnd.example+json",
            "{\"a\":1}".to_owned(),
            "type not in the body",
        ),
        (
            "application/vnd.docker.distribution.manifest.v1+json",
            "{}".to_owned(),
            "schema 1",
        ),
        (
            oci,
            json!({ "schemaVersion": 2 }).to_string(),
            "no configuration",
        ),
    ] {
        let answer = bench
            .send("PUT", LATEST, &[("content-type", declared)], body)
            .await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (400, "MANIFEST_INVALID"),
            "{why}"
        );
    }
    untyped["config"]["digest"] = json!("sha256:../../../etc/passwd");
    let answer = bench
        .send("PUT", LATEST, &[("content-type", oci)], untyped.to_string())
        .await;
    answer.refused(400, "MANIFEST_INVALID");
    let other = by_digest(&Digest::sha256(b"other"));
    let answer = bench
        .send("PUT", &other, &[("content-type", oci)], good.to_string())
        .await;
    answer.refused(400, "DIGEST_INVALID");
    let bad_tag = "/v2/yocto/app/manifests/.bad";
    let answer = bench
        .send("PUT", bad_tag, &[("content-type", oci)], good.to_string())
        .await;
    answer.refused(400, "MANIFEST_INVALID");
    bench.get(LATEST).await.expect(404);
    assert!(!bench.repository("yocto/app/_manifests").exists());
}

#[tokio::test]
async fn size_is_capped_at_four_mebibytes() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    let mut manifest = image(&[]);
    manifest["annotations"] = json!({ "fill": "" });
    let fill = (4 << 20) - manifest.to_string().len();
    manifest["annotations"]["fill"] = json!("x".repeat(fill));
    let body = manifest.to_string();
    assert_eq!(body.len(), 4 << 20);
    let headers = [("content-type", media_type::OCI_MANIFEST)];
    bench
        .send("PUT", LATEST, &headers, body.clone())
        .await
        .expect(201);
    assert_eq!(bench.get(LATEST).await.expect(200).body, body);
    bench
        .send("PUT", LATEST, &headers, body.clone() + " ")
        .await
        .refused(413, "SIZE_INVALID");

    // The same without a length announced.
    let chunks = futures_util::stream::iter((0..65).map(|_| {
        Ok::<_, std::io::Error>(hyper::body::Frame::data(bytes::Bytes::from(vec![
            b' ';
            1 << 16
        ])))
    }));
    let request = http::Request::put(LATEST)
        .header("content-type", media_type::OCI_MANIFEST)
        .body(http_body_util::StreamBody::new(chunks))
        .unwrap();
    let response = bench.registry.handle(request).await;
    assert_eq!(response.status(), 413);
    response.into_body().collect().await.unwrap();
}

#[tokio::test]
async fn what_it_names_must_be_there() {
    let bench = Bench::new();
    let manifest = image(&[b"one", b"two"]);
    let refused = bench.put_manifest("yocto/app", "latest", &manifest).await;
    let refused = refused.refused(404, "MANIFEST_BLOB_UNKNOWN");
    let named = refused.json()["errors"][0]["detail"]["digests"]
        .as_array()
        .unwrap()
        .len();
    assert_eq!(named, 3);
    bench.push_blob("yocto/app", b"{}").await;
    bench.push_blob("yocto/app", b"one").await;
    bench.push_blob("yocto/elsewhere", b"two").await;
    let refused = bench.put_manifest("yocto/app", "latest", &manifest).await;
    let refused = refused.refused(404, "MANIFEST_BLOB_UNKNOWN");
    let detail = refused.json()["errors"][0]["detail"]["digests"].clone();
    assert_eq!(
        detail,
        json!([Digest::sha256(b"two")]),
        "another repository's blob does not count"
    );
    let tree = index(&[&manifest]);
    bench
        .put_manifest("yocto/app", "tree", &tree)
        .await
        .refused(404, "MANIFEST_BLOB_UNKNOWN");
    bench.push_blob("yocto/app", b"two").await;
    bench
        .put_manifest("yocto/app", digest_of(&manifest).as_str(), &manifest)
        .await
        .expect(201);
    bench
        .put_manifest("yocto/app", "tree", &tree)
        .await
        .expect(201);
    let nested = index(&[&tree, &manifest]);
    bench
        .put_manifest("yocto/app", "nested", &nested)
        .await
        .expect(201);

    // Layers that may not be distributed are elsewhere, and builders list blobs in an index.
    let foreign = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let mut lawful = image(&[b"one"]);
    lawful["layers"][0] = descriptor(foreign, b"at a vendor");
    bench
        .put_manifest("yocto/app", "foreign", &lawful)
        .await
        .expect(201);
    let cache = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_INDEX,
        "manifests": [descriptor(media_type::OCI_LAYER_GZIP, b"one")],
    });
    bench
        .put_manifest("yocto/app", "cache", &cache)
        .await
        .expect(201);

    let sparse = Bench::with(|config| config.sparse_manifests = true);
    sparse
        .put_manifest("yocto/app", "latest", &tree)
        .await
        .expect(201);
}

#[tokio::test]
async fn a_manifest_that_tells_a_wrong_size_is_refused() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let mut wrong = image(&[b"layer"]);
    wrong["layers"][0]["size"] = json!(6);
    bench
        .put_manifest("yocto/app", "wrong", &wrong)
        .await
        .refused(400, "MANIFEST_INVALID");
    let mut list = index(&[&image(&[b"layer"])]);
    bench
        .put_manifest("yocto/app", "list", &list)
        .await
        .expect(201);
    assert_eq!(list["manifests"][0]["digest"], json!(digest));
    list["manifests"][0]["size"] = json!(1);
    bench
        .put_manifest("yocto/app", "list", &list)
        .await
        .refused(400, "MANIFEST_INVALID");
}

#[tokio::test]
async fn indexes_nest_only_so_deep() {
    let bench = Bench::new();
    bench.push_blob("yocto/app", b"{}").await;
    let mut levels = vec![image(&[])];
    let put = async |manifest: &serde_json::Value| {
        let digest = digest_of(manifest).to_string();
        bench.put_manifest("yocto/app", &digest, manifest).await
    };
    put(&levels[0]).await.expect(201);
    for _ in 1..8 {
        // What lies deeper is named at the top as well: the longest way down counts.
        let below: Vec<_> = levels.iter().rev().collect();
        let above = index(&below);
        put(&above).await.expect(201);
        levels.push(above);
    }
    let below: Vec<_> = levels.iter().collect();
    let refused = put(&index(&below)).await.refused(400, "MANIFEST_INVALID");
    let words = refused.json()["errors"][0]["message"].clone();
    assert!(
        words
            .as_str()
            .unwrap()
            .contains("more than 8 manifests deep"),
        "{words}"
    );
    // Content that is no manifest of the repository is not one level more.
    bench.push_blob("yocto/app", b"content").await;
    let mut wide = index(&[&levels[6]]);
    let blob = descriptor(media_type::OCI_LAYER, b"content");
    wide["manifests"].as_array_mut().unwrap().push(blob);
    put(&wide).await.expect(201);
}
