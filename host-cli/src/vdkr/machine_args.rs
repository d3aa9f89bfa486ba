//! Command lines of `memres` and `vstorage`: machines that stay, and what machines take on the disk.

use clap::{Args, Subcommand};

/// Commands behind `memres`.
#[derive(Debug, Subcommand)]
pub enum MemresCommand {
    /// Start a machine that stays; returns when its agent has answered
    Start(MemresStartArgs),
    /// Stop it cleanly
    Stop(MemresStopArgs),
    /// Say whether it runs; status 3 when it does not
    Status(MemresStatusArgs),
    /// Stop it when it runs, and start it again
    Restart(MemresRestartArgs),
    /// List the machines of all architectures and instances
    List(MemresStatusArgs),
    /// Not there; says what to use instead
    #[command(hide = true)]
    CleanPorts,
    /// Keep the machine (started by `start`)
    #[command(hide = true)]
    Monitor(MemresStartArgs),
}

/// Commands behind `vstorage`.
#[derive(Debug, Subcommand)]
pub enum VstorageCommand {
    /// List the state directories of all architectures and instances
    #[command(after_help = "Example:\n  vdkr vstorage list --json")]
    List(VstorageListArgs),
    /// Print the state directory of an architecture
    #[command(after_help = "Examples:\n  vdkr vstorage path\n  vdkr -I test vstorage path aarch64")]
    Path(VstoragePathArgs),
    /// Show what state and layers take, and what of it can go
    #[command(after_help = "Example:\n  vdkr vstorage df")]
    Df(VstorageListArgs),
    /// Stop the machine, remove its state, and layers that no image needs any more
    #[command(after_help = "\
Examples:
  vdkr vstorage clean --layers     layers that no image needs, and nothing else
  vdkr vstorage clean aarch64      images, containers and volumes of this architecture
  vdkr vstorage clean --all        images, containers, volumes and layers below ~/.vdkr,
                                   of every architecture and instance")]
    Clean(VstorageCleanArgs),
}

/// Arguments of `vstorage list` and `df`.
#[derive(Debug, Args)]
pub struct VstorageListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `vstorage path`.
#[derive(Debug, Args)]
pub struct VstoragePathArgs {
    /// Architecture, instead of the one of this command
    pub arch: Option<String>,
}

/// Arguments of `vstorage clean`.
#[derive(Debug, Args)]
pub struct VstorageCleanArgs {
    /// Architecture, instead of the one of this command
    #[arg(conflicts_with_all = ["all", "layers"])]
    pub arch: Option<String>,
    /// Every state directory, and all layers
    #[arg(long)]
    pub all: bool,
    /// Only layers that no image needs
    #[arg(long, conflicts_with = "all")]
    pub layers: bool,
}

/// Arguments of `memres start`.
#[derive(Clone, Debug, Default, Args)]
pub struct MemresStartArgs {
    /// Seconds without a command after which the machine stops; 0 for never
    #[arg(long, value_name = "SECONDS")]
    pub idle_timeout: Option<String>,
    /// Not there; says what to use instead.
    #[arg(short, long, hide = true)]
    pub publish: Vec<String>,
}

/// Arguments of `memres restart`.
#[derive(Clone, Debug, Default, Args)]
pub struct MemresRestartArgs {
    /// Remove its images, containers and volumes in between
    #[arg(long)]
    pub clean: bool,
    /// As for a start.
    #[command(flatten)]
    pub start: MemresStartArgs,
}

/// Arguments of `memres stop`.
#[derive(Clone, Debug, Default, Args)]
pub struct MemresStopArgs {
    /// Without effect: one that does not stop is ended by force anyway.
    #[arg(short, long, hide = true)]
    pub force: bool,
}

/// Arguments of `memres status` and `list`.
#[derive(Debug, Args)]
pub struct MemresStatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
