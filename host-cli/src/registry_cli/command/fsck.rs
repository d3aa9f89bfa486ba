//! `fsck`: checks everything that is stored against its digest.

use anyhow::Result;
use clap::Args;
use vdkr_core::extension::{FsckOptions, FsckReport};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::maintenance::{Keeper, show_findings};
use crate::vdkr::human::size;

/// Options of `fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// Only say what is wrong; move nothing to the quarantine
    #[arg(long)]
    pub dry_run: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Checks the storage. Damage is status 6.
pub async fn run(config: &Config, args: &FsckArgs) -> Result<Exit> {
    let keeper = Keeper::find(config).await?;
    eprintln!("Checking: {}", keeper.place());
    let options = FsckOptions {
        dry_run: args.dry_run,
        ..FsckOptions::default()
    };
    let (report, joined) = keeper.check(&options).await?;
    if joined {
        eprintln!("A check was under way already; this is its result.");
    }
    if args.json {
        out!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    show_findings(&report.findings);
    Ok(if report.problems == 0 {
        Exit::Done
    } else {
        Exit::Mismatch
    })
}

fn print(report: &FsckReport) {
    for content in &report.quarantined {
        let digest = &content.digest;
        match &content.path {
            Some(path) => out!("damaged {digest}: {}; moved to {path}", content.problem),
            None => out!("damaged {digest}: {}", content.problem),
        }
    }
    for image in &report.incomplete {
        let name = match &image.tag {
            Some(tag) => format!("{}:{tag}", image.repository),
            None => format!("{}@{}", image.repository, image.digest),
        };
        let missing: Vec<_> = image.missing.iter().map(ToString::to_string).collect();
        out!("push again {name}: it lacks {}", missing.join(" "));
    }
    out!(
        "{} files ({}) in {} repositories checked: {}",
        report.files,
        size(report.bytes),
        report.repositories,
        match report.problems {
            0 => "everything is right".to_owned(),
            1 => "1 problem".to_owned(),
            n => format!("{n} problems"),
        }
    );
}
