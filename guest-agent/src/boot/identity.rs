//! What makes this machine itself and not the twin of another that began with the same snapshot.
//!
//! Up to here no host has come and nothing that is secret was drawn: the kernel makes its boot id
//! and its keys for connections at first use, and the programs of the agent ask the kernel for
//! every random byte or for the seed of a generator at the first request.

use std::{fs, io};

use vdkr_core::channel::message::HostHello;

use super::clock;

/// Read by programs of the machine itself; containers have their images' own.
const MACHINE_ID: &str = "/etc/machine-id";

/// Takes time and randomness from the host's greeting. A machine without fresh randomness must not
/// go on: what it drew would be drawn by its twins as well.
pub fn assume(hello: &HostHello) -> io::Result<()> {
    clock::set(hello.now_unix_ms)?;
    let entropy = hello
        .entropy()
        .ok_or_else(|| io::Error::other("the host's greeting brings none"))?;
    clock::add_entropy(&entropy)
}

/// Gives the machine an id, once it has randomness of its own.
pub fn name_machine() -> io::Result<String> {
    let mut bytes = [0; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let id = machine_id(bytes);
    fs::write(MACHINE_ID, format!("{id}\n"))?;
    Ok(id)
}

/// A random id in the form of `machine-id(5)`.
fn machine_id(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::machine_id;

    #[test]
    fn ids_have_their_form() {
        assert_eq!(machine_id([0; 16]), "00000000000040008000000000000000");
        assert_eq!(machine_id([255; 16]), "ffffffffffff4fffbfffffffffffffff");
    }
}
