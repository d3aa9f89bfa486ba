//! The system's trust store, as ca-certificates of Debian and OpenEmbedded keeps it: the file that
//! `update-ca-certificates` takes up, the bundle that it makes, extended without running it, and the
//! name under which OpenSSL looks for an authority in the directory.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::{Emission, EmitError, Present, Profile, Target, pem, subject};
use crate::base64;

/// Our authority among the local ones.
pub(super) const CERTIFICATE: &str = "/usr/local/share/ca-certificates/container-registry-ca.crt";
/// All authorities in one file, which most programs read.
pub(super) const BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The authorities one by one, each under the hash of its subject.
const DIRECTORY: &str = "/etc/ssl/certs";
/// Authorities of one subject that are told apart.
const TWINS: u32 = 10;

/// The files that OpenSSL would look for, of all certificates of an authority.
pub(super) fn hashed(authority: &str) -> Vec<String> {
    let bodies = pem::bodies(authority);
    let hashes = bodies.iter().filter_map(|body| hash(body));
    hashes.flat_map(|hash| twins(&hash)).collect()
}

fn hash(body: &str) -> Option<String> {
    subject::hash(&base64::decode(body.as_bytes())?)
}

fn twins(hash: &str) -> Vec<String> {
    let paths = (0..TWINS).map(|number| format!("{DIRECTORY}/{hash}.{number}"));
    paths.collect()
}

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
    for body in pem::bodies(authority) {
        link(profile, authority, &body, present, emission)?;
    }
    Ok(())
}

/// Puts one certificate where OpenSSL finds it in the directory. `update-ca-certificates` makes links
/// of such names, and a file serves as well.
fn link(
    profile: Profile,
    authority: &str,
    body: &str,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let places = hash(body).map(|hash| twins(&hash)).unwrap_or_default();
    let holds = |text: &String| pem::bodies(text).iter().any(|other| other == body);
    for path in &places {
        // It stays as it is; when it is ours, this profile wants it as well.
        if let Some(text) = present.get(path).filter(|text| holds(text)) {
            emission.file(profile, path.clone(), text.clone(), false);
            return Ok(());
        }
    }
    let is_taken = |path: &String, emission: &Emission| {
        let mut files = emission.files.iter();
        // Another of the certificates may have the same subject; another profile says the same.
        let other = files.find(|file| file.path == *path);
        present.contains_key(path) || other.is_some_and(|file| !holds(&file.content))
    };
    match places.into_iter().find(|path| !is_taken(path, emission)) {
        Some(path) => emission.file(profile, path, one(authority, body)?, false),
        None => emission.note(format!(
            "programs that look for authorities in {DIRECTORY} rather than in {BUNDLE} trust the CA when update-ca-certificates has run on the target"
        )),
    }
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
