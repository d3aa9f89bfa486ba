//! `doctor`: whether clients on this machine, and guests, can use the registry, and what to mend.

use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::doctor::{Check, Verdict, examine};

/// Options of `doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  container-registry doctor
  container-registry doctor --json | jq '.checks[] | select(.verdict != \"ok\")'

Exit status: 0 when nothing failed (there may be warnings), else 1.")]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Examines everything and prints what came of it.
pub async fn run(config: &Config, args: &DoctorArgs) -> Result<Exit> {
    let checks = examine(config).await?;
    let count = |verdict| {
        checks
            .iter()
            .filter(|check| check.verdict == verdict)
            .count()
    };
    let (warnings, failures) = (count(Verdict::Warn), count(Verdict::Fail));
    if args.json {
        let checks: Vec<_> = checks
            .iter()
            .map(|check| {
                json!({
                    "subject": check.subject,
                    "verdict": check.verdict.word(),
                    "found": check.found,
                    "advice": check.advice,
                })
            })
            .collect();
        let report = json!({ "checks": checks, "warnings": warnings, "failures": failures });
        out!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        for Check {
            subject,
            verdict,
            found,
            advice,
        } in &checks
        {
            out!("{:4}  {subject:10}  {found}", verdict.word());
            if let Some(advice) = advice {
                out!("{:18}→ {advice}", "");
            }
        }
        eprintln!("{failures} failed, {warnings} to be looked at");
    }
    Ok(if failures == 0 {
        Exit::Done
    } else {
        Exit::Failed
    })
}
