//! A soak: clients push, move, delete and pull images with overlapping layers, while garbage is collected
//! with hardly any grace and server and clients are killed. A checker looks at everything all the time.
//!
//! What must hold at every moment: a tag resolves to a whole image with the right digests, and what was
//! acknowledged is there until it is deleted. A request without an answer may have happened or not.

mod check;
mod client;
mod program;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::http::{Answer, request};
use crate::process::free_port;
use crate::registry::Registry;

/// Clients that push on their own.
const CLIENTS: u64 = 4;

/// What was done.
#[derive(Debug, Default)]
pub struct Figures {
    pushes: AtomicU64,
    restarted_pushes: AtomicU64,
    skipped_blobs: AtomicU64,
    mounts: AtomicU64,
    deletes: AtomicU64,
    pulls: AtomicU64,
    checks: AtomicU64,
    collections: AtomicU64,
    freed_files: AtomicU64,
    freed_bytes: AtomicU64,
    server_kills: AtomicU64,
    client_kills: AtomicU64,
    unanswered: AtomicU64,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        write!(
            f,
            "{} pushes ({} begun again, {} blobs skipped, {} mounted), {} deletes, {} images pulled whole, \
             {} rounds of the checker, {} collections that freed {} files with {} bytes, {} kills of the \
             server, {} kills of a client, {} requests without an answer",
            get(&self.pushes),
            get(&self.restarted_pushes),
            get(&self.skipped_blobs),
            get(&self.mounts),
            get(&self.deletes),
            get(&self.pulls),
            get(&self.checks),
            get(&self.collections),
            get(&self.freed_files),
            get(&self.freed_bytes),
            get(&self.server_kills),
            get(&self.client_kills),
            get(&self.unanswered),
        )
    }
}

/// What all threads share.
struct World {
    port: u16,
    seed: u64,
    until: Instant,
    failed: AtomicBool,
    violations: Mutex<Vec<String>>,
    figures: Figures,
}

impl World {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until && !self.failed.load(Ordering::Relaxed)
    }

    fn violated(&self, what: String) {
        self.failed.store(true, Ordering::Relaxed);
        let mut violations = self
            .violations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        violations.push(what);
    }

    /// One request; `None` when there was no whole answer.
    fn ask(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Option<Answer> {
        let answer = request(self.port, method, path, headers, body).ok();
        if answer.is_none() {
            self.count(|figures| &figures.unanswered, 1);
        }
        answer
    }

    /// A reading request, repeated until the server is there; `None` when the soak has failed.
    fn get(&self, path: &str) -> Option<Answer> {
        let patience = Instant::now() + Duration::from_mins(1);
        loop {
            let accept = [("Accept", "*/*")];
            if let Ok(answer) = request(self.port, "GET", path, &accept, b"") {
                return Some(answer);
            }
            if self.failed.load(Ordering::Relaxed) {
                return None;
            }
            if Instant::now() > patience {
                self.violated(format!("the server has not answered {path} for a minute"));
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn count(&self, which: impl Fn(&Figures) -> &AtomicU64, by: u64) {
        which(&self.figures).fetch_add(by, Ordering::Relaxed);
    }

    fn dice(&self, who: u64) -> Dice {
        Dice((self.seed ^ (who + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }
}

/// Numbers that a seed decides.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

/// Runs a soak on a registry of its own.
///
/// # Panics
///
/// When anything was lost or half there, and when too little happened for that to mean something.
pub fn soak(duration: Duration, seed: u64) -> Figures {
    let dir = TempDir::new().expect("a temporary directory");
    let storage = dir.path().join("storage");
    let port = free_port();
    let registry = Registry::start_on(&storage, port);
    let world = World {
        port,
        seed,
        until: Instant::now() + duration,
        failed: AtomicBool::new(false),
        violations: Mutex::default(),
        figures: Figures::default(),
    };
    std::thread::scope(|scope| {
        let (world, registry, scratch) = (&world, &registry, dir.path());
        for number in 0..CLIENTS {
            scope.spawn(move || client::run(world, number));
        }
        scope.spawn(move || program::run(world, registry, scratch));
        scope.spawn(move || check::run(world));
        scope.spawn(move || collect(world));
        kill_and_restart(world, registry, &storage);
    });
    let violations = world.violations.into_inner().unwrap_or_default();
    assert!(
        violations.is_empty(),
        "seed {seed}: after {}:\n{}",
        world.figures,
        violations.join("\n")
    );
    registry.run(["fsck"]).expect(0);
    registry.run(["gc", "--yes", "--grace", "0"]).expect(0);
    registry.run(["fsck"]).expect(0);
    world.figures.assert_floors(duration);
    world.figures
}

impl Figures {
    /// A soak in which hardly anything happened proves nothing.
    fn assert_floors(&self, duration: Duration) {
        let seconds = duration.as_secs();
        for (what, figure, floor) in [
            ("pushes", &self.pushes, seconds / 2),
            ("deletes", &self.deletes, seconds / 10),
            ("pulls", &self.pulls, seconds / 2),
            ("checks", &self.checks, seconds / 20),
            ("collections", &self.collections, seconds / 4),
            ("freed files", &self.freed_files, seconds / 2),
            ("skipped blobs", &self.skipped_blobs, seconds / 4),
            ("kills of the server", &self.server_kills, seconds / 10),
            ("kills of a client", &self.client_kills, seconds / 20),
        ] {
            let figure = figure.load(Ordering::Relaxed);
            assert!(figure >= floor, "only {figure} {what}; {self}");
        }
    }
}

/// Collects garbage with hardly any grace, or none.
fn collect(world: &World) {
    let mut dice = world.dice(100);
    while world.goes_on() {
        let path = format!(
            "/v2/_vdkr/storage/gc?grace={}&history={}&history-age=60",
            [0, 1, 3][dice.below(3) as usize],
            dice.below(2)
        );
        if let Some(answer) = world.ask("POST", &path, &[], b"") {
            let state: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
            let report = &state["report"];
            if answer.status == 200 && report.is_object() {
                let number = |key: &str| report[key].as_u64().unwrap_or_default();
                world.count(|figures| &figures.collections, 1);
                world.count(|figures| &figures.freed_files, number("removed_blobs"));
                world.count(|figures| &figures.freed_bytes, number("freed_bytes"));
                if report["findings"]
                    .as_array()
                    .is_some_and(|found| !found.is_empty())
                {
                    world.violated(format!("a collection found {}", report["findings"]));
                }
            } else if !matches!(answer.status, 200 | 202 | 409) {
                world.violated(format!("gc answered {}: {}", answer.status, answer.text()));
            }
        }
        std::thread::sleep(Duration::from_millis(50 + dice.below(200)));
    }
}

/// Kills the server every few seconds, and starts it again.
fn kill_and_restart(world: &World, registry: &Registry, storage: &Path) {
    let mut dice = world.dice(200);
    while world.goes_on() {
        std::thread::sleep(Duration::from_millis(1500 + dice.below(2500)));
        let pid_file = storage.join(format!("run/registry-{}.pid", world.port));
        let pid = std::fs::read_to_string(&pid_file)
            .ok()
            .and_then(|text| text.lines().next()?.trim().parse().ok());
        let Some(pid) = pid else {
            world.violated("the server has no pid file".to_owned());
            return;
        };
        if kill(Pid::from_raw(pid), Signal::SIGKILL).is_ok() {
            world.count(|figures| &figures.server_kills, 1);
        }
        let deadline = Instant::now() + Duration::from_secs(20);
        // It may take a moment until the dead one's lock and port are free.
        while registry.run(["start"]).code() != 0 {
            if Instant::now() > deadline {
                world.violated("the server does not start again".to_owned());
                return;
            }
        }
    }
}
