//! What `--volumes-from` means.

use alloc::{borrow::ToOwned, string::String};

/// The mounts of another container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumesFrom {
    /// The container, by its name or the start of its id.
    pub container: String,
    /// Whether they may only be read, however the other one has them.
    pub read_only: bool,
}

/// The option cannot be honoured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not of the form CONTAINER[:ro|:rw]")]
pub struct VolumesFromError(String);

/// Reads `CONTAINER[:MODE]`. The modes `z` and `Z`, which change labels that nothing has here, are
/// taken as docker takes them.
pub fn parse_volumes_from(text: &str) -> Result<VolumesFrom, VolumesFromError> {
    let wrong = || VolumesFromError(text.to_owned());
    let (container, modes) = match text.split_once(':') {
        Some((container, modes)) => (container, modes),
        None => (text, "rw"),
    };
    let mut read_only = None;
    for mode in modes.split(',') {
        match mode {
            "ro" | "rw" if read_only.is_none() => read_only = Some(mode == "ro"),
            "z" | "Z" => {}
            _ => return Err(wrong()),
        }
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    if container.is_empty() || !container.bytes().all(legal) {
        return Err(wrong());
    }
    Ok(VolumesFrom {
        container: container.to_owned(),
        read_only: read_only.unwrap_or(false),
    })
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString as _};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn containers_and_modes() {
        for (text, container, read_only) in [
            ("web", "web", false),
            ("web:ro", "web", true),
            ("0123abcd:rw", "0123abcd", false),
            ("web:z,ro", "web", true),
            ("web:Z", "web", false),
        ] {
            let found = parse_volumes_from(text).unwrap();
            assert_eq!(
                (found.container.as_str(), found.read_only),
                (container, read_only)
            );
        }
        for text in [
            "",
            ":ro",
            "web:",
            "web:no",
            "web:ro,rw",
            "a b",
            "a/b",
            "web:ro:rw",
            "é",
        ] {
            let error = parse_volumes_from(text).unwrap_err();
            assert!(error.to_string().contains("CONTAINER[:ro|:rw]"), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_says_what_was_written(
            name in "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}",
            read_only: bool,
        ) {
            let mode = if read_only { "ro" } else { "rw" };
            let found = parse_volumes_from(&format!("{name}:{mode}")).unwrap();
            prop_assert_eq!(found, VolumesFrom { container: name, read_only });
        }

        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            let _ = parse_volumes_from(&text);
        }
    }
}
