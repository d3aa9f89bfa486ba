//! `kill -9` of a command, of the monitor of a kept machine, of the emulator, and of all of them, at
//! moments spread over what they do: no image is lost, and nothing is left that is in the way.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::{digest, noise, write_above};
use vdkr_tests::process::wait_until;
use vdkr_tests::registry::Registry;
use vdkr_tests::tar::{Entry, archive};
use vdkr_tests::vm::{PATIENCE, User};

/// Bytes of the layer that comes and goes.
const SIZE: usize = 6 << 20;
/// The image that is there all the time, and what runs in it.
const KEPT: &str = "kept:1";
/// A container that has changed something, and the image that is made of it.
const MADE: &str = "made";
const COMMITTED: &str = "committed:1";
const BUSY: &str = "i=0; while [ $i -lt 30 ]; do head -c 100000 /dev/zero > /f$i; i=$((i+1)); done; \
                    sync; sleep 0.2";

/// Who is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Command,
    Monitor,
    Emulator,
    All,
}

use Victim::{All, Command, Emulator, Monitor};

/// What is under way.
struct Operation {
    name: &'static str,
    line: Vec<String>,
    /// How long it takes when nobody kills it.
    takes: Duration,
    /// What it needs each time.
    before: Option<[&'static str; 3]>,
    /// It brings the image that comes and goes.
    brings: bool,
}

/// A user with an image, who is about to get another one.
struct Place {
    user: User,
    /// The other image's name, and the digest of its file `/noise`.
    other: String,
    noise: String,
    _registry: Registry,
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let base = layout("qemux86-64", "container-base-latest-oci");
        let noise = noise(5, SIZE);
        let layer = archive(&[Entry::file("noise", noise.clone())]);
        let large = dir.path().join("other-latest-oci");
        write_above(&base, &large, &layer);
        let registry = Registry::start();
        for image in [&base, &large] {
            let push = ["push", "--tag", "latest", image.to_str().unwrap()];
            registry.run(push).expect(0);
        }
        let user = User::new("x86_64");
        let prefix = format!("{}/yocto", registry.host());
        for setting in [["accel", "tcg"], ["registry", &prefix]] {
            user.run(["vconfig", setting[0], setting[1]]).expect(0);
        }
        let place = Self {
            user,
            other: format!("10.0.2.2:{}/yocto/other:latest", registry.port()),
            noise: digest(&noise),
            _registry: registry,
            dir,
        };
        place.user.run(["pull", "container-base"]).expect(0);
        place.user.run(["tag", "container-base", KEPT]).expect(0);
        let change = ["sh", "-c", "head -c 3000000 /dev/urandom > /changed"];
        let made = ["run", "--name", MADE, KEPT];
        place.user.run([&made[..], &change].concat()).expect(0);
        place.user.run(["pull", "other"]).expect(0);
        let archive = place.archive();
        let save = ["save", "-o", archive.to_str().unwrap(), &place.other];
        place.user.run(save).expect(0);
        place
    }

    fn archive(&self) -> PathBuf {
        self.dir.path().join("other.tar")
    }

    fn operations(&self) -> Vec<Operation> {
        let archive = self.archive();
        let run = ["run", "--rm", "--pull", "never", KEPT, "sh", "-c", BUSY];
        let lines = [
            (
                "pull on the host",
                &["--pull-in", "host", "pull", "other"][..],
            ),
            (
                "pull in the guest",
                &["--pull-in", "guest", "pull", "other"],
            ),
            ("load", &["load", "-i", archive.to_str().unwrap()]),
            ("run", &run),
            ("commit", &["commit", MADE, COMMITTED]),
            ("removal", &["rmi", COMMITTED]),
        ];
        lines
            .into_iter()
            .map(|(name, line)| Operation {
                name,
                line: line.iter().map(|&word| word.to_owned()).collect(),
                takes: Duration::ZERO,
                before: (name == "removal").then_some(["commit", MADE, COMMITTED]),
                brings: line.contains(&"pull") || name == "load",
            })
            .collect()
    }

    fn keep_machine(&self) {
        self.user.run(["memres", "start"]).expect(0);
    }

    /// Takes the other images away.
    fn forget(&self) {
        self.user
            .run(["rmi", "-f", &self.other, COMMITTED])
            .expect(0);
        self.user.run(["vstorage", "clean", "--layers"]).expect(0);
        let unfinished = fs::read_dir(self.user.home().join(".vdkr/layers/new"));
        let unfinished: Vec<_> = unfinished.into_iter().flatten().flatten().collect();
        assert!(unfinished.is_empty(), "{unfinished:?}");
    }

    fn prepare(&self, operation: &Operation) {
        self.forget();
        if let Some(before) = operation.before {
            self.user.run(before).expect(0);
        }
    }

    fn perform(&self, operation: &Operation) {
        let line = operation.line.iter().map(String::as_str);
        self.user.run(line).expect(0);
    }

    fn measure(&self, operation: &mut Operation) {
        self.prepare(operation);
        let begun = Instant::now();
        self.perform(operation);
        operation.takes = begun.elapsed();
    }

    fn start(&self, operation: &Operation) -> Child {
        let mut command = self.user.command();
        command.args(&operation.line).stdin(Stdio::null());
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::piped());
        quiet.spawn().unwrap()
    }

    /// Kills while the operation is under way, after so many per cent of its time; earlier when it
    /// is over by then.
    fn strike(&self, operation: &Operation, kept: bool, victim: Victim, percent: u32) {
        let what = format!(
            "{victim:?} in a {} at {percent} %, kept: {kept}",
            operation.name
        );
        let mut delay = operation.takes * percent / 100;
        eprintln!("{what}: {delay:?}");
        let mut child = loop {
            self.prepare(operation);
            let mut child = self.start(operation);
            std::thread::sleep(delay);
            if self.hit(&mut child, victim) {
                break child;
            }
            child.wait().unwrap();
            delay /= 2;
        };
        wait_until(&format!("the command's end: {what}"), PATIENCE, || {
            child.try_wait().unwrap().is_some()
        });
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(!said.contains("panicked"), "{what}: {said}");
        if matches!(victim, Monitor | Emulator) {
            // It ends by itself, and says why.
            assert!(ended.status.code().is_some(), "{what}: {ended:?}");
            assert!(
                ended.status.success() || said.contains("vdkr: "),
                "{what}: {said}"
            );
        }
        // The machine of a command goes with it; one that is kept does not.
        let stays = kept && victim == Command;
        wait_until(&format!("processes after {what}"), PATIENCE, || {
            let left = self.user.processes();
            let kind =
                |process: &vdkr_tests::vm::Process| (process.is_monitor(), process.is_emulator());
            let kinds: BTreeSet<_> = left.iter().map(kind).collect();
            let both = BTreeSet::from([(true, false), (false, true)]);
            if stays {
                left.len() == 2 && kinds == both
            } else {
                left.is_empty()
            }
        });
        if kept && !stays {
            let status = self.user.run(["memres", "status"]);
            assert_eq!(status.code(), 3, "{what}: {}", status.text());
            self.keep_machine();
        }
    }

    /// Kills, if the command still runs.
    fn hit(&self, child: &mut Child, victim: Victim) -> bool {
        let command = i32::try_from(child.id()).unwrap();
        let targets = loop {
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            let processes = self.user.processes();
            let of = |wanted: &dyn Fn(&vdkr_tests::vm::Process) -> bool| {
                let found = processes.iter().filter(|process| wanted(process));
                found.map(|process| process.pid).collect::<Vec<_>>()
            };
            let targets = match victim {
                Command => vec![command],
                Monitor => of(&|process| process.is_monitor()),
                Emulator => of(&|process| process.is_emulator()),
                All => of(&|_| true),
            };
            // Its machine may not be there yet.
            if !targets.is_empty() {
                break targets;
            }
        };
        for pid in targets {
            // Some go with the ones before them.
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("{pid}: {error}"),
            }
        }
        true
    }

    /// The earlier image runs, and what was killed can be done.
    fn works(&self, operation: &Operation) {
        let run = ["run", "--rm", "--pull", "never"];
        let ran = self.user.run([&run[..], &[KEPT, "echo", "ok"]].concat());
        assert_eq!(ran.expect(0).text(), "ok\n");
        if operation.before.is_some() {
            // It is there whole, or not at all.
            let there = self.user.run(["images", "-q", COMMITTED]).expect(0).text();
            if !there.is_empty() {
                let run = [&run[..], &[COMMITTED, "test", "-s", "/changed"]].concat();
                self.user.run(run).expect(0);
            }
            self.prepare(operation);
        }
        self.perform(operation);
        if operation.brings {
            let sum = [&run[..], &[&self.other, "sha256sum", "/noise"]].concat();
            let sum = self.user.run(sum).expect(0).text();
            assert_eq!(format!("sha256:{}", &sum[..64]), self.noise);
        }
    }

    /// Files that this user has, and machines that run.
    fn rest(&self) -> BTreeSet<PathBuf> {
        fn walk(directory: &Path, found: &mut BTreeSet<PathBuf>) {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    walk(&entry.path(), found);
                }
                found.insert(entry.path());
            }
        }
        self.forget();
        self.user.run(["memres", "stop"]).expect(0);
        let containers = ["ps", "-a", "--format", "{{.Names}}"];
        assert_eq!(
            self.user.run(containers).expect(0).text(),
            format!("{MADE}\n")
        );
        let mut found = BTreeSet::new();
        walk(self.user.home(), &mut found);
        assert!(
            found.iter().any(|path| path.ends_with("state.img")),
            "{found:?}"
        );
        assert!(
            !found.iter().any(|path| path.ends_with("vdkr.sock")),
            "{found:?}"
        );
        wait_until("no process is left", PATIENCE, || {
            self.user.processes().is_empty()
        });
        found
    }
}

/// Every kind of kill in every kind of work, at moments that are spread over all of them.
fn a_kill_loses_no_image_and_leaves_nothing(kept: bool, victims: &[Victim], step: usize) {
    let place = Place::new();
    if kept {
        place.keep_machine();
    }
    let mut operations = place.operations();
    for operation in &mut operations {
        place.measure(operation);
    }
    let before = place.rest();
    if kept {
        place.keep_machine();
    }
    for (row, operation) in operations.iter().enumerate() {
        for (column, &victim) in victims.iter().enumerate() {
            let percent = (row * victims.len() + column) * step % 90;
            place.strike(operation, kept, victim, u32::try_from(percent).unwrap());
            place.works(operation);
        }
    }
    assert_eq!(place.rest(), before);
}

#[test]
fn a_kill_with_a_machine_of_the_commands_own_loses_no_image_and_leaves_nothing() {
    a_kill_loses_no_image_and_leaves_nothing(false, &[Command, Emulator, All], 37);
}

#[test]
fn a_kill_with_a_machine_that_is_kept_loses_no_image_and_leaves_nothing() {
    a_kill_loses_no_image_and_leaves_nothing(true, &[Command, Monitor, Emulator, All], 23);
}
