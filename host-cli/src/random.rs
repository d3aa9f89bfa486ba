//! Random numbers of the system.

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

/// Fills `buffer`; waits at most until the system has gathered entropy once.
pub fn fill(buffer: &mut [u8]) -> Result<(), Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match getrandom(&mut buffer[filled..], GetRandomFlags::empty()) {
            Ok(more) => filled += more,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Text of letters and digits, each as likely as any other.
pub fn alphanumeric(length: usize) -> Result<String, Errno> {
    const LETTERS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    // The largest multiple of 62: higher bytes would favour the first letters.
    const FAIR: u8 = 248;
    let mut text = String::with_capacity(length);
    let mut bytes = [0; 32];
    while text.len() < length {
        fill(&mut bytes)?;
        let fair = bytes.iter().filter(|byte| **byte < FAIR);
        let letters = fair.map(|byte| char::from(LETTERS[usize::from(byte % 62)]));
        text.extend(letters.take(length - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_differ_and_use_every_letter() {
        let one = alphanumeric(20).unwrap();
        assert_eq!(one.len(), 20);
        assert_ne!(one, alphanumeric(20).unwrap());
        let long = alphanumeric(20_000).unwrap();
        let mut counts = std::collections::BTreeMap::new();
        for letter in long.chars() {
            *counts.entry(letter).or_insert(0_u32) += 1;
        }
        assert_eq!(counts.len(), 62);
        // 323 expected of each; a biased choice gives the first ones a quarter more.
        assert!(counts.values().all(|count| (200..450).contains(count)));
    }
}
