//! Changes that are made only as long as the tag or manifest is as it was seen (`If-Match`).

use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type;

use crate::common::{Bench, descriptor, image, index};
use crate::{LATEST, by_digest};

#[tokio::test]
async fn conditional_puts() {
    let bench = Bench::new();
    let one = bench.push_image("yocto/app", "one", b"1").await;
    let two = bench.push_image("yocto/app", "two", b"2").await;
    let put = |condition: &'static str, value: String, layer: &'static [u8]| {
        let bench = &bench;
        async move {
            let headers = [
                ("content-type", media_type::OCI_MANIFEST),
                (condition, value.as_str()),
            ];
            bench
                .send("PUT", LATEST, &headers, image(&[layer]).to_string())
                .await
        }
    };
    put("if-match", "*".into(), b"1")
        .await
        .refused(412, "PRECONDITION_FAILED");
    put("if-match", format!("\"{one}\""), b"1")
        .await
        .refused(412, "PRECONDITION_FAILED");
    put("if-none-match", "*".into(), b"1").await.expect(201);
    let refused = put("if-none-match", "*".into(), b"2")
        .await
        .refused(412, "PRECONDITION_FAILED");
    assert_eq!(refused.header("etag"), format!("\"{one}\""));
    put("if-match", format!("\"{two}\""), b"2")
        .await
        .refused(412, "PRECONDITION_FAILED");
    put("if-match", "\"nonsense\"".into(), b"2")
        .await
        .refused(412, "PRECONDITION_FAILED");
    put("if-match", format!("\"{two}\", \"{one}\""), b"2")
        .await
        .expect(201);
    assert_eq!(
        bench.get(LATEST).await.header("docker-content-digest"),
        two.as_str()
    );
    put("if-none-match", format!("\"{two}\""), b"1")
        .await
        .refused(412, "PRECONDITION_FAILED");
    put("if-match", "*".into(), b"1").await.expect(201);
    assert_eq!(
        bench.get(LATEST).await.header("docker-content-digest"),
        one.as_str()
    );
}

#[tokio::test]
async fn concurrent_conditional_puts_lose_nothing() {
    const WRITERS: usize = 8;
    let bench = Bench::new();
    bench.push_image("yocto/app", "base", b"base").await;
    // Each adds its own manifest to the index behind the tag, as pushes of several machines do.
    let writers = (0..WRITERS).map(|n| {
        let bench = &bench;
        async move {
            let layer = format!("layer {n}");
            bench
                .push_image("yocto/app", &format!("own-{n}"), layer.as_bytes())
                .await;
            let own = image(&[layer.as_bytes()]);
            let own = descriptor(media_type::OCI_MANIFEST, own.to_string().as_bytes());
            loop {
                let current = bench.get(LATEST).await;
                let (mut index, condition) = if current.status == 200 {
                    (
                        current.json(),
                        ("if-match", current.header("etag").to_owned()),
                    )
                } else {
                    (index(&[]), ("if-none-match", "*".to_owned()))
                };
                index["manifests"].as_array_mut().unwrap().push(own.clone());
                let headers = [
                    ("content-type", media_type::OCI_INDEX),
                    (condition.0, condition.1.as_str()),
                ];
                let put = bench.send("PUT", LATEST, &headers, index.to_string()).await;
                match put.status.as_u16() {
                    201 => break,
                    412 => tokio::task::yield_now().await,
                    _ => panic!("{put:?}"),
                }
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let index = bench.get(LATEST).await.json();
    assert_eq!(index["manifests"].as_array().unwrap().len(), WRITERS);
}

#[tokio::test]
async fn conditions_hold_for_deletion_by_digest() {
    let bench = Bench::new();
    let digest = bench.push_image("yocto/app", "latest", b"layer").await;
    let layer = Digest::sha256(b"layer");
    let (right, wrong) = (format!("\"{digest}\""), format!("\"{layer}\""));
    let path = by_digest(&digest);
    for (name, value) in [("if-match", &wrong), ("if-none-match", &right)] {
        bench
            .send("DELETE", &path, &[(name, value)], "")
            .await
            .refused(412, "PRECONDITION_FAILED");
    }
    let blob = format!("/v2/yocto/app/blobs/{layer}");
    for (name, value) in [("if-match", right.as_str()), ("if-none-match", "*")] {
        bench
            .send("DELETE", &blob, &[(name, value)], "")
            .await
            .refused(412, "PRECONDITION_FAILED");
    }
    let matching = [("if-match", right.as_str())];
    bench.send("DELETE", &path, &matching, "").await.expect(202);
    let matching = [("if-match", wrong.as_str())];
    bench.send("DELETE", &blob, &matching, "").await.expect(202);
}
