//! Where the server listens, and whether its URL leads there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use anyhow::Result;
use vdkr_core::candidates::{RegistryPrefix, Scheme};

use super::config::{Config, ConfigError, DEFAULT_PORT};

/// `[::1]` as `::1`; half a pair of brackets stays, as what it is: a mistake.
fn without_brackets(word: &str) -> &str {
    let inner = word
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    inner.unwrap_or(word)
}

/// Addresses to listen on, and the port that all of them have. Loopback unless `listen` says otherwise.
pub fn addresses(config: &Config) -> Result<(Vec<SocketAddr>, u16), ConfigError> {
    let port = url_port(&config.registry()?).unwrap_or(DEFAULT_PORT);
    let Some(listen) = config.value("listen") else {
        let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
        return Ok((
            vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), v6],
            port,
        ));
    };
    let mut words: Vec<(IpAddr, Option<u16>)> = Vec::new();
    for word in listen.split([' ', ',']).filter(|w| !w.is_empty()) {
        words.push(if let Ok(address) = word.parse::<SocketAddr>() {
            (address.ip(), Some(address.port()))
        } else if let Ok(ip) = without_brackets(word).parse::<IpAddr>() {
            (ip, None)
        } else {
            return Err(config.bad_value(
                "listen",
                "expected an address such as 0.0.0.0, [::] or 127.0.0.1:5000",
            ));
        });
    }
    if words.is_empty() {
        return Err(config.bad_value("listen", "expected an address such as 0.0.0.0"));
    }
    let mut named = words.iter().filter_map(|(_, port)| *port);
    let port = named.next().unwrap_or(port);
    if port == 0 || named.any(|other| other != port) {
        return Err(config.bad_value(
            "listen",
            "one registry has one port, that of its URL, at all of its addresses",
        ));
    }
    let mut addresses: Vec<SocketAddr> = Vec::new();
    for (ip, _) in words {
        let address = SocketAddr::from((ip, port));
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok((addresses, port))
}

/// The port that clients of this URL ask.
fn url_port(registry: &RegistryPrefix) -> Option<u16> {
    let host = registry.host();
    host.port().or(registry.scheme().map(Scheme::default_port))
}

/// Whether the port is the one that clients ask; the words say what to do if not.
pub fn check_port(config: &Config, port: u16) -> Result<(), ConfigError> {
    let registry = config.registry()?;
    if url_port(&registry) == Some(port) {
        return Ok(());
    }
    let host = registry.host().with_port(Some(port));
    Err(config.bad_value(
        "url",
        format!("the server would listen on port {port}, where this URL does not lead; pass --url {host}"),
    ))
}

/// Checks that whoever asks the URL reaches a server at these addresses of this machine.
pub async fn check_url(
    config: &Config,
    addresses: &[SocketAddr],
    port: u16,
) -> Result<(), ConfigError> {
    check_port(config, port)?;
    let registry = config.registry()?;
    let name = registry.host().name();
    let found: Vec<IpAddr> = if let Some(address) = registry.host().address() {
        vec![address]
    } else if registry.host().is_loopback() {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        match tokio::net::lookup_host((name, port)).await {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                return Err(
                    config.bad_value("url", format!("no address is known for {name}: {error}"))
                );
            }
        }
    };
    if covers(addresses, &found, is_own) {
        return Ok(());
    }
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    let reason = if found.iter().any(|ip| ip.parse().is_ok_and(is_own)) {
        let open: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        format!(
            "it leads to {}, but the server would listen on {} alone; pass --listen {}, or --listen 0.0.0.0 for all addresses of this machine",
            found.join(", "),
            open.join(", "),
            found[0]
        )
    } else {
        format!(
            "it leads to {}, which is not this machine; a registry started here would not be found there",
            found.join(", ")
        )
    };
    Err(config.bad_value("url", reason))
}

/// Whether one of the addresses that a name has is listened on. `own` tells addresses of this machine.
fn covers(listening: &[SocketAddr], found: &[IpAddr], own: impl Fn(IpAddr) -> bool) -> bool {
    found.iter().any(|ip| {
        listening.iter().any(|address| match address.ip() {
            IpAddr::V4(all) if all.is_unspecified() => ip.is_ipv4() && own(*ip),
            // Linux takes IPv4 there as well.
            IpAddr::V6(all) if all.is_unspecified() => own(*ip),
            one => one == *ip,
        })
    })
}

/// Only a machine's own addresses can be bound.
fn is_own(ip: IpAddr) -> bool {
    UdpSocket::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pairs: &[(&str, &str)]) -> Config {
        let env = |name: &str| {
            let base = ("CONTAINER_REGISTRY_STORAGE", "/nonexistent");
            pairs
                .iter()
                .chain([&base])
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Config::resolve(&vec![], &env).unwrap()
    }

    fn listen(value: &str) -> Result<(Vec<SocketAddr>, u16), ConfigError> {
        addresses(&config(&[("CONTAINER_REGISTRY_LISTEN", value)]))
    }

    #[test]
    fn loopback_unless_told_otherwise() {
        let (addresses, port) = addresses(&config(&[])).unwrap();
        assert!(addresses.iter().all(|a| a.ip().is_loopback()));
        assert_eq!(port, 5000);
    }

    #[test]
    fn listen_takes_addresses_with_and_without_port() {
        assert_eq!(
            listen("0.0.0.0").unwrap(),
            (vec!["0.0.0.0:5000".parse().unwrap()], 5000)
        );
        assert_eq!(listen("127.0.0.1:7").unwrap().1, 7);
        assert_eq!(
            listen("[::1], 127.0.0.1:7 127.0.0.1").unwrap().0,
            ["[::1]:7", "127.0.0.1:7"].map(|a| a.parse::<SocketAddr>().unwrap())
        );
    }

    #[test]
    fn no_address_and_several_ports_are_refused() {
        for wrong in [
            "everywhere",
            "[::1",
            "::1]",
            " , ",
            "0.0.0.0:0",
            "127.0.0.1:7,[::1]:8",
        ] {
            assert!(listen(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_port_is_that_of_the_url() {
        for (url, port) in [
            ("localhost", 5000),
            ("http://localhost", 80),
            ("https://localhost", 443),
            ("localhost:7", 7),
        ] {
            let config = config(&[("CONTAINER_REGISTRY_URL", url)]);
            assert_eq!(addresses(&config).unwrap().1, port, "{url}");
            check_port(&config, port).unwrap();
        }
        // Clients of such a name do not ask port 5000.
        let config = config(&[("CONTAINER_REGISTRY_URL", "build.example")]);
        let (_, port) = addresses(&config).unwrap();
        let error = check_port(&config, port).unwrap_err().to_string();
        assert!(error.contains("--url build.example:5000"), "{error}");
    }

    #[test]
    fn an_address_is_covered_by_itself_or_by_all_of_its_family() {
        let ips =
            |text: &str| -> Vec<IpAddr> { text.split(' ').map(|ip| ip.parse().unwrap()).collect() };
        let sockets = |text: &str| -> Vec<SocketAddr> {
            text.split(' ')
                .map(|ip| SocketAddr::from((ip.parse::<IpAddr>().unwrap(), 5)))
                .collect()
        };
        let own = |ip: IpAddr| ip != IpAddr::from([192, 0, 2, 9]);
        for (listening, found, covered) in [
            ("127.0.0.1 ::1", "127.0.0.1", true),
            ("127.0.0.1 ::1", "127.0.0.2", false),
            ("127.0.0.1 ::1", "192.0.2.1", false),
            ("0.0.0.0", "192.0.2.1", true),
            ("0.0.0.0", "2001:db8::1", false),
            ("0.0.0.0", "2001:db8::1 192.0.2.1", true),
            ("::", "192.0.2.1", true),
            ("0.0.0.0", "192.0.2.9", false),
        ] {
            assert_eq!(
                covers(&sockets(listening), &ips(found), own),
                covered,
                "{listening} {found}"
            );
        }
    }
}
