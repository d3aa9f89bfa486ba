//! What image builders write.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::unpack::fixture::{gzip, zstd};
use crate::unpack::overlay::is_whiteout;
use crate::unpack::{Devices, Limits};

#[test]
fn files_links_and_times() {
    let place = Place::new();
    let counts = place
        .unpack(&[
            Entry::directory("./").mode(0o750).mtime(100),
            Entry::directory("usr/").mode(0o755).mtime(200),
            Entry::file("usr/su", "program").mode(0o4755).mtime(300),
            Entry::hard_link("usr/su2", "usr/su"),
            Entry::symlink("bin", "usr"),
            Entry::new(b'6', "usr/pipe").mode(0o620),
            Entry::file("deep/down/file", "x"),
            Entry::file(format!("long/{}/file", "n".repeat(200)), "long"),
            Entry::new(b'0', "usr/old-directory/"),
        ])
        .unwrap();
    assert_eq!(counts.entries, 9);
    let stat = |name: &str| fs::symlink_metadata(place.layer().join(name)).unwrap();
    assert_eq!((stat("").mode() & 0o7777, stat("").mtime()), (0o750, 100));
    assert_eq!(stat("usr").mtime(), 200);
    assert_eq!(
        (stat("usr/su").mode() & 0o7777, stat("usr/su").mtime()),
        (0o4755, 300)
    );
    assert_eq!(stat("usr/su").ino(), stat("usr/su2").ino());
    assert_eq!(place.read("bin/su"), "program");
    assert!(stat("usr/pipe").file_type().is_fifo());
    assert_eq!(stat("usr/pipe").mode() & 0o7777, 0o620);
    assert_eq!(stat("deep/down").mode() & 0o7777, 0o755);
    assert_eq!(
        place.read(&format!("long/{}/file", "n".repeat(200))),
        "long"
    );
    assert!(stat("usr/old-directory").is_dir());
}

#[test]
fn later_entries_replace_earlier_ones() {
    let place = Place::new();
    place
        .unpack(&[
            Entry::file("a", "one"),
            Entry::file("a", "two").mode(0o600),
            Entry::directory("d").mode(0o700),
            Entry::file("d/kept", ""),
            Entry::directory("d").mode(0o711),
            Entry::directory("tree/below"),
            Entry::file("tree/below/file", "gone"),
            Entry::file("tree", "now a file"),
            Entry::file("was-a-file", ""),
            Entry::directory("was-a-file"),
            Entry::symlink("link", "d"),
            Entry::file("link", "no link any more"),
            Entry::file("d/again", "1"),
            Entry::hard_link("d/again", "d/again"),
        ])
        .unwrap();
    assert_eq!(place.read("a"), "two");
    assert_eq!(
        fs::metadata(place.layer().join("d")).unwrap().mode() & 0o777,
        0o711
    );
    assert!(place.layer().join("d/kept").exists());
    assert_eq!(place.read("tree"), "now a file");
    assert!(place.layer().join("was-a-file").is_dir());
    assert_eq!(place.read("link"), "no link any more");
    assert_eq!(place.read("d/again"), "1");
}

#[test]
fn links_to_directories_work_within_the_layer() {
    let place = Place::new();
    place
        .unpack(&[
            Entry::directory("usr/lib"),
            Entry::symlink("lib", "usr/lib"),
            Entry::file("lib/libc.so", "c"),
            Entry::symlink("var/run", "/run"),
            Entry::file("var/run/pid", "1"),
            Entry::symlink("a/up", "../../../../b/./c"),
            Entry::file("a/up/d/file", "deep"),
        ])
        .unwrap();
    assert_eq!(place.read("usr/lib/libc.so"), "c");
    assert_eq!(place.read("run/pid"), "1");
    assert_eq!(place.read("b/c/d/file"), "deep");
}

#[test]
fn closed_directories_can_be_filled() {
    let place = Place::new();
    place
        .unpack(&[
            Entry::directory("closed").mode(0),
            Entry::directory("closed/in").mode(0o111),
            Entry::file("closed/in/file", "x").mode(0),
        ])
        .unwrap();
    let closed = place.layer().join("closed");
    assert_eq!(fs::metadata(&closed).unwrap().mode() & 0o777, 0);
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(
        fs::metadata(closed.join("in")).unwrap().mode() & 0o777,
        0o111
    );
    fs::set_permissions(closed.join("in"), fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn whiteouts_become_overlay_marks() {
    let place = Place::new();
    let marks = place.options().marks;
    place
        .unpack(&[
            Entry::whiteout("etc/.wh.gone"),
            Entry::directory("opaque"),
            Entry::whiteout("opaque/.wh..wh..opq"),
            Entry::file("opaque/new", "n"),
            // Hidden below, made anew as a directory here: before, after, and implied.
            Entry::whiteout(".wh.before"),
            Entry::directory("before"),
            Entry::directory("after"),
            Entry::whiteout(".wh.after"),
            Entry::whiteout(".wh.implied"),
            Entry::file("implied/file", ""),
            // Hidden below, made anew as a file.
            Entry::whiteout(".wh.file"),
            Entry::file("file", "here"),
            Entry::whiteout(".wh.file"),
            Entry::file(".wh..wh.plnk/1.2", "aufs"),
        ])
        .unwrap();
    let stat = rustix::fs::lstat(place.layer().join("etc/gone")).unwrap();
    assert!(is_whiteout(&stat));
    for (name, opaque) in [
        ("opaque", true),
        ("before", true),
        ("after", true),
        ("implied", true),
        ("etc", false),
    ] {
        let directory = fs::File::open(place.layer().join(name)).unwrap();
        assert_eq!(marks.is_opaque(&directory), opaque, "{name}");
    }
    assert_eq!(place.read("file"), "here");
    assert!(!place.layer().join(".wh..wh.plnk").exists());
}

#[test]
fn opaque_root_is_reported() {
    let place = Place::new();
    let counts = place.unpack(&[Entry::whiteout(".wh..wh..opq")]).unwrap();
    assert!(counts.opaque_root);
    assert_eq!(fs::read_dir(place.layer()).unwrap().count(), 0);
}

#[test]
fn extended_attributes() {
    let place = Place::new();
    place
        .unpack(&[
            Entry::file("file", "").xattr("user.note", b"with\nnewline\0and nul"),
            Entry::directory("dir").xattr("user.d", b"1"),
            Entry::file("selinux", "").xattr("security.selinux", b"system_u"),
        ])
        .unwrap();
    let get = |file: &str, name: &str| {
        let mut value = vec![0; 100];
        rustix::fs::getxattr(place.layer().join(file), name, &mut value[..]).map(|length| {
            value.truncate(length);
            value
        })
    };
    assert_eq!(get("file", "user.note").unwrap(), b"with\nnewline\0and nul");
    assert_eq!(get("dir", "user.d").unwrap(), b"1");
    assert_ne!(
        get("selinux", "security.selinux").unwrap_or_default(),
        b"system_u"
    );
}

#[test]
fn owners_capabilities_and_devices_of_the_privileged() {
    let place = Place::new();
    let options = place.options();
    // cap_net_raw+ep, revision 2.
    let mut capability = vec![1, 0, 0, 2];
    capability.extend([0, 0x20, 0, 0].iter().chain(&[0; 12]));
    let plain = archive(&[
        Entry::file("suid", "x").owner(1234, 5678).mode(0o6755),
        Entry::file("ping", "x")
            .owner(12, 0)
            .xattr("security.capability", &capability),
        Entry::symlink("link", "suid").owner(77, 78),
        Entry::directory("dir").owner(5, 6),
        Entry::new(b'3', "null").device(1, 3).mode(0o666),
        Entry::new(b'4', "disk").device(8, 1).mode(0o660),
    ]);
    let counts = place
        .unpack_with(&options, plain.as_slice(), &plain)
        .unwrap();
    let stat = |name: &str| fs::symlink_metadata(place.layer().join(name)).unwrap();
    assert_eq!(stat("suid").mode() & 0o7777, 0o6755);
    if options.keep_owners {
        assert_eq!((stat("suid").uid(), stat("suid").gid()), (1234, 5678));
        assert_eq!((stat("link").uid(), stat("link").gid()), (77, 78));
        assert_eq!((stat("dir").uid(), stat("dir").gid()), (5, 6));
        let mut value = [0; 64];
        let ping = place.layer().join("ping");
        let length = rustix::fs::getxattr(ping, "security.capability", &mut value[..]).unwrap();
        assert_eq!(value[..length], capability);
    } else {
        assert_eq!(stat("suid").uid(), rustix::process::geteuid().as_raw());
        assert_eq!(counts.skipped_xattrs, 1);
    }
    if options.devices == Devices::Make {
        assert_eq!(
            (stat("null").rdev(), stat("null").mode() & 0o777),
            (0x103, 0o666)
        );
        assert!(stat("null").file_type().is_char_device());
        assert!(stat("disk").file_type().is_block_device());
        assert_eq!(counts.skipped_devices, 0);
    } else {
        assert!(!place.layer().join("null").exists());
        assert_eq!(counts.skipped_devices, 2);
    }
}

#[test]
fn devices_can_be_left_out() {
    let place = Place::new();
    let options = Options {
        devices: Devices::Skip,
        ..place.options()
    };
    let plain = archive(&[
        Entry::file("node", "replaced by the device that is left out"),
        Entry::new(b'3', "node").device(1, 3),
        // A whiteout in overlay's own form is no device.
        Entry::new(b'3', "hidden").device(0, 0),
    ]);
    let counts = place
        .unpack_with(&options, plain.as_slice(), &plain)
        .unwrap();
    assert_eq!(counts.skipped_devices, 1);
    assert!(!place.layer().join("node").exists());
    assert!(is_whiteout(
        &rustix::fs::lstat(place.layer().join("hidden")).unwrap()
    ));
}

#[test]
fn every_compression_gives_the_same() {
    let plain = archive(&[Entry::file("a", vec![7; 700_000]), Entry::file("b", "b")]);
    let (first, second) = plain.split_at(300_000);
    let skippable = [
        &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 9, 9, 9][..],
        &zstd(&plain),
    ]
    .concat();
    for (stream, what) in [
        (plain.clone(), "plain"),
        (gzip(&plain), "gzip"),
        ([gzip(first), gzip(second)].concat(), "two gzip members"),
        (zstd(&plain), "zstd"),
        ([zstd(first), zstd(second)].concat(), "two zstd frames"),
        (skippable, "skippable zstd frame"),
    ] {
        let place = Place::new();
        let counts = place
            .unpack_with(&place.options(), stream.as_slice(), &plain)
            .expect(what);
        assert_eq!(counts.compressed, stream.len() as u64, "{what}");
        assert_eq!(counts.plain, plain.len() as u64, "{what}");
        assert_eq!(place.read("b"), "b");
        assert_eq!(
            fs::metadata(place.layer().join("a")).unwrap().len(),
            700_000
        );
    }
}

#[test]
fn empty_layers() {
    for plain in [vec![], vec![0; 1024], vec![0; 512], archive(&[])] {
        let place = Place::new();
        let counts = place
            .unpack_with(&place.options(), plain.as_slice(), &plain)
            .unwrap();
        assert_eq!(counts.entries, 0);
        let place = Place::new();
        let stream = gzip(&plain);
        place
            .unpack_with(&place.options(), stream.as_slice(), &plain)
            .unwrap();
    }
}

#[test]
fn the_digest_covers_what_follows_the_end_mark() {
    let mut plain = archive(&[Entry::file("a", "a")]);
    plain.extend(vec![0; 20 * 512]);
    let place = Place::new();
    place
        .unpack_with(&place.options(), gzip(&plain).as_slice(), &plain)
        .unwrap();

    let place = Place::new();
    let root = Root::open(&place.layer()).unwrap();
    let expected = Digest::sha256(&plain[..plain.len() - 512]);
    let result = unpack(
        plain.as_slice(),
        &root,
        &expected,
        &place.options(),
        &|| false,
    );
    assert!(matches!(result, Err(UnpackError::DiffId { .. })));
}

#[test]
fn sha512_configurations() {
    let plain = archive(&[Entry::file("a", "a")]);
    let place = Place::new();
    let root = Root::open(&place.layer()).unwrap();
    let expected = Digest::of(vdkr_core::digest::Algorithm::Sha512, &plain);
    unpack(
        plain.as_slice(),
        &root,
        &expected,
        &place.options(),
        &|| false,
    )
    .unwrap();
}

#[test]
fn cancelling_stops_it() {
    let plain = archive(&[Entry::file("a", vec![1; 4 << 20])]);
    let place = Place::new();
    let root = Root::open(&place.layer()).unwrap();
    let asked = AtomicU32::new(0);
    let cancelled = || asked.fetch_add(1, Ordering::Relaxed) > 2;
    let digest = Digest::sha256(&plain);
    let result = unpack(
        plain.as_slice(),
        &root,
        &digest,
        &place.options(),
        &cancelled,
    );
    assert!(matches!(result, Err(UnpackError::Cancelled)));
}

#[test]
fn limits_hold() {
    let limited = |limits: Limits, entries: &[Entry]| {
        let place = Place::new();
        let plain = archive(entries);
        place.unpack_with(
            &Options {
                limits,
                ..place.options()
            },
            plain.as_slice(),
            &plain,
        )
    };
    let entries = [Entry::file("a", "1"), Entry::file("b", "2")];
    let at = |entries| Limits {
        entries,
        ..Limits::default()
    };
    assert!(limited(at(2), &entries).is_ok());
    assert!(matches!(
        limited(at(1), &entries),
        Err(UnpackError::TooManyEntries { limit: 1 })
    ));
    // Directories that are only on the way count too.
    let deep = [Entry::file("d/e/f", "1"), Entry::file("g", "2")];
    assert!(limited(at(4), &deep).is_ok());
    assert!(matches!(
        limited(at(3), &deep),
        Err(UnpackError::TooManyEntries { limit: 3 })
    ));
    let total = |total| Limits {
        total,
        ..Limits::default()
    };
    let big = [Entry::file("a", vec![1; 5000])];
    assert!(limited(total(10_000), &big).is_ok());
    assert!(matches!(
        limited(total(4000), &big),
        Err(UnpackError::TooLarge { limit: 4000 })
    ));
}
