//! The network of QEMU's user mode: one interface, fixed addresses.

use std::{fs, io, net::Ipv4Addr};

use super::netlink::{Netlink, Request};

/// The guest's address, that of the host, and that of its name server in QEMU's user network.
const ADDRESS: Ipv4Addr = vdkr_core::container::ports::MACHINE_ADDRESS;
/// Length of the network's part of an address.
pub const PREFIX: u8 = 24;
/// The host.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);

/// Brings up `lo` and the first interface that a device is behind. A machine without one is fine.
pub fn configure() -> io::Result<()> {
    let mut netlink = Netlink::open()?;
    netlink.request(&Request::link_up(index_of("lo")?))?;
    let Some(index) = first_device()? else {
        return Ok(());
    };
    netlink.request(&Request::address(index, ADDRESS, PREFIX))?;
    netlink.request(&Request::link_up(index))?;
    netlink.request(&Request::default_route(index, GATEWAY))?;
    fs::write("/etc/resolv.conf", format!("nameserver {NAME_SERVER}\n"))
}

/// Index of the first interface that a device is behind.
pub fn first_device() -> io::Result<Option<u32>> {
    let mut found = None;
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        if entry.path().join("device").exists()
            && let Ok(index) = index_of(&entry.file_name().to_string_lossy())
        {
            found = Some(found.map_or(index, |known: u32| known.min(index)));
        }
    }
    Ok(found)
}

fn index_of(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("interface {name} has no index")))
}
