//! `vdkr info`: what runs containers, and on what.

use serde_json::{Value, json};
use vdkr_core::channel::message::{Info, Reply, Request};

use super::wrong_reply;
use crate::{
    out, out_line,
    vdkr::{
        error::Result,
        format::Format,
        human,
        image_args::InfoArgs,
        registry,
        session::with_session,
        settings::{Settings, StatePlace},
    },
};

/// Asks the agent; a machine is started when none runs.
pub async fn run(settings: &Settings, args: &InfoArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    let reply = with_session(settings, "vdkr info", async |session| {
        session.ask(&Request::Info).await
    })
    .await?;
    let Reply::Info(info) = reply else {
        return Err(wrong_reply(&reply));
    };
    let document = document(settings, &info)?;
    if args.format.is_some() {
        crate::output::write(format_args!("{}", format.object(&document)?));
        return Ok(0);
    }
    let text = |name: &str| match &document[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    out!("Client:");
    out!(" Version:        {}", text("ClientVersion"));
    out!("Server:");
    match info.all_containers {
        Some(all) => out!(" Containers:     {all} ({} running)", info.containers),
        None => out!(" Containers:     {} running", info.containers),
    }
    out!(" Images:         {}", info.images);
    out_line!(" Server Version: {}", text("Server"));
    out_line!(" Engine:         {}", info.engine);
    out_line!(" Kernel Version: {}", info.kernel);
    out_line!(" Architecture:   {}", info.arch);
    if info.cpus > 0 {
        out!(" CPUs:           {}", info.cpus);
    }
    let available = human::size(info.memory_available);
    out!(
        " Total Memory:   {} ({available} free)",
        human::size(info.memory_total)
    );
    let (total, left) = (
        human::size(info.state_total),
        human::size(info.state_available),
    );
    out_line!(" Storage:        {} ({total}, {left} free)", info.state);
    out!(" State:          {}", text("StateDir"));
    let list = |name: &str| {
        let items = document[name]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
        if items.is_empty() {
            "-".to_owned()
        } else {
            items.join(", ")
        }
    };
    let registry = text("Registry");
    out!(
        " Registry:       {}",
        if registry.is_empty() { "-" } else { &registry }
    );
    out!(" Insecure Registries: {}", list("InsecureRegistries"));
    out!(" Registry Mirrors:    {}", list("RegistryMirrors"));
    Ok(0)
}

/// The version in a program's name and version, `vdkr-agent 0.1.0`.
pub fn bare_version(software: &str) -> &str {
    software.rsplit(' ').next().unwrap_or(software)
}

fn document(settings: &Settings, info: &Info) -> Result<Value> {
    let registry = registry::configured(settings)?;
    let mirrors: Vec<String> = settings
        .config
        .mirrors()
        .into_iter()
        .map(|(host, urls)| format!("{host}={}", urls.join(",")))
        .collect();
    let value = |name| settings.value(name).0;
    let insecure = crate::vdkr::value::list(settings.value("insecure-registry").0);
    Ok(json!({
        "ClientVersion": env!("CARGO_PKG_VERSION"),
        "ServerVersion": bare_version(&info.software),
        "Server": info.software,
        "Containers": info.all_containers.unwrap_or(info.containers),
        "ContainersRunning": info.containers,
        "ContainersStopped": info.all_containers.map(|all| all.saturating_sub(info.containers)),
        "NCPU": info.cpus,
        "Images": info.images,
        "Driver": "overlay2",
        "Engine": info.engine,
        "KernelVersion": info.kernel,
        "Architecture": info.arch,
        "OSType": "linux",
        "MemTotal": info.memory_total,
        "MemAvailable": info.memory_available,
        "Storage": info.state,
        "StorageTotal": info.state_total,
        "StorageAvailable": info.state_available,
        "UptimeMs": info.uptime_ms,
        "StateDir": match &settings.state {
            _ if settings.target.is_some() => value("target").to_owned(),
            StatePlace::Directory(dir) => dir.display().to_string(),
            StatePlace::Nowhere => "none (forgotten at its end)".to_owned(),
        },
        "Registry": registry.map(|registry| registry.to_string()).unwrap_or_default(),
        "InsecureRegistries": insecure,
        "RegistryMirrors": mirrors,
    }))
}
