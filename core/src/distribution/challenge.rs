//! `WWW-Authenticate` (RFC 9110 §11.6.1) and the scopes of token servers.

use alloc::{borrow::ToOwned, string::String, vec::Vec};
use core::fmt;

use super::MAX_HEADER;

/// Most challenges of one answer.
pub const MAX_CHALLENGES: usize = 16;
/// Most parameters of one challenge.
pub const MAX_PARAMETERS: usize = 32;

/// One way in which a server lets itself be asked again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Challenge {
    /// The scheme in lower case: `basic`, `bearer`, …
    pub scheme: String,
    /// What stands alone behind the scheme (`Negotiate abc==`).
    pub token: Option<String>,
    /// Parameters with names in lower case, unquoted, each once.
    parameters: Vec<(String, String)>,
}

/// Why a header is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChallengeError {
    /// It is longer than [`MAX_HEADER`], or has too many challenges or parameters.
    #[error("authentication challenge is too long")]
    TooLong,
    /// It does not follow the grammar.
    #[error("authentication challenge is malformed at byte {offset}")]
    Malformed {
        /// Offset in the header's value.
        offset: usize,
    },
    /// A parameter stands twice; two programs could believe two different ones.
    #[error("authentication challenge has {0:?} twice")]
    Repeated(String),
}

impl Challenge {
    /// Whether the server wants a user name and a password.
    pub fn is_basic(&self) -> bool {
        self.scheme == "basic"
    }

    /// Whether the server wants a token.
    pub fn is_bearer(&self) -> bool {
        self.scheme == "bearer"
    }

    /// A parameter by its lower-case name: `realm`, `service`, `scope`, `error`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Reads the value of one `WWW-Authenticate` header, which may hold several challenges.
pub fn parse_challenges(header: &str) -> Result<Vec<Challenge>, ChallengeError> {
    if header.len() > MAX_HEADER {
        return Err(ChallengeError::TooLong);
    }
    let mut input = Input {
        text: header,
        at: 0,
    };
    let mut challenges: Vec<Challenge> = Vec::new();
    loop {
        input.skip(|byte| matches!(byte, b' ' | b'\t' | b','));
        if input.peek().is_none() {
            return Ok(challenges);
        }
        let word = input.token()?;
        input.skip_space();
        // `name=` continues the challenge before it; anything else begins a new one.
        match challenges.last_mut() {
            Some(challenge) if input.peek() == Some(b'=') => {
                input.at += 1;
                input.skip_space();
                let value = input.value()?;
                challenge.add(word, value)?;
                input.end_of_item()?;
            }
            _ => {
                if challenges.len() == MAX_CHALLENGES {
                    return Err(ChallengeError::TooLong);
                }
                let mut challenge = Challenge {
                    scheme: word.to_ascii_lowercase(),
                    token: None,
                    parameters: Vec::new(),
                };
                if let Some(token) = input.token68() {
                    challenge.token = Some(token.to_owned());
                }
                challenges.push(challenge);
            }
        }
    }
}

impl Challenge {
    fn add(&mut self, name: &str, value: String) -> Result<(), ChallengeError> {
        let name = name.to_ascii_lowercase();
        if self.parameter(&name).is_some() {
            return Err(ChallengeError::Repeated(name));
        }
        if self.parameters.len() == MAX_PARAMETERS {
            return Err(ChallengeError::TooLong);
        }
        self.parameters.push((name, value));
        Ok(())
    }
}

/// A header's value and how far it is read.
pub(super) struct Input<'a> {
    pub(super) text: &'a str,
    pub(super) at: usize,
}

impl<'a> Input<'a> {
    pub(super) fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn malformed(&self) -> ChallengeError {
        ChallengeError::Malformed { offset: self.at }
    }

    /// Moves over ASCII bytes.
    pub(super) fn skip(&mut self, wanted: impl Fn(u8) -> bool) {
        while self
            .peek()
            .is_some_and(|byte| byte.is_ascii() && wanted(byte))
        {
            self.at += 1;
        }
    }

    pub(super) fn skip_space(&mut self) {
        self.skip(|byte| matches!(byte, b' ' | b'\t'));
    }

    /// Takes the longest run of ASCII bytes that are wanted.
    pub(super) fn run(&mut self, wanted: impl Fn(u8) -> bool) -> &'a str {
        let start = self.at;
        self.skip(wanted);
        self.text.get(start..self.at).unwrap_or_default()
    }

    fn token(&mut self) -> Result<&'a str, ChallengeError> {
        let token = self.run(is_token);
        if token.is_empty() {
            Err(self.malformed())
        } else {
            Ok(token)
        }
    }

    /// A quoted string, or a word; a word may be a bare URL, as some servers write their realm.
    fn value(&mut self) -> Result<String, ChallengeError> {
        if self.peek() == Some(b'"') {
            return self.quoted().ok_or_else(|| self.malformed());
        }
        Ok(self
            .run(|byte| byte.is_ascii_graphic() && !b",\"\\".contains(&byte))
            .to_owned())
    }

    /// A quoted string, without its quotes and backslashes. `None` at the end of the input or at a
    /// control character.
    pub(super) fn quoted(&mut self) -> Option<String> {
        let rest = self.text.get(self.at + 1..)?;
        let mut value = String::new();
        let mut letters = rest.char_indices();
        while let Some((index, letter)) = letters.next() {
            let letter = match letter {
                '"' => {
                    self.at += 1 + index + 1;
                    return Some(value);
                }
                '\\' => letters.next()?.1,
                other => other,
            };
            if letter.is_control() && letter != '\t' {
                return None;
            }
            value.push(letter);
        }
        None
    }

    /// A lone token behind a scheme, which a parameter's name or the next scheme is not.
    fn token68(&mut self) -> Option<&'a str> {
        let start = self.at;
        self.run(|byte| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte));
        let word = self.at;
        self.skip(|byte| byte == b'=');
        let end = self.at;
        self.skip_space();
        let lone = matches!(self.peek(), None | Some(b','));
        if lone && word > start {
            return self.text.get(start..end);
        }
        self.at = start;
        None
    }

    fn end_of_item(&mut self) -> Result<(), ChallengeError> {
        self.skip_space();
        if matches!(self.peek(), None | Some(b',')) {
            Ok(())
        } else {
            Err(self.malformed())
        }
    }
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// What a token is good for: `repository:library/alpine:pull,push`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Scope {
    /// `repository`, `registry`.
    pub kind: String,
    /// Name of the resource; may hold colons.
    pub name: String,
    /// Actions, sorted, each once.
    pub actions: Vec<String>,
}

impl Scope {
    /// Rights on a repository.
    pub fn repository(name: &str, actions: &[&str]) -> Self {
        Self::new("repository", name, actions.iter().copied())
    }

    /// The right to list repositories.
    pub fn catalog() -> Self {
        Self::new("registry", "catalog", ["*"].into_iter())
    }

    fn new<'a>(kind: &str, name: &str, actions: impl Iterator<Item = &'a str>) -> Self {
        let mut actions: Vec<String> = actions
            .filter(|action| !action.is_empty())
            .map(ToOwned::to_owned)
            .collect();
        actions.sort_unstable();
        actions.dedup();
        Self {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions,
        }
    }

    /// Reads one scope. `None` without the two colons, or without a name.
    pub fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        if kind.is_empty() || name.is_empty() {
            return None;
        }
        Some(Self::new(kind, name, actions.split(',')))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:", self.kind, self.name)?;
        for (index, action) in self.actions.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{action}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString};
    use core::fmt::Write;

    use proptest::prelude::*;

    use super::*;

    /// Scheme, token and parameters as one line.
    fn shown(header: &str) -> Result<Vec<String>, ChallengeError> {
        Ok(parse_challenges(header)?
            .iter()
            .map(|challenge| {
                let mut line = challenge.scheme.clone();
                if let Some(token) = &challenge.token {
                    write!(line, " <{token}>").unwrap();
                }
                for (name, value) in &challenge.parameters {
                    write!(line, " {name}={value}").unwrap();
                }
                line
            })
            .collect())
    }

    #[test]
    fn challenges_as_registries_send_them() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull,push""#,
                &[
                    "bearer realm=https://auth.docker.io/token service=registry.docker.io \
                   scope=repository:library/alpine:pull,push",
                ][..],
            ),
            (r#"Basic realm="a registry""#, &["basic realm=a registry"]),
            (
                r#"Basic realm="x", Bearer realm="y",service="z""#,
                &["basic realm=x", "bearer realm=y service=z"],
            ),
            (
                r#"Negotiate, Negotiate abc/+==,NTLM , BASIC Realm = "a\"\\b" ,, charset=UTF-8"#,
                &[
                    "negotiate",
                    "negotiate <abc/+==>",
                    "ntlm",
                    r#"basic realm=a"\b charset=UTF-8"#,
                ],
            ),
            (
                "Bearer realm=https://h:5000/token,service=s",
                &["bearer realm=https://h:5000/token service=s"],
            ),
            ("Basic", &["basic"]),
            ("Basic realm=\"\"", &["basic realm="]),
            ("", &[]),
            (" , ,", &[]),
        ] {
            assert_eq!(
                shown(header).as_deref(),
                Ok(&expected.iter().map(ToString::to_string).collect::<Vec<_>>()[..]),
                "{header}"
            );
        }
        let bearer =
            &parse_challenges(r#"bearer REALM="x",error="insufficient_scope""#).unwrap()[0];
        assert!(bearer.is_bearer() && !bearer.is_basic());
        assert_eq!(bearer.parameter("realm"), Some("x"));
        assert_eq!(bearer.parameter("error"), Some("insufficient_scope"));
        assert_eq!(bearer.parameter("scope"), None);
    }

    #[test]
    fn malformed_challenges_are_errors() {
        for bad in [
            "=x",
            "\"x\"",
            "Bearer realm=\"x",
            "Bearer realm=\"x\\",
            "Bearer realm=\"x\"y",
            "Bearer realm=\"a\nb\"",
            "Bearer realm=x y",
            "Bearer (x)",
            "é",
            "realm=x",
        ] {
            assert!(
                matches!(parse_challenges(bad), Err(ChallengeError::Malformed { .. })),
                "{bad}: {:?}",
                parse_challenges(bad)
            );
        }
        assert_eq!(
            parse_challenges(r#"Bearer realm="https://a",Realm="https://b""#),
            Err(ChallengeError::Repeated("realm".into()))
        );
    }

    #[test]
    fn caps() {
        let many = "Basic,".repeat(MAX_CHALLENGES);
        assert_eq!(parse_challenges(&many).unwrap().len(), MAX_CHALLENGES);
        assert_eq!(
            parse_challenges(&format!("{many}Basic")),
            Err(ChallengeError::TooLong)
        );
        let mut parameters = String::new();
        for n in 0..=MAX_PARAMETERS {
            write!(parameters, "p{n}=x,").unwrap();
        }
        assert_eq!(
            parse_challenges(&format!("Basic {parameters}")),
            Err(ChallengeError::TooLong)
        );
        let long = format!("Basic realm=\"{}\"", "x".repeat(MAX_HEADER));
        assert_eq!(parse_challenges(&long), Err(ChallengeError::TooLong));
    }

    #[test]
    fn scopes() {
        let scope = Scope::repository("library/alpine", &["push", "pull", "push"]);
        assert_eq!(scope.to_string(), "repository:library/alpine:pull,push");
        assert_eq!(
            Scope::parse("repository:library/alpine:push,pull"),
            Some(scope)
        );
        let port = Scope::parse("repository:localhost:5000/x:pull").unwrap();
        assert_eq!(port.name, "localhost:5000/x");
        assert_eq!(Scope::catalog().to_string(), "registry:catalog:*");
        for bad in [
            "",
            "repository",
            "repository:x",
            ":x:pull",
            "repository::pull",
        ] {
            assert_eq!(Scope::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn quoted_values_come_back(
            values in proptest::collection::vec("[ -~é\t]{0,20}", 1..5),
            space in "[ \t]{0,2}",
        ) {
            let mut header = String::from("Bearer ");
            for (index, value) in values.iter().enumerate() {
                let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
                write!(header, "p{index}{space}={space}\"{quoted}\"{space},{space}").unwrap();
            }
            let challenges = parse_challenges(&header).unwrap();
            prop_assert_eq!(challenges.len(), 1);
            for (index, value) in values.iter().enumerate() {
                let name = format!("p{index}");
                prop_assert_eq!(challenges[0].parameter(&name), Some(value.as_str()));
            }
        }

        #[test]
        fn never_panics(header in "([a-zB ]{0,6}|=|\"|,|\\\\|é|.){0,30}") {
            let _ = parse_challenges(&header);
        }

        #[test]
        fn scopes_round_trip(text in "[a-z:/,*]{0,30}") {
            if let Some(scope) = Scope::parse(&text) {
                prop_assert_eq!(Scope::parse(&scope.to_string()), Some(scope));
            }
        }
    }
}
