//! What can go wrong with images, and what a host is told about it.

use std::{io, path::PathBuf};

use crate::error::TransferError;
use crate::layer::UnpackError;
use vdkr_core::{
    channel::message::{Failure, FailureCode},
    digest::Digest,
    manifest::ManifestError,
    platform::PlatformError,
    reference::ReferenceError,
};

/// A failed operation on images.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A name that is none.
    #[error("{name:?} is not an image name: {source}")]
    Name {
        /// What was given.
        name: String,
        /// The rule broken.
        source: ReferenceError,
    },
    /// A name that is one, but cannot be used here.
    #[error("{name:?} cannot be used: {reason}")]
    Unfit {
        /// What was given.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A platform that is none.
    #[error("{text:?} is not a platform: {source}")]
    Platform {
        /// What was given.
        text: String,
        /// The rule broken.
        source: PlatformError,
    },
    /// A setting of the request that cannot be read.
    #[error("the setting {setting} = {value:?} cannot be used: {reason}")]
    Setting {
        /// Which one.
        setting: &'static str,
        /// What it says.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No such image in the store.
    #[error("no image {0:?} here")]
    NoImage(String),
    /// A layer that an image to be added needs.
    #[error("layer {0} is not here")]
    NoLayer(Digest),
    /// A layer whose archive cannot be made again.
    #[error("layer {layer} cannot be read as an archive: {reason}")]
    NoArchive {
        /// Its diff_id.
        layer: Digest,
        /// Why not.
        reason: String,
    },
    /// A name, or the start of an id, that several images have.
    #[error("{name:?} can mean several images: {}", matches.join(", "))]
    Ambiguous {
        /// What was given.
        name: String,
        /// What it can mean.
        matches: Vec<String>,
    },
    /// An id with several names.
    #[error("image {id} has several names: {}", names.join(", "))]
    SeveralNames {
        /// The short id.
        id: String,
        /// Its names.
        names: Vec<String>,
    },
    /// There is a container of the image.
    #[error("image {0} is used by a container")]
    InUse(String),
    /// No registry that may be asked has the image.
    #[error("no image {name:?}: {} not found", tried.join(" and "))]
    Unknown {
        /// What was given.
        name: String,
        /// The references asked for.
        tried: Vec<String>,
    },
    /// A registry that must have answered did not, or not well.
    #[error("cannot pull {reference}: {source}{}", after(unknown))]
    Pull {
        /// The reference asked for.
        reference: String,
        /// References before it that their registries do not know.
        unknown: Vec<String>,
        /// What failed.
        source: Box<TransferError>,
        /// Set when the reference comes from the configured registry: that registry.
        registry: Option<String>,
    },
    /// A blob in a file of this computer that cannot be had, or is another one.
    #[error("{0}")]
    Blob(Box<TransferError>),
    /// The image is for other machines.
    #[error("{reference} has no image for {wanted}; it has {}", list(available))]
    NoPlatform {
        /// The index.
        reference: String,
        /// The platform asked for.
        wanted: String,
        /// The platforms of its entries.
        available: Vec<String>,
    },
    /// A manifest that is no container image.
    #[error("{reference} is not a container image: {reason}")]
    NotAnImage {
        /// The reference.
        reference: String,
        /// What shows it.
        reason: String,
    },
    /// A manifest or configuration that cannot be used.
    #[error("{what} is not usable: {source}")]
    Manifest {
        /// Which one.
        what: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// A layer that could not be unpacked.
    #[error("layer {layer}: {source}")]
    Layer {
        /// Digest of its blob.
        layer: Digest,
        /// What failed.
        source: Box<UnpackError>,
    },
    /// A file of the store could not be handled.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file of the store is not as it was written.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What shows it.
        reason: String,
    },
    /// A layer that the host keeps is not there.
    #[error("layer {layer} of image {image} is kept by the host, which has not handed it over")]
    NotHandedOver {
        /// The short id of the image.
        image: String,
        /// Digest of the layer's plain archive.
        layer: Digest,
    },
    /// Two agents, one store.
    #[error("the image store {} is in use by another agent", .0.display())]
    Locked(PathBuf),
    /// Stopped on request.
    #[error("cancelled")]
    Cancelled,
}

fn after(unknown: &[String]) -> String {
    match unknown {
        [] => String::new(),
        unknown => format!(" ({} was not found before)", unknown.join(", ")),
    }
}

fn list(words: &[String]) -> String {
    match words {
        [] => "no entry with a platform".to_owned(),
        words => words.join(", "),
    }
}

impl ImageError {
    /// For `map_err` on file operations.
    pub fn io<E: Into<io::Error>>(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source: source.into(),
        }
    }

    /// The class of the failure.
    pub fn code(&self) -> FailureCode {
        match self {
            Self::Name { .. }
            | Self::Unfit { .. }
            | Self::Platform { .. }
            | Self::Setting { .. }
            | Self::Ambiguous { .. } => FailureCode::Usage,
            Self::NoImage(_)
            | Self::NoLayer(_)
            | Self::Unknown { .. }
            | Self::NoPlatform { .. } => FailureCode::NotFound,
            Self::Pull { source, .. } | Self::Blob(source) => transfer_code(source),
            Self::NotAnImage { .. } => FailureCode::Unsupported,
            Self::Cancelled => FailureCode::Cancelled,
            Self::Layer { source, .. } => match **source {
                UnpackError::Compression(_) => FailureCode::Unsupported,
                UnpackError::DiffId { .. } => FailureCode::DigestMismatch,
                UnpackError::Cancelled => FailureCode::Cancelled,
                _ => FailureCode::Failed,
            },
            Self::SeveralNames { .. }
            | Self::NoArchive { .. }
            | Self::InUse(_)
            | Self::Manifest { .. }
            | Self::Io { .. }
            | Self::Damaged { .. }
            | Self::NotHandedOver { .. }
            | Self::Locked(_) => FailureCode::Failed,
        }
    }

    /// What the user can do, where that is known.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoImage(_) => Some("`images` lists what is here, `pull` fetches more".to_owned()),
            Self::Ambiguous { .. } => Some("write the whole name".to_owned()),
            Self::SeveralNames { .. } => {
                Some("remove the names one by one, or all of them with --force".to_owned())
            }
            Self::InUse(_) => Some(
                "remove the container first (vdkr ps -a lists them), or use --force".to_owned(),
            ),
            Self::Pull {
                source, registry, ..
            } => pull_hint(source, registry.as_deref()),
            Self::NoLayer(_) => Some("try again; another command removed it meanwhile".to_owned()),
            Self::NoArchive { .. } => Some(
                "remove the image, pull it again with --pull-in guest, and save or push it then"
                    .to_owned(),
            ),
            Self::NotHandedOver { .. } => Some(
                "run it with a host program of the agent's release, or pull it once more with \
                 --pull-in guest after removing it"
                    .to_owned(),
            ),
            Self::Damaged { .. } => Some("remove the image by force and pull it again".to_owned()),
            _ => None,
        }
    }
}

/// What to do about a pull that failed: first what mends it, the way around the registry last.
fn pull_hint(source: &TransferError, registry: Option<&str>) -> Option<String> {
    let mend = match source {
        TransferError::Tls { .. } => Some(
            "give the certificate of the registry's CA with --ca-cert FILE, or for good with \
             `vconfig ca-cert FILE`, or name the host with --insecure-registry",
        ),
        TransferError::Denied { .. } => Some(match registry {
            Some(_) => "log in with `vdkr login`, or give --registry-user or --config FILE",
            None => "log in with `vdkr login HOST`, or give --config FILE",
        }),
        _ => None,
    };
    let around = registry.map(|registry| {
        format!(
            "{registry} is the configured registry; bypass it with --no-registry, or forget it \
             with `vconfig registry --reset`"
        )
    });
    match (mend, around) {
        (Some(mend), Some(around)) => Some(format!("{mend}; {around}")),
        (mend, around) => mend.map(str::to_owned).or(around),
    }
}

fn transfer_code(error: &TransferError) -> FailureCode {
    match error {
        TransferError::Unreachable { .. } | TransferError::Tls { .. } => FailureCode::Unreachable,
        TransferError::Denied { .. } | TransferError::Credentials { .. } => FailureCode::Denied,
        TransferError::NotFound { .. } => FailureCode::NotFound,
        error if error.is_content() => FailureCode::DigestMismatch,
        // The registry has looked, and says so.
        TransferError::Status { .. } if error.is_damaged() => FailureCode::DigestMismatch,
        TransferError::Config(_) => FailureCode::Usage,
        TransferError::Unsupported(_) => FailureCode::Unsupported,
        TransferError::Cancelled => FailureCode::Cancelled,
        _ => FailureCode::Failed,
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let failure = Self::new(error.code(), error.to_string());
        match error.hint() {
            Some(hint) => failure.with_hint(hint),
            None => failure,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Answer;

    #[test]
    fn what_a_registry_calls_damaged_does_not_match_its_digest() {
        let code = |code: &str| {
            let source = Box::new(TransferError::Status {
                method: "GET".into(),
                url: "http://h/v2/app/manifests/t".into(),
                answer: Box::new(Answer {
                    codes: vec![code.into()],
                    ..Answer::of(500)
                }),
            });
            let (reference, unknown, registry) = ("h/app:t".into(), Vec::new(), None);
            let error = ImageError::Pull {
                reference,
                unknown,
                source,
                registry,
            };
            error.code()
        };
        assert_eq!(code("MANIFEST_DAMAGED"), FailureCode::DigestMismatch);
        assert_eq!(code("UNKNOWN"), FailureCode::Failed);
    }

    #[test]
    fn hints_name_what_mends_it_first() {
        let tls = TransferError::Tls {
            url: "https://localhost:5000/v2/".into(),
            reason: "UnknownIssuer".into(),
        };
        let hint = pull_hint(&tls, Some("localhost:5000/yocto")).unwrap();
        let at = |word: &str| hint.find(word).unwrap_or_else(|| panic!("{word}: {hint}"));
        assert!(
            at("--ca-cert") < at("vconfig ca-cert") && at("vconfig ca-cert") < at("--no-registry")
        );
        let alone = pull_hint(&tls, None).unwrap();
        assert!(alone.contains("--ca-cert") && !alone.contains("--no-registry"));
        let denied = TransferError::Denied {
            url: "https://localhost:5000/v2/".into(),
            answer: Box::default(),
            hint: None,
        };
        let hint = pull_hint(&denied, Some("localhost:5000/yocto")).unwrap();
        let at = |word: &str| hint.find(word).unwrap_or_else(|| panic!("{word}: {hint}"));
        assert!(at("vdkr login") < at("--no-registry"));
        assert!(
            pull_hint(&denied, None)
                .unwrap()
                .contains("vdkr login HOST")
        );
        assert_eq!(pull_hint(&TransferError::Cancelled, None), None);
        let down = pull_hint(&TransferError::Cancelled, Some("r:1")).unwrap();
        assert!(down.starts_with("r:1 is the configured registry"));
    }
}
