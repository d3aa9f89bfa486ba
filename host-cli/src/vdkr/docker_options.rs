//! The options of `docker run`, as a table.

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
    Entrypoint,
    Env,
    EnvFile,
    Help,
    Hostname,
    Init,
    Interactive,
    Label,
    LabelFile,
    Name,
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
    Workdir,
    /// Known to docker, not supported here.
    Unsupported,
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

const fn unsupported(long: &'static str) -> Opt {
    value(long, Meaning::Unsupported)
}

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
    value("entrypoint", Meaning::Entrypoint),
    value("env", Meaning::Env).short('e'),
    value("env-file", Meaning::EnvFile),
    switch("help", Meaning::Help),
    value("hostname", Meaning::Hostname).short('h'),
    switch("init", Meaning::Init),
    switch("interactive", Meaning::Interactive).short('i'),
    value("label", Meaning::Label).short('l'),
    value("label-file", Meaning::LabelFile),
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
    value("workdir", Meaning::Workdir).short('w'),
    unsupported("add-host"),
    unsupported("annotation"),
    unsupported("attach").short('a'),
    unsupported("blkio-weight"),
    unsupported("blkio-weight-device"),
    unsupported("cap-add"),
    unsupported("cap-drop"),
    unsupported("cgroup-parent"),
    unsupported("cgroupns"),
    unsupported("cpu-count"),
    unsupported("cpu-percent"),
    unsupported("cpu-period"),
    unsupported("cpu-quota"),
    unsupported("cpu-rt-period"),
    unsupported("cpu-rt-runtime"),
    unsupported("cpu-shares").short('c'),
    unsupported("cpus"),
    unsupported("cpuset-cpus"),
    unsupported("cpuset-mems"),
    unsupported("detach-keys"),
    unsupported("device"),
    unsupported("device-cgroup-rule"),
    unsupported("device-read-bps"),
    unsupported("device-read-iops"),
    unsupported("device-write-bps"),
    unsupported("device-write-iops"),
    switch("disable-content-trust", Meaning::Unsupported),
    unsupported("dns"),
    unsupported("dns-opt"),
    unsupported("dns-option"),
    unsupported("dns-search"),
    unsupported("domainname"),
    unsupported("expose"),
    unsupported("gpus"),
    unsupported("group-add"),
    unsupported("health-cmd"),
    unsupported("health-interval"),
    unsupported("health-retries"),
    unsupported("health-start-interval"),
    unsupported("health-start-period"),
    unsupported("health-timeout"),
    unsupported("io-maxbandwidth"),
    unsupported("io-maxiops"),
    unsupported("ip"),
    unsupported("ip6"),
    unsupported("ipc"),
    unsupported("isolation"),
    unsupported("kernel-memory"),
    unsupported("link"),
    unsupported("link-local-ip"),
    unsupported("log-driver"),
    unsupported("log-opt"),
    unsupported("mac-address"),
    unsupported("memory").short('m'),
    unsupported("memory-reservation"),
    unsupported("memory-swap"),
    unsupported("memory-swappiness"),
    unsupported("mount"),
    unsupported("net"),
    unsupported("net-alias"),
    unsupported("network"),
    unsupported("network-alias"),
    switch("no-healthcheck", Meaning::Unsupported),
    switch("oom-kill-disable", Meaning::Unsupported),
    unsupported("oom-score-adj"),
    unsupported("pid"),
    unsupported("pids-limit"),
    unsupported("platform"),
    switch("privileged", Meaning::Unsupported),
    unsupported("publish").short('p'),
    switch("publish-all", Meaning::Unsupported).short('P'),
    unsupported("runtime"),
    unsupported("security-opt"),
    unsupported("shm-size"),
    unsupported("storage-opt"),
    unsupported("sysctl"),
    unsupported("tmpfs"),
    unsupported("ulimit"),
    switch("use-api-socket", Meaning::Unsupported),
    unsupported("userns"),
    unsupported("uts"),
    unsupported("volume").short('v'),
    unsupported("volume-driver"),
    unsupported("volumes-from"),
];
