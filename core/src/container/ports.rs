//! Published ports: `[ADDRESS:]HOST:CONTAINER[/PROTOCOL]`, each a port or a range.

use alloc::{borrow::ToOwned as _, string::String, vec::Vec};
use core::{fmt, net::Ipv4Addr, ops::RangeInclusive};

use serde::{Deserialize, Serialize};

/// The last numbers of the bridge's addresses that the guest gives out by itself.
pub const BRIDGE_GUEST_ADDRESSES: RangeInclusive<u8> = 16..=127;
/// Those that the host gives out, to containers with published ports.
pub const BRIDGE_HOST_ADDRESSES: RangeInclusive<u8> = 128..=254;
/// The machine's own.
pub const MACHINE_ADDRESS: Ipv4Addr = bridge_address(15);

/// An address of QEMU's user network, on which the bridge is.
pub const fn bridge_address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 2, last)
}

/// Most ports that one container publishes.
pub const MAX_PORTS: usize = 512;

/// What carries the traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    #[default]
    Tcp,
    /// Datagrams.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A port of the host that leads to one of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The host's address; loopback unless another is named.
    pub address: Ipv4Addr,
    /// The host's ports, the first that is free being taken; 0 to 0 for any free one.
    pub host: (u16, u16),
    /// The container's port.
    pub container: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// A published port that is open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The host's address.
    pub address: Ipv4Addr,
    /// The host's port.
    pub host: u16,
    /// The container's port.
    pub container: u16,
    /// The protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

impl fmt::Display for Published {
    /// As `docker ps` shows it.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            address,
            host,
            container,
            protocol,
        } = self;
        write!(formatter, "{address}:{host}->{container}/{protocol}")
    }
}

/// A text that publishes no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not of the form.
    #[error("{0:?} publishes no port; write [ADDRESS:]HOST:CONTAINER[/tcp|/udp], such as 8080:80")]
    Form(String),
    /// Not a port.
    #[error("{0:?} is no port or range of ports; ports are 1 to 65535")]
    Port(String),
    /// Ranges that do not go together.
    #[error("{0:?} pairs ranges of different lengths")]
    Lengths(String),
    /// A protocol that the machine's network does not carry.
    #[error("{0:?} names a protocol that cannot be published; those are tcp and udp")]
    Protocol(String),
    /// An address of the newer protocol or none at all.
    #[error("{0:?} is no IPv4 address of this host, and ports can be published on no other")]
    Address(String),
    /// Too many.
    #[error("{0} ports are published; the most is {MAX_PORTS}")]
    TooMany(usize),
}

/// Reads the value of `-p`.
pub fn parse_publish(text: &str) -> Result<Vec<Publish>, PortError> {
    let (rest, protocol) = split_protocol(text)?;
    let (rest, container) = match rest.rsplit_once(':') {
        Some((rest, container)) => (Some(rest), container),
        None => (None, rest),
    };
    // An address of the newer protocol stands in brackets, with colons of its own.
    let (address, host) = match rest.map(|rest| rest.rsplit_once(':').unwrap_or(("", rest))) {
        Some((address, host)) => (address, host),
        None => ("", ""),
    };
    let address = match address {
        "" | "localhost" => Ipv4Addr::LOCALHOST,
        text => text
            .parse()
            .map_err(|_| PortError::Address(text.to_owned()))?,
    };
    let container = range(container)?;
    let host = match host {
        "" => None,
        text => Some(range(text)?),
    };
    let entry = |host, container| Publish {
        address,
        host,
        container,
        protocol,
    };
    match host {
        None => Ok(container.map(|port| entry((0, 0), port)).collect()),
        Some(host) if container.len() == 1 => Ok(container
            .map(|port| entry((*host.start(), *host.end()), port))
            .collect()),
        Some(host) if host.len() == container.len() => Ok(host
            .zip(container)
            .map(|(host, port)| entry((host, host), port))
            .collect()),
        Some(_) => Err(PortError::Lengths(text.to_owned())),
    }
}

/// Reads an exposed port of an image or of `--expose`: `PORT[/PROTOCOL]`, a range perhaps.
pub fn parse_exposed(text: &str) -> Result<Vec<(u16, Protocol)>, PortError> {
    let (ports, protocol) = split_protocol(text)?;
    Ok(range(ports)?.map(|port| (port, protocol)).collect())
}

fn split_protocol(text: &str) -> Result<(&str, Protocol), PortError> {
    match text.split_once('/') {
        None | Some((_, "tcp")) => Ok((text.split('/').next().unwrap_or_default(), Protocol::Tcp)),
        Some((rest, "udp")) => Ok((rest, Protocol::Udp)),
        Some(_) => Err(PortError::Protocol(text.to_owned())),
    }
    .and_then(|(rest, protocol)| {
        if rest.is_empty() {
            return Err(PortError::Form(text.to_owned()));
        }
        Ok((rest, protocol))
    })
}

fn range(text: &str) -> Result<RangeInclusive<u16>, PortError> {
    let error = || PortError::Port(text.to_owned());
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let port = if digits { text.parse().ok() } else { None };
        port.filter(|&port: &u16| port != 0).ok_or_else(error)
    };
    let (low, high) = match text.split_once('-') {
        Some((low, high)) => (port(low)?, port(high)?),
        None => (port(text)?, port(text)?),
    };
    if low > high {
        return Err(error());
    }
    if usize::from(high - low) >= MAX_PORTS {
        return Err(PortError::TooMany(usize::from(high - low) + 1));
    }
    Ok(low..=high)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    fn rows(text: &str) -> Vec<(String, (u16, u16), u16, Protocol)> {
        let rules = parse_publish(text).unwrap().into_iter();
        rules
            .map(|rule| {
                (
                    rule.address.to_string(),
                    rule.host,
                    rule.container,
                    rule.protocol,
                )
            })
            .collect()
    }

    #[test]
    fn forms() {
        use Protocol::{Tcp, Udp};
        let one = |address: &str, host, container, protocol| {
            [(address.to_owned(), host, container, protocol)]
        };
        let local = "127.0.0.1";
        assert_eq!(rows("8080:80"), one(local, (8080, 8080), 80, Tcp));
        assert_eq!(rows("80"), one(local, (0, 0), 80, Tcp));
        assert_eq!(rows("53:53/udp"), one(local, (53, 53), 53, Udp));
        assert_eq!(
            rows("0.0.0.0:8080:80"),
            one("0.0.0.0", (8080, 8080), 80, Tcp)
        );
        assert_eq!(
            rows("localhost:8080:80/tcp"),
            one(local, (8080, 8080), 80, Tcp)
        );
        assert_eq!(rows("192.168.1.2::80"), one("192.168.1.2", (0, 0), 80, Tcp));
        assert_eq!(rows(":80"), one(local, (0, 0), 80, Tcp));
        assert_eq!(rows("8000-8005:80"), one(local, (8000, 8005), 80, Tcp));
        let ports: Vec<_> = rows("8000-8002:80-82")
            .iter()
            .map(|row| (row.1.0, row.1.1, row.2))
            .collect();
        assert_eq!(
            ports,
            [(8000, 8000, 80), (8001, 8001, 81), (8002, 8002, 82)]
        );
        assert_eq!(rows("7000-7001").len(), 2);
        assert_eq!(parse_exposed("53/udp").unwrap(), [(53, Udp)]);
        assert_eq!(parse_exposed("80-81").unwrap(), [(80, Tcp), (81, Tcp)]);
    }

    #[test]
    fn what_is_no_port() {
        for bad in [
            "",
            ":",
            "a",
            "0:80",
            "80:0",
            "80:65536",
            "80:80/sctp",
            "80:80/",
            "80:80/tcp/udp",
            "8000-8001:80-83",
            "8001-8000:80",
            "-1:80",
            "+80:80",
            "80-:80",
            "[::1]:80:80",
            "::1:80:80",
            "host:80:80",
            "1.2.3:80:80",
            "1-65535",
            "/tcp",
            "1:2:3:4",
        ] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
        let error = parse_publish("[::1]:80:80").unwrap_err().to_string();
        assert!(error.contains("[::1]") && error.contains("IPv4"), "{error}");
    }

    proptest! {
        #[test]
        fn a_rule_reads_back(host in 1_u16.., container in 1_u16.., udp: bool, address in any::<[u8; 4]>()) {
            let address = Ipv4Addr::from(address);
            let (protocol, word) = if udp { (Protocol::Udp, "udp") } else { (Protocol::Tcp, "tcp") };
            let text = alloc::format!("{address}:{host}:{container}/{word}");
            let rule = Publish { address, host: (host, host), container, protocol };
            prop_assert_eq!(parse_publish(&text), Ok(alloc::vec![rule]));
        }

        #[test]
        fn any_text_is_rules_or_an_error(text in "[0-9a-z:./\\[\\]-]{0,30}") {
            if let Ok(rules) = parse_publish(&text) {
                prop_assert!(rules.len() <= MAX_PORTS && !rules.is_empty());
            }
            let _ = parse_exposed(&text);
        }
    }
}
