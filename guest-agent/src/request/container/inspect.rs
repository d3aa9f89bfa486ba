//! `inspect`: everything about a container, in the form of `docker container inspect`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};
use vdkr_core::{
    channel::message::{
        ContainerState, Done, MountSource, MountSpec, Network, Reply, RunRequest, Sandbox,
    },
    container::signal,
};

use super::{Agent, list};
use crate::{
    boot::network::{GATEWAY, PREFIX},
    container::{Entry, record::Record},
    request::{mounts, run},
    run::{process, spec::SHM_SIZE},
};

/// What docker writes for a time that has not been.
const NEVER: &str = "0001-01-01T00:00:00Z";

/// Describes a container.
pub fn inspect(agent: &Agent, name: &str) -> Done {
    let entry = agent.book().find(name)?;
    let record = entry.record.borrow();
    let mounts = mounts::describe(agent, &record.request.mounts);
    let document = document(&entry, &record, &mounts);
    Ok(Reply::Inspected {
        documents: vec![document],
    })
}

fn document(entry: &Entry, record: &Record, mounts: &Value) -> Value {
    let (request, status) = (&record.request, &record.status);
    let command = list::command(record);
    let (path, args) = match command.split_first() {
        Some((path, args)) => (path.as_str(), args),
        None => ("", &[][..]),
    };
    let (policy, retries) = request.life.restart.name();
    let pid = entry.live().map_or(0, |live| live.pid());
    json!({
        "Id": record.id,
        "Created": time(Some(record.created_ms)),
        "Path": path,
        "Args": args,
        "State": {
            "Status": status.state.name(),
            "Running": matches!(
                status.state,
                ContainerState::Running | ContainerState::Paused | ContainerState::Restarting
            ),
            "Paused": status.state == ContainerState::Paused,
            "Restarting": status.state == ContainerState::Restarting,
            "OOMKilled": status.oom_killed,
            "Dead": false,
            "Pid": pid,
            "ExitCode": status.exit_code,
            "Error": status.error,
            "StartedAt": time(status.started_ms),
            "FinishedAt": time(status.finished_ms),
        },
        "Image": record.image,
        "ResolvConfPath": entry.dir.join("resolv.conf"),
        "HostnamePath": entry.dir.join("hostname"),
        "HostsPath": entry.dir.join("hosts"),
        "LogPath": entry.dir.join("log"),
        "Name": format!("/{}", record.name),
        "RestartCount": status.restarts,
        "Driver": "overlay2",
        "Platform": "linux",
        "Mounts": mounts,
        "Config": config(record),
        "HostConfig": host_config(request, policy, retries),
        "NetworkSettings": network_settings(entry),
    })
}

fn host_config(request: &RunRequest, policy: &str, retries: u32) -> Value {
    let Sandbox {
        limits, network, ..
    } = &request.sandbox;
    let network = match network {
        Network::Default => "default",
        Network::Bridge => "bridge",
        Network::Host => "host",
        Network::None => "none",
        Network::Container(name) => &format!("container:{name}"),
    };
    let mode = |host: bool, own: &'static str| if host { "host" } else { own };
    let sandbox = &request.sandbox;
    let cores = match (limits.cpu_quota, limits.cpu_period) {
        (Some(quota), period) => {
            quota.saturating_mul(1_000_000_000) / period.unwrap_or(100_000).max(1)
        }
        (None, _) => 0,
    };
    let binds = request.mounts.iter().filter_map(bind);
    json!({
        "AutoRemove": request.rm,
        "Binds": binds.collect::<Vec<_>>(),
        "CapAdd": words(&sandbox.cap_add),
        "CapDrop": words(&sandbox.cap_drop),
        "CpuPeriod": limits.cpu_period.unwrap_or_default(),
        "CpuQuota": limits.cpu_quota.unwrap_or_default(),
        "CpuShares": limits.cpu_shares.unwrap_or_default(),
        "Init": request.life.init,
        "IpcMode": mode(sandbox.ipc_host, "private"),
        "LogConfig": { "Type": "local", "Config": {} },
        "Memory": limits.memory.unwrap_or_default(),
        "NanoCpus": cores,
        "NetworkMode": network,
        "PidMode": mode(sandbox.pid_host, ""),
        "PidsLimit": limits.pids,
        "PortBindings": {},
        "Privileged": sandbox.privileged,
        "ReadonlyRootfs": request.read_only,
        "RestartPolicy": { "Name": policy, "MaximumRetryCount": retries },
        "ShmSize": sandbox.shm_size.unwrap_or(SHM_SIZE),
        "UTSMode": mode(sandbox.uts_host, ""),
    })
}

/// A volume or a directory of the host as the user wrote it.
fn bind(spec: &MountSpec) -> Option<String> {
    let source = match &spec.source {
        MountSource::Share { path, .. } => path.clone(),
        MountSource::Volume { name, .. } => name.clone()?,
        _ => return None,
    };
    let mode = if spec.read_only { ":ro" } else { "" };
    Some(format!("{source}:{}{mode}", spec.target))
}

/// What it has as long as it runs. Which ports of the host lead to it, the host knows.
fn network_settings(entry: &Entry) -> Value {
    let address = entry.live().and_then(|live| live.place.address());
    match address {
        Some(address) => json!({
            "Gateway": GATEWAY,
            "IPAddress": address,
            "IPPrefixLen": PREFIX,
            "MacAddress": "",
            "Ports": {},
            "Networks": { "bridge": {
                "Gateway": GATEWAY,
                "IPAddress": address,
                "IPPrefixLen": PREFIX,
            } },
        }),
        None => json!({
            "Gateway": "",
            "IPAddress": "",
            "IPPrefixLen": 0,
            "MacAddress": "",
            "Ports": {},
            "Networks": {},
        }),
    }
}

fn config(record: &Record) -> Value {
    let (request, image) = (&record.request, &record.config.config);
    let short = vdkr_core::container::name::short(&record.id);
    let hostname = request.hostname.as_deref().unwrap_or(short);
    let defaults = run::defaults(&record.config);
    let env = process::environment(&defaults.env, &request.env, hostname, request.tty);
    let entrypoint = request.entrypoint.as_ref().unwrap_or(&image.entrypoint);
    let cmd = if request.args.is_empty() && request.entrypoint.is_none() {
        &image.cmd
    } else {
        &request.args
    };
    let mut fields = Map::new();
    let mut set = |name: &str, value: Value| fields.insert(name.to_owned(), value);
    set("Hostname", json!(hostname));
    set("User", json!(request.user.as_ref().unwrap_or(&image.user)));
    set("Tty", json!(request.tty));
    set("OpenStdin", json!(request.stdin));
    set("AttachStdin", json!(request.stdin));
    set("Env", json!(env.unwrap_or_default()));
    set("Cmd", words(cmd));
    set("Image", json!(request.image));
    set("ExposedPorts", keys(&image.exposed_ports));
    set("Volumes", keys(&image.volumes));
    set(
        "WorkingDir",
        json!(request.workdir.as_ref().unwrap_or(&image.working_dir)),
    );
    set("Entrypoint", words(entrypoint));
    set("Labels", json!(list::labels(record)));
    set("StopSignal", json!(signal::name(record.stop_signal())));
    set("StopTimeout", json!(record.stop_timeout()));
    Value::Object(fields)
}

/// A set as docker writes it: an object whose values say nothing.
fn keys(names: &BTreeSet<String>) -> Value {
    names
        .iter()
        .map(|name| (name.clone(), json!({})))
        .collect::<Map<_, _>>()
        .into()
}

/// Docker writes a list that is not set as `null`.
fn words(words: &[String]) -> Value {
    match words {
        [] => Value::Null,
        words => json!(words),
    }
}

/// A time in milliseconds since 1970, as RFC 3339.
fn time(milliseconds: Option<u64>) -> String {
    let Some(milliseconds) = milliseconds else {
        return NEVER.to_owned();
    };
    vdkr_core::time::rfc3339(milliseconds.saturating_mul(1_000_000))
}
