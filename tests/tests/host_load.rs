//! Images out of files that this computer unpacks for a machine: the same as those that the machine
//! unpacks, whatever is done with them, and nothing half done when a command is ended.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tempfile::TempDir;
use vdkr_tests::fixtures::{copy_tree, layout};
use vdkr_tests::layout::{noise, put_blob, write_image, write_index};
use vdkr_tests::peers::skopeo;
use vdkr_tests::process::{Ran, run, run_tool, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::tar::{Entry, archive};
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "container-base-latest-oci";
const MULTI: &str = "container-base-multiarch-oci";

fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn user_with_vm() -> User {
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    user
}

/// The files of layers in the user's cache, without their recipes.
fn layers(user: &User) -> Vec<PathBuf> {
    let directory = user.home().join(".vdkr/layers/sha256");
    let entries = fs::read_dir(directory).into_iter().flatten();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths
        .filter(|path| path.extension().is_some_and(|end| end == "erofs"))
        .collect()
}

/// Layers under way.
fn unfinished(user: &User) -> usize {
    fs::read_dir(user.home().join(".vdkr/layers/new")).map_or(0, Iterator::count)
}

fn says_ok(user: &User, name: &str) {
    let ran = user.run(["run", "--rm", "--pull", "never", name, "echo", "ok"]);
    assert_eq!(ran.expect(0).text(), "ok\n");
}

/// An image in every form that it can have, by what is called with it.
fn forms(dir: &Path) -> Vec<Vec<String>> {
    let flat = layout("qemux86-64", IMAGE);
    let multi = layout("qemux86-64", MULTI);
    // An index within an index.
    let nested = dir.join("nested");
    copy_tree(&multi, &nested);
    let inner = fs::read(nested.join("index.json")).unwrap();
    let digest = put_blob(&nested, &inner);
    write_index(
        &nested,
        &json!([{
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "digest": digest, "size": inner.len(),
        }]),
    );
    let at = |name: &str| text(&dir.join(name));
    let copied = |transport: &str, name: &str| {
        let source = format!("oci:{}", flat.display());
        let tag = match transport {
            "dir" => "",
            _ => ":from/skopeo:1",
        };
        let target = format!("{transport}:{}{tag}", at(name));
        run(skopeo().args(["copy", "--quiet", &source, &target])).expect(0);
        at(name)
    };
    let docker = copied("docker-archive", "docker.tar");
    let oci = copied("oci-archive", "oci.tar");
    let plain = copied("dir", "dir");
    run_tool("gzip", ["-k", &*docker]).expect(0);
    run_tool("zstd", ["-q", "-k", &*docker]).expect(0);
    // A root file system, as a directory and as archives.
    let index: Value = serde_json::from_slice(&fs::read(flat.join("index.json")).unwrap()).unwrap();
    let blob = |digest: &Value| {
        let hex = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        flat.join("blobs/sha256").join(hex)
    };
    let manifest = fs::read(blob(&index["manifests"][0]["digest"])).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let layer = text(&blob(&manifest["layers"][0]["digest"]));
    fs::create_dir(dir.join("root")).unwrap();
    run_tool(
        "tar",
        ["-xzf", &layer, "-C", &at("root"), "--exclude=dev/*"],
    )
    .expect(0);
    run_tool("tar", ["-C", &at("root"), "-cf", &at("root.tar"), "."]).expect(0);
    let root = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    let mut forms: Vec<Vec<String>> = [
        text(&flat),
        text(&multi),
        text(&nested),
        oci,
        docker.clone(),
        format!("{docker}.gz"),
        format!("{docker}.zst"),
        plain,
    ]
    .into_iter()
    .map(|path| vec!["vimport".to_owned(), path, "it:1".to_owned()])
    .collect();
    forms.push(vec!["load".to_owned(), "-i".to_owned(), docker]);
    forms.push(root(&["vimport", &at("root"), "it:1"]));
    forms.push(root(&[
        "vimport",
        "-c",
        "CMD /bin/sh",
        &at("root.tar"),
        "it:1",
    ]));
    forms.push(root(&[
        "import", "-m", "why", "-c", "ENV A=b", &layer, "it:1",
    ]));
    forms
}

/// What is said about a time or an image's making is left out.
fn words(ran: &Ran) -> String {
    let all = format!("{}{}", ran.text(), ran.stderr);
    let lines = all.lines().map(|line| line.split(" in ").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn both_ways_make_the_same_image_of_every_form() {
    let user = user_with_vm();
    let dir = TempDir::new().unwrap();
    for form in forms(dir.path()) {
        let is_made = form
            .iter()
            .any(|word| word.contains("root") || word == "import");
        let told = ["host", "guest"].map(|place| {
            let options = ["--progress", "plain", "--pull-in", place];
            let line: Vec<&str> = options
                .into_iter()
                .chain(form.iter().map(|word| &**word))
                .collect();
            let ran = user.run(line).expect(0);
            let name = match form[0].as_str() {
                "load" => "from/skopeo:1",
                _ => "it:1",
            };
            assert_eq!(layers(&user).is_empty(), place == "guest", "{form:?}");
            assert_eq!(unfinished(&user), 0);
            let shown = user.run(["inspect", name]).expect(0).text();
            let mut shown: Value = serde_json::from_str(&shown).unwrap();
            if is_made {
                for key in ["Id", "Created", "Descriptor"] {
                    shown[0][key].take();
                }
            }
            says_ok(&user, name);
            let history = user.run(["history", "--format", "{{.Comment}} {{.Size}}", name]);
            let history = history.expect(0).text();
            user.run(["rmi", name]).expect(0);
            user.run(["vstorage", "clean", "--layers"]).expect(0);
            let words = if is_made { String::new() } else { words(&ran) };
            (words, shown, history)
        });
        assert_eq!(told[0], told[1], "{form:?}");
    }

    // What is refused is refused with the same words.
    let damaged = dir.path().join("damaged");
    write_image(
        &damaged,
        "amd64",
        &[archive(&[Entry::file("f", noise(1, 100_000))])],
    );
    let large = |path: &PathBuf| fs::metadata(path).unwrap().len() > 50_000;
    let blobs = fs::read_dir(damaged.join("blobs/sha256")).unwrap();
    let blob = blobs.map(|blob| blob.unwrap().path()).find(large).unwrap();
    let whole = fs::read(&blob).unwrap();
    let mut changed = whole.clone();
    changed[60_000] ^= 1;
    let other = layout("qemuarm64", IMAGE);
    for (content, path, code) in [
        (&changed, &damaged, 6),
        (&whole[..70_000].to_vec(), &damaged, 6),
        (&whole, &other, 1),
    ] {
        fs::write(&blob, content).unwrap();
        let told = ["host", "guest"].map(|place| {
            let ran = user.run(["--pull-in", place, "vimport", &text(path)]);
            assert_eq!(unfinished(&user), 0);
            words(&ran.expect(code))
        });
        assert_eq!(told[0], told[1]);
        assert_eq!(user.run(["images", "-q"]).expect(0).text(), "");
    }
}

#[test]
fn loaded_images_are_images_as_any() {
    let user = user_with_vm();
    let dir = TempDir::new().unwrap();
    let at = |name: &str| text(&dir.path().join(name));
    let image = text(&layout("qemux86-64", IMAGE));
    // Into a machine that runs.
    user.run(["vimport", &image, "base:1"]).expect(0);
    let files = layers(&user);
    assert!(!files.is_empty());
    says_ok(&user, "base:1");
    // What is there is not made again, for this machine or another.
    let inodes = || files.iter().map(|file| fs::metadata(file).unwrap().ino());
    let before: Vec<u64> = inodes().collect();
    for instance in [&[][..], &["-I", "other", "--accel", "tcg"]] {
        let import = ["--progress", "plain", "vimport", &image, "again:1"];
        let again = user.run([instance, &import].concat()).expect(0);
        assert!(again.stderr.contains("already present"), "{}", again.stderr);
        assert!(!again.stderr.contains("loaded"), "{}", again.stderr);
        assert!(inodes().eq(before.iter().copied()));
    }
    user.run(["-I", "other", "vstorage", "clean"]).expect(0);
    user.run(["rmi", "again:1"]).expect(0);

    // What is made of it.
    user.run([
        "run",
        "--name",
        "cc",
        "base:1",
        "sh",
        "-c",
        "echo new >/new",
    ])
    .expect(0);
    let diff = user.run(["diff", "cc"]).expect(0).text();
    assert!(diff.contains("A /new"), "{diff}");
    user.run(["cp", "cc:/etc/passwd", &at("passwd")]).expect(0);
    assert!(fs::read_to_string(at("passwd")).unwrap().contains("root"));
    user.run(["commit", "cc", "made:1"]).expect(0);
    user.run(["rm", "cc"]).expect(0);
    let made = |user: &User| {
        let ran = user.run(["run", "--rm", "--pull", "never", "made:1", "cat", "/new"]);
        assert_eq!(ran.expect(0).text(), "new\n");
    };
    made(&user);
    user.run(["save", "-o", &at("a.tar"), "made:1"]).expect(0);
    let empty = Registry::start();
    let place = format!("{}/team/made:1", empty.host());
    user.run(["tag", "made:1", &place]).expect(0);
    let pushed = user.run(["push", &place]).expect(0).text();
    assert!(pushed.starts_with("1: digest: sha256:"), "{pushed}");
    user.run(["rmi", &place]).expect(0);

    // In machines that start later, whatever way they pull.
    for place in ["host", "guest"] {
        user.run(["vconfig", "pull-in", place]).expect(0);
        user.run(["memres", "restart"]).expect(0);
        says_ok(&user, "base:1");
        made(&user);
        let cleaned = user.run(["vstorage", "clean", "--layers"]).expect(0);
        assert!(
            cleaned.stderr.contains("removed 0 layers"),
            "{}",
            cleaned.stderr
        );
    }
    user.run(["vconfig", "pull-in", "host"]).expect(0);

    // Layers that somebody took away are not looked for in any registry.
    user.run(["memres", "restart"]).expect(0);
    for file in &files {
        fs::remove_file(file).unwrap();
    }
    let lost = user.run(["run", "--rm", "base:1", "true"]).expect(125);
    assert!(
        lost.stderr.contains("load, import or commit it once more"),
        "{}",
        lost.stderr
    );
    user.run(["vimport", &image, "base:1"]).expect(0);
    says_ok(&user, "base:1");
    made(&user);

    // Saved it is loaded elsewhere, and nothing is left of what is removed.
    let id = user
        .run(["inspect", "-f", "{{.Id}}", "made:1"])
        .expect(0)
        .text();
    user.run(["rmi", "base:1", "made:1"]).expect(0);
    user.run(["vstorage", "clean", "--layers"]).expect(0);
    assert!(layers(&user).is_empty());
    user.run(["load", "-q", "-i", &at("a.tar")]).expect(0);
    made(&user);
    let loaded = user
        .run(["inspect", "-f", "{{.Id}}", "made:1"])
        .expect(0)
        .text();
    assert_eq!(loaded, id);
    user.run(["rmi", "made:1"]).expect(0);
    let pulled = user.run(["run", "--rm", &place, "cat", "/new"]).expect(0);
    assert_eq!(pulled.text(), "new\n");
}

/// A command under way whose layers are.
fn begun(user: &User, args: &[&str]) -> Child {
    let mut command = user.command();
    command
        .args(args)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.stdin(Stdio::null()).spawn().unwrap();
    wait_until("a layer is under way", PATIENCE, || unfinished(user) > 0);
    child
}

#[test]
fn a_load_that_is_ended_leaves_nothing_and_can_be_repeated() {
    let user = user_with_vm();
    let dir = TempDir::new().unwrap();
    let image = dir.path().join("big-oci");
    let layer = |seed| archive(&[Entry::file(&format!("big{seed}"), noise(seed, 96 << 20))]);
    write_image(&image, "amd64", &[layer(1), layer(2)]);
    let image = text(&image);
    let import = ["vimport", &image, "big:1"];
    let listed = || user.run(["images", "-q"]).expect(0).text();

    let mut child = begun(&user, &import);
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130), "{status}");
    assert_eq!(unfinished(&user), 0);
    assert_eq!(listed(), "");

    let mut child = begun(&user, &import);
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9));
    assert_eq!(listed(), "");

    // Two at once; one of them takes away what the one that was killed has left.
    let second = user.command().args(["vimport", &image, "big:2"]).spawn();
    let first = user.run(import);
    first.expect(0);
    assert!(second.unwrap().wait().unwrap().success());
    assert_eq!(layers(&user).len(), 2);
    let shown = user
        .run(["images", "--format", "{{.Tag}}", "big"])
        .expect(0)
        .text();
    assert_eq!(shown.lines().count(), 2, "{shown}");
    let nothing = ["run", "--rm", "big:1", "/none"];
    user.run(nothing).expect(127);
    user.run(["rmi", "big:1", "big:2"]).expect(0);
    user.run(["vstorage", "clean", "--layers"]).expect(0);
    assert!(layers(&user).is_empty());
    assert_eq!(unfinished(&user), 0);
}
