//! `inspect`: what an image is, in the words of skopeo.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use serde_json::{Map, Value, json};
use vdkr_core::manifest::media_type::is_image;
use vdkr_core::manifest::{Descriptor, ImageConfig, ParsedManifest};
use vdkr_core::platform::{Platform, choose};
use vdkr_core::template::Template;
use vdkr_core::transport::Place;
use vdkr_transfer::copy::read_raw_config;
use vdkr_transfer::{FetchedManifest, TransferError};

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::args::SourceArgs;
use crate::registry_cli::auth;
use crate::registry_cli::config::Config;
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::name::in_registry;
use crate::registry_cli::remote::Remote;
use crate::registry_cli::transport::{Opened, open, open_path, open_registry};

const EXAMPLES: &str = "\
IMAGE is a name in the configured registry, a path (./app-latest-oci, ./app.tar), or a place as copy
takes it (docker://…, oci:…, oci-archive:…, docker-archive:…, dir:…).

Examples:
  container-registry inspect container-base
  container-registry inspect --config container-base:latest --platform linux/arm64
  container-registry inspect --raw docker://docker.io/library/alpine:3
  container-registry inspect --format '{{.Digest}}' container-base";

/// Options of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option")]
pub struct InspectArgs {
    /// Image
    pub image: String,
    /// Print the configuration; with --raw, its bytes as they are
    #[arg(long)]
    pub config: bool,
    /// Print the bytes of the manifest or index as they are
    #[arg(long)]
    pub raw: bool,
    /// Platform to look at in an index [default: this machine's, else the first]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Leave RepoTags out
    #[arg(short = 'n', long)]
    pub no_tags: bool,
    /// Go template for the output: '{{.Digest}}'
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with_all = ["config", "raw"])]
    pub format: Option<String>,
    /// As skopeo spells it: `false` lets a docker:// place do without verified TLS
    #[arg(long, hide = true, value_name = "BOOL", require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// The output is JSON in any case; taken for the sake of scripts
    #[arg(long, hide = true)]
    pub json: bool,
    /// Credentials for a docker:// place.
    #[command(flatten)]
    pub source_auth: SourceArgs,
}

/// Prints what the image is.
pub async fn run(config: &Config, args: &InspectArgs) -> Result<()> {
    let platform = match &args.platform {
        Some(word) => Some(
            Platform::parse(word)
                .with_context(|| format!("--platform {word}"))
                .exit(Exit::Usage)?,
        ),
        None => None,
    };
    let template = match &args.format {
        Some(text) => Some(
            Template::parse(&text.replace("\\t", "\t").replace("\\n", "\n"))
                .map_err(|error| anyhow!("--format {text:?}: {error}"))
                .exit(Exit::Usage)?,
        ),
        None => None,
    };
    let image = opened(config, args).await?;
    if args.raw && !args.config {
        // An index is printed whole, unless a platform of it is asked for.
        let manifest = match &platform {
            Some(_) => of_platform(&image, platform.as_ref()).await?,
            None => image.root,
        };
        return bytes(&manifest.raw);
    }
    let manifest = of_platform(&image, platform.as_ref()).await?;
    let parsed = manifest.parse()?;
    let Some(inner) = parsed.as_image() else {
        return Err(anyhow!(
            "{} is an index without images; look at it with --raw",
            args.image
        ));
    };
    let raw = read_raw_config(&image.images, &inner.config).await?;
    if args.config {
        if args.raw {
            return bytes(&raw);
        }
        let config: Value = serde_json::from_slice(&raw)
            .with_context(|| format!("the configuration {} is not JSON", inner.config.digest))?;
        out!("{}", serde_json::to_string_pretty(&config)?);
        return Ok(());
    }
    let shown = describe(&image, &parsed, &raw, args).await?;
    if let Some(template) = template {
        let line = template.render(&shown, true);
        out!("{}", line.map_err(|error| anyhow!("--format: {error}"))?);
        return Ok(());
    }
    out!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

async fn opened(config: &Config, args: &InspectArgs) -> Result<Opened> {
    let text = args.image.as_str();
    if Place::has_transport(text) {
        let place = Place::parse(text)
            .with_context(|| format!("{text:?} is no place of an image"))
            .exit(Exit::Usage)?;
        let insecure = args.tls_verify == Some(false);
        return open(config, &place, &args.source_auth, insecure).await;
    }
    if text.starts_with(['/', '.']) {
        return open_path(Path::new(text)).await;
    }
    let reference = in_registry(text, &config.registry()?)?;
    let remote = Remote::connect(config, auth::configured(config)?).await?;
    open_registry(remote.client, &reference).await
}

/// The image of an index for a platform: the wanted one, else this machine's, else the first.
async fn of_platform(image: &Opened, wanted: Option<&Platform>) -> Result<FetchedManifest> {
    let mut manifest = image.root.clone();
    // Indexes nest, but not without end.
    for _ in 0..8 {
        let parsed = manifest.parse()?;
        let Some(index) = parsed.as_index() else {
            return checked(image, manifest, wanted).await;
        };
        let entry = match wanted {
            Some(platform) => choose(&index.manifests, platform).ok_or_else(|| {
                let there: Vec<_> = platforms(&index.manifests);
                anyhow!(
                    "the image has nothing for {platform}, only {}",
                    there.join(", ")
                )
            }),
            None => choose(&index.manifests, &Platform::linux(std::env::consts::ARCH))
                .or_else(|| index.manifests.iter().find(|e| is_image(&e.media_type)))
                .or(index.manifests.first())
                .ok_or_else(|| anyhow!("the index has no entries; look at it with --raw")),
        };
        manifest = image.images.manifest(entry.exit(Exit::NotFound)?).await?;
    }
    Err(anyhow!("its indexes nest too deep"))
}

/// An image that is no index is its own only platform.
async fn checked(
    image: &Opened,
    manifest: FetchedManifest,
    wanted: Option<&Platform>,
) -> Result<FetchedManifest> {
    let parsed = manifest.parse()?;
    if let (Some(wanted), Some(inner)) = (wanted, parsed.as_image())
        && image.root.digest == manifest.digest
        && let Ok(config) = vdkr_transfer::copy::read_config(&image.images, &inner.config).await
    {
        let entry = Descriptor {
            platform: Some(config.platform()),
            ..manifest.descriptor()
        };
        if choose(std::slice::from_ref(&entry), wanted).is_none() {
            return Err(anyhow!(
                "the image is for {}, not for {wanted}",
                config.platform()
            ))
            .exit(Exit::NotFound);
        }
    }
    Ok(manifest)
}

fn platforms(entries: &[Descriptor]) -> Vec<String> {
    entries
        .iter()
        .filter_map(|entry| Some(entry.platform.as_ref()?.to_string()))
        .collect()
}

/// The keys of `skopeo inspect`, in its order; an index also gets `Platforms`.
async fn describe(
    image: &Opened,
    manifest: &ParsedManifest,
    raw_config: &[u8],
    args: &InspectArgs,
) -> Result<Value> {
    // An artifact's configuration may be anything.
    let config = ImageConfig::parse(raw_config).unwrap_or_default();
    let docker_version = serde_json::from_slice::<Value>(raw_config)
        .ok()
        .and_then(|config| Some(config.get("docker_version")?.as_str()?.to_owned()));
    let (name, tags) = match &image.registry {
        Some((client, repository)) if !args.no_tags => {
            let tags = match client.tags(repository).await {
                // Some registries let images be pulled, but not be listed.
                Err(TransferError::Denied { .. } | TransferError::NotFound { .. }) => Vec::new(),
                tags => tags?,
            };
            (Some(repository.to_string()), tags)
        }
        Some((_, repository)) => (Some(repository.to_string()), Vec::new()),
        None => (None, Vec::new()),
    };
    let layers = manifest.as_image().map_or(&[][..], |image| &image.layers);
    let layers_data: Vec<_> = layers
        .iter()
        .map(|layer| {
            json!({
                "MIMEType": layer.media_type,
                "Digest": layer.digest,
                "Size": layer.size,
                "Annotations": if layer.annotations.is_empty() { Value::Null } else { json!(layer.annotations) },
            })
        })
        .collect();
    let labels = &config.config.labels;
    let mut shown = Map::new();
    let mut add = |key: &str, value: Value| {
        shown.insert(key.to_owned(), value);
    };
    if let Some(name) = name {
        add("Name", name.into());
    }
    add("Digest", json!(image.root.digest));
    add("RepoTags", json!(tags));
    add("Created", json!(config.created));
    add("DockerVersion", json!(docker_version.unwrap_or_default()));
    add(
        "Labels",
        if labels.is_empty() {
            Value::Null
        } else {
            json!(labels)
        },
    );
    add("Architecture", json!(config.architecture));
    if let Some(variant) = &config.variant {
        add("Variant", json!(variant));
    }
    add("Os", json!(config.os));
    let digests: Vec<_> = layers.iter().map(|layer| &layer.digest).collect();
    add("Layers", json!(digests));
    add("LayersData", json!(layers_data));
    add("Env", json!(config.config.env));
    if let Some(index) = image.root.parse()?.as_index() {
        add("Platforms", json!(platforms(&index.manifests)));
    }
    Ok(Value::Object(shown))
}

/// Writes bytes to stdout, not one more.
fn bytes(bytes: &[u8]) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}
