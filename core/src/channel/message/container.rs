//! What the host asks about containers, and what the agent answers.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::container::restart::RestartPolicy;

/// How a new container lives, beyond what it runs; a part of a
/// [`RunRequest`](super::RunRequest).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Life {
    /// How far the request goes.
    #[serde(skip_serializing_if = "is_default")]
    pub until: Until,
    /// When it starts again.
    #[serde(skip_serializing_if = "is_default")]
    pub restart: RestartPolicy,
    /// A small first process of the agent's passes signals on and buries orphans.
    #[serde(skip_serializing_if = "is_default")]
    pub init: bool,
    /// What it is stopped with, by number; the image's when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<u8>,
    /// Seconds that it has to stop; below zero for any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Labels on top of the image's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// How far a [`RunRequest`](super::RunRequest) goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Until {
    /// To the container's end, with its streams: [`Reply::Ran`](super::Reply::Ran).
    #[default]
    Ended,
    /// Until its process runs: [`ContainerReply::Created`].
    Started,
    /// Until it exists: [`ContainerReply::Created`].
    Created,
}

/// What is asked of containers. Each is named by its name, its id or the start of its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum ContainerRequest {
    /// Its streams, to its end: [`Reply::Ran`](super::Reply::Ran).
    Attach {
        /// The container.
        name: String,
        /// Pass on standard input.
        #[serde(default)]
        stdin: bool,
    },
    /// Which paths of it differ from its image, on standard output: for each the letter `A` (added),
    /// `C` (changed) or `D` (deleted), its name without a `/` before it, and a zero byte. Then
    /// [`ContainerReply::Done`].
    Changes {
        /// The container.
        name: String,
    },
    /// What it has changed, as a layer (OCI image specification, layer) on standard output:
    /// [`ContainerReply::Done`].
    Commit {
        /// The container.
        name: String,
        /// Freeze it meanwhile.
        #[serde(default)]
        pause: bool,
    },
    /// A tar stream on standard input, unpacked into a directory of it: [`ContainerReply::Done`].
    CopyIn {
        /// The container.
        name: String,
        /// The directory.
        path: String,
    },
    /// A path of it as a tar stream on standard output: [`ContainerReply::Done`].
    CopyOut {
        /// The container.
        name: String,
        /// The path.
        path: String,
        /// What the archive's first entry is called; `.` for a directory's content.
        entry: String,
        /// Follow a link at the end of the path.
        #[serde(default)]
        follow: bool,
    },
    /// One more process in it: [`Reply::Ran`](super::Reply::Ran), or [`ContainerReply::Done`].
    Exec(ExecRequest),
    /// All of its files, as a tar stream on standard output: [`ContainerReply::Done`].
    Export {
        /// The container.
        name: String,
    },
    /// Describe: [`Reply::Inspected`](super::Reply::Inspected).
    Inspect {
        /// The container.
        name: String,
    },
    /// Send a signal: [`ContainerReply::Done`].
    Kill {
        /// The container.
        name: String,
        /// By number.
        signal: u8,
    },
    /// All of them: [`ContainerReply::List`].
    List,
    /// What it has written: on the output streams, then [`ContainerReply::Done`].
    Logs(LogsRequest),
    /// Facts about a path of it: [`ContainerReply::Path`].
    Path {
        /// The container.
        name: String,
        /// The path.
        path: String,
        /// Follow a link at the end of the path.
        #[serde(default)]
        follow: bool,
    },
    /// Freeze it: [`ContainerReply::Done`].
    Pause {
        /// The container.
        name: String,
    },
    /// Give one that does not run the address that ports of the host lead to from now on:
    /// [`ContainerReply::Done`].
    Place {
        /// The container.
        name: String,
        /// One of the host's to give; any of the machine's when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        address: Option<Ipv4Addr>,
    },
    /// Remove it: [`ContainerReply::Done`].
    Remove {
        /// The container.
        name: String,
        /// Kill it first.
        #[serde(default)]
        force: bool,
        /// Also the volumes that were made for it alone.
        #[serde(default)]
        volumes: bool,
    },
    /// Give it another name: [`ContainerReply::Done`].
    Rename {
        /// The container.
        name: String,
        /// Its new name.
        new_name: String,
    },
    /// Stop and start it: [`ContainerReply::Done`].
    Restart {
        /// The container.
        name: String,
        /// As in [`ContainerRequest::Stop`].
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<i64>,
    },
    /// Start what starts with the machine: [`ContainerReply::Done`]. Sent once by the host that
    /// keeps the machine.
    Resume,
    /// Start it: [`ContainerReply::Done`], or with `attach` its streams and
    /// [`Reply::Ran`](super::Reply::Ran).
    Start {
        /// The container.
        name: String,
        /// Pass on its output.
        #[serde(default)]
        attach: bool,
        /// Pass on standard input.
        #[serde(default)]
        stdin: bool,
    },
    /// What they use now: [`ContainerReply::Stats`].
    Stats {
        /// The containers; none for all that run.
        #[serde(default)]
        names: Vec<String>,
    },
    /// Stop it: [`ContainerReply::Done`].
    Stop {
        /// The container.
        name: String,
        /// Seconds until it is killed, below zero for any number; its own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        timeout: Option<i64>,
        /// The signal; its own when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
    },
    /// Its processes: [`ContainerReply::Top`].
    Top {
        /// The container.
        name: String,
    },
    /// Let it go on: [`ContainerReply::Done`].
    Unpause {
        /// The container.
        name: String,
    },
    /// Wait for its end: [`Reply::Ran`](super::Reply::Ran).
    Wait {
        /// The container.
        name: String,
    },
    /// A request of a later version.
    #[serde(other)]
    Unknown,
}

/// Arguments of [`ContainerRequest::Exec`].
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecRequest {
    /// The container.
    pub name: String,
    /// The command and its arguments.
    pub args: Vec<String>,
    /// `NAME=value`, on top of the container's.
    pub env: Vec<String>,
    /// Instead of the container's working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<String>,
    /// Instead of the container's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// On a terminal of its own.
    pub tty: bool,
    /// The host will send standard input.
    pub stdin: bool,
    /// Nobody waits for its end.
    pub detach: bool,
    /// With every right that the agent has.
    pub privileged: bool,
}

/// Arguments of [`ContainerRequest::Logs`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogsRequest {
    /// The container.
    pub name: String,
    /// Go on until its end.
    pub follow: bool,
    /// A time before each line.
    pub timestamps: bool,
    /// Only so many lines, from the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Nothing from before, in nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ns: Option<u64>,
    /// Nothing from after, in nanoseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until_ns: Option<u64>,
}

/// What the agent says about containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
pub enum ContainerReply {
    /// It exists, and runs if that was asked for.
    Created {
        /// Its id, 64 hex digits.
        id: String,
    },
    /// It was done.
    Done,
    /// All containers, the newest first.
    List {
        /// One for each.
        containers: Vec<ContainerRow>,
    },
    /// A path.
    Path(PathFacts),
    /// Processes.
    Top {
        /// Names of the columns.
        titles: Vec<String>,
        /// One row for each process.
        processes: Vec<Vec<String>>,
    },
    /// What containers use.
    Stats {
        /// One for each.
        samples: Vec<Sample>,
    },
    /// A reply of a later version.
    #[serde(other)]
    Unknown,
}

/// What a container is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerState {
    /// It has never run.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// It has ended and starts again in a moment.
    Restarting,
    /// It has ended.
    Exited,
    /// A state of a later version.
    #[serde(other)]
    Unknown,
}

impl ContainerState {
    /// Docker's word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Unknown => "unknown",
        }
    }

    /// Whether there is a process.
    pub fn is_live(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// One line of `ps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerRow {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The image as the user named it.
    pub image: String,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// What it executes.
    pub command: Vec<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// What it is doing.
    pub state: ContainerState,
    /// When its process started last, if ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// When its process ended last, if ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished_ms: Option<u64>,
    /// The last status.
    pub exit_code: i32,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether its standard input is open.
    pub stdin: bool,
    /// Whether [`ContainerRequest::Resume`] starts it.
    pub resumes: bool,
    /// What is mounted in it beside its image.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<RowMount>,
    /// Its network: `bridge`, `host` or `none`; empty for that of another container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub network: String,
}

/// A mount, as lists of containers show it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RowMount {
    /// The volume's name, or the host's path; empty for memory.
    pub source: String,
    /// Where it is in the container.
    pub target: String,
    /// It is a volume.
    pub volume: bool,
}

/// Facts about a path of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PathFacts {
    /// `None` when nothing is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<PathKind>,
}

/// What lies at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathKind {
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A symbolic link.
    Link,
    /// Anything else.
    #[serde(other)]
    Other,
}

/// What a container has used and uses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sample {
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Time of this sample, in microseconds since the machine's start.
    pub at_us: u64,
    /// Processor time used, in microseconds.
    pub cpu_us: u64,
    /// Processors of the machine.
    pub cpus: u32,
    /// Bytes of memory in use.
    pub memory: u64,
    /// Most bytes of memory that it may use.
    pub memory_limit: u64,
    /// Bytes received and sent, where the network is its own.
    pub network: (u64, u64),
    /// Bytes read from and written to disks.
    pub disk: (u64, u64),
    /// Processes and threads.
    pub pids: u64,
}
