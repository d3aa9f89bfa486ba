//! Options that come too late for a machine that runs.

use crate::{
    vdkr::settings::{Origin, Settings},
    vm::kept::Description,
};

/// Options on the command line that only the start of a machine can honour, and that differ from
/// what the running one was started with.
pub(super) fn options(settings: &Settings, running: Option<&Description>) -> Vec<&'static str> {
    let start = &settings.start;
    let image = start.search.locate(start.arch).ok();
    let differs = |option: &str, running: &Description| match option {
        "--accel" | "--no-kvm" => start.accel.name() != running.accel,
        "--machine" => start.board.name() != running.machine,
        "--memory" => start.memory_mib != running.memory_mib,
        "--cpu" => start.cpu.to_string() != running.cpu,
        "--cpus" => start.cpus != running.cpus,
        "--initrd" => image
            .as_ref()
            .is_none_or(|image| image.initrd != running.initrd),
        _ => image
            .as_ref()
            .is_none_or(|image| image.kernel != running.kernel),
    };
    let given = ["accel", "machine", "memory", "cpu", "cpus", "blob-dir"]
        .into_iter()
        .filter_map(|key| match settings.value(key) {
            ("auto", _) => None,
            (_, Origin::Option(option)) => Some(*option),
            _ => None,
        });
    let files = [
        settings.global.kernel.as_ref().map(|_| "--kernel"),
        settings.global.initrd.as_ref().map(|_| "--initrd"),
    ];
    given
        .chain(files.into_iter().flatten())
        .filter(|option| running.is_none_or(|running| differs(option, running)))
        .collect()
}
