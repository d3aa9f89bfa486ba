//! The document that makes a container in an engine, from the request for it. What an engine cannot do is
//! refused by its name; nothing is left out in silence.

use alloc::{borrow::ToOwned as _, format, string::String, vec::Vec};

use serde_json::{Map, Value, json};

use super::EngineKind;
use crate::{
    channel::message::{MountSource, MountSpec, Network, RunRequest, Sandbox, Seccomp, Until},
    container::{limits::Ulimit, signal},
};

/// The label of a container that goes at its end, with which an agent knows that it has to see to that.
pub const REMOVED_AT_ITS_END: &str = "vdkr.rm";

/// Something that an engine cannot do as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{engine} cannot do this: {what}")]
pub struct Unfit {
    /// The engine.
    pub engine: EngineKind,
    /// What was asked for.
    pub what: String,
}

/// The document for `POST /containers/create`. `share` gives the path on the target at which something
/// of the host's is mounted.
pub fn document(
    engine: EngineKind,
    request: &RunRequest,
    image: &str,
    share: &dyn Fn(&str) -> Option<String>,
) -> Result<Value, Unfit> {
    let unfit = |what: String| Unfit { engine, what };
    let attached = request.life.until == Until::Ended;
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    set("Image", json!(image));
    set("Tty", json!(request.tty));
    set("OpenStdin", json!(request.stdin));
    set("StdinOnce", json!(request.stdin && attached));
    set("AttachStdin", json!(request.stdin && attached));
    set("AttachStdout", json!(attached));
    set("AttachStderr", json!(attached));
    let mut labels = request.life.labels.clone();
    if request.rm && attached {
        labels.insert(REMOVED_AT_ITS_END.to_owned(), "1".to_owned());
    }
    set("Labels", json!(labels));
    if !request.env.is_empty() {
        set("Env", json!(request.env));
    }
    if !request.args.is_empty() {
        set("Cmd", json!(request.args));
    }
    match request.entrypoint.as_deref() {
        None => {}
        // Docker's way to have none.
        Some([]) => set("Entrypoint", json!([""])),
        Some(words) => set("Entrypoint", json!(words)),
    }
    let texts = [
        ("WorkingDir", &request.workdir),
        ("User", &request.user),
        ("Hostname", &request.hostname),
        ("Domainname", &request.sandbox.domainname),
    ];
    for (name, text) in texts {
        if let Some(text) = text {
            set(name, json!(text));
        }
    }
    if let Some(number) = request.life.stop_signal {
        set("StopSignal", json!(signal::name(number)));
    }
    if let Some(seconds) = request.life.stop_timeout {
        set("StopTimeout", json!(seconds));
    }
    let mut host = host_config(engine, request).map_err(unfit)?;
    let mut mounts = Vec::new();
    for spec in &request.mounts {
        mounts.push(mount(spec, share).map_err(unfit)?);
    }
    host.insert("Mounts".to_owned(), Value::Array(mounts));
    set("HostConfig", Value::Object(host));
    Ok(Value::Object(fields))
}

fn host_config(engine: EngineKind, request: &RunRequest) -> Result<Map<String, Value>, String> {
    let sandbox = &request.sandbox;
    if sandbox.address.is_some() {
        return Err("--ip, as the engine gives out addresses itself".to_owned());
    }
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| {
        fields.insert(name.to_owned(), value);
    };
    let (policy, most) = request.life.restart.name();
    set(
        "RestartPolicy",
        json!({"Name": policy, "MaximumRetryCount": most}),
    );
    // Without it the engine's own configuration holds.
    if request.life.init {
        set("Init", json!(true));
    }
    set("ReadonlyRootfs", json!(request.read_only));
    // Who waits for its end reads its status, and removes it then.
    let behind = request.life.until != Until::Ended;
    set("AutoRemove", json!(request.rm && behind));
    let network = match &sandbox.network {
        Network::Default => "default",
        Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
        Network::Container(name) => &format!("container:{name}"),
    };
    set("NetworkMode", json!(network));
    let hosts = sandbox.extra_hosts.iter();
    let hosts: Vec<_> = hosts
        .map(|entry| format!("{}:{}", entry.name, entry.address))
        .collect();
    let lists = [
        ("ExtraHosts", &hosts),
        ("Dns", &sandbox.dns),
        ("DnsSearch", &sandbox.dns_search),
        ("DnsOptions", &sandbox.dns_options),
        ("GroupAdd", &sandbox.group_add),
        ("CapAdd", &sandbox.cap_add),
        ("CapDrop", &sandbox.cap_drop),
    ];
    for (name, list) in lists {
        if !list.is_empty() {
            set(name, json!(list));
        }
    }
    set("Privileged", json!(sandbox.privileged));
    for (name, shared) in [
        ("IpcMode", sandbox.ipc_host),
        ("PidMode", sandbox.pid_host),
        ("UTSMode", sandbox.uts_host),
    ] {
        if shared {
            set(name, json!("host"));
        }
    }
    let security = security(engine, sandbox);
    if !security.is_empty() {
        set("SecurityOpt", json!(security));
    }
    if sandbox.unmasked && engine == EngineKind::Docker {
        set("MaskedPaths", json!([]));
        set("ReadonlyPaths", json!([]));
    }
    if !sandbox.tmpfs.is_empty() {
        let tmpfs = sandbox.tmpfs.iter();
        let tmpfs: Map<_, _> = tmpfs
            .map(|one| (one.target.clone(), json!(one.options.join(","))))
            .collect();
        set("Tmpfs", Value::Object(tmpfs));
    }
    if !sandbox.devices.is_empty() {
        let devices = sandbox.devices.iter().map(|device| {
            json!({
                "PathOnHost": device.source,
                "PathInContainer": device.target,
                "CgroupPermissions": device.access,
            })
        });
        set("Devices", Value::Array(devices.collect()));
    }
    if !sandbox.ulimits.is_empty() {
        set(
            "Ulimits",
            Value::Array(sandbox.ulimits.iter().map(ulimit).collect()),
        );
    }
    if !sandbox.sysctls.is_empty() {
        set("Sysctls", json!(sandbox.sysctls));
    }
    let limits = &sandbox.limits;
    for (name, number) in [
        ("ShmSize", sandbox.shm_size),
        ("Memory", limits.memory),
        ("MemoryReservation", limits.memory_reservation),
        ("CpuQuota", limits.cpu_quota),
        ("CpuPeriod", limits.cpu_period),
        ("CpuShares", limits.cpu_shares),
        ("PidsLimit", limits.pids),
    ] {
        if let Some(number) = number {
            set(name, json!(number));
        }
    }
    if let Some(bytes) = limits.memory_swap {
        set("MemorySwap", json!(bytes));
    }
    if let Some(score) = sandbox.oom_score_adj {
        set("OomScoreAdj", json!(score));
    }
    for (name, list) in [
        ("CpusetCpus", &limits.cpuset_cpus),
        ("CpusetMems", &limits.cpuset_mems),
    ] {
        if let Some(list) = list {
            set(name, json!(list));
        }
    }
    Ok(fields)
}

fn security(engine: EngineKind, sandbox: &Sandbox) -> Vec<String> {
    let mut words = Vec::new();
    match &sandbox.seccomp {
        Seccomp::Default => {}
        Seccomp::Unconfined => words.push("seccomp=unconfined".to_owned()),
        Seccomp::Profile(json) => words.push(format!("seccomp={json}")),
    }
    if sandbox.no_new_privileges {
        words.push("no-new-privileges".to_owned());
    }
    if sandbox.unmasked && engine == EngineKind::Podman {
        words.push("unmask=ALL".to_owned());
    }
    words
}

fn ulimit(limit: &Ulimit) -> Value {
    let number = |value: Option<u64>| value.map_or(-1, |value| i64::try_from(value).unwrap_or(-1));
    json!({"Name": limit.name, "Soft": number(limit.soft), "Hard": number(limit.hard)})
}

fn mount(spec: &MountSpec, share: &dyn Fn(&str) -> Option<String>) -> Result<Value, String> {
    let mut mount = json!({"Target": spec.target, "ReadOnly": spec.read_only});
    let fields = match &spec.source {
        MountSource::Volume { name, no_copy } => json!({
            "Type": "volume",
            "Source": name.as_deref().unwrap_or_default(),
            "VolumeOptions": {"NoCopy": no_copy},
        }),
        MountSource::Tmpfs { size, mode } => json!({
            "Type": "tmpfs",
            "TmpfsOptions": {"SizeBytes": size.unwrap_or(0), "Mode": mode.unwrap_or(0o1777)},
        }),
        MountSource::Share { share: name, path } => {
            let place = share(name)
                .ok_or_else(|| format!("{path} of the host is not shared with this machine"))?;
            json!({"Type": "bind", "Source": place})
        }
        MountSource::Unknown => {
            let target = &spec.target;
            return Err(format!("a mount on {target} of a kind that is not known"));
        }
    };
    if let (Some(mount), Value::Object(fields)) = (mount.as_object_mut(), fields) {
        mount.extend(fields);
    }
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString as _, vec};

    use super::*;
    use crate::{
        channel::message::{HostEntry, Life},
        container::{limits::Limits, mounts::Tmpfs, restart::RestartPolicy},
    };

    fn made(request: &RunRequest) -> Value {
        let share = |name: &str| (name == "0123").then(|| "/run/share".to_owned());
        document(EngineKind::Docker, request, "img:1", &share).unwrap()
    }

    #[test]
    fn a_plain_request_asks_for_what_docker_run_asks_for() {
        let document = made(&RunRequest::default());
        assert_eq!(document["Image"], "img:1");
        assert_eq!(document["AttachStdout"], true);
        for absent in ["Cmd", "Entrypoint", "Env", "User", "Hostname"] {
            assert_eq!(document.get(absent), None, "{absent}");
        }
        let host = &document["HostConfig"];
        assert_eq!(host["NetworkMode"], "default");
        assert_eq!(host["RestartPolicy"]["Name"], "no");
        assert_eq!(host["Privileged"], false);
        assert_eq!(host.get("Init"), None, "left to the engine");
        assert_eq!(document["Labels"], json!({}));
        assert_eq!(host.get("Memory"), None);
    }

    #[test]
    fn everything_finds_its_place() {
        let request = RunRequest {
            args: vec!["echo".into(), "a b".into()],
            entrypoint: Some(vec![]),
            env: vec!["A=1".into()],
            workdir: Some("/w".into()),
            user: Some("7:8".into()),
            tty: true,
            stdin: true,
            rm: true,
            read_only: true,
            life: Life {
                until: Until::Started,
                restart: RestartPolicy::OnFailure { max: 3 },
                init: true,
                stop_signal: Some(2),
                stop_timeout: Some(-1),
                ..Life::default()
            },
            sandbox: Sandbox {
                network: Network::Container("web".into()),
                extra_hosts: vec![HostEntry {
                    name: "h".into(),
                    address: "10.0.0.1".into(),
                }],
                cap_add: vec!["NET_ADMIN".into()],
                seccomp: Seccomp::Unconfined,
                no_new_privileges: true,
                unmasked: true,
                pid_host: true,
                tmpfs: vec![Tmpfs {
                    target: "/t".into(),
                    options: vec!["size=1024".into(), "noexec".into()],
                }],
                limits: Limits {
                    memory: Some(1 << 26),
                    memory_swap: Some(-1),
                    cpu_quota: Some(50_000),
                    ..Limits::default()
                },
                ..Sandbox::default()
            },
            mounts: vec![
                MountSpec {
                    target: "/d".into(),
                    source: MountSource::Volume {
                        name: Some("data".into()),
                        no_copy: true,
                    },
                    read_only: true,
                },
                MountSpec {
                    target: "/s".into(),
                    source: MountSource::Share {
                        share: "0123".into(),
                        path: "/home".into(),
                    },
                    read_only: false,
                },
            ],
            ..RunRequest::default()
        };
        let document = made(&request);
        assert_eq!(document["Entrypoint"], json!([""]));
        assert_eq!(document["Cmd"], json!(["echo", "a b"]));
        assert_eq!(document["StdinOnce"], false, "nobody is attached");
        assert_eq!(document["StopSignal"], "SIGINT");
        let host = &document["HostConfig"];
        assert_eq!(host["AutoRemove"], true);
        assert_eq!(host["Init"], true);
        assert_eq!(document["Labels"].get(REMOVED_AT_ITS_END), None);
        assert_eq!(host["NetworkMode"], "container:web");
        assert_eq!(host["ExtraHosts"], json!(["h:10.0.0.1"]));
        assert_eq!(
            host["SecurityOpt"],
            json!(["seccomp=unconfined", "no-new-privileges"])
        );
        assert_eq!(host["MaskedPaths"], json!([]));
        assert_eq!(host["Tmpfs"]["/t"], "size=1024,noexec");
        assert_eq!(host["Memory"], 1 << 26);
        assert_eq!(host["MemorySwap"], -1);
        assert_eq!(host["Mounts"][0]["VolumeOptions"]["NoCopy"], true);
        assert_eq!(host["Mounts"][0]["ReadOnly"], true);
        assert_eq!(host["Mounts"][1]["Source"], "/run/share");
        let attached = RunRequest {
            life: Life::default(),
            ..request
        };
        let document = made(&attached);
        assert_eq!(document["HostConfig"]["AutoRemove"], false);
        assert_eq!(document["Labels"][REMOVED_AT_ITS_END], "1");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let refused = |request: &RunRequest| {
            document(EngineKind::Podman, request, "i", &|_| None)
                .unwrap_err()
                .to_string()
        };
        let mut request = RunRequest::default();
        request.sandbox.address = Some([10, 0, 0, 7].into());
        let said = refused(&request);
        assert!(said.contains("podman") && said.contains("--ip"), "{said}");
        let mut request = RunRequest::default();
        request.mounts.push(MountSpec {
            target: "/x".into(),
            source: MountSource::Share {
                share: "0".into(),
                path: "/home/me".into(),
            },
            read_only: false,
        });
        assert!(refused(&request).contains("/home/me"));
    }
}
