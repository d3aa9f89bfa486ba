//! Keys and certificates of a registry: a certificate authority (CA) of the project's own, made once,
//! and the server's certificate, issued again when it nears its end or lacks a name.
//!
//! Keys and certificates that are there are used: those of today's generated script (RSA), and those
//! of somebody else's authority, which are never replaced.

mod certificate;
mod error;
pub(crate) mod files;
mod issue;
mod key;
mod names;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use vdkr_core::certificate::{AltName, DAY, missing_names};

pub use self::certificate::{Certificate, Summary, date};
pub use self::error::PkiError;
pub use self::names::names;

use self::files::{PRIVATE, PUBLIC};
use self::issue::{CA_NAME, Issued, OLD_CA_NAME};
use self::key::Key;

/// What to do about a CA that cannot be used.
const REMEDY: &str = "make a new one, which every client must be told, with: \
                      container-registry pki renew --ca";
/// Days before the CA's end from which its end is announced.
const CA_NOTICE: i64 = 90;

/// The directory of keys and certificates.
#[derive(Clone, Debug)]
pub struct Pki {
    directory: PathBuf,
}

/// What certificates should be like.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The registry's host, for the server certificate's subject.
    pub host: String,
    /// The names of the server.
    pub names: Vec<AltName>,
    /// How long a server certificate holds, in days.
    pub server_days: u32,
    /// How long a CA holds, in days.
    pub ca_days: u32,
}

/// What there is, and what was done for it.
#[derive(Clone, Debug)]
pub struct Standing {
    /// The authority.
    pub ca: Certificate,
    /// The server's certificate.
    pub server: Certificate,
    /// What was made, and why.
    pub made: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What [`Pki::renew`] makes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renew {
    /// The server's certificate, for the same key.
    Server,
    /// The server's certificate and its key.
    ServerKey,
    /// Everything: a new CA, which every client must be told.
    Ca,
}

impl Pki {
    /// The keys and certificates of a storage.
    pub fn new(storage: &Path) -> Self {
        Self {
            directory: storage.join("pki"),
        }
    }

    /// The CA's certificate: what clients need.
    pub fn ca_certificate(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The CA's key.
    pub fn ca_key(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    /// The server's certificate.
    pub fn server_certificate(&self) -> PathBuf {
        self.directory.join("server.crt")
    }

    /// The server's key.
    pub fn server_key(&self) -> PathBuf {
        self.directory.join("server.key")
    }

    /// A directory with the CA's certificate and nothing else, for skopeo's and podman's
    /// `--cert-dir`: in the directory of keys they would take the server's for a client's.
    pub fn client_directory(&self) -> PathBuf {
        self.directory.with_file_name("certs")
    }

    /// Makes what is missing, and the server's certificate again if it is due; `now` in seconds since
    /// 1970. Two that do this at a time do it one after the other.
    pub fn ensure(&self, wanted: &Wanted, now: i64) -> Result<Standing, PkiError> {
        files::make_directory(&self.directory, 0o755)?;
        let _lock = files::lock(&self.directory)?;
        let mut notes = Notes::default();
        let (ca, ca_key) = self.authority(wanted, now, &mut notes)?;
        let server = self.server(&ca, ca_key.as_ref(), wanted, now, &mut notes)?;
        self.publish(&ca)?;
        Ok(Standing {
            ca,
            server,
            made: notes.made,
            warnings: notes.warnings,
        })
    }

    /// Makes certificates again although nothing says that they are due.
    pub fn renew(&self, wanted: &Wanted, what: Renew, now: i64) -> Result<Standing, PkiError> {
        files::make_directory(&self.directory, 0o755)?;
        let lock = files::lock(&self.directory)?;
        let mut notes = Notes::default();
        if what == Renew::Ca {
            let key = Key::generate()?;
            let ca = issue::authority(&key, &self.ca_key(), wanted.ca_days, now)?;
            // A crash in between leaves a pair that does not match, which says what to do.
            files::write(&self.ca_key(), PRIVATE, key.to_pem()?.as_bytes())?;
            files::write(&self.ca_certificate(), PUBLIC, ca.pem.as_bytes())?;
            notes
                .made
                .push("a new CA; give its ca.crt to every client".to_owned());
        }
        let (ca, ca_key) = self.authority(wanted, now, &mut notes)?;
        let ca_key = ca_key.ok_or_else(|| PkiError::NoCaKey(self.directory.clone()))?;
        let old = read_certificate(&self.server_certificate())?;
        if let Some(Ok(old)) = &old
            && !is_ours(old, &ca)
        {
            return Err(PkiError::Foreign {
                path: self.server_certificate(),
                reason: "is not renewed".to_owned(),
            });
        }
        let key = match what {
            Renew::Server => read_key(&self.server_key(), &mut notes)?,
            Renew::ServerKey | Renew::Ca => None,
        };
        self.issue(&ca, &ca_key, key, wanted, now, "as asked", &mut notes)?;
        drop(lock);
        let mut standing = self.ensure(wanted, now)?;
        notes.made.append(&mut standing.made);
        Ok(Standing {
            made: notes.made,
            ..standing
        })
    }

    /// What there is, without making anything.
    pub fn show(&self) -> Result<(Certificate, Certificate), PkiError> {
        let read = |path: PathBuf| {
            let missing = || PkiError::Missing(self.directory.clone());
            read_certificate(&path)?.ok_or_else(missing)?
        };
        Ok((
            read(self.ca_certificate())?,
            read(self.server_certificate())?,
        ))
    }

    /// The CA: read, or made. Its key may be kept elsewhere.
    fn authority(
        &self,
        wanted: &Wanted,
        now: i64,
        notes: &mut Notes,
    ) -> Result<(Certificate, Option<Key>), PkiError> {
        let (certificate_file, key_file) = (self.ca_certificate(), self.ca_key());
        let certificate = read_certificate(&certificate_file)?.transpose()?;
        let key = read_key(&key_file, notes)?;
        let (certificate, key) = match (certificate, key) {
            (Some(certificate), key) => (certificate, key),
            (None, key) => {
                // A key alone: somebody was killed before the certificate was there, and nobody
                // trusts it yet.
                let key = if let Some(key) = key {
                    key
                } else {
                    let key = Key::generate()?;
                    files::write(&key_file, PRIVATE, key.to_pem()?.as_bytes())?;
                    key
                };
                let made = issue::authority(&key, &key_file, wanted.ca_days, now)?;
                files::write(&certificate_file, PUBLIC, made.pem.as_bytes())?;
                notes.made.push("a CA".to_owned());
                (made.certificate, Some(key))
            }
        };
        let wrong = |reason: String| PkiError::Content {
            path: certificate_file.clone(),
            reason,
        };
        if !certificate.is_ca {
            return Err(wrong(format!("it is not a CA's certificate; {REMEDY}")));
        }
        if key
            .as_ref()
            .is_some_and(|key| key.public() != certificate.public_key())
        {
            return Err(wrong(format!(
                "ca.key is not its key; restore the right one, or {REMEDY}"
            )));
        }
        if now > certificate.validity.not_after {
            let end = date(certificate.validity.not_after);
            return Err(wrong(format!("the CA has ended on {end}; {REMEDY}")));
        }
        if now < certificate.validity.not_before {
            let start = date(certificate.validity.not_before);
            return Err(wrong(format!(
                "the CA begins on {start}; is this machine's clock right?"
            )));
        }
        let left = certificate.validity.days_left(now);
        if left < CA_NOTICE {
            notes.warnings.push(format!(
                "the CA ends in {left} days; plan a new one (container-registry pki renew --ca): \
                 every client must be given its ca.crt"
            ));
        }
        Ok((certificate, key))
    }

    /// The server's certificate: read, or issued if there is a reason.
    fn server(
        &self,
        ca: &Certificate,
        ca_key: Option<&Key>,
        wanted: &Wanted,
        now: i64,
        notes: &mut Notes,
    ) -> Result<Certificate, PkiError> {
        let path = self.server_certificate();
        let old = read_certificate(&path)?;
        let key = match (read_key(&self.server_key(), notes), &old) {
            (Ok(key), _) => key,
            // A key of our own that was damaged is made again.
            (Err(PkiError::Content { .. } | PkiError::Pem(_)), None) => None,
            (Err(PkiError::Content { .. } | PkiError::Pem(_)), Some(Ok(old)))
                if is_ours(old, ca) =>
            {
                None
            }
            (Err(error), _) => return Err(error),
        };
        let key_fits = |old: &Certificate| {
            key.as_ref()
                .is_some_and(|key| key.public() == old.public_key())
        };
        let reason = match &old {
            None => Some("there was none".to_owned()),
            Some(Err(error)) if ca_key.is_some() => Some(error.to_string()),
            Some(Err(_)) => return old.transpose()?.ok_or(PkiError::NoCaKey(path)),
            Some(Ok(old)) if !is_ours(old, ca) => {
                if !key_fits(old) {
                    return Err(PkiError::Foreign {
                        path,
                        reason: "does not belong to server.key".to_owned(),
                    });
                }
                notes.note_foreign(old, wanted, now);
                return Ok(old.clone());
            }
            Some(Ok(old)) => why_due(old, ca, key_fits(old), wanted, now),
        };
        match (reason, ca_key, old) {
            (None, _, Some(Ok(old))) => Ok(old),
            (Some(reason), Some(ca_key), _) => {
                self.issue(ca, ca_key, key, wanted, now, &reason, notes)
            }
            // Without the CA's key, what holds is used for as long as it does.
            (Some(reason), None, Some(Ok(old))) if key_fits(&old) && old.is_issued_by(ca) => {
                notes.warnings.push(format!(
                    "the server certificate should be issued again ({reason}), but ca.key is not here"
                ));
                Ok(old)
            }
            _ => Err(PkiError::NoCaKey(self.directory.clone())),
        }
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "each of them decides what is issued"
    )]
    fn issue(
        &self,
        ca: &Certificate,
        ca_key: &Key,
        key: Option<Key>,
        wanted: &Wanted,
        now: i64,
        reason: &str,
        notes: &mut Notes,
    ) -> Result<Certificate, PkiError> {
        // The key is kept where there is one, so that a running server sees a single file change.
        let (key, is_new) = match key {
            Some(key) => (key, false),
            None => (Key::generate()?, true),
        };
        let Issued { certificate, pem } = issue::server(
            ca,
            (ca_key, &self.ca_key()),
            &key,
            (&wanted.host, &wanted.names),
            wanted.server_days,
            now,
        )?;
        if is_new {
            files::write(&self.server_key(), PRIVATE, key.to_pem()?.as_bytes())?;
        }
        files::write(&self.server_certificate(), PUBLIC, pem.as_bytes())?;
        notes.made.push(format!("a server certificate ({reason})"));
        Ok(certificate)
    }

    /// Keeps the copy of the CA's certificate for clients up to date.
    fn publish(&self, ca: &Certificate) -> Result<(), PkiError> {
        let directory = self.client_directory();
        files::make_directory(&directory, 0o755)?;
        let copy = directory.join("ca.crt");
        let current = read_certificate(&copy)?;
        if matches!(current, Some(Ok(current)) if current.der() == ca.der()) {
            return Ok(());
        }
        let original = files::read(&self.ca_certificate())?
            .ok_or_else(|| PkiError::Missing(self.directory.clone()))?;
        files::write(&copy, PUBLIC, &original.bytes)
    }
}

/// `None`: not there. The inner result: whether it is a certificate.
fn read_certificate(path: &Path) -> Result<Option<Result<Certificate, PkiError>>, PkiError> {
    Ok(files::read(path)?.map(|content| Certificate::from_pem(&content.bytes, path)))
}

fn read_key(path: &Path, notes: &mut Notes) -> Result<Option<Key>, PkiError> {
    let Some(content) = files::read(path)? else {
        return Ok(None);
    };
    if content.shared {
        let shown = path.display();
        notes.warn(match files::protect(path) {
            Ok(()) => format!(
                "{shown} could be read by others, and is the owner's alone now; if somebody may have copied it: container-registry pki renew --ca"
            ),
            Err(error) => format!("{shown} can be read by others ({error}); put that right with: chmod 600 {shown}"),
        });
    }
    Key::from_pem(&content.bytes, path).map(Some)
}

/// Whether this program, or the script before it, made a certificate: what they did not make, they
/// do not replace.
fn is_ours(certificate: &Certificate, ca: &Certificate) -> bool {
    let named = |name: &str| certificate.issuer.contains(&format!("CN={name}"));
    certificate.is_issued_by(ca) || named(CA_NAME) || named(OLD_CA_NAME)
}

/// Why a certificate of ours must be issued again, if it must.
fn why_due(
    old: &Certificate,
    ca: &Certificate,
    key_fits: bool,
    wanted: &Wanted,
    now: i64,
) -> Option<String> {
    if !old.is_issued_by(ca) {
        return Some("the CA is another one".to_owned());
    }
    if !key_fits {
        return Some("its key was not there".to_owned());
    }
    let end = issue::server_end(ca, wanted.server_days, now);
    // At the end of its CA's time a new one would hold no longer.
    let gains = end > old.validity.not_after + DAY / 24;
    if !old.validity.holds(now) || (old.validity.renewal_due(now) && gains) {
        return Some(format!("the old one ends {}", date(old.validity.not_after)));
    }
    let missing: Vec<_> = missing_names(&old.names, &wanted.names)
        .iter()
        .map(ToString::to_string)
        .collect();
    (!missing.is_empty()).then(|| format!("the old one lacks {}", missing.join(", ")))
}

/// What is to be told.
#[derive(Default)]
struct Notes {
    made: Vec<String>,
    warnings: Vec<String>,
}

impl Notes {
    fn warn(&mut self, warning: String) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    /// A certificate that we must not replace is told about in time.
    fn note_foreign(&mut self, certificate: &Certificate, wanted: &Wanted, now: i64) {
        if certificate.validity.renewal_due(now) {
            self.warn(format!(
                "server.crt, which was not made by this program, ends {}; replace it in time",
                date(certificate.validity.not_after)
            ));
        }
        let host = AltName::parse(&wanted.host);
        if host.is_ok_and(|host| !certificate.names.contains(&host)) {
            self.warn(format!(
                "server.crt, which was not made by this program, may not be good for {}",
                wanted.host
            ));
        }
    }
}
