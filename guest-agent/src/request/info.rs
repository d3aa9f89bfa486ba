//! `info`: the agent and its machine.

use std::{fs, path::Path};

use vdkr_core::channel::message::{Done, Info, Reply};

use super::Agent;
use crate::machine;

/// Describes the agent and its machine.
pub fn info(agent: &Agent) -> Done {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let (memory_total, memory_available) = machine::parse_meminfo(&meminfo);
    let (state_total, state_available) = space(agent.state_dir());
    let images = match super::images::images(agent) {
        Ok(Reply::Images { images }) => images.len() as u64,
        _ => 0,
    };
    Ok(Reply::Info(Info {
        software: machine::SOFTWARE.to_owned(),
        kernel: rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned(),
        arch: machine::architecture().to_owned(),
        engine: "native".to_owned(),
        state: agent.report.borrow().state.clone(),
        uptime_ms: machine::uptime().as_millis() as u64,
        memory_total,
        memory_available,
        state_total,
        state_available,
        images,
        containers: agent.book().running(),
        all_containers: Some(agent.book().all().len() as u64),
        cpus: std::thread::available_parallelism().map_or(0, |cpus| cpus.get() as u64),
        disks: crate::boot::disks::serials(),
    }))
}

/// Bytes of the file system that a directory is on, in all and left.
pub(crate) fn space(path: &Path) -> (u64, u64) {
    let disk = rustix::fs::statvfs(path).ok();
    disk.map_or((0, 0), |disk| {
        let bytes = |blocks: u64| disk.f_frsize.saturating_mul(blocks);
        (bytes(disk.f_blocks), bytes(disk.f_bavail))
    })
}
