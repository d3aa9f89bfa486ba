//! The system's trust store, as ca-certificates of Debian and OpenEmbedded keeps it: the file that
//! `update-ca-certificates` takes up, and the bundle that it makes, extended without running it.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;

use super::{Emission, EmitError, Present, Profile, Target, pem};

/// Our authority among the local ones.
pub(super) const CERTIFICATE: &str = "/usr/local/share/ca-certificates/container-registry-ca.crt";
/// All authorities in one file, which most programs read.
pub(super) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

pub(super) fn emit(
    profile: Profile,
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let Some(authority) = &target.authority else {
        return Ok(());
    };
    emission.file(profile, CERTIFICATE.to_owned(), authority.clone(), false);
    let Some(bundle) = present.get(BUNDLE) else {
        emission.note(format!(
            "there is no {BUNDLE} to add the CA to: when ca-certificates is installed later, its update-ca-certificates takes {CERTIFICATE} up"
        ));
        return Ok(());
    };
    let there = pem::bodies(bundle);
    let mut extended = bundle.clone();
    for body in pem::bodies(authority) {
        if !there.contains(&body) {
            if !extended.is_empty() && !extended.ends_with('\n') {
                extended.push('\n');
            }
            extended.push_str(&one(authority, &body)?);
        }
    }
    emission.file(profile, BUNDLE.to_owned(), extended, false);
    Ok(())
}

/// The certificate with this body, as the whole text writes it.
fn one(authority: &str, body: &str) -> Result<String, EmitError> {
    const END: &str = "-----END CERTIFICATE-----\n";
    authority
        .split_inclusive(END)
        .find(|certificate| pem::bodies(certificate).iter().any(|other| other == body))
        .map(str::to_owned)
        .ok_or_else(|| EmitError::Authority("a certificate in it is damaged".to_owned()))
}
