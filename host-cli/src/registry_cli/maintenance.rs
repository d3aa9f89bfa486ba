//! Where maintenance of the storage happens: in the running server, or here when none runs.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, Result, anyhow};
use vdkr_core::extension::{Finding, FsckOptions, FsckReport, GcOptions, GcReport};
use vdkr_registry::storage::{Storage, StorageError};
use vdkr_registry::{Registry, ServerConfig};

use super::auth;
use super::config::Config;
use super::error::{WithExit as _, is_silent};
use super::instance::{Instance, Lock};
use super::listen;
use super::remote::Remote;
use crate::exit::Exit;

/// The one who has the storage.
pub enum Keeper {
    /// A server, which is asked to do it.
    Server(Box<Remote>),
    /// Nobody: this process, with the server's lock.
    Here(Arc<Storage>, Registry, Lock),
}

impl Keeper {
    /// Finds the running server; without one, and with the storage on this machine, takes its place.
    pub async fn find(config: &Config) -> Result<Self> {
        let error = match Remote::connect(config, auth::configured(config)?).await {
            Ok(remote) => return Ok(Self::Server(Box::new(remote))),
            Err(error) => error,
        };
        let storage = config.storage();
        let local = config.registry()?.host().is_loopback();
        let silent = is_silent(&error);
        if !local || !silent || !storage.join("docker/registry/v2").is_dir() {
            return Err(error);
        }
        let (_, port) = listen::addresses(config)?;
        let lock = Instance::new(&storage, port).lock()?;
        let registry = Registry::open(ServerConfig::new(&storage))?;
        if registry.storage().is_shared()? {
            return Err(anyhow!(
                "another process serves the storage {}, but not at {}; \
                 name its address with --url, or stop it",
                storage.display(),
                config.registry()?.host()
            ))
            .exit(Exit::Unreachable);
        }
        eprintln!("No registry runs; working on {} itself", storage.display());
        Ok(Self::Here(Arc::clone(registry.storage()), registry, lock))
    }

    /// Where that is, for messages.
    pub fn place(&self) -> String {
        match self {
            Self::Server(remote) => remote.host().to_string(),
            Self::Here(storage, ..) => storage.fs().base().display().to_string(),
        }
    }

    /// Collects garbage. The flag tells that a run already under way was joined.
    pub async fn collect_garbage(&self, options: &GcOptions) -> Result<(GcReport, bool)> {
        match self {
            Self::Server(remote) => remote
                .client
                .collect_garbage(remote.host(), options)
                .await?
                .ok_or_else(|| foreign(remote, "collect garbage")),
            Self::Here(storage, ..) => {
                let options = *options;
                let work = move |storage: &Storage| {
                    storage.collect_garbage(&options, &AtomicBool::new(false))
                };
                Ok((here(storage, work).await?, false))
            }
        }
    }

    /// Checks what is stored.
    pub async fn check(&self, options: &FsckOptions) -> Result<(FsckReport, bool)> {
        match self {
            Self::Server(remote) => remote
                .client
                .check_storage(remote.host(), options)
                .await?
                .ok_or_else(|| foreign(remote, "check its storage")),
            Self::Here(storage, ..) => {
                let options = *options;
                let work =
                    move |storage: &Storage| storage.check(&options, &AtomicBool::new(false));
                Ok((here(storage, work).await?, false))
            }
        }
    }
}

async fn here<T: Send + 'static>(
    storage: &Arc<Storage>,
    work: impl FnOnce(&Storage) -> std::result::Result<T, StorageError> + Send + 'static,
) -> Result<T> {
    let storage = Arc::clone(storage);
    tokio::task::spawn_blocking(move || work(&storage))
        .await
        .context("the work broke off")?
        .map_err(Into::into)
}

fn foreign(remote: &Remote, what: &str) -> anyhow::Error {
    anyhow!(
        "{} does not {what} on request: it is another kind of registry; use its own tools",
        remote.host()
    )
}

/// Shows what was found wrong, on stderr.
pub fn show_findings(findings: &[Finding]) {
    for finding in findings {
        let repository = finding.repository.as_deref().unwrap_or("storage");
        let place = match finding.name.as_deref() {
            Some(name) if name.contains(':') => format!("{repository}@{name}"),
            Some(name) => format!("{repository}:{name}"),
            None => repository.to_owned(),
        };
        eprintln!("warning: {place}: {}", finding.problem);
    }
}
