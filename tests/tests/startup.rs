//! Starts from snapshots: what is restored is the right machine, and one of its own.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, run_within, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

/// When a command is killed: a name, and whether the moment has come.
type Moment<'a> = (&'static str, &'a dyn Fn() -> bool);

const IMAGE: &str = "container-base";

/// A user whose emulator writes down how it was called, and believes in another century.
struct Traced {
    user: User,
}

impl Traced {
    fn new(arch: &'static str) -> Self {
        let user = User::new(arch);
        let program = format!("qemu-system-{arch}");
        let real = std::env::split_paths(&std::env::var_os("PATH").unwrap())
            .map(|dir| dir.join(&program))
            .find(|path| path.is_file())
            .expect("an emulator");
        let bin = user.home().join("bin");
        fs::create_dir(&bin).unwrap();
        let script = format!(
            "#!/bin/sh\necho \"$*\" >>{home}/calls\nexec {real} -rtc base=2001-01-01T00:00:00 \"$@\"\n",
            home = user.home().display(),
            real = real.display()
        );
        fs::write(bin.join(&program), script).unwrap();
        fs::set_permissions(bin.join(&program), fs::Permissions::from_mode(0o755)).unwrap();
        Self { user }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.user.command();
        let path = std::env::var("PATH").unwrap();
        let bin = self.user.home().join("bin");
        command
            .env("PATH", format!("{}:{path}", bin.display()))
            .args(["--accel", "tcg"])
            .args(args);
        command
    }

    #[track_caller]
    fn run(&self, args: &[&str]) -> Ran {
        run_within(&mut self.command(args), b"", PATIENCE)
    }

    fn start(&self, args: &[&str]) -> Child {
        let mut command = self.command(args);
        let quiet = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        quiet.spawn().unwrap()
    }

    /// How often a machine was booted, and how often one was restored, since the last call.
    fn calls(&self) -> (usize, usize) {
        let path = self.user.home().join("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        let restored = text.lines().filter(|line| line.contains("-incoming"));
        let restored = restored.count();
        (text.lines().count() - restored, restored)
    }

    fn cache(&self) -> PathBuf {
        self.user.home().join(".cache/vdkr/snapshots")
    }

    /// Everything in the cache but the lock.
    fn cached(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.cache()) else {
            return Vec::new();
        };
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.is_dir()).collect()
    }

    fn snapshot(&self) -> PathBuf {
        let found = self.cached();
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    /// Emulators of this user that live.
    fn emulators(&self) -> usize {
        let home = self.user.home().to_str().unwrap().to_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter(|entry| {
                let read = |name| fs::read(entry.path().join(name)).unwrap_or_default();
                let line = String::from_utf8_lossy(&read("cmdline")).into_owned();
                let environment = String::from_utf8_lossy(&read("environ")).into_owned();
                line.contains("qemu-system") && environment.contains(&home)
            })
            .count()
    }
}

fn registry_with_image(machine: &str) -> Registry {
    let registry = Registry::start();
    let image = layout(machine, &format!("{IMAGE}-latest-oci"));
    let push = ["push", "--tag", "latest", image.to_str().unwrap()];
    registry.run(push).expect(0);
    registry
}

fn pull(traced: &Traced, registry: &Registry) {
    let prefix = format!("{}/yocto", registry.host());
    traced
        .run(&["--registry", &prefix, "pull", IMAGE])
        .expect(0);
}

const NEVER: [&str; 4] = ["run", "--rm", "--pull", "never"];

fn sh(script: &str) -> Vec<&str> {
    [&NEVER[..], &[IMAGE, "sh", "-c", script]].concat()
}

#[test]
fn the_first_start_makes_what_later_ones_begin_with() {
    let registry = registry_with_image("qemux86-64");
    let traced = Traced::new("x86_64");
    pull(&traced, &registry);
    assert_eq!(traced.calls(), (1, 1), "one boot to be saved, one restored");
    let mode = fs::metadata(traced.snapshot())
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);

    // The clock is the host's, whatever the snapshot's was; the disk is as the last machine left it.
    let seconds = traced.run(&sh("date +%s")).expect(0).text();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let off = now
        .unwrap()
        .as_secs()
        .abs_diff(seconds.trim().parse().unwrap());
    assert!(off < 600, "{off} s off");
    assert_eq!(traced.calls(), (0, 1));
    for number in 0..3 {
        let name = format!("local/name:{number}");
        traced.run(&["tag", IMAGE, &name]).expect(0);
        let listed = traced.run(&["images"]).expect(0).text();
        assert!(listed.contains(&format!("  {number} ")), "{listed}");
    }
    assert_eq!(traced.calls(), (0, 6));

    // A machine without state begins with the same snapshot and has none of it.
    let none = traced.run(&["--stateless", "images", "-q"]).expect(0);
    assert_eq!((none.text().as_str(), traced.calls()), ("", (0, 1)));
    // Another machine has another one, and nobody has to have any.
    traced.run(&["--memory", "600M", "images"]).expect(0);
    assert_eq!((traced.calls(), traced.cached().len()), ((1, 1), 2));
    let mut cold = traced.command(&["images", "-q"]);
    let cold = run_within(cold.env("VDKR_SNAPSHOT", "false"), b"", PATIENCE).expect(0);
    assert!(!cold.text().is_empty());
    assert_eq!(traced.calls(), (1, 0));
}

#[test]
fn a_snapshot_that_is_no_good_is_renewed() {
    let traced = Traced::new("x86_64");
    traced.run(&["--stateless", "images"]).expect(0);
    assert_eq!(traced.calls(), (1, 1));
    let images = ["--stateless", "--verbose", "images"];

    // Changed files are seen before anything is started from them.
    for name in ["state", "memory", "snapshot.json"] {
        let file = traced.snapshot().join(name);
        let mut bytes = fs::read(&file).unwrap();
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        fs::write(&file, bytes).unwrap();
        let ran = traced.run(&images).expect(0);
        assert!(ran.stderr.contains("snapshot is renewed"), "{}", ran.stderr);
        assert_eq!(traced.calls(), (1, 1), "{name}");
    }
    // One that only the emulator can tell from a good one.
    let dir = traced.snapshot();
    let garbage = vec![7; 70_000];
    let digest = Sha256::digest(&garbage);
    let digest = digest
        .iter()
        .fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let text = fs::read(dir.join("snapshot.json")).unwrap();
    let mut document: Value = serde_json::from_slice(&text).unwrap();
    document["state_sha256"] = digest.into();
    fs::write(dir.join("state"), garbage).unwrap();
    fs::write(dir.join("snapshot.json"), document.to_string()).unwrap();
    let ran = traced.run(&images).expect(0);
    let words = "the snapshot does not start, so it is renewed";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
    assert_eq!(traced.calls(), (1, 2));
    let ran = traced.run(&images).expect(0);
    assert!(!ran.stderr.contains("renewed"), "{}", ran.stderr);
    assert_eq!(traced.calls(), (0, 1));

    // A cache that cannot be written to costs nothing but time.
    fs::remove_dir_all(traced.cache()).unwrap();
    fs::write(traced.cache(), "in the way").unwrap();
    let ran = traced.run(&images).expect(0);
    assert!(ran.stderr.contains("no snapshot"), "{}", ran.stderr);
    assert_eq!(traced.calls(), (1, 0));
}

#[test]
fn twins_share_nothing_that_is_random() {
    let registry = registry_with_image("qemux86-64");
    let traced = Traced::new("x86_64");
    // Two at once with nothing there: one of them boots, both have a machine.
    let mut first: Vec<_> = ["a", "b"]
        .map(|name| traced.start(&["-I", name, "images"]))
        .into();
    for child in &mut first {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(traced.calls(), (1, 2));

    let mut seen = BTreeSet::new();
    let mut count = 0;
    for name in ["a", "b"] {
        let start = ["-I", name, "memres", "start", "--idle-timeout", "1000"];
        traced.run(&start).expect(0);
        let prefix = format!("{}/yocto", registry.host());
        traced
            .run(&["-I", name, "--registry", &prefix, "pull", IMAGE])
            .expect(0);
        let script = "cat /proc/sys/kernel/random/boot_id /proc/sys/kernel/random/uuid; hostname; \
                      head -c 16 /dev/urandom | od -An -tx1 | tr -d ' '";
        let said = traced.run(&[&["-I", name], &sh(script)[..]].concat());
        let said = said.expect(0).text();
        let status = traced.run(&["-I", name, "memres", "status", "--json"]);
        let status: Value = serde_json::from_str(&status.expect(0).text()).unwrap();
        let id = status["machine_id"].as_str().unwrap().to_owned();
        assert_eq!(id.len(), 32, "{status}");
        let left = status["idle_left_ms"].as_u64().unwrap();
        assert!((1..=1_000_000).contains(&left), "{status}");
        for line in said.lines().chain([&*id]) {
            count += 1;
            assert!(line.len() >= 12, "{said}");
            seen.insert(line.to_owned());
        }
    }
    assert_eq!(seen.len(), count, "{seen:?}");
    assert_eq!(count, 10, "{seen:?}");
    assert_eq!(traced.calls(), (0, 2));
    let status = traced.run(&["-I", "a", "memres", "status"]).expect(0);
    assert!(status.text().contains(" left"), "{}", status.text());
    for name in ["a", "b"] {
        traced.run(&["-I", name, "memres", "stop"]).expect(0);
    }
}

#[test]
fn a_kill_at_any_moment_leaves_nothing_that_hurts() {
    let traced = Traced::new("x86_64");
    let images = ["images"];
    let kill = |child: &mut Child| {
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until("its emulator is gone", PATIENCE, || traced.emulators() == 0);
    };
    // While the machine to be saved boots, while it is written, and while it is restored.
    let unfinished = || {
        let mut found = traced.cached().into_iter();
        found.find(|path| {
            path.file_name()
                .unwrap()
                .to_string_lossy()
                .starts_with("new-")
        })
    };
    let writing = || {
        unfinished()
            .is_some_and(|dir| fs::metadata(dir.join("state")).is_ok_and(|meta| meta.len() > 0))
    };
    let moments: [Moment<'_>; 2] = [
        ("a boot to be saved", &|| unfinished().is_some()),
        ("a snapshot under way", &writing),
    ];
    for (what, reached) in moments {
        // The moment is short: one who comes too late finds a snapshot that is whole, and tries again.
        let hit = (0..50).any(|_| {
            let _ = fs::remove_dir_all(traced.cache());
            let mut child = traced.start(&images);
            let deadline = Instant::now() + PATIENCE;
            while !reached() && child.try_wait().unwrap().is_none() {
                assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
                std::thread::yield_now();
            }
            kill(&mut child);
            unfinished().is_some()
        });
        assert!(hit, "no kill came at {what}");
        traced.run(&images).expect(0);
        assert!(unfinished().is_none(), "{what}");
        traced.snapshot();
    }
    traced.calls();
    for delay in [0, 20, 60, 150] {
        let mut child = traced.start(&images);
        wait_until("a restore", PATIENCE, || {
            traced.user.home().join("calls").exists()
        });
        std::thread::sleep(Duration::from_millis(delay));
        kill(&mut child);
        traced.calls();
    }
    traced.run(&images).expect(0);
    assert_eq!(traced.calls(), (0, 1), "the snapshot is still good");
}

#[test]
fn aarch64_machines_begin_with_a_snapshot_too() {
    let registry = registry_with_image("qemuarm64");
    let traced = Traced::new("aarch64");
    pull(&traced, &registry);
    assert_eq!(traced.calls(), (1, 1));
    let said = traced.run(&sh("uname -m; date +%Y")).expect(0).text();
    let (arch, year) = said.split_once('\n').unwrap();
    assert_eq!(arch, "aarch64");
    assert!(year.trim().parse::<u32>().unwrap() >= 2024, "{year}");
    assert_eq!(traced.calls(), (0, 1));
}
