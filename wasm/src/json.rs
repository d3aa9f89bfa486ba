//! The JSON that the exports give. Keep `npm/index.d.ts` the same.

use serde::Serialize;
use vdkr_core::reference::{Reference, ReferenceError};
use vdkr_core::tags::{StrategyError, TagPlan};
use vdkr_core::{candidates, deploy};

/// A result that tells success from failure by its field `ok`.
#[derive(Debug)]
pub enum Outcome<T> {
    /// `{"ok": true, …}` with the fields of the value.
    Ok(T),
    /// `{"ok": false, "error": …}`.
    Error(Problem),
}

impl<T> From<Result<T, Problem>> for Outcome<T> {
    fn from(result: Result<T, Problem>) -> Self {
        match result {
            Ok(value) => Self::Ok(value),
            Err(problem) => Self::Error(problem),
        }
    }
}

impl<T: Serialize> Serialize for Outcome<T> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Success<'a, T> {
            ok: bool,
            #[serde(flatten)]
            value: &'a T,
        }
        #[derive(Serialize)]
        struct Failure<'a> {
            ok: bool,
            error: &'a Problem,
        }
        match self {
            Self::Ok(value) => Success { ok: true, value }.serialize(serializer),
            Self::Error(error) => Failure { ok: false, error }.serialize(serializer),
        }
    }
}

/// What is wrong with an argument.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// The argument: `name`, `registry` or `strategies`.
    pub field: &'static str,
    /// Index into the argument as JavaScript counts, in units of UTF-16.
    pub offset: usize,
    /// A fixed word for the rule broken.
    pub rule: &'static str,
    /// A sentence for people.
    pub message: String,
}

impl Problem {
    /// A text that is no reference or no registry.
    pub fn new(text: &str, field: &'static str, error: ReferenceError) -> Self {
        Self {
            field,
            offset: units(text, error.offset),
            rule: error.rule.name(),
            message: error.rule.to_string(),
        }
    }

    /// An unknown strategy.
    pub fn word(strategies: &str, error: &StrategyError) -> Self {
        let at = tag_word(strategies, &error.word);
        Self {
            field: "strategies",
            offset: units(strategies, at),
            rule: "strategy",
            message: error.to_string(),
        }
    }
}

/// Where a word stands alone in a list of strategies.
fn tag_word(strategies: &str, word: &str) -> usize {
    let is_separator = |character: char| character == ',' || character.is_whitespace();
    strategies
        .match_indices(word)
        .map(|(at, _)| at)
        .find(|at| {
            let (before, after) = (&strategies[..*at], &strategies[at + word.len()..]);
            !before.ends_with(|c| !is_separator(c)) && !after.starts_with(|c| !is_separator(c))
        })
        .unwrap_or(0)
}

/// A byte offset as JavaScript counts.
fn units(text: &str, offset: usize) -> usize {
    text.get(..offset)
        .map_or(0, |before| before.encode_utf16().count())
}

/// A reference in its parts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    host: String,
    host_name: String,
    port: Option<u16>,
    explicit_host: bool,
    loopback: bool,
    repository: String,
    tag: Option<String>,
    digest: Option<String>,
    familiar: String,
    canonical: String,
}

impl From<&Reference> for Explained {
    fn from(reference: &Reference) -> Self {
        let host = reference.host();
        Self {
            host: host.to_string(),
            host_name: host.name().to_owned(),
            port: host.port(),
            explicit_host: reference.has_explicit_host(),
            loopback: host.is_loopback(),
            repository: reference.repository().to_owned(),
            tag: reference.tag().map(str::to_owned),
            digest: reference.digest().map(ToString::to_string),
            familiar: reference.familiar(),
            canonical: reference.to_string(),
        }
    }
}

/// The candidates of a pull.
#[derive(Debug, Serialize)]
pub struct Candidates {
    /// In the order they are tried.
    pub candidates: Vec<Candidate>,
}

/// One place to pull from.
#[derive(Debug, Serialize)]
pub struct Candidate {
    source: &'static str,
    reference: String,
}

impl From<&candidates::Candidate> for Candidate {
    fn from(candidate: &candidates::Candidate) -> Self {
        Self {
            source: candidate.source.as_str(),
            reference: candidate.reference.to_string(),
        }
    }
}

/// What a name means among the stored ones.
#[derive(Debug, Serialize)]
pub struct Local {
    /// `name`, `ambiguous`, `id` or `none`.
    pub kind: &'static str,
    /// One stored name, several, or none.
    pub names: Vec<String>,
}

/// The tags of a push.
#[derive(Debug, Serialize)]
pub struct TagList {
    tags: Vec<String>,
    warnings: Vec<String>,
}

impl From<TagPlan> for TagList {
    fn from(plan: TagPlan) -> Self {
        Self {
            tags: plan.tags,
            warnings: plan.warnings,
        }
    }
}

/// What the name of a layout says.
#[derive(Debug, Serialize)]
pub struct DeployName {
    repository: String,
    tag: Option<String>,
}

impl From<deploy::DeployName> for DeployName {
    fn from(name: deploy::DeployName) -> Self {
        Self {
            repository: name.repository,
            tag: name.tag_hint,
        }
    }
}
