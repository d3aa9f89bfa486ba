//! Tag strategies: which tags a push gives an image, from facts that the caller gathered.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use crate::platform::Platform;
use crate::reference::{DEFAULT_TAG, MAX_TAG, ReferenceError, check_tag};

/// A way to make tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// The time of the run, `20260112-143022`.
    Timestamp,
    /// The short commit (`sha`, `git`).
    Sha,
    /// The branch, made a legal tag.
    Branch,
    /// The version and each shorter one: `1.2.3`, `1.2`, `1`.
    Semver,
    /// The version.
    Version,
    /// `latest`.
    Latest,
    /// Every other tag except `latest` with `-<architecture>` as well.
    Arch,
}

/// What is used when nothing is configured: `timestamp latest`.
pub const DEFAULT_STRATEGIES: &[Strategy] = &[Strategy::Timestamp, Strategy::Latest];

const WORDS: &[(&str, Strategy)] = &[
    ("timestamp", Strategy::Timestamp),
    ("sha", Strategy::Sha),
    ("git", Strategy::Sha),
    ("branch", Strategy::Branch),
    ("semver", Strategy::Semver),
    ("version", Strategy::Version),
    ("latest", Strategy::Latest),
    ("arch", Strategy::Arch),
];

/// A word that is no strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "unknown tag strategy {word:?}; the strategies are timestamp, sha (or git), branch, semver, version, latest, arch"
)]
pub struct StrategyError {
    /// The word.
    pub word: String,
}

impl FromStr for Strategy {
    type Err = StrategyError;

    fn from_str(word: &str) -> Result<Self, StrategyError> {
        WORDS
            .iter()
            .find(|(known, _)| *known == word)
            .map(|(_, strategy)| *strategy)
            .ok_or_else(|| StrategyError {
                word: word.to_owned(),
            })
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = WORDS
            .iter()
            .find(|(_, strategy)| strategy == self)
            .map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// Reads a list of strategies, separated by blanks or commas. An empty list is legal and gives `latest`.
pub fn parse_strategies(text: &str) -> Result<Vec<Strategy>, StrategyError> {
    text.split(|separator: char| separator == ',' || separator.is_whitespace())
        .filter(|word| !word.is_empty())
        .map(str::parse)
        .collect()
}

/// What is known about a push. An empty text counts as unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagFacts {
    /// Start of the run, one value for all images: `20260112-143022`.
    pub timestamp: Option<String>,
    /// Short commit of the build directory.
    pub git_sha: Option<String>,
    /// Branch; `HEAD` (detached) counts as none.
    pub branch: Option<String>,
    /// Version of the image, perhaps with `v` before it and `+suffix` behind it.
    pub version: Option<String>,
    /// Architecture as the tags should spell it (Yocto: `x86_64`, `aarch64`).
    pub arch: Option<String>,
}

/// The tags to push, and what the user should hear about strategies that gave none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TagPlan {
    /// Legal tags, each once, at least one.
    pub tags: Vec<String>,
    /// One sentence for each strategy that gave no tag.
    pub warnings: Vec<String>,
}

impl TagPlan {
    fn add(&mut self, strategy: Strategy, tag: String) {
        match check_tag(&tag) {
            Ok(()) if self.tags.contains(&tag) => {}
            Ok(()) => self.tags.push(tag),
            Err(error) => {
                self.warnings
                    .push(format!("{strategy}: {tag:?} is no legal tag: {error}"));
            }
        }
    }

    fn missing(&mut self, strategy: Strategy, why: &str) {
        self.warnings
            .push(format!("{strategy}: {why}; no tag made"));
    }
}

/// Makes the tags of an image, in the order of the strategies; those with an architecture come last.
///
/// A strategy whose fact is missing gives no tag and a warning. Where nothing gives a tag, there is `latest`.
pub fn tags(strategies: &[Strategy], facts: &TagFacts) -> TagPlan {
    let mut plan = TagPlan::default();
    for &strategy in strategies {
        match strategy {
            Strategy::Timestamp => match known(facts.timestamp.as_deref()) {
                Some(timestamp) => plan.add(strategy, timestamp.to_owned()),
                None => plan.missing(strategy, "the time is not known"),
            },
            Strategy::Sha => match known(facts.git_sha.as_deref()) {
                Some(sha) => plan.add(strategy, sha.to_owned()),
                None => plan.missing(strategy, "no git commit is known"),
            },
            Strategy::Branch => match known(facts.branch.as_deref()) {
                None => plan.missing(strategy, "no git branch is known"),
                Some("HEAD") => plan.missing(strategy, "no branch is checked out (detached HEAD)"),
                Some(branch) => match sanitise_branch(branch) {
                    Some(tag) => plan.add(strategy, tag),
                    None => plan.missing(
                        strategy,
                        &format!("nothing of the branch {branch:?} is legal in a tag"),
                    ),
                },
            },
            Strategy::Semver => match version(facts) {
                None => plan.missing(strategy, "no version is known (--version, IMAGE_VERSION)"),
                Some(version) => match semver(version) {
                    Some(tags) => tags.into_iter().for_each(|tag| plan.add(strategy, tag)),
                    None => plan.missing(
                        strategy,
                        &format!(
                            "{version:?} is not of the form 1.2.3 or 1.2.3-rc1; the strategy \
                             'version' takes any version"
                        ),
                    ),
                },
            },
            Strategy::Version => match version(facts) {
                Some(version) => plan.add(strategy, version.to_owned()),
                None => plan.missing(strategy, "no version is known (--version, IMAGE_VERSION)"),
            },
            Strategy::Latest => plan.add(strategy, DEFAULT_TAG.to_owned()),
            Strategy::Arch => {}
        }
    }
    if strategies.contains(&Strategy::Arch) {
        match known(facts.arch.as_deref()) {
            Some(arch) => {
                for at in 0..plan.tags.len() {
                    if plan.tags[at] != DEFAULT_TAG {
                        plan.add(Strategy::Arch, format!("{}-{arch}", plan.tags[at]));
                    }
                }
            }
            None => plan.missing(Strategy::Arch, "no architecture is known (TARGET_ARCH)"),
        }
    }
    if plan.tags.is_empty() {
        plan.tags.push(DEFAULT_TAG.to_owned());
    }
    plan
}

/// The architecture of an image as tags spell it, which is Yocto's way (`x86_64`, `aarch64`). `target` is
/// `TARGET_ARCH`: it counts where the image says nothing (an empty text), and as the build's own
/// spelling of what the image says.
pub fn arch_in_tags(image: &str, target: Option<&str>) -> Option<String> {
    let target = known(target);
    let Some(image) = known(Some(image)) else {
        return target.map(str::to_owned);
    };
    let image = Platform::linux(image).architecture;
    if let Some(target) = target
        && Platform::from_target_arch(target).architecture == image
    {
        return Some(target.to_owned());
    }
    Some(match image.as_str() {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        _ => image,
    })
}

/// A tag that the user named and that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tag:?} is no legal tag: {error}")]
pub struct TagError {
    /// The text.
    pub tag: String,
    /// The rule it breaks, and where.
    pub error: ReferenceError,
}

/// Checks tags that the user named (`--tag`): the first wrong one is an error, a repeated one is dropped.
pub fn explicit_tags(tags: &[impl AsRef<str>]) -> Result<Vec<String>, TagError> {
    let mut checked: Vec<String> = Vec::with_capacity(tags.len());
    for tag in tags.iter().map(AsRef::as_ref) {
        check_tag(tag).map_err(|error| TagError {
            tag: tag.to_owned(),
            error,
        })?;
        if checked.iter().all(|other| other != tag) {
            checked.push(tag.to_owned());
        }
    }
    Ok(checked)
}

/// Makes a branch name a legal tag: `feature/login` → `feature-login`.
///
/// `/`, `_` and everything that no tag may hold become one `-`; what cannot stand at the start is
/// dropped, and what goes past 128 characters is cut. `None` when nothing is left.
pub fn sanitise_branch(branch: &str) -> Option<String> {
    let mut tag = String::new();
    let mut gap = false;
    for character in branch.chars() {
        match character {
            '.' | '-' if tag.is_empty() => continue,
            'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '-' => {}
            _ => {
                gap = true;
                continue;
            }
        }
        if gap && !tag.is_empty() && character != '-' && !tag.ends_with('-') {
            tag.push('-');
        }
        gap = false;
        tag.push(character);
    }
    tag.truncate(MAX_TAG);
    (!tag.is_empty()).then_some(tag)
}

fn known(fact: Option<&str>) -> Option<&str> {
    fact.map(str::trim).filter(|text| !text.is_empty())
}

/// The version without its `+suffix`.
fn version(facts: &TagFacts) -> Option<&str> {
    let version = known(facts.version.as_deref())?;
    let version = version.split('+').next().unwrap_or_default();
    (!version.is_empty()).then_some(version)
}

/// `1.2.3` → `1.2.3`, `1.2`, `1`. A leading `v` stays on each. A pre-release moves no shorter tag.
fn semver(version: &str) -> Option<Vec<String>> {
    let digits_at = usize::from(version.starts_with(['v', 'V']));
    let (numbers, pre_release) = match version[digits_at..].split_once('-') {
        Some((numbers, pre_release)) => (numbers, Some(pre_release)),
        None => (&version[digits_at..], None),
    };
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !numbers.split('.').all(is_number) || pre_release == Some("") {
        return None;
    }
    let mut tags = alloc::vec![version.to_owned()];
    if pre_release.is_none() {
        let dots = version.match_indices('.').map(|(at, _)| at);
        tags.extend(dots.rev().map(|at| version[..at].to_owned()));
    }
    Some(tags)
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use proptest::prelude::{Strategy as _, prop};
    use proptest::{prop_assert, prop_assert_eq, proptest};

    use super::*;

    fn facts() -> TagFacts {
        TagFacts {
            timestamp: Some("20260112-143022".into()),
            git_sha: Some("a1b2c3d".into()),
            branch: Some("feature/login".into()),
            version: Some("1.2.3".into()),
            arch: Some("aarch64".into()),
        }
    }

    fn plan(strategies: &str, facts: &TagFacts) -> TagPlan {
        tags(&parse_strategies(strategies).unwrap(), facts)
    }
    /// Rows of the table that the tests of the npm package read as well.
    #[derive(serde::Deserialize)]
    struct Table {
        strategies: Vec<(String, String)>,
        versions: Vec<(String, String, String)>,
        branches: Vec<(String, Option<String>)>,
    }

    fn table() -> Table {
        serde_json::from_str(include_str!("../tables/tags.json")).unwrap()
    }

    #[test]
    fn every_strategy() {
        for (strategies, expected) in table().strategies {
            let plan = plan(&strategies, &facts());
            assert_eq!(plan.tags.join(" "), expected, "{strategies}");
            assert!(
                plan.warnings.is_empty(),
                "{strategies}: {:?}",
                plan.warnings
            );
        }
        assert_eq!(
            tags(DEFAULT_STRATEGIES, &facts()).tags,
            ["20260112-143022", "latest"]
        );
    }
    #[test]
    fn versions() {
        for (version, semver, plain) in table().versions {
            let facts = TagFacts {
                version: Some(version.clone()),
                ..TagFacts::default()
            };
            for (strategy, expected) in [("semver", semver), ("version", plain)] {
                let plan = plan(strategy, &facts);
                if expected.is_empty() {
                    assert_eq!(plan.tags, ["latest"], "{strategy} of {version:?}");
                    assert_eq!(plan.warnings.len(), 1, "{strategy} of {version:?}");
                } else {
                    assert_eq!(plan.tags.join(" "), expected, "{strategy} of {version:?}");
                    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
                }
            }
        }
    }
    #[test]
    fn branches() {
        for (branch, tag) in table().branches {
            assert_eq!(sanitise_branch(&branch), tag, "{branch}");
        }
        assert_eq!(sanitise_branch(""), None);
        assert_eq!(sanitise_branch(&"b".repeat(200)).unwrap().len(), MAX_TAG);
    }

    #[test]
    fn the_images_own_architecture_decides() {
        for (image, target, expected) in [
            ("amd64", None, Some("x86_64")),
            ("arm64", None, Some("aarch64")),
            ("riscv64", None, Some("riscv64")),
            ("arm64", Some("x86_64"), Some("aarch64")),
            ("amd64", Some("x86_64"), Some("x86_64")),
            ("386", Some("i686"), Some("i686")),
            ("386", Some("x86_64"), Some("386")),
            ("ppc64le", Some("powerpc64le"), Some("powerpc64le")),
            ("", Some("x86_64"), Some("x86_64")),
            ("", Some(" "), None),
            ("", None, None),
        ] {
            let found = arch_in_tags(image, target);
            assert_eq!(found.as_deref(), expected, "{image} {target:?}");
        }
    }

    #[test]
    fn missing_facts_warn() {
        let plan = plan(
            "timestamp sha branch semver version arch",
            &TagFacts::default(),
        );
        assert_eq!(plan.tags, ["latest"]);
        assert_eq!(plan.warnings.len(), 6);
        assert_eq!(plan.warnings[1], "sha: no git commit is known; no tag made");

        let detached = TagFacts {
            branch: Some("HEAD".into()),
            ..facts()
        };
        let plan = super::tests::plan("branch sha", &detached);
        assert_eq!(plan.tags, ["a1b2c3d"]);
        assert_eq!(plan.warnings.len(), 1);

        let blank = TagFacts {
            git_sha: Some("  ".into()),
            ..facts()
        };
        assert_eq!(super::tests::plan("sha", &blank).warnings.len(), 1);
    }

    #[test]
    fn illegal_facts_warn() {
        let long = TagFacts {
            branch: Some("b".repeat(128)),
            arch: Some("x86_64".into()),
            timestamp: Some("12:30".into()),
            ..TagFacts::default()
        };
        let plan = plan("timestamp branch arch", &long);
        assert_eq!(plan.tags, ["b".repeat(128)]);
        assert_eq!(plan.warnings.len(), 2, "{:?}", plan.warnings);
        assert!(plan.warnings[0].starts_with("timestamp: \"12:30\" is no legal tag: "));
    }

    #[test]
    fn unknown_words_list_the_known() {
        let error = parse_strategies("latest newest").unwrap_err();
        assert_eq!(error.word, "newest");
        let message = error.to_string();
        for (word, strategy) in WORDS {
            assert!(message.contains(word), "{message}");
            assert_eq!(word.parse::<Strategy>().unwrap(), *strategy);
            assert_eq!(strategy.to_string().parse::<Strategy>().unwrap(), *strategy);
        }
        assert!(parse_strategies("Latest").is_err());
    }

    #[test]
    fn explicit() {
        assert_eq!(explicit_tags(&["b", "a", "b"]).unwrap(), ["b", "a"]);
        let error = explicit_tags(&["a", "b c"]).unwrap_err();
        assert_eq!((error.tag.as_str(), error.error.offset), ("b c", 1));
    }

    proptest! {
        /// Whatever the facts: at least one tag, each legal, each once.
        #[test]
        fn tags_are_legal(
            strategies in prop::sample::subsequence(WORDS, 0..WORDS.len()).prop_shuffle(),
            timestamp in prop::option::of(".{0,20}"),
            branch in prop::option::of(".{0,140}"),
            version in prop::option::of("v?[0-9.+a-z~-]{0,12}"),
            arch in prop::option::of("[a-z0-9_]{0,8}"),
        ) {
            let strategies: Vec<Strategy> = strategies.iter().map(|(_, strategy)| *strategy).collect();
            let plan = tags(&strategies, &TagFacts { timestamp, branch, version, arch, git_sha: None });
            prop_assert!(!plan.tags.is_empty());
            for (at, tag) in plan.tags.iter().enumerate() {
                prop_assert!(check_tag(tag).is_ok(), "{}", tag);
                prop_assert!(!plan.tags[..at].contains(tag), "{:?}", plan.tags);
            }
        }

        /// A branch that is a legal tag without `_` stays as it is.
        #[test]
        fn legal_branches_stay(branch in "[A-Za-z0-9][A-Za-z0-9.-]{0,127}") {
            prop_assert_eq!(sanitise_branch(&branch), Some(branch));
        }

        /// Where `arch` stands makes no difference.
        #[test]
        fn arch_anywhere(at in 0usize..4) {
            let mut strategies = parse_strategies("sha latest semver").unwrap();
            strategies.insert(at, Strategy::Arch);
            prop_assert_eq!(tags(&strategies, &facts()), plan("sha latest semver arch", &facts()));
        }
    }
}
