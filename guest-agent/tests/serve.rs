//! The agent as a program on a development host: `vdkr-agent serve` on a unix socket, driven by a
//! host of a few lines. No privileges, no network.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command},
    time::{Duration, Instant},
};

use vdkr_core::channel::{
    Decoder, Frame, Kind, SyncMarker, SyncScanner, encode,
    message::{
        Done, Failure, FailureCode, GuestHello, HostHello, Message, Reply, Request, RunRequest,
    },
};

struct Agent(Child);

impl Agent {
    fn start(dir: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .arg("serve")
            .arg(format!(
                "--channel=unix:{}",
                dir.join("agent.sock").display()
            ))
            .arg("--state")
            .arg(dir.join("state"))
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for the end and says whether it was a success.
    fn ended(&mut self) -> bool {
        self.0.wait().unwrap().success()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Host {
    pipe: UnixStream,
    decoder: Decoder,
    hello: GuestHello,
    next: u32,
}

impl Host {
    fn connect(dir: &Path) -> Self {
        let deadline = Instant::now() + Duration::from_mins(1);
        let mut pipe = loop {
            match UnixStream::connect(dir.join("agent.sock")) {
                Ok(pipe) => break pipe,
                Err(error) if Instant::now() > deadline => {
                    panic!("the agent is not there: {error}")
                }
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        pipe.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let marker = SyncMarker::new(*b"12345678");
        pipe.write_all(&marker.to_bytes()).unwrap();
        let mut decoder = Decoder::new();
        let mut scanner = SyncScanner::exactly(marker);
        let mut buffer = [0; 4096];
        loop {
            let length = pipe.read(&mut buffer).unwrap();
            assert!(length > 0, "the agent hung up");
            if let Some((_, rest)) = scanner.push(&buffer[..length]) {
                decoder.push(rest);
                break;
            }
        }
        let mut bytes = Vec::new();
        HostHello::new("test", 0, &[1; 32])
            .encode(&mut bytes, 0)
            .unwrap();
        pipe.write_all(&bytes).unwrap();
        let mut host = Self {
            pipe,
            decoder,
            hello: GuestHello::default(),
            next: 1,
        };
        let frame = host.next();
        assert_eq!(frame.kind, Kind::Hello);
        host.hello = GuestHello::decode(&frame.payload).unwrap();
        host
    }

    fn next(&mut self) -> Frame {
        let mut buffer = [0; 4096];
        loop {
            if let Some(frame) = self.decoder.next().unwrap() {
                return frame;
            }
            let length = self.pipe.read(&mut buffer).unwrap();
            assert!(length > 0, "the agent hung up");
            self.decoder.push(&buffer[..length]);
        }
    }

    fn ask(&mut self, request: &Request) -> Done {
        let stream = self.next;
        self.next += 1;
        let mut bytes = Vec::new();
        request.encode(&mut bytes, stream).unwrap();
        self.pipe.write_all(&bytes).unwrap();
        loop {
            let frame = self.next();
            if frame.kind == Kind::Done && frame.stream == stream {
                return Done::decode(&frame.payload).unwrap();
            }
        }
    }
}

fn code(done: Done) -> FailureCode {
    done.map_err(|Failure { code, .. }| code).unwrap_err()
}

#[test]
fn answers_until_it_is_told_to_stop() {
    let dir = tempfile::tempdir().unwrap();
    let mut agent = Agent::start(dir.path());
    let mut host = Host::connect(dir.path());
    assert_eq!(host.hello.engine, "native");
    assert!(host.hello.software.starts_with("vdkr-agent "));

    assert_eq!(
        host.ask(&Request::Images),
        Ok(Reply::Images { images: vec![] })
    );
    let Ok(Reply::Info(info)) = host.ask(&Request::Info) else {
        panic!("no info");
    };
    assert!(info.memory_total > 0 && info.state_total > 0, "{info:?}");
    assert_eq!(info.containers, 0);
    let names = vec!["nowhere".to_owned()];
    assert_eq!(
        code(host.ask(&Request::Inspect { names })),
        FailureCode::NotFound
    );
    let run = RunRequest {
        image: "nowhere".into(),
        pull: vdkr_core::channel::message::PullPolicy::Never,
        ..RunRequest::default()
    };
    assert_eq!(code(host.ask(&Request::Run(run))), FailureCode::NotFound);
    assert_eq!(code(host.ask(&Request::Unknown)), FailureCode::Unsupported);

    // Hosts do not disturb one another.
    let mut second = Host::connect(dir.path());
    assert_eq!(
        second.ask(&Request::Images),
        Ok(Reply::Images { images: vec![] })
    );
    drop(second);

    assert_eq!(host.ask(&Request::Shutdown), Ok(Reply::Bye));
    assert!(agent.ended());
    assert!(!dir.path().join("agent.sock").exists());
}

#[test]
fn the_agents_own_commands_meet_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let agent = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .args(args)
            .arg("--state-dir")
            .arg(&state)
            .output()
            .unwrap()
    };
    let never = ["run", "--pull", "never", "--state-dir"];
    let state_text = state.to_str().unwrap();
    let run = |image: &str| {
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .args(never)
            .args([state_text, image])
            .output()
            .unwrap()
    };
    // Without a service a command is its own agent, for as long as it lasts.
    let output = run("nowhere");
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{words}");
    assert!(words.contains("nowhere"), "{words}");
    let output = Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
        .args(["run", "-d", "--state-dir", state_text, "nowhere"])
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("service"));

    let mut service = Agent::start(dir.path());
    let mut host = Host::connect(dir.path());
    assert!(state.join("agent.sock").exists());
    // The state has one agent: the command goes through the service, a second service is refused.
    let output = run("nowhere");
    assert_eq!(output.status.code(), Some(125));
    assert!(String::from_utf8_lossy(&output.stderr).contains("nowhere"));
    let second = agent(&[
        "serve",
        "--unix",
        dir.path().join("b.sock").to_str().unwrap(),
    ]);
    assert_eq!(second.status.code(), Some(1));
    let words = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(words.contains("in use by another agent"), "{words}");
    let status = agent(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("service: running"));
    assert_eq!(host.ask(&Request::Shutdown), Ok(Reply::Bye));
    assert!(service.ended());
    let status = agent(&["status"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("service: not running"));
}

#[test]
fn a_channel_that_is_not_there_leaves_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let start = |channels: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .arg("serve")
            .args(channels)
            .arg("--state-dir")
            .arg(dir.path().join("state"))
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap()
    };
    let socket = format!("unix:{}", dir.path().join("agent.sock").display());
    let mut service = Agent(start(&[
        "--channel",
        &socket,
        "--serial",
        "/dev/no-such-line",
    ]));
    let mut host = Host::connect(dir.path());
    assert_eq!(
        host.ask(&Request::Images),
        Ok(Reply::Images { images: vec![] })
    );
    assert_eq!(host.ask(&Request::Shutdown), Ok(Reply::Bye));
    assert!(service.ended());
    let ended = start(&["--serial", "/dev/no-such-line"])
        .wait_with_output()
        .unwrap();
    assert_eq!(ended.status.code(), Some(1), "nobody could come in");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("/dev/no-such-line"));
}

#[test]
fn a_serial_line_serves_one_host_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let master =
        rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY)
            .unwrap();
    rustix::pty::grantpt(&master).unwrap();
    rustix::pty::unlockpt(&master).unwrap();
    let line = rustix::pty::ptsname(&master, Vec::new()).unwrap();
    let _agent = Agent(
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .args(["serve", "--serial", line.to_str().unwrap(), "--state-dir"])
            .arg(dir.path().join("state"))
            .spawn()
            .unwrap(),
    );
    // Raw mode shows that the agent has the line.
    let deadline = Instant::now() + Duration::from_mins(1);
    let is_raw = || {
        let mode = rustix::termios::tcgetattr(&master).unwrap();
        !mode
            .local_modes
            .contains(rustix::termios::LocalModes::ICANON)
    };
    while !is_raw() {
        assert!(
            Instant::now() < deadline,
            "the agent does not open the line"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut file = std::fs::File::from(master);
    for nonce in [*b"12345678", *b"abcdefgh"] {
        // The one before leaves without a word, within a frame.
        let marker = SyncMarker::new(nonce);
        file.write_all(&marker.to_bytes()).unwrap();
        let mut scanner = SyncScanner::exactly(marker);
        let mut decoder = Decoder::new();
        let mut buffer = [0; 4096];
        loop {
            let length = file.read(&mut buffer).unwrap();
            if let Some((_, rest)) = scanner.push(&buffer[..length]) {
                decoder.push(rest);
                break;
            }
        }
        let mut bytes = Vec::new();
        HostHello::new("test", 0, &[1; 32])
            .encode(&mut bytes, 0)
            .unwrap();
        Request::Images.encode(&mut bytes, 7).unwrap();
        // The beginning of a request that never ends.
        let mut half = Vec::new();
        Request::Info.encode(&mut half, 8).unwrap();
        bytes.extend(&half[..half.len() - 2]);
        file.write_all(&bytes).unwrap();
        let answer = loop {
            if let Some(frame) = decoder.next().unwrap() {
                if frame.kind == Kind::Done {
                    break Done::decode(&frame.payload).unwrap();
                }
                continue;
            }
            let length = file.read(&mut buffer).unwrap();
            decoder.push(&buffer[..length]);
        };
        assert_eq!(answer, Ok(Reply::Images { images: vec![] }));
    }
}

#[test]
fn a_host_that_talks_nonsense_hurts_only_itself() {
    let dir = tempfile::tempdir().unwrap();
    let _agent = Agent::start(dir.path());
    let mut host = Host::connect(dir.path());
    let mut other = Host::connect(dir.path());
    let mut bytes = Vec::new();
    encode(&mut bytes, Kind::Open, 1, b"not json").unwrap();
    // A header that announces four gigabytes.
    bytes.extend([0xff; 9]);
    other.pipe.write_all(&bytes).unwrap();
    assert_eq!(
        host.ask(&Request::Images),
        Ok(Reply::Images { images: vec![] })
    );
}

#[test]
fn wrong_usage_is_told_and_the_version_known() {
    let run = |args: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_vdkr-agent"))
            .args(args)
            .output()
    };
    let output = run(&["serve", "--channel", "tcp:1"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("tcp:1"));
    let output = run(&["--version"]).unwrap();
    assert!(output.stdout.starts_with(b"vdkr-agent "));
    // The half that only the agent itself may start.
    let output = run(&["container-init"]).unwrap();
    assert_eq!(output.status.code(), Some(2));
}
