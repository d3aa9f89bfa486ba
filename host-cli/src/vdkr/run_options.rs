//! The options of `run`, read by docker's grammar from a table of docker's options.
//!
//! Every option that docker has is known with its form, whether it is supported or not: the value
//! of an option is never taken for the image, and an option that cannot be honoured is refused.

use std::{collections::BTreeMap, ffi::OsString};

use vdkr_core::{
    channel::message::PullPolicy,
    container::{
        detach::{self, DetachKeys},
        restart::RestartPolicy,
        signal,
    },
    volume::{
        MountOption, VolumeError,
        from::{VolumesFrom, parse_volumes_from},
        parse_mount, parse_volume,
    },
};

use super::{
    docker_options::{Form, Meaning, OPTIONS, Opt},
    labels, line,
    sandbox_options::SandboxOptions,
};

/// The command whose options these are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `run`.
    Run,
    /// `create`.
    Create,
    /// `vrun`: always `--rm`, and a command that is given replaces the entry point too.
    Vrun,
}

impl Verb {
    /// What others see that wait for it.
    pub fn purpose(self) -> &'static str {
        match self {
            Self::Run => "vdkr run",
            Self::Create => "vdkr create",
            Self::Vrun => "vdkr vrun",
        }
    }

    /// The command's own name.
    pub fn word(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::Create => "create",
            Self::Vrun => "vrun",
        }
    }

    /// What `--help` prints.
    pub fn help(self) -> String {
        let first = match self {
            Self::Run => RUN,
            Self::Create => CREATE,
            Self::Vrun => VRUN,
        };
        format!("{first}\n{}", HELP.replace("{verb}", self.word()))
    }
}

const RUN: &str =
    "Run a command in a new container, in a virtual machine of the target's architecture\n";
const CREATE: &str = "\
Make a container and print its id, without starting it: vdkr start does that
";
const VRUN: &str = "\
Run a command in a new container that is gone afterwards

As run --rm; and where a command is given, the image's entry point is left out.
";

/// Where a part of the environment comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EnvSource {
    /// `NAME=value`, or `NAME` for this process's own value.
    Entry(String),
    /// A file of such lines.
    File(String),
}

/// A `run` command, as the user gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of docker's"
)]
pub struct RunOptions {
    /// `--cidfile`.
    pub cidfile: Option<String>,
    /// `-d`.
    pub detach: bool,
    /// `--entrypoint`; empty resets the image's.
    pub entrypoint: Option<String>,
    /// `-e` and `--env-file`, in order.
    pub env: Vec<EnvSource>,
    /// `-h`.
    pub hostname: Option<String>,
    /// `--init`.
    pub init: bool,
    /// `-i`.
    pub interactive: bool,
    /// `-l` and `--label-file`, later ones over earlier ones.
    pub labels: BTreeMap<String, String>,
    /// `-v` and `--mount`, in order.
    pub mounts: Vec<MountOption>,
    /// Containers whose volumes it gets as well.
    pub volumes_from: Vec<VolumesFrom>,
    /// `--name`.
    pub name: Option<String>,
    /// `--platform`.
    pub platform: Option<String>,
    /// `--pull`.
    pub pull: PullPolicy,
    /// `-q`: no words about the pull.
    pub quiet: bool,
    /// `--read-only`.
    pub read_only: bool,
    /// `--restart`.
    pub restart: RestartPolicy,
    /// `--rm`.
    pub rm: bool,
    /// `--sig-proxy`.
    pub sig_proxy: bool,
    /// `--detach-keys`.
    pub detach_keys: DetachKeys,
    /// `--stop-signal`, by number.
    pub stop_signal: Option<u8>,
    /// `--stop-timeout`, in seconds.
    pub stop_timeout: Option<i64>,
    /// What the container may do and use.
    pub sandbox: SandboxOptions,
    /// `-t`.
    pub tty: bool,
    /// `-u`.
    pub user: Option<String>,
    /// `-w`.
    pub workdir: Option<String>,
    /// The image.
    pub image: String,
    /// What follows the image, exactly as given.
    pub args: Vec<String>,
    /// What the user should hear about options without effect.
    pub warnings: Vec<String>,
}

/// What the words after `run` ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// A container.
    Run(Box<RunOptions>),
    /// `--help`.
    Help,
}

/// The words after `run` make no command.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No option of docker's.
    #[error("unknown option {0}; see vdkr run --help")]
    Unknown(String),
    /// An option of all commands, behind this one.
    #[error("{}", line::stands_before(.0))]
    Misplaced(String),
    /// The value is missing.
    #[error("option {0} needs a value")]
    NoValue(String),
    /// The value does not fit.
    #[error("option {option} cannot take the value {value:?}: it is one of {choices}")]
    Value {
        /// The option.
        option: String,
        /// What was given.
        value: String,
        /// What would do.
        choices: &'static str,
    },
    /// The value means nothing.
    #[error("option {option}: {reason}")]
    Meaningless {
        /// The option.
        option: String,
        /// Why.
        reason: String,
    },
    /// Two options that exclude each other.
    #[error("{0} cannot be used together")]
    Conflict(&'static str),
    /// The options do not go together; the text says which.
    #[error("{0}")]
    Together(String),
    /// An option of docker's that cannot be had here.
    #[error("option {0} cannot be honoured: {1}")]
    Refused(String, &'static str),
    /// A mount that cannot be.
    #[error("option {option}: {source}")]
    Volume {
        /// The option.
        option: String,
        /// What is wrong with its value.
        source: VolumeError,
    },
    /// The image is missing.
    #[error("{0} needs the name of an image; see vdkr {0} --help")]
    NoImage(&'static str),
    /// A word cannot travel to the container.
    #[error("argument {0:?} is not valid UTF-8 text and cannot be passed on")]
    NotText(OsString),
}

/// Reads the words after `run`, `create` or `vrun`: options, the image, and the container's own
/// words.
pub fn parse(verb: Verb, words: Vec<OsString>) -> Result<Parsed, OptionError> {
    let mut words = words
        .into_iter()
        .map(|word| word.into_string().map_err(OptionError::NotText));
    let mut options = RunOptions {
        cidfile: None,
        detach: false,
        entrypoint: None,
        env: Vec::new(),
        hostname: None,
        init: false,
        interactive: false,
        labels: BTreeMap::new(),
        mounts: Vec::new(),
        volumes_from: Vec::new(),
        name: None,
        platform: None,
        pull: PullPolicy::Missing,
        quiet: false,
        read_only: false,
        restart: RestartPolicy::No,
        rm: false,
        sig_proxy: true,
        detach_keys: DetachKeys::parse(detach::DEFAULT).unwrap_or_default(),
        stop_signal: None,
        stop_timeout: None,
        sandbox: SandboxOptions::default(),
        tty: false,
        user: None,
        workdir: None,
        image: String::new(),
        args: Vec::new(),
        warnings: Vec::new(),
    };
    let image = loop {
        let word = words.next().ok_or(OptionError::NoImage(verb.word()))??;
        if word == "--" {
            break words.next().ok_or(OptionError::NoImage(verb.word()))??;
        }
        let help = if let Some(long) = word.strip_prefix("--") {
            long_option(&mut options, long, &mut words)?
        } else if let Some(shorts) = word.strip_prefix('-').filter(|rest| !rest.is_empty()) {
            short_options(&mut options, shorts, &mut words)?
        } else {
            break word;
        };
        if help {
            return Ok(Parsed::Help);
        }
    };
    if image.is_empty() {
        return Err(OptionError::NoImage(verb.word()));
    }
    options.image = image;
    options.args = words.collect::<Result<_, _>>()?;
    if verb == Verb::Vrun {
        options.rm = true;
        if !options.args.is_empty() && options.entrypoint.is_none() {
            options.entrypoint = Some(String::new());
        }
    }
    if options.rm && options.restart != RestartPolicy::No {
        return Err(OptionError::Conflict("--restart and --rm"));
    }
    let hostname = options.hostname.is_some();
    options
        .sandbox
        .check(hostname)
        .map_err(OptionError::Together)?;
    Ok(Parsed::Run(Box::new(options)))
}

type Words<'a> = &'a mut dyn Iterator<Item = Result<String, OptionError>>;

/// `--name`, `--name=value` or `--name value`. `true` for help.
fn long_option(
    options: &mut RunOptions,
    text: &str,
    words: Words<'_>,
) -> Result<bool, OptionError> {
    let (name, attached) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    let shown = format!("--{name}");
    let Some(option) = OPTIONS.iter().find(|option| option.long == name) else {
        return Err(unknown(shown));
    };
    let value = match (option.form, attached) {
        (_, Some(value)) => value,
        (Form::Switch, None) => "true".to_owned(),
        (Form::Value, None) => words
            .next()
            .ok_or_else(|| OptionError::NoValue(shown.clone()))??,
    };
    apply(options, option, &shown, value)
}

/// `-it`, `-e value`, `-evalue`, `-e=value`, `-ite value`. `true` for help.
fn short_options(
    options: &mut RunOptions,
    text: &str,
    words: Words<'_>,
) -> Result<bool, OptionError> {
    let mut rest = text.chars();
    while let Some(letter) = rest.next() {
        let shown = format!("-{letter}");
        let Some(option) = OPTIONS.iter().find(|option| option.short == Some(letter)) else {
            return Err(unknown(shown));
        };
        let tail = rest.as_str();
        let value = match (tail.strip_prefix('='), option.form) {
            (Some(value), _) if !value.is_empty() => value.to_owned(),
            (_, Form::Switch) => {
                if apply(options, option, &shown, "true".to_owned())? {
                    return Ok(true);
                }
                continue;
            }
            (_, Form::Value) if !tail.is_empty() => tail.to_owned(),
            (_, Form::Value) => words.next().ok_or(OptionError::NoValue(shown.clone()))??,
        };
        return apply(options, option, &shown, value);
    }
    Ok(false)
}

fn unknown(option: String) -> OptionError {
    match line::global_option(&option) {
        Some(option) => OptionError::Misplaced(option),
        None => OptionError::Unknown(option),
    }
}

fn apply(
    options: &mut RunOptions,
    option: &Opt,
    shown: &str,
    value: String,
) -> Result<bool, OptionError> {
    let wrong = |choices| OptionError::Value {
        option: shown.to_owned(),
        value: value.clone(),
        choices,
    };
    let meaningless = |reason| OptionError::Meaningless {
        option: shown.to_owned(),
        reason,
    };
    let truth = || match value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong("true, false")),
    };
    let volume = |source| OptionError::Volume {
        option: shown.to_owned(),
        source,
    };
    match option.meaning {
        Meaning::Sandbox(part) => {
            let value = match option.form {
                Form::Switch => truth()?.to_string(),
                Form::Value => value,
            };
            options.sandbox.apply(part, &value).map_err(meaningless)?;
        }
        Meaning::Ignored(why) => {
            let warning = format!("option {shown} has no effect: {why}");
            if !options.warnings.contains(&warning) {
                options.warnings.push(warning);
            }
        }
        Meaning::Refused(why) => {
            // A switch that is turned off asks for nothing.
            if option.form == Form::Value || truth()? {
                return Err(OptionError::Refused(shown.to_owned(), why));
            }
        }
        Meaning::Help => return truth(),
        Meaning::Detach => options.detach = truth()?,
        Meaning::DetachKeys => {
            let keys = DetachKeys::parse(&value);
            options.detach_keys = keys.map_err(|error| meaningless(error.to_string()))?;
        }
        Meaning::Init => options.init = truth()?,
        Meaning::Interactive => options.interactive = truth()?,
        Meaning::Quiet => options.quiet = truth()?,
        Meaning::ReadOnly => options.read_only = truth()?,
        Meaning::Rm => options.rm = truth()?,
        Meaning::SigProxy => options.sig_proxy = truth()?,
        Meaning::Tty => options.tty = truth()?,
        Meaning::Pull => {
            options.pull = match value.as_str() {
                "always" => PullPolicy::Always,
                "missing" => PullPolicy::Missing,
                "never" => PullPolicy::Never,
                _ => return Err(wrong("always, missing, never")),
            }
        }
        Meaning::Restart => {
            options.restart =
                RestartPolicy::parse(&value).map_err(|error| meaningless(error.to_string()))?;
        }
        Meaning::StopSignal => {
            let number = signal::parse(&value).map_err(|error| meaningless(error.to_string()))?;
            options.stop_signal = Some(number);
        }
        Meaning::StopTimeout => {
            let seconds = value
                .parse()
                .map_err(|_| meaningless(format!("{value:?} is no number of seconds")))?;
            options.stop_timeout = Some(seconds);
        }
        Meaning::Label => {
            labels::add(&mut options.labels, &value).map_err(meaningless)?;
        }
        Meaning::LabelFile => {
            labels::add_file(&mut options.labels, &value).map_err(meaningless)?;
        }
        Meaning::Cidfile => options.cidfile = Some(value),
        Meaning::Env => options.env.push(EnvSource::Entry(value)),
        Meaning::EnvFile => options.env.push(EnvSource::File(value)),
        Meaning::Entrypoint => options.entrypoint = Some(value),
        Meaning::Hostname => options.hostname = Some(value),
        Meaning::Mount => options.mounts.push(parse_mount(&value).map_err(volume)?),
        Meaning::Name => options.name = Some(value),
        Meaning::Platform => options.platform = Some(value),
        Meaning::User => options.user = Some(value),
        Meaning::Volume => options.mounts.push(parse_volume(&value).map_err(volume)?),
        Meaning::VolumesFrom => {
            let other = parse_volumes_from(&value);
            let other = other.map_err(|error| meaningless(error.to_string()))?;
            options.volumes_from.push(other);
        }
        Meaning::Workdir => options.workdir = Some(value),
    }
    Ok(false)
}

/// What stands behind the first line of the help.
const HELP: &str = "\
Usage: vdkr [GLOBAL OPTIONS] {verb} [OPTIONS] IMAGE [COMMAND] [ARG...]

Options (the same as docker's; what follows IMAGE is passed on exactly as given):
      --cidfile FILE         Write the container's id to a new file
  -d, --detach               Leave the container running and print its id
      --detach-keys KEYS     What to type to leave it alone [default: ctrl-p,ctrl-q]
  -e, --env NAME[=VALUE]     Set an environment variable, or pass on this shell's
      --env-file FILE        Read environment variables from a file
      --entrypoint PROGRAM   Replace the image's entry point; \"\" resets it
  -h, --hostname NAME        Host name inside the container
      --init                 Have a small first process pass signals on and bury orphans
  -i, --interactive          Pass on standard input
  -l, --label KEY[=VALUE]    Set a label
      --label-file FILE      Read labels from a file, one a line
      --mount TYPE=...       Mount a host directory (type=bind), a volume or a tmpfs
      --name NAME            Name of the container
      --platform OS/ARCH     What the image has to be for; only the machine's own can be had
      --pull POLICY          When to pull first: always, missing, never [default: missing]
  -q, --quiet                Say nothing about the pull
      --read-only            Mount the container's root file system read-only
      --restart POLICY       When to start again: no, always, unless-stopped,
                             on-failure[:N] [default: no]
      --rm                   Remove the container when it has ended
      --sig-proxy=false      Do not pass on signals
      --stop-signal SIGNAL   What stop sends [default: the image's, else TERM]
      --stop-timeout SECONDS How long stop waits before it kills [default: 10]
  -t, --tty                  Give the container a terminal
  -u, --user USER[:GROUP]    Run as this user, by name or number
  -v, --volume SRC:DIR[:ro]  Share a host directory or file (/x, ./x), or use the volume SRC
      --volumes-from CONTAINER[:ro]
                             What another container has of volumes and host directories
  -w, --workdir DIR          Working directory inside the container

Network:
      --network MODE         bridge, host, none or container:NAME [default: bridge]
  -p, --publish [ADDRESS:]HOST:CONTAINER[/tcp|/udp]
                             Lead a port of this computer, or a range, to the container's.
                             Without ADDRESS on 127.0.0.1 only, unlike docker; give
                             0.0.0.0 to let others in
  -P, --publish-all          Publish the ports that the image exposes, each on a free one
      --expose PORT[/PROTO]  One more port for --publish-all
      --add-host NAME:ADDRESS  Add to /etc/hosts; host-gateway is this computer
      --dns ADDRESS          Name server instead of this computer's
      --dns-option, --dns-search, --domainname

Rights:
      --cap-add, --cap-drop NAME   Give or take a capability, or ALL
      --device PATH[:PATH[:rwm]]   Give a device of the machine
      --group-add GROUP      One more group of the user
      --privileged           Everything that root of the machine may do
      --security-opt OPTION  seccomp=unconfined, seccomp=FILE, no-new-privileges,
                             systempaths=unconfined
      --sysctl NAME=VALUE    Set a parameter of the container's own kernel namespaces
      --ipc, --pid, --uts host     Share the machine's; --userns host, --cgroupns private and
                             --isolation default are how it is in any case

Limits and file systems:
  -m, --memory SIZE          Memory, such as 64m; --memory-swap, --memory-reservation
      --cpus NUMBER          Processors, such as 0.5; -c, --cpu-shares, --cpu-period, --cpu-quota,
                             --cpuset-cpus, --cpuset-mems
      --pids-limit NUMBER    Processes and threads
      --ulimit NAME=SOFT[:HARD]    Limit each process; --oom-score-adj
      --shm-size SIZE        Size of /dev/shm [default: 64m]
      --tmpfs PATH[:OPTIONS] Mount a file system in memory

The exit status is the container's, or 0 when it was left running or only created; 125 when the
container could not be started or made, 126 when its command cannot be executed, 127 when there is
no such command.

A detached container keeps the machine running: where none runs, one is started that stays.

Examples:
  vdkr {verb} container-base uname -m
  vdkr {verb} -it container-base sh
  vdkr {verb} -p 8080:80 container-base httpd -f
  vdkr {verb} --read-only --tmpfs /run --cap-drop ALL -m 64m container-base id
  vdkr run -d --name web --restart always container-base httpd -f
  vdkr {verb} -v .:/work -w /work container-base make
  tar c src | vdkr run --rm -i container-base sh -c 'tar x && ls -R'
";

#[cfg(test)]
mod tests;
