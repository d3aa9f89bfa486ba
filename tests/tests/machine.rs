//! The machine itself: its processors, its disk, what is known of it, and what a kill leaves behind.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::process::{Ran, free_port, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "container-base";
const TCG: [&str; 2] = ["--accel", "tcg"];
const MIB: u64 = 1 << 20;

fn filled_registry() -> Registry {
    let registry = Registry::start();
    let deploy = deploy_dir();
    registry
        .run(["push", "--deploy-dir-images", deploy.to_str().unwrap()])
        .expect(0);
    registry
}

fn user_of(arch: &'static str, registry: &Registry) -> User {
    let user = User::new(arch);
    user.run(["vconfig", "registry", &format!("{}/yocto", registry.host())])
        .expect(0);
    user
}

fn run(user: &User, words: &[&str]) -> Ran {
    user.run(TCG.iter().chain(words).copied())
}

/// What a script in a new container says.
fn sh(user: &User, script: &str) -> String {
    let words = ["run", "--rm", IMAGE, "sh", "-c", script];
    run(user, &words).expect(0).text()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn processors_are_of_the_model_and_the_number_that_was_wished() {
    let registry = filled_registry();
    let user = user_of("x86_64", &registry);
    let cpuinfo = "grep -c ^processor /proc/cpuinfo; grep -m1 ^flags /proc/cpuinfo";
    let has = |text: &str, flag: &str| text.split_whitespace().any(|word| word == flag);
    // The first process of a container does not die of its own signals.
    let dies = "sh -c 'kill -ILL $$'; exit $?";
    let illegal = ["run", "--rm", IMAGE, "sh", "-c", dies];

    run(&user, &["memres", "start"]).expect(0);
    let said = sh(&user, cpuinfo);
    assert!(said.starts_with("1\n") && has(&said, "sse2"), "{said}");
    assert!(!has(&said, "sse4_2") && !has(&said, "avx2"), "{said}");
    // What a program dies of that needs more, and the way out.
    let died = run(&user, &illegal).expect(132);
    let hint = "--cpu max,-erms memres restart";
    assert!(died.stderr.contains(hint), "{}", died.stderr);
    let more = ["--cpu", "max,-erms", "--cpus", "2"];
    let told = run(&user, &[&more[..], &["images"]].concat()).expect(0);
    for option in ["--cpu ", "--cpus "] {
        let words = format!("{option}has no effect on the machine that is running");
        assert!(told.stderr.contains(&words), "{}", told.stderr);
    }

    run(&user, &[&more[..], &["memres", "restart"]].concat()).expect(0);
    let said = sh(&user, cpuinfo);
    assert!(said.starts_with("2\n"), "{said}");
    assert!(has(&said, "sse4_2") && has(&said, "avx2"), "{said}");
    assert!(!has(&said, "erms"), "{said}");
    let died = run(&user, &illegal).expect(132);
    assert!(!died.stderr.contains("--cpu"), "{}", died.stderr);
    let status = run(&user, &["memres", "status"]).expect(0).text();
    assert!(status.contains("2 max,-erms"), "{status}");
    run(&user, &["memres", "stop"]).expect(0);
    // Each of them began with a snapshot of its own.
    let snapshots = fs::read_dir(user.home().join(".cache/vdkr/snapshots")).unwrap();
    let snapshots = snapshots.filter(|entry| entry.as_ref().unwrap().path().is_dir());
    assert_eq!(snapshots.count(), 2);

    user.run(["vconfig", "cpus", "2"]).expect(0);
    let said = sh(&user, "nproc");
    assert_eq!(said, "2\n");
    let refused = run(&user, &["--cpu", "no-such-model", "--stateless", "images"]);
    assert_ne!(refused.code(), 0);
    assert!(
        refused.stderr.contains("no-such-model"),
        "{}",
        refused.stderr
    );
    for wrong in [["--cpu", "max,erms"], ["--cpu", "2"], ["--cpus", "0"]] {
        let refused = run(&user, &[&wrong[..], &["images"]].concat()).expect(2);
        assert!(refused.stderr.contains(wrong[0]), "{}", refused.stderr);
    }
}

#[test]
fn an_arm_machine_has_many_processors_of_another_model() {
    let user = User::new("aarch64");
    let info = |options: &[&str]| {
        let words = [options, &["--stateless", "info", "--format", "{{.NCPU}}"]].concat();
        run(&user, &words).expect(0).text()
    };
    assert_eq!(info(&[]), "1\n");
    // More than the ordinary interrupt controller serves.
    assert_eq!(info(&["--cpus", "9", "--cpu", "max,pauth=off"]), "9\n");
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn what_becomes_free_in_the_machine_becomes_free_on_this_computer() {
    let registry = filled_registry();
    let user = user_of("x86_64", &registry);
    let disk = user.state_dir().join("state.img");
    run(&user, &["memres", "start"]).expect(0);
    run(&user, &["--pull-in", "guest", "pull", IMAGE]).expect(0);
    sh(&user, "sync");
    let with_image = allocated(&disk);

    let fill = "dd if=/dev/urandom of=/b/file bs=1M count=24 2>/dev/null; sync";
    let words = ["run", "--rm", "-v", "big:/b", IMAGE, "sh", "-c", fill];
    run(&user, &words).expect(0);
    let full = allocated(&disk);
    assert!(full >= with_image + 24 * MIB, "{with_image} {full}");
    run(&user, &["volume", "rm", "big"]).expect(0);
    wait_until("the volume's room is given back", PATIENCE, || {
        allocated(&disk) + 20 * MIB < full
    });

    let before = allocated(&disk);
    run(&user, &["rmi", IMAGE]).expect(0);
    wait_until("the image's room is given back", PATIENCE, || {
        allocated(&disk) + MIB < before
    });

    // A machine for one command gives back what that frees, too.
    run(&user, &["memres", "stop"]).expect(0);
    run(&user, &["--pull-in", "guest", "pull", IMAGE]).expect(0);
    run(&user, &words).expect(0);
    let full = allocated(&disk);
    run(&user, &["volume", "rm", "big"]).expect(0);
    assert!(allocated(&disk) + 20 * MIB < full, "{full}");
}

#[test]
fn a_machine_that_was_killed_leaves_nothing_that_others_stumble_over() {
    let user = User::new("x86_64");
    let left = || {
        ["vdkr.sock", "monitor.json"]
            .iter()
            .filter(|name| user.state_dir().join(name).symlink_metadata().is_ok())
            .count()
    };
    for command in [
        &["memres", "status"][..],
        &["memres", "list"],
        &["memres", "stop"],
    ] {
        run(&user, &["memres", "start"]).expect(0);
        assert_eq!(left(), 2);
        let status = run(&user, &["memres", "status", "--json"]).expect(0).text();
        let pid = json(&status)["monitor"]["pid"].as_i64().unwrap();
        kill(Pid::from_raw(i32::try_from(pid).unwrap()), Signal::SIGKILL).unwrap();
        // Its emulator goes a moment later, and until then the directory is in use.
        wait_until("nothing is left", PATIENCE, || {
            run(&user, command);
            left() == 0
        });
    }
    run(&user, &["memres", "status"]).expect(3);
}

#[test]
fn what_docker_tells_of_containers_is_told() {
    let registry = filled_registry();
    let user = user_of("x86_64", &registry);
    run(&user, &["memres", "start"]).expect(0);
    let inspect = |name: &str| json(&run(&user, &["inspect", name]).expect(0).text())[0].clone();

    // Killed for want of memory, or for another reason.
    for (name, limit, script, status, killed) in [
        (
            "small",
            "16m",
            "x=0123456789abcdef; while :; do x=$x$x; done",
            137,
            true,
        ),
        ("shot", "64m", "sh -c 'kill -KILL $$'; exit $?", 137, false),
        ("fine", "64m", "true", 0, false),
    ] {
        let run_it = ["run", "--name", name, "-m", limit, "--memory-swap", limit];
        run(&user, &[&run_it[..], &[IMAGE, "sh", "-c", script]].concat()).expect(status);
        let state = &inspect(name)["State"];
        assert_eq!(state["OOMKilled"], killed, "{name}: {state}");
    }
    // The next start begins anew.
    run(&user, &["start", "-a", "small"]).expect(137);
    assert_eq!(inspect("small")["State"]["OOMKilled"], true);

    // Ports, as long as they are open and afterwards.
    let port = free_port().to_string();
    let publish = format!("{port}:80");
    let serve = [
        "run", "-d", "--name", "web", "-p", &publish, IMAGE, "sleep", "1000",
    ];
    run(&user, &serve).expect(0);
    let place = format!("127.0.0.1:{port}->80/tcp");
    let listed = run(&user, &["memres", "list"]).expect(0).text();
    assert!(
        listed.contains("PORTS") && listed.contains(&place),
        "{listed}"
    );
    let listed = json(&run(&user, &["memres", "list", "--json"]).expect(0).text());
    assert_eq!(listed[0]["ports"][0], place.as_str(), "{listed}");
    let bound = |document: &Value| document["HostConfig"]["PortBindings"]["80/tcp"][0].clone();
    assert_eq!(bound(&inspect("web"))["HostPort"], port.as_str());
    run(&user, &["stop", "-t", "0", "web"]).expect(0);
    let stopped = inspect("web");
    assert_eq!(bound(&stopped)["HostPort"], port.as_str(), "{stopped}");
    assert_eq!(stopped["NetworkSettings"]["Ports"], json("{}"));

    // Volumes are found by their names as well.
    run(&user, &["volume", "create", "things"]).expect(0);
    assert_eq!(inspect("things")["Driver"], "local");
    let typed = [
        "inspect",
        "--type",
        "volume",
        "--format",
        "{{.Name}}",
        "things",
    ];
    assert_eq!(run(&user, &typed).expect(0).text(), "things\n");
    run(&user, &["inspect", "--type", "image", "things"]).expect(5);
    run(&user, &["inspect", "nothing"]).expect(5);

    // Each waits for the others' signals: one after the other would not end well.
    let waits = |own: &str| {
        format!(
            "trap 'touch /v/{own}; while [ $(ls /v | wc -l) -lt 6 ]; do sleep 0.1; done; exit 0' TERM; \
             touch /v/up-{own}; while :; do sleep 0.1; done"
        )
    };
    let names = ["one", "two", "three"];
    for name in names {
        let words = ["run", "-d", "--name", name, "-v", "things:/v", IMAGE];
        run(&user, &[&words[..], &["sh", "-c", &waits(name)]].concat()).expect(0);
    }
    let up = ["exec", "one", "sh", "-c", "ls /v | grep -c up-"];
    wait_until("all have their traps", PATIENCE, || {
        run(&user, &up).text().trim() == "3"
    });
    let stop = [&["stop", "-t", "100"][..], &names, &["nobody"]].concat();
    let stopped = run(&user, &stop).expect(7);
    assert_eq!(stopped.text(), "one\ntwo\nthree\n");
    assert!(stopped.stderr.contains("nobody"), "{}", stopped.stderr);
    for name in names {
        assert_eq!(inspect(name)["State"]["ExitCode"], 0, "{name}");
    }

    // Expressions for names; containers that do not run have figures too.
    let ps = ["ps", "-a", "--format", "{{.Names}}", "-f"];
    let named = |filter: &str| run(&user, &[&ps[..], &[filter]].concat()).expect(0).text();
    assert_eq!(named("name=^t[a-w]"), "three\ntwo\n");
    assert_eq!(named("name=^/o.e$|^w"), "one\nweb\n");
    run(&user, &[&ps[..], &["name=(a|b)"]].concat()).expect(2);
    let stats = ["stats", "-a", "--no-stream", "--format", "{{.Name}}"];
    let all = run(&user, &stats).expect(0).text();
    assert!(all.contains("web") && all.contains("small"), "{all}");
    run(&user, &["tag", IMAGE, "other/name:1"]).expect(0);
    let images = ["images", "-q", "-f", "reference=other/*", "-f"];
    let both = run(
        &user,
        &[&images[..3], &images[3..], &["reference=nothing"]].concat(),
    );
    assert_eq!(both.expect(0).text().lines().count(), 1);
    run(&user, &["memres", "stop"]).expect(0);
}
