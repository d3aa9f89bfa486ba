//! The registry that a command works on: a client set up for it, and errors that say what to do.

use std::fs::File;
use std::sync::Arc;

use anyhow::Result;
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::reference::Host;
use vdkr_registry::storage::LocalUploads;
use vdkr_transfer::{
    Client, ClientConfig, CredentialSource, LocalSessions, Repository, Roots, TransferError, Trust,
    TrustRule, UploadJournal, trust_rule,
};

use super::config::Config;
use super::secure::{self, Mode};

/// The configured registry and a client for it.
#[derive(Clone)]
pub struct Remote {
    /// Sends the requests.
    pub client: Client,
    /// Host and namespace.
    pub prefix: RegistryPrefix,
}

impl Remote {
    /// Sets a client up; nothing is sent yet.
    pub fn new(config: &Config, credentials: Arc<dyn CredentialSource>) -> Result<Self> {
        Ok(Self {
            client: client(config, credentials)?,
            prefix: config.registry()?,
        })
    }

    /// As [`Remote::new`], and checks that the registry answers.
    pub async fn connect(config: &Config, credentials: Arc<dyn CredentialSource>) -> Result<Self> {
        let remote = Self::new(config, credentials)?;
        if let Err(error) = remote.client.ping(remote.host()).await {
            let hint = match error {
                TransferError::Unreachable { .. } if remote.host().is_loopback() => Some(format!(
                    "no registry answers at {}; start it with: container-registry start",
                    remote.host()
                )),
                TransferError::Tls { .. } => Some(remote.tls_hint(config)?),
                _ => None,
            };
            let error = anyhow::Error::new(error);
            return Err(match hint {
                Some(hint) => error.context(hint),
                None => error,
            });
        }
        Ok(remote)
    }

    /// What to do about a certificate or handshake that was refused.
    fn tls_hint(&self, config: &Config) -> Result<String> {
        let host = self.host();
        let ca = secure::pki(config).ca_certificate();
        let is_secure = Mode::in_use(config)?.is_secure();
        Ok(if is_secure && ca.is_file() {
            format!(
                "in secure mode {host} must speak TLS with a certificate of {}; is this the storage of that registry, and does it run in secure mode? (For another registry, unset CONTAINER_REGISTRY_SECURE)",
                ca.display()
            )
        } else {
            format!(
                "{host} is not trusted; if it is a registry in secure mode, set CONTAINER_REGISTRY_SECURE=1 and put its ca.crt at {}",
                ca.display()
            )
        })
    }

    /// The registry's host.
    pub fn host(&self) -> &Host {
        self.prefix.host()
    }

    /// A repository by its full name.
    pub fn repository(&self, name: &str) -> Result<Repository> {
        Ok(Repository::new(self.host().clone(), name)?)
    }
}

/// A client with the machine's trust, for any registry.
pub fn client(config: &Config, credentials: Arc<dyn CredentialSource>) -> Result<Client> {
    client_with(config, credentials, Vec::new())
}

/// As [`client`]; the hosts of `insecure` may do without verified TLS, beside the configured ones.
pub fn client_with(
    config: &Config,
    credentials: Arc<dyn CredentialSource>,
    mut insecure: Vec<Host>,
) -> Result<Client> {
    insecure.extend(config.insecure_hosts()?);
    let registry = config.registry()?;
    // A URL that says http:// is the user's own word for this host.
    if registry
        .scheme()
        .is_some_and(|scheme| scheme.as_str() == "http")
    {
        insecure.push(registry.host().clone());
    }
    Ok(Client::new(ClientConfig {
        roots: Roots::native(),
        host_roots: secure::host_roots(config)?,
        trust: trust(insecure, Mode::in_use(config)?, registry.host()),
        credentials,
        user_agent: concat!("container-registry/", env!("CARGO_PKG_VERSION")).to_owned(),
        journal: journal(),
        local_sessions: own_sessions(config, registry.host()),
        ..ClientConfig::default()
    })?)
}

/// Where unfinished uploads are noted: `~/.cache/container-registry/uploads`. Without it, an upload that
/// breaks off with its process starts anew.
fn journal() -> Option<UploadJournal> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let cache = set("XDG_CACHE_HOME")
        .map(std::path::PathBuf::from)
        .or_else(|| Some(std::path::PathBuf::from(set("HOME")?).join(".cache")))?;
    UploadJournal::open(cache.join("container-registry/uploads"))
        .inspect_err(|error| tracing::debug!(%error, "uploads are not noted"))
        .ok()
}

/// The upload sessions of this storage's own registry, when it is the one that is configured.
struct OwnSessions {
    host: Host,
    uploads: LocalUploads,
}

impl LocalSessions for OwnSessions {
    fn open(&self, repository: &Repository, session: &str) -> Option<File> {
        // A session's random name is known to the registry of this storage alone.
        (*repository.host() == self.host)
            .then(|| self.uploads.session(repository.name(), session))
            .flatten()
    }
}

fn own_sessions(config: &Config, registry: &Host) -> Option<Arc<dyn LocalSessions>> {
    if !registry.is_loopback() {
        return None;
    }
    let sessions: Arc<dyn LocalSessions> = Arc::new(OwnSessions {
        host: registry.clone(),
        uploads: LocalUploads::open(&config.storage())?,
    });
    Some(sessions)
}

/// A registry in secure mode is spoken to in verified TLS, on this machine too.
fn trust(insecure: Vec<Host>, mode: Mode, registry: &Host) -> TrustRule {
    let ordinary = trust_rule(insecure);
    if !mode.is_secure() {
        return ordinary;
    }
    let registry = registry.clone();
    Arc::new(move |host| {
        if *host == registry {
            Trust::Tls
        } else {
            ordinary(host)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secure_mode_leaves_no_choice_of_schemes_for_its_host() {
        let host = |text: &str| Host::parse(text).unwrap();
        let registry = host("localhost:5000");
        let plain = trust(Vec::new(), Mode::Plain, &registry);
        assert_eq!(plain(&registry), Trust::PlainOrTls);
        let secure = trust(vec![host("lab:5000")], Mode::Tls, &registry);
        assert_eq!(secure(&registry), Trust::Tls);
        assert_eq!(secure(&host("localhost:5001")), Trust::PlainOrTls);
        assert_eq!(secure(&host("lab:5000")), Trust::Insecure);
    }
}
