//! Places that images are copied from and to, as skopeo writes them: `docker://host/name:tag`,
//! `oci:PATH[:IMAGE]`, `oci-archive:PATH[:IMAGE]`, `docker-archive:PATH[:IMAGE]`, `dir:PATH`,
//! `docker-daemon:IMAGE`, `containers-storage:IMAGE`.
//!
//! As in skopeo, a path ends at its first colon. Behind it stands the name of an image in the file,
//! or `@N`, its place in the list counted from 0.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use core::fmt;

use crate::reference::{Reference, ReferenceError};

/// Longest name of an image within a file, bytes.
const MAX_NAME: usize = 512;

/// The transports, each with the form that errors show.
const FORMS: [(&str, &str); 7] = [
    ("docker", "docker://HOST/NAME[:TAG|@DIGEST]"),
    ("oci", "oci:PATH[:IMAGE]"),
    ("oci-archive", "oci-archive:PATH[:IMAGE]"),
    ("docker-archive", "docker-archive:PATH[:IMAGE]"),
    ("dir", "dir:PATH"),
    ("docker-daemon", "docker-daemon:IMAGE[:TAG]"),
    ("containers-storage", "containers-storage:IMAGE[:TAG]"),
];

/// A place of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A repository of a registry.
    Registry(Reference),
    /// A file or directory.
    File {
        /// Its format.
        format: Format,
        /// Its path, never empty.
        path: String,
        /// Which image of it.
        image: Pick,
    },
    /// The store of an installed container engine; only read, through the engine.
    Engine {
        /// Which engine.
        engine: Engine,
        /// What the engine calls the image: letters, digits and `._-:/@`, never an option.
        image: String,
    },
}

/// Formats of files and directories that hold images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// A directory with an OCI image layout.
    Oci,
    /// A tar archive of an OCI image layout.
    OciArchive,
    /// What `docker save` writes.
    DockerArchive,
    /// skopeo's directory: `manifest.json` and one file for each blob.
    Dir,
}

/// An installed container engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Docker's daemon.
    Docker,
    /// Podman's store.
    Podman,
}

/// Which image of a file is meant.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Pick {
    /// The only one.
    #[default]
    Only,
    /// The one of this name.
    Named(String),
    /// The one at this place of the list, from 0.
    At(usize),
}

/// A text that is no place of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem} (at byte {offset})")]
pub struct PlaceError {
    /// Byte offset of the first offending character; the length of the text where something is missing.
    pub offset: usize,
    /// What is wrong.
    pub problem: PlaceProblem,
}

/// What is wrong with a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceProblem {
    /// No transport, or one that is not known.
    #[error(
        "an image is named with its transport: docker://HOST/NAME, oci:PATH, oci-archive:PATH, \
         docker-archive:PATH, dir:PATH, docker-daemon:IMAGE or containers-storage:IMAGE"
    )]
    Transport,
    /// Something is missing or follows where nothing may.
    #[error("expected {0}")]
    Form(&'static str),
    /// The reference of a registry is wrong.
    #[error("{0}")]
    Reference(ReferenceError),
    /// A control character, or more than fits.
    #[error(
        "the name of an image in a file has at most {MAX_NAME} printable characters, no spaces"
    )]
    Name,
    /// `@` without a number.
    #[error("a place in the list is written @N, counted from 0")]
    Number,
    /// What engines do not call images.
    #[error(
        "the name of an engine's image holds letters, digits and \"._-:/@\" and starts with a letter or digit"
    )]
    EngineName,
    /// `containers-storage:[driver@root]image`.
    #[error("only the engine's own store can be read; leave out the part in brackets")]
    Store,
}

impl Place {
    /// Whether the text begins with the name of a transport.
    pub fn has_transport(text: &str) -> bool {
        transport(text).is_some()
    }

    /// Reads a place with its transport.
    pub fn parse(text: &str) -> Result<Self, PlaceError> {
        let fail = |offset, problem| Err(PlaceError { offset, problem });
        let Some((name, form)) = transport(text) else {
            return fail(0, PlaceProblem::Transport);
        };
        let start = name.len() + 1;
        let rest = &text[start..];
        match name {
            "docker" => {
                let Some(reference) = rest.strip_prefix("//") else {
                    return fail(start, PlaceProblem::Form(form));
                };
                match Reference::parse(reference) {
                    Ok(reference) => Ok(Self::Registry(reference)),
                    Err(error) => {
                        let offset = start + 2 + error.offset;
                        let error = error.shifted(start + 2);
                        fail(offset, PlaceProblem::Reference(error))
                    }
                }
            }
            "docker-daemon" => engine(Engine::Docker, start, rest, form),
            "containers-storage" => engine(Engine::Podman, start, rest, form),
            _ => file(name, start, rest, form),
        }
    }
}

fn transport(text: &str) -> Option<(&'static str, &'static str)> {
    let (name, _) = text.split_once(':')?;
    FORMS.iter().find(|(known, _)| *known == name).copied()
}

fn file(name: &str, start: usize, rest: &str, form: &'static str) -> Result<Place, PlaceError> {
    let fail = |offset, problem| Err(PlaceError { offset, problem });
    let format = match name {
        "oci" => Format::Oci,
        "oci-archive" => Format::OciArchive,
        "docker-archive" => Format::DockerArchive,
        _ => Format::Dir,
    };
    // A directory holds one image, so its path may have colons.
    let (path, image) = match (format, rest.split_once(':')) {
        (Format::Dir, _) | (_, None) => (rest, Pick::Only),
        (_, Some((path, image))) => {
            let at = start + path.len() + 1;
            if image.is_empty() {
                return fail(at, PlaceProblem::Form(form));
            }
            (path, pick(image, at)?)
        }
    };
    if path.is_empty() {
        return fail(start, PlaceProblem::Form(form));
    }
    if let Some(at) = path.find('\0') {
        return fail(start + at, PlaceProblem::Form(form));
    }
    Ok(Place::File {
        format,
        path: path.to_owned(),
        image,
    })
}

fn pick(image: &str, at: usize) -> Result<Pick, PlaceError> {
    if let Some(number) = image.strip_prefix('@') {
        let digits = number.bytes().all(|byte| byte.is_ascii_digit());
        return match number.parse() {
            Ok(number) if digits => Ok(Pick::At(number)),
            _ => Err(PlaceError {
                offset: at + 1,
                problem: PlaceProblem::Number,
            }),
        };
    }
    let illegal = image
        .char_indices()
        .find(|(_, letter)| letter.is_control() || letter.is_whitespace())
        .map(|(at, _)| at)
        .or((image.len() > MAX_NAME).then_some(MAX_NAME));
    match illegal {
        Some(offset) => Err(PlaceError {
            offset: at + offset,
            problem: PlaceProblem::Name,
        }),
        None => Ok(Pick::Named(image.to_owned())),
    }
}

fn engine(
    engine: Engine,
    start: usize,
    rest: &str,
    form: &'static str,
) -> Result<Place, PlaceError> {
    let fail = |offset, problem| Err(PlaceError { offset, problem });
    if rest.is_empty() {
        return fail(start, PlaceProblem::Form(form));
    }
    if rest.starts_with('[') {
        return fail(start, PlaceProblem::Store);
    }
    // It becomes an argument of the engine's program, so it must not look like an option.
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-:/@".contains(&byte);
    if !rest.as_bytes()[0].is_ascii_alphanumeric() {
        return fail(start, PlaceProblem::EngineName);
    }
    if let Some(at) = rest.bytes().position(|byte| !legal(byte)) {
        return fail(start + at, PlaceProblem::EngineName);
    }
    if rest.len() > MAX_NAME {
        return fail(start + MAX_NAME, PlaceProblem::EngineName);
    }
    Ok(Place::Engine {
        engine,
        image: rest.to_owned(),
    })
}

impl Format {
    /// The name of the transport.
    pub fn name(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::OciArchive => "oci-archive",
            Self::DockerArchive => "docker-archive",
            Self::Dir => "dir",
        }
    }
}

impl Engine {
    /// The name of the transport.
    pub fn name(self) -> &'static str {
        match self {
            Self::Docker => "docker-daemon",
            Self::Podman => "containers-storage",
        }
    }

    /// The program that reads the store.
    pub fn program(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Podman => "podman",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(reference) => write!(f, "docker://{reference}"),
            Self::File {
                format,
                path,
                image,
            } => {
                write!(f, "{}:{path}", format.name())?;
                match image {
                    Pick::Only => Ok(()),
                    Pick::Named(name) => write!(f, ":{name}"),
                    Pick::At(number) => write!(f, ":@{number}"),
                }
            }
            Self::Engine { engine, image } => write!(f, "{}:{image}", engine.name()),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::string::ToString as _;

    use proptest::prelude::*;

    use super::*;

    fn at(format: Format, path: &str, image: Pick) -> Place {
        Place::File {
            format,
            path: path.into(),
            image,
        }
    }

    #[test]
    fn places_are_read_as_skopeo_reads_them() {
        let named = |name: &str| Pick::Named(name.into());
        for (text, place) in [
            ("oci:dir/a", at(Format::Oci, "dir/a", Pick::Only)),
            ("oci:/d:v1", at(Format::Oci, "/d", named("v1"))),
            ("oci:d:@2", at(Format::Oci, "d", Pick::At(2))),
            (
                "oci-archive:a.tar:docker.io/library/app:v1",
                at(
                    Format::OciArchive,
                    "a.tar",
                    named("docker.io/library/app:v1"),
                ),
            ),
            (
                "docker-archive:a.tar:app:v1",
                at(Format::DockerArchive, "a.tar", named("app:v1")),
            ),
            ("dir:/a:b", at(Format::Dir, "/a:b", Pick::Only)),
            (
                "docker-daemon:app:v1",
                Place::Engine {
                    engine: Engine::Docker,
                    image: "app:v1".into(),
                },
            ),
            (
                "containers-storage:localhost/app",
                Place::Engine {
                    engine: Engine::Podman,
                    image: "localhost/app".into(),
                },
            ),
            (
                "docker://localhost:5000/a/b:v1",
                Place::Registry(Reference::parse("localhost:5000/a/b:v1").unwrap()),
            ),
        ] {
            assert_eq!(Place::parse(text), Ok(place), "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, offset) in [
            ("", 0),
            ("app:v1", 0),
            ("docker:app", 7),
            ("docker://Bad", 9),
            ("oci:", 4),
            ("oci::v1", 4),
            ("oci:a:", 6),
            ("oci:a:b c", 7),
            ("oci:a:@x", 7),
            ("oci:a:@", 7),
            ("oci:a:@+1", 7),
            ("dir:", 4),
            ("docker-daemon:", 14),
            ("docker-daemon:--help", 14),
            ("docker-daemon:a b", 15),
            ("containers-storage:[overlay@/x]a", 19),
        ] {
            let error = Place::parse(text).unwrap_err();
            assert_eq!(error.offset, offset, "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_text_gives_an_answer(text in "(docker|oci|oci-archive|docker-archive|dir|docker-daemon|containers-storage)?:?(//)?\\PC{0,40}") {
            match Place::parse(&text) {
                // What is shown reads as the same place.
                Ok(place) => prop_assert_eq!(Place::parse(&place.to_string()), Ok(place)),
                Err(error) => prop_assert!(error.offset <= text.len()),
            }
        }

        #[test]
        fn engines_never_see_an_option(text in "\\PC{0,20}") {
            if let Ok(Place::Engine { image, .. }) = Place::parse(&format!("docker-daemon:{text}")) {
                prop_assert!(!image.starts_with('-') && image.is_ascii());
            }
        }
    }
}
