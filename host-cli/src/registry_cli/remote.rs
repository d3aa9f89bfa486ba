//! The registry that a command works on: a client set up for it, and errors that say what to do.

use std::sync::Arc;

use anyhow::Result;
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::reference::Host;
use vdkr_transfer::{
    Client, ClientConfig, CredentialSource, Repository, Roots, TransferError, UploadJournal,
    trust_rule,
};

use super::config::Config;

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
            let silent = matches!(error, TransferError::Unreachable { .. });
            let error = anyhow::Error::new(error);
            return Err(if silent && remote.host().is_loopback() {
                error.context(format!(
                    "no registry answers at {}; start it with: container-registry start",
                    remote.host()
                ))
            } else {
                error
            });
        }
        Ok(remote)
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
        trust: trust_rule(insecure),
        credentials,
        user_agent: concat!("container-registry/", env!("CARGO_PKG_VERSION")).to_owned(),
        journal: journal(),
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
