//! Labels of an image: those that it gets by itself (OCI image specification, "Pre-Defined Annotation
//! Keys"), and writing them into a configuration.

use alloc::borrow::ToOwned as _;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

use crate::json_text::{self, JsonTextError, Step};

/// Longest name of a label, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest value of a label, in bytes.
pub const MAX_VALUE: usize = 64 * 1024;

/// Commit that the image was built from.
pub const REVISION: &str = "org.opencontainers.image.revision";
/// Branch that the image was built from.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Time of the build (RFC 3339).
pub const CREATED: &str = "org.opencontainers.image.created";
/// Version of the packaged software.
pub const VERSION: &str = "org.opencontainers.image.version";

/// The override that drops a label.
const NONE: &str = "none";

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
/// The override `none` drops its label ([`dropped_labels`]); an empty text counts as not given. Without
/// `enabled` there are none.
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
            Some(NONE) => return None,
            Some(set) => set,
            None => given(fact.as_deref())?,
        };
        Some((key.to_owned(), value.to_owned()))
    })
    .collect()
}

/// The automatic labels that shall not be there, since their override is `none`: an image that has one
/// loses it. Without `enabled` nothing is touched.
pub fn dropped_labels(enabled: bool, overrides: &LabelValues) -> Vec<&'static str> {
    [
        (REVISION, &overrides.revision),
        (REF_NAME, &overrides.ref_name),
        (CREATED, &overrides.created),
        (VERSION, &overrides.version),
    ]
    .into_iter()
    .filter(|(_, set)| enabled && given(set.as_deref()) == Some(NONE))
    .map(|(key, _)| key)
    .collect()
}

/// Why a text is no label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// There is no name before an equals sign.
    #[error("expected NAME=VALUE")]
    Form,
    /// The name has a character that breaks what reads it.
    #[error("a label's name has no blanks and no control characters")]
    Name,
    /// It is longer than [`MAX_NAME`] or [`MAX_VALUE`].
    #[error("a label has at most {MAX_NAME} bytes of name and {MAX_VALUE} of value")]
    TooLong,
}

/// Reads `NAME=VALUE`. The value may be empty and may hold more equals signs.
pub fn parse_label(text: &str) -> Result<(String, String), LabelError> {
    let (name, value) = text.split_once('=').ok_or(LabelError::Form)?;
    if name.is_empty() {
        return Err(LabelError::Form);
    }
    if name.chars().any(|c| c.is_whitespace() || c.is_control()) {
        return Err(LabelError::Name);
    }
    if name.len() > MAX_NAME || value.len() > MAX_VALUE {
        return Err(LabelError::TooLong);
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// An image configuration with these labels; of several with one name the last counts. Every other
/// byte stays. `None` when it has them already.
pub fn relabel(config: &str, labels: &[(String, String)]) -> Result<Option<String>, JsonTextError> {
    let mut text = config.to_owned();
    for (name, value) in labels {
        let path = [Step::Key("config"), Step::Key("Labels"), Step::Key(name)];
        let known = json_text::get(&text, &path)?;
        let same = known
            .and_then(|known| serde_json::from_str::<String>(known).ok())
            .is_some_and(|known| known == *value);
        if !same {
            text = json_text::set(&text, &path, &Value::from(value.as_str()))?;
        }
    }
    Ok((text != config).then_some(text))
}

/// An image configuration without these labels. Every other byte stays. `None` when it has none of them.
pub fn unlabel(config: &str, names: &[&str]) -> Result<Option<String>, JsonTextError> {
    let mut text = config.to_owned();
    for name in names {
        let path = [Step::Key("config"), Step::Key("Labels"), Step::Key(name)];
        text = json_text::remove(&text, &path)?;
    }
    Ok((text != config).then_some(text))
}

fn given(value: Option<&str>) -> Option<&str> {
    value.map(str::trim).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeMap;

    use proptest::prelude::*;

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

    fn pairs(labels: &[(&str, &str)]) -> Vec<(String, String)> {
        let owned = labels.iter().map(|(k, v)| ((*k).into(), (*v).into()));
        owned.collect()
    }

    #[test]
    fn weakness_4d_4_the_version_label_is_written_with_the_others() {
        let labels = auto_labels(true, &facts(), &LabelValues::default());
        let config =
            r#"{"architecture":"arm64","zz":1.0,"config":{"Labels":{"a":"b"},"Cmd":["x"]}}"#;
        assert_eq!(
            relabel(config, &labels[3..]).unwrap().unwrap(),
            r#"{"architecture":"arm64","zz":1.0,"config":{"Labels":{"a":"b","org.opencontainers.image.version":"1.2.3"},"Cmd":["x"]}}"#
        );
    }

    #[test]
    fn labels_are_written_once_and_where_there_were_none() {
        for config in [
            r#"{"os":"linux"}"#,
            r#"{"os":"linux","config":null}"#,
            r#"{"os":"linux","config":{"Labels":null}}"#,
        ] {
            let labels = pairs(&[("a.b/c", "old"), ("x", "\"y\""), ("a.b/c", "new")]);
            let text = relabel(config, &labels).unwrap().unwrap();
            let parsed = crate::manifest::ImageConfig::parse(text.as_bytes()).unwrap();
            assert_eq!(parsed.config.labels["a.b/c"], "new");
            assert_eq!(parsed.config.labels["x"], "\"y\"");
            assert_eq!(parsed.os, "linux");
            assert_eq!(relabel(&text, &labels[1..]).unwrap(), None);
        }
        assert!(relabel("[]", &pairs(&[("a", "b")])).is_err());
        assert!(relabel(r#"{"config":[]}"#, &pairs(&[("a", "b")])).is_err());
        assert_eq!(relabel("{}", &[]).unwrap(), None);
    }

    #[test]
    fn none_takes_a_label_out() {
        let overrides = LabelValues {
            revision: Some(" none ".into()),
            ref_name: Some("none".into()),
            created: Some(String::new()),
            version: Some("1".into()),
        };
        let dropped = dropped_labels(true, &overrides);
        assert_eq!(dropped, [REVISION, REF_NAME]);
        assert!(dropped_labels(false, &overrides).is_empty());
        assert!(dropped_labels(true, &LabelValues::default()).is_empty());
        let config = r#"{"os":"linux","config":{"Labels":{"org.opencontainers.image.revision":"a","b":"c"}},"zz":1.0}"#;
        assert_eq!(
            unlabel(config, &dropped).unwrap().unwrap(),
            r#"{"os":"linux","config":{"Labels":{"b":"c"}},"zz":1.0}"#
        );
        for config in [
            r#"{"os":"linux"}"#,
            r#"{"config":null}"#,
            r#"{"config":{"Labels":null}}"#,
        ] {
            assert_eq!(unlabel(config, &dropped).unwrap(), None, "{config}");
        }
    }

    #[test]
    fn label_arguments() {
        let good = |text| parse_label(text).unwrap();
        assert_eq!(good("a=b=c"), ("a".into(), "b=c".into()));
        assert_eq!(good("a="), ("a".into(), String::new()));
        for (text, error) in [
            ("", LabelError::Form),
            ("a", LabelError::Form),
            ("=b", LabelError::Form),
            ("a b=c", LabelError::Name),
            ("a\n=c", LabelError::Name),
        ] {
            assert_eq!(parse_label(text), Err(error), "{text}");
        }
        let long = alloc::format!("{}=x", "a".repeat(MAX_NAME + 1));
        assert_eq!(parse_label(&long), Err(LabelError::TooLong));
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

    proptest! {
        #[test]
        fn any_argument_gives_an_answer(text in "[a-c= \n\u{85}é]{0,9}|\\PC{0,30}") {
            match parse_label(&text) {
                Ok((name, value)) => {
                    prop_assert_eq!(alloc::format!("{name}={value}"), text);
                    prop_assert!(!name.is_empty() && !name.contains('='));
                    prop_assert!(!name.chars().any(|c| c.is_whitespace() || c.is_control()));
                }
                Err(LabelError::Form) => prop_assert!(text.starts_with('=') || !text.contains('=')),
                Err(LabelError::Name) => {
                    let name = text.split('=').next().unwrap();
                    prop_assert!(name.chars().any(|c| c.is_whitespace() || c.is_control()));
                }
                Err(LabelError::TooLong) => prop_assert!(false, "{} bytes", text.len()),
            }
        }

        #[test]
        fn lengths_are_bounded(name in MAX_NAME - 1..MAX_NAME + 2, value in MAX_VALUE - 1..MAX_VALUE + 2) {
            let text = alloc::format!("{}={}", "n".repeat(name), "v".repeat(value));
            prop_assert_eq!(parse_label(&text).is_ok(), name <= MAX_NAME && value <= MAX_VALUE);
        }

        #[test]
        fn written_labels_are_read_and_nothing_else_changes(
            there in prop::collection::btree_map("\\PC{0,5}", "\\PC{0,5}", 0..4),
            labels in prop::collection::vec(("[a-c\"\\\\.]{1,2}", "\\PC{0,5}"), 0..5),
            other in "\\PC{0,9}",
        ) {
            let config = serde_json::json!({
                "architecture": other, "n": [1.50, 2e3],
                "config": {"Labels": there, "Cmd": [other]},
            });
            let config = serde_json::to_string_pretty(&config).unwrap();
            let changed = relabel(&config, &labels).unwrap();
            let mut wanted: Value = serde_json::from_str(&config).unwrap();
            let mut all: BTreeMap<_, _> = there.clone();
            all.extend(labels.iter().cloned());
            prop_assert_eq!(changed.is_none(), all == there);
            wanted["config"]["Labels"] = serde_json::to_value(&all).unwrap();
            let text = changed.unwrap_or(config);
            let read: Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, wanted);
            // Each name once, though the reader above would not tell; and a second time nothing is left to do.
            let last: BTreeMap<_, _> = labels.into_iter().collect();
            let last: Vec<_> = last.into_iter().collect();
            prop_assert_eq!(relabel(&text, &last).unwrap(), None);
        }

        #[test]
        fn any_configuration_gives_an_answer(text in "[\\[\\]{}:,\"a 1]{0,20}|\\{\"config\":\\PC{0,12}\\}") {
            let label = ("n".to_owned(), "v".to_owned());
            if let Ok(Some(text)) = relabel(&text, &[label]) {
                let read: Value = serde_json::from_str(&text).unwrap();
                prop_assert_eq!(&read["config"]["Labels"]["n"], "v");
            }
        }
    }
}
