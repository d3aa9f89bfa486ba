//! Time and randomness from the host. A VM that starts from a snapshot has a stale clock and the
//! same random state as its twins, so both are taken with every greeting, before anything else.

use std::{
    fs::OpenOptions,
    io,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    sys::time::TimeSpec,
    time::{ClockId, clock_settime},
};
use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

/// Differences below this are left alone, so that clocks of running programs do not jump.
const TOLERANCE: Duration = Duration::from_millis(50);

/// Sets the clock to the host's.
pub fn set(now_unix_ms: u64) -> io::Result<()> {
    let wanted = Duration::from_millis(now_unix_ms);
    let current = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    if now_unix_ms == 0 || wanted.abs_diff(current) < TOLERANCE {
        return Ok(());
    }
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(wanted))?;
    Ok(())
}

/// `struct rand_pool_info` of `random(4)` with 32 bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    bytes: i32,
    data: [u8; 32],
}

/// `RNDADDENTROPY` of `random(4)`.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
/// `RNDRESEEDCRNG` of `random(4)`.
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 7);

/// Mixes bytes of the host into the kernel's random pool and counts them as random.
#[allow(unsafe_code, reason = "ioctls without a safe wrapper")]
pub fn add_entropy(data: &[u8; 32]) -> io::Result<()> {
    let random = OpenOptions::new().write(true).open("/dev/random")?;
    let info = PoolInfo {
        entropy_bits: 256,
        bytes: 32,
        data: *data,
    };
    // SAFETY: the kernel reads a `rand_pool_info` of the length that stands in it.
    unsafe { ioctl(&random, Setter::<RNDADDENTROPY, _>::new(info)) }?;
    // SAFETY: this request has no argument.
    unsafe { ioctl(&random, NoArg::<RNDRESEEDCRNG>::new()) }?;
    Ok(())
}
