//! The archive of a layer comes out of its image again.

use std::fs::{self, File};
use std::io::Read;

use proptest::prelude::*;
use vdkr_core::digest::Digest;

use super::super::{Files, write_image};
use super::Place;
use crate::layer::Limits;
use crate::layer::fixture::{Entry, archive, gzip};
use crate::layer::recipe::{Recorder, Restored, plain_length};

impl Place {
    fn recipe(&self) -> std::path::PathBuf {
        self.directory.path().join("recipe")
    }

    fn record(&self, stream: &[u8], plain: &[u8]) {
        let new = |path| {
            let mut options = File::options();
            options.read(true).write(true).create(true).truncate(true);
            options.open(path).unwrap()
        };
        let mut recorder = Recorder::new(new(self.recipe()));
        write_image(
            stream,
            &Digest::sha256(plain),
            &Limits::default(),
            &|| false,
            &new(self.image()),
            &new(self.directory.path().join("scratch")),
            Some(&mut recorder),
        )
        .unwrap();
        assert!(recorder.finish(plain.len() as u64));
    }

    fn restored(&self) -> std::io::Result<Vec<u8>> {
        let files = Files::open(File::open(self.image()).unwrap()).unwrap();
        let mut archive =
            Restored::open(&self.recipe(), move |path: &[u8]| files.file(path)).unwrap();
        let mut plain = Vec::new();
        archive.read_to_end(&mut plain)?;
        Ok(plain)
    }
}

fn round_trip(stream: &[u8], plain: &[u8]) {
    let place = Place::new();
    place.record(stream, plain);
    assert_eq!(plain_length(&place.recipe()).unwrap(), plain.len() as u64);
    assert!(place.restored().unwrap() == plain);
}

#[test]
fn every_kind_of_member() {
    let deep = "d/".repeat(60) + "file";
    let mut plain = archive(&[
        Entry::directory("."),
        Entry::directory("etc/"),
        Entry::file("etc/passwd", "root:x:0:0"),
        Entry::file("./etc/motd", "hello\n".repeat(200_000)).xattr("user.note", b"kept"),
        Entry::file("empty", ""),
        Entry::file("block", [7; 4096]),
        Entry::file("not-inline", [8; 4095]),
        Entry::symlink("lib", "usr/lib"),
        Entry::symlink("up", "/../usr/./lib/.."),
        Entry::directory("usr/lib"),
        Entry::file("lib/through-a-link", "x"),
        Entry::file("up/through-more", "y"),
        Entry::hard_link("etc/passwd-", "etc/passwd"),
        Entry::whiteout("etc/.wh.gone"),
        Entry::whiteout("etc/.wh..wh..opq"),
        Entry::file(".wh..wh.aufs", "bookkeeping"),
        Entry::file(&deep, "deep"),
        Entry::new(b'6', "pipe"),
        Entry::file("holes", b"begin-end")
            .pax(b"GNU.sparse.size", b"100000")
            .pax(b"GNU.sparse.map", b"0,5,99996,4"),
    ]);
    // What stands behind the end belongs to the digest too.
    plain.extend_from_slice(&[0; 3000]);
    plain.extend_from_slice(b"trailing");
    round_trip(&plain, &plain);
    round_trip(&gzip(&plain), &plain);
    round_trip(&archive(&[]), &archive(&[]));
}

#[test]
fn directories_of_many_blocks_are_searched() {
    let mut entries: Vec<Entry> = (0..3000)
        .map(|n| Entry::file(format!("many/{n:x}{}", "!".repeat(n % 40)), n.to_string()))
        .collect();
    entries.extend(["!", ".-", ".a", "..a", "~"].map(|n| Entry::file(format!("many/{n}"), n)));
    let plain = archive(&entries);
    round_trip(&plain, &plain);
}

#[test]
fn what_does_not_come_out_as_it_was_is_seen() {
    // The second content stands where the first one is looked for.
    let plain = archive(&[Entry::file("a", "first"), Entry::file("a", "other")]);
    let place = Place::new();
    place.record(&plain, &plain);
    assert!(place.restored().unwrap() != plain);
    let plain = archive(&[Entry::file("a", "x"), Entry::symlink("a", "elsewhere")]);
    let place = Place::new();
    place.record(&plain, &plain);
    let error = place.restored().unwrap_err().to_string();
    assert!(error.contains("\"a\""), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_files(files in proptest::collection::btree_map(
        "[a-d]{1,4}/[a-z]{1,8}",
        proptest::collection::vec(any::<u8>(), 0..9000),
        0..20,
    )) {
        let entries: Vec<Entry> = files.iter().map(|(name, data)| Entry::file(name, data)).collect();
        let plain = archive(&entries);
        round_trip(&plain, &plain);
    }

    /// An image that is damaged anywhere gives something else or an error, and never a panic or more
    /// than the archive's length.
    #[test]
    fn damage_is_survived(at in any::<prop::sample::Index>(), byte: u8) {
        let plain = archive(&[
            Entry::directory("d"),
            Entry::file("d/a", [1; 5000]),
            Entry::symlink("l", "d"),
            Entry::file("l/b", "linked"),
        ]);
        let place = Place::new();
        place.record(&plain, &plain);
        let mut image = fs::read(place.image()).unwrap();
        let at = 4096 + at.index(image.len() - 4096);
        image[at] = byte;
        fs::write(place.image(), image).unwrap();
        if let Ok(restored) = place.restored() {
            prop_assert_eq!(restored.len(), plain.len());
        }
    }
}
