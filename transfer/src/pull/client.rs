//! The registry client that a request's settings describe.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use vdkr_core::{channel::message::RegistrySettings, credentials::Credential, reference::Host};

use super::ImageError;
use crate::client::Client;
use crate::config::{ClientConfig, CredentialSource, Mirror, Trust, TrustRule, trust_rule};
use crate::error::TransferError;
use crate::tls::Roots;

/// Makes a client; nothing is connected yet.
pub fn connect(config: ClientConfig) -> Result<Client, ImageError> {
    Client::new(config).map_err(|error: TransferError| setting("registry", "", &error))
}

/// The client's settings that a request's settings come to.
pub fn client_config(settings: &RegistrySettings) -> Result<ClientConfig, ImageError> {
    let mut roots = Roots::none();
    if let Some(pem) = &settings.ca_pem {
        roots = roots
            .with_pem(pem.as_bytes(), "the CA of the settings")
            .map_err(|error| setting("ca", "", &error))?;
    }
    if let Some(pem) = &settings.public_roots {
        roots = roots
            .with_bundle(pem.as_bytes(), "the host's trust store")
            .map_err(|error| setting("public-roots", "", &error))?;
    }
    let defaults = ClientConfig::default();
    let patience = settings
        .timeout
        .map(|seconds| Duration::from_secs(seconds.max(1).into()));
    let idle_timeout = patience.unwrap_or(defaults.idle_timeout);
    Ok(ClientConfig {
        roots,
        connect_timeout: defaults.connect_timeout.min(idle_timeout),
        idle_timeout,
        trust: trust(settings)?,
        mirrors: mirrors(settings)?,
        credentials: credentials(settings)?,
        ..defaults
    })
}

fn setting(setting: &'static str, value: &str, reason: &dyn ToString) -> ImageError {
    ImageError::Setting {
        setting,
        value: value.to_owned(),
        reason: reason.to_string(),
    }
}

fn host(name: &'static str, text: &str) -> Result<Host, ImageError> {
    Host::parse(text).map_err(|error| setting(name, text, &error))
}

/// A network of insecure hosts, such as `10.0.0.0/8`.
#[derive(Clone, Copy, Debug)]
struct Network {
    address: IpAddr,
    bits: u8,
}

fn network(text: &str) -> Result<Network, ImageError> {
    let refused = |reason: &str| setting("insecure", text, &reason);
    let (address, bits) = text.split_once('/').unwrap_or((text, ""));
    let address = address.parse().map_err(|_| refused("it is no network"))?;
    let most = if matches!(address, IpAddr::V4(_)) {
        32
    } else {
        128
    };
    match bits.parse() {
        Ok(bits) if bits <= most => Ok(Network { address, bits }),
        _ => Err(refused("it is no network")),
    }
}

impl Network {
    /// Names of hosts are not looked up: only an address can be of a network.
    fn holds(self, host: &Host) -> bool {
        let name = host.name().trim_matches(['[', ']']);
        match (self.address, name.parse()) {
            (IpAddr::V4(network), Ok(IpAddr::V4(address))) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing
                    .checked_shr(32 - u32::from(self.bits))
                    .unwrap_or(0)
                    == 0
            }
            (IpAddr::V6(network), Ok(IpAddr::V6(address))) => {
                let differing = network.to_bits() ^ address.to_bits();
                differing
                    .checked_shr(128 - u32::from(self.bits))
                    .unwrap_or(0)
                    == 0
            }
            _ => false,
        }
    }
}

/// Verified TLS, but for the hosts that the user named insecure, and for the gateway: there the
/// host's own registry listens, which may do without, unless the user wants TLS for it as well.
fn trust(settings: &RegistrySettings) -> Result<TrustRule, ImageError> {
    let (networks, hosts): (Vec<_>, Vec<_>) = settings
        .insecure
        .iter()
        .partition(|text| text.contains('/'));
    let networks = networks.into_iter().map(|text| network(text));
    let networks = networks.collect::<Result<Vec<_>, _>>()?;
    let hosts = hosts.into_iter().map(|text| host("insecure", text));
    let rule = trust_rule(hosts.collect::<Result<_, _>>()?);
    let gateway = match settings.gateway.as_str() {
        "" => None,
        gateway => Some(host("gateway", gateway)?.name().to_owned()),
    };
    let secure = settings.secure;
    Ok(Arc::new(move |host| {
        let local = gateway
            .as_ref()
            .is_some_and(|gateway| gateway.eq_ignore_ascii_case(host.name()));
        match rule(host) {
            Trust::Tls if networks.iter().any(|network| network.holds(host)) => Trust::Insecure,
            Trust::Tls if local && !secure => Trust::PlainOrTls,
            Trust::PlainOrTls if secure => Trust::Tls,
            trust => trust,
        }
    }))
}

fn mirrors(settings: &RegistrySettings) -> Result<Vec<Mirror>, ImageError> {
    let mirrors = settings.mirrors.iter().map(|mirror| {
        Ok(Mirror {
            host: host("mirror", &mirror.host)?,
            endpoints: mirror.endpoints.clone(),
        })
    });
    mirrors.collect()
}

fn credentials(settings: &RegistrySettings) -> Result<Arc<dyn CredentialSource>, ImageError> {
    let mut known = HashMap::new();
    for entry in &settings.credentials {
        // An entry for a namespace serves its host: a request asks for one repository alone.
        let name = entry.host.split('/').next().unwrap_or_default();
        known
            .entry(host("credentials", name)?)
            .or_insert_with(|| entry.credential());
    }
    Ok(Arc::new(move |host: &Host| {
        Ok(known.get(host).cloned().unwrap_or(Credential::Anonymous))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_hold_the_addresses_in_them() {
        let settings = RegistrySettings {
            insecure: vec!["10.1.0.0/16".into(), "fd00::/8".into(), "h".into()],
            ..RegistrySettings::default()
        };
        let rule = trust(&settings).unwrap();
        for (name, expected) in [
            ("10.1.2.3:5000", Trust::Insecure),
            ("[fd12::1]:5000", Trust::Insecure),
            ("10.2.2.3:5000", Trust::Tls),
            ("[fe80::1]:5000", Trust::Tls),
            ("ten.example.com", Trust::Tls),
            ("h:1", Trust::Insecure),
        ] {
            assert_eq!(rule(&Host::parse(name).unwrap()), expected, "{name}");
        }
        for (text, address, held) in [
            ("0.0.0.0/0", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.4", true),
            ("1.2.3.4/32", "1.2.3.5", false),
            ("::/0", "[::1]", true),
        ] {
            let host = Host::parse(address).unwrap();
            assert_eq!(network(text).unwrap().holds(&host), held, "{text}");
        }
        for bad in ["10.0.0.0/33", "10.0.0.0/", "x/8", "::/129", "/"] {
            assert!(network(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_gateway_may_be_plain_and_nobody_else() {
        let mut settings = RegistrySettings {
            gateway: "10.0.2.2".into(),
            insecure: vec!["lab:5000".into()],
            ..RegistrySettings::default()
        };
        let asked = |settings: &RegistrySettings, name: &str| {
            trust(settings).unwrap()(&Host::parse(name).unwrap())
        };
        for (name, expected) in [
            ("10.0.2.2:5000", Trust::PlainOrTls),
            ("10.0.2.2", Trust::PlainOrTls),
            ("10.0.2.20:5000", Trust::Tls),
            ("docker.io", Trust::Tls),
            ("lab:5000", Trust::Insecure),
            ("lab:5001", Trust::Tls),
        ] {
            assert_eq!(asked(&settings, name), expected, "{name}");
        }
        settings.secure = true;
        assert_eq!(asked(&settings, "10.0.2.2:5000"), Trust::Tls);
        assert_eq!(asked(&settings, "127.0.0.1:5000"), Trust::Tls);
        assert_eq!(asked(&settings, "lab:5000"), Trust::Insecure);
        settings.gateway = "not a host".into();
        assert!(trust(&settings).is_err());
    }

    #[test]
    fn settings_that_cannot_work_are_named() {
        let settings = RegistrySettings {
            ca_pem: Some("no certificate".into()),
            ..RegistrySettings::default()
        };
        let error = client_config(&settings).err().unwrap().to_string();
        assert!(error.contains("ca"), "{error}");
    }
}
