//! What a container may do and use, beyond its command.

use alloc::{collections::BTreeMap, string::String, vec::Vec};
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::container::{
    limits::{Limits, Ulimit},
    mounts::{Device, Tmpfs},
};

/// The isolation of a container; the default is docker's.
#[expect(
    clippy::struct_excessive_bools,
    reason = "switches of the command line"
)]
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// The network.
    pub network: Network,
    /// The address on the bridge, from the part that the host gives out; any other when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Ipv4Addr>,
    /// More lines of `/etc/hosts`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<HostEntry>,
    /// Name servers in place of the machine's.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Domains that short names are looked up in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// `options` of `resolv.conf`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_options: Vec<String>,
    /// The NIS domain name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domainname: Option<String>,
    /// More groups of the user, names or numbers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub group_add: Vec<String>,
    /// Capabilities beside the default ones.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities to go without.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// Everything that the machine's root may do, with all devices.
    pub privileged: bool,
    /// Which system calls are let through.
    pub seccomp: Seccomp,
    /// Programs never give rights to those who execute them.
    pub no_new_privileges: bool,
    /// No path of `/proc` and `/sys` is hidden or read-only.
    pub unmasked: bool,
    /// Share the machine's IPC objects.
    pub ipc_host: bool,
    /// See the machine's processes.
    pub pid_host: bool,
    /// Share the machine's host name.
    pub uts_host: bool,
    /// File systems in memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tmpfs: Vec<Tmpfs>,
    /// Bytes of `/dev/shm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<u64>,
    /// Devices of the machine.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// What the whole container may use.
    pub limits: Limits,
    /// What each process may use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ulimits: Vec<Ulimit>,
    /// How ready the kernel is to kill it when memory is short, -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// Kernel parameters of its namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
}

/// A line of `/etc/hosts`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostEntry {
    /// The name.
    pub name: String,
    /// Its address; `host-gateway` for the host's.
    pub address: String,
}

/// The network of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// The bridge where the machine has one, else the machine's.
    #[default]
    Default,
    /// An address of its own on the machine's network.
    Bridge,
    /// The machine's.
    Host,
    /// None but `lo`.
    None,
    /// That of another container, by name or id.
    Container(String),
}

/// The filter of system calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seccomp {
    /// Docker's default profile.
    #[default]
    Default,
    /// None.
    Unconfined,
    /// A profile in docker's JSON format.
    Profile(String),
}
