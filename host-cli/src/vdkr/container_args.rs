//! Command line of the commands about containers.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand};

use super::image_args::InspectArgs;

/// Commands about containers.
#[derive(Debug, Subcommand)]
pub enum ContainerCommand {
    /// Join the streams of a container that runs
    Attach(AttachArgs),
    /// Make an image of a container
    Commit(CommitArgs),
    /// Copy files from and to a container
    Cp(CpArgs),
    /// Show which paths of a container differ from its image
    Diff(OneArgs),
    /// Run one more process in a container that runs
    Exec(ExecArgs),
    /// Write the files of a container into an archive
    Export(ExportArgs),
    /// Send containers a signal, KILL unless another is named
    Kill(KillArgs),
    /// Show what a container has written
    Logs(LogsArgs),
    /// Freeze the processes of containers
    Pause(NamesArgs),
    /// List containers
    Ps(PsArgs),
    /// Give a container another name
    Rename(RenameArgs),
    /// Stop containers and start them again
    Restart(StopArgs),
    /// Remove containers
    Rm(RmArgs),
    /// Start containers that exist
    Start(StartArgs),
    /// Show what containers use
    Stats(StatsArgs),
    /// Stop containers: their stop signal, and after a while KILL
    Stop(StopArgs),
    /// Show the processes of a container
    Top(TopArgs),
    /// Let frozen containers go on
    Unpause(NamesArgs),
    /// Wait for the end of containers and print their statuses
    Wait(NamesArgs),
}

/// Arguments of `attach`.
#[derive(Debug, Args)]
pub struct AttachArgs {
    /// Name or id
    pub container: String,
    /// What to type to leave it alone [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Leave standard input alone
    #[arg(long)]
    pub no_stdin: bool,
    /// Do not pass on signals
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
}

/// Commands behind `container`: those about containers, and more that are written so alone.
#[derive(Debug, Subcommand)]
pub enum ContainerGroup {
    /// Those that stand alone too.
    #[command(flatten)]
    Alone(ContainerCommand),
    /// Make a container and do not start it
    #[command(disable_help_flag = true)]
    Create {
        /// Options, image, command and its arguments.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS|IMAGE"
        )]
        words: Vec<OsString>,
    },
    /// Show everything about containers, as JSON
    Inspect(InspectArgs),
    /// List containers
    #[command(visible_alias = "list")]
    Ls(PsArgs),
    /// Remove all containers that do not run
    Prune(ContainerPruneArgs),
    /// Run a command in a new container
    #[command(disable_help_flag = true)]
    Run {
        /// Options, image, command and its arguments.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS|IMAGE"
        )]
        words: Vec<OsString>,
    },
}

/// Arguments of `commit`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr commit web site:1
  vdkr commit -c 'CMD [\"httpd\", \"-f\"]' -m 'with pages' web site:2

The image is run as the container was. What lies in volumes and host directories is not part of it.")]
pub struct CommitArgs {
    /// Who makes it
    #[arg(short, long, value_name = "TEXT")]
    pub author: Option<String>,
    /// Change how the image is run: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or
    /// WORKDIR (repeatable)
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// What its history says
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Freeze the container meanwhile
    #[arg(
        short,
        long,
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set,
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub pause: bool,
    /// Name or id of the container
    pub container: String,
    /// Name of the image; without one it has its id alone
    #[arg(value_name = "NAME[:TAG]")]
    pub name: Option<String>,
}

/// Arguments of `container prune`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr container prune -f
  vdkr container prune --filter until=24h --filter label!=keep")]
pub struct ContainerPruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub force: bool,
    /// Only containers that fit: until=TIME, label=NAME[=VALUE] (repeatable)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
}

/// Arguments of commands that take one container.
#[derive(Debug, Args)]
pub struct OneArgs {
    /// Name or id
    pub container: String,
}

/// Arguments of `top`.
#[derive(Debug, Args)]
#[command(after_help = "\
Columns: args c cmd command cputime pid ppid start stime time tty uid, each with =HEAD for its head

Examples:
  vdkr top web
  vdkr top web -o pid,cmd")]
pub struct TopArgs {
    /// Name or id
    pub container: String,
    /// Options of ps: -ef, -o COLUMN,...
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "PS_OPTIONS"
    )]
    pub options: Vec<String>,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr export -o rootfs.tar web
  vdkr export web | tar t

What is mounted in the container is not part of it.")]
pub struct ExportArgs {
    /// Name or id
    pub container: String,
    /// File to write; otherwise standard output, which must not be a terminal
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Arguments of `cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr cp web:/etc/hostname .
  vdkr cp ./site web:/srv/www
  vdkr cp web:/var/log - | tar t

A PATH that is `-` is a tar archive on standard input or output.")]
pub struct CpArgs {
    /// Copy what a link at the end of SOURCE points to
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Say nothing
    #[arg(short, long)]
    pub quiet: bool,
    /// Keep owners (inside a container they are always kept)
    #[arg(short, long)]
    pub archive: bool,
    /// What to copy
    #[arg(value_name = "[CONTAINER:]SOURCE")]
    pub source: String,
    /// Where to
    #[arg(value_name = "[CONTAINER:]TARGET")]
    pub target: String,
}

/// Arguments of `exec`.
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of docker's"
)]
#[command(after_help = "\
Examples:
  vdkr exec web ls /srv
  vdkr exec -it web sh
  vdkr exec -u nobody -w /tmp -e A=1 web env

The exit status is the process's; 126 when the command cannot be executed, 127 when there is none.")]
pub struct ExecArgs {
    /// Do not wait for its end
    #[arg(short, long)]
    pub detach: bool,
    /// What to type to leave it alone [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Set an environment variable, or pass on this shell's
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Read environment variables from a file
    #[arg(long, value_name = "FILE")]
    pub env_file: Vec<String>,
    /// Pass on standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Keep every capability of the machine's root
    #[arg(long)]
    pub privileged: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run as this user, by name or number
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Working directory inside the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Name or id, and the command
    #[arg(
        required = true,
        num_args = 1..,
        trailing_var_arg = true,
        value_names = ["CONTAINER", "COMMAND"]
    )]
    pub words: Vec<OsString>,
}

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// Name or number of the signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub signal: String,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Arguments of `logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr logs -f --tail 10 web
  vdkr logs -t --since 10m web

A log keeps the last 8 to 16 MB.")]
pub struct LogsArgs {
    /// Go on until the container ends
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines from then on: 10m, 2026-01-31T10:00:00Z or seconds since 1970
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only lines up to then
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Only so many lines from the end, or all
    #[arg(
        short = 'n',
        long,
        value_name = "NUMBER",
        default_value = "all",
        allow_hyphen_values = true
    )]
    pub tail: String,
    /// Show a time before each line
    #[arg(short, long)]
    pub timestamps: bool,
    /// Labels and variables that a log driver adds to lines: this one adds none
    #[arg(long)]
    pub details: bool,
    /// Name or id
    pub container: String,
}

/// Arguments of commands that take containers alone.
#[derive(Debug, Args)]
pub struct NamesArgs {
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Arguments of `ps`.
#[derive(Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of docker's"
)]
#[command(after_help = "\
Examples:
  vdkr ps -a
  vdkr ps -aq --filter status=exited
  vdkr ps --format '{{.Names}}: {{.Status}}'

Filters: ancestor, before, exited, id, label, name, network, since, status, volume.")]
pub struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Only those that fit (repeatable)
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub filter: Vec<String>,
    /// Form of the output: table, json, or a template such as {{.ID}}
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// The last so many that were made, whatever they do
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub last: Option<usize>,
    /// The last one that was made, whatever it does
    #[arg(short, long)]
    pub latest: bool,
    /// Do not shorten anything
    #[arg(long)]
    pub no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
}

/// Arguments of `rename`.
#[derive(Debug, Args)]
pub struct RenameArgs {
    /// Name or id
    pub container: String,
    /// The new name
    pub new_name: String,
}

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Kill those that run
    #[arg(short, long)]
    pub force: bool,
    /// Remove nameless volumes with it
    #[arg(short, long)]
    pub volumes: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Arguments of `start`.
#[derive(Debug, Args)]
pub struct StartArgs {
    /// Pass on output and signals, and return the container's status
    #[arg(short, long)]
    pub attach: bool,
    /// What to type to leave it alone [default: ctrl-p,ctrl-q]
    #[arg(long, value_name = "KEYS")]
    pub detach_keys: Option<String>,
    /// Pass on standard input
    #[arg(short, long)]
    pub interactive: bool,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Arguments of `stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub all: bool,
    /// Form of the output: table, json, or a template such as {{.Name}}
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Show it once
    #[arg(long)]
    pub no_stream: bool,
    /// Do not shorten ids
    #[arg(long)]
    pub no_trunc: bool,
    /// Names or ids; all that run when there are none
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
}

/// Arguments of `stop` and `restart`.
#[derive(Debug, Args)]
pub struct StopArgs {
    /// Seconds before they are killed, -1 for never [default: the container's own, 10]
    #[arg(
        short,
        long,
        visible_alias = "timeout",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    pub time: Option<i64>,
    /// The signal [default: the container's own]
    #[arg(short, long, value_name = "SIGNAL")]
    pub signal: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    pub containers: Vec<String>,
}
