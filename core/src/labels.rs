//! The labels that an image gets by itself (OCI image specification, "Pre-Defined Annotation Keys").

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;

/// Commit that the image was built from.
pub const REVISION: &str = "org.opencontainers.image.revision";
/// Branch that the image was built from.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Time of the build (RFC 3339).
pub const CREATED: &str = "org.opencontainers.image.created";
/// Version of the packaged software.
pub const VERSION: &str = "org.opencontainers.image.version";

/// One value for each automatic label: as facts, what was found; as overrides, what the user set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelValues {
    /// Commit (`OCI_IMAGE_REVISION`).
    pub revision: Option<String>,
    /// Branch (`OCI_IMAGE_BRANCH`); as a fact, `HEAD` (detached) counts as none.
    pub ref_name: Option<String>,
    /// Time of the build, RFC 3339 in UTC (`OCI_IMAGE_BUILD_DATE`).
    pub created: Option<String>,
    /// Version (`IMAGE_VERSION`).
    pub version: Option<String>,
}

/// Whether automatic labels are wanted, from the value of `OCI_IMAGE_AUTO_LABELS`: yes, unless it is
/// `0`, `no`, `off` or `false`.
pub fn enabled(value: Option<&str>) -> bool {
    !value.is_some_and(|value| {
        ["0", "no", "off", "false"]
            .iter()
            .any(|no| value.trim().eq_ignore_ascii_case(no))
    })
}

/// The labels to write, in a fixed order: the override where there is one, else the fact.
///
/// The override `none` drops its label; an empty text counts as not given. Without `enabled` there are none.
pub fn auto_labels(
    enabled: bool,
    facts: &LabelValues,
    overrides: &LabelValues,
) -> Vec<(String, String)> {
    if !enabled {
        return Vec::new();
    }
    let branch = facts
        .ref_name
        .clone()
        .filter(|branch| branch.trim() != "HEAD");
    [
        (REVISION, &facts.revision, &overrides.revision),
        (REF_NAME, &branch, &overrides.ref_name),
        (CREATED, &facts.created, &overrides.created),
        (VERSION, &facts.version, &overrides.version),
    ]
    .into_iter()
    .filter_map(|(key, fact, set)| {
        let value = match given(set.as_deref()) {
            Some("none") => return None,
            Some(set) => set,
            None => given(fact.as_deref())?,
        };
        Some((key.to_owned(), value.to_owned()))
    })
    .collect()
}

fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> LabelValues {
        LabelValues {
            revision: Some("a1b2c3d".into()),
            ref_name: Some("main".into()),
            created: Some("2026-01-12T14:30:22Z".into()),
            version: Some("1.2.3".into()),
        }
    }

    fn shown(labels: &[(String, String)]) -> Vec<(&str, &str)> {
        labels
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect()
    }

    #[test]
    fn from_facts() {
        let labels = auto_labels(true, &facts(), &LabelValues::default());
        assert_eq!(
            shown(&labels),
            [
                ("org.opencontainers.image.revision", "a1b2c3d"),
                ("org.opencontainers.image.ref.name", "main"),
                ("org.opencontainers.image.created", "2026-01-12T14:30:22Z"),
                ("org.opencontainers.image.version", "1.2.3"),
            ]
        );
        assert!(auto_labels(true, &LabelValues::default(), &LabelValues::default()).is_empty());
    }

    #[test]
    fn overridden_one_by_one() {
        let overrides = LabelValues {
            revision: Some("release-7".into()),
            ref_name: Some("none".into()),
            created: Some(String::new()),
            version: None,
        };
        let labels = auto_labels(true, &facts(), &overrides);
        assert_eq!(
            shown(&labels),
            [
                (REVISION, "release-7"),
                (CREATED, "2026-01-12T14:30:22Z"),
                (VERSION, "1.2.3")
            ]
        );
        // An override stands alone too.
        let labels = auto_labels(true, &LabelValues::default(), &overrides);
        assert_eq!(shown(&labels), [(REVISION, "release-7")]);
    }

    #[test]
    fn detached_head_is_no_branch() {
        let detached = LabelValues {
            ref_name: Some("HEAD".into()),
            ..facts()
        };
        let labels = auto_labels(true, &detached, &LabelValues::default());
        assert!(labels.iter().all(|(key, _)| key != REF_NAME));
    }

    #[test]
    fn switched_off() {
        assert!(auto_labels(false, &facts(), &facts()).is_empty());
        for (value, expected) in [
            (None, true),
            (Some("1"), true),
            (Some(""), true),
            (Some("yes"), true),
            (Some("0"), false),
            (Some(" 0 "), false),
            (Some("False"), false),
            (Some("no"), false),
            (Some("off"), false),
        ] {
            assert_eq!(enabled(value), expected, "{value:?}");
        }
    }
}
