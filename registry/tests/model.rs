//! Any sequence of requests against what the specification says of it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use common::{Bench, digest_of, image, scratch};
use proptest::prelude::*;
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_registry::fs::FaultPlan;

const REPOSITORIES: [&str; 2] = ["a", "a/b"];
const TAGS: [&str; 3] = ["x", "y", "z"];
const LAYERS: [&[u8]; 3] = [b"{}", b"one", b"two"];

#[derive(Clone, Debug)]
enum Step {
    PushBlob { at: usize, layer: usize },
    DeleteBlob { at: usize, layer: usize },
    Mount { to: usize, layer: usize },
    PutManifest { at: usize, tag: usize, layer: usize },
    DeleteTag { at: usize, tag: usize },
    DeleteManifest { at: usize, layer: usize },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (at, tag, layer) = (0..REPOSITORIES.len(), 0..TAGS.len(), 0..LAYERS.len());
    prop_oneof![
        4 => (at.clone(), layer.clone()).prop_map(|(at, layer)| Step::PushBlob { at, layer }),
        1 => (at.clone(), layer.clone()).prop_map(|(at, layer)| Step::DeleteBlob { at, layer }),
        2 => (at.clone(), layer.clone()).prop_map(|(to, layer)| Step::Mount { to, layer }),
        5 => (at.clone(), tag.clone(), layer.clone())
            .prop_map(|(at, tag, layer)| Step::PutManifest { at, tag, layer }),
        2 => (at.clone(), tag).prop_map(|(at, tag)| Step::DeleteTag { at, tag }),
        1 => (at, layer).prop_map(|(at, layer)| Step::DeleteManifest { at, layer }),
        1 => Just(Step::Restart),
    ]
}

/// What should be there.
#[derive(Default)]
struct Model {
    blobs: BTreeSet<(usize, usize)>,
    manifests: BTreeSet<(usize, usize)>,
    tags: BTreeMap<(usize, usize), usize>,
}

fn manifest(layer: usize) -> serde_json::Value {
    image(&[LAYERS[layer]])
}

async fn run(steps: Vec<Step>) {
    let dir = scratch();
    let open = || {
        Bench::on(Arc::clone(&dir), |config| {
            config.fault_plan = Some(Arc::new(FaultPlan::new()));
        })
    };
    let (mut bench, mut model) = (open(), Model::default());
    for step in steps {
        match step {
            Step::PushBlob { at, layer } => {
                bench.push_blob(REPOSITORIES[at], LAYERS[layer]).await;
                model.blobs.insert((at, layer));
            }
            Step::DeleteBlob { at, layer } => {
                let path = format!(
                    "/v2/{}/blobs/{}",
                    REPOSITORIES[at],
                    Digest::sha256(LAYERS[layer])
                );
                let there = model.blobs.remove(&(at, layer));
                bench
                    .delete(&path)
                    .await
                    .expect(if there { 202 } else { 404 });
            }
            Step::Mount { to, layer } => {
                let (digest, from) = (Digest::sha256(LAYERS[layer]), 1 - to);
                let (to_name, from_name) = (REPOSITORIES[to], REPOSITORIES[from]);
                let path = format!("/v2/{to_name}/blobs/uploads/?mount={digest}&from={from_name}");
                let there = model.blobs.contains(&(from, layer));
                bench
                    .send("POST", &path, &[], "")
                    .await
                    .expect(if there { 201 } else { 202 });
                if there {
                    model.blobs.insert((to, layer));
                }
            }
            Step::PutManifest { at, tag, layer } => {
                let answer = bench
                    .put_manifest(REPOSITORIES[at], TAGS[tag], &manifest(layer))
                    .await;
                let complete = [0, layer]
                    .iter()
                    .all(|blob| model.blobs.contains(&(at, *blob)));
                answer.expect(if complete { 201 } else { 404 });
                if complete {
                    model.manifests.insert((at, layer));
                    model.tags.insert((at, tag), layer);
                }
            }
            Step::DeleteTag { at, tag } => {
                let path = format!("/v2/{}/manifests/{}", REPOSITORIES[at], TAGS[tag]);
                let there = model.tags.remove(&(at, tag)).is_some();
                bench
                    .delete(&path)
                    .await
                    .expect(if there { 202 } else { 404 });
            }
            Step::DeleteManifest { at, layer } => {
                let path = format!(
                    "/v2/{}/manifests/{}",
                    REPOSITORIES[at],
                    digest_of(&manifest(layer))
                );
                let there = model.manifests.remove(&(at, layer));
                model.tags.retain(|(of, _), to| (*of, *to) != (at, layer));
                bench
                    .delete(&path)
                    .await
                    .expect(if there { 202 } else { 404 });
            }
            Step::Restart => bench = open(),
        }
        compare(&bench, &model).await;
    }
}

async fn compare(bench: &Bench, model: &Model) {
    for (at, name) in REPOSITORIES.iter().enumerate() {
        for (layer, content) in LAYERS.iter().enumerate() {
            let answer = bench
                .get(&format!("/v2/{name}/blobs/{}", Digest::sha256(content)))
                .await;
            assert_eq!(answer.status == 200, model.blobs.contains(&(at, layer)));
            let digest = digest_of(&manifest(layer));
            let answer = bench.get(&format!("/v2/{name}/manifests/{digest}")).await;
            assert_eq!(answer.status == 200, model.manifests.contains(&(at, layer)));
        }
        let mut listed = Vec::new();
        for (tag, text) in TAGS.iter().enumerate() {
            let answer = bench.get(&format!("/v2/{name}/manifests/{text}")).await;
            match model.tags.get(&(at, tag)) {
                None => drop(answer.expect(404)),
                Some(layer) => {
                    assert_eq!(answer.expect(200).json(), manifest(*layer));
                    listed.push(*text);
                }
            }
        }
        let answer = bench.get(&format!("/v2/{name}/tags/list")).await;
        if answer.status == 200 {
            assert_eq!(answer.json()["tags"], json!(listed));
        } else {
            assert!(listed.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn any_sequence_of_requests_does_what_it_should(
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(run(steps));
    }
}
