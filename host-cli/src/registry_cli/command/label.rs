//! `label`: OCI labels into the images of a layout, before it is pushed.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use serde_json::json;
use vdkr_core::digest::Digest;
use vdkr_core::json_text::JsonTextError;
use vdkr_core::labels::{
    CREATED, LabelValues, auto_labels, dropped_labels, enabled, parse_label, relabel, unlabel,
};
use vdkr_core::manifest::ImageConfig;
use vdkr_transfer::layout::{Rewritten, rewrite_configs};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::{WithExit as _, exit_of, printable, words};
use crate::registry_cli::facts;

const EXAMPLES: &str = "\
Automatic labels and what sets or, with the value `none`, drops them:
  org.opencontainers.image.revision   OCI_IMAGE_REVISION   [the commit]
  org.opencontainers.image.ref.name   OCI_IMAGE_BRANCH     [the branch]
  org.opencontainers.image.created    OCI_IMAGE_BUILD_DATE [when the image was made]
  org.opencontainers.image.version    --version, IMAGE_VERSION
OCI_IMAGE_AUTO_LABELS=0 is as --no-auto. A label that is given counts more than an automatic one.

Examples:
  container-registry label tmp/deploy/images/qemux86-64/app-latest-oci
  container-registry label app-latest-oci --no-auto --label com.example.team=core";

/// Options of `label`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub struct LabelArgs {
    /// OCI layout directories
    #[arg(value_name = "PATH", required = true)]
    pub paths: Vec<PathBuf>,
    /// Label to write (repeatable)
    #[arg(short, long = "label", value_name = "NAME=VALUE")]
    pub labels: Vec<String>,
    /// Write the automatic labels whatever OCI_IMAGE_AUTO_LABELS says
    #[arg(long, conflicts_with = "no_auto")]
    pub auto: bool,
    /// Write no automatic labels
    #[arg(long)]
    pub no_auto: bool,
    /// Version for the automatic label [env: IMAGE_VERSION]
    #[arg(short = 'v', long = "version", value_name = "X.Y.Z")]
    pub image_version: Option<String>,
    /// Print one JSON object per layout
    #[arg(long)]
    pub json: bool,
}

/// Labels each layout. One that fails does not stop the others.
pub fn run(config: &Config, args: &LabelArgs) -> Result<Exit> {
    let mut explicit = Vec::new();
    for label in &args.labels {
        let label = parse_label(label).with_context(|| format!("--label {label:?}"));
        explicit.push(label.exit(Exit::Usage)?);
    }
    let automatic = Automatic::new(config, args)?;
    if !automatic.enabled && explicit.is_empty() {
        return Err(anyhow!(
            "nothing to write: automatic labels are off and no --label is given"
        ))
        .exit(Exit::Usage);
    }
    let outcomes = args.paths.iter().map(|path| {
        let labelled = label(path, &automatic, &explicit);
        match labelled {
            Ok(rewritten) => {
                report(path, &rewritten, args.json);
                Exit::Done
            }
            Err(error) => {
                let said = format!("{}: {}", path.display(), words(&error));
                eprintln!("error: {}", printable(&said));
                exit_of(&error)
            }
        }
    });
    let outcomes: Vec<_> = outcomes.collect();
    Ok(Exit::of_several(outcomes))
}

/// What the automatic labels are made of; gathered once for the run.
struct Automatic {
    enabled: bool,
    facts: LabelValues,
    overrides: LabelValues,
    now: String,
}

impl Automatic {
    fn new(config: &Config, args: &LabelArgs) -> Result<Self> {
        let env = |name: &str| std::env::var(name).ok();
        let auto = env("OCI_IMAGE_AUTO_LABELS");
        let asked = auto
            .as_deref()
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        if !["", "0", "1", "false", "true", "no", "yes", "off", "on"].contains(&asked.as_str()) {
            return Err(anyhow!("OCI_IMAGE_AUTO_LABELS={asked:?}: expected 1 or 0"))
                .exit(Exit::Usage);
        }
        let created = env("OCI_IMAGE_BUILD_DATE").filter(|date| !date.is_empty());
        if let Some(date) = &created
            && date != "none"
            && date.parse::<jiff::Timestamp>().is_err()
        {
            return Err(anyhow!(
                "OCI_IMAGE_BUILD_DATE={date:?}: expected a time such as 2026-01-12T14:30:22Z, or none"
            ))
            .exit(Exit::Usage);
        }
        let wanted = args.auto || enabled(auto.as_deref());
        let facts = facts::gather(config);
        Ok(Self {
            enabled: wanted && !args.no_auto,
            facts: LabelValues {
                revision: facts.git_sha,
                ref_name: facts.branch,
                created: None,
                version: None,
            },
            overrides: LabelValues {
                revision: env("OCI_IMAGE_REVISION"),
                ref_name: env("OCI_IMAGE_BRANCH"),
                created,
                version: config.value("image_version").map(str::to_owned),
            },
            now: jiff::Timestamp::now()
                .strftime("%Y-%m-%dT%H:%M:%SZ")
                .to_string(),
        })
    }

    /// The labels for an image. Its own words for when it was made come before the clock, so that
    /// labelling again changes nothing.
    fn labels(&self, image: &ImageConfig) -> Vec<(String, String)> {
        let made = image.created.as_deref().filter(|text| is_time(text));
        let known = image.config.labels.get(CREATED).map(String::as_str);
        let facts = LabelValues {
            created: Some(made.or(known).unwrap_or(&self.now).to_owned()),
            ..self.facts.clone()
        };
        auto_labels(self.enabled, &facts, &self.overrides)
    }
}

/// A time that somebody set: year 1 is how Go writes none.
fn is_time(text: &str) -> bool {
    !text.starts_with("0001-") && text.parse::<jiff::Timestamp>().is_ok()
}

fn label(path: &Path, automatic: &Automatic, explicit: &[(String, String)]) -> Result<Rewritten> {
    if !path.join("index.json").is_file() {
        return Err(anyhow!(
            "it is no OCI layout directory: it has no index.json"
        ))
        .exit(Exit::NotFound);
    }
    let rewritten = rewrite_configs(path, &mut |text, image| {
        let mut labels = automatic.labels(image);
        labels.retain(|(name, _)| !explicit.iter().any(|(given, _)| given == name));
        for (at, (name, value)) in explicit.iter().enumerate() {
            // Of several with one name the last counts.
            if !explicit[at + 1..].iter().any(|(later, _)| later == name) {
                labels.push((name.clone(), value.clone()));
            }
        }
        let mut dropped = dropped_labels(automatic.enabled, &automatic.overrides);
        dropped.retain(|name| !explicit.iter().any(|(given, _)| given == name));
        let failed = |error: JsonTextError| error.to_string();
        let without = unlabel(text, &dropped).map_err(failed)?;
        let labelled = relabel(without.as_deref().unwrap_or(text), &labels).map_err(failed)?;
        Ok(labelled.or(without))
    })?;
    if rewritten.images.is_empty() {
        return Err(anyhow!("it holds no image that could have labels")).exit(Exit::NotFound);
    }
    Ok(rewritten)
}

fn report(path: &Path, rewritten: &Rewritten, as_json: bool) {
    for digest in &rewritten.stale {
        eprintln!(
            "warning: {digest} (a signature or attestation) speaks of the image as it was; make it again"
        );
    }
    if as_json {
        let images = rewritten.images.iter().map(|image| {
            json!({
                "name": image.name,
                "platform": image.platform.to_string(),
                "before": image.before.as_str(),
                "digest": image.now.as_str(),
                "labels": image.config.config.labels,
            })
        });
        let images: Vec<_> = images.collect();
        out!(
            "{}",
            json!({
                "path": path.display().to_string(),
                "changed": rewritten.is_changed(),
                "images": images,
                "removed": rewritten.removed.iter().map(Digest::as_str).collect::<Vec<_>>(),
                "stale": rewritten.stale.iter().map(Digest::as_str).collect::<Vec<_>>(),
            })
        );
        return;
    }
    for image in &rewritten.images {
        let name = image
            .name
            .as_deref()
            .map_or_else(String::new, |name| format!(":{name}"));
        let state = if image.before == image.now {
            "unchanged"
        } else {
            "labelled"
        };
        out!(
            "{state:9} {}{name} ({}) {}",
            path.display(),
            image.platform,
            image.now
        );
    }
}
