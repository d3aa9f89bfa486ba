//! Secrets, and the files that hold credentials for registries.
//!
//! Nothing here repeats a secret: not in an error, not in a debug output.

mod credsfile;
mod docker_config;
mod edit;
pub mod htpasswd;
mod secret;

use alloc::{format, string::String};

pub use credsfile::parse_credsfile;
pub use docker_config::{DockerConfig, Step, StepSource, parse_docker_config, parse_helper_answer};
pub use edit::{CredentialFile, Place, helper_store_request, parse_helper_list};
pub use secret::Secret;

use crate::base64;
use crate::reference::Host;

/// Longest file of credentials in bytes.
pub const MAX_FILE: usize = 1024 * 1024;
/// Longest `Authorization: Basic` header that is read, in bytes.
const MAX_BASIC_HEADER: usize = 2048;

/// What a registry or its token server is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// Nothing.
    #[default]
    Anonymous,
    /// User name and password.
    Basic {
        /// The name; a legal one has no colon.
        username: String,
        /// The password.
        password: Secret,
    },
    /// A token that is sent to the registry as it is.
    Bearer(Secret),
    /// A refresh token, for the registry's token server only.
    IdentityToken(Secret),
}

impl Credential {
    /// Reads `user:password`; the password may hold colons.
    pub fn from_pair(pair: &str) -> Result<Self, CredentialError> {
        let (username, password) = pair.split_once(':').ok_or(CredentialError::Pair)?;
        if username.is_empty() {
            return Err(CredentialError::Pair);
        }
        Ok(Self::Basic {
            username: username.into(),
            password: Secret::new(password),
        })
    }

    /// The value of an `Authorization` header that carries this credential to its registry; an
    /// identity token has none.
    pub fn authorization(&self) -> Option<Secret> {
        match self {
            Self::Anonymous | Self::IdentityToken(_) => None,
            Self::Basic { username, password } => {
                let pair = Secret::new(format!("{username}:{}", password.expose()));
                let encoded = base64::encode(pair.expose().as_bytes());
                Some(Secret::new(format!("Basic {encoded}")))
            }
            Self::Bearer(token) => Some(Secret::new(format!("Bearer {}", token.expose()))),
        }
    }

    /// Reads the value of an `Authorization` header of the scheme Basic (RFC 7617). `None` for
    /// other schemes and for what is malformed.
    pub fn from_basic_header(value: &[u8]) -> Option<Self> {
        if value.len() > MAX_BASIC_HEADER {
            return None;
        }
        let space = value.iter().position(|byte| *byte == b' ')?;
        let (scheme, rest) = value.split_at(space);
        if !scheme.eq_ignore_ascii_case(b"basic") {
            return None;
        }
        let pair = base64::decode(rest.trim_ascii())?;
        let pair = Secret::new(String::from_utf8(pair).ok()?);
        Self::from_pair(pair.expose()).ok()
    }

    /// What kind it is, for explanations.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Basic { .. } => "user name and password",
            Self::Bearer(_) => "bearer token",
            Self::IdentityToken(_) => "identity token",
        }
    }
}

/// The name under which credential helpers know a registry.
pub fn helper_server(host: &Host) -> String {
    if host.is_docker_hub() {
        return docker_config::DOCKER_HUB_KEY.into();
    }
    format!("{host}")
}

/// Why credentials cannot be used. Never repeats one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The file is longer than [`MAX_FILE`].
    #[error("credential file of {length} bytes is longer than the {MAX_FILE} allowed")]
    TooLarge {
        /// Its length in bytes.
        length: usize,
    },
    /// The file is not the JSON it should be.
    #[error("credential file is malformed at line {line}, column {column}: {problem}")]
    Malformed {
        /// What is wrong.
        problem: &'static str,
        /// Line, from 1; 0 when the position is not known.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// The entry that fits is useless.
    #[error("credential entry {key:?}: {problem}; log in again")]
    Entry {
        /// Key of the entry, as it is written.
        key: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A helper's name would not be the name of a program.
    #[error("credential helper for {key:?} has an illegal name")]
    HelperName {
        /// The registry that names it, or `credsStore`.
        key: String,
    },
    /// A helper's answer is not the JSON it should be.
    #[error("credential helper gave an answer that is not understood")]
    HelperAnswer,
    /// A helper said that something is wrong.
    #[error("credential helper failed: {0}")]
    HelperFailed(String),
    /// A credentials file has neither form.
    #[error(
        "credentials file must contain CONTAINER_REGISTRY_TOKEN, or CONTAINER_REGISTRY_USER and \
         CONTAINER_REGISTRY_PASSWORD"
    )]
    Incomplete,
    /// A credentials file is no text.
    #[error("credentials file is not UTF-8 text")]
    NotText,
    /// A colon ends the user name wherever it is sent.
    #[error("a user name cannot contain a colon")]
    ColonInUsername,
    /// Not `user:password`.
    #[error("credentials must have the form USER:PASSWORD")]
    Pair,
}

impl CredentialError {
    fn malformed(error: &serde_json::Error) -> Self {
        use serde_json::error::Category;
        let problem = match error.classify() {
            Category::Syntax => "invalid JSON",
            Category::Eof => "it ends too early",
            Category::Data => "a field has the wrong type",
            Category::Io => "unreadable",
        };
        Self::Malformed {
            problem,
            line: error.line(),
            column: error.column(),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pairs() {
        let basic = Credential::from_pair("yocto:a:b").unwrap();
        let password = Secret::new("a:b");
        assert_eq!(
            basic,
            Credential::Basic {
                username: "yocto".into(),
                password
            }
        );
        assert!(Credential::from_pair("yocto:").is_ok());
        for bad in ["", "yocto", ":x"] {
            assert_eq!(Credential::from_pair(bad), Err(CredentialError::Pair));
        }
    }

    #[test]
    fn authorization_headers() {
        let header = |credential: &Credential| {
            credential
                .authorization()
                .map(|secret| String::from(secret.expose()))
        };
        // RFC 7617, section 2.
        let aladdin = Credential::from_pair("Aladdin:open sesame").unwrap();
        assert_eq!(
            header(&aladdin).as_deref(),
            Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==")
        );
        let bearer = Credential::Bearer(Secret::new("t"));
        assert_eq!(header(&bearer).as_deref(), Some("Bearer t"));
        assert_eq!(header(&Credential::IdentityToken(Secret::new("t"))), None);
        assert_eq!(header(&Credential::Anonymous), None);
    }

    #[test]
    fn basic_headers_are_read_as_they_are_written() {
        let read = |text: &str| Credential::from_basic_header(text.as_bytes());
        for pair in ["Aladdin:open sesame", "u:", "u:a:b", "ü:ß"] {
            let credential = Credential::from_pair(pair).unwrap();
            let header = credential.authorization().unwrap();
            assert_eq!(read(header.expose()), Some(credential));
        }
        let aladdin = "QWxhZGRpbjpvcGVuIHNlc2FtZQ==";
        assert!(read(&format!("bASIC   {aladdin} ")).is_some());
        for bad in [
            "",
            "Basic",
            "Basic ",
            aladdin,
            "Bearer QWxhZGRpbjpvcGVuIHNlc2FtZQ==",
            "Basic QWxhZGRpbg==",
            "Basic OnBhc3M=",
            "Basic /w==",
            "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
        let long = Credential::from_pair(&format!("u:{}", "p".repeat(4000))).unwrap();
        assert_eq!(read(long.authorization().unwrap().expose()), None);
    }

    #[test]
    fn debug_output_has_no_secret() {
        for credential in [
            Credential::from_pair("u:hunter2").unwrap(),
            Credential::Bearer(Secret::new("hunter2")),
            Credential::IdentityToken(Secret::new("hunter2")),
        ] {
            assert!(!format!("{credential:?}").contains("hunter2"));
        }
    }

    #[test]
    fn helpers_know_docker_hub_by_its_old_name() {
        let server = |host| helper_server(&Host::parse(host).unwrap());
        assert_eq!(server("docker.io"), "https://index.docker.io/v1/");
        assert_eq!(server("localhost:5000"), "localhost:5000");
    }

    proptest! {
        #[test]
        fn any_pair_gives_an_answer(text in "[a-c:é ]{0,9}|\\PC{0,30}") {
            match Credential::from_pair(&text) {
                Ok(Credential::Basic { username, password }) => {
                    prop_assert!(!username.is_empty() && !username.contains(':'));
                    prop_assert_eq!(format!("{username}:{}", password.expose()), text);
                }
                Ok(other) => prop_assert!(false, "{:?}", other),
                Err(error) => {
                    prop_assert_eq!(error, CredentialError::Pair);
                    prop_assert!(text.starts_with(':') || !text.contains(':'));
                }
            }
        }

        #[test]
        fn written_headers_are_read(
            username in "[^:]{1,20}", password in "\\PC{0,30}|p{1500,1530}",
            scheme in "[Bb][Aa][Ss][Ii][Cc]", before in " {1,3}", after in " {0,3}",
        ) {
            let credential = Credential::Basic { username, password: Secret::new(password) };
            let header = credential.authorization().unwrap();
            let encoded = header.expose().strip_prefix("Basic ").unwrap();
            let sent = format!("{scheme}{before}{encoded}{after}");
            let fits = sent.len() <= MAX_BASIC_HEADER;
            prop_assert_eq!(Credential::from_basic_header(sent.as_bytes()), fits.then_some(credential));
        }

        #[test]
        fn any_header_gives_an_answer(
            bytes in prop::collection::vec(any::<u8>(), 0..60), basic: bool, encoded: bool,
        ) {
            let mut value = Vec::new();
            if basic {
                value.extend_from_slice(b"Basic ");
            }
            match encoded {
                true => value.extend_from_slice(base64::encode(&bytes).as_bytes()),
                false => value.extend_from_slice(&bytes),
            }
            let read = Credential::from_basic_header(&value);
            if basic && encoded {
                let text = String::from_utf8(bytes).ok();
                prop_assert_eq!(read, text.and_then(|text| Credential::from_pair(&text).ok()));
            } else if let Some(read) = read {
                prop_assert!(matches!(read, Credential::Basic { .. }), "{:?}", read);
                prop_assert!(value.to_ascii_lowercase().starts_with(b"basic "));
            }
        }
    }
}
