//! Pulls on the host: the same images, names and words as pulls in the machine, with layers that
//! are handed over as disks.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::process::{Ran, free_port};
use vdkr_tests::registry::Registry;
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
    let path = user.run(["vstorage", "path"]).expect(0).text();
    assert_eq!(Path::new(path.trim()), user.state_dir());
    let list = user.run(["vstorage", "list"]).expect(0).text();
    assert!(list.contains("x86_64"), "{list}");
    user.run(["vstorage", "clean", "--all"]).expect(0);
    assert!(!user.state_dir().exists());
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
