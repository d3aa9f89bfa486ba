//! `vdkr version`: this program, the emulator, and the agent of a machine that runs.

use std::process::Stdio;

use serde_json::{Value, json};
use tokio::process::Command;
use vdkr_core::channel::message::{PROTOCOL_VERSION, Reply, Request};

use super::info::bare_version;
use crate::{
    out, out_line,
    vdkr::{
        error::Result,
        format::Format,
        image_args::VersionArgs,
        settings::{Settings, StatePlace},
        words::say,
    },
    vm::{kept, target},
};

/// Prints the versions. No machine is started for it.
pub async fn run(settings: &Settings, args: &VersionArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    let mut server = Value::Null;
    let connection = match (&settings.target, &settings.state) {
        (Some(address), _) => Some(target::connect(address, &mut say).await?),
        (None, StatePlace::Directory(dir)) => kept::connect(dir).await?,
        (None, StatePlace::Nowhere) => None,
    };
    if let Some(connection) = connection {
        let software = &connection.hello().software;
        server = json!({ "Name": software, "Version": bare_version(software) });
        if let Ok(Ok(Reply::Info(info))) = connection.ask(&Request::Info).await {
            server = json!({
                "Name": info.software,
                "Version": bare_version(&info.software),
                "KernelVersion": info.kernel,
                "Arch": info.arch,
                "Engine": info.engine,
            });
        }
    }
    let emulator = emulator(settings).await;
    let document = json!({
        "Client": {
            "Version": env!("CARGO_PKG_VERSION"),
            "ProtocolVersion": PROTOCOL_VERSION,
            "Target": settings.arch.to_string(),
        },
        "Emulator": { "Program": settings.arch.qemu_program(), "Version": emulator },
        "Server": server,
    });
    if args.format.is_some() {
        crate::output::write(format_args!("{}", format.object(&document)?));
        return Ok(0);
    }
    out!("vdkr {}", env!("CARGO_PKG_VERSION"));
    out!("  Channel protocol:  {PROTOCOL_VERSION}");
    out!("  Target:            {}", settings.arch);
    let emulator = emulator.unwrap_or_else(|| "not found".to_owned());
    out!(
        "  Emulator:          {} {emulator}",
        settings.arch.qemu_program()
    );
    let server = &document["Server"];
    let text = |name: &str| server[name].as_str().unwrap_or("-").to_owned();
    if !server.is_null() {
        out_line!("Agent {}", text("Name"));
        out_line!("  Kernel:            {}", text("KernelVersion"));
        out_line!("  Architecture:      {}", text("Arch"));
        out_line!("  Engine:            {}", text("Engine"));
    }
    Ok(0)
}

/// The emulator's own word about its version.
async fn emulator(settings: &Settings) -> Option<String> {
    let output = Command::new(settings.arch.qemu_program())
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(std::time::Duration::from_secs(10), output).await;
    let text = String::from_utf8(output.ok()?.ok()?.stdout).ok()?;
    let line = text.lines().next()?;
    let (_, version) = line.split_once("version ")?;
    Some(
        version
            .chars()
            .filter(|c| !c.is_control())
            .take(80)
            .collect(),
    )
}
