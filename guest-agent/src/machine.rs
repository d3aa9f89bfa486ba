//! Facts about the machine that the agent runs on.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
    path::Path,
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Name and version, for greetings.
pub const SOFTWARE: &str = concat!("vdkr-agent ", env!("CARGO_PKG_VERSION"));

/// What PID 1 tells the agent that it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BootReport {
    /// Milliseconds from the start of the kernel to the end of each stage.
    pub stages: BTreeMap<String, u64>,
    /// Milliseconds from the start of the kernel to the greeting of the first host.
    pub met_ms: u64,
    /// The machine's id, once it has one.
    pub machine_id: String,
    /// Where images are kept: `disk` or `tmpfs`.
    pub state: String,
    /// Why images cannot be kept.
    pub problem: Option<String>,
}

impl BootReport {
    /// Notes that a stage ends now.
    pub fn stage(&mut self, name: &str) {
        self.stages
            .insert(name.to_owned(), uptime().as_millis() as u64);
    }

    /// Writes it for the agent.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, serde_json::to_vec(self)?)
    }

    /// Reads what PID 1 wrote.
    pub fn load(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }
}

/// Tells the service manager that hosts may come (`sd_notify(3)`), where there is one.
pub fn tell_ready() {
    let Some(socket) = std::env::var_os("NOTIFY_SOCKET") else {
        return;
    };
    let told = UnixDatagram::unbound().and_then(|sender| {
        // A name that begins with `@` is not in the file system.
        match socket.as_encoded_bytes() {
            [b'@', name @ ..] => {
                let address = SocketAddr::from_abstract_name(name)?;
                sender.send_to_addr(b"READY=1", &address)
            }
            _ => sender.send_to(b"READY=1", &socket),
        }
    });
    if let Err(error) = told {
        eprintln!("vdkr-agent: cannot tell the service manager: {error}");
    }
}

/// Time since the kernel started.
pub fn uptime() -> Duration {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from)
}

/// Architecture as OCI platforms name it.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// `MemTotal` and `MemAvailable` in bytes, from the text of `/proc/meminfo`.
pub fn parse_meminfo(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
            .map_or(0, |kib| kib.saturating_mul(1024))
    };
    (field("MemTotal"), field("MemAvailable"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        let text = "MemTotal:         500 kB\nMemFree: 1 kB\nMemAvailable:  20 kB\n";
        assert_eq!(parse_meminfo(text), (512_000, 20_480));
        assert_eq!(parse_meminfo("MemTotal: many\n"), (0, 0));
    }

    #[test]
    fn the_report_reaches_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/boot.json");
        let mut report = BootReport {
            state: "disk".into(),
            ..Default::default()
        };
        report.stage("kernel");
        report.save(&path).unwrap();
        assert_eq!(BootReport::load(&path).unwrap(), report);
    }
}
