//! The options of `run` about what a container may do and use.

use vdkr_core::{
    channel::message::{HostEntry, Network, Sandbox, Seccomp},
    container::{
        capability,
        limits::{PERIOD, Ulimit, parse_cpus, parse_size},
        mounts::{Device, Tmpfs},
        ports::{MAX_PORTS, PortError, Protocol, Publish, parse_exposed, parse_publish},
    },
};

/// What an option sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    AddHost,
    CapAdd,
    CapDrop,
    CgroupNamespace,
    CpuPeriod,
    CpuQuota,
    CpuShares,
    Cpus,
    CpusetCpus,
    CpusetMems,
    Device,
    Dns,
    DnsOption,
    DnsSearch,
    Domainname,
    Expose,
    GroupAdd,
    Ipc,
    Isolation,
    Memory,
    MemoryReservation,
    MemorySwap,
    Network,
    NoHealthcheck,
    OomScoreAdj,
    Pid,
    PidsLimit,
    Privileged,
    Publish,
    PublishAll,
    SecurityOpt,
    ShmSize,
    Sysctl,
    Tmpfs,
    Ulimit,
    Userns,
    Uts,
}

/// What the options say together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SandboxOptions {
    /// What is asked of the agent.
    pub sandbox: Sandbox,
    /// The file of a seccomp profile, still to be read.
    pub seccomp_file: Option<String>,
    /// Ports of this computer that lead to the container's.
    pub publish: Vec<Publish>,
    /// Publish what the image and `expose` name, on any free port.
    pub publish_all: bool,
    /// More ports of the container for `publish_all`.
    pub expose: Vec<(u16, Protocol)>,
    /// Whether `--cpus` was given.
    pub(super) cpus: bool,
}

/// Why a value does not do; a sentence behind the option's name.
type Reason = String;

impl SandboxOptions {
    /// Takes an option's value; that of a switch is `true` or `false`.
    pub(super) fn apply(&mut self, part: Part, value: &str) -> Result<(), Reason> {
        let sandbox = &mut self.sandbox;
        let limits = &mut sandbox.limits;
        match part {
            Part::AddHost => sandbox.extra_hosts.push(host_entry(value)?),
            Part::CapAdd => sandbox.cap_add.push(capability(value)?),
            Part::CapDrop => sandbox.cap_drop.push(capability(value)?),
            Part::CgroupNamespace => one_of(value, &["private"])?,
            Part::CpuPeriod => limits.cpu_period = above_zero(value)?,
            Part::CpuQuota => limits.cpu_quota = above_zero(value)?,
            Part::CpuShares => limits.cpu_shares = above_zero(value)?,
            Part::Cpus => {
                limits.cpu_quota = Some(parse_cpus(value).map_err(text)?);
                limits.cpu_period = Some(PERIOD);
                self.cpus = true;
            }
            Part::CpusetCpus => limits.cpuset_cpus = Some(value.to_owned()),
            Part::CpusetMems => limits.cpuset_mems = Some(value.to_owned()),
            Part::Device => sandbox.devices.push(Device::parse(value).map_err(text)?),
            Part::Dns => match value.parse::<std::net::IpAddr>() {
                Ok(address) => sandbox.dns.push(address.to_string()),
                Err(_) => return Err(format!("{value:?} is no address of a name server")),
            },
            Part::DnsOption => sandbox.dns_options.push(word(value)?),
            Part::DnsSearch => sandbox.dns_search.push(word(value)?),
            Part::Domainname => sandbox.domainname = Some(word(value)?),
            Part::Expose => self.expose.extend(parse_exposed(value).map_err(text)?),
            Part::GroupAdd => sandbox.group_add.push(word(value)?),
            Part::Ipc => sandbox.ipc_host = host_or(value, &["private", "shareable", ""])?,
            Part::Isolation => one_of(value, &["default"])?,
            Part::Memory => limits.memory = size(value)?,
            Part::MemoryReservation => limits.memory_reservation = size(value)?,
            Part::MemorySwap => {
                limits.memory_swap = Some(match value {
                    "-1" => -1,
                    value => size(value)?.map_or(0, u64::cast_signed),
                });
            }
            Part::Network => sandbox.network = network(value)?,
            Part::NoHealthcheck => {}
            Part::OomScoreAdj => {
                let score = value
                    .parse()
                    .ok()
                    .filter(|score| (-1000..=1000).contains(score));
                let error = || format!("{value:?} is no number from -1000 to 1000");
                sandbox.oom_score_adj = Some(score.ok_or_else(error)?);
            }
            Part::Pid => sandbox.pid_host = host_or(value, &["", "private"])?,
            Part::PidsLimit => {
                limits.pids = match value {
                    "-1" | "0" => None,
                    value => above_zero(value)?,
                }
            }
            Part::Privileged => sandbox.privileged = value == "true",
            Part::Publish => self.publish.extend(parse_publish(value).map_err(text)?),
            Part::PublishAll => self.publish_all = value == "true",
            Part::SecurityOpt => self.security(value)?,
            Part::ShmSize => sandbox.shm_size = size(value)?,
            Part::Sysctl => {
                let (name, value) = value
                    .split_once('=')
                    .filter(|(name, _)| !name.is_empty())
                    .ok_or_else(|| format!("{value:?} sets nothing; write NAME=VALUE"))?;
                sandbox.sysctls.insert(name.to_owned(), value.to_owned());
            }
            Part::Tmpfs => sandbox.tmpfs.push(Tmpfs::parse(value).map_err(text)?),
            Part::Ulimit => {
                let limit = Ulimit::parse(value).map_err(text)?;
                sandbox.ulimits.retain(|known| known.name != limit.name);
                sandbox.ulimits.push(limit);
            }
            Part::Userns => one_of(value, &["host", ""])?,
            Part::Uts => sandbox.uts_host = host_or(value, &["", "private"])?,
        }
        Ok(())
    }

    /// Whether any port is to be published.
    pub fn publishes(&self) -> bool {
        self.publish_all || !self.publish.is_empty()
    }

    fn security(&mut self, value: &str) -> Result<(), Reason> {
        let (name, setting) = value
            .split_once(['=', ':'])
            .map_or((value, None), |(name, setting)| (name, Some(setting)));
        match (name, setting) {
            ("no-new-privileges", None | Some("true")) => self.sandbox.no_new_privileges = true,
            ("no-new-privileges", Some("false")) => self.sandbox.no_new_privileges = false,
            ("seccomp", Some("unconfined")) => {
                self.sandbox.seccomp = Seccomp::Unconfined;
                self.seccomp_file = None;
            }
            ("seccomp", Some("builtin")) => {
                self.sandbox.seccomp = Seccomp::Default;
                self.seccomp_file = None;
            }
            ("seccomp", Some(file)) if !file.is_empty() => {
                self.seccomp_file = Some(file.to_owned());
            }
            ("systempaths", Some("unconfined")) => self.sandbox.unmasked = true,
            // The machine runs neither of them: nothing is confined by them in any case.
            ("apparmor", Some("unconfined")) | ("label", Some("disable")) => {}
            ("apparmor" | "label", _) => {
                return Err(format!(
                    "{value:?} needs AppArmor or SELinux, which the machine does not run"
                ));
            }
            _ => {
                return Err(format!(
                    "{value:?} is not known; those are no-new-privileges, seccomp=unconfined, \
                     seccomp=FILE and systempaths=unconfined"
                ));
            }
        }
        Ok(())
    }

    /// What no option can say by itself. `hostname` tells whether one was given.
    pub(super) fn check(&self, hostname: bool) -> Result<(), Reason> {
        let Self { sandbox, .. } = self;
        let limits = &sandbox.limits;
        limits.check().map_err(text)?;
        if self.cpus && limits.cpu_period != Some(PERIOD) {
            return Err("--cpus and --cpu-period cannot be used together".to_owned());
        }
        let published = self.publishes();
        let other = matches!(sandbox.network, Network::Container(_));
        if published && (other || sandbox.network == Network::None) {
            let text = "ports can be published on a network of the container's own, or with \
                        --network host, only";
            return Err(text.to_owned());
        }
        let names = !sandbox.dns.is_empty() || !sandbox.extra_hosts.is_empty();
        if other && (hostname || names) {
            let text = "--network container:NAME shares that container's names: --hostname, \
                        --add-host and --dns cannot be used with it";
            return Err(text.to_owned());
        }
        if sandbox.uts_host && hostname {
            return Err("--hostname and --uts host cannot be used together".to_owned());
        }
        if self.publish.len() > MAX_PORTS {
            return Err(text(PortError::TooMany(self.publish.len())));
        }
        Ok(())
    }
}

fn text(error: impl std::fmt::Display) -> Reason {
    error.to_string()
}

fn capability(name: &str) -> Result<String, Reason> {
    match capability::named(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(text(capability::UnknownCapability(name.to_owned()))),
    }
}

fn size(value: &str) -> Result<Option<u64>, Reason> {
    // 0 is docker's word for no limit.
    Ok(Some(parse_size(value).map_err(text)?).filter(|&bytes| bytes > 0))
}

fn above_zero(value: &str) -> Result<Option<u64>, Reason> {
    let number = value
        .parse::<u64>()
        .ok()
        .filter(|_| !value.starts_with('+'));
    let number = number.ok_or_else(|| format!("{value:?} is no number"))?;
    Ok(Some(number).filter(|&number| number > 0))
}

fn word(value: &str) -> Result<String, Reason> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(format!(
            "{value:?} is empty, or has characters that do not belong there"
        ));
    }
    Ok(value.to_owned())
}

fn one_of(value: &str, words: &[&str]) -> Result<(), Reason> {
    if words.contains(&value) {
        return Ok(());
    }
    Err(format!(
        "{value:?} cannot be had here; what can is: {}",
        words.join(", ").trim_matches([',', ' '])
    ))
}

fn host_or(value: &str, own: &[&str]) -> Result<bool, Reason> {
    if own.contains(&value) {
        return Ok(false);
    }
    one_of(value, &["host"]).map(|()| true)
}

fn host_entry(value: &str) -> Result<HostEntry, Reason> {
    let error = || format!("{value:?} is no host with its address; write NAME:ADDRESS");
    let (name, address) = value
        .split_once('=')
        .or_else(|| value.split_once(':'))
        .ok_or_else(error)?;
    let bare = address
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let address = bare.unwrap_or(address);
    let known = address == "host-gateway" || address.parse::<std::net::IpAddr>().is_ok();
    if name.is_empty() || !known {
        return Err(error());
    }
    Ok(HostEntry {
        name: word(name)?,
        address: address.to_owned(),
    })
}

fn network(value: &str) -> Result<Network, Reason> {
    Ok(match value {
        "default" => Network::Default,
        "bridge" => Network::Bridge,
        "host" => Network::Host,
        "none" => Network::None,
        other => match other.strip_prefix("container:") {
            Some(name) if !name.is_empty() => Network::Container(name.to_owned()),
            _ => {
                return Err(format!(
                    "{value:?} is no network; those are bridge, host, none and container:NAME"
                ));
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(options: &[(Part, &str)]) -> Result<SandboxOptions, Reason> {
        let mut all = SandboxOptions::default();
        for (part, value) in options {
            all.apply(*part, value)?;
        }
        all.check(false)?;
        Ok(all)
    }

    #[test]
    fn networks() {
        let network = |value| with(&[(Part::Network, value)]).unwrap().sandbox.network;
        assert_eq!(network("host"), Network::Host);
        assert_eq!(network("container:web"), Network::Container("web".into()));
        for bad in ["", "mine", "container:", "ns:/x"] {
            assert!(with(&[(Part::Network, bad)]).is_err(), "{bad}");
        }
        for lonely in ["none", "container:web"] {
            let published = with(&[(Part::Network, lonely), (Part::Publish, "80:80")]);
            assert!(published.unwrap_err().contains("published"), "{lonely}");
        }
        assert!(with(&[(Part::Network, "host"), (Part::Publish, "80:80")]).is_ok());
        assert!(with(&[(Part::Network, "container:web"), (Part::Dns, "1.1.1.1")]).is_err());
    }

    #[test]
    fn limits_are_checked_together() {
        let limits = |options: &[(Part, &str)]| with(options).map(|all| all.sandbox.limits);
        assert_eq!(
            limits(&[(Part::Memory, "64m")]).unwrap().memory,
            Some(64 << 20)
        );
        assert_eq!(limits(&[(Part::Memory, "0")]).unwrap().memory, None);
        assert!(
            limits(&[(Part::Memory, "1m")])
                .unwrap_err()
                .contains("least is 6m")
        );
        assert!(limits(&[(Part::MemorySwap, "64m")]).is_err());
        let swap = limits(&[(Part::MemorySwap, "-1"), (Part::Memory, "64m")]).unwrap();
        assert_eq!(swap.memory_swap, Some(-1));
        assert_eq!(
            limits(&[(Part::Cpus, "0.5")]).unwrap().cpu_quota,
            Some(50_000)
        );
        assert!(limits(&[(Part::Cpus, "0.5"), (Part::CpuPeriod, "5000")]).is_err());
        assert_eq!(limits(&[(Part::PidsLimit, "-1")]).unwrap().pids, None);
        assert_eq!(limits(&[(Part::PidsLimit, "9")]).unwrap().pids, Some(9));
        assert!(limits(&[(Part::CpusetCpus, "x")]).is_err());
        let files = [(Part::Ulimit, "nofile=1"), (Part::Ulimit, "nofile=2")];
        let files = with(&files).unwrap().sandbox.ulimits;
        assert_eq!((files.len(), files[0].soft), (1, Some(2)));
    }

    #[test]
    fn security() {
        let security = |value| with(&[(Part::SecurityOpt, value)]);
        assert!(
            security("no-new-privileges")
                .unwrap()
                .sandbox
                .no_new_privileges
        );
        assert!(
            !security("no-new-privileges=false")
                .unwrap()
                .sandbox
                .no_new_privileges
        );
        let open = security("seccomp=unconfined").unwrap();
        assert_eq!(open.sandbox.seccomp, Seccomp::Unconfined);
        assert_eq!(
            security("seccomp=p.json").unwrap().seccomp_file.as_deref(),
            Some("p.json")
        );
        assert!(security("apparmor=unconfined").is_ok());
        for bad in [
            "",
            "seccomp=",
            "seccomp",
            "apparmor=mine",
            "selinux",
            "no-new-privileges=x",
        ] {
            assert!(security(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_and_namespaces() {
        let host = |value| {
            with(&[(Part::AddHost, value)]).map(|all| {
                let entry = all.sandbox.extra_hosts[0].clone();
                (entry.name, entry.address)
            })
        };
        let pair = |name: &str, address: &str| Ok((name.to_owned(), address.to_owned()));
        assert_eq!(host("db:10.0.0.1"), pair("db", "10.0.0.1"));
        assert_eq!(host("db=::1"), pair("db", "::1"));
        assert_eq!(host("db:[::1]"), pair("db", "::1"));
        assert_eq!(host("up:host-gateway"), pair("up", "host-gateway"));
        for bad in ["db", "db:", ":1.1.1.1", "db:x", "d b:1.1.1.1"] {
            assert!(host(bad).is_err(), "{bad}");
        }
        assert!(with(&[(Part::Pid, "host")]).unwrap().sandbox.pid_host);
        for part in [Part::Pid, Part::Ipc, Part::Uts] {
            assert!(with(&[(part, "container:x")]).unwrap_err().contains("host"));
        }
        let mut uts = with(&[(Part::Uts, "host")]).unwrap();
        assert!(uts.check(true).is_err());
        assert!(uts.apply(Part::Isolation, "hyperv").is_err());
    }
}
