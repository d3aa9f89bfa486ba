//! What both sides say first, and the version that they agree on.

use alloc::{collections::BTreeMap, string::String};

use serde::{Deserialize, Serialize};

use super::{Message, MessageError, exposed};
use crate::channel::frame::Kind;
use crate::credentials::Secret;

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version that it still understands.
pub const MIN_PROTOCOL_VERSION: u32 = 1;

impl Message for HostHello {
    const KIND: Kind = Kind::Hello;
}
impl Message for GuestHello {
    const KIND: Kind = Kind::Hello;
}

/// The version that both sides use: the newest common one.
pub fn negotiate(min_version: u32, version: u32) -> Result<u32, MessageError> {
    let common = version.min(PROTOCOL_VERSION);
    if common < min_version.max(MIN_PROTOCOL_VERSION) {
        return Err(MessageError::Version {
            min_version,
            version,
        });
    }
    Ok(common)
}

/// The host's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// Newest protocol version of the host.
    pub version: u32,
    /// Oldest protocol version it understands.
    pub min_version: u32,
    /// Name and version of the program, for logs.
    #[serde(default)]
    pub software: String,
    /// The host's clock, in milliseconds since 1970.
    #[serde(default)]
    pub now_unix_ms: u64,
    /// 32 bytes of randomness for the guest's pool, as hex digits.
    #[serde(default, serialize_with = "exposed")]
    pub entropy_hex: Secret,
    /// Where a machine of the agent's own shall keep its state: `disk` when the host has attached
    /// one, `tmpfs` when there is none; empty when the agent shall look by itself.
    #[serde(default)]
    pub state: String,
}

impl HostHello {
    /// A greeting of this version.
    pub fn new(software: impl Into<String>, now_unix_ms: u64, entropy: &[u8; 32]) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            min_version: MIN_PROTOCOL_VERSION,
            software: software.into(),
            now_unix_ms,
            entropy_hex: Secret::new(to_hex(entropy)),
            state: String::new(),
        }
    }

    /// The randomness, when there are exactly 32 bytes of it.
    pub fn entropy(&self) -> Option<[u8; 32]> {
        let digits = self.entropy_hex.expose().as_bytes();
        let (pairs, []) = digits.as_chunks::<2>() else {
            return None;
        };
        if pairs.len() != 32 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            let digit = |digit: u8| (digit as char).to_digit(16);
            *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
        }
        Some(bytes)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// The agent's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// Newest protocol version of the agent.
    pub version: u32,
    /// Oldest protocol version it understands.
    pub min_version: u32,
    /// Name and version of the program.
    #[serde(default)]
    pub software: String,
    /// Architecture as in OCI platforms (`amd64`, `arm64`).
    #[serde(default)]
    pub arch: String,
    /// Milliseconds from the start of the kernel to this greeting.
    #[serde(default)]
    pub boot_ms: u64,
    /// Milliseconds from the start of the kernel to the end of each stage of the agent's start.
    #[serde(default)]
    pub stages: BTreeMap<String, u64>,
    /// Milliseconds from the start of the kernel to the first sign of this host: what came before
    /// may lie in a snapshot.
    #[serde(default)]
    pub met_ms: u64,
    /// Identity of an agent's own machine, in the form of `machine-id(5)`.
    #[serde(default)]
    pub machine_id: String,
    /// Where images are kept: `disk` or `tmpfs`.
    #[serde(default)]
    pub state: String,
    /// What runs containers: `native`, `docker` or `podman`.
    #[serde(default)]
    pub engine: String,
    /// The registry that the agent's machine is set up for, asked when a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// The address of the machine's default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

impl Default for GuestHello {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            min_version: MIN_PROTOCOL_VERSION,
            software: String::new(),
            arch: String::new(),
            boot_ms: 0,
            stages: BTreeMap::new(),
            met_ms: 0,
            machine_id: String::new(),
            state: String::new(),
            engine: String::new(),
            registry: None,
            gateway: None,
        }
    }
}
