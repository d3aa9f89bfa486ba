//! Credentials of a target: docker's `config.json`, which podman reads too, and the `auth.json` that
//! CRI-O and podman can be pointed to (containers-auth.json(5)).

use alloc::borrow::ToOwned as _;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use serde_json::{Map, Value};

use super::{Emission, EmitError, Present, Profile, Target};
use crate::json_text::{self, Step};
use crate::loopback;

/// Where the packages of OpenEmbedded put the credentials of containers/image.
pub const CONTAINERS: &str = "/etc/containers/auth.json";

/// Docker's file in root's home directory.
pub fn docker_path(home: &str) -> String {
    format!("{}/.docker/config.json", home.trim_end_matches('/'))
}

/// What is stored for one registry. Secrets are not shown by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Login(Map<String, Value>);

impl Login {
    /// User and password.
    pub fn basic(user: &str, password: &str) -> Self {
        let pair = crate::base64::encode(format!("{user}:{password}").as_bytes());
        Self(Map::from_iter([("auth".to_owned(), Value::from(pair))]))
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Login(***)")
    }
}

/// Credentials by the key that a credential file has for them: a host, or a host and a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Logins {
    entries: BTreeMap<String, Login>,
    /// Keys whose credentials are in a helper on this machine.
    pub elsewhere: Vec<String>,
}

impl Logins {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The keys.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Adds one, in the place of another with this key.
    pub fn insert(&mut self, key: &str, login: Login) {
        self.entries.insert(key.to_owned(), login);
    }

    /// With loopback hosts as the gateway.
    pub(super) fn translated(&self, gateway: Option<&str>) -> Self {
        let Some(gateway) = gateway else {
            return self.clone();
        };
        let entries = self.entries.iter();
        Self {
            entries: entries
                .map(|(key, login)| (loopback::translate_url(key, gateway), login.clone()))
                .collect(),
            elsewhere: self.elsewhere.clone(),
        }
    }
}

/// The credentials of a docker or podman credential file. Helpers stay behind: the target does not
/// have them.
pub fn parse_logins(text: &str) -> Result<Logins, EmitError> {
    let malformed = |what: &str| EmitError::Logins(what.to_owned());
    // The reader's own words may quote the file, and what it holds is secret.
    let file: Map<String, Value> =
        serde_json::from_str(text).map_err(|_| malformed("it is not a JSON object"))?;
    let mut logins = Logins::default();
    let stored = match file.get("auths") {
        Some(Value::Object(auths)) => auths.clone(),
        None | Some(Value::Null) => Map::new(),
        Some(_) => return Err(malformed("its auths are no object")),
    };
    for (key, entry) in stored {
        let Value::Object(entry) = entry else {
            return Err(malformed("an entry of its auths is no object"));
        };
        let kept: Map<_, _> = entry
            .into_iter()
            .filter(|(name, value)| {
                let known = [
                    "auth",
                    "username",
                    "password",
                    "identitytoken",
                    "registrytoken",
                ];
                known.contains(&name.as_str())
                    && value.as_str().is_some_and(|text| !text.is_empty())
            })
            .collect();
        if kept.is_empty() {
            logins.elsewhere.push(key);
        } else {
            logins.entries.insert(key, Login(kept));
        }
    }
    if let Some(Value::Object(helpers)) = file.get("credHelpers") {
        logins.elsewhere.extend(helpers.keys().cloned());
    }
    if logins.is_empty() {
        return Err(malformed(
            if logins.elsewhere.is_empty() && !file.contains_key("credsStore") {
                "it holds no credentials"
            } else {
                "its credentials are kept by a helper program, which a target does not have; \
             write them to a file, e.g. with: podman login --authfile FILE"
            },
        ));
    }
    logins.elsewhere.sort_unstable();
    logins.elsewhere.dedup();
    Ok(logins)
}

pub(super) fn emit(
    profile: Profile,
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    if target.logins.is_empty() {
        return Ok(());
    }
    let keys: Vec<_> = target.logins.keys().collect();
    emission.note(format!(
        "credentials go into the target for: {}",
        keys.join(", ")
    ));
    if !target.logins.elsewhere.is_empty() {
        emission.note(format!(
            "no credentials for {}: a helper program of this machine keeps them",
            target.logins.elsewhere.join(", ")
        ));
    }
    let mut paths = Vec::new();
    if matches!(profile, Profile::Podman | Profile::CriO) {
        paths.push(CONTAINERS.to_owned());
    }
    if profile != Profile::CriO {
        paths.push(docker_path(&target.home));
    }
    if profile == Profile::Containerd {
        emission.note(
            "nerdctl reads these credentials; the CRI plugin gets its own with each request (imagePullSecrets)"
                .to_owned(),
        );
    }
    for path in paths {
        let before = present
            .get(&path)
            .filter(|text| !text.trim().is_empty())
            .map(String::as_str);
        let text = merged(before, &target.logins).map_err(|error| match error {
            // What the file holds is secret, and the reader's words may repeat it.
            json_text::JsonTextError::Malformed(_) => EmitError::present(&path, "it is not JSON"),
            other => EmitError::json(&path)(other),
        })?;
        if let Some(before) = before {
            let store = json_text::get(before, &[Step::Key("credsStore")]);
            if matches!(store, Ok(Some(store)) if store != "\"\"" && store != "null") {
                emission.note(format!(
                    "{path} names a credsStore: docker asks that program and not this file"
                ));
            }
        }
        emission.file(profile, path, text, true);
    }
    Ok(())
}

fn merged(before: Option<&str>, logins: &Logins) -> Result<String, json_text::JsonTextError> {
    let mut text = before.unwrap_or("{\n}\n").to_owned();
    for (key, login) in &logins.entries {
        let path = [Step::Key("auths"), Step::Key(key)];
        let value = Value::Object(login.0.clone());
        let same = json_text::get(&text, &path)?
            .is_some_and(|there| serde_json::from_str::<Value>(there).is_ok_and(|v| v == value));
        if !same {
            text = json_text::set(&text, &path, &value)?;
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use alloc::collections::BTreeSet;
    use alloc::string::ToString as _;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const SECRET: &str = "hunter2";

    proptest! {
        #[test]
        fn any_text_gives_an_answer_without_its_secrets(
            before in "[\\[\\]{}:,\"a-c0 ]{0,12}", after in "[\\[\\]{}:,\"a-c0 ]{0,12}", whole: bool,
        ) {
            let text = if whole {
                format!("{{\"auths\":{{\"h\":{before}\"{SECRET}\"{after}}}}}")
            } else {
                format!("{before}{SECRET}{after}")
            };
            let shown = match parse_logins(&text) {
                // The key of an entry is not secret, but what stands for one may be.
                Ok(logins) => format!("{:?}", logins.entries.values().collect::<Vec<_>>()),
                Err(error) => format!("{error} {error:?}"),
            };
            prop_assert!(!shown.contains(SECRET), "{}", shown);
        }

        #[test]
        fn what_is_written_is_read(
            logins in prop::collection::btree_map("\\PC{1,12}", ("\\PC{0,8}", "\\PC{0,8}"), 1..5),
            before in prop::option::of("\\PC{1,6}"),
        ) {
            let mut written = Logins::default();
            for (key, (user, password)) in &logins {
                written.insert(key, Login::basic(user, password));
            }
            // Others' entries stay, and those of one key are replaced.
            let there = before.as_ref().map(|key| json!({"auths": {key: {"auth": "b2xkOm9sZA=="}}}).to_string());
            let text = merged(there.as_deref(), &written).unwrap();
            let mut read = parse_logins(&text).unwrap();
            if let Some(key) = before.filter(|key| !logins.contains_key(key)) {
                prop_assert_eq!(read.entries.remove(&key), Some(Login::basic("old", "old")));
            }
            prop_assert_eq!(read, written);
        }

        #[test]
        fn credentials_are_kept_helpers_are_told_and_the_rest_is_left(
            names in prop::collection::btree_set("[a-z.:0-9/]{1,9}", 1..6),
            kinds in prop::collection::vec(0..5_usize, 6),
            helped in prop::collection::btree_set("[A-Z]{1,4}", 0..3),
        ) {
            let mut auths = Map::new();
            let (mut kept, mut elsewhere) = (BTreeSet::new(), helped.clone());
            for (name, kind) in names.iter().zip(&kinds) {
                let (entry, known) = match kind {
                    0 => (json!({"auth": "dTpw", "email": "a@b"}), true),
                    1 => (json!({"identitytoken": "t"}), true),
                    2 => (json!({"username": "u", "password": "p"}), true),
                    3 => (json!({}), false),
                    _ => (json!({"auth": "", "email": "a@b", "password": 1}), false),
                };
                let set = if known { &mut kept } else { &mut elsewhere };
                set.insert(name.clone());
                auths.insert(name.clone(), entry);
            }
            let helpers: Map<_, _> = helped.iter().map(|key| (key.clone(), json!("pass"))).collect();
            let text = json!({"auths": auths, "credHelpers": helpers}).to_string();
            match parse_logins(&text) {
                Ok(logins) => {
                    prop_assert_eq!(logins.keys().map(str::to_owned).collect::<BTreeSet<_>>(), kept);
                    prop_assert_eq!(&logins.elsewhere, &elsewhere.into_iter().collect::<Vec<_>>());
                    let emails = logins.entries.values().filter(|login| login.0.contains_key("email"));
                    prop_assert_eq!(emails.count(), 0);
                }
                Err(error) => {
                    prop_assert!(kept.is_empty(), "{}", error);
                    // There is something to be done about those that are in a helper.
                    prop_assert!(error.to_string().contains("helper program"), "{}", error);
                }
            }
        }
    }
}
