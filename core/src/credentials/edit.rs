//! Changing a credential file: what this program does not know stays as it is.

use alloc::{borrow::ToOwned, format, string::String, vec::Vec};
use core::fmt;

use serde_json::{Map, Value};

use super::docker_config::{canonical, normalise, parse_docker_config};
use super::{Credential, CredentialError, MAX_FILE, Secret, helper_server};
use crate::base64;
use crate::reference::Host;

/// Most registries that are taken from a helper's list.
const MAX_LISTED: usize = 10_000;

/// Docker's `config.json` or podman's `auth.json`, for adding and removing logins.
#[derive(Clone, Default)]
pub struct CredentialFile {
    root: Map<String, Value>,
}

/// Where the file wants a registry's login to be kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the file itself, readable by who can read it.
    File,
    /// With the program `docker-credential-<name>`.
    Helper(String),
}

/// Shows no content: it may hold secrets.
impl fmt::Debug for CredentialFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialFile").finish_non_exhaustive()
    }
}

impl CredentialFile {
    /// Reads the file; no bytes at all are a new file. Fails where
    /// [`parse_docker_config`] does, so that nothing is written over a file that is not understood.
    pub fn parse(file: &[u8]) -> Result<Self, CredentialError> {
        if file.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        parse_docker_config(file)?;
        let root = serde_json::from_slice(file).map_err(|e| CredentialError::malformed(&e))?;
        Ok(Self { root })
    }

    /// Where a login to this registry belongs: its own helper, the general one, or the file.
    pub fn place(&self, host: &Host) -> Place {
        let wanted = normalise(&format!("{host}"));
        let own = self.object("credHelpers").and_then(|helpers| {
            let found = helpers.iter().find(|(key, _)| normalise(key) == wanted);
            found.and_then(|(_, helper)| helper.as_str())
        });
        let general = self.root.get("credsStore").and_then(Value::as_str);
        own.filter(|name| !name.is_empty())
            .or(general.filter(|name| !name.is_empty()))
            .map_or(Place::File, |name| Place::Helper(name.to_owned()))
    }

    /// Writes a login into the file, in the place of all earlier ones of this registry. Entries of
    /// its namespaces stay.
    pub fn set(&mut self, host: &Host, credential: &Credential) -> Result<(), CredentialError> {
        let mut entry = Map::new();
        let mut put = |key: &str, value: &str| {
            entry.insert(key.into(), Value::String(value.to_owned()));
        };
        match credential {
            Credential::Anonymous => {}
            Credential::Basic { username, password } => {
                if username.contains(':') {
                    return Err(CredentialError::ColonInUsername);
                }
                let pair = Secret::new(format!("{username}:{}", password.expose()));
                put("auth", &base64::encode(pair.expose().as_bytes()));
            }
            Credential::Bearer(token) => put("registrytoken", token.expose()),
            Credential::IdentityToken(token) => put("identitytoken", token.expose()),
        }
        self.remove(host);
        let key = normalise(&format!("{host}"));
        let key = canonical(&key).to_owned();
        // `parse` saw to it that it is an object, where it is anything.
        let auths = self.root.entry("auths").or_insert(Value::Null);
        if !auths.is_object() {
            *auths = Value::Object(Map::new());
        }
        if let Value::Object(auths) = auths {
            auths.insert(key, Value::Object(entry));
        }
        Ok(())
    }

    /// Takes this registry's entries out of the file, under whatever spelling they stand there;
    /// returns their keys. Entries of its namespaces stay.
    pub fn remove(&mut self, host: &Host) -> Vec<String> {
        let wanted = normalise(&format!("{host}"));
        self.remove_where(|key| normalise(key) == wanted)
    }

    /// Takes all entries out of the file; returns their keys.
    pub fn clear(&mut self) -> Vec<String> {
        self.remove_where(|_| true)
    }

    /// The registries that have a helper of their own, as they are written, with its name.
    pub fn helpers(&self) -> impl Iterator<Item = (&str, &str)> {
        let helpers = self.object("credHelpers").into_iter().flatten();
        helpers
            .filter_map(|(key, helper)| Some((key.as_str(), helper.as_str()?)))
            .filter(|(_, helper)| !helper.is_empty())
    }

    /// The general helper's name.
    pub fn store(&self) -> Option<&str> {
        let name = self.root.get("credsStore")?.as_str()?;
        (!name.is_empty()).then_some(name)
    }

    /// The file's new content. Fails when it grew past what is read again.
    pub fn to_text(&self) -> Result<Secret, CredentialError> {
        let mut text =
            serde_json::to_string_pretty(&self.root).map_err(|e| CredentialError::malformed(&e))?;
        text.push('\n');
        if text.len() > MAX_FILE {
            return Err(CredentialError::TooLarge { length: text.len() });
        }
        Ok(Secret::new(text))
    }

    fn object(&self, key: &str) -> Option<&Map<String, Value>> {
        self.root.get(key)?.as_object()
    }

    fn remove_where(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Some(Value::Object(auths)) = self.root.get_mut("auths") else {
            return Vec::new();
        };
        let keys: Vec<String> = auths.keys().filter(|key| wanted(key)).cloned().collect();
        for key in &keys {
            auths.remove(key);
        }
        keys
    }
}

/// What a helper's `store` reads from its standard input; `None` for what helpers cannot keep.
pub fn helper_store_request(host: &Host, credential: &Credential) -> Option<Secret> {
    let (username, secret) = match credential {
        Credential::Basic { username, password } => (username.as_str(), password),
        Credential::IdentityToken(token) => (super::docker_config::TOKEN_USERNAME, token),
        Credential::Anonymous | Credential::Bearer(_) => return None,
    };
    let request = serde_json::json!({
        "ServerURL": helper_server(host),
        "Username": username,
        "Secret": secret.expose(),
    });
    Some(Secret::new(format!("{request}")))
}

/// The registries in the answer to a helper's `list`: an object from registry to user name.
pub fn parse_helper_list(output: &[u8]) -> Result<Vec<String>, CredentialError> {
    if output.len() > MAX_FILE {
        return Err(CredentialError::HelperAnswer);
    }
    let listed: Map<String, Value> =
        serde_json::from_slice(output).map_err(|_| CredentialError::HelperAnswer)?;
    Ok(listed
        .into_iter()
        .take(MAX_LISTED)
        .map(|(key, _)| key)
        .collect())
}

#[cfg(test)]
mod tests {
    use alloc::{string::ToString, vec};

    use proptest::prelude::*;

    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.into(),
            password: Secret::new(password),
        }
    }

    fn text(file: &CredentialFile) -> String {
        file.to_text().unwrap().expose().into()
    }

    #[test]
    fn a_login_replaces_every_spelling_and_keeps_the_rest() {
        let before = r#"{"HttpHeaders": {"X": "y"}, "auths": {
            "docker.io": {"auth": "b2xkOnA="}, "https://index.docker.io/v1/": {},
            "quay.io/team": {"auth": "dGVhbTpw"}}, "psFormat": "table"}"#;
        let mut file = CredentialFile::parse(before.as_bytes()).unwrap();
        file.set(&Host::docker_hub(), &basic("new", "p:w")).unwrap();
        file.set(&host("quay.io"), &basic("host", "p")).unwrap();
        let after: Value = serde_json::from_str(&text(&file)).unwrap();
        assert_eq!(after["HttpHeaders"]["X"], "y");
        assert_eq!(after["psFormat"], "table");
        let keys: Vec<_> = after["auths"].as_object().unwrap().keys().collect();
        assert_eq!(
            keys,
            ["https://index.docker.io/v1/", "quay.io", "quay.io/team"]
        );
        let read = parse_docker_config(text(&file).as_bytes()).unwrap();
        assert_eq!(
            read.lookup(&Host::docker_hub(), ""),
            Ok(basic("new", "p:w"))
        );
        assert_eq!(
            read.lookup(&host("quay.io"), "team/x"),
            Ok(basic("team", "p"))
        );

        assert_eq!(
            file.remove(&Host::docker_hub()),
            ["https://index.docker.io/v1/"]
        );
        assert_eq!(file.remove(&Host::docker_hub()), [""; 0]);
        assert_eq!(file.clear(), ["quay.io", "quay.io/team"]);
        assert!(text(&file).contains("psFormat"));
    }

    #[test]
    fn helpers_decide_where_a_login_belongs() {
        let file = CredentialFile::parse(
            br#"{"credHelpers": {"https://a.example/": "own", "b.example": ""}, "credsStore": "desktop"}"#,
        )
        .unwrap();
        for (registry, helper) in [
            ("a.example", "own"),
            ("b.example", "desktop"),
            ("c", "desktop"),
        ] {
            assert_eq!(file.place(&host(registry)), Place::Helper(helper.into()));
        }
        assert_eq!(file.store(), Some("desktop"));
        let own: Vec<_> = file.helpers().collect();
        assert_eq!(own, [("https://a.example/", "own")]);
        let file = CredentialFile::parse(br#"{"auths": null, "credsStore": ""}"#).unwrap();
        assert_eq!(file.place(&host("a.example")), Place::File);
    }

    #[test]
    fn nothing_is_written_over_a_file_that_is_not_understood() {
        for bad in ["[]", "{", r#"{"auths": []}"#, r#"{"credsStore": "../x"}"#] {
            assert!(CredentialFile::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert!(CredentialFile::parse(&vec![b'x'; MAX_FILE + 1]).is_err());
        let mut file = CredentialFile::parse(b" \n").unwrap();
        assert_eq!(
            file.set(&host("h"), &basic("a:b", "p")),
            Err(CredentialError::ColonInUsername)
        );
        let long = "x".repeat(MAX_FILE);
        file.set(&host("h"), &basic("u", &long)).unwrap();
        assert!(file.to_text().is_err());
        assert!(!format!("{file:?}").contains("xxx"));
    }

    #[test]
    fn words_for_helpers() {
        let request = helper_store_request(&Host::docker_hub(), &basic("u", "p\"w")).unwrap();
        let request: Value = serde_json::from_str(request.expose()).unwrap();
        assert_eq!(request["ServerURL"], "https://index.docker.io/v1/");
        assert_eq!(request["Username"], "u");
        assert_eq!(request["Secret"], "p\"w");
        let token = Credential::IdentityToken(Secret::new("t"));
        let request = helper_store_request(&host("h:1"), &token).unwrap();
        assert!(request.expose().contains("<token>"));
        assert_eq!(
            helper_store_request(&host("h"), &Credential::Anonymous),
            None
        );
        assert_eq!(
            parse_helper_list(br#"{"a.example":"u","b":"v"}"#),
            Ok(vec!["a.example".to_string(), "b".to_string()])
        );
        assert!(parse_helper_list(b"[]").is_err());
    }

    proptest! {
        #[test]
        fn what_is_set_is_found(user in "[a-zé]{1,8}", password in "[ -~é]{1,20}", other in "[a-z]{1,8}\\.example(/[a-z]{1,4})?") {
            let before = format!(r#"{{"auths":{{"{other}":{{"auth":"b3RoZXI6cA=="}}}},"x":[1,{{"y":null}}]}}"#);
            let mut file = CredentialFile::parse(before.as_bytes()).unwrap();
            let registry = host("registry.example:5000");
            file.set(&registry, &basic(&user, &password)).unwrap();
            let read = parse_docker_config(text(&file).as_bytes()).unwrap();
            prop_assert_eq!(read.lookup(&registry, "a/b"), Ok(basic(&user, &password)));
            file.remove(&registry);
            let after: Value = serde_json::from_str(&text(&file)).unwrap();
            prop_assert_eq!(after, serde_json::from_str::<Value>(&before).unwrap());
        }

        #[test]
        fn never_panics(raw in "[\\[\\]{}:,\"a-c/. ]{0,60}") {
            if let Ok(mut file) = CredentialFile::parse(raw.as_bytes()) {
                let _ = file.set(&host("a"), &basic("u", "p"));
                let _ = file.to_text();
                file.clear();
            }
            let _ = parse_helper_list(raw.as_bytes());
        }
    }
}
