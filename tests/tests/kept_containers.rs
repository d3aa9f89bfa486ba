//! Containers that outlive their machine: ports and directories of this computer are theirs again
//! whenever they start.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use vdkr_tests::fixtures::deploy_dir;
use vdkr_tests::process::{free_port, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "container-base";
/// Answers every visitor with what a file of this computer says.
const SERVER: &str = "while :; do nc -l -p 80 < /data/word; done";

fn ask(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    Some(answer).filter(|answer| !answer.is_empty())
}

#[track_caller]
fn answers(port: u16, word: &str) {
    let what = format!("the container says {word}");
    wait_until(&what, PATIENCE, || ask(port).as_deref() == Some(word));
}

#[track_caller]
fn is_closed(port: u16) {
    wait_until("the port is closed", PATIENCE, || {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
    });
}

fn notes(user: &User) -> usize {
    fs::read_dir(user.state_dir().join("granted")).map_or(0, Iterator::count)
}

#[test]
fn ports_and_directories_come_back_with_every_start() {
    let registry = Registry::start();
    let deploy = deploy_dir();
    registry
        .run(["push", "--deploy-dir-images", deploy.to_str().unwrap()])
        .expect(0);
    let user = User::new("x86_64");
    user.run(["vconfig", "registry", &format!("{}/yocto", registry.host())])
        .expect(0);
    let dir = tempfile::tempdir().unwrap();
    let say = |word: &str| fs::write(dir.path().join("word"), word).unwrap();
    let volume = format!("{}:/data", dir.path().display());
    let port = free_port();
    let publish = format!("{port}:80");
    let tcg = ["--accel", "tcg"];
    let memres = |word: &str| user.run([&tcg[..], &["memres", word]].concat()).expect(0);
    memres("start");

    say("one");
    let options = ["run", "-d", "--name", "web", "--restart", "unless-stopped"];
    let words = ["-p", &publish, "-v", &volume, IMAGE, "sh", "-c", SERVER];
    user.run([&options[..], &words].concat()).expect(0);
    answers(port, "one");
    assert_eq!(notes(&user), 1);

    // The machine has gone: its containers start with the next one.
    memres("stop");
    is_closed(port);
    say("two");
    memres("start");
    answers(port, "two");
    let shown = user.run(["port", "web"]).expect(0).text();
    assert_eq!(shown, format!("80/tcp -> 127.0.0.1:{port}\n"));
    // Started though it runs already: nothing changes.
    user.run(["start", "web"]).expect(0);
    answers(port, "two");

    // Within one machine.
    user.run(["restart", "-t", "1", "web"]).expect(0);
    say("three");
    answers(port, "three");
    user.run(["stop", "-t", "1", "web"]).expect(0);
    is_closed(port);
    user.run(["start", "web"]).expect(0);
    answers(port, "three");

    // Stopped, it stays so; its files are there all the same, and it starts when it is told to.
    user.run(["stop", "-t", "1", "web"]).expect(0);
    memres("restart");
    is_closed(port);
    let copied = dir.path().join("copied");
    user.run(["cp", "web:/etc/passwd", copied.to_str().unwrap()])
        .expect(0);
    assert!(copied.exists());
    user.run(["cp", copied.to_str().unwrap(), "web:/etc/copied"])
        .expect(0);
    user.run(["start", "web"]).expect(0);
    answers(port, "three");
    // It writes to this computer as before.
    user.run(["exec", "web", "cp", "/etc/copied", "/data/back"])
        .expect(0);
    assert_eq!(
        fs::read(dir.path().join("back")).unwrap(),
        fs::read(&copied).unwrap()
    );

    // A port that somebody else has, and a directory that is gone, are told of.
    user.run(["stop", "-t", "1", "web"]).expect(0);
    let taken = wait_for_port(port);
    let refused = user.run(["start", "web"]);
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert!(refused.stderr.contains(&port.to_string()), "{refused:?}");
    drop(taken);
    memres("restart");
    let elsewhere = dir.path().with_extension("elsewhere");
    fs::rename(dir.path(), &elsewhere).unwrap();
    let missing = user.run(["start", "web"]);
    assert_eq!(missing.code(), 5, "{missing:?}");
    fs::rename(&elsewhere, dir.path()).unwrap();
    user.run(["start", "web"]).expect(0);
    answers(port, "three");

    // Made first, started later; what it may only read it cannot write.
    let other = free_port();
    let publish = format!("{other}:80");
    let read_only = format!("{volume}:ro");
    let options = [
        "create", "--name", "later", "-p", &publish, "-v", &read_only,
    ];
    user.run([&options[..], &[IMAGE, "sh", "-c", SERVER]].concat())
        .expect(0);
    is_closed(other);
    memres("restart");
    user.run(["start", "later"]).expect(0);
    answers(other, "three");
    answers(port, "three");
    let write = user.run(["exec", "later", "touch", "/data/no"]);
    assert_ne!(write.code(), 0);
    assert!(!Path::new(&dir.path().join("no")).exists());

    // With the container goes what it was given.
    assert_eq!(notes(&user), 2);
    user.run(["rm", "-f", "web", "later"]).expect(0);
    is_closed(port);
    assert_eq!(notes(&user), 0);
}

fn wait_for_port(port: u16) -> TcpListener {
    let mut taken = None;
    wait_until("the port is closed", PATIENCE, || {
        taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).ok();
        taken.is_some()
    });
    taken.unwrap()
}
