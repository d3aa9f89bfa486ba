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
    let Some((index, name)) = find_device()? else {
        return Ok(());
    };
    // This network has no IPv6; without it the kernel looks for no neighbours and routers there.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1");
    netlink.request(&Request::address(index, ADDRESS, PREFIX))?;
    netlink.request(&Request::link_up(index))?;
    netlink.request(&Request::default_route(index, GATEWAY))?;
    fs::write("/etc/resolv.conf", format!("nameserver {NAME_SERVER}\n"))
}

/// The address that the default route leads to.
pub fn gateway() -> Option<Ipv4Addr> {
    parse_gateway(&fs::read_to_string("/proc/net/route").ok()?)
}

/// The same from the text of `/proc/net/route`, which has addresses as numbers of this machine.
fn parse_gateway(routes: &str) -> Option<Ipv4Addr> {
    routes.lines().skip(1).find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (to, via) = (words.next()?, words.next()?);
        let via = u32::from_str_radix(via, 16).ok()?;
        (to == "00000000" && via != 0).then(|| Ipv4Addr::from(via.to_ne_bytes()))
    })
}

/// Index of the first interface that a device is behind.
pub fn first_device() -> io::Result<Option<u32>> {
    Ok(find_device()?.map(|(index, _)| index))
}

/// Index and name of the first interface that a device is behind.
fn find_device() -> io::Result<Option<(u32, String)>> {
    let mut found: Vec<(u32, String)> = Vec::new();
    for entry in fs::read_dir("/sys/class/net")?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.path().join("device").exists()
            && let Ok(index) = index_of(&name)
        {
            found.push((index, name));
        }
    }
    Ok(found.into_iter().min())
}

fn index_of(name: &str) -> io::Result<u32> {
    let text = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::other(format!("interface {name} has no index")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_route_is_found_among_others() {
        let via = |address: Ipv4Addr| format!("{:08X}", u32::from_ne_bytes(address.octets()));
        let head = "Iface\tDestination\tGateway \tFlags\tRefCnt\n";
        let local = format!(
            "eth0\t{}\t00000000\t0001\t0\n",
            via(Ipv4Addr::new(10, 0, 2, 0))
        );
        let default = format!("eth0\t00000000\t{}\t0003\t0\n", via(GATEWAY));
        let found = parse_gateway(&format!("{head}{local}{default}"));
        assert_eq!(found, Some(GATEWAY));
        assert_eq!(parse_gateway(&format!("{head}{local}")), None);
        assert_eq!(
            parse_gateway("x\nppp0 00000000 00000000\ny\nz 00000000 what\n"),
            None
        );
    }
}
