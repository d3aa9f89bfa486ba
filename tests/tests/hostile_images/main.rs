//! Images from somebody who means harm, through a real registry or in files into a real machine,
//! unpacked by the machine and by this computer: each is refused with a sentence or unpacked
//! harmlessly, nothing is left behind, and the next pull and run work.

mod corpus;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use corpus::{Damage, Expect, Hostile, Layer};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::{Value, json};
use vdkr_tests::fixtures::layout;
use vdkr_tests::http::request;
use vdkr_tests::layout::{digest, write_index};
use vdkr_tests::process::{Ran, run_within, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::stage::Stage;
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

/// Puts an image together, as wrong as it is: `put` stores a blob and gives its descriptor. The
/// manifest.
fn put_image(base: &Base, image: &Hostile, put: &dyn Fn(&str, &[u8]) -> Value) -> Value {
    let mut diff_ids = vec![base.diff_id.clone()];
    let mut layers = vec![put(LAYER, &base.blob)];
    for Layer { blob, plain } in &image.layers {
        layers.push(put(LAYER, blob));
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
    let config = put(CONFIG, config.to_string().as_bytes());
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
    })
}

/// Stores an image in the registry.
fn put_in_registry(registry: &Registry, base: &Base, repository: &str, image: &Hostile) {
    let put = |kind: &str, content: &[u8]| put_blob(registry, repository, kind, content);
    let document = put_image(base, image, &put);
    let manifest = document.to_string();
    let path = format!("/v2/{repository}/manifests/1");
    let kind = [("Content-Type", MANIFEST)];
    let put = request(registry.port(), "PUT", &path, &kind, manifest.as_bytes()).unwrap();
    assert_eq!(put.status, 201, "{}: {}", image.name, put.text());
    if matches!(image.damage, Damage::Blob) {
        overwrite(&registry_file(registry, last_layer(&document)));
    }
}

/// Writes an image into a directory, as a layout.
fn put_in_layout(layout: &Path, base: &Base, image: &Hostile) {
    fs::create_dir_all(layout).unwrap();
    fs::write(
        layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let put = |kind: &str, content: &[u8]| {
        let name = vdkr_tests::layout::put_blob(layout, content);
        json!({"mediaType": kind, "digest": name, "size": content.len()})
    };
    let document = put_image(base, image, &put);
    let entry = put(MANIFEST, document.to_string().as_bytes());
    write_index(layout, &json!([entry]));
    if matches!(image.damage, Damage::Blob) {
        let hex = last_layer(&document).strip_prefix("sha256:").unwrap();
        overwrite(&layout.join("blobs/sha256").join(hex));
    }
}

fn last_layer(manifest: &Value) -> &str {
    let layers = manifest["layers"].as_array().unwrap();
    layers.last().unwrap()["digest"].as_str().unwrap()
}

/// Where the registry has a blob.
fn registry_file(registry: &Registry, name: &str) -> PathBuf {
    let hex = name.strip_prefix("sha256:").unwrap();
    let blobs = registry.storage().join("docker/registry/v2/blobs/sha256");
    blobs.join(&hex[..2]).join(hex).join("data")
}

/// Changes a blob behind its owner's back.
fn overwrite(path: &Path) {
    let mut content = fs::read(path).unwrap();
    content[0] ^= 1;
    fs::remove_file(path).unwrap();
    fs::write(path, content).unwrap();
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

/// How images come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// From a registry.
    Pulled,
    /// From a directory.
    Imported,
}

struct Place {
    user: User,
    way: Way,
    registry: Registry,
    base: Base,
    /// A directory of this computer that is nobody's business.
    outside: tempfile::TempDir,
    images: Vec<Hostile>,
    pull_in: &'static str,
    disk: u64,
}

impl Place {
    fn new(way: Way, pull_in: &'static str, corpus: Corpus) -> Self {
        let registry = Registry::start();
        let base = Base::read();
        let user = User::new("x86_64");
        user.run(["vconfig", "pull-in", pull_in]).expect(0);
        if way == Way::Pulled {
            let prefix = format!("{}/ns", registry.host());
            user.run(["vconfig", "registry", &prefix]).expect(0);
        }
        user.run(["vconfig", "accel", "tcg"]).expect(0);
        user.run(["memres", "start"]).expect(0);
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("kept"), "kept").unwrap();
        let mut place = Self {
            user,
            way,
            registry,
            base,
            images: corpus(outside.path().to_str().unwrap()),
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
        place.bring("good", &good).expect(0);
        place.disk = place.taken();
        place
    }

    /// Has an image brought into the machine, under a name with tag 1.
    fn bring(&self, name: &str, image: &Hostile) -> Ran {
        let tagged = format!("{name}:1");
        match self.way {
            Way::Pulled => {
                let repository = format!("ns/{name}");
                put_in_registry(&self.registry, &self.base, &repository, image);
                self.run(&["pull", &tagged])
            }
            Way::Imported => {
                let place = tempfile::tempdir().unwrap();
                put_in_layout(place.path(), &self.base, image);
                self.run(&["vimport", place.path().to_str().unwrap(), &tagged])
            }
        }
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

    /// Has the image with this number brought, run and removed.
    fn try_out(&self, number: usize) {
        let image = &self.images[number];
        let what = format!("{}, {:?} in the {}", image.name, self.way, self.pull_in);
        let name = format!("bad{number}");
        let pulled = self.bring(&name, image);
        let name = format!("{name}:1");
        let said = &pulled.stderr;
        match &image.expect {
            Expect::Refused(status, words) => {
                assert_eq!(pulled.code(), *status, "{what}: {said}");
                assert!(
                    said.contains(words),
                    "{what} does not say {words:?}: {said}"
                );
                let pull = match self.way {
                    Way::Pulled => "missing",
                    Way::Imported => "never",
                };
                let ran = self.run(&["run", "--rm", "--pull", pull, &name, "true"]);
                assert_eq!(ran.code(), 125, "{what}: {}", ran.stderr);
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
        self.unharmed("what was cleared away");
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
        let look = "mkdir /d && mount -t ext4 /dev/vda /d && ls /d | grep -q images && \
                    find /d -name '*pwned*'";
        let seen = ["run", "--rm", "--privileged", "good:1", "sh", "-c", look];
        wait_until("what was removed goes from the disk", PATIENCE, || {
            let seen = self.user.run(seen).expect(0).text();
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
        self.bring("fresh", &fresh).expect(0);
        let ran = self.run(&["run", "--rm", "fresh:1", "echo", "fresh"]);
        assert_eq!(ran.text(), "fresh\n", "{}", ran.stderr);
    }
}

/// Makes images; the argument is a directory of this computer that is nobody's business.
type Corpus = fn(&str) -> Vec<Hostile>;

/// The images that come in one way, and what they share there.
struct Group<'a> {
    name: &'static str,
    way: Way,
    pull_in: &'static str,
    corpus: Corpus,
    /// Names of its images.
    images: &'a [&'static str],
}

impl Group<'_> {
    /// Its tests: one for each image, and one of what is left behind them all.
    fn trials(&self, asked: &Arguments) -> (Vec<Trial>, Arc<Stage<Place>>) {
        type Row = Box<dyn FnOnce(&Stage<Place>) -> Result<(), String> + Send>;
        let mut rows: Vec<(String, Row)> = Vec::new();
        for (number, image) in self.images.iter().enumerate() {
            let try_out: Row = Box::new(move |stage| stage.perform(|place| place.try_out(number)));
            rows.push((identifier(image), try_out));
        }
        let nothing: Row = Box::new(|stage| stage.perform_last(Place::nothing_left));
        rows.push(("nothing_is_left".to_owned(), nothing));
        let mut names = HashSet::new();
        for (name, _) in &rows {
            assert!(names.insert(name), "two images are called {name}");
        }
        let named = |name: &str| format!("{}::{name}", self.name);
        let asked_for = rows.iter().filter(|(name, _)| {
            let probe = Trial::test(named(name), || Ok(()));
            !asked.is_filtered_out(&probe)
        });
        let count = asked_for.count();
        let Self {
            way,
            pull_in,
            corpus,
            ..
        } = *self;
        let start = move || Place::new(way, pull_in, corpus);
        let stage = Arc::new(Stage::new(count, start, Place::clear));
        let trials = rows.into_iter().map(|(name, row)| {
            let stage = stage.clone();
            Trial::test(named(&name), move || row(&stage).map_err(Failed::from))
        });
        (trials.collect(), stage)
    }
}

/// Words as the name of a test.
fn identifier(words: &str) -> String {
    let parts = words.split(|letter: char| !letter.is_ascii_alphanumeric());
    let parts: Vec<_> = parts.filter(|part| !part.is_empty()).collect();
    parts.join("_").to_ascii_lowercase()
}

fn main() -> ExitCode {
    let mut asked = Arguments::from_args();
    let threads = std::env::var("RUST_TEST_THREADS").ok();
    asked.test_threads = asked.test_threads.or_else(|| threads?.parse().ok());
    let names = |corpus: Corpus| -> Vec<_> {
        let images = corpus("/outside");
        images.iter().map(|image| image.name).collect()
    };
    let all = names(corpus::all);
    let looked_at = names(corpus::looked_at);
    let whole = |name, way, pull_in| Group {
        name,
        way,
        pull_in,
        corpus: corpus::all,
        images: &all,
    };
    let groups = [
        whole("pulled_by_the_guest", Way::Pulled, "guest"),
        whole("pulled_by_the_host", Way::Pulled, "host"),
        whole("imported_by_the_host", Way::Imported, "host"),
        // What the machine unpacks it unpacks as a pull's; what differs is what is looked at before.
        Group {
            name: "imported_by_the_guest",
            way: Way::Imported,
            pull_in: "guest",
            corpus: corpus::looked_at,
            images: &looked_at,
        },
    ];
    let (trials, stages): (Vec<_>, Vec<_>) =
        groups.iter().map(|group| group.trials(&asked)).unzip();
    let ended = libtest_mimic::run(&asked, trials.into_iter().flatten().collect());
    // Whatever came of the tests, no machine outlives them.
    for stage in stages {
        stage.end();
    }
    ended.exit_code()
}
