//! `gc`: removes what no tag needs, while the registry goes on.

use std::fmt::Write as _;

use anyhow::Result;
use clap::Args;
use vdkr_core::extension::{GcOptions, GcReport};
use vdkr_core::retention::{Age, parse_age};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::confirm::confirm;
use crate::registry_cli::maintenance::{Keeper, show_findings};
use crate::vdkr::human::{columns, size};

/// Options of `gc`.
#[derive(Debug, Args)]
pub struct GcArgs {
    /// Only show what would be removed, and why
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
    /// Keep what was pushed or asked for within this time (90s, 30m, 1h, 7d)
    #[arg(long, value_name = "AGE", default_value = "1h", value_parser = parse_age)]
    pub grace: u64,
    /// Keep so many earlier images of each tag, for rollback
    #[arg(long, value_name = "N", default_value_t = GcOptions::default().history)]
    pub keep_history: usize,
    /// Keep them for this time after they were replaced
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = parse_age)]
    pub history_age: u64,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// Collects garbage where the storage is kept.
pub async fn run(config: &Config, args: &GcArgs) -> Result<Exit> {
    let keeper = Keeper::find(config).await?;
    let mut options = GcOptions {
        dry_run: true,
        grace: args.grace,
        history: args.keep_history,
        history_age: args.history_age,
    };
    if args.dry_run || !args.yes {
        eprintln!("Collecting garbage from: {}", keeper.place());
        let (report, _) = keeper.collect_garbage(&options).await?;
        if args.dry_run {
            return show(&report, args);
        }
        eprintln!("{}", summary(&report));
        if !confirm("Proceed with garbage collection?", false)? {
            eprintln!("Cancelled.");
            return Ok(Exit::Done);
        }
    }
    options.dry_run = false;
    let (report, joined) = keeper.collect_garbage(&options).await?;
    if joined {
        eprintln!("A collection was under way already; this is its result.");
    }
    let exit = show(&report, args)?;
    eprintln!("Garbage collection complete.");
    Ok(exit)
}

/// Prints a report. What could not be understood makes it [`Exit::Partial`].
fn show(report: &GcReport, args: &GcArgs) -> Result<Exit> {
    if args.json {
        out!("{}", serde_json::to_string_pretty(report)?);
    } else {
        print(report);
    }
    show_findings(&report.findings);
    Ok(if report.findings.is_empty() {
        Exit::Done
    } else {
        Exit::Partial
    })
}

fn print(report: &GcReport) {
    if report.dry_run {
        for item in &report.removed {
            let place = match &item.repository {
                Some(repository) => format!("{repository}@{}", item.digest),
                None => item.digest.to_string(),
            };
            out!("{place} {} {}", size(item.size), item.reason);
        }
    }
    if !report.by_repository.is_empty() {
        let head = ["REPOSITORY", "MANIFESTS", "BLOBS", "SIZE"].map(str::to_owned);
        let rows = report.by_repository.iter().map(|sum| {
            vec![
                sum.repository.clone(),
                sum.manifests.to_string(),
                sum.blobs.to_string(),
                size(sum.bytes),
            ]
        });
        let rows: Vec<_> = std::iter::once(head.to_vec()).chain(rows).collect();
        out!("{}", columns(&rows).trim_end());
    }
    for repository in &report.emptied {
        let verb = if report.dry_run { "would be" } else { "was" };
        out!("{repository} {verb} left empty and removed");
    }
    out!("{}", summary(report));
}

/// What a run did or would do, in one sentence or two.
pub fn summary(report: &GcReport) -> String {
    let verb = if report.dry_run {
        "would free"
    } else {
        "freed"
    };
    let mut text = format!(
        "{} manifests, {} repository blobs and {} stored files {}; this {verb} {} ({} bytes).",
        report.removed_manifests,
        report.removed_links,
        report.removed_blobs,
        if report.dry_run {
            "would be removed"
        } else {
            "were removed"
        },
        size(report.freed_bytes),
        report.freed_bytes,
    );
    if report.young > 0 {
        let _ = write!(
            text,
            " {} in {} manifests and blobs are unused, and kept until the grace of {} has passed \
             (--grace 0s).",
            size(report.young_bytes),
            report.young,
            Age(report.grace)
        );
    }
    if report.history > 0 {
        let _ = write!(
            text,
            " {} in {} manifests and blobs are kept as the history of tags (--keep-history 0).",
            size(report.history_bytes),
            report.history
        );
    }
    text
}
