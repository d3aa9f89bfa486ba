//! The rate of the host's time-stamp counter.
//!
//! A `microvm` has neither HPET nor PM timer: a kernel that has to calibrate the counter by itself
//! there fails in about half of the boots. It is told the rate instead. An emulated counter runs at
//! the host's rate, and a wrong value would make the guest's clock run wrong.

use std::fs;

/// The counter's rate in kHz, or `None` where the host has none that is constant.
pub fn host_khz() -> Option<u32> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    if !has_constant_tsc(&cpuinfo) {
        return None;
    }
    from_bogomips(&cpuinfo).or_else(measured_khz)
}

/// Whether the first processor's counter runs at one rate whatever its frequency is.
fn has_constant_tsc(cpuinfo: &str) -> bool {
    field(cpuinfo, "flags").is_some_and(|flags| flags.split(' ').any(|flag| flag == "constant_tsc"))
}

/// Linux presets its delay loop from the calibrated counter, so that the `BogoMIPS` it prints are
/// twice the rate in MHz, good to a few parts in a million.
fn from_bogomips(cpuinfo: &str) -> Option<u32> {
    let (whole, hundredths) = field(cpuinfo, "bogomips")?.split_once('.')?;
    if hundredths.len() != 2 {
        return None;
    }
    let hundredths: u32 = hundredths.parse().ok()?;
    let khz = whole
        .parse::<u32>()
        .ok()?
        .checked_mul(500)?
        .checked_add(hundredths * 5)?;
    // Slower than any processor of this kind, or faster than any: not a counter's rate.
    (200_000..=10_000_000).contains(&khz).then_some(khz)
}

fn field<'a>(cpuinfo: &'a str, name: &str) -> Option<&'a str> {
    cpuinfo.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim_end() == name).then(|| value.trim())
    })
}

/// Counts against the monotonic clock for ten milliseconds.
#[cfg(target_arch = "x86_64")]
fn measured_khz() -> Option<u32> {
    use std::{
        thread::sleep,
        time::{Duration, Instant},
    };

    let (start, first) = (Instant::now(), counter());
    sleep(Duration::from_millis(10));
    let (elapsed, last) = (start.elapsed(), counter());
    let ticks = u128::from(last.checked_sub(first)?);
    u32::try_from(ticks * 1_000_000 / elapsed.as_nanos()).ok()
}

#[cfg(not(target_arch = "x86_64"))]
fn measured_khz() -> Option<u32> {
    None
}

#[cfg(target_arch = "x86_64")]
#[allow(
    unsafe_code,
    reason = "the counter is read by an instruction that has no safe wrapper"
)]
fn counter() -> u64 {
    // SAFETY: RDTSC has no operands and touches no memory; every x86_64 processor has it.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    use super::{from_bogomips, has_constant_tsc};

    const CPUINFO: &str = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu tsc constant_tsc \
                           nopl\nbogomips\t: 4890.87\nprocessor\t: 1\nbogomips\t: 1.00\n";

    #[test]
    fn half_of_bogomips_of_the_first_processor() {
        assert_eq!(from_bogomips(CPUINFO), Some(2_445_435));
        assert!(has_constant_tsc(CPUINFO));
    }

    #[test]
    fn nothing_is_guessed() {
        for text in [
            "",
            "bogomips\t: 4890",
            "bogomips\t: x.yz",
            "bogomips\t: 9.00",
            "BogoMIPS : 50.00",
        ] {
            assert_eq!(from_bogomips(text), None, "{text}");
        }
        assert!(!has_constant_tsc("flags\t\t: fpu tsc not_constant_tsc\n"));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_measured_rate_is_a_processors() {
        if let Some(khz) = super::measured_khz() {
            assert!((200_000..10_000_000).contains(&khz), "{khz}");
        }
    }
}
