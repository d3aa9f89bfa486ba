//! The registry that a command works on: a client set up for it, and errors that say what to do.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vdkr_core::candidates::{RegistryPrefix, Scheme};
use vdkr_core::reference::Host;
use vdkr_registry::storage::LocalUploads;
use vdkr_transfer::{
    Client, ClientConfig, CredentialSource, LocalSessions, Repository, RetryPolicy, Roots,
    TransferError, Trust, TrustRule, UploadJournal, trust_rule,
};

use super::config::Config;
use super::secure::{self, Mode};

/// How long the registry of this machine may take for its first answer.
const OWN_PATIENCE: Duration = Duration::from_secs(10);
/// As [`OWN_PATIENCE`], of another machine; somebody may have to unlock a credential helper meanwhile.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long `start` and `status` wait for an answer.
const PROBE: Duration = Duration::from_secs(5);

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
        let patience = if remote.host().is_loopback() {
            OWN_PATIENCE
        } else {
            PATIENCE
        };
        if let Err(error) = remote.ping(patience).await {
            let hint = remote.hint(config, &error)?;
            let error = anyhow::Error::new(error);
            return Err(match hint {
                Some(hint) => error.context(hint),
                None => error,
            });
        }
        Ok(remote)
    }

    /// Asks once whether the server of this machine answers as it should, with the user of its own.
    pub async fn probe(config: &Config) -> Result<()> {
        let settings = ClientConfig {
            retry: RetryPolicy::never(),
            ..settings(config, secure::stored_for_registry(config)?, Vec::new())?
        };
        let remote = Self {
            client: Client::new(settings)?,
            prefix: config.registry()?,
        };
        let Err(error) = remote.ping(PROBE).await else {
            return Ok(());
        };
        let hint = match &error {
            TransferError::Tls { .. } => remote.hint(config, &error)?,
            _ => None,
        };
        let error = anyhow::Error::new(error);
        Err(match hint {
            Some(hint) => error.context(hint),
            None => error,
        })
    }

    /// Whether the registry answers and lets us in, within this time.
    pub async fn ping(&self, patience: Duration) -> Result<(), TransferError> {
        let answer = tokio::time::timeout(patience, self.client.ping(self.host()));
        answer.await.unwrap_or_else(|_| {
            Err(TransferError::Unreachable {
                url: self.host().to_string(),
                reason: format!("no answer within {} seconds", patience.as_secs()),
            })
        })
    }

    /// What to do about a registry that does not answer as it should.
    fn hint(&self, config: &Config, error: &TransferError) -> Result<Option<String>> {
        Ok(match error {
            TransferError::Unreachable { .. } if self.host().is_loopback() => {
                let host = self.host();
                Some(match secure::live(config)? {
                    Some(live) => format!(
                        "the registry at {host} runs (PID: {}) but does not answer; if it stays so: container-registry stop, then start",
                        live.pid
                    ),
                    None => format!(
                        "no registry answers at {host} (start one with: container-registry start)"
                    ),
                })
            }
            TransferError::Tls { reason, .. } => Some(self.tls_hint(config, reason)?),
            _ => None,
        })
    }

    /// What to do about a certificate or handshake that was refused.
    fn tls_hint(&self, config: &Config, reason: &str) -> Result<String> {
        let host = self.host();
        // What rustls says of bytes that are no TLS.
        if reason.contains("InvalidContentType") {
            let told = ["secure", "auth"].into_iter().find_map(|name| {
                let (_, origin) = config.get(name)?;
                config.flag(name).unwrap_or(false).then_some(origin)
            });
            return Ok(match told {
                Some(origin) => format!(
                    "{host} speaks plain HTTP, not TLS: do without secure mode ({origin}), or pass --insecure {host} if it is another registry"
                ),
                None => format!(
                    "{host} speaks plain HTTP, not TLS; pass --insecure {host} if that is meant"
                ),
            });
        }
        let live = secure::live(config)?;
        if live.is_some_and(|live| live.mode().is_some_and(|mode| mode != Mode::Plain.word()))
            && !Mode::in_use(config)?.is_secure()
            && let Some((_, origin)) = config.get("secure")
        {
            return Ok(format!(
                "{host} runs in secure mode, which the configuration denies ({origin}); set CONTAINER_REGISTRY_SECURE=1, or unset it"
            ));
        }
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
    insecure: Vec<Host>,
) -> Result<Client> {
    Ok(Client::new(settings(config, credentials, insecure)?)?)
}

fn settings(
    config: &Config,
    credentials: Arc<dyn CredentialSource>,
    mut insecure: Vec<Host>,
) -> Result<ClientConfig> {
    insecure.extend(config.insecure_hosts()?);
    let registry = config.registry()?;
    // A URL that says http:// is the user's own word for this host.
    if registry.scheme() == Some(Scheme::Http) {
        insecure.push(registry.host().clone());
    }
    let secure = Mode::in_use(config)?.is_secure()
        || (registry.scheme() == Some(Scheme::Https) && !insecure.contains(registry.host()));
    Ok(ClientConfig {
        roots: Roots::native(),
        host_roots: secure::host_roots(config)?,
        trust: trust(insecure, secure, registry.host()),
        credentials,
        user_agent: concat!("container-registry/", env!("CARGO_PKG_VERSION")).to_owned(),
        journal: journal(),
        local_sessions: own_sessions(config, registry.host()),
        ..ClientConfig::default()
    })
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

/// A registry in secure mode, or whose URL says https, is spoken to in verified TLS, on this machine too.
fn trust(insecure: Vec<Host>, secure: bool, registry: &Host) -> TrustRule {
    let ordinary = trust_rule(insecure);
    if !secure {
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
        let plain = trust(Vec::new(), false, &registry);
        assert_eq!(plain(&registry), Trust::PlainOrTls);
        let secure = trust(vec![host("lab:5000")], true, &registry);
        assert_eq!(secure(&registry), Trust::Tls);
        assert_eq!(secure(&host("localhost:5001")), Trust::PlainOrTls);
        assert_eq!(secure(&host("lab:5000")), Trust::Insecure);
    }
}
