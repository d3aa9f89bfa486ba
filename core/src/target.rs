//! Where an agent is reached that runs on a machine of its own: a board, or a full image.

use alloc::{borrow::ToOwned as _, string::String};
use core::{fmt, str::FromStr};

/// The port on which an agent listens on vsock unless it is told otherwise.
pub const VSOCK_PORT: u32 = 1024;
/// The numbers of vsock that name no other machine: the hypervisor, the host, any.
const OWN_CIDS: [u32; 3] = [0, 2, u32::MAX];

/// The way to an agent, as `--target` names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TargetAddress {
    /// `vsock:CID[:PORT]`: a virtual machine of this computer.
    Vsock {
        /// The machine's number.
        cid: u32,
        /// The agent's port.
        port: u32,
    },
    /// `vsock:PATH[:PORT]`: a virtual machine whose monitor has vsock as a socket of this computer
    /// (Firecracker, Cloud Hypervisor, vhost-device-vsock).
    Hybrid {
        /// The socket.
        path: String,
        /// The agent's port.
        port: u32,
    },
    /// `serial:PATH`: a serial line, or the socket that an emulator has in its place.
    Serial(String),
    /// `unix:PATH`: a socket of the agent itself, or one that leads to it.
    Unix(String),
}

/// The text is no address of a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetAddressError {
    /// It has none of the known forms.
    #[error(
        "target {0:?} is neither vsock:CID[:PORT], vsock:PATH[:PORT], serial:PATH nor unix:PATH"
    )]
    Form(String),
    /// A part of it is no number.
    #[error("target {text:?}: {part:?} is no number")]
    Number {
        /// The whole text.
        text: String,
        /// The part.
        part: String,
    },
    /// The number is not that of a virtual machine.
    #[error("target {text:?}: {cid} is no virtual machine's number; those begin with 3")]
    Own {
        /// The whole text.
        text: String,
        /// The number.
        cid: u32,
    },
    /// The path is not absolute, or holds what no path can.
    #[error("target {0:?}: give the path from the root (/dev/ttyS1)")]
    Path(String),
}

impl FromStr for TargetAddress {
    type Err = TargetAddressError;

    fn from_str(text: &str) -> Result<Self, TargetAddressError> {
        let form = || TargetAddressError::Form(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(form)?;
        match kind {
            "vsock" if rest.starts_with('/') => {
                // A path may hold colons; only digits at its end are a port.
                let (path, port) = match rest.rsplit_once(':') {
                    Some((path, port)) if is_digits(port) => (path, number(text, port)?),
                    _ => (rest, VSOCK_PORT),
                };
                if path.contains('\0') {
                    return Err(TargetAddressError::Path(text.to_owned()));
                }
                let path = path.to_owned();
                Ok(Self::Hybrid { path, port })
            }
            "vsock" => {
                let (cid, port) = rest
                    .split_once(':')
                    .map_or((rest, None), |(cid, port)| (cid, Some(port)));
                let cid = number(text, cid)?;
                if OWN_CIDS.contains(&cid) {
                    let text = text.to_owned();
                    return Err(TargetAddressError::Own { text, cid });
                }
                let port = port.map_or(Ok(VSOCK_PORT), |port| number(text, port))?;
                Ok(Self::Vsock { cid, port })
            }
            "serial" | "unix" => {
                if !rest.starts_with('/') || rest.contains('\0') {
                    return Err(TargetAddressError::Path(text.to_owned()));
                }
                let path = rest.to_owned();
                Ok(match kind {
                    "serial" => Self::Serial(path),
                    _ => Self::Unix(path),
                })
            }
            _ => Err(form()),
        }
    }
}

fn number(text: &str, part: &str) -> Result<u32, TargetAddressError> {
    let parsed = part.parse().ok().filter(|_| is_digits(part));
    parsed.ok_or_else(|| TargetAddressError::Number {
        text: text.to_owned(),
        part: part.to_owned(),
    })
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

impl fmt::Display for TargetAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
            Self::Hybrid { path, port } => write!(f, "vsock:{path}:{port}"),
            Self::Serial(path) => write!(f, "serial:{path}"),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        let vsock = |cid, port| Ok(TargetAddress::Vsock { cid, port });
        assert_eq!("vsock:3".parse(), vsock(3, VSOCK_PORT));
        assert_eq!("vsock:42:99".parse(), vsock(42, 99));
        // The loopback of vsock serves tests.
        assert_eq!("vsock:1:99".parse(), vsock(1, 99));
        let hybrid = |path: &str, port| {
            let path = path.to_owned();
            Ok(TargetAddress::Hybrid { path, port })
        };
        assert_eq!("vsock:/run/vm.vsock".parse(), hybrid("/run/vm.vsock", 1024));
        assert_eq!("vsock:/run/vm:9".parse(), hybrid("/run/vm", 9));
        assert_eq!("vsock:/run/a:b".parse(), hybrid("/run/a:b", 1024));
        let serial = TargetAddress::Serial("/dev/ttyS1".to_owned());
        assert_eq!("serial:/dev/ttyS1".parse(), Ok(serial));
        let unix = TargetAddress::Unix("/run/a:b".to_owned());
        assert_eq!("unix:/run/a:b".parse(), Ok(unix));
        for bad in [
            "",
            "vsock",
            "vsock:",
            "vsock:x",
            "vsock:+3",
            "vsock:3:",
            "vsock:3:1:2",
            "vsock:2",
            "vsock:/run/a\0",
            "vsock:/run/a:4294967296",
            "vsock:4294967295",
            "vsock:4294967296",
            "serial:",
            "serial:ttyS0",
            "unix:a\0",
            "tcp:1",
            "/dev/ttyS0",
        ] {
            assert!(bad.parse::<TargetAddress>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_the_same(text in "(vsock|serial|unix|x)?:?[/:0-9a-z\\x00 ]{0,12}") {
            if let Ok(address) = text.parse::<TargetAddress>() {
                prop_assert_eq!(address.to_string().parse(), Ok(address));
            }
        }
    }
}
