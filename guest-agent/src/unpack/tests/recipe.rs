//! What was unpacked comes out again as it came.

use std::path::PathBuf;

use proptest::prelude::*;

use super::super::fixture::gzip;
use super::super::recipe::{Recorder, RestoreError, plain_length, restore};
use super::super::unpack_recorded;
use super::*;

fn recorded(place: &Place, stream: &[u8], plain: &[u8]) -> (PathBuf, Root) {
    let recipe = place.directory.path().join("layer.recipe");
    let root = Root::open(&place.layer()).unwrap();
    let mut recorder = Recorder::create(&recipe).unwrap();
    let digest = Digest::sha256(plain);
    let recording = Some(&mut recorder);
    unpack_recorded(
        stream,
        &root,
        &digest,
        &place.options(),
        &|| false,
        recording,
    )
    .unwrap();
    assert!(recorder.finish(plain.len() as u64));
    (recipe, root)
}

fn restored(recipe: &Path, root: &Root, plain: &[u8]) -> Result<Vec<u8>, RestoreError> {
    let mut out = Vec::new();
    let digest = Digest::sha256(plain);
    restore(recipe, root, &digest, &mut |bytes| {
        out.extend_from_slice(bytes);
        true
    })?;
    Ok(out)
}

fn round_trip(stream: &[u8], plain: &[u8]) {
    let place = Place::new();
    let (recipe, root) = recorded(&place, stream, plain);
    assert_eq!(plain_length(&recipe).unwrap(), plain.len() as u64);
    assert!(restored(&recipe, &root, plain).unwrap() == plain);
}

#[test]
fn every_kind_of_member() {
    let long = "d/".repeat(60) + "file";
    let mut plain = archive(&[
        Entry::directory("."),
        Entry::directory("etc/"),
        Entry::file("etc/passwd", "root:x:0:0"),
        Entry::file("./etc/motd", "hello\n".repeat(200_000)),
        Entry::file("empty", ""),
        Entry::symlink("lib", "usr/lib"),
        Entry::directory("usr/lib"),
        Entry::file("lib/through-a-link", "x"),
        Entry::hard_link("etc/passwd-", "etc/passwd"),
        Entry::whiteout("etc/.wh.gone"),
        Entry::whiteout("etc/.wh..wh..opq"),
        Entry::file(".wh..wh.aufs", "bookkeeping"),
        Entry::file(&long, "deep"),
        Entry::new(b'6', "pipe"),
    ]);
    // What stands behind the end belongs to the digest too.
    plain.extend_from_slice(&[0; 3000]);
    plain.extend_from_slice(b"trailing");
    round_trip(&plain, &plain);
    round_trip(&gzip(&plain), &plain);
    round_trip(&archive(&[]), &archive(&[]));
}

#[test]
fn a_layer_that_changed_is_noticed() {
    let plain = archive(&[Entry::file("a", "content"), Entry::file("b", "more")]);
    let place = Place::new();
    let (recipe, root) = recorded(&place, &plain, &plain);
    fs::write(place.layer().join("a"), "CONTENT").unwrap();
    let error = restored(&recipe, &root, &plain).unwrap_err();
    assert!(matches!(error, RestoreError::Digest { .. }), "{error}");
    fs::write(place.layer().join("a"), "short").unwrap();
    let error = restored(&recipe, &root, &plain).unwrap_err();
    assert!(error.to_string().contains("\"a\""), "{error}");
    fs::remove_file(place.layer().join("a")).unwrap();
    std::os::unix::fs::symlink("../outside/secret", place.layer().join("a")).unwrap();
    let error = restored(&recipe, &root, &plain).unwrap_err();
    assert!(matches!(error, RestoreError::File { .. }), "{error}");
}

#[test]
fn a_file_that_an_archive_has_twice_is_noticed() {
    let plain = archive(&[Entry::file("a", "first"), Entry::file("a", "other")]);
    let place = Place::new();
    let (recipe, root) = recorded(&place, &plain, &plain);
    let error = restored(&recipe, &root, &plain).unwrap_err();
    assert!(matches!(error, RestoreError::Digest { .. }), "{error}");
}

#[test]
fn a_damaged_recipe_is_an_error() {
    let plain = archive(&[Entry::file("a", "content")]);
    let place = Place::new();
    let (recipe, root) = recorded(&place, &plain, &plain);
    let whole = fs::read(&recipe).unwrap();
    for damaged in [
        &whole[..whole.len() / 2],
        &gzip(&[9, 9, 9])[..],
        b"",
        b"no gzip",
    ] {
        fs::write(&recipe, damaged).unwrap();
        assert!(restored(&recipe, &root, &plain).is_err());
        assert!(plain_length(&recipe).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn any_files(files in proptest::collection::btree_map("[a-z]{1,8}", proptest::collection::vec(any::<u8>(), 0..3000), 0..20)) {
        let entries: Vec<Entry> = files.iter().map(|(name, data)| Entry::file(name, data)).collect();
        let plain = archive(&entries);
        round_trip(&plain, &plain);
    }
}
