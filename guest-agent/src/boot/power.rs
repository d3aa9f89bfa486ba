//! The end of the machine.

use std::{path::Path, time::Duration};

use nix::{
    sys::{
        reboot::{RebootMode, reboot},
        signal::{Signal, kill},
    },
    unistd::Pid,
};

use super::state;

/// Ends every process, unmounts the state disk and powers off.
pub fn off(state_dir: &Path) -> ! {
    // PID 1 is not among them.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    state::unmount(state_dir);
    loop {
        let _ = reboot(RebootMode::RB_POWER_OFF);
        let _ = reboot(RebootMode::RB_AUTOBOOT);
        std::thread::sleep(Duration::from_secs(1));
    }
}
