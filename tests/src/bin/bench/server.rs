//! Our registry against Debian's docker-registry, with foreign clients.

use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use vdkr_tests::peers::{ACCEPT, DockerRegistry, skopeo_copy};
use vdkr_tests::process::{Background, free_port, program, run_within, tool};

use crate::push::images;
use crate::table::{Samples, compare};
use crate::{ROUNDS, settle, timed};

/// A server under measurement: how to start it on an empty directory.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ours,
    Theirs,
}

struct Server {
    process: Background,
    host: String,
    _dir: TempDir,
}

fn start(kind: Kind) -> (Duration, Server) {
    let dir = TempDir::new().expect("a temporary directory");
    let port = free_port();
    let mut command = match kind {
        Kind::Ours => {
            let mut command = Command::new(program("container-registry"));
            command
                .env("CONTAINER_REGISTRY_URL", format!("localhost:{port}"))
                .env("CONTAINER_REGISTRY_STORAGE", dir.path())
                .arg("serve");
            command
        }
        Kind::Theirs => {
            let config = DockerRegistry::configuration(&dir.path().join("data"), dir.path(), port);
            let mut command = tool("docker-registry");
            command.arg("serve").arg(config);
            command
        }
    };
    command
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    settle();
    let (time, process) = timed(|| {
        let process = Background(command.spawn().expect("start a server"));
        while !answers(port) {
            std::thread::sleep(Duration::from_micros(500));
        }
        process
    });
    (
        time,
        Server {
            process,
            host: format!("localhost:{port}"),
            _dir: dir,
        },
    )
}

/// One `GET /v2/`, answered with 200.
fn answers(port: u16) -> bool {
    use std::io::{Read as _, Write as _};
    let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)) else {
        return false;
    };
    let request = "GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let mut answer = [0; 12];
    stream.write_all(request.as_bytes()).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer.ends_with(b"200")
}

/// A field of `/proc/PID/status`, in MiB.
fn memory(server: &Server, field: &str) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.0.id()));
    let status = status.unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with(field))
        .unwrap_or_default();
    let kib: f64 = line
        .split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .unwrap_or(f64::NAN);
    kib / 1024.0
}

fn requests_per_second(url: &str, connections: u32) -> f64 {
    let connections = format!("-c{connections}");
    let mut command = tool("wrk");
    command.args(["-t1", &connections, "-d2s", "-H", ACCEPT, url]);
    let ran = run_within(&mut command, b"", Duration::from_mins(1))
        .expect(0)
        .text();
    let line = ran
        .lines()
        .find(|line| line.starts_with("Requests/sec:"))
        .expect("wrk's summary");
    line.split_whitespace()
        .nth(1)
        .and_then(|n| n.parse().ok())
        .expect("a number")
}

fn copy_in(server: &Server, image: &Path) {
    skopeo_copy(
        &format!("oci:{}", image.display()),
        &format!("docker://{}/bench/image:latest", server.host),
    );
}

fn copy_out(server: &Server) {
    let dir = TempDir::new().expect("a temporary directory");
    let target = format!("dir:{}", dir.path().display());
    skopeo_copy(
        &format!("docker://{}/bench/image:latest", server.host),
        &target,
    );
}

/// Prints the tables.
pub(crate) fn run() {
    // Before anything is started that nobody would stop.
    let _ = tool("wrk");
    println!("### Server: ours and Debian's docker-registry\n");
    println!(
        "Median (min–max) of {ROUNDS} rounds in turns, a new server on an empty storage each; \
         in-memory descriptor cache on, log level error. Both sync what they store.\n"
    );
    println!("| what | ours | docker-registry | ours better by |\n|---|---|---|---|");
    let dir = TempDir::new().expect("a temporary directory");
    let images = images(&dir);
    let mut rows: Vec<(String, [Samples; 2], usize, bool)> = Vec::new();
    for round in 0..ROUNDS {
        let mut at = 0;
        let mut turns = [Kind::Ours, Kind::Theirs];
        turns.rotate_left(round % 2);
        for kind in turns {
            at = 0;
            let mut record = |what: String, value: f64, decimals: usize, less: bool| {
                if rows.len() == at {
                    rows.push((what, Default::default(), decimals, less));
                }
                rows[at].1[kind as usize].add(value);
                at += 1;
            };
            let (ready, server) = start(kind);
            record(
                "start to first 200, ms".into(),
                ready.as_secs_f64() * 1e3,
                1,
                true,
            );
            std::thread::sleep(Duration::from_millis(500));
            record("RSS idle, MiB".into(), memory(&server, "VmRSS"), 1, true);
            for (name, image) in &images {
                settle();
                let push = timed(|| copy_in(&server, image)).0;
                record(
                    format!("skopeo push, {name}, s"),
                    push.as_secs_f64(),
                    3,
                    true,
                );
                let pull = timed(|| copy_out(&server)).0;
                record(
                    format!("skopeo pull, {name}, s"),
                    pull.as_secs_f64(),
                    3,
                    true,
                );
            }
            let manifest = format!("http://{}/v2/bench/image/manifests/latest", server.host);
            for connections in [1, 16, 64] {
                let rate = requests_per_second(&manifest, connections);
                record(
                    format!("manifest GET/s, {connections} connections"),
                    rate,
                    0,
                    false,
                );
            }
            record("RSS peak, MiB".into(), memory(&server, "VmHWM"), 1, true);
        }
        assert_eq!(at, rows.len(), "every round measures the same");
    }
    for (what, [ours, theirs], decimals, less) in &rows {
        compare(what, ours, theirs, *decimals, *less);
    }
    println!();
}
