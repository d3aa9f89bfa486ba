//! What root inside a container may do.

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    },
};

/// Takes everything but `kept` out of the bounding set of this process and of what it will execute.
///
/// The kernel is asked capability by capability what it knows: its files in `/proc` may be the
/// container's own by now.
pub fn bound(kept: CapabilitySet) -> rustix::io::Result<()> {
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        match capability_is_in_bounding_set(capability) {
            Ok(true) if !kept.contains(capability) => {
                remove_capability_from_bounding_set(capability)?;
            }
            Ok(_) => {}
            // Behind the last one.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Leaves this process `held` as its permitted and effective capabilities; the inheritable and the
/// ambient set become empty.
pub fn hold(held: CapabilitySet) -> rustix::io::Result<()> {
    clear_ambient_capability_set()?;
    set_capabilities(
        None,
        CapabilitySets {
            effective: held,
            permitted: held,
            inheritable: CapabilitySet::empty(),
        },
    )
}
