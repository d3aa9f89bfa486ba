use alloc::{borrow::ToOwned, collections::BTreeMap, string::String, vec::Vec};

use serde::{Deserialize, Deserializer};

use super::{Credential, CredentialError, MAX_FILE, Secret};
use crate::base64;
use crate::reference::Host;

/// The key under which docker keeps the credentials of Docker Hub.
pub(super) const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// Other names of Docker Hub in keys.
const DOCKER_HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];
/// What helpers give as the user name of an identity token.
pub(super) const TOKEN_USERNAME: &str = "<token>";
/// Longest answer of a helper, and longest name of one, in bytes.
const MAX_HELPER_ANSWER: usize = 64 * 1024;
const MAX_HELPER_NAME: usize = 64;

/// Where a credential may come from, strongest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The key that decides, as it is written in the file; `credsStore` for the general helper.
    pub key: String,
    /// What stands there.
    pub source: StepSource,
}

/// The two kinds of sources.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepSource {
    /// The file itself.
    Stored(Credential),
    /// The program `docker-credential-<name>`, asked for [`helper_server`](super::helper_server).
    Helper(String),
}

/// A credential file: docker's `config.json` or podman's `auth.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DockerConfig {
    /// By normalised key: `host` or `host/namespace`.
    auths: BTreeMap<String, Entry>,
    /// By normalised host.
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    written: String,
    /// The problem is told when the entry is needed: a broken entry of one registry does not lock
    /// the user out of the others.
    credential: Result<Credential, &'static str>,
}

#[derive(Deserialize)]
struct File {
    #[serde(default, deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Option<Login>>,
    #[serde(default, rename = "credHelpers", deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore", deserialize_with = "null_is_default")]
    creds_store: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Login {
    #[serde(deserialize_with = "null_is_default")]
    auth: Secret,
    #[serde(deserialize_with = "null_is_default")]
    username: String,
    #[serde(deserialize_with = "null_is_default")]
    password: Secret,
    #[serde(deserialize_with = "null_is_default")]
    identitytoken: Secret,
    #[serde(deserialize_with = "null_is_default")]
    registrytoken: Secret,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads docker's `config.json` or podman's `auth.json`. Other settings in it are passed over.
pub fn parse_docker_config(file: &[u8]) -> Result<DockerConfig, CredentialError> {
    if file.len() > MAX_FILE {
        return Err(CredentialError::TooLarge { length: file.len() });
    }
    // The derived reader would take an array for the object.
    if file.trim_ascii_start().first() == Some(&b'[') {
        let problem = "an array stands for the object";
        return Err(CredentialError::Malformed {
            problem,
            line: 1,
            column: 1,
        });
    }
    let file: File =
        serde_json::from_slice(file).map_err(|error| CredentialError::malformed(&error))?;
    let mut config = DockerConfig::default();
    for (written, login) in file.auths {
        let credential = login.unwrap_or_default().credential();
        let key = normalise(&written);
        // Several keys may mean one registry: what holds something wins over what does not, the
        // key that docker itself writes over the others.
        let own = written == canonical(&key);
        let better = config.auths.get(&key).is_none_or(|other| {
            let useless = |credential: &_| *credential == Ok(Credential::Anonymous);
            useless(&other.credential) || (own && !useless(&credential))
        });
        if better {
            config.auths.insert(
                key,
                Entry {
                    written,
                    credential,
                },
            );
        }
    }
    for (key, helper) in file.cred_helpers {
        check_helper(&key, &helper)?;
        if !helper.is_empty() {
            config.cred_helpers.insert(normalise(&key), helper);
        }
    }
    check_helper("credsStore", &file.creds_store)?;
    config.creds_store = Some(file.creds_store).filter(|store| !store.is_empty());
    Ok(config)
}

impl Login {
    /// What an entry holds: a registry token, an identity token, or a pair, in this order.
    fn credential(self) -> Result<Credential, &'static str> {
        if !self.registrytoken.is_empty() {
            return Ok(Credential::Bearer(self.registrytoken));
        }
        if !self.identitytoken.is_empty() {
            return Ok(Credential::IdentityToken(self.identitytoken));
        }
        if self.auth.is_empty() {
            return pair(self.username, self.password);
        }
        let decoded = base64::decode(self.auth.expose().as_bytes()).ok_or("auth is no base64")?;
        let decoded = String::from_utf8(decoded).map_err(|_| "auth does not hold text")?;
        let decoded = Secret::new(decoded);
        let (username, password) = decoded
            .expose()
            .split_once(':')
            .ok_or("auth holds no user:password")?;
        // Docker pads some passwords with zeros.
        pair(
            username.to_owned(),
            Secret::new(password.trim_matches('\0')),
        )
    }
}

fn pair(username: String, password: Secret) -> Result<Credential, &'static str> {
    match (username.as_str(), password.is_empty()) {
        ("", true) => Ok(Credential::Anonymous),
        (TOKEN_USERNAME, false) => Ok(Credential::IdentityToken(password)),
        (name, _) if name.contains(':') => Err("the user name contains a colon"),
        _ => Ok(Credential::Basic { username, password }),
    }
}

impl DockerConfig {
    /// Where the credential for a repository may come from, strongest first: the entry of the
    /// longest namespace that holds the repository, then the registry's own helper or else the
    /// general one, then the entry of the host. The first that gives a credential counts.
    ///
    /// Fails when an entry that would be used is broken. An empty `repository` asks for the host.
    pub fn steps(&self, host: &Host, repository: &str) -> Result<Vec<Step>, CredentialError> {
        let host = normalise(&alloc::format!("{host}"));
        let mut steps = Vec::new();
        let mut namespace = repository;
        while !namespace.is_empty() {
            self.stored(&alloc::format!("{host}/{namespace}"), &mut steps)?;
            namespace = namespace.rsplit_once('/').map_or("", |(parent, _)| parent);
        }
        let helper = match (self.cred_helpers.get(&host), &self.creds_store) {
            (Some(helper), _) => Some((host.as_str(), helper)),
            (None, Some(store)) => Some(("credsStore", store)),
            (None, None) => None,
        };
        if let Some((key, helper)) = helper {
            let source = StepSource::Helper(helper.clone());
            steps.push(Step {
                key: key.to_owned(),
                source,
            });
        }
        self.stored(&host, &mut steps)?;
        Ok(steps)
    }

    /// The credential that the file itself holds for a repository, without asking helpers;
    /// anonymous when there is none.
    pub fn lookup(&self, host: &Host, repository: &str) -> Result<Credential, CredentialError> {
        let stored = self
            .steps(host, repository)?
            .into_iter()
            .find_map(|step| match step.source {
                StepSource::Stored(credential) => Some(credential),
                StepSource::Helper(_) => None,
            });
        Ok(stored.unwrap_or_default())
    }

    /// The keys of the file, as they are written.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.auths.values().map(|entry| entry.written.as_str())
    }

    fn stored(&self, key: &str, steps: &mut Vec<Step>) -> Result<(), CredentialError> {
        let Some(entry) = self.auths.get(key) else {
            return Ok(());
        };
        match &entry.credential {
            Ok(Credential::Anonymous) => Ok(()),
            Ok(credential) => {
                let source = StepSource::Stored(credential.clone());
                steps.push(Step {
                    key: entry.written.clone(),
                    source,
                });
                Ok(())
            }
            Err(problem) => Err(CredentialError::Entry {
                key: entry.written.clone(),
                problem,
            }),
        }
    }
}

/// One spelling for the keys of docker (a host, or a URL whose path means nothing) and of podman
/// (a host and a namespace).
pub(super) fn normalise(key: &str) -> String {
    let stripped = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    let (host, path) = match stripped.unwrap_or(key).split_once('/') {
        Some((host, path)) => (host, path),
        None => (stripped.unwrap_or(key), ""),
    };
    let mut normal = host.to_ascii_lowercase();
    let hub = DOCKER_HUB_HOSTS.contains(&normal.as_str());
    if hub {
        normal.replace_range(.., "docker.io");
    }
    let path = path.trim_matches('/');
    let version = hub && (path == "v1" || path == "v2");
    if stripped.is_none() && !path.is_empty() && !version {
        normal.push('/');
        normal.push_str(path);
    }
    normal
}

/// The key that docker or podman writes for a normalised one.
pub(super) fn canonical(normalised: &str) -> &str {
    if normalised == "docker.io" {
        DOCKER_HUB_KEY
    } else {
        normalised
    }
}

/// A helper's name becomes part of a program's name: no path, no option.
fn check_helper(key: &str, helper: &str) -> Result<(), CredentialError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if helper.len() > MAX_HELPER_NAME || !helper.bytes().all(legal) {
        return Err(CredentialError::HelperName {
            key: key.to_owned(),
        });
    }
    Ok(())
}

#[derive(Deserialize)]
struct HelperAnswer {
    #[serde(rename = "Username", default)]
    username: String,
    #[serde(rename = "Secret", default)]
    secret: Secret,
}

/// Reads what a credential helper's `get` wrote to its standard output. `succeeded` tells its exit
/// status: helpers report on standard output what went wrong.
///
/// Anonymous when the helper has nothing for the registry.
pub fn parse_helper_answer(output: &[u8], succeeded: bool) -> Result<Credential, CredentialError> {
    let array = output.trim_ascii_start().first() == Some(&b'[');
    if array || output.len() > MAX_HELPER_ANSWER {
        return Err(CredentialError::HelperAnswer);
    }
    if !succeeded {
        let text = String::from_utf8_lossy(output);
        let line = text.trim().lines().next().unwrap_or_default();
        if line.starts_with("credentials not found") {
            return Ok(Credential::Anonymous);
        }
        let shown = line
            .chars()
            .filter(|letter| !letter.is_control())
            .take(200)
            .collect();
        return Err(CredentialError::HelperFailed(shown));
    }
    let answer: HelperAnswer =
        serde_json::from_slice(output).map_err(|_| CredentialError::HelperAnswer)?;
    pair(answer.username, answer.secret).map_err(|_| CredentialError::ColonInUsername)
}

#[cfg(test)]
mod tests {
    use alloc::{format, string::ToString, vec};

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

    fn parse(json: &str) -> DockerConfig {
        parse_docker_config(json.as_bytes()).unwrap()
    }

    /// `user of an entry` for each step, `helper:` before a helper.
    fn steps(config: &DockerConfig, registry: &str, repository: &str) -> Vec<String> {
        let steps = config.steps(&host(registry), repository).unwrap();
        steps
            .into_iter()
            .map(|step| match step.source {
                StepSource::Stored(Credential::Basic { username, .. }) => username,
                StepSource::Stored(other) => other.kind().into(),
                StepSource::Helper(helper) => format!("helper:{helper}"),
            })
            .collect()
    }

    #[test]
    fn a_file_as_docker_writes_it() {
        let config = parse(
            r#"{
                "auths": {
                    "https://index.docker.io/v1/": {"auth": "aHViOnB3", "email": "x@y"},
                    "localhost:5000": {"auth": "eW9jdG86YTpi"},
                    "azure.example": {"auth": "PHRva2VuPjp0", "identitytoken": "idt"},
                    "token.example": {"registrytoken": "rt", "auth": "aHViOnB3"},
                    "plain.example": {"username": "u", "password": "p"},
                    "padded.example": {"auth": "dTpwAAA="},
                    "empty.example": {}, "null.example": null
                },
                "HttpHeaders": {"User-Agent": "Docker-Client"}, "credHelpers": null
            }"#,
        );
        for (registry, credential) in [
            ("docker.io", basic("hub", "pw")),
            ("localhost:5000", basic("yocto", "a:b")),
            (
                "azure.example",
                Credential::IdentityToken(Secret::new("idt")),
            ),
            ("token.example", Credential::Bearer(Secret::new("rt"))),
            ("plain.example", basic("u", "p")),
            ("padded.example", basic("u", "p")),
            ("empty.example", Credential::Anonymous),
            ("null.example", Credential::Anonymous),
            ("localhost", Credential::Anonymous),
            ("localhost:5001", Credential::Anonymous),
            ("unknown.example", Credential::Anonymous),
        ] {
            assert_eq!(
                config.lookup(&host(registry), "a/b"),
                Ok(credential),
                "{registry}"
            );
        }
        assert_eq!(config.keys().count(), 8);
    }

    #[test]
    fn the_most_specific_namespace_wins() {
        // Users host, team, app and other, all with password p.
        let config = parse(
            r#"{"auths": {
                "quay.io": {"auth": "aG9zdDpw"},
                "quay.io/team": {"auth": "dGVhbTpw"},
                "quay.io/team/app": {"auth": "YXBwOnA="},
                "quay.io/te": {"auth": "b3RoZXI6cA=="}
            }}"#,
        );
        assert_eq!(
            steps(&config, "quay.io", "team/app/x"),
            ["app", "team", "host"]
        );
        assert_eq!(
            steps(&config, "quay.io", "team/app"),
            ["app", "team", "host"]
        );
        assert_eq!(steps(&config, "quay.io", "team/apple"), ["team", "host"]);
        assert_eq!(steps(&config, "quay.io", "teams"), ["host"]);
        assert_eq!(steps(&config, "quay.io", ""), ["host"]);
        assert!(steps(&config, "evil-quay.io", "team/app").is_empty());
        assert!(steps(&config, "quay.io:443", "team/app").is_empty());
    }

    #[test]
    fn keys_of_all_ages() {
        for key in [
            "https://index.docker.io/v1/",
            "https://index.docker.io/v2/",
            "index.docker.io/v1/",
            "index.docker.io",
            "docker.io",
            "https://registry-1.docker.io",
        ] {
            let config = parse(&format!(r#"{{"auths":{{"{key}":{{"auth":"aHViOnB3"}}}}}}"#));
            let found = config
                .lookup(&Host::docker_hub(), "library/alpine")
                .unwrap();
            assert_eq!(found, basic("hub", "pw"), "{key}");
        }
        let config =
            parse(r#"{"auths":{"http://Registry.example:5000/some/path":{"auth":"aHViOnB3"}}}"#);
        assert_eq!(steps(&config, "registry.example:5000", "x"), ["hub"]);
        // Two keys for one registry: docker's own wins, unless it is empty.
        let both = |own: &str| {
            parse(&format!(
                r#"{{"auths":{{"docker.io":{{"auth":"b3RoZXI6cA=="}},
                    "https://index.docker.io/v1/":{own}}}}}"#
            ))
        };
        assert_eq!(
            steps(&both(r#"{"auth":"aHViOnB3"}"#), "docker.io", "x"),
            ["hub"]
        );
        assert_eq!(steps(&both("{}"), "docker.io", "x"), ["other"]);
    }

    #[test]
    fn helpers_come_before_the_host_and_after_a_namespace() {
        let config = parse(
            r#"{
                "auths": {"a.example": {"auth": "aG9zdDpw"}, "a.example/team": {"auth": "dGVhbTpw"},
                          "b.example": {"auth": "aG9zdDpw"}},
                "credHelpers": {"https://a.example/": "own", "c.example": ""},
                "credsStore": "desktop"
            }"#,
        );
        assert_eq!(
            steps(&config, "a.example", "team/x"),
            ["team", "helper:own", "host"]
        );
        assert_eq!(steps(&config, "b.example", "x"), ["helper:desktop", "host"]);
        assert_eq!(steps(&config, "c.example", "x"), ["helper:desktop"]);
    }

    #[test]
    fn helper_names_are_no_paths() {
        for name in ["../x", "a/b", "a b", "a\\u0000", &"x".repeat(65)] {
            let file = format!(r#"{{"credsStore":"{name}"}}"#);
            assert_eq!(
                parse_docker_config(file.as_bytes()),
                Err(CredentialError::HelperName {
                    key: "credsStore".into()
                })
            );
        }
    }

    #[test]
    fn a_broken_entry_is_told_when_it_is_needed() {
        for auth in ["hunter2", "aHVudGVyMg==", "//8=", "aHVudGVyMg"] {
            let config = parse(&format!(
                r#"{{"auths":{{"a.example":{{"auth":"{auth}"}},"b.example":{{"auth":"aG9zdDpw"}}}}}}"#
            ));
            let error = config.lookup(&host("a.example"), "x").unwrap_err();
            assert!(
                error
                    .to_string()
                    .starts_with("credential entry \"a.example\""),
                "{error}"
            );
            assert!(!error.to_string().contains(auth));
            assert_eq!(
                config.lookup(&host("b.example"), "x"),
                Ok(basic("host", "p"))
            );
            assert!(!format!("{config:?}").contains("hunter2"));
        }
    }

    #[test]
    fn errors_of_files_do_not_repeat_them() {
        for bad in [
            r#"{"auths":"hunter2"}"#,
            r#"{"auths":{"a":"hunter2"}}"#,
            r#"{"auths":{"a":{"auth":["hunter2"]}}}"#,
            r#"{"auths":{"a":{"auth":"hunter2"}"#,
            "hunter2",
            "[\"hunter2\"]",
            "",
        ] {
            let error = parse_docker_config(bad.as_bytes()).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
        let long = vec![b' '; MAX_FILE + 1];
        assert_eq!(
            parse_docker_config(&long),
            Err(CredentialError::TooLarge {
                length: MAX_FILE + 1
            })
        );
    }

    #[test]
    fn answers_of_helpers() {
        let answer = |output: &str, succeeded| parse_helper_answer(output.as_bytes(), succeeded);
        let json = r#"{"ServerURL":"x","Username":"u","Secret":"p"}"#;
        assert_eq!(answer(json, true), Ok(basic("u", "p")));
        let token = r#"{"Username":"<token>","Secret":"t"}"#;
        assert_eq!(
            answer(token, true),
            Ok(Credential::IdentityToken(Secret::new("t")))
        );
        let nothing = "credentials not found in native keychain\n";
        assert_eq!(answer(nothing, false), Ok(Credential::Anonymous));
        assert_eq!(
            answer("no \u{1b}[1mbus\nmore", false),
            Err(CredentialError::HelperFailed("no [1mbus".into()))
        );
        for bad in ["", "x", "[]", &" ".repeat(MAX_HELPER_ANSWER + 1)] {
            assert_eq!(
                answer(bad, true),
                Err(CredentialError::HelperAnswer),
                "{bad:.9}"
            );
        }
    }

    proptest! {
        #[test]
        fn round_trip(user in "[a-zé][a-zé ]{0,10}", password in "[ -~é]{1,20}", port: u16) {
            let key = format!("registry.example:{}", port.max(1));
            let auth = base64::encode(format!("{user}:{password}").as_bytes());
            let file = format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#);
            let found = parse(&file).lookup(&host(&key), "a/b").unwrap();
            prop_assert_eq!(found, basic(&user, &password));
        }

        #[test]
        fn never_panics(
            key in "(https?://)?[a-z./:]{0,20}",
            auth in "[A-Za-z0-9+/=é]{0,12}",
            repository in "[a-z/]{0,12}",
            raw in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let config = parse(&format!(r#"{{"auths":{{"{key}":{{"auth":"{auth}"}}}}}}"#));
            let _ = config.steps(&host("a.example"), &repository);
            let _ = parse_docker_config(&raw);
            let _ = parse_helper_answer(&raw, true);
            let _ = parse_helper_answer(&raw, false);
        }
    }
}
