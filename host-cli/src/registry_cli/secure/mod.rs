//! Secure mode: TLS with the project's own CA, and a password. The server is set up for it here, and
//! the commands learn how to reach such a server without being told.

mod users;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use vdkr_core::candidates::{RegistryPrefix, Scheme};
use vdkr_core::certificate::AltName;
use vdkr_core::credentials::Credential;
use vdkr_core::digest::Digest;
use vdkr_core::reference::Host;
use vdkr_registry::{ServerConfig, TlsFiles};
use vdkr_transfer::{CredentialSource, Roots};

use super::config::{Config, ConfigError};
use super::instance::{Instance, Live};
use super::listen;
use crate::pki::{Pki, Standing, Wanted, files, names};

/// Longest life of a server certificate and of a CA, in days.
const MAX_DAYS: u32 = 36_500;

/// How a registry is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// HTTP, to whoever comes.
    Plain,
    /// HTTPS, to whoever comes.
    Tls,
    /// HTTPS, with a user name and a password.
    TlsAuth,
}

impl Mode {
    /// What the configuration says.
    pub fn configured(config: &Config) -> Result<Self, ConfigError> {
        Ok(match (config.wants_tls()?, config.wants_auth()?) {
            (false, _) => Self::Plain,
            (true, false) => Self::Tls,
            (true, true) => Self::TlsAuth,
        })
    }

    /// What the configuration says; where it says nothing, what the server of this storage, if it
    /// runs, has announced. So `CONTAINER_REGISTRY_SECURE` may be given to `start` alone.
    pub fn in_use(config: &Config) -> Result<Self> {
        let configured = Self::configured(config)?;
        if is_told(config) {
            return Ok(configured);
        }
        Ok(live(config)?
            .and_then(|live| Self::from_word(live.mode()?))
            .unwrap_or(configured))
    }

    /// One word for it, for the file of the running server and for JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "tls",
            Self::TlsAuth => "tls+auth",
        }
    }

    /// The mode of a word.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Plain, Self::Tls, Self::TlsAuth]
            .into_iter()
            .find(|mode| mode.word() == word)
    }

    /// Whether TLS is spoken.
    pub fn is_secure(self) -> bool {
        self != Self::Plain
    }

    /// What `start` and `status` call a secure mode.
    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Tls => "TLS only",
            Self::TlsAuth => "TLS + auth",
        }
    }
}

/// Whether the configuration itself says which mode it wants.
fn is_told(config: &Config) -> bool {
    config.is_given("secure") || config.is_given("auth")
}

/// The running server that the configured registry is. Only this machine's own server is known by its
/// storage.
pub fn live(config: &Config) -> Result<Option<Live>> {
    if !config.registry()?.host().is_loopback() {
        return Ok(None);
    }
    let (_, port) = listen::addresses(config)?;
    // A storage that we cannot look into is not ours.
    Ok(Instance::new(&config.storage(), port).live().ok().flatten())
}

/// The mode that is configured; what it needs of the configuration is there and legal.
pub fn checked(config: &Config) -> Result<Mode> {
    let mode = Mode::configured(config)?;
    let registry = config.registry()?;
    // Elsewhere a proxy may speak TLS for us.
    if mode == Mode::Plain
        && registry.scheme() == Some(Scheme::Https)
        && registry.host().is_loopback()
    {
        return Err(config
            .bad_value(
                "url",
                "it says https, which is spoken in secure mode alone: set CONTAINER_REGISTRY_SECURE=1, or leave https:// out",
            )
            .into());
    }
    if mode.is_secure() {
        wanted(config)?;
    }
    if mode == Mode::TlsAuth {
        username(config)?;
        users::given(config)?;
    }
    Ok(mode)
}

/// Warns when a storage that was served in secure mode is served in plain HTTP, and nobody said that this
/// is meant.
pub fn warn_of_downgrade(config: &Config, mode: Mode) {
    let ca = pki(config).ca_certificate();
    if mode == Mode::Plain && !is_told(config) && ca.exists() {
        eprintln!(
            "warning: {} is there for secure mode, but this server speaks plain HTTP; set CONTAINER_REGISTRY_SECURE=1 (or 0, if it is meant)",
            ca.display()
        );
    }
}

/// Marks of the settings that a server in this mode takes up at its start alone: a change of one can be
/// seen, its value cannot. The password is not among them: it has a file of its own.
pub fn settings(config: &Config, mode: Mode) -> Vec<String> {
    if !mode.is_secure() {
        return Vec::new();
    }
    let names: &[&str] = match mode {
        Mode::TlsAuth => &["cert_san", "username"],
        _ => &["cert_san"],
    };
    let mark = |name: &&str| {
        let value = config.value(name).unwrap_or_default();
        format!("{name}={}", Digest::sha256(value.as_bytes()).short())
    };
    names.iter().map(mark).collect()
}

/// Environment variables whose values the running server does not use, though they are given now.
pub fn unused_settings(config: &Config, live: &Live) -> Result<Vec<&'static str>> {
    let mut unused = Vec::new();
    let Some(announced) = &live.announced else {
        return Ok(unused);
    };
    let (mut wanted, _) = listen::addresses(config)?;
    let mut there = announced.addresses.clone();
    wanted.sort_unstable();
    there.sort_unstable();
    if config.is_given("listen") && !there.is_empty() && wanted != there {
        unused.push("CONTAINER_REGISTRY_LISTEN");
    }
    let Some(mode) = Mode::from_word(&announced.mode) else {
        return Ok(unused);
    };
    let now = settings(config, mode);
    let other = |name: &str| {
        let of = |marks: &[String]| marks.iter().find(|mark| mark.starts_with(name)).cloned();
        config.is_given(name)
            && of(&announced.settings).is_some_and(|there| of(&now) != Some(there))
    };
    if other("cert_san") {
        unused.push("CONTAINER_REGISTRY_CERT_SAN");
    }
    if other("username") {
        unused.push("CONTAINER_REGISTRY_USERNAME");
    }
    if mode == Mode::TlsAuth
        && let Some(given) = users::given(config)?
        && users::stored(&config.storage())?.as_ref() != Some(&given)
    {
        unused.push("CONTAINER_REGISTRY_PASSWORD");
    }
    Ok(unused)
}

/// The registry's URL, as users type it.
pub fn url(registry: &RegistryPrefix, mode: Mode) -> String {
    let scheme = if mode.is_secure() { "https" } else { "http" };
    format!("{scheme}://{}", registry.host())
}

/// The keys and certificates of the storage.
pub fn pki(config: &Config) -> Pki {
    Pki::new(&config.storage())
}

/// What the configuration wants certificates to be like.
pub fn wanted(config: &Config) -> Result<Wanted> {
    let registry = config.registry()?;
    let asked = AltName::parse_list(config.value("cert_san").unwrap_or_default())
        .map_err(|error| config.bad_value("cert_san", error.to_string()))?;
    Ok(Wanted {
        host: registry.host().name().to_owned(),
        names: names(registry.host(), &asked),
        server_days: config.number("cert_days", 1..=MAX_DAYS)?,
        ca_days: config.number("ca_days", 1..=MAX_DAYS)?,
    })
}

/// Seconds since 1970.
pub fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

/// Makes certificates that are missing or due, and tells what was done. Blocks.
pub fn certificates(config: &Config) -> Result<Standing> {
    let standing = pki(config).ensure(&wanted(config)?, now())?;
    tell(&standing);
    Ok(standing)
}

/// Makes certificates that are due while the server runs; warnings were given at its start. Blocks.
pub fn renew_if_due(config: &Config) -> Result<()> {
    let standing = pki(config).ensure(&wanted(config)?, now())?;
    for made in &standing.made {
        eprintln!("made {made}");
    }
    Ok(())
}

/// Says on stderr what was made and what the user should know.
pub fn tell(standing: &Standing) {
    for made in &standing.made {
        eprintln!("made {made}");
    }
    for warning in &standing.warnings {
        eprintln!("warning: {warning}");
    }
}

/// Makes what the server needs in this mode, and puts it into its configuration. Blocks.
pub fn prepare(config: &Config, mode: Mode, server: &mut ServerConfig) -> Result<()> {
    server.names = known_names(config);
    if mode.is_secure() {
        certificates(config)?;
        let pki = pki(config);
        server.tls = Some(TlsFiles {
            certificate: pki.server_certificate(),
            key: pki.server_key(),
        });
    }
    if mode == Mode::TlsAuth {
        let user = username(config)?;
        let given = users::given(config)?;
        server.htpasswd = Some(users::ensure(&config.storage(), user, given.as_ref())?);
    }
    Ok(())
}

/// Host names of the registry. What is wrong with the configuration of certificates is told where one is
/// made.
fn known_names(config: &Config) -> Vec<String> {
    let wanted = wanted(config)
        .map(|wanted| wanted.names)
        .unwrap_or_default();
    let names = wanted.into_iter().filter_map(|name| match name {
        AltName::Dns(name) => Some(name),
        AltName::Ip(_) => None,
    });
    let own = config
        .registry()
        .map(|registry| registry.host().name().to_owned());
    names.chain(own).collect()
}

/// The name that the server knows its user by.
pub fn username(config: &Config) -> Result<&str> {
    users::name(config)
}

/// The file of the server's password.
pub fn password_file(config: &Config) -> PathBuf {
    users::password_file(&config.storage())
}

/// The credential for the server of this storage, if it asks for one and we have it.
pub fn stored(config: &Config) -> Result<Option<Credential>> {
    if Mode::in_use(config)? != Mode::TlsAuth || authorities(config)?.is_none() {
        return Ok(None);
    }
    let Some(password) = users::stored(&config.storage())? else {
        return Ok(None);
    };
    Ok(Some(Credential::Basic {
        username: username(config)?.to_owned(),
        password,
    }))
}

/// [`stored`] as a source, for the registry's host and port and no other.
pub fn stored_for_registry(config: &Config) -> Result<std::sync::Arc<dyn CredentialSource>> {
    let registry = config.registry()?.host().clone();
    let credential = stored(config)?.unwrap_or_default();
    Ok(std::sync::Arc::new(move |host: &Host| {
        Ok(if *host == registry {
            credential.clone()
        } else {
            Credential::Anonymous
        })
    }))
}

/// The project's CA, which counts for the registry's host and no other. For that host nothing else
/// counts: whoever has the CA's key is the one who may have the password.
pub fn host_roots(config: &Config) -> Result<Vec<(Host, Roots)>> {
    if !Mode::in_use(config)?.is_secure() {
        return Ok(Vec::new());
    }
    Ok(authorities(config)?
        .map(|roots| Ok::<_, anyhow::Error>((config.registry()?.host().clone(), roots)))
        .transpose()?
        .into_iter()
        .collect())
}

fn authorities(config: &Config) -> Result<Option<Roots>> {
    let path = pki(config).ca_certificate();
    let Some(content) = files::read(&path).context("the registry's CA")? else {
        return Ok(None);
    };
    let roots = Roots::none().with_pem(&content.bytes, &path.display().to_string())?;
    Ok(Some(roots))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry_cli::instance::Announced;
    use vdkr_core::credentials::Secret;

    fn config(storage: &std::path::Path, pairs: &[(&str, &str)]) -> Config {
        let env = |name: &str| {
            let storage = ("CONTAINER_REGISTRY_STORAGE", storage.to_str().unwrap());
            pairs
                .iter()
                .chain([&storage])
                .find(|(n, _)| *n == name)
                .map(|(_, value)| (*value).to_owned())
        };
        Config::resolve(&vec![], &env).unwrap()
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for mode in [Mode::Plain, Mode::Tls, Mode::TlsAuth] {
            assert_eq!(Mode::from_word(mode.word()), Some(mode));
        }
        assert_eq!(Mode::from_word(""), None);
    }

    #[test]
    fn a_running_server_tells_its_mode_unless_the_configuration_does() {
        let dir = tempfile::tempdir().unwrap();
        let mut lock = Instance::new(dir.path(), 5000).lock().unwrap();
        let announced = Announced {
            mode: Mode::TlsAuth.word().to_owned(),
            ..Announced::default()
        };
        lock.announce(&announced).unwrap();
        for (pairs, mode) in [
            (&[][..], Mode::TlsAuth),
            (&[("CONTAINER_REGISTRY_SECURE", "0")], Mode::Plain),
            (
                &[
                    ("CONTAINER_REGISTRY_SECURE", "1"),
                    ("CONTAINER_REGISTRY_AUTH", "0"),
                ],
                Mode::Tls,
            ),
            (&[("CONTAINER_REGISTRY_URL", "localhost:5001")], Mode::Plain),
            // Another registry is not the one whose storage this is.
            (&[("CONTAINER_REGISTRY_URL", "ghcr.io")], Mode::Plain),
            (
                &[("CONTAINER_REGISTRY_URL", "build.example:5000")],
                Mode::Plain,
            ),
        ] {
            let config = config(dir.path(), pairs);
            assert_eq!(Mode::in_use(&config).unwrap(), mode, "{pairs:?}");
        }
        drop(lock);
        assert_eq!(Mode::in_use(&config(dir.path(), &[])).unwrap(), Mode::Plain);
    }

    #[test]
    fn settings_that_take_a_restart_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let secure = ("CONTAINER_REGISTRY_SECURE", "1");
        let began = config(
            dir.path(),
            &[secure, ("CONTAINER_REGISTRY_CERT_SAN", "DNS:lab")],
        );
        let live = Live {
            pid: nix::unistd::Pid::this(),
            announced: Some(Announced {
                mode: Mode::TlsAuth.word().to_owned(),
                addresses: listen::addresses(&began).unwrap().0,
                settings: settings(&began, Mode::TlsAuth),
            }),
        };
        users::ensure(dir.path(), "yocto", Some(&Secret::new("hunter2"))).unwrap();
        for (variable, same, other) in [
            ("CONTAINER_REGISTRY_CERT_SAN", "DNS:lab", "DNS:lab,DNS:den"),
            ("CONTAINER_REGISTRY_USERNAME", "yocto", "ci"),
            ("CONTAINER_REGISTRY_PASSWORD", "hunter2", "hunter3"),
            ("CONTAINER_REGISTRY_LISTEN", "[::1],127.0.0.1", "0.0.0.0"),
        ] {
            let unused = |value| {
                unused_settings(&config(dir.path(), &[secure, (variable, value)]), &live).unwrap()
            };
            assert!(unused(same).is_empty(), "{variable}");
            assert_eq!(unused(other), [variable]);
        }
        // Who says nothing wants nothing else.
        assert!(
            unused_settings(&config(dir.path(), &[]), &live)
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn https_is_not_served_without_secure_mode() {
        let dir = tempfile::tempdir().unwrap();
        let url = ("CONTAINER_REGISTRY_URL", "https://localhost:5000");
        let error = checked(&config(dir.path(), &[url]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("CONTAINER_REGISTRY_SECURE=1"), "{error}");
        let secure = config(dir.path(), &[url, ("CONTAINER_REGISTRY_SECURE", "1")]);
        assert_eq!(checked(&secure).unwrap(), Mode::TlsAuth);
    }

    #[test]
    fn the_password_is_for_the_registry_alone() {
        let dir = tempfile::tempdir().unwrap();
        let config = config(
            dir.path(),
            &[
                ("CONTAINER_REGISTRY_SECURE", "1"),
                ("CONTAINER_REGISTRY_PASSWORD", "hunter2"),
            ],
        );
        assert_eq!(stored(&config).unwrap(), None);
        assert!(host_roots(&config).unwrap().is_empty());
        let mut server = ServerConfig::new(dir.path());
        prepare(&config, Mode::TlsAuth, &mut server).unwrap();
        assert!(server.tls.is_some() && server.htpasswd.is_some());
        assert_eq!(
            stored(&config).unwrap(),
            Some(Credential::from_pair("yocto:hunter2").unwrap())
        );
        let source = stored_for_registry(&config).unwrap();
        let ask = |host: &str| source.credential(&Host::parse(host).unwrap()).unwrap();
        assert_ne!(ask("localhost:5000"), Credential::Anonymous);
        for other in ["localhost:5001", "localhost", "127.0.0.1:5000", "ghcr.io"] {
            assert_eq!(ask(other), Credential::Anonymous, "{other}");
        }
        let roots = host_roots(&config).unwrap();
        assert_eq!(roots[0].0.to_string(), "localhost:5000");
    }

    #[test]
    fn what_certificates_should_be_like_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        for (name, value) in [
            ("CONTAINER_REGISTRY_CERT_SAN", "email:me"),
            ("CONTAINER_REGISTRY_CERT_DAYS", "0"),
            ("CONTAINER_REGISTRY_CA_DAYS", "forever"),
        ] {
            let error = wanted(&config(dir.path(), &[(name, value)])).unwrap_err();
            assert!(error.is::<ConfigError>(), "{error:#}");
        }
        let config = config(
            dir.path(),
            &[("CONTAINER_REGISTRY_CERT_SAN", "DNS:lab,IP:10.1.2.3")],
        );
        let names = wanted(&config).unwrap().names;
        assert!(names.contains(&AltName::Ip("10.1.2.3".parse().unwrap())));
    }
}
