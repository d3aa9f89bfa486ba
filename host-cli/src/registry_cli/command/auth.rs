//! `auth explain`: which credentials a registry is shown, from where, and why not from elsewhere.

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use vdkr_core::credentials::Credential;

use super::login::host_of;
use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::AuthArgs;
use crate::registry_cli::auth::{self, Finding, Verdict};
use crate::registry_cli::config::Config;

/// Options of `auth`.
#[derive(Debug, Args)]
pub struct AuthCommandArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AuthCommand,
}

/// What can be done about credentials.
#[derive(Debug, Subcommand)]
pub enum AuthCommand {
    /// Show which credentials a registry gets, from where, and why not from elsewhere
    Explain(ExplainArgs),
}

/// Options of `auth explain`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry auth explain
  container-registry auth explain ghcr.io
  container-registry auth explain --authfile build/auth.json --json")]
pub struct ExplainArgs {
    /// Registry, host[:port] [default: the configured one]
    #[arg(value_name = "HOST[:PORT]")]
    pub host: Option<String>,
    /// Credentials that the explained command would be given.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Explains. A source that is broken is status 1, as the command would fail.
pub fn run(config: &Config, args: &AuthCommandArgs) -> Result<Exit> {
    let AuthCommand::Explain(args) = &args.command;
    let host = host_of(config, args.host.as_deref())?;
    let (mode, origin) = auth::mode(config, &args.auth);
    let mut findings = Vec::new();
    let sources = auth::sources_for(config, &args.auth, &host)?;
    let result = sources.walk(&host, &mut |finding| findings.push(finding));
    passed_over(config, &mode, &mut findings);
    let shown = match &result {
        Ok(credential) => credential.kind(),
        Err(_) => "none: a source is broken",
    };
    let user = match &result {
        Ok(Credential::Basic { username, .. }) => Some(username.as_str()),
        _ => None,
    };
    if args.json {
        let sources: Vec<_> = findings
            .iter()
            .map(|finding| {
                json!({
                    "source": finding.source,
                    "verdict": finding.verdict.to_string(),
                    "reason": finding.reason,
                })
            })
            .collect();
        let report = json!({
            "registry": host.to_string(),
            "mode": mode,
            "mode_from": origin,
            "credential": shown,
            "username": user,
            "sources": sources,
        });
        out!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        out!("Registry: {host}");
        out!("Mode: {mode} ({origin})");
        match user {
            Some(user) => out!("Credential: {shown}, user {user}"),
            None => out!("Credential: {shown}"),
        }
        out!("Sources, strongest first:");
        for Finding {
            source,
            verdict,
            reason,
        } in &findings
        {
            out!("  {verdict:8}  {source}: {reason}");
        }
    }
    Ok(match result {
        Ok(_) => Exit::Done,
        Err(_) => Exit::Failed,
    })
}

/// Adds what is set but has no say in this mode.
fn passed_over(config: &Config, mode: &str, findings: &mut Vec<Finding>) {
    let settings = [
        ("token", "env"),
        ("user", "env"),
        ("password", "env"),
        ("authfile", "authfile"),
        ("credsfile", "credsfile"),
    ];
    for (key, its_mode) in settings {
        let Some((_, origin)) = config.get(key) else {
            continue;
        };
        let token_won = its_mode == "env" && key != "token" && config.value("token").is_some();
        let reason = if mode != its_mode {
            format!("counts in auth mode {its_mode} only")
        } else if token_won {
            "the token came first".to_owned()
        } else {
            continue;
        };
        findings.push(Finding {
            source: format!("{key} ({origin})"),
            verdict: Verdict::Unused,
            reason,
        });
    }
}
