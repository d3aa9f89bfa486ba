//! Names of containers: which are legal, what a nameless container is called, which one is meant.

use alloc::{format, string::String};

/// Digits of a container's id.
pub const ID_LENGTH: usize = 64;
/// Digits that are shown of an id.
pub const SHORT_ID: usize = 12;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 128;

/// Why a name is no name, or means no container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It breaks the rule for names.
    #[error(
        "{0:?} is no legal name of a container: it takes 2 to {MAX_NAME} letters, digits, '_', '.' \
         and '-', of which the first is a letter or digit"
    )]
    Illegal(String),
    /// Nothing has it.
    #[error("no such container: {0}")]
    Unknown(String),
    /// Several ids start with it.
    #[error("the id {0} is the start of several containers' ids; give more digits of it")]
    Ambiguous(String),
}

/// Checks a new name, which may start with a `/` as docker's do, and gives it without.
pub fn check(name: &str) -> Result<&str, NameError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let legal = bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphanumeric())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        && (2..=MAX_NAME).contains(&bare.len());
    if legal {
        Ok(bare)
    } else {
        Err(NameError::Illegal(name.chars().take(MAX_NAME).collect()))
    }
}

/// The id of the container that `wanted` means: a whole id, else a name, else the start of an id.
pub fn find<'a>(
    wanted: &str,
    containers: impl Iterator<Item = (&'a str, &'a str)> + Clone,
) -> Result<&'a str, NameError> {
    let bare = wanted.strip_prefix('/').unwrap_or(wanted);
    let exact = containers
        .clone()
        .find(|(id, _)| *id == wanted)
        .or_else(|| containers.clone().find(|(_, name)| *name == bare));
    if let Some((id, _)) = exact {
        return Ok(id);
    }
    let shown = || wanted.chars().take(MAX_NAME).collect();
    let mut starting = containers.filter(|(id, _)| !wanted.is_empty() && id.starts_with(wanted));
    match (starting.next(), starting.next()) {
        (Some((id, _)), None) => Ok(id),
        (Some(_), Some(_)) => Err(NameError::Ambiguous(shown())),
        (None, _) => Err(NameError::Unknown(shown())),
    }
}

/// The part of an id that is shown.
pub fn short(id: &str) -> &str {
    id.get(..SHORT_ID).unwrap_or(id)
}

const MANNERS: &[&str] = &[
    "amber", "bold", "brave", "bright", "brisk", "calm", "clear", "clever", "cosy", "crisp",
    "curious", "daring", "eager", "early", "easy", "fair", "fond", "frank", "fresh", "gentle",
    "glad", "golden", "grand", "happy", "hardy", "honest", "jolly", "keen", "kind", "lively",
    "lucid", "lucky", "mellow", "merry", "mild", "modest", "neat", "nimble", "noble", "patient",
    "plain", "proud", "quick", "quiet", "rapid", "ready", "serene", "sharp", "silent", "steady",
    "sunny", "swift", "tidy", "tranquil", "vivid", "warm", "wise", "witty", "young", "zealous",
];
const BIRDS: &[&str] = &[
    "avocet",
    "bittern",
    "bunting",
    "buzzard",
    "chough",
    "coot",
    "crane",
    "crossbill",
    "curlew",
    "dipper",
    "dotterel",
    "dove",
    "dunlin",
    "eider",
    "falcon",
    "fulmar",
    "gannet",
    "godwit",
    "goshawk",
    "grebe",
    "harrier",
    "heron",
    "hobby",
    "hoopoe",
    "ibis",
    "jackdaw",
    "jay",
    "kestrel",
    "kite",
    "knot",
    "lapwing",
    "lark",
    "linnet",
    "magpie",
    "martin",
    "merlin",
    "nightjar",
    "oriole",
    "osprey",
    "owl",
    "petrel",
    "pipit",
    "plover",
    "puffin",
    "quail",
    "raven",
    "redstart",
    "robin",
    "sandpiper",
    "shrike",
    "siskin",
    "snipe",
    "starling",
    "stork",
    "swift",
    "tern",
    "thrush",
    "turnstone",
    "wagtail",
    "wren",
];

/// A name for a container that was given none. `taken` says which there are; a number is added
/// when the pair that `random` picks is among them.
pub fn random(random: u64, taken: impl Fn(&str) -> bool) -> String {
    let pick = |list: &[&'static str], number: u64| {
        let index = usize::try_from(number % list.len() as u64).unwrap_or_default();
        list.get(index).copied().unwrap_or("container")
    };
    let pair = format!(
        "{}_{}",
        pick(MANNERS, random >> 32),
        pick(BIRDS, random & 0xffff_ffff)
    );
    let mut name = pair.clone();
    let mut number = 0_u64;
    while taken(&name) {
        number += 1;
        name = format!("{pair}{number}");
    }
    name
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["ab", "a1", "web-1", "a_b.c", "0x", "/web"] {
            assert!(check(good).is_ok(), "{good}");
        }
        assert_eq!(check("/web"), Ok("web"));
        for bad in [
            "",
            "a",
            "-a",
            "_a",
            ".a",
            "a b",
            "a/b",
            "é1",
            "//a",
            "/",
            &"x".repeat(129),
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_id_wins_over_a_name_and_a_name_over_the_start_of_an_id() {
        let ids: Vec<String> = ["ab1", "ab2", "cd3"]
            .map(|s| format!("{s}{}", "0".repeat(61)))
            .into();
        let list = [(&*ids[0], "web"), (&*ids[1], "cd"), (&*ids[2], "other")];
        let find = |wanted| find(wanted, list.iter().copied());
        assert_eq!(find(&ids[0]), Ok(&*ids[0]));
        assert_eq!(find("web"), Ok(&*ids[0]));
        assert_eq!(find("/web"), Ok(&*ids[0]));
        assert_eq!(find("cd"), Ok(&*ids[1]));
        assert_eq!(find("cd3"), Ok(&*ids[2]));
        assert_eq!(find("ab2"), Ok(&*ids[1]));
        assert_eq!(find("ab"), Err(NameError::Ambiguous("ab".into())));
        assert_eq!(find("ff"), Err(NameError::Unknown("ff".into())));
        assert_eq!(find(""), Err(NameError::Unknown(String::new())));
    }

    #[test]
    fn a_name_that_is_taken_gets_a_number() {
        let first = random(77, |_| false);
        let second = random(77, |name| name == first);
        assert_eq!(second, format!("{first}1"));
    }

    proptest! {
        #[test]
        fn every_random_name_is_legal(seed in any::<u64>()) {
            prop_assert!(check(&random(seed, |_| false)).is_ok());
        }

        #[test]
        fn what_is_found_is_there(wanted in ".{0,8}", names in proptest::collection::vec("[a-f0-9]{2,6}", 0..6)) {
            let list: Vec<(String, String)> =
                names.iter().enumerate().map(|(i, n)| (format!("{n}{i:060}"), format!("n{i}"))).collect();
            let found = find(&wanted, list.iter().map(|(id, name)| (&**id, &**name)));
            if let Ok(id) = found {
                prop_assert!(list.iter().any(|(known, name)| known == id && (known.starts_with(&wanted) || wanted.ends_with(name))));
            }
        }
    }
}
