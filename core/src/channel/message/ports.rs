//! Published ports. These requests are for the host's program that keeps the machine, and never
//! reach the agent: what a guest says opens no port.

use alloc::{string::String, vec::Vec};
use core::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::container::ports::{Publish, Published};

/// Arguments of [`Request::Publish`](super::Request::Publish).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PublishRequest {
    /// The ports.
    pub ports: Vec<Publish>,
    /// They lead to the machine's own address, which the container shares.
    pub machine: bool,
    /// The name that the container will have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The id of a container that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// Ports that are open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The container's id or name, once it is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub container: Vec<String>,
    /// Where they lead.
    pub address: Ipv4Addr,
    /// The ports.
    pub ports: Vec<Published>,
}
