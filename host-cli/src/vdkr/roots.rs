//! The trust store of this computer, lent to the guest for a pull: the small VM has none of its own,
//! and Docker Hub is reached over verified TLS only.

use std::fs;
use std::io::Read as _;
use std::path::PathBuf;

/// Where systems keep the store as one PEM file; `SSL_CERT_FILE` comes before them, as in OpenSSL.
const BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// Largest store that is sent along, in bytes.
const MAX_BUNDLE: u64 = 2 * 1024 * 1024;

/// The store as PEM text; none where there is none, which leaves registries with public
/// certificates unreachable from the guest, and says so when one is asked.
pub fn of_this_computer() -> Option<String> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    named
        .into_iter()
        .chain(BUNDLES.map(PathBuf::from))
        .find_map(|path| {
            let mut text = String::new();
            let length = fs::File::open(path)
                .ok()?
                .take(MAX_BUNDLE + 1)
                .read_to_string(&mut text);
            let usable = length.is_ok_and(|length| length as u64 <= MAX_BUNDLE)
                && text.contains("-----BEGIN CERTIFICATE-----");
            usable.then_some(text)
        })
}
