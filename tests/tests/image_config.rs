//! What an image's configuration says holds in its containers: command, environment, place, user,
//! volumes, the signal that stops them and the ports that they have. Made here by `import` and `commit`,
//! and the same when it comes back from a registry on either way.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::time::Duration;

use serde_json::{Value, json};
use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::write_above;
use vdkr_tests::process::wait_until;
use vdkr_tests::registry::Registry;
use vdkr_tests::tar::{Entry, archive};
use vdkr_tests::vm::{PATIENCE, User};

const PATH: &str = "ENV PATH=/bin:/sbin:/usr/bin:/usr/sbin";

/// A user whose machine runs, and a root file system to make images of.
struct Place {
    user: User,
    root: String,
    _dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let user = User::new("x86_64");
        user.run(["vconfig", "accel", "tcg"]).expect(0);
        user.run(["memres", "start"]).expect(0);
        // Beside the ordinary image a directory with something in it.
        let base = layout("qemux86-64", "container-base-latest-oci");
        let filled = dir.path().join("filled");
        let files = [
            Entry::directory("data")
                .mode(0o750)
                .bytes(108, b"0001750\0"),
            Entry::file("data/first", "of the image"),
        ];
        write_above(&base, &filled, &archive(&files));
        user.run(["vimport", filled.to_str().unwrap(), "filled:1"])
            .expect(0);
        user.run(["create", "--name", "filled", "filled:1"])
            .expect(0);
        let root = dir.path().join("root.tar").to_str().unwrap().to_owned();
        user.run(["export", "-o", &root, "filled"]).expect(0);
        user.run(["rm", "filled"]).expect(0);
        Self {
            user,
            root,
            _dir: dir,
        }
    }

    /// Makes an image whose configuration has these changes and nothing else.
    fn image(&self, name: &str, changes: &[&str]) {
        let mut line = vec!["import", "-c", PATH];
        line.extend(changes.iter().flat_map(|&change| ["-c", change]));
        line.extend([&*self.root, name]);
        self.user.run(line).expect(0);
    }

    #[track_caller]
    fn says(&self, line: &[&str], words: &str) {
        let ran = self.user.run(line.iter().copied());
        assert_eq!(ran.expect(0).text(), words, "{line:?}");
    }

    fn inspect(&self, line: &[&str]) -> Value {
        let line = ["inspect"].iter().chain(line).copied();
        let text = self.user.run(line).expect(0).text();
        let mut documents: Value = serde_json::from_str(&text).unwrap();
        documents[0].take()
    }
}

#[test]
fn containers_are_what_their_images_say() {
    let place = Place::new();
    commands(&place);
    users_and_places(&place);
    volumes(&place);
    signals(&place);
    ports(&place);
    from_a_registry(&place);
    place.user.run(["memres", "stop"]).expect(0);
}

fn commands(place: &Place) {
    place.image(
        "both:1",
        &[
            "ENTRYPOINT [\"/bin/echo\", \"entry\"]",
            "CMD [\"cmd\", \"two  words\"]",
        ],
    );
    for (line, words) in [
        (&["run", "--rm", "both:1"][..], "entry cmd two  words\n"),
        (&["run", "--rm", "both:1", "-n", "x"], "entry -n x\n"),
        (&["vrun", "both:1"], "entry cmd two  words\n"),
        // With a command, `vrun` leaves the entry point out.
        (&["vrun", "both:1", "echo", "x"], "x\n"),
        (
            &["run", "--rm", "--entrypoint", "/bin/echo", "both:1"],
            "\n",
        ),
        (
            &["run", "--rm", "--entrypoint", "echo", "both:1", "x"],
            "x\n",
        ),
        (
            &["run", "--rm", "--entrypoint", "", "both:1", "echo", "x"],
            "x\n",
        ),
    ] {
        place.says(line, words);
    }
    // A line is the shell's, and knows the environment.
    place.image(
        "line:1",
        &[
            "ENV WORD=\"two  words\" OTHER=o",
            "CMD echo \"$WORD\" $OTHER",
        ],
    );
    place.says(&["run", "--rm", "line:1"], "two  words o\n");
    let own = ["run", "--rm", "-e", "OTHER=mine", "-e", "WORD", "line:1"];
    // A name that the user has nothing for is taken away, as docker does.
    place.says(&own, " mine\n");
    // Without a word of its own an image has nothing to run.
    place.image("none:1", &[]);
    let nothing = place.user.run(["run", "--rm", "none:1"]).expect(125);
    assert!(nothing.stderr.contains("command"), "{}", nothing.stderr);
}

fn users_and_places(place: &Place) {
    let who = "id -u; id -g; id -G; pwd; echo $HOME";
    let sh = |options: &[&str], image: &str| {
        let line = [&["run", "--rm"], options, &[image, "sh", "-c", who]].concat();
        place.user.run(line).expect(0).text()
    };
    // Names are those of the image's own files; a place that is not there is made.
    place.image("app:1", &["USER app", "WORKDIR /srv/deep/place"]);
    assert_eq!(
        sh(&[], "app:1"),
        "1000\n1000\n1000 100\n/srv/deep/place\n/home/app\n"
    );
    assert_eq!(
        sh(&["-u", "root", "-w", "/tmp"], "app:1"),
        "0\n0\n0\n/tmp\n/root\n"
    );
    for (user, words) in [
        ("app:nogroup", "1000\n65534\n65534\n"),
        ("1000", "1000\n1000\n1000 100\n"),
        ("4321:users", "4321\n100\n100\n"),
        ("4321", "4321\n0\n0\n"),
    ] {
        place.image("other:1", &[&format!("USER {user}")]);
        let told = sh(&[], "other:1");
        assert!(told.starts_with(words), "{user}: {told}");
    }
    for user in ["nobody-here", "app:no-such-group"] {
        place.image("other:1", &[&format!("USER {user}")]);
        let refused = place.user.run(["run", "--rm", "other:1", "true"]);
        let refused = refused.expect(125);
        let name = user.rsplit(':').next().unwrap();
        assert!(refused.stderr.contains(name), "{}", refused.stderr);
    }
    // A process that joins is the same user in the same place.
    let run = ["run", "-d", "--name", "joined", "app:1", "sleep", "1000"];
    place.user.run(run).expect(0);
    place.says(
        &["exec", "joined", "sh", "-c", who],
        "1000\n1000\n1000 100\n/srv/deep/place\n/home/app\n",
    );
    place.user.run(["rm", "-f", "joined"]).expect(0);
}

fn volumes(place: &Place) {
    place.image("volume:1", &["VOLUME [\"/data\", \"/new/one\"]"]);
    let listed = || {
        let listed = place.user.run(["volume", "ls", "-q"]).expect(0).text();
        listed.lines().count()
    };
    let script = "cat /data/first; stat -c ' %a %u' /data; echo more > /data/more; \
                  echo more > /new/one/more; grep -c -e ' /data ' -e ' /new/one ' /proc/mounts";
    let run = ["run", "--name", "keeps", "volume:1", "sh", "-c", script];
    place.says(&run, "of the image 750 1000\n2\n");
    assert_eq!(listed(), 2);
    let shown = place.inspect(&["keeps"]);
    let mounts = shown["Mounts"].as_array().unwrap();
    let targets: Vec<_> = mounts.iter().map(|mount| &mount["Destination"]).collect();
    assert_eq!(targets, [&json!("/data"), &json!("/new/one")], "{shown}");
    assert!(mounts.iter().all(|mount| mount["Type"] == "volume"));
    // What is written there is no change of the container, and another one has volumes of its own.
    let changes = place.user.run(["diff", "keeps"]).expect(0).text();
    assert!(!changes.contains("more"), "{changes}");
    let other = ["run", "--rm", "volume:1", "ls", "/data", "/new/one"];
    place.says(&other, "/data:\nfirst\n\n/new/one:\n");
    wait_until(
        "those of a container with --rm go with it",
        PATIENCE,
        || listed() == 2,
    );
    place.says(&["start", "-a", "keeps"], "of the image 750 1000\n2\n");
    place.user.run(["rm", "-v", "keeps"]).expect(0);
    assert_eq!(listed(), 0);
    // A directory of this computer in the same place comes first.
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("here"), "").unwrap();
    let mount = format!("{}:/data", dir.path().display());
    place.says(
        &["run", "--rm", "-v", &mount, "volume:1", "ls", "/data"],
        "here\n",
    );
    wait_until("the other one goes with its container", PATIENCE, || {
        listed() == 0
    });
}

fn signals(place: &Place) {
    let script = "for s in INT USR1 TERM; do trap \"echo got $s; exit 7\" $s; done; echo up; \
                  while :; do sleep 0.05; done";
    place.image("int:1", &["STOPSIGNAL SIGINT"]);
    place.image("ten:1", &["STOPSIGNAL 10"]);
    for (image, options, signal) in [
        ("int:1", &[][..], "INT"),
        ("ten:1", &[], "USR1"),
        ("int:1", &["--stop-signal", "TERM"], "TERM"),
        ("filled:1", &[], "TERM"),
    ] {
        let create = [&["run", "-d", "--name", "stops"], options].concat();
        place
            .user
            .run([&create[..], &[image, "sh", "-c", script]].concat())
            .expect(0);
        wait_until("the container is up", PATIENCE, || {
            place.user.run(["logs", "stops"]).expect(0).text() == "up\n"
        });
        place.user.run(["stop", "-t", "200", "stops"]).expect(0);
        place.says(&["logs", "stops"], &format!("up\ngot {signal}\n"));
        place.says(&["wait", "stops"], "7\n");
        place.user.run(["rm", "stops"]).expect(0);
    }
}

fn ports(place: &Place) {
    place.image("ports:1", &["EXPOSE 80 53/udp"]);
    let serve = "while :; do echo served | nc -l -p 80; done";
    let run = ["run", "-d", "-P", "--name", "web", "ports:1"];
    place
        .user
        .run([&run[..], &["sh", "-c", serve]].concat())
        .expect(0);
    let port = |name: &str| -> u16 {
        let text = place.user.run(["port", "web", name]).expect(0).text();
        let address = text.trim().strip_prefix("127.0.0.1:");
        address.unwrap_or_else(|| panic!("{text}")).parse().unwrap()
    };
    let (tcp, udp) = (port("80/tcp"), port("53/udp"));
    let all = place.user.run(["port", "web"]).expect(0).text();
    assert_eq!(all.lines().count(), 2, "{all}");
    wait_until("an answer by TCP", PATIENCE, || {
        let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, tcp)) else {
            return false;
        };
        let limit = Some(Duration::from_secs(20));
        stream.set_read_timeout(limit).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).is_ok() && answer == "served\n"
    });
    // The other one is somebody's too (`sandbox.rs` sends datagrams to one).
    assert!(UdpSocket::bind((Ipv4Addr::LOCALHOST, udp)).is_err());
    place.user.run(["rm", "-f", "web"]).expect(0);
}

/// An image of a container, pushed and pulled again.
fn from_a_registry(place: &Place) {
    let user = &place.user;
    place.image("filled:2", &["ENV FIRST=1", "USER app", "LABEL kind=first"]);
    let run = ["run", "--name", "made", "filled:2", "sh", "-c"];
    user.run([&run[..], &["echo made > /tmp/made"]].concat())
        .expect(0);
    let registry = Registry::start();
    let name = format!("{}/own/made:1", registry.host());
    let mut commit = vec!["commit"];
    for change in [
        "ENTRYPOINT [\"/bin/sh\", \"-c\"]",
        "CMD [\"cat made; id -un; echo $FIRST $SECOND; pwd\"]",
        "ENV SECOND=2",
        "WORKDIR /tmp",
        "LABEL kind=second",
        "STOPSIGNAL SIGUSR1",
        "EXPOSE 8080",
        "VOLUME /vol",
    ] {
        commit.extend(["-c", change]);
    }
    commit.extend(["made", "made:1"]);
    user.run(commit).expect(0);
    user.run(["rm", "made"]).expect(0);
    let config = |name: &str| place.inspect(&["--type", "image", name])["Config"].take();
    let made = config("made:1");
    for (field, value) in [
        ("User", json!("app")),
        ("WorkingDir", json!("/tmp")),
        ("StopSignal", json!("SIGUSR1")),
        ("Labels", json!({"kind": "second"})),
        ("ExposedPorts", json!({"8080/tcp": {}})),
        ("Volumes", json!({"/vol": {}})),
        ("Entrypoint", json!(["/bin/sh", "-c"])),
    ] {
        assert_eq!(made[field], value, "{made}");
    }
    place.says(&["run", "--rm", "made:1"], "made\napp\n1 2\n/tmp\n");
    user.run(["tag", "made:1", &name]).expect(0);
    user.run(["push", &name]).expect(0);
    for pull_in in ["host", "guest"] {
        user.run(["rmi", "-f", "made:1"]).expect(0);
        user.run(["image", "prune", "-a", "-f"]).expect(0);
        user.run(["vstorage", "clean", "--layers"]).expect(0);
        let pull = ["--pull-in", pull_in, "pull", "-q", &name];
        let stored = user.run(pull).expect(0).text();
        assert_eq!(config(stored.trim()), made, "{pull_in}");
        user.run(["tag", stored.trim(), "made:1"]).expect(0);
        place.says(&["run", "--rm", "made:1"], "made\napp\n1 2\n/tmp\n");
        // Two names of one image.
        let by_label = [
            "images",
            "--filter",
            "label=kind=second",
            "--format",
            "{{.ID}}",
        ];
        let ids = user.run(by_label).expect(0).text();
        let ids: Vec<&str> = ids.lines().collect();
        assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
        user.run(["rmi", stored.trim()]).expect(0);
    }
}
