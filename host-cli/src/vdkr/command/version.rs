//! `vdkr version`: this program, and the agent of a machine that runs.

use vdkr_core::channel::message::{PROTOCOL_VERSION, Reply, Request};

use crate::{
    out,
    vdkr::{
        error::Result,
        settings::{Settings, StatePlace},
    },
    vm::kept,
};

/// Prints the versions. No machine is started for it.
pub async fn run(settings: &Settings) -> Result<u8> {
    out!("vdkr {}", env!("CARGO_PKG_VERSION"));
    out!("  Channel protocol:  {PROTOCOL_VERSION}");
    out!("  Target:            {}", settings.arch);
    let StatePlace::Directory(dir) = &settings.state else {
        return Ok(0);
    };
    let Some(connection) = kept::connect(dir).await? else {
        return Ok(0);
    };
    out!("Agent {}", connection.hello().software);
    if let Ok(Ok(Reply::Info(info))) = connection.ask(&Request::Info).await {
        out!("  Kernel:            {}", info.kernel);
        out!("  Architecture:      {}", info.arch);
        out!("  Engine:            {}", info.engine);
    }
    Ok(0)
}
