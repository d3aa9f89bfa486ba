//! Which stored image a user means by a name or an id: one answer for every command that is about stored
//! images, and one for every command that gets what is not there.
//!
//! In this order:
//!
//! 1. an id of 12 digits or more: the image whose id starts so, never a name;
//! 2. the name as it is written, in its normal form (`alpine` is `docker.io/library/alpine:latest`);
//! 3. a name without a host under the configured registry, as a pull has it;
//! 4. the same with the other name of this computer's registry: `localhost` and the machine's gateway;
//! 5. the only stored name that ends in it, and the only image whose id starts with it.
//!
//! What may mean more than one image by the last rule means none: nothing is chosen, and above all
//! nothing removed, by a guess.
//!
//! A command that gets what is not there (`run`, `create`) goes by the order of a pull
//! ([`find_to_run`]): what was pulled from elsewhere does not run in place of the configured registry's
//! image once that is stored, and of stored names that merely end in the name none runs, as that registry
//! is asked then. Only a name that was given here, by `tag`, `commit` or `load`, comes before the
//! registry's.

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use crate::candidates::{LocalMatch, RegistryPrefix, pull_candidates, resolve_local};
use crate::loopback::translate_host;
use crate::reference::{Host, Reference, ReferenceError, is_image_id};

/// Everything that is stored.
#[derive(Clone, Debug, Default)]
pub struct Shelf<'a> {
    /// Names in full, by tag or by digest, each with the id of its image.
    pub names: Vec<(&'a str, &'a str)>,
    /// Ids of all images, those without a name too.
    pub ids: Vec<&'a str>,
    /// Those of the names that were given here, rather than pulled.
    pub given: Vec<&'a str>,
}

/// What a user means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meant<'a> {
    /// This name, and by it this image.
    Name {
        /// The stored name.
        name: &'a str,
        /// The image's id.
        id: &'a str,
    },
    /// The image of this id.
    Id(&'a str),
}

impl<'a> Meant<'a> {
    /// The image.
    pub fn id(self) -> &'a str {
        match self {
            Self::Name { id, .. } | Self::Id(id) => id,
        }
    }
}

/// No image is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotMeant {
    /// The text is neither a name nor an id.
    #[error(transparent)]
    Name(#[from] ReferenceError),
    /// Nothing stored fits.
    #[error("no such image")]
    Nothing,
    /// Several fit.
    #[error("it may mean {}", .0.join(", "))]
    Several(Vec<String>),
}

/// Finds what a user means. `gateway` is the name that the machine has for this computer, where it
/// has one.
pub fn find_stored<'a>(
    text: &str,
    registry: Option<&RegistryPrefix>,
    gateway: Option<&str>,
    shelf: &Shelf<'a>,
) -> Result<Meant<'a>, NotMeant> {
    find(text, registry, gateway, shelf, true)
}

/// As [`find_stored`], for a command that pulls what it does not find.
pub fn find_to_run<'a>(
    text: &str,
    registry: Option<&RegistryPrefix>,
    gateway: Option<&str>,
    shelf: &Shelf<'a>,
) -> Result<Meant<'a>, NotMeant> {
    if registry.is_some()
        && let Some(first) = comes_first(text, registry, shelf)
    {
        return Ok(first);
    }
    match find(text, registry, gateway, shelf, registry.is_none()) {
        // The beginning of several ids, and a name that the registry may know.
        Err(NotMeant::Several(_)) if registry.is_some() => Err(NotMeant::Nothing),
        found => found,
    }
}

/// What a name without a host says that was given here, or else what is stored under the registry.
fn comes_first<'a>(
    text: &str,
    registry: Option<&RegistryPrefix>,
    shelf: &Shelf<'a>,
) -> Option<Meant<'a>> {
    if is_image_id(text) {
        return None;
    }
    let candidates = pull_candidates(text, registry).ok()?;
    let under = candidates.first()?.reference.to_string();
    let said = Reference::parse(text).ok()?;
    let said = (!said.has_explicit_host()).then(|| said.or_latest().to_string());
    let given = said.filter(|said| shelf.given.contains(&said.as_str()));
    let wanted = given.unwrap_or(under);
    let found = shelf.names.iter().find(|(name, _)| *name == wanted);
    found.map(|&(name, id)| Meant::Name { name, id })
}

/// With `endings`, a stored name may merely end in the text.
fn find<'a>(
    text: &str,
    registry: Option<&RegistryPrefix>,
    gateway: Option<&str>,
    shelf: &Shelf<'a>,
    endings: bool,
) -> Result<Meant<'a>, NotMeant> {
    let here = find_here(text, registry, shelf, endings);
    if here != Err(NotMeant::Nothing) {
        return here;
    }
    let other = gateway.and_then(|gateway| other_side(text, gateway));
    let found = other.and_then(|other| find_here(&other, registry, shelf, endings).ok());
    found.ok_or(NotMeant::Nothing)
}

fn find_here<'a>(
    text: &str,
    registry: Option<&RegistryPrefix>,
    shelf: &Shelf<'a>,
    endings: bool,
) -> Result<Meant<'a>, NotMeant> {
    let names: Vec<&str> = shelf.names.iter().map(|(name, _)| *name).collect();
    let by_id = || ids_of(text, shelf);
    match resolve_local(text, registry, &names)? {
        LocalMatch::Id => only(&by_id()),
        LocalMatch::Name(found) => {
            let stored = shelf.names.iter().find(|(name, _)| *name == found);
            let &(name, id) = stored.ok_or(NotMeant::Nothing)?;
            let meant = Meant::Name { name, id };
            if is_said(text, registry, name) {
                return Ok(meant);
            }
            if !endings {
                return only(&by_id());
            }
            let others = by_id().into_iter().filter(|other| other.id() != id);
            let all: Vec<_> = core::iter::once(meant).chain(others).collect();
            only(&all)
        }
        LocalMatch::Ambiguous(names) if endings => Err(NotMeant::Several(names)),
        LocalMatch::Ambiguous(_) | LocalMatch::None => only(&by_id()),
    }
}

/// Whether a stored name is one that the text says, rather than one that ends in it.
fn is_said(text: &str, registry: Option<&RegistryPrefix>, name: &str) -> bool {
    let Ok(name) = Reference::parse(name) else {
        return false;
    };
    let names = |wanted: &Reference| {
        wanted.host() == name.host() && wanted.repository() == name.repository()
    };
    Reference::parse(text).is_ok_and(|text| names(&text))
        || pull_candidates(text, registry)
            .is_ok_and(|found| found.iter().any(|candidate| names(&candidate.reference)))
}

fn ids_of<'a>(text: &str, shelf: &Shelf<'a>) -> Vec<Meant<'a>> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if !(1..=64).contains(&digits.len()) || !digits.bytes().all(is_hex) {
        return Vec::new();
    }
    let starts = |id: &&&str| {
        let hex = id.split_once(':').map_or(**id, |(_, hex)| hex);
        hex.starts_with(digits)
    };
    shelf
        .ids
        .iter()
        .filter(starts)
        .map(|id| Meant::Id(id))
        .collect()
}

fn only<'a>(found: &[Meant<'a>]) -> Result<Meant<'a>, NotMeant> {
    match found {
        [] => Err(NotMeant::Nothing),
        [one] => Ok(*one),
        several => {
            let shown = several.iter().map(|meant| match meant {
                Meant::Name { name, .. } => name.to_string(),
                Meant::Id(id) => id.to_string(),
            });
            Err(NotMeant::Several(shown.collect()))
        }
    }
}

/// The same name as the other side of the machine's network says it: what is pulled from `localhost`
/// is stored under the gateway, and a name that was given here may say either.
fn other_side(text: &str, gateway: &str) -> Option<String> {
    let reference = Reference::parse(text).ok()?;
    let host = reference.host();
    if !reference.has_explicit_host() {
        return None;
    }
    let host = if host.is_loopback() {
        translate_host(host, gateway)
    } else if host.name() == gateway {
        Host::parse("localhost").ok()?.with_port(host.port())
    } else {
        return None;
    };
    let digest = reference.digest().cloned();
    let other = Reference::from_parts(host, reference.repository(), reference.tag(), digest);
    Some(other.ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const APP: &str = "sha256:cafe00000000000000000000000000000000000000000000000000000000cafe";
    const TOOL: &str = "sha256:cab1e00000000000000000000000000000000000000000000000000000000000";
    const BARE: &str = "sha256:d00d000000000000000000000000000000000000000000000000000000000000";

    fn shelf() -> Shelf<'static> {
        Shelf {
            names: vec![
                ("10.0.2.2:5000/yocto/app:latest", APP),
                ("docker.io/library/alpine:latest", TOOL),
                ("10.0.2.2:5000/yocto/alpine:latest", APP),
                ("localhost:6000/given:1", TOOL),
                ("h.x/tool:latest", TOOL),
                ("h.y/tool:latest", APP),
                ("h.z/same:latest", APP),
                ("h.z/cab:latest", APP),
                ("h.z/cafe:latest", APP),
                ("docker.io/library/d00d:latest", TOOL),
                ("h.q/d00d:latest", APP),
            ],
            ids: vec![APP, TOOL, BARE],
            given: vec!["docker.io/library/d00d:latest"],
        }
    }

    fn prefix(registry: &str) -> Option<RegistryPrefix> {
        (!registry.is_empty()).then(|| RegistryPrefix::parse(registry).unwrap())
    }

    fn find(text: &str, registry: &str) -> Result<Meant<'static>, NotMeant> {
        find_stored(text, prefix(registry).as_ref(), Some("10.0.2.2"), &shelf())
    }

    #[test]
    fn names_and_ids() {
        let name = |name: &'static str, id: &'static str| Ok(Meant::Name { name, id });
        for (text, registry, expected) in [
            // An id is never a name.
            (APP, "", Ok(Meant::Id(APP))),
            (&APP[7..19], "", Ok(Meant::Id(APP))),
            ("sha256:cafe", "", Ok(Meant::Id(APP))),
            ("0123456789ab", "", Err(NotMeant::Nothing)),
            // As it is written, then under the registry, which come before other endings.
            ("alpine", "", name("docker.io/library/alpine:latest", TOOL)),
            (
                "alpine",
                "10.0.2.2:5000/yocto",
                name("docker.io/library/alpine:latest", TOOL),
            ),
            ("app", "h.q", name("10.0.2.2:5000/yocto/app:latest", APP)),
            (
                "docker.io/alpine",
                "10.0.2.2:5000/yocto",
                name("docker.io/library/alpine:latest", TOOL),
            ),
            ("tool", "h.x", name("h.x/tool:latest", TOOL)),
            ("tool", "h.y", name("h.y/tool:latest", APP)),
            // The only one with that ending.
            ("app", "", name("10.0.2.2:5000/yocto/app:latest", APP)),
            ("yocto/app", "", name("10.0.2.2:5000/yocto/app:latest", APP)),
            ("given:1", "", name("localhost:6000/given:1", TOOL)),
            ("given", "", Err(NotMeant::Nothing)),
            ("pp", "", Err(NotMeant::Nothing)),
            // Either name of this computer's registry.
            (
                "localhost:5000/yocto/app",
                "",
                name("10.0.2.2:5000/yocto/app:latest", APP),
            ),
            (
                "10.0.2.2:6000/given:1",
                "",
                name("localhost:6000/given:1", TOOL),
            ),
            ("localhost:7000/yocto/app", "", Err(NotMeant::Nothing)),
            // A name that is said beats the start of an id; an ending does not, unless both are one.
            ("d00d", "", name("docker.io/library/d00d:latest", TOOL)),
            ("cafe", "", name("h.z/cafe:latest", APP)),
            ("cab1", "", Ok(Meant::Id(TOOL))),
            ("cab", "h.z", name("h.z/cab:latest", APP)),
        ] {
            assert_eq!(find(text, registry), expected, "{text} under {registry:?}");
        }
    }

    #[test]
    fn no_other_registry_has_what_runs() {
        let run = |text: &str, registry: &str| {
            find_to_run(text, prefix(registry).as_ref(), Some("10.0.2.2"), &shelf())
        };
        let name = |name: &'static str, id: &'static str| Ok(Meant::Name { name, id });
        for (text, registry, expected) in [
            // The registry is asked, whoever else has an image that is called so.
            ("same", "h.q", Err(NotMeant::Nothing)),
            ("tool", "h.q", Err(NotMeant::Nothing)),
            ("cafe", "h.q", Ok(Meant::Id(APP))),
            ("cab", "h.q", Ok(Meant::Id(TOOL))),
            ("ca", "h.q", Err(NotMeant::Nothing)),
            ("tool", "h.x", name("h.x/tool:latest", TOOL)),
            (
                "alpine",
                "10.0.2.2:5000/yocto",
                name("10.0.2.2:5000/yocto/alpine:latest", APP),
            ),
            // A name that was given here is what its giver means.
            ("d00d", "h.q", name("docker.io/library/d00d:latest", TOOL)),
            ("h.q/d00d", "h.q", name("h.q/d00d:latest", APP)),
            // What says where it is, is there.
            ("h.z/same", "h.q", name("h.z/same:latest", APP)),
            (
                "localhost:5000/yocto/app",
                "h.q",
                name("10.0.2.2:5000/yocto/app:latest", APP),
            ),
            (&TOOL[7..19], "h.q", Ok(Meant::Id(TOOL))),
        ] {
            assert_eq!(run(text, registry), expected, "{text} under {registry:?}");
        }
        for text in ["same", "app", "given:1", "tool", "cab", "cab1", "x"] {
            assert_eq!(run(text, ""), find(text, ""), "{text}");
        }
    }

    #[test]
    fn nothing_is_chosen_among_several() {
        for (text, several) in [
            ("tool", vec!["h.x/tool:latest", "h.y/tool:latest"]),
            ("ca", vec![APP, TOOL]),
            ("cab", vec!["h.z/cab:latest", TOOL]),
        ] {
            let several = several.iter().map(ToString::to_string).collect();
            assert_eq!(find(text, ""), Err(NotMeant::Several(several)), "{text}");
        }
        assert!(matches!(find("a//b", ""), Err(NotMeant::Name(_))));
    }

    proptest! {
        #[test]
        fn any_text_means_something_stored_or_nothing(text in "[a-f0-9./:@-]{0,20}|.{0,20}") {
            if let Ok(meant) = find(&text, "h.x/y") {
                prop_assert!(shelf().ids.contains(&meant.id()));
            }
        }
    }
}
