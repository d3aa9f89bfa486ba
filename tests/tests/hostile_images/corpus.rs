//! Images that no honest builder makes. What they try to leave behind is called `pwned`.

use serde_json::{Value, json};
use vdkr_tests::process::{run_within, tool};
use vdkr_tests::tar::{Entry, archive};

/// What must come of an image.
pub(crate) enum Expect {
    /// Its pull ends with this status and these words.
    Refused(i32, &'static str),
    /// It is unpacked, and this script in it, with these options, writes this.
    Harmless(&'static [&'static str], &'static str, String),
    /// It is unpacked; a run of `true` ends with this status and these words.
    Ends(i32, &'static str),
}

use Expect::{Ends, Harmless, Refused};

/// One image.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    /// Archives, plain or compressed, above those of an ordinary image.
    pub(crate) layers: Vec<Layer>,
    /// What its configuration says beside the usual.
    pub(crate) config: Value,
    /// What the registry does to it once it is stored.
    pub(crate) damage: Damage,
    pub(crate) expect: Expect,
}

pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    /// The plain archive, for its digest.
    pub(crate) plain: Vec<u8>,
}

/// What is wrong beside the layers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Damage {
    None,
    /// The configuration names other content than the last layer has.
    DiffId,
    /// The configuration has a layer less than the manifest.
    FewerDiffIds,
    /// The registry's file of the last layer has other content.
    Blob,
}

fn image(name: &'static str, entries: &[Entry], expect: Expect) -> Hostile {
    plain(name, archive(entries), expect)
}

fn plain(name: &'static str, plain: Vec<u8>, expect: Expect) -> Hostile {
    Hostile {
        name,
        layers: vec![Layer {
            blob: plain.clone(),
            plain,
        }],
        config: json!({}),
        damage: Damage::None,
        expect,
    }
}

fn configured(name: &'static str, entries: &[Entry], config: Value, expect: Expect) -> Hostile {
    Hostile {
        config,
        ..image(name, entries, expect)
    }
}

fn damaged(name: &'static str, damage: Damage, expect: Expect) -> Hostile {
    Hostile {
        damage,
        ..image(name, &[Entry::file("pwned-damaged", "x")], expect)
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let patience = std::time::Duration::from_mins(1);
    run_within(tool("gzip").arg("-9c"), bytes, patience)
        .expect(0)
        .stdout
}

fn sparse(size: u64, map: &str) -> Entry {
    let mut data = map.as_bytes().to_vec();
    data.resize(data.len().next_multiple_of(512), 0);
    Entry::file("GNUSparseFile.0/pwned-sparse", data)
        .pax("GNU.sparse.major", "1")
        .pax("GNU.sparse.minor", "0")
        .pax("GNU.sparse.name", "pwned-sparse")
        .pax("GNU.sparse.realsize", &size.to_string())
}

/// Zeros that hardly take any room in the registry: a gigabyte and a quarter.
fn bomb() -> Hostile {
    let header = Entry::file("pwned-bomb", "").size((8 << 30) - 512).encode();
    let mut blob = gzip(&header);
    let zeros = gzip(&vec![0; 64 << 20]);
    for _ in 0..20 {
        blob.extend(&zeros);
    }
    let expect = Refused(1, "the layer is a decompression bomb");
    Hostile {
        layers: vec![Layer {
            blob,
            plain: header,
        }],
        ..plain("decompression bomb", Vec::new(), expect)
    }
}

fn says(script: &'static str, output: &str) -> Expect {
    Harmless(&[], script, output.to_owned())
}

/// The whole corpus. `outside` is a directory of this computer that is nobody's business.
pub(crate) fn all(outside: &str) -> Vec<Hostile> {
    let images = [escapes(outside), rights(), lies(), sizes()];
    images.into_iter().flatten().collect()
}

/// Those that are looked at before the machine gets them.
pub(crate) fn looked_at(_outside: &str) -> Vec<Hostile> {
    lies().into_iter().chain([bomb()]).collect()
}

/// Those that try to get out of their directory.
fn escapes(outside: &str) -> Vec<Hostile> {
    let below = |name: &str| format!("{outside}/{name}");
    let seen = format!("cat {}", below("pwned"));
    let seen: &'static str = Box::leak(seen.into_boxed_str());
    let unlisted: &'static str = Box::leak(format!("ls -a {outside}").into_boxed_str());
    let up = "../".repeat(30);
    let parent = "its name leads out of its directory (..)";
    let linked = "it links to a file that the layer does not have";
    vec![
        image(
            "traversal",
            &[Entry::file(&format!("{up}{}", below("pwned")), "x")],
            Refused(1, parent),
        ),
        image(
            "traversal from within",
            &[Entry::file("etc/../../pwned-within", "x")],
            Refused(1, parent),
        ),
        image(
            "absolute name",
            &[Entry::file(&below("pwned"), "inside")],
            says(seen, "inside"),
        ),
        image(
            "symbolic link to a directory outside",
            &[
                Entry::symlink("out", outside),
                Entry::file("out/pwned", "inside"),
            ],
            says(seen, "inside"),
        ),
        image(
            "symbolic link upwards",
            &[
                Entry::symlink("up", &up),
                Entry::file(&format!("up/{}", below("pwned")), "inside"),
            ],
            says(seen, "inside"),
        ),
        image(
            "symbolic link to a file outside",
            &[
                Entry::symlink("pwned-link", &below("kept")),
                Entry::file("pwned-link", "replaced"),
            ],
            says(
                "cat /pwned-link; test -h /pwned-link || echo .",
                "replaced.\n",
            ),
        ),
        image(
            "hard link to a file outside",
            &[Entry::hard_link("pwned-link", &below("kept"))],
            Refused(1, linked),
        ),
        image(
            "hard link upwards",
            &[Entry::hard_link(
                "pwned-link",
                &format!("{up}{}", below("kept")),
            )],
            Refused(1, parent),
        ),
        image(
            "hard link through a symbolic link",
            &[
                Entry::symlink("out", outside),
                Entry::hard_link("pwned-link", "out/kept"),
            ],
            Refused(1, linked),
        ),
        image(
            "whiteout through a symbolic link",
            &[
                Entry::symlink("out", outside),
                Entry::file("out/.wh.kept", ""),
                Entry::file("out/.wh..wh..opq", ""),
            ],
            says(unlisted, ".\n..\n"),
        ),
        image(
            "whiteout upwards",
            &[Entry::file(&format!("../..{}", below(".wh.kept")), "")],
            Refused(1, parent),
        ),
        image(
            "whiteout of the directory above",
            &[Entry::file(".wh...", "")],
            Refused(1, "it is a whiteout without a proper name"),
        ),
        image(
            "whiteout of everything",
            &[Entry::file(".wh..wh..opq", "")],
            Ends(127, ""),
        ),
        image(
            "the root is a symbolic link",
            &[Entry::symlink("./", outside)],
            Refused(1, "it would replace the root directory"),
        ),
        image(
            "the root is a file",
            &[Entry::file(".", "pwned")],
            Refused(1, "it would replace the root directory"),
        ),
        image(
            "a file that is used as a directory",
            &[Entry::file("pwned", "x"), Entry::file("pwned/y", "x")],
            Refused(1, "a part of its path is not a directory"),
        ),
        image(
            "links that lead round",
            &[
                Entry::symlink("pwned-a", "pwned-b"),
                Entry::symlink("pwned-b", "pwned-a"),
                Entry::file("pwned-a/x", ""),
            ],
            Refused(1, "its path goes through more than 40 symbolic links"),
        ),
        image(
            "marks of the overlay",
            &[Entry::directory("pwned").pax("SCHILY.xattr.trusted.overlay.redirect", "/etc")],
            Refused(1, "it carries overlay marks of its own"),
        ),
    ]
}

/// Those that want rights.
fn rights() -> Vec<Hostile> {
    let open = "for d in /pwned-*; do cat $d 2>&1 | grep -q 'not permitted' && echo refused; done; \
                ls -l /pwned-* | cut -c 1,4";
    vec![
        image(
            "devices",
            &[
                Entry::device(b'3', "pwned-mem", 1, 1).mode(0o666),
                Entry::device(b'3', "pwned-kmsg", 1, 11).mode(0o666),
                Entry::device(b'4', "pwned-disk", 8, 0).mode(0o666),
            ],
            says(open, "refused\nrefused\nrefused\nb-\nc-\nc-\n"),
        ),
        image(
            "setuid",
            &[
                Entry::file("pwned-suid", "#!/bin/sh\n").mode(0o6755),
                Entry::directory("pwned-sgid").mode(0o7777),
            ],
            says("stat -c %a /pwned-suid /pwned-sgid", "6755\n7777\n"),
        ),
        image(
            "system directories that are links",
            &[
                Entry::file(".wh.proc", ""),
                Entry::file(".wh.sys", ""),
                Entry::file(".wh.dev", ""),
                Entry::symlink("proc", "/etc"),
                Entry::symlink("sys", "../../../.."),
                Entry::symlink("dev", "/bin"),
            ],
            Ends(
                125,
                "make mount point /proc: the image has something else than a directory there",
            ),
        ),
        image(
            "system files that are links",
            &[
                Entry::symlink("etc/resolv.conf", "../../../../pwned-resolv"),
                Entry::symlink("etc/hosts", "/proc/sys/kernel/core_pattern"),
                Entry::symlink("etc/hostname", "/dev/console"),
            ],
            Ends(0, ""),
        ),
        configured(
            "the list of users is a pipe",
            &[
                Entry::new(b'6', "etc/passwd"),
                Entry::new(b'6', "etc/group"),
            ],
            json!({"User": "someone:some"}),
            Ends(125, "unable to find user someone"),
        ),
        configured(
            "the list of users has no end",
            &[
                Entry::symlink("etc/passwd", "/dev/zero"),
                Entry::symlink("etc/group", "/dev/zero"),
            ],
            json!({"User": "someone"}),
            Ends(125, "unable to find user someone"),
        ),
        configured(
            "a working directory outside",
            &[],
            json!({"WorkingDir": "/../../../../pwned-work", "Volumes": {"/../../pwned-volume": {}}}),
            Ends(0, ""),
        ),
        configured(
            "words with NUL bytes",
            &[],
            json!({"Env": ["PWNED=a\u{0}b", "=", "NOTHING"], "Entrypoint": ["a\u{0}b"]}),
            Ends(125, "an argument of the container holds a NUL byte"),
        ),
    ]
}

/// Those that contradict themselves.
fn lies() -> Vec<Hostile> {
    let smuggled = archive(&[Entry::file("pwned-smuggled", "x")]);
    let size = smuggled.len().to_string();
    let disagree = "the headers of a member disagree about its size";
    let name = "the headers of a member disagree about its name";
    let mut cut = archive(&[Entry::file("pwned-cut", vec![b'x'; 4096])]);
    cut.truncate(1024);
    let mut torn = gzip(&archive(&[Entry::file("pwned-torn", vec![b'x'; 40_000])]));
    torn.truncate(torn.len() / 2);
    vec![
        image(
            "PAX size that hides a member",
            &[Entry::file("pwned-outer", smuggled.clone())
                .size(0)
                .pax("size", &size)],
            Refused(1, disagree),
        ),
        image(
            "PAX size that shows a member",
            &[Entry::file("pwned-outer", smuggled).pax("size", "0")],
            Refused(1, disagree),
        ),
        image(
            "two names",
            &[
                Entry::file("././@LongLink", *b"pwned-one\0").kind(b'L'),
                Entry::file("x", "").pax("path", "pwned-two"),
            ],
            Refused(1, name),
        ),
        image(
            "one name many times",
            &[
                Entry::file("pwned", "file"),
                Entry::directory("pwned"),
                Entry::file("pwned/below", "below"),
                Entry::symlink("pwned", "/etc"),
                Entry::file("pwned", "last"),
            ],
            says("cat /pwned", "last"),
        ),
        plain(
            "an archive that is cut",
            cut,
            Refused(1, "the archive ends in the middle of a member"),
        ),
        plain(
            "a stream that is cut",
            torn,
            Refused(1, "the layer's stream is damaged"),
        ),
        damaged(
            "a layer with another diff ID",
            Damage::DiffId,
            Refused(6, "the image's configuration says sha256:00000000"),
        ),
        damaged(
            "a layer that the configuration does not have",
            Damage::FewerDiffIds,
            Refused(1, "its manifest has 2 layers and its configuration 1"),
        ),
        damaged(
            "a layer that is not its digest",
            Damage::Blob,
            Refused(6, "sha256:"),
        ),
    ]
}

/// Those that want more than there is.
fn sizes() -> Vec<Hostile> {
    let many: Vec<_> = (0..20_000)
        .map(|number| Entry::file(&format!("pwned-many/{number}"), ""))
        .collect();
    let deep = "d/".repeat(2000);
    let too_deep = "d/".repeat(3000);
    let globals: Vec<_> = (0..20_000)
        .map(|_| Entry::file("g", *b"12 comment=\n").kind(b'g'))
        .chain([Entry::file("pwned-late", "late")])
        .collect();
    let large = "the layer needs more than the";
    let huge_header = "an extended header is larger than 1 MiB";
    let map = "the map of a sparse file does not add up";
    let mut endless = archive(&[]);
    endless.resize(32 << 20, 0);
    vec![
        bomb(),
        image(
            "a file larger than the disk",
            &[Entry::file("pwned-huge", "").bytes(124, b"\x80\0\0\0\0\x10\0\0\0\0\0\0")],
            Refused(1, large),
        ),
        image("sparse bomb", &[sparse(1 << 50, "0\n")], Refused(1, large)),
        image(
            "sparse file",
            &[sparse(8 << 30, "0\n")],
            says(
                "stat -c %s /pwned-sparse; head -c 4 /pwned-sparse | tr '\\0' 0",
                "8589934592\n0000",
            ),
        ),
        image(
            "sparse file of too many pieces",
            &[sparse(1 << 30, "4000000000\n0\n0\n")],
            Refused(1, map),
        ),
        image(
            "sparse file whose pieces lie on each other",
            &[sparse(1 << 30, "2\n0\n10\n5\n10\n")],
            Refused(1, map),
        ),
        image(
            "a huge extended header",
            &[Entry::new(b'x', "x").size((8 << 30) - 1)],
            Refused(1, huge_header),
        ),
        image(
            "a huge name",
            &[Entry::new(b'L', "x").size(2 << 20)],
            Refused(1, huge_header),
        ),
        image(
            "very many headers without a member",
            &globals,
            says("cat /pwned-late", "late"),
        ),
        image(
            "very many members",
            &many,
            says("ls /pwned-many | wc -l", "20000\n"),
        ),
        image(
            "a deep path",
            &[Entry::file(&format!("{deep}pwned"), "deep")],
            Harmless(
                &[],
                "cd /; i=0; while cd d 2>/dev/null; do i=$((i+1)); done; echo $i; cat pwned",
                "2000\ndeep".into(),
            ),
        ),
        image(
            "a path that is too deep",
            &[Entry::file(&format!("{too_deep}pwned"), "deep")],
            Refused(
                1,
                "its name is longer than 4095 bytes, or a part of it longer than 255",
            ),
        ),
        image(
            "a name that is too long",
            &[Entry::file(&"n".repeat(256), "pwned")],
            Refused(
                1,
                "its name is longer than 4095 bytes, or a part of it longer than 255",
            ),
        ),
        plain("zeros behind the end", endless, says("echo fine", "fine\n")),
        configured(
            "a huge configuration",
            &[],
            json!({"Labels": {"pwned": "x".repeat(9 << 20)}}),
            Refused(1, "8388608"),
        ),
        Hostile {
            layers: (0..150)
                .map(|number| {
                    let plain = archive(&[Entry::file(&format!("pwned-{number}"), "")]);
                    Layer {
                        blob: plain.clone(),
                        plain,
                    }
                })
                .collect(),
            ..plain("very many layers", Vec::new(), Ends(0, ""))
        },
    ]
}
