//! Command line of `volume`.

use clap::{Args, Subcommand};

/// Commands behind `volume`.
#[derive(Debug, Subcommand)]
#[command(after_help = "\
Examples:
  vdkr volume create data
  vdkr run --rm -v data:/var/lib/app container-base touch /var/lib/app/x
  vdkr volume ls
  vdkr volume rm data
  vdkr volume prune --all --force")]
pub enum VolumeCommand {
    /// Make a volume; one that is there stays as it is
    Create(VolumeCreateArgs),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls(VolumeListArgs),
    /// Show everything about volumes, as JSON
    Inspect {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Form of the output: json, or a template
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<String>,
    },
    /// Remove volumes and what is in them
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// Say nothing about names that no volume has
        #[arg(short, long)]
        force: bool,
    },
    /// Remove volumes that no container uses: those without a name of their own
    Prune {
        /// Those with a name too
        #[arg(short, long)]
        all: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
    },
}

/// Arguments of `volume create`.
#[derive(Debug, Args)]
pub struct VolumeCreateArgs {
    /// Its name; a new one when absent
    pub name: Option<String>,
    /// Label (repeatable)
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub label: Vec<String>,
    /// What keeps it; there is local alone
    #[arg(short, long, value_name = "DRIVER", default_value = "local", value_parser = ["local"])]
    pub driver: String,
}

/// Arguments of `volume ls`.
#[derive(Debug, Args)]
pub struct VolumeListArgs {
    /// Only those that fit: dangling=true|false, driver=local, name=PART or label=NAME[=VALUE]
    /// (repeatable)
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Form of the output: table, json (a line for each), or a template such as {{.Name}}
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Print names only
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["format", "quiet"])]
    pub json: bool,
}
