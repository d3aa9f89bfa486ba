//! `copy`: an image from any place to any other, bit for bit.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use serde_json::json;
use vdkr_core::platform::Platform;
use vdkr_core::transport::{Format, Place};
use vdkr_transfer::{Copier, CopyOptions};

use super::push::sink;
use crate::exit::Exit;
use crate::out;
use crate::progress::{Mode, Progress as Display};
use crate::registry_cli::args::{AuthArgs, SourceArgs};
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::remote::client_with;
use crate::registry_cli::transport::{Target, open};

const PLACES: &str = "\
Places:
  docker://HOST[:PORT]/NAME[:TAG|@DIGEST]   a registry
  oci:DIR[:NAME]                            an OCI layout directory
  oci-archive:FILE[:NAME]                   a tar archive of one; read plain, gzip or zstd
  docker-archive:FILE[:NAME[:TAG]]          what docker save writes and docker load reads
  dir:DIR                                   skopeo's directory
  docker-daemon:NAME[:TAG]                  read through docker save
  containers-storage:NAME[:TAG]             read through podman save
A place in a file's list is written @N instead of the name, counted from 0.

Examples:
  container-registry copy docker://docker.io/library/alpine:3 oci-archive:alpine.tar:3
  container-registry copy oci:build/app-oci docker://localhost:5000/yocto/app:v1
  container-registry copy --platform linux/arm64 docker://ghcr.io/x/y:1 docker-archive:y.tar:y:1";

/// Options of `copy`.
#[derive(Debug, Args)]
#[command(after_help = PLACES)]
pub struct CopyArgs {
    /// Where the image is
    #[arg(value_name = "SOURCE")]
    pub source: String,
    /// Where it goes
    #[arg(value_name = "DESTINATION")]
    pub destination: String,
    /// Copy this platform of an index only (repeatable); makes a new index
    #[arg(long = "platform", value_name = "OS/ARCH[/VARIANT]")]
    pub platforms: Vec<String>,
    /// Copy every platform, which is the default
    #[arg(short, long, conflicts_with = "platforms")]
    pub all: bool,
    /// Copy what refers to the image too: signatures, attestations, bills of material
    #[arg(long)]
    pub referrers: bool,
    /// Credentials for the source.
    #[command(flatten)]
    pub source_auth: SourceArgs,
    /// Credentials for the destination.
    #[command(flatten)]
    pub auth: AuthArgs,
    /// As skopeo spells it: `false` lets the destination do without verified TLS
    #[arg(long, hide = true, value_name = "BOOL", require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    pub dest_tls_verify: Option<bool>,
    /// Print a JSON report
    #[arg(long)]
    pub json: bool,
}

/// Copies, and prints the destination with the digest of what is there now.
pub async fn run(config: &Config, args: &CopyArgs, progress: Mode) -> Result<()> {
    let from = place(&args.source)?;
    let to = place(&args.destination)?;
    let platforms = platforms(&args.platforms)?;
    if args.referrers && !takes_referrers(&to) {
        return Err(anyhow!(
            "{to} has no place for what refers to an image; leave out --referrers"
        ))
        .exit(Exit::Usage);
    }
    let source = open(config, &from, &args.source_auth, false)
        .await
        .with_context(|| format!("source {from}"))?;
    let target = Target::open(&to, |host| {
        let insecure = (args.dest_tls_verify == Some(false)).then(|| host.clone());
        let credentials = auth::named(config, &args.auth, host)?;
        client_with(config, credentials, insecure.into_iter().collect())
    })
    .with_context(|| format!("destination {to}"))?;
    if platforms.is_empty() {
        target.check(&source.root)?;
    }
    let display = Arc::new(Display::new(progress));
    let copier = Copier::new(CopyOptions {
        platforms,
        referrers: args.referrers,
        progress: sink(&display),
        ..CopyOptions::default()
    });
    let (report, root) = copier
        .copy_root(source.images, source.root, target.images(), target.tag())
        .await?;
    target.check(&root)?;
    target
        .finish(root)
        .await
        .with_context(|| format!("destination {to}"))?;
    let digest = &report.root.digest;
    if report.subset {
        display.note(&format!(
            "Only {} was copied: {digest} is a new index, not the source's",
            args.platforms.join(", ")
        ));
    }
    if args.json {
        let report = json!({
            "source": from.to_string(),
            "destination": to.to_string(),
            "digest": digest,
            "mediaType": report.root.media_type,
            "subset": report.subset,
            "blobs": {
                "written": report.written.0, "bytes": report.written.1, "present": report.present,
                "mounted": report.mounted, "skipped": report.skipped,
            },
            "manifests": report.manifests,
        });
        out!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        out!("{to} {digest}");
    }
    Ok(())
}

/// Docker's list and skopeo's directory hold an image and nothing else.
fn takes_referrers(to: &Place) -> bool {
    let formats = [Format::Dir, Format::DockerArchive];
    !matches!(to, Place::File { format, .. } if formats.contains(format))
}

fn place(text: &str) -> Result<Place> {
    Place::parse(text)
        .with_context(|| format!("{text:?} is no place of an image"))
        .exit(Exit::Usage)
}

/// Platforms as they are typed.
pub fn platforms(words: &[String]) -> Result<Vec<Platform>> {
    words
        .iter()
        .flat_map(|word| word.split(','))
        .map(|word| {
            Platform::parse(word)
                .with_context(|| format!("--platform {word}"))
                .exit(Exit::Usage)
        })
        .collect()
}
