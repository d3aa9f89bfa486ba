//! Command line of `container-registry`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vdkr_core::credentials::Secret;
use vdkr_core::reference::Host;

use super::command;
use super::command::auth::AuthCommandArgs;
use super::command::completions::CompletionsArgs;
use super::command::copy::CopyArgs;
use super::command::doctor::DoctorArgs;
use super::command::import::ImportArgs;
use super::command::inspect::InspectArgs;
use super::command::login::LoginArgs;
use super::command::logout::LogoutArgs;
use super::command::man::ManArgs;
use super::command::pki::PkiArgs;
use super::command::push::PushArgs;
use super::config::Overrides;

/// Below the help of the program.
pub const EXAMPLES: &str = "\
Examples:
  container-registry start
  container-registry push
  container-registry push container-base --tag v1.0.0 --tag latest
  container-registry push --strategy \"sha branch latest\"
  container-registry import docker.io/library/alpine:latest
  container-registry list

Exit status: 0 done, 1 failed, 2 usage, 3 not running or unreachable, 4 authentication refused,
5 not found, 6 content does not match its digest, 7 some of several failed.";

/// A local container registry for Yocto/OpenEmbedded builds.
#[derive(Debug, Parser)]
#[command(name = "container-registry", version, after_help = EXAMPLES, disable_help_subcommand = false)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Heading of these options, apart from a command's own.
const EVERYWHERE: &str = "Options of all commands";

/// Options that every command takes.
#[derive(Debug, Args)]
pub struct GlobalArgs {
    /// Registry, host[:port] [env: CONTAINER_REGISTRY_URL] [default: localhost:5000]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "HOST[:PORT]")]
    pub url: Option<String>,
    /// Namespace put before image names [env: CONTAINER_REGISTRY_NAMESPACE] [default: yocto]
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub namespace: Option<String>,
    /// Storage directory [env: CONTAINER_REGISTRY_STORAGE]
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "DIR")]
    pub storage: Option<String>,
    /// Registry that may be spoken to with any certificate, or over plain HTTP (this machine's always may)
    #[arg(long, global = true, help_heading = EVERYWHERE, value_name = "HOST[:PORT]")]
    pub insecure: Vec<String>,
    /// How progress is shown on stderr
    #[arg(long, global = true, help_heading = EVERYWHERE, value_enum, default_value_t)]
    pub progress: crate::progress::Mode,
}

impl GlobalArgs {
    /// The options as configuration overrides.
    pub fn overrides(&self) -> Overrides {
        let mut overrides = Overrides::new();
        let mut add = |key, option, value: &Option<String>| {
            if let Some(value) = value {
                overrides.push((key, option, value.clone()));
            }
        };
        add("url", "--url", &self.url);
        add("namespace", "--namespace", &self.namespace);
        add("storage", "--storage", &self.storage);
        if !self.insecure.is_empty() {
            overrides.push(("insecure", "--insecure", self.insecure.join(" ")));
        }
        overrides
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the registry in the background; returns when it answers
    #[command(
        after_help = "Examples:\n  container-registry start\n  CONTAINER_REGISTRY_SECURE=1 container-registry start --listen 0.0.0.0\n\nWithout secure mode whoever reaches the port may push and delete."
    )]
    Start(ServeArgs),
    /// Stop the registry and wait until it is gone
    #[command(after_help = "Example:\n  container-registry stop")]
    Stop,
    /// Say whether the registry runs, where, and whether it is healthy
    #[command(after_help = "Example:\n  container-registry status --json")]
    Status(JsonArgs),
    /// Serve in the foreground (for systemd: sd_notify and socket activation)
    #[command(after_help = "Example:\n  container-registry serve --url localhost:5001")]
    Serve(ServeArgs),
    /// Push OCI images from the deploy directories, or from given layouts and archives
    Push(PushArgs),
    /// Copy an image of another registry into this one, every platform, bit for bit
    Import(ImportArgs),
    /// Copy an image from any place to any other, bit for bit
    Copy(CopyArgs),
    /// Show what an image is: digest, tags, platform, labels, layers
    Inspect(InspectArgs),
    /// List all images with digest, platforms, size and time
    #[command(
        after_help = "Examples:\n  container-registry list\n  container-registry list --label org.opencontainers.image.version=1.0 --sort time"
    )]
    List(command::list::ListArgs),
    /// List the tags of one image
    Tags(TagsArgs),
    /// List the repositories
    #[command(after_help = "Example:\n  container-registry catalog --json")]
    Catalog(JsonArgs),
    /// Delete a tag (and nothing else), or with @DIGEST a manifest and the tags that name it
    Delete(DeleteArgs),
    /// Check a user name and password with a registry and keep them
    Login(LoginArgs),
    /// Forget the login to a registry
    Logout(LogoutArgs),
    /// Explain which credentials a registry is shown
    Auth(AuthCommandArgs),
    /// Check that clients on this machine and guests can use the registry, and say what to mend
    Doctor(DoctorArgs),
    /// Make, show and renew the certificates of secure mode
    Pki(PkiArgs),
    /// Write a target's registry configuration, CA and credentials into its file system
    Bake(super::command::bake::BakeArgs),
    /// Write OCI labels into the images of layout directories, before they are pushed
    Label(super::command::label::LabelArgs),
    /// Show what a tag pointed to before
    #[command(after_help = "Example:\n  container-registry history app:latest")]
    History(command::history::HistoryArgs),
    /// Point a tag to what it pointed to before
    #[command(after_help = "Example:\n  container-registry rollback app:latest")]
    Rollback(command::rollback::RollbackArgs),
    /// Keep an image, whether a tag names it or not
    #[command(after_help = "Example:\n  container-registry pin app:v1.0.0")]
    Pin(command::pin::PinArgs),
    /// Take a pin away
    #[command(after_help = "Example:\n  container-registry unpin app:v1.0.0")]
    Unpin(command::pin::PinArgs),
    /// Delete the tags that no rule keeps
    #[command(
        after_help = "Example:\n  container-registry prune --keep-last 5 --younger-than 30d --keep 'v*' --explain --dry-run"
    )]
    Prune(command::prune::PruneArgs),
    /// Collect garbage: free the space of what no tag needs, while the registry goes on
    #[command(
        after_help = "Examples:\n  container-registry gc --dry-run\n  container-registry gc --yes --grace 10m"
    )]
    Gc(command::gc::GcArgs),
    /// Check everything stored against its digest, and put what is damaged into quarantine
    #[command(after_help = "Example:\n  container-registry fsck --dry-run")]
    Fsck(command::fsck::FsckArgs),
    /// Print every configuration value and where it came from
    #[command(
        after_help = "Examples:\n  container-registry config\n  container-registry config --json"
    )]
    Config(JsonArgs),
    /// Print where everything is, as below the help
    #[command(hide = true)]
    #[command(after_help = "Example:\n  container-registry info")]
    Info,
    /// Print completions for a shell
    Completions(CompletionsArgs),
    /// Print the manual, or write its pages to a directory
    Man(ManArgs),
}

/// Options of `start` and `serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Address to listen on, instead of loopback [env: CONTAINER_REGISTRY_LISTEN]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<String>,
}

/// Options of commands that print a list.
#[derive(Debug, Args)]
pub struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Credentials for the registry that is written to.
#[derive(Debug, Args, Default)]
pub struct AuthArgs {
    /// Where credentials come from: login (what `login` stored), none, home, authfile, credsfile, env
    #[arg(long, value_name = "MODE")]
    pub auth_mode: Option<String>,
    /// Use ~/.docker/config.json (same as --auth-mode home)
    // Of several sources on one line the last counts.
    #[arg(long, overrides_with_all = ["authfile", "credsfile", "creds", "token"])]
    pub use_home_auth: bool,
    /// Docker-style credential file
    // The other names are skopeo's.
    #[arg(long, alias = "dest-authfile", value_name = "FILE", overrides_with_all = ["use_home_auth", "credsfile", "creds", "token"])]
    pub authfile: Option<PathBuf>,
    /// File of CONTAINER_REGISTRY_USER, _PASSWORD, _TOKEN lines
    #[arg(long, value_name = "FILE", overrides_with_all = ["use_home_auth", "authfile", "creds", "token"])]
    pub credsfile: Option<PathBuf>,
    /// User and password (visible in the process list; prefer a file)
    #[arg(long, alias = "dest-creds", value_name = "USER:PASS", overrides_with_all = ["use_home_auth", "authfile", "credsfile", "token"])]
    pub creds: Option<Secret>,
    /// Bearer token (visible in the process list; prefer a file)
    #[arg(long, alias = "dest-registry-token", value_name = "TOKEN", overrides_with_all = ["use_home_auth", "authfile", "credsfile", "creds"])]
    pub token: Option<Secret>,
}

/// Credentials for the registry that is read from.
#[derive(Debug, Args, Default)]
pub struct SourceArgs {
    /// Credential file for the source
    #[arg(long, value_name = "FILE")]
    pub src_authfile: Option<PathBuf>,
    /// File of CONTAINER_REGISTRY_USER, _PASSWORD, _TOKEN lines for the source
    #[arg(long, value_name = "FILE")]
    pub src_credsfile: Option<PathBuf>,
    /// User and password for the source
    #[arg(long, value_name = "USER:PASS")]
    pub src_creds: Option<Secret>,
    /// Bearer token for the source
    #[arg(long, value_name = "TOKEN")]
    pub src_token: Option<Secret>,
    /// Let the source do without verified TLS
    #[arg(long)]
    pub src_insecure: bool,
    /// As skopeo spells it: `false` is --src-insecure
    #[arg(long, hide = true, value_name = "BOOL", require_equals = true, num_args = 0..=1, default_missing_value = "true")]
    pub src_tls_verify: Option<bool>,
}

impl SourceArgs {
    /// The source, when it may do without verified TLS.
    pub fn insecure(&self, host: &Host) -> Vec<Host> {
        if self.src_insecure || self.src_tls_verify == Some(false) {
            vec![host.clone()]
        } else {
            Vec::new()
        }
    }
}

/// Options of `tags`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  container-registry tags container-base\n  container-registry tags yocto/container-base --json"
)]
pub struct TagsArgs {
    /// Image; a name without a slash gets the namespace
    pub image: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Options of `delete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  container-registry delete container-base:v1.0.0 app:old\n  container-registry delete container-base@sha256:… --yes"
)]
pub struct DeleteArgs {
    /// IMAGE:TAG or IMAGE@DIGEST
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Do not ask before deleting a digest that tags need
    #[arg(short, long)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn tags_need_an_image() {
        assert!(Cli::try_parse_from(["container-registry", "push", "--tag", "v1"]).is_err());
        assert!(Cli::try_parse_from(["container-registry", "push", "app", "--tag", "v1"]).is_ok());
        assert!(Cli::try_parse_from(["container-registry", "push", "app", "--tag"]).is_err());
    }
}
