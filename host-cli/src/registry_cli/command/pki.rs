//! `pki`: the registry's certificate authority and server certificate.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use vdkr_transfer::TransferError;

use crate::exit::Exit;
use crate::out;
use crate::pki::{Certificate, PkiError, Renew, date};
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::remote::Remote;
use crate::registry_cli::secure;

/// How long a running server may take to see new files.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at it.
const PAUSE: Duration = Duration::from_millis(100);

/// Options of `pki`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  container-registry pki init\n  container-registry pki show")]
pub struct PkiArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PkiCommand,
}

/// What `pki` does.
#[derive(Debug, Subcommand)]
pub enum PkiCommand {
    /// Make the CA and the server certificate if they are missing or due
    #[command(after_help = "Example:\n  container-registry pki init")]
    Init,
    /// Print subjects, names, fingerprints and the days that are left
    #[command(
        after_help = "Examples:\n  container-registry pki show\n  container-registry pki show --json"
    )]
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Issue the server certificate again; a running server takes it up by itself
    #[command(
        after_help = "Examples:\n  container-registry pki renew\n  container-registry pki renew --ca"
    )]
    Renew {
        /// Make a new server key as well
        #[arg(long)]
        new_key: bool,
        /// Make a new CA as well: every client must be given its ca.crt
        #[arg(long)]
        ca: bool,
    },
}

/// Runs `pki`.
pub async fn run(config: &Config, args: &PkiArgs) -> Result<()> {
    let pki = secure::pki(config);
    match args.command {
        PkiCommand::Init => {
            secure::certificates(config)?;
            out!("{}", pki.ca_certificate().display());
        }
        PkiCommand::Show { json } => {
            let (ca, server) = match pki.show() {
                Err(error @ PkiError::Missing(_)) => return Err(error).exit(Exit::NotFound),
                other => other?,
            };
            show(
                (&ca, &pki.ca_certificate()),
                (&server, &pki.server_certificate()),
                json,
            )?;
        }
        PkiCommand::Renew { new_key, ca } => {
            let what = match (ca, new_key) {
                (true, _) => Renew::Ca,
                (false, true) => Renew::ServerKey,
                (false, false) => Renew::Server,
            };
            let standing = pki.renew(&secure::wanted(config)?, what, secure::now())?;
            secure::tell(&standing);
            taken_up(config).await?;
            out!(
                "{} {}",
                pki.server_certificate().display(),
                standing.server.fingerprint
            );
        }
    }
    Ok(())
}

/// Waits until a running server shows a certificate that this machine's commands trust: after a new CA
/// they would fail until then.
async fn taken_up(config: &Config) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while secure::live(config)?.is_some() {
        let answer = Remote::probe(config).await;
        let Err(error) = answer else { break };
        let is_tls = |cause: &(dyn std::error::Error + 'static)| {
            matches!(cause.downcast_ref(), Some(TransferError::Tls { .. }))
        };
        if !error.chain().any(is_tls) {
            break;
        }
        if Instant::now() >= deadline {
            eprintln!(
                "warning: the running server does not show its new certificate yet; if it stays so: container-registry stop, then start"
            );
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

fn show(
    (ca, ca_file): (&Certificate, &Path),
    (server, server_file): (&Certificate, &Path),
    as_json: bool,
) -> Result<()> {
    let now = secure::now();
    if as_json {
        let both = json!({
            "ca": ca.summary(ca_file, now),
            "server": server.summary(server_file, now),
        });
        out!("{}", serde_json::to_string_pretty(&both)?);
        return Ok(());
    }
    for (title, certificate, file) in [("CA", ca, ca_file), ("Server", server, server_file)] {
        out!("{title}: {}", certificate.subject);
        out!("  File: {}", file.display());
        out!("  Issuer: {}", certificate.issuer);
        if !certificate.names.is_empty() {
            let names: Vec<_> = certificate.names.iter().map(ToString::to_string).collect();
            out!("  Names: {}", names.join(", "));
        }
        out!(
            "  Ends: {} ({} days left)",
            date(certificate.validity.not_after),
            certificate.validity.days_left(now)
        );
        out!("  SHA-256: {}", certificate.fingerprint);
    }
    Ok(())
}
