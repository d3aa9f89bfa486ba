//! One cgroup (version 2) per container: to know, to limit and to kill what belongs to it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
    thread,
    time::Duration,
};

use vdkr_core::container::limits::{Limits, PERIOD};

/// Group under which the containers' groups live.
const PARENT: &str = "vdkr";
/// How often and how long apart an emptied group is tried to be removed.
const REMOVE_TRIES: u32 = 100;
const REMOVE_PAUSE: Duration = Duration::from_millis(5);

/// The group that the service manager gave this service, when it did.
static DELEGATED: OnceLock<PathBuf> = OnceLock::new();

/// Makes the group that a service manager delegated to this process the parent of the containers'
/// groups: they end with the service and count as its own. The agent itself moves to a group
/// below, since one with processes in it cannot have limits for those below.
pub fn take_delegated() {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let Some(group) = mount_point(&read("/proc/self/mountinfo"))
        .zip(own_group(&read("/proc/self/cgroup")))
        .map(|(mount, own)| mount.join(own))
    else {
        return;
    };
    // systemd says so on the directory (systemd 251).
    let mut value = [0; 8];
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let read = rustix::fs::getxattr(&group, *name, &mut value[..]);
        read.is_ok_and(|length| value[..length] == *b"1")
    });
    if !marked {
        return;
    }
    let own = group.join("agent");
    let moved = fs::create_dir_all(&own)
        .and_then(|()| fs::write(own.join("cgroup.procs"), std::process::id().to_string()));
    match moved {
        Ok(()) => drop(DELEGATED.set(group)),
        Err(error) => eprintln!("vdkr-agent: {}: {error}", own.display()),
    }
}

/// The path of a process's group of version 2 below the mount, from `/proc/PID/cgroup`; `None` in
/// the root.
fn own_group(text: &str) -> Option<&str> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.is_empty() && !path.split('/').any(|part| part == "..")).then_some(path)
}

/// A container's group. Dropping it does not remove it; [`Cgroup::remove`] does.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes the group of a container, or `None` where no cgroup hierarchy of version 2 can be
    /// written: killing then goes by the container's first process.
    pub fn create(id: &str) -> Option<Self> {
        let parent = match DELEGATED.get() {
            Some(group) => group.clone(),
            None => mount_point(&fs::read_to_string("/proc/self/mountinfo").ok()?)?,
        };
        let path = parent.join(PARENT).join(id);
        fs::create_dir_all(&path).ok()?;
        Some(Self { path })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sets limits. The controllers for them are switched on at the first use.
    pub fn limit(&self, limits: &Limits) -> io::Result<()> {
        let settings = settings(limits);
        if settings.is_empty() {
            return Ok(());
        }
        let named = |path: &Path, error: io::Error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        };
        let parents: Vec<_> = self.path.ancestors().skip(1).take(2).collect();
        for (file, value) in settings {
            let controller = file.split('.').next().unwrap_or_default();
            for parent in parents.iter().rev() {
                let control = parent.join("cgroup.subtree_control");
                fs::write(&control, format!("+{controller}"))
                    .map_err(|error| named(&control, error))?;
            }
            let path = self.path.join(file);
            match fs::write(&path, value) {
                // A kernel without swap has nothing to limit.
                Err(error) if error.kind() == io::ErrorKind::NotFound && file == SWAP => {}
                result => result.map_err(|error| named(&path, error))?,
            }
        }
        Ok(())
    }

    /// Removes it and the groups that the container made inside. Its processes must be dead; one
    /// that is still being buried is waited for, half a second at most.
    pub fn remove(self) -> io::Result<()> {
        let mut result = remove_tree(&self.path);
        for _ in 0..REMOVE_TRIES {
            match &result {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                    thread::sleep(REMOVE_PAUSE);
                    result = remove_tree(&self.path);
                }
                _ => break,
            }
        }
        result
    }
}

/// Kills every process of a group, those that fork meanwhile included (Linux 5.14).
pub fn kill(group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.kill"), "1")
}

/// Whether the kernel has killed a process of a group for want of memory. Known of groups with a limit.
pub fn oom_killed(group: &Path) -> bool {
    let events = fs::read_to_string(group.join("memory.events"));
    events.is_ok_and(|text| was_oom_killed(&text))
}

fn was_oom_killed(events: &str) -> bool {
    let mut lines = events.lines();
    lines.any(|line| {
        line.strip_prefix("oom_kill ")
            .is_some_and(|count| count != "0")
    })
}

/// Stops or continues every process of a group.
pub fn freeze(group: &Path, frozen: bool) -> io::Result<()> {
    fs::write(group.join("cgroup.freeze"), if frozen { "1" } else { "0" })
}

const SWAP: &str = "memory.swap.max";

/// The files of a cgroup that hold limits, and what is written to them.
fn settings(limits: &Limits) -> Vec<(&'static str, String)> {
    let mut settings = Vec::new();
    let mut set = |file, value: Option<String>| settings.extend(value.map(|value| (file, value)));
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    set("memory.max", number(limits.memory));
    if limits.memory.is_some() {
        let swap = number(limits.swap()).unwrap_or_else(|| "max".to_owned());
        set(SWAP, Some(swap));
    }
    set("memory.low", number(limits.memory_reservation));
    if limits.cpu_quota.is_some() || limits.cpu_period.is_some() {
        let quota = number(limits.cpu_quota).unwrap_or_else(|| "max".to_owned());
        let period = limits.cpu_period.unwrap_or(PERIOD);
        set("cpu.max", Some(format!("{quota} {period}")));
    }
    set("cpu.weight", number(limits.cpu_weight()));
    set("cpuset.cpus", limits.cpuset_cpus.clone());
    set("cpuset.mems", limits.cpuset_mems.clone());
    set("pids.max", number(limits.pids));
    settings
}

/// Removes groups bottom-up; their control files go with them.
fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        other => return other,
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

/// Where the hierarchy of version 2 is mounted, from the text of `/proc/self/mountinfo`.
pub fn mount_point(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let is_v2 = right.split(' ').next() == Some("cgroup2");
        is_v2
            .then(|| left.split(' ').nth(4).map(PathBuf::from))
            .flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_files() {
        let limits = Limits {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            cpu_quota: Some(150_000),
            cpu_shares: Some(262_144),
            cpuset_cpus: Some("0".into()),
            pids: Some(10),
            ..Limits::default()
        };
        let expected = [
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("cpu.max", "150000 100000"),
            ("cpu.weight", "10000"),
            ("cpuset.cpus", "0"),
            ("pids.max", "10"),
        ];
        let settings = settings(&limits);
        let got: Vec<_> = settings.iter().map(|(f, v)| (*f, v.as_str())).collect();
        assert_eq!(got, expected);
        assert!(super::settings(&Limits::default()).is_empty());
    }

    #[test]
    fn want_of_memory_is_counted_by_the_kernel() {
        let events = |count| format!("low 0\noom 3\noom_kill {count}\noom_group_kill 0\n");
        assert!(was_oom_killed(&events(1)) && was_oom_killed(&events(12)));
        assert!(!was_oom_killed(&events(0)) && !was_oom_killed("oom 1\n"));
    }

    #[test]
    fn a_services_group_is_found() {
        let text = "12:pids:/x\n0::/system.slice/vdkr-agent.service\n";
        assert_eq!(own_group(text), Some("system.slice/vdkr-agent.service"));
        for none in ["0::/\n", "", "1:name=systemd:/a\n", "0::/../other\n"] {
            assert_eq!(own_group(none), None, "{none:?}");
        }
    }

    #[test]
    fn finds_the_second_version_among_others() {
        let text = "24 30 0:22 / /sys rw - sysfs sysfs rw\n\
            31 24 0:26 / /sys/fs/cgroup/pids rw,nosuid shared:9 - cgroup cgroup rw,pids\n\
            32 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_point(text), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point("garbage\n1 2 3 - cgroup2"), None);
    }
}
