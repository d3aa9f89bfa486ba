//! The list of all images.

mod common;

use std::sync::atomic::AtomicBool;

use common::collect::STRICT;
use common::{Bench, descriptor, digest_of, image, index};
use serde_json::{Value, json};
use vdkr_core::extension::FsckOptions;
use vdkr_core::manifest::media_type;

async fn list(bench: &Bench, query: &str) -> (Vec<Value>, String) {
    let answer = bench
        .get(&format!("/v2/_vdkr/images/list{query}"))
        .await
        .expect(200);
    let images = answer.json()["images"].as_array().unwrap().clone();
    (images, answer.header("link").to_owned())
}

#[tokio::test]
async fn every_tag_is_told_with_what_people_ask_for() {
    let bench = Bench::new();
    let config = json!({
        "architecture": "arm64", "os": "linux", "variant": "v8", "created": "2026-01-02T03:04:05Z",
        "config": { "Labels": { "org.example.team": "kernel" } },
        "rootfs": { "type": "layers", "diff_ids": [] },
    })
    .to_string();
    bench.push_blob("yocto/app", config.as_bytes()).await;
    bench.push_blob("yocto/app", b"layer").await;
    let image = json!({
        "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST,
        "config": descriptor(media_type::OCI_CONFIG, config.as_bytes()),
        "layers": [descriptor(media_type::OCI_LAYER, b"layer"), descriptor(media_type::OCI_LAYER, b"layer")],
        "annotations": { "org.example.note": "x" },
    });
    let by_digest = digest_of(&image).to_string();
    bench
        .put_manifest("yocto/app", &by_digest, &image)
        .await
        .expect(201);
    let index = index(&[&image]);
    bench
        .put_manifest("yocto/app", "v1", &index)
        .await
        .expect(201);

    let (images, next) = list(&bench, "").await;
    assert_eq!((images.len(), next.as_str()), (1, ""));
    let entry = &images[0];
    assert_eq!(entry["repository"], json!("yocto/app"));
    assert_eq!(entry["tag"], json!("v1"));
    assert_eq!(entry["digest"], json!(digest_of(&index)));
    assert_eq!(entry["platforms"], json!(["linux/arm64/v8"]));
    assert_eq!(entry["created"], json!("2026-01-02T03:04:05Z"));
    let size = index.to_string().len() + image.to_string().len() + config.len() + 5;
    assert_eq!(entry["size"], json!(size), "what occurs twice counts once");
    let labels = json!({ "org.example.team": "kernel", "org.example.note": "x" });
    assert_eq!(entry["labels"], labels);
    assert!(entry["pushed"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(entry.get("problem"), None);

    // From memory now, and no less right after a change beneath.
    assert_eq!(list(&bench, "").await.0, images);
    // Whatever is missing of it, above or below, is told from then on.
    for part in [
        vdkr_core::digest::Digest::sha256(b"layer"),
        digest_of(&image),
    ] {
        let away = bench.dir.path().join("away");
        std::fs::rename(bench.blob_file(&part), &away).unwrap();
        let problem = list(&bench, "").await.0[0]["problem"].clone();
        assert!(
            problem.as_str().unwrap().contains(part.as_str()),
            "{problem}"
        );
        std::fs::rename(&away, bench.blob_file(&part)).unwrap();
    }
    assert_eq!(list(&bench, "").await.0, images);
    std::fs::remove_file(bench.blob_file(&digest_of(&index))).unwrap();
    let (images, _) = list(&bench, "").await;
    assert!(
        images[0]["problem"]
            .as_str()
            .unwrap()
            .contains("push it again")
    );
}

#[tokio::test]
async fn weakness_4b_13_pages_hold_everything_once_in_order() {
    let bench = Bench::new();
    let mut expected = Vec::new();
    for repository in ["a", "a-b", "a/b", "b", "c/d/e"] {
        for tag in ["1", "2", "latest"] {
            bench.push_image(repository, tag, b"x").await;
            expected.push(format!("{repository}:{tag}"));
        }
    }
    expected.sort_by(|a, b| {
        let (a, b) = (a.rsplit_once(':').unwrap(), b.rsplit_once(':').unwrap());
        a.0.split('/').cmp(b.0.split('/')).then(a.1.cmp(b.1))
    });
    for n in [1, 2, 3, 4, 7, 14, 15, 16] {
        let (mut found, mut query, mut pages) = (Vec::new(), format!("?n={n}"), 0);
        loop {
            let (images, next) = list(&bench, &query).await;
            assert!(images.len() <= n);
            pages += 1;
            found.extend(images.iter().map(|image| {
                let text = |key: &str| image[key].as_str().unwrap().to_owned();
                format!("{}:{}", text("repository"), text("tag"))
            }));
            let Some(from) = next.find('?') else { break };
            query = next[from..next.find('>').unwrap()].to_owned();
        }
        assert_eq!(found, expected, "pages of {n}");
        assert_eq!(pages, expected.len().div_ceil(n), "pages of {n}");
    }
    assert_eq!(list(&bench, "?n=0").await.0.len(), 0);
    bench.delete("/v2/a/manifests/1").await.expect(202);
    bench.delete("/v2/a/manifests/2").await.expect(202);
    bench.delete("/v2/a/manifests/latest").await.expect(202);
    let (images, _) = list(&bench, "").await;
    assert_eq!(images[0]["repository"], json!("a"));
    assert_eq!(
        images[0]["tag"],
        Value::Null,
        "a repository without tags is told, too"
    );
}

/// Indexes one under the other, the topmost last, on an image.
fn chain(length: usize) -> Vec<Value> {
    let mut levels = vec![image(&[])];
    while levels.len() < length {
        let above = index(&[&levels[levels.len() - 1]]);
        levels.push(above);
    }
    levels
}

#[tokio::test]
async fn however_deep_indexes_nest_they_are_listed_checked_and_collected() {
    // Where manifests are taken without what they name, nobody sees how deep it becomes.
    let bench = Bench::with(|config| config.sparse_manifests = true);
    bench.push_blob("a", b"{}").await;
    let levels = chain(3000);
    for (depth, manifest) in levels.iter().rev().enumerate() {
        let target = match depth {
            0 => "top".to_owned(),
            2992 => "eight".to_owned(),
            _ => digest_of(manifest).to_string(),
        };
        bench.put_manifest("a", &target, manifest).await.expect(201);
    }
    for _ in 0..2 {
        let (images, next) = list(&bench, "").await;
        assert_eq!((images.len(), next.as_str()), (2, ""));
        let [eight, top] = &images[..] else { panic!() };
        assert_eq!(eight.get("problem"), None, "not too deep by one");
        let problem = top["problem"].as_str().unwrap();
        assert!(problem.contains("nest so deep"), "{problem}");
        assert!(top["size"].as_u64().unwrap() > 8 * 200);
    }
    let (stop, storage) = (AtomicBool::new(false), bench.registry.storage());
    let options = FsckOptions {
        sparse: true,
        ..FsckOptions::default()
    };
    let report = storage.check(&options, &stop).unwrap();
    assert_eq!((report.problems, report.manifests), (0, 3000));
    let report = storage.collect_garbage(&STRICT, &stop).unwrap();
    assert_eq!((report.manifests, report.removed_manifests), (3000, 0));
    let path = format!("/v2/a/referrers/{}", digest_of(&levels[0]));
    bench.get(&path).await.expect(200);
}

#[tokio::test]
async fn what_an_index_lacks_is_told_until_it_comes() {
    let bench = Bench::with(|config| config.sparse_manifests = true);
    bench.push_blob("a", b"{}").await;
    let one = image(&[]);
    let two = index(&[&one]);
    let both = index(&[&one, &two]);
    bench.put_manifest("a", "v1", &both).await.expect(201);
    for missing in [&one, &two] {
        for _ in 0..2 {
            let problem = list(&bench, "").await.0[0]["problem"].clone();
            let digest = digest_of(missing).to_string();
            assert!(problem.as_str().unwrap().contains(&digest), "{problem}");
        }
        let by_digest = digest_of(missing).to_string();
        bench
            .put_manifest("a", &by_digest, missing)
            .await
            .expect(201);
    }
    let whole = list(&bench, "").await.0[0].clone();
    assert_eq!(whole.get("problem"), None, "{whole}");
}
