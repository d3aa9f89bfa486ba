//! Command line of `vdkr`. As with docker, options of all commands stand before the command.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

use super::container_args::{ContainerCommand, ContainerGroup};
use super::image_args::{
    HistoryArgs, ImageCommand, ImagesArgs, ImportArgs, InfoArgs, InspectArgs, LoadArgs, LoginArgs,
    LogoutArgs, PullArgs, PushArgs, RemoveArgs, SaveArgs, SystemCommand, TagArgs, VersionArgs,
    VimportArgs,
};
use super::machine_args::{MemresCommand, VstorageCleanArgs, VstorageCommand};
use super::nearest::nearest;
use super::volume_args::VolumeCommand;
use super::{line, old::OldOptions};
use crate::progress::Mode;
use vdkr_core::credentials::Secret;

const EXAMPLES: &str = "\
Examples:
  vdkr --registry localhost:5000/yocto pull container-base
  vdkr run --rm container-base uname -m
  vdkr -a aarch64 run --rm -it container-base sh
  vdkr vconfig registry localhost:5000/yocto
  vdkr memres start
  vdkr --target serial:/dev/ttyUSB0 ps

Exit status: 0 done, 1 failed, 2 usage, 3 not running or unreachable, 4 authentication refused,
5 not found, 6 content does not match its digest, 7 some of several failed.
`run` returns the container's status, and 125 when the container could not be started.";

/// Run containers in a virtual machine of the target's architecture, with docker's commands.
#[derive(Debug, Parser)]
#[command(name = "vdkr", version, after_help = EXAMPLES, max_term_width = 100)]
#[command(
    override_usage = "vdkr [OPTIONS] COMMAND [ARGS...]",
    subcommand_value_name = "COMMAND"
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

impl Cli {
    /// Reads a command line, the program's name first.
    pub fn read(line: &[OsString]) -> Result<Self, clap::Error> {
        let mut cli = line::parse(line)?;
        // The parser takes a `--` right behind `run` for its own; it belongs to the words.
        if let Some(
            Command::Run { words }
            | Command::Create { words }
            | Command::Vrun { words }
            | Command::Container {
                command: ContainerGroup::Run { words } | ContainerGroup::Create { words },
            },
        ) = &mut cli.command
        {
            let before = line
                .len()
                .checked_sub(words.len() + 1)
                .and_then(|at| line.get(at));
            if before.is_some_and(|word| word == "--") {
                words.insert(0, "--".into());
            }
        }
        Ok(cli)
    }
}

/// Options of all commands.
#[derive(Clone, Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct Global {
    /// Architecture of the target: x86_64 or aarch64 [env: VDKR_ARCH]
    #[arg(short, long, value_name = "ARCH")]
    pub arch: Option<String>,
    /// Talk to the agent of a board or a full image instead of a virtual machine of this program:
    /// vsock:CID[:PORT], vsock:PATH[:PORT], serial:PATH or unix:PATH [env: VDKR_TARGET]
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// Registry that is asked first for names without a host; `none` for no registry [env: VDKR_REGISTRY]
    #[arg(long, value_name = "HOST[:PORT][/NAMESPACE]")]
    pub registry: Option<String>,
    /// Use no registry but the one that a name states, or Docker Hub
    #[arg(long, conflicts_with = "registry")]
    pub no_registry: bool,
    /// Host that may be spoken to without TLS, or with any certificate (repeatable)
    #[arg(long, value_name = "HOST[:PORT]")]
    pub insecure_registry: Vec<String>,
    /// Speak TLS to the registry on this computer too
    #[arg(long)]
    pub secure_registry: bool,
    /// File of PEM certificates that are trusted too; implies --secure-registry
    #[arg(long, value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,
    /// User at the registry [env: VDKR_REGISTRY_USER]
    #[arg(long, value_name = "USER")]
    pub registry_user: Option<String>,
    /// The user's password; everybody on this computer can see it, prefer --registry-password-stdin
    #[arg(
        long,
        visible_alias = "registry-pass",
        value_name = "PASSWORD",
        conflicts_with = "registry_password_stdin"
    )]
    pub registry_password: Option<Secret>,
    /// Read the user's password from standard input; otherwise VDKR_REGISTRY_PASSWORD has it
    #[arg(long)]
    pub registry_password_stdin: bool,
    /// File of logins like docker's config.json, which only its owner may read [env: VDKR_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where images are pulled, loaded and unpacked: host or guest [env: VDKR_PULL_IN] [default: host]
    #[arg(long, value_name = "PLACE")]
    pub pull_in: Option<String>,
    /// Processor's virtualisation or emulation: auto, kvm or tcg [env: VDKR_ACCEL]
    #[arg(long, value_name = "ACCEL")]
    pub accel: Option<String>,
    /// The same as --accel tcg
    #[arg(long, conflicts_with = "accel")]
    pub no_kvm: bool,
    /// Keep images and the running machine apart from others, under this name
    #[arg(short = 'I', long, value_name = "NAME", conflicts_with = "state_dir")]
    pub instance: Option<String>,
    /// Directory of this machine's disk and logs [env: VDKR_STATE_DIR] [default: ~/.vdkr/ARCH]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Start a machine of its own that forgets everything at its end [env: VDKR_STATELESS]
    #[arg(long)]
    pub stateless: bool,
    /// Directory with machine images, one for each architecture [env: VDKR_BLOB_DIR]
    #[arg(long, value_name = "DIR")]
    pub blob_dir: Option<PathBuf>,
    /// Directory of the configuration file [env: VDKR_CONFIG_DIR] [default: ~/.config/vdkr]
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Kernel to boot, such as a Yocto bzImage or Image
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initramfs with the agent
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// The emulator's machine type: auto, microvm, q35 or virt [env: VDKR_MACHINE]
    #[arg(long, value_name = "TYPE")]
    pub machine: Option<String>,
    /// Memory of the machine, such as 2G [env: VDKR_MEMORY] [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// Model of the machine's processors: auto, or what the emulator's -cpu takes, such as max,-erms
    /// for programs that need newer instructions [env: VDKR_CPU]
    #[arg(long, value_name = "MODEL")]
    pub cpu: Option<String>,
    /// Number of the machine's processors [env: VDKR_CPUS] [default: 1]
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Say more, and how long each stage took [env: VDKR_VERBOSE]
    #[arg(short, long)]
    pub verbose: bool,
    /// How progress is shown on stderr
    #[arg(long, value_enum, default_value_t)]
    pub progress: Mode,
    /// What the earlier shell program had.
    #[command(flatten)]
    pub old: OldOptions,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
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
    /// Run a command in a container that is gone afterwards, without the image's entry point
    #[command(disable_help_flag = true)]
    Vrun {
        /// Options, image, command and its arguments.
        #[arg(
            trailing_var_arg = true,
            allow_hyphen_values = true,
            value_name = "OPTIONS|IMAGE"
        )]
        words: Vec<OsString>,
    },
    /// Commands about containers.
    #[command(flatten)]
    Containers(ContainerCommand),
    /// Work with containers
    Container {
        /// What to do.
        #[command(subcommand)]
        command: ContainerGroup,
    },
    /// Show how an image was made
    History(HistoryArgs),
    /// List images
    Images(ImagesArgs),
    /// Work with images
    Image {
        /// What to do.
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Make an image of a tar archive of a root file system
    Import(ImportArgs),
    /// Show what runs containers, and on what
    Info(InfoArgs),
    /// Show everything about containers, images and volumes, as JSON
    Inspect(InspectArgs),
    /// Load images from an archive
    Load(LoadArgs),
    /// Keep a password for a registry, for docker, podman and vdkr alike
    Login(LoginArgs),
    /// Forget the password for a registry
    Logout(LogoutArgs),
    /// Fetch images into the machine, from the registry first
    Pull(PullArgs),
    /// Send images to a registry
    Push(PushArgs),
    /// Remove images
    Rmi(RemoveArgs),
    /// Write images into an archive
    Save(SaveArgs),
    /// Not there; says what to use instead
    #[command(hide = true)]
    Search {
        /// Whatever was looked for.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<OsString>,
    },
    /// Show the room that images take, and clean up
    System {
        /// What to do.
        #[command(subcommand)]
        command: SystemCommand,
    },
    /// Give an image one more name
    Tag(TagArgs),
    /// Bring an image from this computer: OCI layout, archive, directory or tarball
    Vimport(VimportArgs),
    /// Show or change the configuration
    Vconfig(VconfigArgs),
    /// `vstorage clean`, as it was called before
    #[command(hide = true)]
    Clean(VstorageCleanArgs),
    /// Keep a machine running, so that commands need not start one
    #[command(alias = "vmemres")]
    Memres {
        /// What to do.
        #[command(subcommand)]
        command: MemresCommand,
    },
    /// Show and clean up what machines and pulled layers take on this computer
    Vstorage {
        /// What to do.
        #[command(subcommand)]
        command: VstorageCommand,
    },
    /// Show which ports of this computer lead to a container
    Port(PortArgs),
    /// Show versions
    Version(VersionArgs),
    /// Work with volumes, which keep data between containers: create, ls, inspect, rm, prune
    Volume {
        /// What to do.
        #[command(subcommand)]
        command: VolumeCommand,
    },
    /// Commands that are not there.
    #[command(external_subcommand)]
    Other(Vec<OsString>),
}

/// Arguments of `port`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr run -d --name web -p 8080:80 container-base httpd -f
  vdkr port web
  vdkr port web 80/tcp")]
pub struct PortArgs {
    /// Name or id of the container
    #[arg(value_name = "CONTAINER")]
    pub container: String,
    /// Show where this port of the container is, and nothing else
    #[arg(value_name = "PORT[/PROTOCOL]")]
    pub port: Option<String>,
}

/// Arguments of `vconfig`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vdkr vconfig                                     every key, its value and where it comes from
  vdkr vconfig registry localhost:5000/yocto       set
  vdkr vconfig registry                            print
  vdkr vconfig registry --reset                    back to the default
  vdkr vconfig mirror docker.io http://localhost:5001
  vdkr vconfig mirror docker.io --reset")]
pub struct VconfigArgs {
    /// Key; without one all are listed
    pub key: Option<String>,
    /// New value; for `mirror` the mirrored host and its URLs
    #[arg(value_name = "VALUE", conflicts_with = "json")]
    pub values: Vec<String>,
    /// Go back to the default
    #[arg(long, requires = "key")]
    pub reset: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// What to say about a command that `vdkr` does not have.
pub fn missing_command(name: &str) -> String {
    /// Docker's commands that are not there, and what to use instead.
    const OF_DOCKER: &[(&str, &str)] = &[
        ("build", BUILD),
        ("builder", BUILD),
        ("buildx", BUILD),
        (
            "checkpoint",
            "vdkr pause and unpause keep a container as it is",
        ),
        (
            "compose",
            "start the containers one by one: vdkr run -d --name NAME ...",
        ),
        ("config", SECRET),
        (
            "context",
            "machines are told apart by vdkr -I NAME, boards by vdkr --target TARGET",
        ),
        (
            "events",
            "what runs is told by: vdkr ps, vdkr memres status, vdkr system df",
        ),
        (
            "manifest",
            "look at one with: container-registry inspect --raw docker://NAME",
        ),
        (
            "network",
            "there are bridge, host, none and container:NAME: vdkr run --network NETWORK ...; \
             containers of the bridge reach each other by the addresses that are told by: vdkr \
             inspect -f '{{.NetworkSettings.IPAddress}}' NAME, and by names with: vdkr run \
             --add-host NAME:ADDRESS ...",
        ),
        ("node", SWARM),
        ("plugin", "there are none"),
        ("secret", SECRET),
        ("service", SWARM),
        ("stack", SWARM),
        ("swarm", SWARM),
        ("trust", "name images by digest: vdkr pull NAME@sha256:..."),
        (
            "update",
            "remove the container and run it with other options",
        ),
    ];
    const BUILD: &str =
        "build with BitBake, buildah or docker, then: container-registry push, or vdkr vimport";
    const SWARM: &str = "a machine stands alone";
    const SECRET: &str = "give a container a file: vdkr run -v FILE:/path:ro ...";
    /// Commands of the earlier shell program that are not there.
    const OLD: &[(&str, &str)] = &[
        (
            "bundle",
            "it was for Xen; put images into an image with container-registry bake",
        ),
        (
            "ssh",
            "it was for Xen; get into a container with: vdkr exec -it CONTAINER sh",
        ),
        (
            "vexpose",
            "publish ports with: vdkr run -d -p 8080:80 IMAGE",
        ),
        (
            "vshell",
            "the machine has no shell of its own; look into it with: vdkr run --rm -it \
             --privileged --network host IMAGE sh",
        ),
    ];
    if let Some((_, instead)) = OLD.iter().find(|(known, _)| *known == name) {
        format!("vdkr has no command {name:?} any more; {instead}")
    } else if let Some((_, instead)) = OF_DOCKER.iter().find(|(known, _)| *known == name) {
        format!("vdkr does not have docker's command {name:?}; {instead}")
    } else {
        let command = <Cli as clap::CommandFactory>::command();
        let known = command
            .get_subcommands()
            .filter(|known| !known.is_hide_set());
        let near = nearest(name, known.map(clap::Command::get_name));
        let hint = match near.is_empty() {
            true => String::new(),
            false => format!("; did you mean {}?", near.join(" or ")),
        };
        format!("unknown command {name:?}{hint}; see vdkr --help")
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn read(words: &[&str]) -> Result<Cli, clap::Error> {
        let line: Vec<_> = ["vdkr"].iter().chain(words).map(OsString::from).collect();
        Cli::read(&line)
    }

    fn parse(words: &[&str]) -> Cli {
        read(words).unwrap()
    }

    #[test]
    fn definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_of_run_are_left_alone() {
        let given = [
            "--rm",
            "-it",
            "-e",
            "A=1",
            "img",
            "--",
            "--help",
            "-h",
            "--registry",
            "",
            "--version",
        ];
        let cli = parse(&[&["--registry", "r:1", "run"], &given[..]].concat());
        assert_eq!(cli.global.registry.as_deref(), Some("r:1"));
        let Some(Command::Run { words }) = cli.command else {
            panic!()
        };
        assert_eq!(words, given);
        for given in [
            &["--help"][..],
            &["--"],
            &["--", "x"],
            &[],
            &["-h", "x", "i"],
        ] {
            let Some(Command::Run { words }) = parse(&[&["run"], given].concat()).command else {
                panic!()
            };
            assert_eq!(words, given);
        }
    }

    #[test]
    fn global_options_stand_before_the_command() {
        assert!(read(&["pull", "--registry", "r:1", "x"]).is_err());
        assert!(read(&["images", "--arch", "aarch64"]).is_err());
        let cli = parse(&[
            "-a",
            "aarch64",
            "-I",
            "b",
            "--insecure-registry=a:1",
            "--insecure-registry",
            "b:2",
            "--no-kvm",
            "-v",
            "images",
            "-q",
        ]);
        assert_eq!(cli.global.insecure_registry, ["a:1", "b:2"]);
        assert!(cli.global.no_kvm && cli.global.verbose);
    }

    #[test]
    fn contradictions_are_refused() {
        for words in [
            &["--registry", "a:1", "--no-registry", "images"][..],
            &["--accel", "kvm", "--no-kvm", "images"],
            &["-I", "a", "--state-dir", "/x", "images"],
            &[
                "--registry-password-stdin",
                "--registry-password",
                "x",
                "images",
            ],
            &["vconfig", "--reset"],
            &["tag", "one"],
            &["inspect"],
        ] {
            let parsed = read(words);
            assert!(parsed.is_err(), "{words:?}");
        }
    }

    #[test]
    fn aliases() {
        for words in [["image", "ls"], ["image", "list"]] {
            let parsed = parse(&words).command;
            assert!(matches!(
                parsed,
                Some(Command::Image {
                    command: ImageCommand::Ls(_)
                })
            ));
        }
        let parsed = parse(&["image", "remove", "x"]).command;
        assert!(matches!(
            parsed,
            Some(Command::Image {
                command: ImageCommand::Rm(_)
            })
        ));
        assert!(matches!(
            parse(&["build", "-t", "x"]).command,
            Some(Command::Other(_))
        ));
        assert!(missing_command("build").contains("docker's"));
        assert!(missing_command("frob").contains("unknown"));
    }
}
