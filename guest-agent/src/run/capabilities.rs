//! What root inside a container may do.

use rustix::thread::{
    CapabilitySet, CapabilitySets, clear_ambient_capability_set,
    remove_capability_from_bounding_set, set_capabilities,
};

/// Takes everything but `kept` away from this process and what it will execute: bounding,
/// permitted and effective sets; inheritable and ambient sets become empty.
///
/// A later change to a user other than root also clears permitted and effective sets.
pub fn restrict(kept: CapabilitySet) -> rustix::io::Result<()> {
    let last = last_capability();
    for number in 0..=last {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        if !kept.contains(capability) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    clear_ambient_capability_set()?;
    let empty = CapabilitySet::empty();
    set_capabilities(
        None,
        CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: empty,
        },
    )
}

/// The highest capability that this kernel knows.
fn last_capability() -> u32 {
    const CHECKPOINT_RESTORE: u32 = 40;
    std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|&last| last < 64)
        .unwrap_or(CHECKPOINT_RESTORE)
}
