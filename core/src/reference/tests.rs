use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;

const SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn sha512() -> String {
    Digest::of(crate::digest::Algorithm::Sha512, b"").to_string()
}
/// Written, host, repository, tag, digest, familiar form.
type Legal = (
    String,
    String,
    String,
    Option<String>,
    Option<String>,
    String,
);

/// Rows of the table that the tests of the npm package read as well.
#[derive(serde::Deserialize)]
struct Table {
    legal: Vec<Legal>,
    illegal: Vec<(String, usize, String)>,
}

fn table() -> Table {
    serde_json::from_str(include_str!("../../tables/references.json")).unwrap()
}

#[test]
fn normal_forms() {
    for (text, host, repository, tag, digest, familiar) in table().legal {
        let reference = Reference::parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(reference.host().to_string(), host, "{text}");
        assert_eq!(reference.repository(), repository, "{text}");
        assert_eq!(reference.tag(), tag.as_deref(), "{text}");
        assert_eq!(
            reference.digest().map(Digest::as_str),
            digest.as_deref(),
            "{text}"
        );
        assert_eq!(reference.familiar(), familiar, "{text}");
        let tag = tag.map(|tag| format!(":{tag}")).unwrap_or_default();
        let digest = digest
            .map(|digest| format!("@{digest}"))
            .unwrap_or_default();
        assert_eq!(
            reference.to_string(),
            format!("{host}/{repository}{tag}{digest}"),
            "{text}"
        );
    }
}
#[test]
fn errors_say_where_and_why() {
    for (text, offset, rule) in table().illegal {
        let error = Reference::parse(&text).expect_err(&text);
        assert_eq!(
            (error.offset, error.rule.name()),
            (offset, rule.as_str()),
            "{text:?}"
        );
    }
    assert_eq!(
        Reference::parse("h:0/a").unwrap_err().to_string(),
        "a port is a number from 1 to 65535 (at byte 2)"
    );
}

#[test]
fn image_ids() {
    for id in ["0123456789ab", "deadbeefcafe", &"f".repeat(64), SHA256] {
        assert!(is_image_id(id), "{id}");
    }
    for name in [
        "",
        "alpine",
        "deadbeef",
        "0123456789a",
        "0123456789AB",
        "0123456789ag",
        "deadbeefcafe:1",
        &"f".repeat(65),
        "sha256:e3b0c44298fc",
        &sha512(),
    ] {
        assert!(!is_image_id(name), "{name}");
    }
}

#[test]
fn selector_and_changes() {
    let alpine = Reference::parse("alpine").unwrap();
    assert_eq!(alpine.selector(), Selector::Tag("latest"));
    assert_eq!(alpine.tag_or_latest(), "latest");
    assert_eq!(
        alpine.or_latest().to_string(),
        "docker.io/library/alpine:latest"
    );
    assert!(!alpine.has_explicit_host());
    let tagged = alpine.with_tag("3").unwrap();
    assert_eq!(tagged.selector().as_str(), "3");
    assert_eq!(tagged.or_latest(), tagged);
    let digest = Digest::sha256(b"");
    let pinned = tagged.with_digest(digest.clone());
    assert_eq!(pinned.selector(), Selector::Digest(&digest));
    assert_eq!(
        pinned.without_tag().to_string(),
        format!("docker.io/library/alpine@{SHA256}")
    );
    assert_eq!(pinned.without_digest(), tagged);
    assert_eq!(alpine.with_tag("a b").unwrap_err().offset, 1);
    // How the host came in is no part of what the reference names.
    assert_eq!(
        alpine,
        Reference::parse("docker.io/library/alpine").unwrap()
    );
}

#[test]
fn put_together() {
    let host = |text| Host::parse(text).unwrap();
    let made = Reference::from_parts(host("docker.io"), "alpine", Some("3"), None).unwrap();
    assert_eq!(made.to_string(), "docker.io/library/alpine:3");
    let made = Reference::from_parts(host("h:1"), "a", None, Some(Digest::sha256(b""))).unwrap();
    assert_eq!(made.to_string(), format!("h:1/a@{SHA256}"));
    let rule = |result: Result<Reference, ReferenceError>| result.unwrap_err().rule;
    assert_eq!(
        rule(Reference::from_parts(host("registry"), "a", None, None)),
        ReferenceRule::HostAmbiguous
    );
    assert_eq!(
        rule(Reference::from_parts(host("h.x"), "a:b", None, None)),
        ReferenceRule::RepositoryCharacter
    );
    assert_eq!(
        rule(Reference::from_parts(host("h.x"), "a", Some("b@c"), None)),
        ReferenceRule::TagCharacter
    );
    assert_eq!(
        rule(Reference::from_parts(
            host("docker.io"),
            &"a".repeat(250),
            None,
            None
        )),
        ReferenceRule::RepositoryTooLong
    );
}

#[test]
fn loopback_is_the_whole_host() {
    for text in [
        "localhost",
        "LocalHost:5000",
        "127.0.0.1",
        "127.9.8.7:1",
        "[::1]",
        "[0:0::1]:5000",
        "[::ffff:7f00:1]",
    ] {
        assert!(Host::parse(text).unwrap().is_loopback(), "{text}");
    }
    for text in [
        "localhost.example.com",
        "mylocalhost",
        "128.0.0.1",
        "127.0.0.1.example.com",
        "10.0.2.2",
        "[::2]",
        "docker.io",
    ] {
        assert!(!Host::parse(text).unwrap().is_loopback(), "{text}");
    }
}

#[test]
fn checks_of_single_parts() {
    assert!(check_repository("library/alpine").is_ok());
    assert!(check_repository(&"a".repeat(255)).is_ok());
    assert_eq!(check_repository(&"a".repeat(256)).unwrap_err().offset, 255);
    assert_eq!(check_repository("a:b").unwrap_err().offset, 1);
    assert_eq!(
        check_repository("").unwrap_err().rule,
        ReferenceRule::RepositoryEmpty
    );
    assert!(check_tag("v1.2_3-x").is_ok());
    assert_eq!(check_tag("").unwrap_err().rule, ReferenceRule::TagEmpty);
    assert_eq!(check_tag("a@b").unwrap_err().offset, 1);
}

/// A legal reference, in its parts.
fn legal() -> impl Strategy<Value = String> {
    let component = "[a-z0-9]{1,4}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}";
    let host = prop_oneof![
        Just(String::new()),
        Just("docker.io/".to_string()),
        Just("index.docker.io/".to_string()),
        Just("localhost/".to_string()),
        "[a-z0-9]{1,5}:[1-9][0-9]{0,3}/",
        "[a-zA-Z0-9]([a-zA-Z0-9-]{0,5}[a-zA-Z0-9])?(\\.[a-z0-9]{1,4}){1,3}(:[1-9][0-9]{0,3})?/",
        "\\[(::1|fe80::[0-9a-fA-F]{1,4}|[0-9a-f]{1,4}(:[0-9a-f]{1,4}){7})\\](:[1-9][0-9]{0,3})?/",
    ];
    let tag = prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"];
    let digest = prop_oneof![
        Just(String::new()),
        any::<[u8; 4]>().prop_map(|bytes| format!("@{}", Digest::sha256(&bytes))),
        any::<[u8; 4]>()
            .prop_map(|bytes| format!("@{}", Digest::of(crate::digest::Algorithm::Sha512, &bytes))),
    ];
    (host, prop::collection::vec(component, 1..4), tag, digest).prop_map(
        |(host, mut path, tag, digest)| {
            if host.is_empty() && path.len() > 1 {
                // With a dot the first part would be a host.
                path[0] = path[0].replace('.', "-");
            }
            format!("{host}{}{tag}{digest}", path.join("/"))
        },
    )
}

/// Texts near the grammar, so that the parser gets past the first byte.
fn nearly() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop_oneof![
            Just("a".to_string()),
            Just("Z".to_string()),
            Just("é".to_string()),
            Just("localhost".to_string()),
            Just("sha256:".to_string()),
            "[.:/@_\\[\\]-]",
            "[0-9]{1,5}",
        ],
        0..12,
    )
    .prop_map(|parts| parts.concat())
}

/// What parses round-trips; what does not, points at a byte that the rule is about.
fn check_offset(text: &str) -> Result<(), TestCaseError> {
    match Reference::parse(text) {
        Ok(reference) => {
            prop_assert_eq!(
                &Reference::parse(&reference.to_string()).unwrap(),
                &reference
            );
            prop_assert_eq!(
                &Reference::parse(&reference.familiar()).unwrap(),
                &reference
            );
        }
        Err(error) => {
            prop_assert!(text.is_char_boundary(error.offset), "{:?}", error);
            let byte = text.as_bytes().get(error.offset).copied();
            match error.rule {
                ReferenceRule::RepositoryUpperCase => {
                    prop_assert!(byte.is_some_and(|byte| byte.is_ascii_uppercase()));
                }
                ReferenceRule::RepositoryCharacter => {
                    prop_assert!(byte.is_some_and(|byte| !byte.is_ascii_alphanumeric()));
                }
                ReferenceRule::RepositorySeparator => {
                    prop_assert!(byte.is_some_and(|byte| b"._-".contains(&byte)));
                }
                ReferenceRule::RepositoryEmpty => {
                    prop_assert!(byte.is_none_or(|byte| b"/:@".contains(&byte)));
                }
                ReferenceRule::TagCharacter | ReferenceRule::HostCharacter => {
                    prop_assert!(
                        byte.is_some_and(|byte| !byte.is_ascii_alphanumeric())
                            || text.as_bytes()[error.offset - 1] == b']'
                    );
                }
                ReferenceRule::HostPart => {
                    prop_assert!(byte.is_some_and(|byte| b".-".contains(&byte)));
                }
                ReferenceRule::TagStart => {
                    prop_assert!(byte.is_some_and(|byte| b".-".contains(&byte)));
                }
                ReferenceRule::TagEmpty => prop_assert!(matches!(byte, None | Some(b'@'))),
                _ => {}
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_text(text in ".{0,80}") {
        check_offset(&text)?;
        let _ = Host::parse(&text);
        let _ = check_repository(&text);
        let _ = check_tag(&text);
        let _ = is_image_id(&text);
    }

    #[test]
    fn any_nearly_legal_text(text in nearly()) {
        check_offset(&text)?;
    }

    #[test]
    fn legal_texts_round_trip(text in legal()) {
        let reference = match Reference::parse(&text) {
            Ok(reference) => reference,
            Err(error) => return Err(TestCaseError::fail(format!("{text}: {error}"))),
        };
        prop_assert_eq!(&Reference::parse(&reference.to_string()).unwrap(), &reference);
        prop_assert_eq!(&Reference::parse(&reference.familiar()).unwrap(), &reference);
        let again = Reference::from_parts(
            reference.host().clone(),
            reference.repository(),
            reference.tag(),
            reference.digest().cloned(),
        ).unwrap();
        prop_assert_eq!(&again, &reference);
        prop_assert_eq!(Host::parse(&reference.host().to_string()).unwrap(), reference.host().clone());
    }

    /// One wrong byte in a legal repository is found where it stands.
    #[test]
    fn a_wrong_byte_is_found(text in "[a-z]{1,5}(/[a-z]{1,5}){0,3}", wrong in "[ A-Z!é%$]", at in 0usize..30) {
        let at = at.min(text.len());
        let bytes: Vec<&str> = [&text[..at], &wrong, &text[at..]].to_vec();
        let error = check_repository(&bytes.concat()).unwrap_err();
        prop_assert_eq!(error.offset, at);
    }
}
