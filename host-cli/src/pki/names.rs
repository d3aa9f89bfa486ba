//! The names that this machine's registry goes by.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::ifaddrs::getifaddrs;
use vdkr_core::certificate::AltName;
use vdkr_core::reference::Host;

/// The host as a guest of QEMU's user network sees it.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// Most addresses of this machine that are taken.
const MAX_ADDRESSES: usize = 64;

/// The names for a certificate: this machine's, the one in the registry's URL, and those asked for.
pub fn names(url_host: &Host, asked: &[AltName]) -> Vec<AltName> {
    collect(url_host, &host_names(), &addresses(), asked)
}

fn collect(
    url_host: &Host,
    host_names: &[String],
    addresses: &[IpAddr],
    asked: &[AltName],
) -> Vec<AltName> {
    let mut names = Vec::new();
    let mut add = |name: AltName| {
        if !names.contains(&name) {
            names.push(name);
        }
    };
    add(AltName::Dns("localhost".to_owned()));
    // What cannot stand in a certificate is nobody's name for us.
    for host in host_names
        .iter()
        .map(String::as_str)
        .chain([url_host.name()])
    {
        if let Ok(name) = AltName::parse(host) {
            add(name);
        }
    }
    add(AltName::Ip(Ipv4Addr::LOCALHOST.into()));
    add(AltName::Ip(Ipv6Addr::LOCALHOST.into()));
    add(AltName::Ip(GATEWAY.into()));
    for address in addresses
        .iter()
        .filter(|a| reachable(a))
        .take(MAX_ADDRESSES)
    {
        add(AltName::Ip(*address));
    }
    for name in asked {
        add(name.clone());
    }
    names
}

/// Whether others can use this address: not link-local, which needs an interface's name.
fn reachable(address: &IpAddr) -> bool {
    !address.is_unspecified()
        && match address {
            IpAddr::V4(v4) => !v4.is_link_local() && !v4.is_loopback(),
            IpAddr::V6(v6) => !v6.is_unicast_link_local() && !v6.is_loopback(),
        }
}

/// The name of this machine, and its first label alone.
fn host_names() -> Vec<String> {
    let Some(name) = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok())
    else {
        return Vec::new();
    };
    let mut names = vec![name.clone()];
    if let Some((first, _)) = name.split_once('.') {
        names.push(first.to_owned());
    }
    names
}

fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let mut addresses: Vec<_> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
        })
        .collect();
    // The order of interfaces changes; that of addresses in the certificate should not.
    addresses.sort();
    addresses.dedup();
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_set_holds_what_guests_and_neighbours_use() {
        let host = Host::parse("build.example:5000").unwrap();
        let asked = AltName::parse_list("DNS:lab IP:10.9.8.7 localhost").unwrap();
        let addresses: Vec<IpAddr> = [
            "192.168.1.2",
            "169.254.0.1",
            "127.0.0.2",
            "fe80::1",
            "fd00::2",
            "0.0.0.0",
        ]
        .map(|text| text.parse().unwrap())
        .to_vec();
        let hosts = ["box".to_owned(), "no name".to_owned()];
        let text: Vec<_> = collect(&host, &hosts, &addresses, &asked)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            text,
            [
                "DNS:localhost",
                "DNS:box",
                "DNS:build.example",
                "IP:127.0.0.1",
                "IP:::1",
                "IP:10.0.2.2",
                "IP:192.168.1.2",
                "IP:fd00::2",
                "DNS:lab",
                "IP:10.9.8.7",
            ]
        );
        // weakness 4b.20: an address in the URL is an address in the certificate.
        let host = Host::parse("[fd00::5]:5000").unwrap();
        let names = collect(&host, &[], &[], &[]);
        assert!(names.contains(&AltName::Ip("fd00::5".parse().unwrap())));
    }

    #[test]
    fn this_machine_has_names() {
        let names = names(&Host::parse("localhost:5000").unwrap(), &[]);
        assert!(names.len() >= 4, "{names:?}");
    }
}
