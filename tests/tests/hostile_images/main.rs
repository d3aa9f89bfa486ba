//! Images from somebody who means harm, through a real registry into a real machine, pulled by the
//! machine and by this computer: each is refused with a sentence or unpacked harmlessly, nothing is
//! left behind, and the next pull and run work.

mod corpus;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use corpus::{Damage, Expect, Hostile, Layer};
use serde_json::{Value, json};
use vdkr_tests::fixtures::layout;
use vdkr_tests::http::request;
use vdkr_tests::layout::digest;
use vdkr_tests::process::{Ran, run_within, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Memory that a command may take, in KiB; it is killed when it wants more.
const MEMORY: u64 = 768 << 10;
/// Bytes that the home directory may grow by and keep: the machine's disk gives back late what it
/// freed.
const DISK: u64 = 768 << 20;

/// The ordinary image below all others: its layer and the digest of that, unpacked.
struct Base {
    blob: Vec<u8>,
    diff_id: String,
}

impl Base {
    fn read() -> Self {
        let layout = layout("qemux86-64", "container-base-latest-oci");
        let document =
            |path: &Path| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
        let blob = |name: &Value| {
            let hex = name.as_str().unwrap().strip_prefix("sha256:").unwrap();
            layout.join("blobs/sha256").join(hex)
        };
        let index = document(&layout.join("index.json"));
        let manifest = document(&blob(&index["manifests"][0]["digest"]));
        let config = document(&blob(&manifest["config"]["digest"]));
        let diff_id = config["rootfs"]["diff_ids"][0].as_str().unwrap();
        Self {
            blob: fs::read(blob(&manifest["layers"][0]["digest"])).unwrap(),
            diff_id: diff_id.to_owned(),
        }
    }
}

/// Sends content as a client does that checks nothing; its descriptor.
fn put_blob(registry: &Registry, repository: &str, kind: &str, content: &[u8]) -> Value {
    let uploads = format!("/v2/{repository}/blobs/uploads/");
    let name = digest(content);
    let begun = request(registry.port(), "POST", &uploads, &[], b"").unwrap();
    let location = begun.header("location").unwrap();
    let path = format!("{location}?digest={name}");
    let put = request(registry.port(), "PUT", &path, &[], content).unwrap();
    assert_eq!(put.status, 201, "{}", put.text());
    json!({"mediaType": kind, "digest": name, "size": content.len()})
}

/// Stores an image in the registry, as wrong as it is.
fn put_image(registry: &Registry, base: &Base, repository: &str, image: &Hostile) {
    let mut diff_ids = vec![base.diff_id.clone()];
    let mut layers = vec![put_blob(registry, repository, LAYER, &base.blob)];
    for Layer { blob, plain } in &image.layers {
        layers.push(put_blob(registry, repository, LAYER, blob));
        diff_ids.push(digest(plain));
    }
    match image.damage {
        Damage::DiffId => *diff_ids.last_mut().unwrap() = format!("sha256:{:064}", 0),
        Damage::FewerDiffIds => drop(diff_ids.pop()),
        _ => {}
    }
    let mut config = json!({"Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]});
    let fields = image.config.as_object().unwrap().clone();
    config.as_object_mut().unwrap().extend(fields);
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = put_blob(registry, repository, CONFIG, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    })
    .to_string();
    let path = format!("/v2/{repository}/manifests/1");
    let kind = [("Content-Type", MANIFEST)];
    let put = request(registry.port(), "PUT", &path, &kind, manifest.as_bytes()).unwrap();
    assert_eq!(put.status, 201, "{}: {}", image.name, put.text());
    if matches!(image.damage, Damage::Blob) {
        let name = layers.last().unwrap()["digest"].as_str().unwrap();
        overwrite(registry, name, |content| content[0] ^= 1);
    }
}

/// Changes what the registry has under a digest, behind its back.
fn overwrite(registry: &Registry, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let hex = name.strip_prefix("sha256:").unwrap();
    let blobs = registry.storage().join("docker/registry/v2/blobs/sha256");
    let path = blobs.join(&hex[..2]).join(hex).join("data");
    let mut content = fs::read(&path).unwrap();
    change(&mut content);
    fs::remove_file(&path).unwrap();
    fs::write(&path, content).unwrap();
}

/// Files below a directory.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files(&path, found);
        }
        found.push(path);
    }
}

struct Place {
    user: User,
    registry: Registry,
    base: Base,
    /// A directory of this computer that is nobody's business.
    outside: tempfile::TempDir,
    pull_in: &'static str,
    disk: u64,
}

impl Place {
    fn new(pull_in: &'static str) -> Self {
        let registry = Registry::start();
        let base = Base::read();
        let user = User::new("x86_64");
        let prefix = format!("{}/ns", registry.host());
        for setting in [["registry", &*prefix], ["pull-in", pull_in]] {
            user.run(["vconfig", setting[0], setting[1]]).expect(0);
        }
        user.run(["vconfig", "accel", "tcg"]).expect(0);
        user.run(["memres", "start"]).expect(0);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "kept").unwrap();
        let mut place = Self {
            user,
            registry,
            base,
            outside,
            pull_in,
            disk: 0,
        };
        let good = Hostile {
            name: "good",
            layers: Vec::new(),
            config: json!({}),
            damage: Damage::None,
            expect: Expect::Refused(0, ""),
        };
        put_image(&place.registry, &place.base, "ns/good", &good);
        place.user.run(["pull", "-q", "good:1"]).expect(0);
        place.disk = place.taken();
        place
    }

    /// Bytes that this user's home takes.
    fn taken(&self) -> u64 {
        let mut found = Vec::new();
        files(self.user.home(), &mut found);
        let sizes = found.iter().filter_map(|path| path.symlink_metadata().ok());
        sizes.map(|meta| meta.blocks() * 512).sum()
    }

    /// A command that may not take much memory.
    fn run(&self, args: &[&str]) -> Ran {
        let vdkr = self.user.command();
        let mut command = Command::new("sh");
        let script = format!("ulimit -d {MEMORY} && exec \"$0\" \"$@\"");
        command.args(["-c", &script]).arg(vdkr.get_program());
        command.args(vdkr.get_args()).args(args);
        for (name, value) in vdkr.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        run_within(&mut command, b"", PATIENCE)
    }

    fn try_out(&self, number: usize, image: &Hostile) {
        let what = format!("{}, pulled in the {}", image.name, self.pull_in);
        let repository = format!("ns/bad{number}");
        put_image(&self.registry, &self.base, &repository, image);
        let name = format!("bad{number}:1");
        let pulled = self.run(&["pull", &name]);
        let said = &pulled.stderr;
        match &image.expect {
            Expect::Refused(status, words) => {
                assert_eq!(pulled.code(), *status, "{what}: {said}");
                assert!(
                    said.contains(words),
                    "{what} does not say {words:?}: {said}"
                );
                self.run(&["run", "--rm", &name, "true"]).expect(125);
            }
            Expect::Harmless(options, script, output) => {
                assert_eq!(pulled.code(), 0, "{what}: {said}");
                let run = [&["run", "--rm"], *options, &[&name, "sh", "-c", script]].concat();
                let ran = self.run(&run);
                assert_eq!(ran.text(), *output, "{what}: {}", ran.stderr);
            }
            Expect::Ends(status, words) => {
                assert_eq!(pulled.code(), 0, "{what}: {said}");
                let ran = self.run(&["run", "--rm", &name, "true"]);
                assert_eq!(ran.code(), *status, "{what}: {}", ran.stderr);
                assert!(ran.stderr.contains(words), "{what}: {}", ran.stderr);
            }
        }
        if pulled.code() == 0 {
            self.user.run(["rmi", &name]).expect(0);
        }
        self.unharmed(&what);
    }

    /// Takes away what an image has left that failed, so that it tells nothing about the next.
    fn clear(&self) {
        self.user.run(["memres", "start"]).expect(0);
        let containers = self.user.run(["ps", "-aq"]).expect(0).text();
        for id in containers.lines() {
            self.user.run(["rm", "-f", id]).expect(0);
        }
        let format = ["images", "--format", "{{.Repository}}:{{.Tag}}"];
        let images = self.user.run(format).expect(0).text();
        for name in images.lines().filter(|name| !name.ends_with("good:1")) {
            self.user.run(["rmi", "-f", name]).expect(0);
        }
        for entry in fs::read_dir(self.outside.path()).unwrap().flatten() {
            fs::remove_file(entry.path()).unwrap();
        }
        fs::write(self.outside.path().join("kept"), "kept").unwrap();
    }

    /// What must be as before after every image.
    fn unharmed(&self, what: &str) {
        let seen: Vec<_> = fs::read_dir(self.outside.path())
            .unwrap()
            .flatten()
            .collect();
        assert_eq!(seen.len(), 1, "{what}: {seen:?}");
        let kept = fs::read_to_string(self.outside.path().join("kept")).unwrap();
        assert_eq!(kept, "kept", "{what}");
        let listed = self.user.run(["images", "-q"]).expect(0).text();
        assert_eq!(listed.lines().count(), 1, "{what}: {listed}");
        assert_eq!(self.user.run(["ps", "-aq"]).expect(0).text(), "", "{what}");
        // What the kernel executes when a program dies is still nothing of an image's.
        let look = "cat /proc/sys/kernel/core_pattern; echo good";
        let ran = self.run(&["run", "--rm", "good:1", "sh", "-c", look]);
        assert_eq!(ran.text(), "core\ngood\n", "after {what}: {}", ran.stderr);
        let unfinished = self.user.home().join(".vdkr/layers/new");
        let left = fs::read_dir(unfinished).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{what} left layers that are not finished");
        let taken = self.taken();
        assert!(
            taken < self.disk + DISK,
            "{what}: the disk grew from {} to {taken} bytes",
            self.disk
        );
    }

    /// What must not be there when all images are gone.
    fn nothing_left(&self) {
        self.user.run(["vstorage", "clean", "--layers"]).expect(0);
        let mut found = Vec::new();
        files(self.user.home(), &mut found);
        for path in found {
            let meta = path.symlink_metadata().unwrap();
            let kind = meta.file_type();
            assert!(
                !path.to_string_lossy().contains("pwned") && !kind.is_symlink(),
                "{}",
                path.display()
            );
            if kind.is_file() {
                let mode = meta.permissions().mode();
                assert_eq!(mode & 0o6000, 0, "{}", path.display());
            }
        }
        // On the machine's disk, looked at from a container that may do anything.
        let look = "mkdir /d && mount -t ext4 /dev/sda /d && ls /d | grep -q images && \
                    find /d -name '*pwned*'";
        let seen = ["run", "--rm", "--privileged", "good:1", "sh", "-c", look];
        wait_until("what was removed goes from the disk", PATIENCE, || {
            let seen = self.user.run(seen).expect(0).text();
            eprintln!("{seen}");
            seen.is_empty()
        });
        // And a pull and a run of something new.
        let fresh = Hostile {
            name: "fresh",
            layers: Vec::new(),
            config: json!({"Labels": {"fresh": "yes"}}),
            damage: Damage::None,
            expect: Expect::Refused(0, ""),
        };
        put_image(&self.registry, &self.base, "ns/fresh", &fresh);
        let ran = self.run(&["run", "--rm", "fresh:1", "echo", "fresh"]);
        assert_eq!(ran.text(), "fresh\n", "{}", ran.stderr);
    }
}

fn every_image(pull_in: &'static str) {
    let place = Place::new(pull_in);
    let outside = place.outside.path().to_str().unwrap().to_owned();
    let images = [
        corpus::escapes(&outside),
        corpus::rights(),
        corpus::lies(),
        corpus::sizes(),
    ];
    // One that fails does not hide what comes of the others.
    let mut failed = Vec::new();
    for (number, image) in images.iter().flatten().enumerate() {
        let begun = std::time::Instant::now();
        let tried = catch_unwind(AssertUnwindSafe(|| place.try_out(number, image)));
        eprintln!("{}: {:?}", image.name, begun.elapsed());
        if tried.is_err() {
            failed.push(image.name);
            place.clear();
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
    place.nothing_left();
}

#[test]
fn hostile_images_pulled_in_the_machine() {
    every_image("guest");
}

#[test]
fn hostile_images_pulled_on_this_computer() {
    every_image("host");
}
