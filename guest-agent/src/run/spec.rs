//! What a container is made of, as it travels from the agent to `container-init`.
//!
//! The terms are those of the OCI runtime specification (`process`, `root`, `mounts`,
//! `maskedPaths`, `readonlyPaths`); the values are docker's defaults.

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf};

use serde::{Deserialize, Serialize};
use vdkr_core::channel::message::Seccomp;

/// Everything that `container-init` needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// Host name inside.
    pub hostname: String,
    /// The file system.
    pub root: Root,
    /// The first process.
    pub process: Process,
    /// File systems mounted after the root, in order.
    pub mounts: Vec<Mount>,
    /// Files of the agent that are bound over files inside, such as `/etc/resolv.conf`.
    pub files: Vec<BoundFile>,
    /// What the user and the image want mounted, in order; it may cover everything above.
    pub volumes: Vec<Volume>,
    /// Paths that are hidden.
    pub masked_paths: Vec<String>,
    /// Paths that are made read-only.
    pub readonly_paths: Vec<String>,
    /// Directory of the container's cgroup (version 2), when there is one.
    pub cgroup: Option<PathBuf>,
    /// Whether a filter on the cgroup decides which devices may be opened. Without one, device
    /// nodes neither work on the root nor can be made.
    pub devices_filtered: bool,
    /// Whether a small first process of the agent's stands before the command.
    #[serde(default)]
    pub init: bool,
    /// What its processes may do.
    pub isolation: Isolation,
}

/// What a container's processes may do and use.
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Isolation {
    /// Capabilities of its root, bit by number.
    pub capabilities: u64,
    /// The filter of system calls.
    pub seccomp: Seccomp,
    /// Whether executing a program never gives rights.
    pub no_new_privileges: bool,
    /// Whether its IPC objects are its own.
    pub own_ipc: bool,
    /// Whether its processes are in a numbering of their own.
    pub own_pids: bool,
    /// Whether its host name is its own.
    pub own_uts: bool,
    /// The network.
    pub network: Network,
    /// More groups of its user.
    pub groups: Vec<String>,
    /// The NIS domain name.
    pub domainname: Option<String>,
    /// More devices.
    pub devices: Vec<DeviceNode>,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Limits of each process: number, soft and hard value.
    pub rlimits: Vec<(u32, Option<u64>, Option<u64>)>,
    /// How ready the kernel is to kill it when memory is short.
    pub oom_score_adj: Option<i32>,
}

/// A device node in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Absolute path inside.
    pub path: String,
    /// Whether it is a block device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permissions.
    pub mode: u32,
}

/// Where a container's network is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The machine's.
    Host,
    /// Only `lo`.
    None,
    /// An interface of its own beside the machine's.
    Bridge {
        /// Index of the machine's interface.
        link: u32,
        /// Its address.
        address: Ipv4Addr,
    },
    /// That of a process.
    Process(u32),
}

/// What `container-init` is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitMessage {
    /// Make a container and run its first process.
    Run(ContainerSpec),
    /// Run one more process in a container, whose first one comes as a pidfd behind the streams.
    Join {
        /// The container, with the new process.
        spec: ContainerSpec,
        /// Keep every capability.
        privileged: bool,
    },
    /// Work on the files of a container.
    Files {
        /// What its root is made of; of one that runs, the first process comes as a pidfd behind
        /// the streams instead.
        root: Option<IdleRoot>,
        /// What to do.
        job: FilesJob,
    },
}

/// Work on the files of a container. Paths start at its root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FilesJob {
    /// Say what lies at a path, by the exit status.
    Look {
        /// The path.
        path: String,
        /// Follow a link at its end.
        follow: bool,
    },
    /// Write it to standard output, as an archive.
    Pack {
        /// The path.
        path: String,
        /// What the first member is called.
        entry: String,
        /// Follow a link at its end.
        follow: bool,
    },
    /// Write all of it to standard output, as an archive.
    PackRoot,
    /// Write what it has changed to standard output, as a layer.
    PackChanges,
    /// Write which paths it has changed to standard output, as
    /// [`Form::List`](super::changes::Form::List).
    ListChanges,
    /// Unpack the archive on standard input.
    Unpack {
        /// The directory.
        path: String,
    },
}

impl FilesJob {
    /// The path that it is about, when it is about one.
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::Look { path, .. } | Self::Pack { path, .. } | Self::Unpack { path } => Some(path),
            Self::PackRoot | Self::PackChanges | Self::ListChanges => None,
        }
    }

    /// Whether it looks at the changes alone, never at the container's root.
    pub fn of_changes(&self) -> bool {
        matches!(self, Self::PackChanges | Self::ListChanges)
    }
}

impl InitMessage {
    /// The container, if there is a process to be made.
    pub fn spec(&self) -> Option<&ContainerSpec> {
        match self {
            Self::Run(spec) | Self::Join { spec, .. } => Some(spec),
            Self::Files { .. } => None,
        }
    }
}

/// The files of a container that does not run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdleRoot {
    /// Its root.
    pub root: Root,
    /// What is mounted on it, in this order.
    pub volumes: Vec<Volume>,
}

/// The root file system: an overlay of the image's layers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Directory that the names in `lower` are relative to.
    pub base: PathBuf,
    /// Layer directories, highest first, relative to `base`.
    pub lower: Vec<PathBuf>,
    /// Directory for what the container writes, relative to `base`.
    pub upper: PathBuf,
    /// The overlay's work directory, relative to `base`.
    pub work: PathBuf,
    /// Where the overlay is mounted.
    pub merged: PathBuf,
    /// Whether the container may write.
    pub read_only: bool,
    /// Whether what it writes is kept for another start.
    #[serde(default)]
    pub lasting: bool,
}

/// The first process of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Argument vector; the first word is looked up in the container's `PATH`.
    pub args: Vec<String>,
    /// Environment as `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, made when missing.
    pub cwd: String,
    /// `user[:group]`, names or numbers.
    pub user: String,
    /// Whether it has a terminal.
    pub tty: bool,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// File system type.
    pub kind: String,
    /// Where; absolute inside the container.
    pub target: String,
    /// Options as `mount` names them: flags and data mixed.
    pub options: Vec<String>,
    /// The request names it, and may do so through links of the image.
    #[serde(default)]
    pub asked: bool,
}

/// A file of the agent inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundFile {
    /// The agent's file.
    pub source: PathBuf,
    /// Absolute path inside the container.
    pub target: String,
}

/// Something of the machine's, or memory, inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// What it is.
    pub source: VolumeSource,
    /// Absolute path inside the container.
    pub target: String,
    /// Whether the container may write.
    pub read_only: bool,
    /// An empty directory first gets what the image has there.
    pub copy: bool,
}

/// What a [`Volume`] is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum VolumeSource {
    /// A directory or file of the machine.
    Tree(PathBuf),
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        size: Option<u64>,
        /// Permissions.
        mode: Option<u32>,
    },
}

fn mount(kind: &str, target: &str, options: &[&str]) -> Mount {
    let options = options.iter().map(|&option| option.to_owned()).collect();
    Mount {
        kind: kind.to_owned(),
        target: target.to_owned(),
        options,
        asked: false,
    }
}

/// Bytes of `/dev/shm` unless the request names a size.
pub const SHM_SIZE: u64 = 64 * 1024 * 1024;

/// The file systems that every container gets; those of the kernel can be written to when
/// `writable`.
pub fn default_mounts(shm_size: u64, writable: bool) -> Vec<Mount> {
    let access = if writable { "rw" } else { "ro" };
    vec![
        mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "devpts",
            "/dev/pts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", access]),
        mount(
            "cgroup2",
            "/sys/fs/cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
        mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
        mount(
            "tmpfs",
            "/dev/shm",
            &[
                "nosuid",
                "noexec",
                "nodev",
                "mode=1777",
                &format!("size={shm_size}"),
            ],
        ),
    ]
}

/// Paths that docker hides from containers.
pub fn default_masked_paths() -> Vec<String> {
    [
        "/proc/acpi",
        "/proc/asound",
        "/proc/interrupts",
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/scsi",
        "/proc/timer_list",
        "/proc/timer_stats",
        "/sys/devices/virtual/powercap",
        "/sys/firmware",
    ]
    .map(str::to_owned)
    .into()
}

/// Paths that docker makes read-only in containers.
pub fn default_readonly_paths() -> Vec<String> {
    [
        "/proc/bus",
        "/proc/fs",
        "/proc/irq",
        "/proc/sys",
        "/proc/sysrq-trigger",
    ]
    .map(str::to_owned)
    .into()
}
