//! A client: it alone moves its tags, so it knows what they may point to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::check::whole;
use super::{Dice, World};
use crate::layout::{digest, noise};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Tags of one client.
const TAGS: usize = 3;
/// Layers that all clients draw from.
const POOL: u64 = 12;

/// What a tag may point to: one thing, or after a request without an answer one of two.
type Allowed = Vec<Option<String>>;

enum Pushed {
    /// Acknowledged.
    Done,
    /// The last request had no answer.
    Unknown,
    /// Given up before the tag was touched.
    NotYet,
}

pub(super) fn run(world: &World, number: u64) {
    let mut dice = world.dice(number);
    let repository = format!("soak/r{}", number % 2);
    let mut tags: Vec<Allowed> = vec![vec![None]; TAGS];
    let mut round = 0;
    while world.goes_on() {
        round += 1;
        let at = dice.below(TAGS as u64) as usize;
        let tag = format!("c{number}-{at}");
        if dice.below(5) == 0 {
            delete(world, &repository, &tag, &mut tags[at]);
        } else {
            let unique = number * 1_000_000 + round;
            push(world, &mut dice, &repository, &tag, unique, &mut tags[at]);
        }
        for (at, allowed) in tags.iter_mut().enumerate() {
            let tag = format!("c{number}-{at}");
            look(world, &repository, &tag, allowed);
        }
    }
}

/// Holds the tag against what it may be, and pulls the image.
fn look(world: &World, repository: &str, tag: &str, allowed: &mut Allowed) {
    let Some(answer) = world.get(&format!("/v2/{repository}/manifests/{tag}")) else {
        return;
    };
    let found = match answer.status {
        200 => Some(digest(&answer.body)),
        404 => None,
        status => {
            let text = answer.text();
            return world.violated(format!("{repository}:{tag} answered {status}: {text}"));
        }
    };
    if !allowed.contains(&found) {
        return world.violated(format!(
            "{repository}:{tag} is {found:?}, and may be {allowed:?} only"
        ));
    }
    if found.is_some() {
        if let Err(problem) = whole(world, repository, &answer.body) {
            return world.violated(format!("{repository}:{tag}: {problem}"));
        }
        world.count(|figures| &figures.pulls, 1);
    }
    *allowed = vec![found];
}

fn delete(world: &World, repository: &str, tag: &str, allowed: &mut Allowed) {
    let path = format!("/v2/{repository}/manifests/{tag}");
    match world.ask("DELETE", &path, &[], b"") {
        Some(answer) if answer.status == 202 => {
            world.count(|figures| &figures.deletes, 1);
            *allowed = vec![None];
        }
        Some(answer) if answer.status == 404 && allowed.contains(&None) => *allowed = vec![None],
        Some(answer) => world.violated(format!(
            "deleting {repository}:{tag} ({allowed:?}) answered {}",
            answer.status
        )),
        None => allowed.push(None),
    }
}

fn push(
    world: &World,
    dice: &mut Dice,
    repository: &str,
    tag: &str,
    unique: u64,
    allowed: &mut Allowed,
) {
    let mut layers = vec![noise(unique, 200 + dice.below(3000) as usize)];
    for _ in 0..=dice.below(3) {
        let shared = dice.below(POOL);
        layers.push(noise((1 << 40) | shared, 1000 << (shared % 8)));
    }
    let config =
        format!(r#"{{"architecture":"amd64","os":"linux","unique":{unique}}}"#).into_bytes();
    let descriptor = |media_type: &str, content: &[u8]| json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() });
    let layer_type = "application/vnd.oci.image.layer.v1.tar";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": layers.iter().map(|l| descriptor(layer_type, l)).collect::<Vec<_>>(),
    })
    .to_string();
    let index = (dice.below(2) == 0).then(|| {
        let entry = descriptor(MANIFEST, manifest.as_bytes());
        json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": [entry] }).to_string()
    });
    let target = digest(index.as_ref().unwrap_or(&manifest).as_bytes());
    layers.push(config);
    let deadline = Instant::now() + Duration::from_mins(1);
    let mut again = 0;
    while Instant::now() < deadline {
        world.count(|figures| &figures.restarted_pushes, again);
        again = 1;
        match once(
            world,
            dice,
            repository,
            tag,
            &layers,
            &manifest,
            index.as_deref(),
        ) {
            Pushed::Done => {
                world.count(|figures| &figures.pushes, 1);
                *allowed = vec![Some(target)];
                return;
            }
            // It may have happened; the same again makes it certain, but a look must do as well.
            Pushed::Unknown => {
                if !allowed.contains(&Some(target.clone())) {
                    allowed.push(Some(target.clone()));
                }
                if dice.below(2) == 0 {
                    return;
                }
            }
            Pushed::NotYet => {}
        }
        if !world.goes_on() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    world.violated(format!("a push to {repository}:{tag} never came through"));
}

fn once(
    world: &World,
    dice: &mut Dice,
    repository: &str,
    tag: &str,
    blobs: &[Vec<u8>],
    manifest: &str,
    index: Option<&str>,
) -> Pushed {
    for content in blobs {
        if !send_blob(world, dice, repository, content) {
            return Pushed::NotYet;
        }
    }
    let put = |target: &str, body: &str, media_type: &str| {
        let path = format!("/v2/{repository}/manifests/{target}");
        let answer = world.ask(
            "PUT",
            &path,
            &[("Content-Type", media_type)],
            body.as_bytes(),
        );
        match answer {
            None => Pushed::Unknown,
            Some(answer) if answer.status == 201 => Pushed::Done,
            // What was there when it was asked for has been collected: there is hardly any grace.
            Some(answer) if answer.status == 404 => Pushed::NotYet,
            Some(answer) => {
                let (status, text) = (answer.status, answer.text());
                world.violated(format!("PUT {path} answered {status}: {text}"));
                Pushed::NotYet
            }
        }
    };
    let Some(index) = index else {
        return put(tag, manifest, MANIFEST);
    };
    match put(&digest(manifest.as_bytes()), manifest, MANIFEST) {
        Pushed::Done => put(tag, index, INDEX),
        _ => Pushed::NotYet,
    }
}

/// Brings a blob there as clients do: ask, else mount, else send. `false`: it did not come through.
fn send_blob(world: &World, dice: &mut Dice, repository: &str, content: &[u8]) -> bool {
    let name = digest(content);
    let uploads = format!("/v2/{repository}/blobs/uploads/");
    match world.ask("HEAD", &format!("/v2/{repository}/blobs/{name}"), &[], b"") {
        None => return false,
        Some(answer) if answer.status == 200 => {
            world.count(|figures| &figures.skipped_blobs, 1);
            return true;
        }
        Some(_) => {}
    }
    if dice.below(2) == 0 {
        let from = format!("soak/r{}", dice.below(2));
        let path = format!("{uploads}?mount={name}&from={from}");
        match world.ask("POST", &path, &[], b"") {
            None => return false,
            Some(answer) if answer.status == 201 => {
                world.count(|figures| &figures.mounts, 1);
                return true;
            }
            Some(_) => {}
        }
    }
    let Some(begun) = world.ask("POST", &uploads, &[], b"") else {
        return false;
    };
    let Some(location) = begun.header("location").filter(|_| begun.status == 202) else {
        let (status, text) = (begun.status, begun.text());
        world.violated(format!("POST {uploads} answered {status}: {text}"));
        return false;
    };
    let path = format!("{location}?digest={name}");
    match world.ask("PUT", &path, &[], content) {
        Some(answer) if answer.status == 201 => true,
        // The session began before the server was killed, and had no file yet.
        Some(answer) if answer.status != 404 => {
            let (status, text) = (answer.status, answer.text());
            world.violated(format!("PUT {path} answered {status}: {text}"));
            false
        }
        _ => false,
    }
}

/// The digests that a manifest names: its blobs, and its manifests.
pub(super) fn named(manifest: &Value) -> (Vec<&str>, Vec<&str>) {
    let list = |key: &str| manifest[key].as_array().map_or(&[][..], Vec::as_slice);
    let blobs = list("layers")
        .iter()
        .chain(manifest.get("config"))
        .filter_map(|blob| blob["digest"].as_str())
        .collect();
    let manifests = list("manifests")
        .iter()
        .filter_map(|child| child["digest"].as_str())
        .collect();
    (blobs, manifests)
}
