//! `login`: checks a user name and password with a registry, and keeps them where docker, podman
//! and skopeo look.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use vdkr_core::credentials::{Credential, Place, Secret};
use vdkr_core::reference::Host;
use vdkr_transfer::{Client, CredentialSource, TransferError};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::auth::{helper, store};
use crate::registry_cli::config::Config;
use crate::registry_cli::error::{WithExit as _, printable};
use crate::registry_cli::prompt::{Terminal, secret_from_stdin};
use crate::registry_cli::remote::client;

/// Options of `login`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry login
  pass show ghcr | container-registry login ghcr.io --username me --password-stdin")]
pub struct LoginArgs {
    /// Registry, host[:port] [default: the configured one]
    #[arg(value_name = "HOST[:PORT]")]
    pub host: Option<String>,
    /// User name
    #[arg(short, long)]
    pub username: Option<String>,
    /// Password (visible in the process list; prefer --password-stdin)
    #[arg(short, long, conflicts_with = "password_stdin")]
    pub password: Option<Secret>,
    /// Read the password from standard input
    #[arg(long, requires = "username")]
    pub password_stdin: bool,
    /// Credential file to write [default: $REGISTRY_AUTH_FILE, else docker's config.json]
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
}

/// Logs in: nothing is kept unless the registry takes it.
pub async fn run(config: &Config, args: &LoginArgs) -> Result<()> {
    let host = host_of(config, args.host.as_deref())?;
    let path = file_of(args.authfile.as_ref())?;
    if args.password.is_some() {
        eprintln!(
            "warning: everybody on this machine can see a password on the command line; use --password-stdin"
        );
    }
    let credential = credential(args, &host)?;
    let asked = check(&host, &credential, |source| client(config, source)).await?;
    if !asked {
        eprintln!("warning: {host} asked for no credentials, so these are not proved to be right");
    }
    let kept = keep(&path, &host, &credential)?;
    out!("Login succeeded");
    eprintln!("{}", printable(&kept));
    Ok(())
}

/// The registry that the user means; docker's long name of Docker Hub is understood.
pub fn host_of(config: &Config, typed: Option<&str>) -> Result<Host> {
    let Some(typed) = typed else {
        return Ok(config.registry()?.host().clone());
    };
    let bare = typed
        .strip_prefix("https://")
        .or_else(|| typed.strip_prefix("http://"))
        .unwrap_or(typed);
    let (name, path) = bare.split_once('/').unwrap_or((bare, ""));
    if !matches!(path.trim_end_matches('/'), "" | "v1" | "v2") {
        return Err(anyhow!(
            "{typed} names more than a registry; give its host alone: {name}"
        ))
        .exit(Exit::Usage);
    }
    let host = Host::parse(name)
        .with_context(|| format!("{typed:?} is not a registry's host"))
        .exit(Exit::Usage)?;
    let configured = config.registry()?.host().clone();
    // `localhost` means what the configuration means by it.
    Ok(
        if host.port().is_none() && host.is_loopback() && configured.name() == host.name() {
            configured
        } else {
            host
        },
    )
}

/// The file to write to.
pub fn file_of(given: Option<&PathBuf>) -> Result<PathBuf> {
    let env = |name: &str| std::env::var(name).ok();
    given
        .cloned()
        .or_else(|| {
            env("REGISTRY_AUTH_FILE")
                .filter(|path| !path.is_empty())
                .map(PathBuf::from)
        })
        .or_else(|| store::docker_file(&env))
        .context("no home directory is known; say where to keep the login: --authfile FILE")
        .exit(Exit::Usage)
}

/// Who logs in: from the options, else asked at the terminal.
pub fn credential(args: &LoginArgs, host: &Host) -> Result<Credential> {
    let mut terminal = if args.password_stdin {
        None
    } else {
        Terminal::open()
    };
    let no_terminal = "there is no terminal to ask at; pass --username NAME --password-stdin";
    let username = match (&args.username, &mut terminal) {
        (Some(name), _) => name.clone(),
        (None, Some(terminal)) => terminal.ask(&format!("User name for {host}: "))?,
        (None, None) => return Err(anyhow!(no_terminal)).exit(Exit::Usage),
    };
    if username.is_empty() || username.contains(':') || username.contains(char::is_control) {
        return Err(anyhow!(
            "the user name (--username) cannot be empty or contain a colon or control characters"
        ))
        .exit(Exit::Usage);
    }
    let password = match (&args.password, &mut terminal) {
        (Some(password), _) => password.clone(),
        _ if args.password_stdin => secret_from_stdin().exit(Exit::Usage)?,
        (None, Some(terminal)) => terminal.ask_secret(&format!("Password of {username}: "))?,
        (None, None) => return Err(anyhow!(no_terminal)).exit(Exit::Usage),
    };
    if password.is_empty() {
        return Err(anyhow!("the password is empty")).exit(Exit::Usage);
    }
    Ok(Credential::Basic { username, password })
}

/// Shows the credential to the registry. Whether it was asked for one.
pub async fn check(
    host: &Host,
    credential: &Credential,
    client: impl FnOnce(Arc<dyn CredentialSource>) -> Result<Client>,
) -> Result<bool> {
    let asked = Arc::new(AtomicBool::new(false));
    let source = {
        let (asked, own, credential) = (Arc::clone(&asked), host.clone(), credential.clone());
        move |host: &Host| {
            asked.store(true, Ordering::Relaxed);
            Ok(if *host == own {
                credential.clone()
            } else {
                Credential::Anonymous
            })
        }
    };
    match client(Arc::new(source))?.ping(host).await {
        Ok(()) => Ok(asked.load(Ordering::Relaxed)),
        Err(error @ TransferError::Denied { .. }) => {
            Err(error).with_context(|| format!("login to {host} refused; nothing was stored"))
        }
        Err(error) => {
            Err(error).with_context(|| format!("cannot log in to {host}; nothing was stored"))
        }
    }
}

/// Keeps the login where the file wants it, and says where that is.
pub fn keep(path: &std::path::Path, host: &Host, credential: &Credential) -> Result<String> {
    store::update(path, |file| match file.place(host) {
        Place::File => {
            file.set(host, credential)?;
            let kept = format!(
                "stored in {} (not encrypted; a credential helper would keep it safer)",
                path.display()
            );
            Ok((kept, true))
        }
        Place::Helper(name) => {
            helper::store(&name, host, credential)?;
            // An empty entry, as docker writes it, and no copy of the secret.
            file.set(host, &Credential::Anonymous)?;
            Ok((format!("stored with docker-credential-{name}"), true))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_as_people_type_them() {
        let env = |name: &str| {
            let known = match name {
                "CONTAINER_REGISTRY_STORAGE" => "/nonexistent",
                "CONTAINER_REGISTRY_URL" => "localhost:5001",
                _ => return None,
            };
            Some(known.to_owned())
        };
        let config = Config::resolve(&vec![], &env).unwrap();
        let host = |typed| host_of(&config, typed).map(|host| host.to_string());
        for (typed, meant) in [
            (None, "localhost:5001"),
            (Some("localhost"), "localhost:5001"),
            (Some("localhost:5000"), "localhost:5000"),
            (Some("ghcr.io"), "ghcr.io"),
            (Some("https://ghcr.io/"), "ghcr.io"),
            (Some("https://index.docker.io/v1/"), "docker.io"),
        ] {
            assert_eq!(host(typed).unwrap(), meant, "{typed:?}");
        }
        for bad in ["ghcr.io/team/app", "", "a b", "h:99999"] {
            assert!(host(Some(bad)).is_err(), "{bad}");
        }
    }
}
