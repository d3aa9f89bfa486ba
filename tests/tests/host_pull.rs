//! Pulls on the host: the same images, names and words as pulls in the machine, with layers that
//! are handed over as disks.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use vdkr_tests::fixtures::{deploy_dir, layout};
use vdkr_tests::layout::{digest, noise, write_above};
use vdkr_tests::process::{Ran, free_port};
use vdkr_tests::registry::Registry;
use vdkr_tests::tar::{Entry, archive};
use vdkr_tests::vm::User;

fn filled_registry() -> Registry {
    let registry = Registry::start();
    let deploy = deploy_dir();
    let push = ["push", "--deploy-dir-images", deploy.to_str().unwrap()];
    registry.run(push).expect(0);
    registry
}

fn prefix(registry: &Registry) -> String {
    format!("{}/yocto", registry.host())
}

/// The files of layers in the user's cache, with their recipes.
fn layers(user: &User) -> Vec<PathBuf> {
    let directory = user.home().join(".vdkr/layers/sha256");
    let entries = fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// Everything that a container sees of its image, one line a file.
fn contents(user: &User, options: &[&str]) -> String {
    let script = "cd / && find bin etc lib sbin usr var home root -exec \
                  stat -c '%n %a %u %g %h %s %F %Y' {} + | sort";
    let run = ["run", "--rm", "container-base", "sh", "-c", script];
    let listed = user.run([options, &run].concat()).expect(0).text();
    // What the agent puts over files of the image is made for each container; the size of a
    // directory is its file system's business.
    let made = ["etc/hosts ", "etc/hostname ", "etc/resolv.conf "];
    let lines = listed
        .lines()
        .filter(|line| !made.iter().any(|name| line.starts_with(name)));
    let lines = lines.map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        if line.contains(" directory ") {
            words[..4].join(" ") + " directory"
        } else {
            line.to_owned()
        }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn images_pulled_on_the_host_are_those_pulled_in_the_machine() {
    let registry = filled_registry();
    let prefix = prefix(&registry);
    let [here, there] = ["host", "guest"].map(|place| {
        let user = User::new("x86_64");
        let options = ["--accel", "tcg", "--registry", &prefix, "--pull-in", place];
        // No machine is kept: one is started for each command.
        let pull = [&options[..], &["pull", "container-base"]].concat();
        let pulled = user.run(pull).expect(0);
        let listed = contents(&user, &["--accel", "tcg"]);
        assert!(listed.lines().count() > 20, "{listed}");
        assert_eq!(layers(&user).is_empty(), place == "guest");
        (
            pulled.text(),
            user.run(["images", "--digests"]).expect(0).text(),
            listed,
        )
    });
    assert_eq!(here.0, there.0, "the stored name");
    // The time since its making may have grown.
    let names = |listed: &str| {
        listed
            .split_whitespace()
            .take(9)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(names(&here.1), names(&there.1));
    for (ours, theirs) in here.2.lines().zip(there.2.lines()) {
        assert_eq!(ours, theirs);
    }
    assert_eq!(here.2.len(), there.2.len());
}

#[test]
fn layers_come_to_a_machine_that_runs_and_come_back_when_they_were_removed() {
    let registry = filled_registry();
    let user = User::new("x86_64");
    user.run(["vconfig", "registry", &prefix(&registry)])
        .expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);

    // `run` pulls what is not there, hands it over and runs it.
    let said = user
        .run(["run", "--rm", "container-base", "echo", "hello"])
        .expect(0);
    assert_eq!(said.text(), "hello\n");
    let files = layers(&user);
    assert!(!files.is_empty());
    let again = user.run(["pull", "container-base"]).expect(0);
    assert!(again.stderr.contains("already present"), "{}", again.stderr);
    user.run(["run", "--rm", "--pull", "always", "container-base", "true"])
        .expect(0);
    // Another instance gets them without a download, as the registry offers it the same blobs.
    let inodes = || files.iter().map(|file| fs::metadata(file).unwrap().ino());
    let before: Vec<u64> = inodes().collect();
    let other = [
        "-I",
        "other",
        "--accel",
        "tcg",
        "--registry",
        &prefix(&registry),
    ];
    let pulled = user
        .run([&other[..], &["pull", "container-base"]].concat())
        .expect(0);
    assert!(
        pulled.stderr.contains("already present"),
        "{}",
        pulled.stderr
    );
    assert!(!pulled.stderr.contains("pulled"), "{}", pulled.stderr);
    assert!(inodes().eq(before));
    user.run(["-I", "other", "vstorage", "clean"]).expect(0);

    // What an image needs is not removed; a container may write on top of it.
    let cleaned = user.run(["vstorage", "clean", "--layers"]).expect(0);
    assert!(
        cleaned.stderr.contains("removed 0 layers"),
        "{}",
        cleaned.stderr
    );
    user.run([
        "run",
        "--rm",
        "container-base",
        "sh",
        "-c",
        "rm -r /etc/passwd /usr && : > /etc/x",
    ])
    .expect(0);
    user.run(["run", "--rm", "container-base", "test", "-e", "/etc/passwd"])
        .expect(0);

    // A machine that starts anew is handed the layers again, and those that somebody took away are
    // pulled again.
    user.run(["memres", "restart"]).expect(0);
    user.run(["run", "--rm", "container-base", "true"])
        .expect(0);
    user.run(["memres", "restart"]).expect(0);
    for file in &files {
        fs::remove_file(file).unwrap();
    }
    user.run(["run", "--rm", "container-base", "true"])
        .expect(0);
    assert_eq!(layers(&user).len(), files.len());
    // Even when the cache is gone with all its notes.
    user.run(["memres", "restart"]).expect(0);
    fs::remove_dir_all(user.home().join(".vdkr/layers")).unwrap();
    user.run(["run", "--rm", "container-base", "true"])
        .expect(0);
    // One that is damaged, too.
    user.run(["memres", "restart"]).expect(0);
    let is_layer = |file: &&PathBuf| file.extension().is_some_and(|end| end == "erofs");
    let damaged = files.iter().find(is_layer).unwrap();
    fs::remove_file(damaged).unwrap();
    fs::write(damaged, "damage").unwrap();
    user.run(["run", "--rm", "container-base", "true"])
        .expect(0);

    // With the image go its layers.
    user.run(["rmi", "container-base"]).expect(0);
    let cleaned = user.run(["vstorage", "clean", "--layers"]).expect(0);
    assert!(
        !cleaned.stderr.contains("removed 0 layers"),
        "{}",
        cleaned.stderr
    );
    assert!(layers(&user).is_empty());

    // And with the state everything.
    let df = user.run(["vstorage", "df"]).expect(0).text();
    assert!(df.contains("State") && df.contains("Layers"), "{df}");
    for path in [&["vstorage", "path"][..], &["vstorage", "path", "x86_64"]] {
        let told = user.run(path.iter().copied()).expect(0).text();
        assert_eq!(Path::new(told.trim()), user.state_dir(), "{path:?}");
    }
    let list = user.run(["vstorage", "list"]).expect(0).text();
    assert!(list.contains("x86_64"), "{list}");
    user.run(["vstorage", "clean", "--all"]).expect(0);
    assert!(!user.state_dir().exists());
}

/// The tag names another image from time to time; an image of another platform is pulled when it is asked
/// for.
fn tags_that_move_and_platforms(place: &str) {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start();
    let base = layout("qemux86-64", "container-base-latest-oci");
    let push = |word: &str| {
        let image = dir.path().join(word).join("moving-latest-oci");
        let layer = archive(&[Entry::file("word", word)]);
        write_above(&base, &image, &layer);
        let push = ["push", "--tag", "1", image.to_str().unwrap()];
        registry.run(push).expect(0);
    };
    let both = layout("qemux86-64", "container-base-multiarch-oci");
    let push_both = ["push", "--tag", "1", both.to_str().unwrap()];
    registry.run(push_both).expect(0);
    let user = User::new("x86_64");
    for (key, value) in [("registry", &prefix(&registry)[..]), ("pull-in", place)] {
        user.run(["vconfig", key, value]).expect(0);
    }
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let said = |pull: &[&str]| {
        let run = [&["run", "--rm"], pull, &["moving:1", "cat", "/word"]].concat();
        user.run(run)
    };

    push("first");
    assert_eq!(said(&[]).expect(0).text(), "first");
    push("second");
    for pull in [&[][..], &["--pull", "missing"], &["--pull", "never"]] {
        assert_eq!(said(pull).expect(0).text(), "first", "{pull:?}");
    }
    assert_eq!(said(&["--pull", "always"]).expect(0).text(), "second");
    push("third");
    user.run(["pull", "moving:1"]).expect(0);
    assert_eq!(said(&["--pull=never"]).expect(0).text(), "third");

    let architecture = |name: &str| {
        let inspect = ["inspect", "-f", "{{.Os}}/{{.Architecture}}", name];
        user.run(inspect).expect(0).text()
    };
    let arm = user.run(["pull", "--platform", "linux/arm64", "container-base:1"]);
    assert!(arm.expect(0).stderr.contains("but not run them"));
    assert_eq!(architecture("container-base:1"), "linux/arm64\n");
    user.run(["pull", "container-base:1"]).expect(0);
    assert_eq!(architecture("container-base:1"), "linux/amd64\n");
    let none = ["pull", "--platform", "linux/riscv64", "container-base:1"];
    let none = user.run(none).expect(5);
    assert!(none.stderr.contains("linux/riscv64"), "{}", none.stderr);
    assert!(none.stderr.contains("linux/arm64"), "{}", none.stderr);

    // Whoever wants what is there now gets nothing older.
    registry.stop();
    said(&["--pull", "always"]).expect(125);
    assert_eq!(said(&[]).expect(0).text(), "third");
}

#[test]
fn tags_that_move_and_platforms_on_this_computer() {
    tags_that_move_and_platforms("host");
}

#[test]
fn tags_that_move_and_platforms_in_the_machine() {
    tags_that_move_and_platforms("guest");
}

/// Bytes of a layer of which there are several.
const LARGE: usize = 12 << 20;

/// A registry with `one` and `two`: the ordinary image with a large layer above, of its own each. The
/// digests of their files `/noise`.
fn large_images(dir: &Path) -> (Registry, [String; 2]) {
    let registry = Registry::start();
    let base = layout("qemux86-64", "container-base-latest-oci");
    let push = ["push", "--tag", "latest", base.to_str().unwrap()];
    registry.run(push).expect(0);
    let sums = [("one", 1), ("two", 2)].map(|(name, seed)| {
        let noise = noise(seed, LARGE);
        let place = dir.join(format!("{name}-latest-oci"));
        let layer = archive(&[Entry::file("noise", noise.clone())]);
        write_above(&base, &place, &layer);
        let push = ["push", "--tag", "latest", place.to_str().unwrap()];
        registry.run(push).expect(0);
        digest(&noise)
    });
    (registry, sums)
}

/// Files of layers that somebody writes, or has left.
fn unfinished(user: &User) -> usize {
    fs::read_dir(user.home().join(".vdkr/layers/new")).map_or(0, Iterator::count)
}

fn whole_layers(user: &User) -> usize {
    let is_layer = |file: &PathBuf| file.extension().is_some_and(|end| end == "erofs");
    layers(user).iter().filter(|file| is_layer(file)).count()
}

#[test]
fn pulls_at_once_pulls_cut_short_and_a_cache_that_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let (registry, [one, two]) = large_images(dir.path());
    let user = User::new("x86_64");
    for setting in [["accel", "tcg"], ["registry", &prefix(&registry)]] {
        user.run(["vconfig", setting[0], setting[1]]).expect(0);
    }
    user.run(["memres", "start"]).expect(0);
    let is_whole = |instance: &[&str], image: &str, wanted: &str| {
        let run = [
            "run",
            "--rm",
            "--pull",
            "never",
            image,
            "sha256sum",
            "/noise",
        ];
        let sum = user.run([instance, &run].concat()).expect(0).text();
        assert_eq!(format!("sha256:{}", &sum[..64]), wanted, "{instance:?}");
    };
    let start = |line: &[&str]| {
        let mut command = user.command();
        let command = command.args(line).stdin(Stdio::null());
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::piped());
        quiet.spawn().unwrap()
    };

    // The same layers for one machine by two commands, and for two others, all at once.
    let pull = ["pull", "one"];
    let machines = [&[][..], &[], &["-I", "a"], &["-I", "b"]];
    let children = machines.map(|instance| start(&[instance, &pull].concat()));
    for child in children {
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success(), "{ended:?}");
    }
    assert_eq!((whole_layers(&user), unfinished(&user)), (2, 0));
    for instance in &machines[1..] {
        is_whole(instance, "one", &one);
    }

    // A pull that is killed while it writes, then done to its end.
    let pull = ["pull", "two"];
    let killed = (0..50).any(|_| {
        let mut child = start(&pull);
        while unfinished(&user) == 0 && child.try_wait().unwrap().is_none() {
            std::thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        if unfinished(&user) > 0 {
            return true;
        }
        // It was too quick.
        user.run(["rmi", "two"]).expect(0);
        user.run(["vstorage", "clean", "--layers"]).expect(0);
        false
    });
    assert!(killed, "no kill came while a layer was written");
    let never = ["run", "--rm", "--pull", "never"];
    user.run([&never[..], &["two", "true"]].concat())
        .expect(125);
    is_whole(&[], "one", &one);
    user.run(pull).expect(0);
    assert_eq!((whole_layers(&user), unfinished(&user)), (3, 0));
    is_whole(&[], "two", &two);

    // Over its limit the cache keeps what any machine's image has, and nothing else.
    user.run(["vconfig", "layer-cache", "4M"]).expect(0);
    user.run(["rmi", "two"]).expect(0);
    user.run(["pull", "container-base"]).expect(0);
    assert_eq!(whole_layers(&user), 2, "the layer of two is gone");
    user.run(["rmi", "one"]).expect(0);
    user.run(["-I", "a", "rmi", "one"]).expect(0);
    user.run(["pull", "container-base"]).expect(0);
    assert_eq!(whole_layers(&user), 2, "instance b has the image");
    is_whole(&["-I", "b"], "one", &one);
    user.run(["-I", "b", "rmi", "one"]).expect(0);
    user.run(["pull", "container-base"]).expect(0);
    assert_eq!(whole_layers(&user), 1, "nobody has it");
    let run = ["container-base", "echo", "ok"];
    let ran = user.run([&never[..], &run].concat()).expect(0);
    assert_eq!(ran.text(), "ok\n");
    // What is larger than the limit is pulled and kept all the same.
    user.run(pull).expect(0);
    user.run(["memres", "restart"]).expect(0);
    is_whole(&[], "two", &two);
    assert_eq!((whole_layers(&user), unfinished(&user)), (2, 0));
}

/// A server that answers every request with a status; its address.
fn answering(status: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(
                format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                    .as_bytes(),
            );
        }
    });
    port
}

#[test]
fn what_fails_fails_in_both_places_with_the_same_words() {
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    // Whoever asks Docker Hub asks this one.
    let hub = format!("http://127.0.0.1:{}", answering("404 Not Found"));
    user.run(["vconfig", "mirror", "docker.io", &hub]).expect(0);
    let refused = free_port();
    for (port, code) in [
        (answering("404 Not Found"), None),
        (answering("401 Unauthorized"), Some(4)),
        (answering("403 Forbidden"), Some(4)),
        (answering("500 Internal Server Error"), Some(1)),
        (refused, Some(3)),
    ] {
        let registry = format!("localhost:{port}/ns");
        for verb in [&["pull", "app"][..], &["run", "app", "true"]] {
            let told = ["host", "guest"].map(|place| {
                let options = [
                    "--progress",
                    "plain",
                    "--pull-in",
                    place,
                    "--registry",
                    &registry,
                ];
                user.run([&options[..], verb].concat())
            });
            let words = |ran: &Ran| {
                let text = ran
                    .stderr
                    .replace("localhost", "10.0.2.2")
                    .replace("127.0.0.1", "10.0.2.2");
                // How a connection fails is told with the system's own words.
                text.split(": ").take(3).collect::<Vec<_>>().join(": ")
            };
            assert_eq!(
                told[0].code(),
                told[1].code(),
                "{port} {} {}",
                told[0].stderr,
                told[1].stderr
            );
            assert_eq!(words(&told[0]), words(&told[1]));
            if let (Some(code), "pull") = (code, verb[0]) {
                assert_eq!(told[0].code(), code, "{}", told[0].stderr);
                // Docker Hub is asked after a 404 only.
                assert!(!told[0].stderr.contains("docker.io"), "{}", told[0].stderr);
            }
            assert!(
                told[0].stderr.contains(&format!("10.0.2.2:{port}/ns/app")),
                "{}",
                told[0].stderr
            );
        }
    }
}
