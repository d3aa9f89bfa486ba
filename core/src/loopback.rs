//! Loopback translation: what is `localhost` on the machine that runs a VM is the gateway inside of it.
//!
//! Only a whole host is translated: `localhost`, an address of `127.0.0.0/8`, `::1`. The port stays.

use alloc::format;
use alloc::string::{String, ToString};

use crate::candidates::RegistryPrefix;
use crate::reference::{Host, Reference, ReferenceError};

/// The address of the host in QEMU's user network.
pub const DEFAULT_GATEWAY: &str = "10.0.2.2";

/// `localhost:5000` → `10.0.2.2:5000`; any other host as it is.
///
/// `gateway` is a name or an address, an IPv6 address with or without brackets. A gateway that is
/// neither leaves every host as it is.
pub fn translate_host(host: &Host, gateway: &str) -> Host {
    match parse_gateway(gateway) {
        Some(gateway) if host.is_loopback() => gateway.with_port(host.port()),
        _ => host.clone(),
    }
}

/// The same for the host of a registry prefix; namespace and scheme stay.
pub fn translate_prefix(prefix: &RegistryPrefix, gateway: &str) -> RegistryPrefix {
    prefix.with_host(translate_host(prefix.host(), gateway))
}

/// The same for a reference that names its host: `localhost:5000/yocto/app`.
///
/// It fails only when the repository cannot stand under the gateway: one word without a port is no host.
pub fn translate_reference(
    reference: &Reference,
    gateway: &str,
) -> Result<Reference, ReferenceError> {
    let host = translate_host(reference.host(), gateway);
    if host == *reference.host() {
        return Ok(reference.clone());
    }
    let digest = reference.digest().cloned();
    Reference::from_parts(host, reference.repository(), reference.tag(), digest)
}

/// The same for a URL with or without scheme; every other byte of it stays.
///
/// A text whose host cannot be read comes back unchanged.
pub fn translate_url(url: &str, gateway: &str) -> String {
    let unchanged = || url.to_string();
    let Some(gateway) = parse_gateway(gateway) else {
        return unchanged();
    };
    let authority_start = url.find("://").map_or(0, |at| at + 3);
    let rest = &url[authority_start..];
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    let host_start = authority_start + authority.rfind('@').map_or(0, |at| at + 1);
    let host_and_port = &url[host_start..authority_start + authority.len()];
    let name_len = if host_and_port.starts_with('[') {
        host_and_port.find(']').map_or(0, |at| at + 1)
    } else {
        host_and_port.find(':').unwrap_or(host_and_port.len())
    };
    match Host::parse(host_and_port) {
        Ok(host) if host.is_loopback() => {
            let gateway = gateway.with_port(None);
            format!(
                "{}{gateway}{}",
                &url[..host_start],
                &url[host_start + name_len..]
            )
        }
        _ => unchanged(),
    }
}

/// The same for an entry of a list of insecure registries, which may be a network: `10.0.0.0/8`, and
/// `127.0.0.0/8` too, stays as it is.
pub fn translate_insecure(entry: &str, gateway: &str) -> String {
    let is_network = entry.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<core::net::IpAddr>().is_ok() && bits.parse::<u8>().is_ok()
    });
    if is_network {
        entry.to_string()
    } else {
        translate_url(entry, gateway)
    }
}

/// How this computer calls itself.
pub const LOCAL_HOST: &str = "localhost";

/// The way back, for what this computer does in the place of the guest: `10.0.2.2:5000/ns` →
/// `localhost:5000/ns`. The text begins with a host, or with a scheme and a host; any other host
/// stays as it is.
pub fn from_gateway(text: &str, gateway: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    let (scheme, rest) = text.split_at(start);
    match rest.strip_prefix(gateway) {
        Some(after)
            if !gateway.is_empty() && (after.is_empty() || after.starts_with([':', '/'])) =>
        {
            format!("{scheme}{LOCAL_HOST}{after}")
        }
        _ => text.to_string(),
    }
}

/// The same for a reference.
pub fn reference_from_gateway(reference: &Reference, gateway: &str) -> Reference {
    let host = reference.host().to_string();
    let Ok(local) = Host::parse(&from_gateway(&host, gateway)) else {
        return reference.clone();
    };
    if local == *reference.host() {
        return reference.clone();
    }
    let digest = reference.digest().cloned();
    Reference::from_parts(local, reference.repository(), reference.tag(), digest)
        .unwrap_or_else(|_| reference.clone())
}

fn parse_gateway(gateway: &str) -> Option<Host> {
    Host::parse(gateway)
        .or_else(|_| Host::parse(&format!("[{gateway}]")))
        .ok()
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;
    /// Rows of the table that the tests of the npm package read as well.
    #[derive(serde::Deserialize)]
    struct Table {
        urls: Vec<(String, String)>,
    }

    #[test]
    fn the_way_back() {
        for (text, expected) in [
            ("10.0.2.2:5000/ns", "localhost:5000/ns"),
            ("10.0.2.2", "localhost"),
            ("http://10.0.2.2:5001/a", "http://localhost:5001/a"),
            ("10.0.2.20:5000", "10.0.2.20:5000"),
            ("docker.io", "docker.io"),
            ("x/10.0.2.2", "x/10.0.2.2"),
        ] {
            assert_eq!(from_gateway(text, DEFAULT_GATEWAY), expected);
        }
        assert_eq!(from_gateway("a", ""), "a");
        let back = |text: &str| {
            reference_from_gateway(&Reference::parse(text).unwrap(), DEFAULT_GATEWAY).to_string()
        };
        assert_eq!(
            back("10.0.2.2:5000/yocto/app:1"),
            "localhost:5000/yocto/app:1"
        );
        assert_eq!(back("docker.io/library/app:1"), "docker.io/library/app:1");
    }

    #[test]
    fn urls() {
        let table: Table = serde_json::from_str(include_str!("../tables/loopback.json")).unwrap();
        for (url, translated) in table.urls {
            assert_eq!(translate_url(&url, DEFAULT_GATEWAY), translated, "{url}");
        }
    }

    #[test]
    fn gateways() {
        for (gateway, translated) in [
            ("192.168.7.1", "192.168.7.1:5000/a"),
            ("fd00::2", "[fd00::2]:5000/a"),
            ("[fd00::2]", "[fd00::2]:5000/a"),
            ("host.internal", "host.internal:5000/a"),
            ("not a host", "localhost:5000/a"),
            ("", "localhost:5000/a"),
        ] {
            assert_eq!(
                translate_url("localhost:5000/a", gateway),
                translated,
                "{gateway}"
            );
        }
    }

    #[test]
    fn hosts_prefixes_references() {
        let host = |text| Host::parse(text).unwrap();
        assert_eq!(
            translate_host(&host("localhost:5000"), DEFAULT_GATEWAY),
            host("10.0.2.2:5000")
        );
        assert_eq!(
            translate_host(&host("docker.io"), DEFAULT_GATEWAY),
            host("docker.io")
        );
        let prefix = RegistryPrefix::parse("http://localhost:5000/yocto").unwrap();
        let translated = translate_prefix(&prefix, DEFAULT_GATEWAY);
        assert_eq!(
            translated,
            RegistryPrefix::parse("http://10.0.2.2:5000/yocto").unwrap()
        );
        let reference = Reference::parse("[::1]:5000/yocto/app:1").unwrap();
        let translated = translate_reference(&reference, DEFAULT_GATEWAY).unwrap();
        assert_eq!(translated.to_string(), "10.0.2.2:5000/yocto/app:1");
        assert!(translate_reference(&Reference::parse("localhost/a").unwrap(), "gateway").is_err());
    }

    #[test]
    fn networks_in_an_insecure_list() {
        for (entry, translated) in [
            ("localhost:5000", "10.0.2.2:5000"),
            ("127.0.0.0/8", "127.0.0.0/8"),
            ("::1/128", "::1/128"),
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("registry.lan:5000", "registry.lan:5000"),
        ] {
            assert_eq!(translate_insecure(entry, DEFAULT_GATEWAY), translated);
        }
    }

    proptest! {
        #[test]
        fn never_panics(url in ".{0,60}", gateway in ".{0,20}") {
            let _ = translate_insecure(&url, &gateway);
        }

        #[test]
        fn twice_is_once(url in "(https?://)?(a@)?(localhost|127\\.0\\.0\\.1|\\[::1\\]|x\\.y)(:[1-9][0-9]{0,3})?(/[a-z:@/]{0,9})?") {
            let once = translate_url(&url, DEFAULT_GATEWAY);
            prop_assert_eq!(translate_url(&once, DEFAULT_GATEWAY), once);
        }
    }
}
