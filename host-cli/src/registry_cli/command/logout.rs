//! `logout`: forgets what `login` kept.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;
use vdkr_core::credentials::{Credential, Place, helper_server};
use vdkr_core::reference::Host;

use super::login::{file_of, host_of};
use crate::out;
use crate::registry_cli::auth::{Verdict, helper, store, stored};
use crate::registry_cli::config::Config;

/// Options of `logout`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry logout ghcr.io
  container-registry logout --all")]
pub struct LogoutArgs {
    /// Registry, host[:port] [default: the configured one]
    #[arg(value_name = "HOST[:PORT]", conflicts_with = "all")]
    pub host: Option<String>,
    /// Forget every login of the credential file and its helpers
    #[arg(long)]
    pub all: bool,
    /// Credential file to change [default: $REGISTRY_AUTH_FILE, else docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

/// Logs out. Not being logged in is success.
pub fn run(config: &Config, args: &LogoutArgs) -> Result<()> {
    let path = file_of(args.authfile.as_ref())?;
    if args.all {
        return all(&path);
    }
    let host = host_of(config, args.host.as_deref())?;
    forget(&host, &path)?;
    if args.authfile.is_none() {
        still_elsewhere(&host);
    }
    Ok(())
}

/// Forgets the login to a host, and says so.
pub fn forget(host: &Host, path: &Path) -> Result<()> {
    if !path.exists() {
        out!("Not logged in to {host}");
        return Ok(());
    }
    let removed = store::update(path, |file| {
        let mut removed = false;
        if let Place::Helper(name) = file.place(host) {
            removed = helper::get(&name, host)? != Credential::Anonymous;
            helper::erase(&name, &helper_server(host))?;
        }
        let keys = file.remove(host);
        Ok((removed || !keys.is_empty(), !keys.is_empty()))
    })?;
    if removed {
        out!("Removed the login to {host}");
    } else {
        out!("Not logged in to {host}");
    }
    Ok(())
}

/// Says so when another file still holds a login, which would go on being used.
pub fn still_elsewhere(host: &Host) {
    let mut left = None;
    let walked = stored(host).walk(host, &mut |finding| {
        if finding.verdict == Verdict::Used {
            left = Some(finding.source);
        }
    });
    // A broken file elsewhere is not this command's matter.
    if let (Ok(_), Some(place)) = (walked, left) {
        eprintln!("warning: {place} still holds a login to {host}; remove it with --authfile FILE");
    }
}

fn all(path: &Path) -> Result<()> {
    if !path.exists() {
        out!("No logins in {}", path.display());
        return Ok(());
    }
    let count = store::update(path, |file| {
        let own: Vec<(String, String)> = file
            .helpers()
            .map(|(server, helper)| (server.to_owned(), helper.to_owned()))
            .collect();
        for (server, helper) in &own {
            helper::erase(helper, server)?;
        }
        let mut count = 0;
        if let Some(general) = file.store().map(str::to_owned) {
            for server in helper::list(&general)? {
                helper::erase(&general, &server)?;
                count += 1;
            }
        }
        let keys = file.clear();
        Ok((count.max(keys.len()) + own.len(), !keys.is_empty()))
    })?;
    if count == 0 {
        out!("No logins in {}", path.display());
    } else {
        out!("Removed all logins of {}", path.display());
    }
    Ok(())
}
