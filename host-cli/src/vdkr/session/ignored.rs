//! Settings that come too late for a machine that runs: only its start can honour them.

use std::time::Duration;

use tokio::time::timeout;

use crate::{
    vdkr::settings::{Origin, Settings, StatePlace},
    vm::kept::{self, Description},
};

/// Their keys.
const KEYS: [&str; 7] = [
    "accel",
    "machine",
    "memory",
    "cpu",
    "cpus",
    "blob-dir",
    IDLE_TIMEOUT,
];
/// Who keeps a machine for how long shows at its start; only a change of it is told of.
const IDLE_TIMEOUT: &str = "idle-timeout";

/// How long a machine may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options and variables that differ from what the running machine was started with. What the
/// configuration file says is not repeated with every command.
pub(super) fn by_command(settings: &Settings, running: Option<&Description>) -> Vec<&'static str> {
    let given = KEYS.into_iter().filter_map(|key| {
        let name = match settings.value(key).1 {
            Origin::Option(name) | Origin::Variable(name) => *name,
            _ => return None,
        };
        let told = key != IDLE_TIMEOUT && is_ignored(settings, key, running);
        told.then_some(name)
    });
    let files = [
        ("--kernel", settings.global.kernel.is_some()),
        ("--initrd", settings.global.initrd.is_some()),
    ];
    let files = files.into_iter().filter_map(|(option, is_given)| {
        let told = is_given && is_ignored(settings, option, running);
        told.then_some(option)
    });
    given.chain(files).collect()
}

/// Whether a machine runs that does not follow what a key says now.
pub async fn by_running(settings: &Settings, key: &str) -> bool {
    let StatePlace::Directory(dir) = &settings.state else {
        return false;
    };
    if !KEYS.contains(&key) {
        return false;
    }
    let connected = timeout(PATIENCE, kept::connect(dir)).await;
    let runs = matches!(connected, Ok(Ok(Some(_))));
    runs && is_ignored(settings, key, Description::read(dir).as_ref())
}

/// Whether a machine was started with another value of a key, or of an option that has no key.
fn is_ignored(settings: &Settings, key: &str, running: Option<&Description>) -> bool {
    // Whatever it has is what it chose.
    if settings.value(key).0 == "auto" {
        return false;
    }
    let Some(running) = running else {
        return true;
    };
    let start = &settings.start;
    let image = || start.search.locate(start.arch).ok();
    match key {
        "accel" => start.accel.name() != running.accel,
        "machine" => start.board.name() != running.machine,
        "memory" => start.memory_mib != running.memory_mib,
        "cpu" => start.cpu.to_string() != running.cpu,
        "cpus" => start.cpus != running.cpus,
        IDLE_TIMEOUT => settings.idle_timeout != running.idle_timeout,
        "--initrd" => image().is_none_or(|image| image.initrd != running.initrd),
        _ => image().is_none_or(|image| image.kernel != running.kernel),
    }
}
