//! `vdkr --target` against an agent without a machine, over a socket and over a line.

mod fake_agent;
mod user;

use std::{
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    os::unix::net::{UnixListener, UnixStream},
    thread,
};

use nix::pty::{OpenptyResult, openpty};
use user::{User, status, stderr};
use vdkr_core::channel::message::{Network, Request};

/// A user, and the agent's address.
fn user() -> (User, String) {
    let user = User::with_agent();
    let address = format!("unix:{}", user.state_dir().join("vdkr.sock").display());
    (user, address)
}

#[test]
fn a_target_gets_requests_and_no_disks() {
    let (user, address) = user();
    let output = user.run(&["--target", &address, "run", "--rm", "img", "x"]);
    status(&output, 0);
    let run = user.last_run();
    assert_eq!(run.image, "img");
    assert!(run.settings.defaults, "the target's own registry holds");
    assert_eq!(run.sandbox.network, Network::Default);
    let output = user.run(&["--target", &address, "pull", "img"]);
    status(&output, 0);
    assert!(user.last_pull().settings.defaults);
    for args in [
        &["--registry", "r.example.com/x"][..],
        &["--no-registry"],
        &["--registry", "none"],
    ] {
        status(
            &user.run(&[&["--target", &address][..], args, &["pull", "img"]].concat()),
            0,
        );
        assert!(!user.last_pull().settings.defaults, "{args:?}");
    }
    let asked = user.requests();
    let of_disks = |request: &Request| {
        matches!(
            request,
            Request::Layers { .. } | Request::AttachDisk(_) | Request::Publish(_)
        )
    };
    assert!(!asked.iter().any(of_disks), "{asked:?}");
    // Nothing is left behind for a machine that was never meant.
    let dirs: Vec<_> = std::fs::read_dir(user.home.path().join(".vdkr"))
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert_eq!(dirs, ["x86_64"]);
}

#[test]
fn localhost_is_refused_where_it_is_somebody_else() {
    let (user, address) = user();
    for args in [
        &["--registry", "localhost:5000/yocto", "pull", "img"][..],
        &["pull", "localhost:5000/yocto/img"],
        &["run", "127.0.0.1:5000/img"],
    ] {
        let output = user.run(&[&["--target", &address][..], args].concat());
        assert_ne!(output.status.code(), Some(0));
        let words = stderr(&output);
        assert!(
            words.contains("does not reach this computer as localhost")
                && words.contains("--registry"),
            "{words}"
        );
    }
    assert!(user.requests().is_empty());
}

#[test]
fn what_is_wrong_with_a_target_is_told() {
    let (user, address) = user();
    for (target, code, word) in [
        ("tcp:1", 2, "vsock:CID"),
        ("serial:ttyS0", 2, "from the root"),
        ("unix:/no/such/socket", 3, "vdkr-agent serve"),
        ("serial:/dev/null", 3, "serial:/dev/null"),
        // Nobody's, with and without the device.
        ("vsock:4294967290", 3, "vsock:4294967290"),
    ] {
        let output = user.run(&["--target", target, "images"]);
        status(&output, code);
        assert!(stderr(&output).contains(word), "{}", stderr(&output));
    }
    for args in [
        &["memres", "start"][..],
        &["vstorage", "df"],
        &["port", "x"],
    ] {
        let output = user.run(&[&["--target", &address][..], args].concat());
        status(&output, 2);
        assert!(stderr(&output).contains("target"), "{}", stderr(&output));
    }
    // The configuration's target, and none in its place.
    status(&user.run(&["vconfig", "target", "unix:/no/such"]), 0);
    status(&user.run(&["images"]), 3);
    status(&user.run(&["--target", "none", "images"]), 0);
    status(&user.run(&["vconfig", "target", "/dev/ttyS0"]), 2);
}

#[test]
fn nonsense_from_a_target_is_an_error() {
    let user = User::new();
    let path = user.home.path().join("bad.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            // The marker comes back, and then a frame of four gigabytes.
            let mut stream: UnixStream = stream.unwrap();
            let mut marker = [0; 15];
            stream.read_exact(&mut marker).unwrap();
            stream.write_all(&marker).unwrap();
            stream.write_all(&[0xff; 64]).unwrap();
        }
    });
    let target = format!("unix:{}", path.display());
    let output = user.run(&["--target", &target, "images"]);
    status(&output, 3);
    assert!(stderr(&output).contains(&target), "{}", stderr(&output));
}

#[test]
fn a_serial_line_passes_every_byte() {
    let (user, _) = user();
    let OpenptyResult { master, slave } = openpty(None, None).unwrap();
    let path = nix::unistd::ttyname(&slave).unwrap();
    // What comes over the line goes to the agent, as a serial port's driver would have it.
    let agent = UnixStream::connect(user.state_dir().join("vdkr.sock")).unwrap();
    let _lines = bridge(master, agent);
    let target = format!("serial:{}", path.display());
    let every: Vec<u8> = (0..=255).cycle().take(20_000).collect();
    let args = ["--target", &target, "run", "--rm", "-i", "img", "cat"];
    let output = user.run_with_input(&args, &every);
    status(&output, 0);
    assert!(output.stdout == every, "{} bytes", output.stdout.len());
}

/// Carries bytes between a terminal and a socket.
fn bridge(master: OwnedFd, agent: UnixStream) -> [thread::JoinHandle<()>; 2] {
    let mut from_line = std::fs::File::from(master.try_clone().unwrap());
    let mut to_line = std::fs::File::from(master);
    let (mut from_agent, mut to_agent) = (agent.try_clone().unwrap(), agent);
    [
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // Between two commands nobody has the line open, which reads as an error.
            loop {
                match from_line.read(&mut buffer) {
                    Ok(length @ 1..) => {
                        if to_agent.write_all(&buffer[..length]).is_err() {
                            return;
                        }
                    }
                    _ => thread::sleep(std::time::Duration::from_millis(5)),
                }
            }
        }),
        thread::spawn(move || {
            let _ = std::io::copy(&mut from_agent, &mut to_line);
        }),
    ]
}
