//! The registry extension `_vdkr` (OCI distribution specification, "Extensions"): its documents, as
//! the server writes and clients read them. Its paths are in [`crate::distribution::Route`].
//!
//! Every document may gain fields; readers ignore those that they do not know.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// The error code of a manifest that the registry has and cannot serve, because its content is missing
/// or damaged. A push of it mends that: conditions take such a tag for absent.
pub const DAMAGED: &str = "MANIFEST_DAMAGED";
/// The header that says the same where an answer has no body.
pub const DAMAGED_HEADER: &str = "vdkr-manifest-damaged";
/// Most entries of a page of images.
pub const MAX_IMAGES: usize = 1000;
/// Most things that a report names one by one; its sums count all of them.
pub const MAX_NAMED: usize = 10_000;

/// A page of `GET /v2/_vdkr/images/list`: tags in the order of repositories and tags, with a `Link` to
/// the next page.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImagePage {
    /// The images.
    pub images: Vec<ImageEntry>,
}

/// One tag, or a repository that has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageEntry {
    /// The repository.
    pub repository: String,
    /// The tag; none for a repository without tags.
    pub tag: Option<String>,
    /// What the tag points to.
    pub digest: Option<Digest>,
    /// Media type of that.
    pub media_type: String,
    /// `os/architecture[/variant]` of each image.
    pub platforms: Vec<String>,
    /// Bytes of manifests, configurations and layers, each digest counted once.
    pub size: u64,
    /// When the image says that it was made (RFC 3339).
    pub created: Option<String>,
    /// When the tag came to point there, in seconds since the epoch.
    pub pushed: Option<u64>,
    /// Nanoseconds beyond that, where the registry tells them.
    pub pushed_nanos: u32,
    /// Whether the digest is pinned.
    pub pinned: bool,
    /// Labels of the configurations and annotations of the manifest.
    pub labels: BTreeMap<String, String>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What garbage collection is asked for: the query of `POST /v2/_vdkr/storage/gc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcOptions {
    /// Only say what would be removed.
    pub dry_run: bool,
    /// What was touched within so many seconds stays.
    pub grace: u64,
    /// How many earlier targets of each tag stay.
    pub history: usize,
    /// For how many seconds after their replacement.
    pub history_age: u64,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            dry_run: false,
            grace: 3600,
            history: 10,
            history_age: 7 * 86_400,
        }
    }
}

impl GcOptions {
    /// Reads a query; what is not there has its default. The error names the parameter.
    pub fn parse(query: &str) -> Result<Self, &'static str> {
        let mut options = Self::default();
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match name {
                "dry-run" => options.dry_run = flag(value).ok_or("dry-run")?,
                "grace" => options.grace = value.parse().map_err(|_| "grace")?,
                "history" => options.history = value.parse().map_err(|_| "history")?,
                "history-age" => options.history_age = value.parse().map_err(|_| "history-age")?,
                _ => {}
            }
        }
        Ok(options)
    }

    /// The query that [`GcOptions::parse`] reads.
    pub fn to_query(&self) -> String {
        format!(
            "dry-run={}&grace={}&history={}&history-age={}",
            u8::from(self.dry_run),
            self.grace,
            self.history,
            self.history_age
        )
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "true" => Some(true),
        "0" | "false" => Some(false),
        _ => None,
    }
}

/// What `fsck` is asked for: the query of `POST /v2/_vdkr/storage/fsck`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsckOptions {
    /// Only say what is wrong.
    pub dry_run: bool,
    /// Whether the registry takes manifests without all that they name: then this alone is no reason to
    /// put one aside. Not for clients to say.
    #[serde(skip)]
    pub sparse: bool,
}

impl FsckOptions {
    /// Reads a query; the error names the parameter.
    pub fn parse(query: &str) -> Result<Self, &'static str> {
        let mut options = Self::default();
        for pair in query.split('&') {
            if let Some(("dry-run", value)) = pair.split_once('=') {
                options.dry_run = flag(value).ok_or("dry-run")?;
            }
        }
        Ok(options)
    }

    /// The query that [`FsckOptions::parse`] reads.
    pub fn to_query(&self) -> String {
        format!("dry-run={}", u8::from(self.dry_run))
    }
}

/// The state of a maintenance job: the answer to its `POST`, and to a `GET` that asks how it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobState<R> {
    /// Names the run.
    pub id: String,
    /// Whether this request found the run already under way.
    #[serde(default)]
    pub joined: bool,
    /// What came of it; none while it runs.
    pub report: Option<R>,
    /// Why it ended without a report.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// What garbage collection did, or would do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GcReport {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// The grace that held, in seconds.
    pub grace: u64,
    /// Repositories looked at.
    pub repositories: usize,
    /// Manifests looked at.
    pub manifests: usize,
    /// Manifests that repositories lose.
    pub removed_manifests: usize,
    /// Blobs that repositories lose.
    pub removed_links: usize,
    /// Stored files that go from the disk.
    pub removed_blobs: usize,
    /// Bytes of those files.
    pub freed_bytes: u64,
    /// What would go if it were older: unused blobs and manifests within their grace.
    pub young: usize,
    /// Bytes of those.
    pub young_bytes: u64,
    /// Blobs and manifests that only the history of a tag keeps.
    pub history: usize,
    /// Bytes of those.
    pub history_bytes: u64,
    /// Sums by repository, of those that lose something.
    pub by_repository: Vec<GcRepository>,
    /// What goes one by one, at most [`MAX_NAMED`] entries.
    pub removed: Vec<GcItem>,
    /// Repositories that have nothing left and go.
    pub emptied: Vec<String>,
    /// What could not be understood and was left alone.
    pub findings: Vec<Finding>,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// What one repository loses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GcRepository {
    /// Its name.
    pub repository: String,
    /// Manifests.
    pub manifests: usize,
    /// Blobs, manifests not counted.
    pub blobs: usize,
    /// Bytes of both. Other repositories may share them, and then they stay on the disk.
    pub bytes: u64,
}

/// One thing that goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GcItem {
    /// The repository that loses it; none for a file that no repository has.
    pub repository: Option<String>,
    /// Its digest.
    pub digest: Digest,
    /// Bytes; 0 when its content is not there.
    pub size: u64,
    /// Why it goes.
    pub reason: String,
}

/// Something wrong in the storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The repository, where it is about one.
    pub repository: Option<String>,
    /// Tag or digest, where there is one.
    pub name: Option<String>,
    /// What is wrong, in words.
    pub problem: String,
}

/// What `fsck` found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsckReport {
    /// Whether nothing was moved.
    pub dry_run: bool,
    /// Files hashed.
    pub files: usize,
    /// Bytes hashed.
    pub bytes: u64,
    /// Repositories looked at.
    pub repositories: usize,
    /// Manifests looked at.
    pub manifests: usize,
    /// Content moved to the quarantine, or that would be.
    pub quarantined: Vec<Quarantined>,
    /// Links that hold no digest, and the like.
    pub findings: Vec<Finding>,
    /// Images that lack something, and are to be pushed again.
    pub incomplete: Vec<Incomplete>,
    /// How many there are in all; the lists above end at [`MAX_NAMED`].
    pub problems: usize,
    /// How long it took, in milliseconds.
    pub milliseconds: u64,
}

/// Content that is not what its name says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The digest that it was stored under.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// What is wrong with it.
    pub problem: String,
    /// Where it is now, relative to the storage; none in a dry run.
    pub path: Option<String>,
}

/// An image that cannot be pulled whole.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Incomplete {
    /// The repository.
    pub repository: String,
    /// The tag; none for a manifest that only its digest names.
    pub tag: Option<String>,
    /// The manifest.
    pub digest: Digest,
    /// What is missing or damaged.
    pub missing: Vec<Digest>,
}

/// What a tag pointed to: the answer of `GET /v2/<name>/_vdkr/history/<tag>`, newest first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// What it points to and pointed to.
    pub entries: Vec<HistoryEntry>,
}

/// One target of a tag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The manifest.
    pub digest: Digest,
    /// When the tag last came to point there, in seconds since the epoch.
    pub since: u64,
    /// Whether it still does.
    pub current: bool,
    /// Whether the manifest is still there.
    pub available: bool,
    /// When the tag that pointed there was deleted, in seconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<u64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn queries_name_what_is_wrong_with_them() {
        assert_eq!(GcOptions::parse(""), Ok(GcOptions::default()));
        assert_eq!(GcOptions::parse("grace=x"), Err("grace"));
        assert_eq!(GcOptions::parse("dry-run=yes"), Err("dry-run"));
        assert!(GcOptions::parse("other=1&dry-run=1").unwrap().dry_run);
        assert_eq!(FsckOptions::parse("dry-run="), Err("dry-run"));
        assert!(!FsckOptions::parse("x").unwrap().dry_run);
    }

    #[test]
    fn documents_may_lack_and_gain_fields() {
        let report: GcReport = serde_json::from_str(r#"{"freed_bytes":7,"new":[]}"#).unwrap();
        assert_eq!(report.freed_bytes, 7);
        let entry: ImageEntry = serde_json::from_str(r#"{"repository":"a"}"#).unwrap();
        assert_eq!(entry.tag, None);
    }

    proptest! {
        #[test]
        fn options_survive_their_query(
            dry_run: bool, grace: u64, history in 0_usize..1000, history_age: u64,
        ) {
            let options = GcOptions { dry_run, grace, history, history_age };
            prop_assert_eq!(GcOptions::parse(&options.to_query()), Ok(options));
            let options = FsckOptions { dry_run, ..FsckOptions::default() };
            prop_assert_eq!(FsckOptions::parse(&options.to_query()), Ok(options));
        }

        #[test]
        fn any_query_is_read_or_refused(query in ".{0,60}") {
            let _ = GcOptions::parse(&query);
            let _ = FsckOptions::parse(&query);
        }
    }
}
