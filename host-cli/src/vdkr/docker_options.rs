//! The options of `docker run`, as a table.

use super::sandbox_options::Part;

/// What follows the name of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// Nothing, or `=true` and `=false`.
    Switch,
    /// A value: behind `=` or as the next word.
    Value,
}

/// What an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    Cidfile,
    Detach,
    DetachKeys,
    Entrypoint,
    Env,
    EnvFile,
    Help,
    Hostname,
    Init,
    Interactive,
    Label,
    LabelFile,
    Mount,
    Name,
    Platform,
    Pull,
    Quiet,
    ReadOnly,
    Restart,
    Rm,
    SigProxy,
    StopSignal,
    StopTimeout,
    Tty,
    User,
    Volume,
    VolumesFrom,
    Workdir,
    /// What the container may do and use.
    Sandbox(Part),
    /// Without effect here, which hurts nobody; the text says why.
    Ignored(&'static str),
    /// Cannot be had here; the text says why, or what to use instead.
    Refused(&'static str),
}

#[derive(Debug)]
pub(super) struct Opt {
    pub(super) long: &'static str,
    pub(super) short: Option<char>,
    pub(super) form: Form,
    pub(super) meaning: Meaning,
}

const fn switch(long: &'static str, meaning: Meaning) -> Opt {
    Opt {
        long,
        short: None,
        form: Form::Switch,
        meaning,
    }
}

const fn value(long: &'static str, meaning: Meaning) -> Opt {
    Opt {
        long,
        short: None,
        form: Form::Value,
        meaning,
    }
}

const fn sandbox(long: &'static str, part: Part) -> Opt {
    value(long, Meaning::Sandbox(part))
}

const fn refused(long: &'static str, why: &'static str) -> Opt {
    value(long, Meaning::Refused(why))
}

const fn ignored(long: &'static str, why: &'static str) -> Opt {
    value(long, Meaning::Ignored(why))
}

const NO_BLOCK_IO: &str = "the machine's disk is a file of this computer, and no container can be \
                           given a share of it";
const NO_REAL_TIME: &str = "the machine's kernel schedules no groups in real time";
const NO_HEALTH: &str = "health checks are not carried out";
const NO_LOG_DRIVERS: &str = "output is kept by the machine itself, for vdkr logs";
const WINDOWS: &str = "it belongs to containers of Windows";
const NO_NETWORKS: &str =
    "containers reach each other by address; names can be given by --add-host";

impl Opt {
    const fn short(mut self, short: char) -> Self {
        self.short = Some(short);
        self
    }
}

/// All options of `docker run`.
pub(super) const OPTIONS: &[Opt] = &[
    value("cidfile", Meaning::Cidfile),
    switch("detach", Meaning::Detach).short('d'),
    value("detach-keys", Meaning::DetachKeys),
    value("entrypoint", Meaning::Entrypoint),
    value("env", Meaning::Env).short('e'),
    value("env-file", Meaning::EnvFile),
    switch("help", Meaning::Help),
    value("hostname", Meaning::Hostname).short('h'),
    switch("init", Meaning::Init),
    switch("interactive", Meaning::Interactive).short('i'),
    value("label", Meaning::Label).short('l'),
    value("label-file", Meaning::LabelFile),
    value("mount", Meaning::Mount),
    value("name", Meaning::Name),
    value("pull", Meaning::Pull),
    switch("quiet", Meaning::Quiet).short('q'),
    switch("read-only", Meaning::ReadOnly),
    value("restart", Meaning::Restart),
    switch("rm", Meaning::Rm),
    switch("sig-proxy", Meaning::SigProxy),
    value("stop-signal", Meaning::StopSignal),
    value("stop-timeout", Meaning::StopTimeout),
    switch("tty", Meaning::Tty).short('t'),
    value("user", Meaning::User).short('u'),
    value("volume", Meaning::Volume).short('v'),
    value("workdir", Meaning::Workdir).short('w'),
    sandbox("add-host", Part::AddHost),
    ignored("annotation", "annotations are for other runtimes"),
    refused(
        "attach",
        "a container in the foreground has both of its outputs here: leave it out, add -i for its \
         input, or -d for none of them",
    )
    .short('a'),
    refused("blkio-weight", NO_BLOCK_IO),
    refused("blkio-weight-device", NO_BLOCK_IO),
    sandbox("cap-add", Part::CapAdd),
    sandbox("cap-drop", Part::CapDrop),
    refused(
        "cgroup-parent",
        "the machine places containers in its cgroups itself",
    ),
    sandbox("cgroupns", Part::CgroupNamespace),
    refused("cpu-count", WINDOWS),
    refused("cpu-percent", WINDOWS),
    sandbox("cpu-period", Part::CpuPeriod),
    sandbox("cpu-quota", Part::CpuQuota),
    refused("cpu-rt-period", NO_REAL_TIME),
    refused("cpu-rt-runtime", NO_REAL_TIME),
    sandbox("cpu-shares", Part::CpuShares).short('c'),
    sandbox("cpus", Part::Cpus),
    sandbox("cpuset-cpus", Part::CpusetCpus),
    sandbox("cpuset-mems", Part::CpusetMems),
    sandbox("device", Part::Device),
    refused("device-cgroup-rule", "name the devices by --device"),
    refused("device-read-bps", NO_BLOCK_IO),
    refused("device-read-iops", NO_BLOCK_IO),
    refused("device-write-bps", NO_BLOCK_IO),
    refused("device-write-iops", NO_BLOCK_IO),
    switch(
        "disable-content-trust",
        Meaning::Ignored("images are verified by digest in any case"),
    ),
    sandbox("dns", Part::Dns),
    sandbox("dns-opt", Part::DnsOption),
    sandbox("dns-option", Part::DnsOption),
    sandbox("dns-search", Part::DnsSearch),
    sandbox("domainname", Part::Domainname),
    sandbox("expose", Part::Expose),
    refused("gpus", "the machine has no graphics processors"),
    sandbox("group-add", Part::GroupAdd),
    ignored("health-cmd", NO_HEALTH),
    ignored("health-interval", NO_HEALTH),
    ignored("health-retries", NO_HEALTH),
    ignored("health-start-interval", NO_HEALTH),
    ignored("health-start-period", NO_HEALTH),
    ignored("health-timeout", NO_HEALTH),
    refused("io-maxbandwidth", WINDOWS),
    refused("io-maxiops", WINDOWS),
    refused("ip", "addresses are given out by the machine"),
    refused("ip6", "the machine's network carries IPv4 alone"),
    sandbox("ipc", Part::Ipc),
    sandbox("isolation", Part::Isolation),
    refused(
        "kernel-memory",
        "the kernel's memory counts as the container's: use --memory",
    ),
    refused("link", NO_NETWORKS),
    refused(
        "link-local-ip",
        "the machine's network carries IPv4 addresses of its own alone",
    ),
    ignored("log-driver", NO_LOG_DRIVERS),
    ignored("log-opt", NO_LOG_DRIVERS),
    refused("mac-address", "addresses are given out by the machine"),
    sandbox("memory", Part::Memory).short('m'),
    sandbox("memory-reservation", Part::MemoryReservation),
    sandbox("memory-swap", Part::MemorySwap),
    refused(
        "memory-swappiness",
        "cgroups of version 2 have no such setting; use --memory-swap",
    ),
    sandbox("net", Part::Network),
    ignored("net-alias", NO_NETWORKS),
    sandbox("network", Part::Network),
    ignored("network-alias", NO_NETWORKS),
    switch("no-healthcheck", Meaning::Sandbox(Part::NoHealthcheck)),
    switch(
        "oom-kill-disable",
        Meaning::Refused("the machine's kernel cannot keep a container alive without memory"),
    ),
    sandbox("oom-score-adj", Part::OomScoreAdj),
    sandbox("pid", Part::Pid),
    sandbox("pids-limit", Part::PidsLimit),
    value("platform", Meaning::Platform),
    switch("privileged", Meaning::Sandbox(Part::Privileged)),
    sandbox("publish", Part::Publish).short('p'),
    switch("publish-all", Meaning::Sandbox(Part::PublishAll)).short('P'),
    refused("runtime", "the machine has one runtime, its own"),
    sandbox("security-opt", Part::SecurityOpt),
    sandbox("shm-size", Part::ShmSize),
    refused("storage-opt", "containers share the machine's disk"),
    sandbox("sysctl", Part::Sysctl),
    sandbox("tmpfs", Part::Tmpfs),
    sandbox("ulimit", Part::Ulimit),
    switch(
        "use-api-socket",
        Meaning::Refused("there is no daemon with a socket in the machine"),
    ),
    sandbox("userns", Part::Userns),
    sandbox("uts", Part::Uts),
    refused(
        "volume-driver",
        "the machine keeps volumes itself: leave it out, or share a directory of this computer by \
         -v DIRECTORY:PATH",
    ),
    value("volumes-from", Meaning::VolumesFrom),
];
