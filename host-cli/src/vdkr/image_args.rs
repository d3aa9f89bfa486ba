//! Command line of the commands about images, registries and the whole system.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};
use vdkr_core::credentials::Secret;

/// Commands behind `image`.
#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Show how an image was made
    History(HistoryArgs),
    /// Make an image of a tar archive of a root file system
    Import(ImportArgs),
    /// Show everything about images, as JSON
    Inspect(InspectArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ImagesArgs),
    /// Remove images that nothing names
    Prune(PruneArgs),
    /// Fetch images into the machine, from the registry first
    Pull(PullArgs),
    /// Send images to a registry
    Push(PushArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
    /// Write images into an archive
    Save(SaveArgs),
    /// Give an image one more name
    Tag(TagArgs),
}

/// Commands behind `system`.
#[derive(Debug, Subcommand)]
pub enum SystemCommand {
    /// Show the room that images, containers, volumes and layers take
    Df(DfArgs),
    /// Show what runs containers, and on what
    Info(InfoArgs),
    /// Remove containers that do not run, and what nothing needs
    Prune(SystemPruneArgs),
    /// Not there; says what to use instead
    #[command(hide = true)]
    Events {
        /// Whatever was asked for.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
}

/// Arguments of `pull`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr --registry localhost:5000/yocto pull container-base
  vdkr pull docker.io/library/alpine:3 ghcr.io/x/y:1
  vdkr pull -q --platform linux/arm64 container-base")]
pub struct PullArgs {
    /// Names of the images
    #[arg(required = true, value_name = "NAME[:TAG|@DIGEST]")]
    pub names: Vec<String>,
    /// Print the stored name and nothing else
    #[arg(short, long)]
    pub quiet: bool,
    /// Every tag of the repository
    #[arg(short, long)]
    pub all_tags: bool,
    /// Platform to pull, such as linux/arm64, instead of the machine's own
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
}

/// Arguments of `push`.
#[derive(Debug, Args)]
#[command(after_help = "\
A name without a host goes to the registry of --registry or vconfig.
Layers that the registry has are not sent; where it has all of them, the image keeps its digest.
A tag is an index, as container-registry makes it: an image for another architecture is added to it,
one for the same replaces its predecessor.

Examples:
  vdkr --registry localhost:5000/yocto push container-base
  vdkr tag container-base localhost:5000/mine/base:2 && vdkr push localhost:5000/mine/base:2")]
pub struct PushArgs {
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub name: String,
    /// Every tag of the name
    #[arg(short, long)]
    pub all_tags: bool,
    /// Print the name and nothing else
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `images`.
#[derive(Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
#[command(after_help = "\
Fields of a template: .Repository .Tag .Digest .ID .CreatedAt .CreatedSince .Size .Labels .Containers
Filters: reference=PATTERN dangling=true|false label=NAME[=VALUE] before=IMAGE since=IMAGE

Examples:
  vdkr images --format '{{.Repository}}:{{.Tag}} {{.Size}}'
  vdkr images --filter dangling=true -q")]
pub struct ImagesArgs {
    /// Show only images of this name, which may have * and ?
    #[arg(value_name = "REPOSITORY[:TAG]")]
    pub name: Option<String>,
    /// All images (there are no hidden ones)
    #[arg(short, long)]
    pub all: bool,
    /// Show digests
    #[arg(long)]
    pub digests: bool,
    /// Only images that fit (repeatable)
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// Form of the output: table, json (a line for each image), or a template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print one JSON array
    #[arg(long, conflicts_with_all = ["format", "quiet"])]
    pub json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr inspect container-base
  vdkr inspect -f '{{json .Config.Env}}' container-base
  vdkr inspect -f '{{range .RepoTags}}{{println .}}{{end}}' container-base")]
pub struct InspectArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    pub names: Vec<String>,
    /// Form of the output: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Kind of object: container, image or volume; any when absent
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
}

/// Arguments of `history`.
#[derive(Debug, Args)]
#[command(after_help = "\
Fields of a template: .ID .CreatedAt .CreatedSince .CreatedBy .Size .Comment

Example:
  vdkr history --no-trunc container-base")]
pub struct HistoryArgs {
    /// Name or id of an image
    #[arg(value_name = "NAME|ID")]
    pub name: String,
    /// Form of the output: table, json (a line for each step), or a template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Sizes and times for people (--human=false for numbers)
    #[arg(short = 'H', long, default_value_t = true, action = clap::ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub human: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `rmi`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vdkr rmi container-base 0a1b2c3d4e5f")]
pub struct RemoveArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    pub names: Vec<String>,
    /// Also an image that has several names or is in use
    #[arg(short, long)]
    pub force: bool,
}

/// Arguments of `tag`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vdkr tag container-base mine:1.0")]
pub struct TagArgs {
    /// Name or id of an image
    #[arg(value_name = "NAME|ID")]
    pub source: String,
    /// The new name
    #[arg(value_name = "NEW_NAME")]
    pub target: String,
}

/// Arguments of `system prune`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of docker's"
)]
#[command(after_help = "\
Filters: label=NAME[=VALUE] label!=NAME[=VALUE] until=TIME or AGE such as 24h

Examples:
  vdkr system prune --dry-run
  vdkr system prune -a -f --volumes")]
pub struct SystemPruneArgs {
    /// Also images with names that no container uses
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Say what would go, and leave it
    #[arg(long)]
    pub dry_run: bool,
    /// Also volumes without a name of their own
    #[arg(long)]
    pub volumes: bool,
    /// Only containers and images that fit (repeatable)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Filters: label=NAME[=VALUE] label!=NAME[=VALUE] until=TIME or AGE such as 24h

Examples:
  vdkr image prune --dry-run
  vdkr image prune -a -f --filter until=168h")]
pub struct PruneArgs {
    /// Also images with names that no container uses
    #[arg(short, long)]
    pub all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Say what would go, and leave it
    #[arg(long)]
    pub dry_run: bool,
    /// Only images that fit (repeatable)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// Arguments of `save`.
#[derive(Debug, Args)]
#[command(after_help = "\
The archive is what docker load, podman load and skopeo (docker-archive:, oci-archive:) read.

Examples:
  vdkr save -o base.tar container-base
  vdkr save container-base | docker load")]
pub struct SaveArgs {
    /// Names or ids
    #[arg(required = true, value_name = "NAME|ID")]
    pub names: Vec<String>,
    /// File to write; otherwise standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Form of the archive: docker, which is an OCI layout too, or oci alone
    #[arg(long, value_name = "FORMAT", default_value = "docker", value_parser = ["docker", "docker-archive", "oci", "oci-archive"])]
    pub format: String,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
#[command(after_help = "\
Reads what docker save, podman save and skopeo write, plain or compressed with gzip or zstd.

Examples:
  vdkr load -i base.tar
  docker save alpine | vdkr load")]
pub struct LoadArgs {
    /// File to read; otherwise standard input
    #[arg(short, long, value_name = "FILE")]
    pub input: Option<PathBuf>,
    /// Platform to load, such as linux/arm64, instead of the machine's own
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
    /// Print names and nothing else
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `import`.
#[derive(Debug, Args)]
#[command(after_help = "\
Changes: CMD ENTRYPOINT ENV EXPOSE LABEL STOPSIGNAL USER VOLUME WORKDIR, as in a Dockerfile

Examples:
  vdkr import rootfs.tar.gz board:1
  tar -C rootfs -c . | vdkr import -c 'CMD [\"/bin/sh\"]' - board:1")]
pub struct ImportArgs {
    /// Archive, plain or compressed with gzip or zstd; - is standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Name of the image
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
    /// How the image is run, in the words of a Dockerfile (repeatable)
    #[arg(short, long, value_name = "CHANGE")]
    pub change: Vec<String>,
    /// What its history says
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Platform of the image, instead of the machine's own
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    pub platform: Option<String>,
}

/// Arguments of `vimport`.
#[derive(Debug, Args)]
#[command(after_help = "\
What stands at PATH is found out: an OCI layout, for one or several platforms; an archive of
images; skopeo's directory; a root file system, as a directory or in a tar archive.

Examples:
  vdkr vimport tmp/deploy/images/qemux86-64/container-base-latest-oci container-base
  vdkr vimport ./rootfs board:1")]
pub struct VimportArgs {
    /// Directory or file; - is an archive on standard input
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// Name of the image [default: imported:latest]
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
    /// How a root file system is run, in the words of a Dockerfile (repeatable)
    #[arg(short, long, value_name = "CHANGE")]
    pub change: Vec<String>,
}

/// Arguments of `login`.
#[derive(Debug, Args)]
#[command(after_help = "\
The password is kept on this computer, where docker, podman and container-registry look too, and goes
to the machine with each request that needs it.

Examples:
  vdkr login localhost:5000
  pass show ghcr | vdkr login ghcr.io -u me --password-stdin")]
pub struct LoginArgs {
    /// Registry [default: the configured one, else Docker Hub]
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
}

/// Arguments of `logout`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vdkr logout localhost:5000")]
pub struct LogoutArgs {
    /// Registry [default: the configured one, else Docker Hub]
    #[arg(value_name = "HOST[:PORT]")]
    pub host: Option<String>,
}

/// Arguments of `info`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vdkr info -f '{{.Images}} images, {{.KernelVersion}}'")]
pub struct InfoArgs {
    /// Form of the output: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Arguments of `version`.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  vdkr version -f '{{.Client.Version}}'")]
pub struct VersionArgs {
    /// Form of the output: json, or a template
    #[arg(short, long, value_name = "FORMAT")]
    pub format: Option<String>,
}

/// Arguments of `system df`.
#[derive(Debug, Args)]
#[command(after_help = "\
With --verbose a row for each image, container and volume; json then is one object.
Fields of a template: .Type .TotalCount .Active .Size .Reclaimable

Examples:
  vdkr system df --format json
  vdkr system df -v")]
pub struct DfArgs {
    /// Show each image, container and volume
    #[arg(short, long)]
    pub verbose: bool,
    /// Form of the output: table, json (a line for each row), or a template
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
}
