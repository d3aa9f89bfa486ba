//! Many runs, one after the other, on a machine that is kept: nothing may grow, on either side.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use crate::fixtures::layout;
use crate::process::{free_port, wait_until};
use crate::registry::Registry;
use crate::vm::{PATIENCE, User};

/// What a container that may do anything sees of the machine, as `name value` lines. What the kernel
/// keeps only because nobody wants the memory is let go first.
const LOOK: &str = r#"
sync; echo 3 > /proc/sys/vm/drop_caches
echo threads $(cut -d ' ' -f 4 /proc/loadavg | cut -d / -f 2)
echo cgroups $(awk '$1 == "memory" { print $3 }' /proc/cgroups)
echo disks $(ls /sys/block | wc -l)
for name in mnt_cache filp net_namespace pid_namespace
do echo $name $(awk '$1 == "'$name'" { print $2 }' /proc/slabinfo)
done
for name in AnonPages SUnreclaim MemAvailable
do echo $name-KiB $(awk '$1 == "'$name':" { print $2 }' /proc/meminfo)
done
echo disk-KiB $(df -k / | awk 'END { print $3 }')
"#;

/// Runs of the short form.
pub const FEW: usize = 63;

/// Names of the values that may come by so much and no more: a shell more or less, a page of a
/// kernel's cache that is filled by halves, what a log keeps. What is counted one by one may not come
/// by half of one with each of [`FEW`] runs.
const GROWTH: [(&str, u64); 18] = [
    ("threads", 10),
    // Those of the dead go when the kernel likes.
    ("cgroups", 10),
    ("disks", 0),
    ("mnt_cache", 30),
    ("filp", 30),
    ("net_namespace", 14),
    ("pid_namespace", 30),
    ("AnonPages-KiB", 4096),
    ("SUnreclaim-KiB", 8192),
    ("disk-KiB", 4096),
    ("monitor: files", 8),
    ("monitor: threads", 8),
    ("monitor: KiB", 8192),
    ("emulator: files", 8),
    ("emulator: threads", 8),
    ("emulator: KiB", 32768),
    ("files of the state", 4),
    ("processes of the user", 0),
];

/// Everything that was looked at, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Snapshot(Vec<(String, u64)>);

impl Snapshot {
    fn take(user: &User) -> Self {
        let look = ["run", "--rm", "--privileged", "box", "sh", "-c", LOOK];
        let seen = user.run(look).expect(0).text();
        let mut values: Vec<_> = seen.lines().filter_map(value).collect();
        let status = user.run(["memres", "status", "--json"]).expect(0).text();
        let status: Value = serde_json::from_str(&status).expect("JSON");
        for (name, key) in [("monitor", "pid"), ("emulator", "qemu_pid")] {
            let pid = status["monitor"][key].as_u64().expect("a process");
            let process = Path::new("/proc").join(pid.to_string());
            let count = |what: &str| fs::read_dir(process.join(what)).map_or(0, Iterator::count);
            values.push((format!("{name}: files"), count("fd") as u64));
            values.push((format!("{name}: threads"), count("task") as u64));
            let maps = fs::read_to_string(process.join("smaps")).expect("a process's memory");
            values.push((format!("{name}: KiB"), own_memory(&maps)));
        }
        values.push(("files of the state".to_owned(), files(user.home())));
        let processes = user.processes().len() as u64;
        values.push(("processes of the user".to_owned(), processes));
        Self(values)
    }

    fn get(&self, name: &str) -> u64 {
        let found = self.0.iter().find(|(known, _)| known == name);
        let (_, value) = found.unwrap_or_else(|| panic!("{name} is not among {:?}", self.0));
        *value
    }
}

fn value(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.rsplit_once(' ')?;
    Some((name.to_owned(), value.parse().ok()?))
}

/// Resident KiB of a process, from its `smaps`, without the memory of a machine and the translated
/// code of an emulator: both fill up to their bounds.
fn own_memory(maps: &str) -> u64 {
    const MACHINE_KIB: u64 = 256 << 10;
    let (mut total, mut counted, mut large) = (0, false, false);
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let (first, second) = (words.next().unwrap_or_default(), words.next());
        let number = second.and_then(|word| word.parse::<u64>().ok());
        match (first, number) {
            ("Size:", Some(size)) => large = size >= MACHINE_KIB,
            ("Rss:", Some(rss)) if counted && !large => total += rss,
            _ if !first.ends_with(':') => {
                let rights = second.unwrap_or_default();
                counted = !(rights.contains('w') && rights.contains('x'));
            }
            _ => {}
        }
    }
    total
}

fn files(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let counts = entries.map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        _ => 1,
    });
    counts.sum()
}

/// What many runs came to.
#[derive(Debug)]
pub struct Figures {
    runs: usize,
    seconds: f64,
    before: Snapshot,
    after: Snapshot,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs in {:.0} s\n", self.runs, self.seconds)?;
        writeln!(f, "| value | before | after |\n|---|---|---|")?;
        for (name, before) in &self.before.0 {
            writeln!(f, "| {name} | {before} | {} |", self.after.get(name))?;
        }
        Ok(())
    }
}

impl Figures {
    fn fit(&self) -> bool {
        let fits =
            |(name, most): &(&str, u64)| self.after.get(name) <= self.before.get(name) + most;
        GROWTH.iter().all(fits)
    }

    fn assert_no_growth(&self) {
        for (name, most) in GROWTH {
            let (before, after) = (self.before.get(name), self.after.get(name));
            assert!(
                after <= before + most,
                "{name} grew from {before} to {after}, which is more than {most}\n{self}"
            );
        }
        let (before, after) = ("MemAvailable-KiB", "MemAvailable-KiB");
        let (before, after) = (self.before.get(before), self.after.get(after));
        assert!(
            after + (24 << 10) >= before,
            "the machine's free memory shrank\n{self}"
        );
    }
}

/// Runs so many containers of all kinds on a machine of its own, and looks at it before and after.
///
/// # Panics
///
/// When a run does not do what it should, and when anything has grown.
#[must_use]
pub fn runs(count: usize) -> Figures {
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    let image = image.to_str().expect("a path in UTF-8");
    registry.run(["push", image]).expect(0);
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    let pull = ["--registry", &prefix, "pull", "container-base"];
    user.run(pull).expect(0);
    user.run(["tag", "container-base", "box"]).expect(0);
    let keeper = ["run", "-d", "--name", "keeper", "box", "sleep", "1000000"];
    user.run(keeper).expect(0);
    let shared = tempfile::tempdir().expect("a temporary directory");
    let shared = format!("{}:/v", shared.path().display());

    // What is made once and kept is there after a few of each kind.
    for number in 0..2 * KINDS {
        one(&user, number, &shared);
    }
    let mut figures = round(&user, count, &shared);
    if !figures.fit() {
        // The agent's heap goes up a step now and then, which is no leak: that would go on.
        eprintln!("grown, so all of it again:\n{figures}");
        figures = round(&user, count, &shared);
    }
    let listed = user.run(["ps", "-a", "--format", "{{.Names}}"]);
    assert_eq!(listed.expect(0).text(), "keeper\n");
    user.run(["rm", "-f", "keeper"]).expect(0);
    figures.assert_no_growth();
    figures
}

/// So many runs, and what there is before and after them.
fn round(user: &User, count: usize, shared: &str) -> Figures {
    let before = Snapshot::take(user);
    let begun = Instant::now();
    for number in 0..count {
        one(user, number, shared);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut figures = Figures {
        runs: count,
        seconds,
        after: Snapshot::take(user),
        before,
    };
    // What the dead leave is cleaned up a moment after they are.
    for _ in 0..20 {
        if figures.fit() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_secs(1));
        figures.after = Snapshot::take(user);
    }
    figures
}

/// Kinds of runs that take turns.
const KINDS: usize = 7;

/// One container, of a kind that its number says.
fn one(user: &User, number: usize, shared: &str) {
    let script = "echo out; echo err >&2; echo x >/tmp/file; exit 3";
    let plain = |options: &[&str]| {
        let command = ["box", "sh", "-c", script];
        let ran = user.run([&["run", "--rm"], options, &command].concat());
        let ran = ran.expect(3);
        assert_eq!((ran.text().as_str(), &*ran.stderr), ("out\n", "err\n"));
    };
    match number % KINDS {
        0 => plain(&[]),
        1 => plain(&["-v", shared, "-w", "/v", "--tmpfs", "/x"]),
        2 => plain(&[
            "--network",
            "none",
            "-m",
            "64m",
            "--read-only",
            "--tmpfs",
            "/tmp",
        ]),
        3 => {
            let port = format!("127.0.0.1:{}:80", free_port());
            plain(&["-p", &port, "--init"]);
        }
        4 => {
            let id = user.run(["run", "-d", "box", "sleep", "0.1"]).expect(0);
            let id = id.text();
            assert_eq!(user.run(["wait", id.trim()]).expect(0).text(), "0\n");
            user.run(["rm", id.trim()]).expect(0);
        }
        5 => {
            let input = ["exec", "-i", "keeper", "cat"];
            let ran = user.run_with_input(input, b"input").expect(0);
            assert_eq!(ran.text(), "input");
        }
        _ => {
            let start = [
                "run", "-d", "--rm", "--name", "short", "box", "sleep", "1000",
            ];
            user.run(start).expect(0);
            user.run(["kill", "short"]).expect(0);
            wait_until("a container's end", PATIENCE, || {
                user.run(["inspect", "--type", "container", "short"]).code() != 0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_more_with_every_run_is_too_much() {
        for (name, most) in GROWTH {
            let counted = !name.contains("KiB");
            assert!(!counted || most * 2 < FEW as u64, "{name}");
        }
    }

    #[test]
    fn memory_of_machines_does_not_count() {
        let maps = "55d0-55d1 r-xp 00000000 08:01 1 /bin/qemu\nSize: 400 kB\nRss: 100 kB\n\
                    7f00-7f01 rw-p 00000000 00:00 0\nSize: 524288 kB\nRss: 70000 kB\n\
                    7f02-7f03 rwxp 00000000 00:00 0\nSize: 1000 kB\nRss: 900 kB\n\
                    7f04-7f05 rw-p 00000000 00:00 0 [heap]\nSize: 300 kB\nRss: 11 kB\n";
        assert_eq!(own_memory(maps), 111);
    }
}
