//! The host part of a reference: a name or address, and a port.

use alloc::string::{String, ToString as _};
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::str::FromStr;

use super::{ReferenceError, ReferenceRule};

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ALIAS: &str = "index.docker.io";
const MAX_HOST: usize = 253;

/// A host with an optional port: `docker.io`, `localhost:5000`, `[::1]:5000`.
///
/// The case of a name is kept, since an upper-case letter may be what makes it a host; the name of
/// Docker Hub and the digits of an IPv6 address are lower-cased.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host {
    name: String,
    port: Option<u16>,
    ipv6: bool,
}

impl Host {
    /// Reads `name`, `name:port`, `[ipv6]` or `[ipv6]:port`. `index.docker.io` becomes `docker.io`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let fail = |offset, rule| Err(ReferenceError::new(offset, rule));
        let (name, port_at, ipv6) = if let Some(inner) = text.strip_prefix('[') {
            let name = parse_ipv6(inner)?;
            let end = name.len() + 2;
            match text.as_bytes().get(end) {
                None => (name, None, true),
                Some(b':') => (name, Some(end + 1), true),
                Some(_) => return fail(end, ReferenceRule::HostCharacter),
            }
        } else {
            let mut colons = text.match_indices(':').map(|(at, _)| at);
            let colon = colons.next();
            if let Some(second) = colons.next() {
                return fail(second, ReferenceRule::Ipv6);
            }
            let name = &text[..colon.unwrap_or(text.len())];
            check_name(name)?;
            (name, colon.map(|at| at + 1), false)
        };
        let port = match port_at {
            Some(at) => Some(parse_port(&text[at..]).map_err(|error| error.shifted(at))?),
            None => None,
        };
        let hub = |alias: &str| !ipv6 && port.is_none() && name.eq_ignore_ascii_case(alias);
        if hub(DOCKER_HUB) || hub(DOCKER_HUB_ALIAS) {
            return Ok(Self::docker_hub());
        }
        let name = if ipv6 {
            name.to_ascii_lowercase()
        } else {
            name.to_string()
        };
        Ok(Self { name, port, ipv6 })
    }

    /// `docker.io`.
    pub fn docker_hub() -> Self {
        Self {
            name: DOCKER_HUB.to_string(),
            port: None,
            ipv6: false,
        }
    }

    /// The name or address, an IPv6 address without its brackets.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port, if one is written.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// The same name with this port, or without any.
    #[must_use]
    pub fn with_port(&self, port: Option<u16>) -> Self {
        Self {
            port,
            ..self.clone()
        }
    }

    /// The address, when the host is one and not a name.
    pub fn address(&self) -> Option<IpAddr> {
        if self.ipv6 {
            return self.name.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
        }
        self.name.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
    }

    /// Whether this is Docker Hub (`docker.io` without a port).
    pub fn is_docker_hub(&self) -> bool {
        self.port.is_none() && self.name == DOCKER_HUB
    }

    /// Whether this names the machine itself: `localhost`, `127.0.0.0/8` or `::1`, with or without a port.
    pub fn is_loopback(&self) -> bool {
        match self.address() {
            Some(IpAddr::V4(address)) => address.is_loopback(),
            Some(IpAddr::V6(address)) => {
                address.is_loopback()
                    || address
                        .to_ipv4_mapped()
                        .is_some_and(|mapped| mapped.is_loopback())
            }
            None => self.name.eq_ignore_ascii_case("localhost"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ipv6 {
            write!(f, "[{}]", self.name)?;
        } else {
            f.write_str(&self.name)?;
        }
        match self.port {
            Some(port) => write!(f, ":{port}"),
            None => Ok(()),
        }
    }
}

impl FromStr for Host {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        Self::parse(text)
    }
}

/// Reads an address up to its closing bracket; `inner` starts behind the opening one.
fn parse_ipv6(inner: &str) -> Result<&str, ReferenceError> {
    let fail = |offset| Err(ReferenceError::new(offset + 1, ReferenceRule::Ipv6));
    match inner
        .bytes()
        .position(|byte| !(byte.is_ascii_hexdigit() || byte == b':'))
    {
        Some(end) if inner.as_bytes()[end] == b']' => {
            let address = &inner[..end];
            if address.parse::<Ipv6Addr>().is_err() {
                return fail(0);
            }
            Ok(address)
        }
        Some(other) => fail(other),
        None => fail(inner.len()),
    }
}

fn check_name(name: &str) -> Result<(), ReferenceError> {
    let fail = |offset, rule| Err(ReferenceError::new(offset, rule));
    let bytes = name.as_bytes();
    if bytes.is_empty() {
        return fail(0, ReferenceRule::HostEmpty);
    }
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {}
            b'.' | b'-' => {
                // A part starts behind a dot and ends before one.
                let starts = at == 0 || bytes[at - 1] == b'.';
                let ends = *byte == b'-' && matches!(bytes.get(at + 1), None | Some(b'.'));
                let nothing_follows = *byte == b'.' && at + 1 == bytes.len();
                if starts || ends || nothing_follows {
                    return fail(at, ReferenceRule::HostPart);
                }
            }
            _ => return fail(at, ReferenceRule::HostCharacter),
        }
        if at == MAX_HOST {
            return fail(at, ReferenceRule::HostTooLong);
        }
    }
    Ok(())
}

fn parse_port(text: &str) -> Result<u16, ReferenceError> {
    let fail = |offset| Err(ReferenceError::new(offset, ReferenceRule::Port));
    if let Some(at) = text.bytes().position(|byte| !byte.is_ascii_digit()) {
        return fail(at);
    }
    if text.is_empty() {
        return fail(0);
    }
    match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => fail(0),
    }
}
