//! A short life of a registry, and what must hold at every moment of it.

use std::collections::BTreeSet;

use super::{Answer, Bench, descriptor, image, index, noise};
use serde_json::{Value, json};
use vdkr_core::digest::Digest;
use vdkr_core::manifest::media_type;

const APP: &str = "yocto/app";
const COPY: &str = "yocto/copy";

/// What the registry has acknowledged.
#[derive(Clone, Debug, Default)]
pub struct Acknowledged {
    /// Blobs by repository.
    blobs: BTreeSet<(&'static str, Digest)>,
    /// What each tag may point to; `None`: nothing. A tag that is not listed may be anything legal.
    tags: Vec<(&'static str, &'static str, Vec<Option<Digest>>)>,
}

impl Acknowledged {
    /// What holds while the request is under way after which `next` holds.
    pub fn before(&self, next: &Self) -> Self {
        let mut now = self.clone();
        now.blobs.retain(|blob| next.blobs.contains(blob));
        for (repository, tag, allowed) in &mut now.tags {
            for (r, t, then) in &next.tags {
                if (r, t) == (repository, tag) {
                    allowed.extend(then.iter().cloned());
                }
            }
        }
        now
    }
}

/// Contents that the scenario handles.
pub struct World {
    config: Vec<u8>,
    one: Vec<u8>,
    two: Vec<u8>,
    first: Value,
    second: Value,
    both: Value,
    signature: Value,
}

impl World {
    pub fn new() -> Self {
        let (one, two) = (noise(300, 1), noise(700, 2));
        let (first, second) = (image(&[&one]), image(&[&one, &two]));
        let both = index(&[&first, &second]);
        let mut signature = image(&[]);
        signature["artifactType"] = json!("application/vnd.signature");
        signature["subject"] = descriptor(media_type::OCI_MANIFEST, first.to_string().as_bytes());
        Self {
            config: b"{}".to_vec(),
            one,
            two,
            first,
            second,
            both,
            signature,
        }
    }

    /// Does everything once. `step` is called after each request with its answer, and with what is
    /// then acknowledged; it says whether to go on.
    pub async fn live(&self, bench: &Bench, step: &mut dyn FnMut(&Answer, &Acknowledged) -> bool) {
        let mut known = Acknowledged::default();
        let digest = |manifest: &Value| Digest::sha256(manifest.to_string().as_bytes());

        macro_rules! go {
            ($answer:expr) => {{
                let answer = $answer;
                if !step(&answer, &known) {
                    return;
                }
                answer
            }};
            ($answer:expr, $then:expr) => {{
                let answer = $answer;
                let mut next = known.clone();
                #[allow(clippy::redundant_closure_call, reason = "a statement about `next`")]
                $then(&mut next);
                // What was refused may have happened all the same.
                known = if answer.status.is_success() {
                    next
                } else {
                    known.before(&next)
                };
                if !step(&answer, &known) {
                    return;
                }
                answer
            }};
        }
        let has = |repository: &'static str, content: &[u8]| {
            let digest = Digest::sha256(content);
            move |known: &mut Acknowledged| {
                known.blobs.insert((repository, digest));
            }
        };
        let tagged = |repository: &'static str, tag: &'static str, at: Vec<Option<Digest>>| {
            move |known: &mut Acknowledged| {
                known.tags.retain(|(r, t, _)| (*r, *t) != (repository, tag));
                known.tags.push((repository, tag, at));
            }
        };

        // A blob in one request, one in two, one in chunks.
        let uploads = format!("/v2/{APP}/blobs/uploads/");
        let path = format!("{uploads}?digest={}", Digest::sha256(&self.config));
        go!(
            bench.send("POST", &path, &[], self.config.clone()).await,
            has(APP, &self.config)
        );
        let begun = go!(bench.send("POST", &uploads, &[], "").await);
        let path = format!(
            "{}?digest={}",
            begun.header("location"),
            Digest::sha256(&self.one)
        );
        go!(
            bench.send("PUT", &path, &[], self.one.clone()).await,
            has(APP, &self.one)
        );
        let begun = go!(bench.send("POST", &uploads, &[], "").await);
        let location = begun.header("location").to_owned();
        let (head, tail) = self.two.split_at(400);
        go!(bench
            .send(
                "PATCH",
                &location,
                &[("content-range", "0-399")],
                head.to_vec()
            )
            .await);
        let path = format!("{location}?digest={}", Digest::sha256(&self.two));
        let range = [("content-range", "400-699")];
        go!(
            bench.send("PUT", &path, &range, tail.to_vec()).await,
            has(APP, &self.two)
        );

        // A tag, moved once; an index of both; a referrer.
        let (first, second) = (Some(digest(&self.first)), Some(digest(&self.second)));
        go!(
            bench.put_manifest(APP, "latest", &self.first).await,
            tagged(APP, "latest", vec![first.clone()])
        );
        go!(
            bench.put_manifest(APP, "latest", &self.second).await,
            tagged(APP, "latest", vec![second.clone()])
        );
        go!(
            bench.put_manifest(APP, "both", &self.both).await,
            tagged(APP, "both", vec![Some(digest(&self.both))])
        );
        go!(
            bench.put_manifest(APP, "signed", &self.signature).await,
            tagged(APP, "signed", vec![Some(digest(&self.signature))])
        );

        // Another repository, by mounting.
        for content in [&self.config, &self.one] {
            let blob = Digest::sha256(content);
            let path = format!("/v2/{COPY}/blobs/uploads/?mount={blob}&from={APP}");
            go!(bench.send("POST", &path, &[], "").await, has(COPY, content));
        }
        go!(
            bench.put_manifest(COPY, "latest", &self.first).await,
            tagged(COPY, "latest", vec![first.clone()])
        );

        // And less again.
        let path = format!("/v2/{APP}/manifests/both");
        go!(bench.delete(&path).await, tagged(APP, "both", vec![None]));
        let path = format!("/v2/{COPY}/manifests/{}", digest(&self.first));
        go!(
            bench.delete(&path).await,
            tagged(COPY, "latest", vec![None])
        );
        let path = format!("/v2/{COPY}/blobs/{}", Digest::sha256(&self.one));
        go!(bench.delete(&path).await, |known: &mut Acknowledged| {
            known.blobs.remove(&(COPY, Digest::sha256(&self.one)));
        });
    }

    /// Pushes the first image as clients do: blobs that are there are not sent again. Returns how many
    /// were there.
    pub async fn push_what_is_missing(&self, bench: &Bench, known: &mut Acknowledged) -> usize {
        let mut there = 0;
        for content in [&self.config, &self.one] {
            let digest = Digest::sha256(content);
            if bench
                .head(&format!("/v2/{APP}/blobs/{digest}"))
                .await
                .status
                == 200
            {
                there += 1;
            } else {
                bench.push_blob(APP, content).await;
            }
            known.blobs.insert((APP, digest));
        }
        bench
            .put_manifest(APP, "again", &self.first)
            .await
            .expect(201);
        let digest = Digest::sha256(self.first.to_string().as_bytes());
        known.tags.push((APP, "again", vec![Some(digest)]));
        there
    }

    /// What must hold of a registry at any moment: what it serves is whole, every tag and manifest
    /// with all that it needs, and what it acknowledged is there.
    pub async fn check(&self, bench: &Bench, known: &Acknowledged) {
        for repository in [APP, COPY] {
            for content in [&self.config, &self.one, &self.two] {
                let digest = Digest::sha256(content);
                let path = format!("/v2/{repository}/blobs/{digest}");
                let answer = bench.get(&path).await;
                let there = answer.status == 200;
                assert!(there || answer.status == 404, "{answer:?}");
                assert!(
                    !there || answer.body == content.as_slice(),
                    "half of {digest} is served"
                );
                assert_eq!(bench.head(&path).await.status == 200, there);
                let promised = known.blobs.contains(&(repository, digest.clone()));
                assert!(there || !promised, "{repository} has lost {digest}");
            }
            for manifest in [&self.first, &self.second, &self.both, &self.signature] {
                let digest = Digest::sha256(manifest.to_string().as_bytes());
                self.check_manifest(bench, repository, digest.as_str())
                    .await;
            }
            let listed = bench.get(&format!("/v2/{repository}/tags/list")).await;
            assert!(matches!(listed.status.as_u16(), 200 | 404), "{listed:?}");
            if listed.status == 200 {
                for tag in listed.json()["tags"].as_array().unwrap() {
                    let at = self
                        .check_manifest(bench, repository, tag.as_str().unwrap())
                        .await;
                    assert!(at.is_some(), "{repository}:{tag} is listed and not there");
                }
            }
            let referrers = format!("/v2/{repository}/referrers/{}", Digest::sha256(b"x"));
            bench.get(&referrers).await.expect(200);
        }
        for (repository, tag, allowed) in &known.tags {
            let at = self.check_manifest(bench, repository, tag).await;
            assert!(
                allowed.contains(&at),
                "{repository}:{tag} is {at:?}, not of {allowed:?}"
            );
        }
        bench.get("/v2/_catalog").await.expect(200);
    }

    async fn check_manifest(
        &self,
        bench: &Bench,
        repository: &str,
        target: &str,
    ) -> Option<Digest> {
        let answer = bench
            .get(&format!("/v2/{repository}/manifests/{target}"))
            .await;
        if answer.status == 404 {
            return None;
        }
        let answer = answer.expect(200);
        let digest = Digest::sha256(&answer.body);
        assert_eq!(answer.header("docker-content-digest"), digest.as_str());
        let manifest = answer.json();
        let list = |key: &str| manifest[key].as_array().cloned().unwrap_or_default();
        let blobs = manifest
            .get("config")
            .cloned()
            .into_iter()
            .chain(list("layers"));
        for blob in blobs {
            let path = format!(
                "/v2/{repository}/blobs/{}",
                blob["digest"].as_str().unwrap()
            );
            // The only blob that the scenario deletes is needed by a manifest deleted before.
            bench.head(&path).await.expect(200);
        }
        for child in list("manifests") {
            let child = child["digest"].as_str().unwrap();
            let found = Box::pin(self.check_manifest(bench, repository, child)).await;
            assert!(found.is_some(), "{target} needs {child}");
        }
        Some(digest)
    }
}

/// Files in the temporary directory of any process.
pub fn litter(bench: &Bench) -> usize {
    let list = |path| {
        std::fs::read_dir(path)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
    };
    list(bench.v2().join("_vdkr/tmp"))
        .map(|dir| list(dir).count())
        .sum()
}
