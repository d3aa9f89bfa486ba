//! The network of a container, made by its own first process.
//!
//! On the bridge it has an interface of its own on the machine's (macvlan), with an address of
//! QEMU's user network: no translation of addresses lies between it and the host.

use std::{
    fs,
    fs::File,
    io,
    net::Ipv4Addr,
    os::fd::AsRawFd as _,
    thread,
    time::{Duration, Instant},
};

use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, setns, unshare},
};

use super::{RunError, spec::Network};
use crate::boot::{
    netlink::{Netlink, Request},
    network::{GATEWAY, PREFIX},
};

/// The interface's name inside.
const INTERFACE: &str = "eth0";
/// How long an interface that had the same address may take to be gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// Parameters of a fresh network, as docker sets them: ping and low ports for every user, and no
/// address of a protocol that leads nowhere.
const SYSCTLS: [(&str, &str); 3] = [
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Puts this process into its network. `/proc` must still be the machine's.
pub fn enter(network: &Network) -> Result<(), RunError> {
    match network {
        Network::Host => Ok(()),
        Network::None => make(None).map_err(RunError::io("make a network")),
        Network::Bridge { link, address } => make(Some((*link, *address))).map_err(RunError::io(
            format!("give the container the address {address}"),
        )),
        Network::Process(pid) => {
            let join = || -> io::Result<()> {
                let theirs = File::open(format!("/proc/{pid}/ns/net"))?;
                Ok(setns(theirs, CloneFlags::CLONE_NEWNET)?)
            };
            join().map_err(RunError::io("join the other container's network"))
        }
    }
}

fn make(bridge: Option<(u32, Ipv4Addr)>) -> io::Result<()> {
    // It stays with the network in which it was opened.
    let mut outside = Netlink::open()?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    for (name, value) in SYSCTLS {
        // A kernel without one of these works.
        let _ = fs::write(format!("/proc/sys/net/{name}"), value);
    }
    let mut inside = Netlink::open()?;
    inside.request(&Request::link_up(index_of("lo")?))?;
    let Some((link, address)) = bridge else {
        return Ok(());
    };
    let here = File::open("/proc/self/ns/net")?;
    let target = here.as_raw_fd().cast_unsigned();
    // The kernel wants a name that the machine itself does not have.
    let [.., last] = address.octets();
    let name = format!("container{last}");
    outside.request(&Request::macvlan(link, &name, hardware(address), target))?;
    let index = index_of(&name)?;
    inside.request(&Request::rename(index, INTERFACE))?;
    inside.request(&Request::address(index, address, PREFIX))?;
    up(&mut inside, index)?;
    inside.request(&Request::default_route(index, GATEWAY))
}

/// An interface of a container that has just ended may still have the same hardware address.
fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match netlink.request(&Request::link_up(index)) {
            Err(error)
                if error.raw_os_error() == Some(nix::libc::EBUSY) && start.elapsed() < PATIENCE =>
            {
                thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

/// A locally administered address that goes with the other one.
pub fn hardware(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x02, 0x76, a, b, c, d]
}

fn index_of(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}
