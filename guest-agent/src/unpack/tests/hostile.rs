//! What attackers write. Each archive must be refused, or kept beneath the root.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::unpack::archive::{ArchiveError, Problem};
use crate::unpack::fixture::{gzip, record, zstd};
use crate::unpack::name::NameError;
use crate::unpack::{Limits, Refusal};

#[track_caller]
fn refused(entries: &[Entry], want: Refusal) {
    match Place::new().unpack(entries) {
        Err(UnpackError::Refused { refusal, .. }) => assert_eq!(refusal, want),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn damaged(plain: &[u8]) -> Problem {
    let place = Place::new();
    match place.unpack_with(&place.options(), plain, plain) {
        Err(UnpackError::Archive(ArchiveError::Damaged { problem, .. })) => problem,
        other => panic!("{other:?}"),
    }
}

#[test]
fn traversal() {
    for name in [
        "../outside/secret",
        "a/../../outside/secret",
        "..",
        "./../x",
        "a/..",
        "/../outside/new",
    ] {
        refused(
            &[Entry::file(name, "bad")],
            Refusal::Name(NameError::Parent),
        );
        refused(&[Entry::directory(name)], Refusal::Name(NameError::Parent));
        refused(
            &[Entry::symlink(name, "x")],
            Refusal::Name(NameError::Parent),
        );
    }
}

#[test]
fn absolute_names_stay_inside() {
    let place = Place::new();
    let absolute = place.outside().join("secret");
    place
        .unpack(&[Entry::file(absolute.to_str().unwrap(), "inside")])
        .unwrap();
    assert_eq!(
        place.read(absolute.strip_prefix("/").unwrap().to_str().unwrap()),
        "inside"
    );
}

#[test]
fn writing_through_links_stays_inside() {
    let place = Place::new();
    let outside = place.outside();
    place
        .unpack(&[
            Entry::symlink("absolute", outside.to_str().unwrap()),
            Entry::file("absolute/secret", "one"),
            Entry::symlink("relative", "../outside"),
            Entry::file("relative/secret", "two"),
            Entry::symlink("chain", "relative"),
            Entry::directory("chain/new"),
            Entry::symlink("file-link", outside.join("secret").to_str().unwrap()),
            Entry::file("file-link", "replaces the link"),
            Entry::symlink("dir-link", outside.to_str().unwrap()),
            Entry::directory("dir-link").mode(0o777),
            Entry::file("dir-link/secret", "three"),
        ])
        .unwrap();
    assert!(
        !fs::symlink_metadata(place.layer().join("file-link"))
            .unwrap()
            .is_symlink()
    );
    assert!(
        !fs::symlink_metadata(place.layer().join("dir-link"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(place.read("outside/secret"), "two");
}

#[test]
fn hard_links_stay_inside() {
    let place = Place::new();
    let secret = place.outside().join("secret");
    let secret = secret.to_str().unwrap();
    refused(&[Entry::hard_link("stolen", secret)], Refusal::LinkTarget);
    refused(
        &[Entry::hard_link("stolen", "../outside/secret")],
        Refusal::Link(NameError::Parent),
    );
    refused(
        &[
            Entry::symlink("up", "../outside"),
            Entry::hard_link("stolen", "up/secret"),
        ],
        Refusal::LinkTarget,
    );
    refused(
        &[Entry::directory("d"), Entry::hard_link("d2", "d")],
        Refusal::LinkTarget,
    );
    refused(&[Entry::hard_link("d2", "/")], Refusal::LinkTarget);
    refused(
        &[Entry::whiteout(".wh.x"), Entry::hard_link("y", "x")],
        Refusal::LinkTarget,
    );

    // A link to a link is another name of the link; writing to it replaces that name.
    place
        .unpack(&[
            Entry::symlink("link", secret),
            Entry::hard_link("link2", "link"),
            Entry::file("link2", "harmless"),
        ])
        .unwrap();
    assert!(
        fs::symlink_metadata(place.layer().join("link"))
            .unwrap()
            .is_symlink()
    );
    assert_eq!(place.read("link2"), "harmless");
}

#[test]
fn whiteouts_through_links_stay_inside() {
    let place = Place::new();
    let outside = place.outside();
    place
        .unpack(&[
            Entry::symlink("link", outside.to_str().unwrap()),
            Entry::whiteout("link/.wh.secret"),
            Entry::whiteout("link/.wh..wh..opq"),
            Entry::symlink("up", "../outside"),
            Entry::whiteout("up/.wh.secret"),
        ])
        .unwrap();
    refused(
        &[Entry::whiteout("a/.wh...")],
        Refusal::Name(NameError::Whiteout),
    );
    refused(
        &[Entry::whiteout("a/.wh..")],
        Refusal::Name(NameError::Whiteout),
    );
    refused(
        &[Entry::file("a/.wh.b/c", "")],
        Refusal::Name(NameError::Whiteout),
    );
}

#[test]
fn the_root_stays_a_directory() {
    let outside = Place::new();
    for name in ["./", "/", ".", "././"] {
        refused(
            &[Entry::symlink(name, outside.outside().to_str().unwrap())],
            Refusal::Root,
        );
        refused(
            &[Entry::file(name, "x").bytes(156, b"7").pax(b"path", b".")],
            Refusal::Root,
        );
        refused(
            &[Entry::file("f", ""), Entry::hard_link(name, "f")],
            Refusal::Root,
        );
    }
}

#[test]
fn strange_names() {
    let place = Place::new();
    place
        .unpack(&[
            Entry::file("new\nline", "1"),
            Entry::file("\x1b[31mred", "2"),
            Entry::file(b"\xff\xfe", "3"),
            Entry::file("-rf", "4"),
            Entry::file(" ", "5"),
        ])
        .unwrap();
    assert_eq!(place.read("new\nline"), "1");
    assert_eq!(
        damaged(&archive(&[Entry::file("x", "").pax(b"path", b"a\0b")])).to_string(),
        "the extended header's path has a bad value"
    );
    assert_eq!(
        damaged(&archive(&[Entry::file("", "")])),
        Problem::Missing("name")
    );
    assert_eq!(
        damaged(&archive(&[Entry::symlink("l", "")])),
        Problem::Missing("link target")
    );
    let message = place
        .unpack(&[Entry::file("\x1b[2J/..", "")])
        .unwrap_err()
        .to_string();
    assert!(
        !message.contains('\x1b') && message.contains("x1b"),
        "{message}"
    );
}

#[test]
fn deep_paths() {
    refused(
        &[Entry::file("d/".repeat(10_000) + "f", "")],
        Refusal::Name(NameError::Length),
    );
    refused(
        &[Entry::file("n".repeat(256), "")],
        Refusal::Name(NameError::Length),
    );
    let place = Place::new();
    place
        .unpack(&[Entry::file("d/".repeat(1100) + "f", "deep")])
        .unwrap();
    // Ever deeper through a link: the kernel's own limits end it.
    let deep = "d/".repeat(200);
    let mut entries = vec![Entry::directory(deep.as_str())];
    for n in 0..45 {
        let target = if n == 0 {
            deep.clone()
        } else {
            format!("s{}/{}", n - 1, "e/".repeat(20))
        };
        entries.push(Entry::symlink(format!("s{n}"), target));
    }
    entries.push(Entry::file("s44/file", ""));
    refused(&entries, Refusal::Loop);
}

#[test]
fn link_loops() {
    refused(
        &[
            Entry::symlink("a", "b"),
            Entry::symlink("b", "a"),
            Entry::file("a/file", ""),
        ],
        Refusal::Loop,
    );
    refused(
        &[Entry::file("f", ""), Entry::file("f/below", "")],
        Refusal::NotADirectory,
    );
}

#[test]
fn overlay_marks_in_the_archive() {
    for name in [
        "trusted.overlay.opaque",
        "trusted.overlay.redirect",
        "user.overlay.metacopy",
    ] {
        refused(
            &[Entry::directory("d").xattr(name, b"y")],
            Refusal::OverlayMark,
        );
    }
}

#[test]
fn sizes_that_disagree() {
    let inner = archive(&[Entry::file("smuggled", "x")]);
    // Readers that ignore the record see a file here; readers that obey it skip it as data.
    let hidden = Entry::file("outer", &inner)
        .size(0)
        .pax(b"size", inner.len().to_string().as_bytes());
    assert_eq!(damaged(&archive(&[hidden])), Problem::Contradiction("size"));
    let hidden = Entry::file("outer", &inner).pax(b"size", b"0");
    assert_eq!(damaged(&archive(&[hidden])), Problem::Contradiction("size"));
    let twice = Entry::file("f", "x").pax(b"size", b"1").pax(b"size", b"2");
    assert!(matches!(damaged(&archive(&[twice])), Problem::Pax(_)));
    for kind in *b"123456" {
        let entry = Entry::new(kind, "n").link("t").device(1, 3).size(512);
        assert_eq!(
            damaged(&archive(&[entry])),
            Problem::UnexpectedData,
            "{}",
            kind as char
        );
    }
    let global = Entry::new(b'g', "g").data(record(b"size", b"512"));
    assert!(matches!(
        damaged(&archive(&[global, Entry::file("f", "")])),
        Problem::Pax(_)
    ));
}

#[test]
fn names_that_disagree() {
    let long = Entry::new(b'L', "././@LongLink").data("innocent\0");
    let entry = Entry::file("x", "").pax(b"path", b"other");
    assert_eq!(
        damaged(&archive(&[long.clone(), entry])),
        Problem::Contradiction("name")
    );
    let twice = [long.clone(), long.clone(), Entry::file("x", "")];
    assert_eq!(damaged(&archive(&twice)), Problem::Twice("long names"));
    assert_eq!(damaged(&archive(&[long])), Problem::Dangling);
    let pax = Entry::new(b'x', "x").data(record(b"path", b"a"));
    assert_eq!(
        damaged(&archive(&[pax.clone(), pax.clone(), Entry::file("f", "")])),
        Problem::Twice("extended headers")
    );
    assert_eq!(damaged(&archive(&[pax])), Problem::Dangling);
    let more = Entry::new(b'L', "l").data("name\0more");
    assert_eq!(
        damaged(&archive(&[more, Entry::file("x", "")])),
        Problem::Contradiction("name")
    );
}

#[test]
fn huge_headers_and_strange_kinds() {
    let huge = Entry::new(b'x', "x").size(1 << 40);
    assert_eq!(damaged(&archive(&[huge])), Problem::ExtensionSize);
    let huge = Entry::new(b'L', "x").size(2 << 20);
    assert_eq!(damaged(&archive(&[huge])), Problem::ExtensionSize);
    for kind in *b"DMNVXA\x01\xff" {
        assert_eq!(
            damaged(&archive(&[Entry::new(kind, "k")])),
            Problem::Kind(kind)
        );
    }
    let old_device = Entry::new(b'3', "d").bytes(257, &[0; 8]);
    assert_eq!(damaged(&archive(&[old_device])), Problem::Kind(b'3'));
}

#[test]
fn owners_out_of_range() {
    for value in ["4294967295", "4294967296", "18446744073709551615"] {
        let entry = Entry::file("f", "").pax(b"uid", value.as_bytes());
        assert_eq!(damaged(&archive(&[entry])), Problem::Owner("owner"));
        let entry = Entry::file("f", "").pax(b"gid", value.as_bytes());
        assert_eq!(damaged(&archive(&[entry])), Problem::Owner("group"));
    }
}

#[test]
fn truncation_at_every_block() {
    let plain = archive(&[
        Entry::file("a", vec![1; 1500]),
        Entry::file("p".repeat(150), vec![2; 600]),
    ]);
    let ends = [
        0,
        512 + 1536,
        plain.len() - 1024,
        plain.len() - 512,
        plain.len(),
    ];
    for length in (0..=plain.len()).step_by(256) {
        let place = Place::new();
        let cut = &plain[..length];
        let result = place.unpack_with(&place.options(), cut, cut);
        assert_eq!(
            result.is_ok(),
            ends.contains(&length),
            "{length}: {result:?}"
        );
    }
    let gap = [
        &Entry::file("a", "").encode()[..],
        &[0; 512],
        &archive(&[Entry::file("b", "")]),
    ]
    .concat();
    assert_eq!(damaged(&gap), Problem::Gap);
}

#[test]
fn broken_compression() {
    let plain = archive(&[Entry::file(
        "a",
        (0..100_000u32)
            .flat_map(u32::to_le_bytes)
            .collect::<Vec<_>>(),
    )]);
    for whole in [gzip(&plain), zstd(&plain)] {
        for length in [whole.len() - 1, whole.len() / 2, 10] {
            let place = Place::new();
            let result = place.unpack_with(&place.options(), &whole[..length], &plain);
            assert!(
                matches!(result, Err(UnpackError::Stream(_))),
                "{length}: {result:?}"
            );
        }
        let mut flipped = whole.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x40;
        let place = Place::new();
        assert!(
            place
                .unpack_with(&place.options(), flipped.as_slice(), &plain)
                .is_err()
        );
        let trailing = [whole.as_slice(), b"garbage after the end"].concat();
        let place = Place::new();
        assert!(
            place
                .unpack_with(&place.options(), trailing.as_slice(), &plain)
                .is_err()
        );
    }
    for (magic, name) in [(&b"\xfd7zXZ\0....."[..], "xz"), (b"BZh91AY&SY", "bzip2")] {
        let place = Place::new();
        let result = place.unpack_with(&place.options(), magic, &plain);
        assert!(matches!(result, Err(UnpackError::Compression(found)) if found == name));
    }
}

#[test]
fn bombs() {
    let limits = Limits {
        ratio_after: 8 << 20,
        ..Limits::default()
    };
    let header = Entry::file("zeros", "").size(1 << 33).encode();
    let endless = || io::Read::chain(header.as_slice(), io::repeat(0));
    let compress = |stream: &mut dyn io::Read, kind: &str| -> Vec<u8> {
        let mut plain = io::Read::take(stream, 64 << 20);
        let mut out = Vec::new();
        match kind {
            "gzip" => {
                let mut encoder = flate2::read::GzEncoder::new(plain, flate2::Compression::best());
                io::copy(&mut encoder, &mut out).unwrap();
            }
            _ => zstd::stream::copy_encode(&mut plain, &mut out, 3).unwrap(),
        }
        out
    };
    for kind in ["gzip", "zstd"] {
        let stream = compress(&mut endless(), kind);
        let place = Place::new();
        let options = Options {
            limits: limits.clone(),
            ..place.options()
        };
        let result = place.unpack_with(&options, stream.as_slice(), b"");
        assert!(
            matches!(result, Err(UnpackError::Bomb { .. })),
            "{kind}: {result:?}"
        );
        let written = fs::metadata(place.layer().join("zeros")).map_or(0, |stat| stat.len());
        assert!(written < 16 << 20, "{written}");
    }
    // More than the disk has: refused by the header, before anything is written.
    let place = Place::new();
    let huge = Entry::file("huge", "").size(0o77_777_777_777).encode();
    let options = Options {
        limits: Limits {
            total: 1 << 30,
            ..Limits::default()
        },
        ..place.options()
    };
    let result = place.unpack_with(&options, huge.as_slice(), b"");
    assert!(
        matches!(result, Err(UnpackError::TooLarge { .. })),
        "{result:?}"
    );
    assert!(!place.layer().join("huge").exists());
    // A sparse file counts with its holes.
    let map = b"0\n".to_vec();
    let mut data = map;
    data.resize(512, 0);
    let sparse = Entry::file("x", &data)
        .pax(b"GNU.sparse.major", b"1")
        .pax(b"GNU.sparse.minor", b"0")
        .pax(b"GNU.sparse.name", b"holes")
        .pax(b"GNU.sparse.realsize", b"1000000000000");
    let result = place.unpack_with(&options, archive(&[sparse]).as_slice(), b"");
    assert!(
        matches!(result, Err(UnpackError::TooLarge { .. })),
        "{result:?}"
    );
}

/// Someone with rights in the directory swaps a name between directory and link to the outside
/// while a layer is unpacked through it.
#[test]
fn swapped_links_lead_nowhere() {
    let place = Place::new();
    let layer = place.layer();
    let outside = place.outside();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let victim = layer.join("victim");
            let aside = layer.join("aside");
            while !stop.load(Ordering::Relaxed) {
                let _ = fs::rename(&victim, &aside);
                let _ = std::os::unix::fs::symlink(&outside, &victim);
                let _ = fs::remove_file(&victim);
                let _ = fs::rename(&aside, &victim);
            }
        });
        for round in 0..50 {
            let entries: Vec<_> = (0..40)
                .map(|n| match n % 4 {
                    0 => Entry::file(format!("victim/secret{}", n / 8), "bad"),
                    1 => Entry::directory("victim").mode(0o777),
                    2 => Entry::whiteout("victim/.wh.secret"),
                    _ => Entry::symlink(format!("victim/link{round}"), "x"),
                })
                .collect();
            // Whether it succeeds is up to the race; what is outside is not.
            let _ = place.unpack(&entries);
        }
        stop.store(true, Ordering::Relaxed);
    });
    place.check();
}
