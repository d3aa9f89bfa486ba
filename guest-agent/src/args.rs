//! The command line, read by hand: the agent has few options and counts its bytes.

use std::path::PathBuf;

use vdkr_core::emit::Profile;

use vdkr_core::target::VSOCK_PORT;

use crate::channel::Address;
use crate::command::{
    PullFrom, configure::ConfigureOptions, pull::PullOptions, run::RunOptions,
    status::StatusOptions,
};

mod engine;
mod run;

pub use engine::{EngineChoice, EngineWish};

/// Where images are kept unless `--state-dir` says otherwise.
const DEFAULT_STATE: &str = "/var/lib/vdkr";

/// Help text.
pub const USAGE: &str = "\
vdkr-agent: runs containers inside a target, on behalf of a host program

usage:
  vdkr-agent configure [--profile NAMES] [--registry HOST[:PORT][/NAMESPACE]] [--ca FILE]
                       [--root DIR] [--no-translate] [--diff]
      make the registry of /etc/vdkr/registry.conf and its CA (/etc/vdkr/ca.crt) known to the
      container engines of this target (docker, podman, containerd, cri-o; those that are found)
      and to its trust store; what is there is kept and merged
      --no-translate   keep localhost as it is; on a guest of QEMU's user network it becomes the
                       address of the host, 10.0.2.2
      --diff           show what would change and write nothing
  vdkr-agent configure --undo [--root DIR]
      take back what was configured
  vdkr-agent pull NAME... [--registry HOST[:PORT][/NAMESPACE]|none] [--ca FILE]
                  [--authfile FILE] [--platform OS/ARCH] [--state-dir DIR]
      pull images, the configured registry first, Docker Hub only if it answers 404
      --authfile FILE   logins, as docker and podman keep them, instead of those in root's
                       .docker/config.json and /etc/containers/auth.json
  vdkr-agent run [OPTIONS] IMAGE [COMMAND [ARG]...]
      run a container, on the network of this machine unless --network none
      -d, --detach   let it run behind (the service keeps it); otherwise its status is returned
      -e, --env NAME=VALUE   -i, --interactive   --name NAME   --rm   --entrypoint PROGRAM
      -u, --user USER   -w, --workdir DIR   --network host|none   --pull missing|never
      --registry, --ca and --authfile as for pull; --state-dir DIR
  pull, run, status and serve take
      --engine native|docker|podman   whose store and whose containers: the agent's own (default),
                       or those of an engine of this target; VDKR_ENGINE in the file above
      --engine-socket PATH   where that engine listens (/run/docker.sock, /run/podman/podman.sock);
                       VDKR_ENGINE_SOCKET in the file above
  vdkr-agent status [--root DIR] [--state-dir DIR]
      show what is configured, and whether the service runs
  vdkr-agent serve CHANNEL... [--state-dir DIR]
      be the service: let hosts in on CHANNEL (several may be named), and serve pull and run above
      --vsock[=PORT]   virtual machine sockets (1024), for the machine's host alone
      --serial PATH    a serial line at the speed that it has, or a virtio-serial port's device
      --unix PATH      a socket, made for the caller alone
      --channel port:NAME   a virtio-serial port, once the machine has it; also vsock:PORT,
                       serial:PATH and unix:PATH
      Containers get the machine's network. They stop with the service; those with a restart
      policy start with it again. One service at a time has a state directory.
      --state-dir DIR  where images and containers are kept (default /var/lib/vdkr)
  vdkr-agent --version
  vdkr-agent --help

As process 1 it brings up a small virtual machine and serves the port vdkr.agent.
";

/// What the program is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Be process 1 of a machine.
    Boot,
    /// Serve hosts.
    Serve(ServeOptions),
    /// Configure the target's engines.
    Configure(ConfigureOptions),
    /// Pull into the target's own store.
    Pull(PullOptions),
    /// Run a container on the target.
    Run(RunOptions),
    /// Show the configuration.
    Status(StatusOptions),
    /// Be the monitor of one container; only started by the agent itself.
    ContainerInit,
    /// Print the version.
    Version,
    /// Print [`USAGE`].
    Help,
}

/// Options of `serve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// Where hosts come in; at least one.
    pub channels: Vec<Address>,
    /// Directory of images and containers.
    pub state: PathBuf,
    /// The agent has the machine for itself: it sets the clock, and its end is the machine's.
    pub own_machine: bool,
    /// What process 1 wrote about the boot.
    pub boot_report: Option<PathBuf>,
    /// What keeps images and runs containers.
    pub engine: EngineWish,
}

impl ServeOptions {
    /// An agent that serves only the process that it is in.
    pub fn of_state(state: PathBuf) -> Self {
        Self {
            channels: Vec::new(),
            state,
            own_machine: false,
            boot_report: None,
            engine: EngineWish::default(),
        }
    }
}

/// Reads the arguments of the process `pid`. The error is a sentence for standard error.
pub fn parse(pid: u32, args: &[String]) -> Result<Mode, String> {
    let mut args = args.iter().map(String::as_str);
    let program = args.next().unwrap_or_default();
    if pid == 1 || program.rsplit('/').next() == Some("init") {
        return Ok(Mode::Boot);
    }
    match args.next() {
        None => Err("what shall I do? try vdkr-agent --help".to_owned()),
        Some("-h" | "--help" | "help") => Ok(Mode::Help),
        Some("-V" | "--version" | "version") => Ok(Mode::Version),
        Some("container-init") => Ok(Mode::ContainerInit),
        Some("serve") => parse_serve(args),
        Some("configure") => parse_configure(args).map(Mode::Configure),
        Some("pull") => parse_pull(args).map(Mode::Pull),
        Some("run") => run::parse(args).map(Mode::Run),
        Some("status") => parse_status(args).map(Mode::Status),
        Some(other) => Err(format!("unknown command {other:?}; try vdkr-agent --help")),
    }
}

fn parse_serve<'a>(args: impl Iterator<Item = &'a str>) -> Result<Mode, String> {
    let mut options = ServeOptions::of_state(DEFAULT_STATE.into());
    let mut words = Words(args, "serve", None);
    while let Some(word) = words.next()? {
        let channel = match word {
            Word::Option(name) if options.engine.take(name, &mut words)? => continue,
            Word::Option("--own-machine") => {
                options.own_machine = true;
                continue;
            }
            Word::Option(name @ "--boot-report") => {
                options.boot_report = Some(words.value(name)?.into());
                continue;
            }
            Word::Option(name @ ("--state" | "--state-dir")) => {
                options.state = words.value(name)?.into();
                continue;
            }
            Word::Option(name @ "--channel") => words.value(name)?.parse()?,
            Word::Option("--vsock") => match words.attached() {
                None => Address::Vsock(VSOCK_PORT),
                Some(port) => format!("vsock:{port}").parse()?,
            },
            Word::Option(name @ "--serial") => Address::Serial(words.value(name)?.into()),
            Word::Option(name @ "--unix") => Address::Unix(words.value(name)?.into()),
            Word::Option(word) | Word::Plain(word) => return Err(words.unknown(word)),
        };
        options.channels.push(channel);
    }
    if options.channels.is_empty() {
        return Err(
            "serve needs a channel: --vsock, --serial, --unix or --channel; try vdkr-agent --help"
                .to_owned(),
        );
    }
    Ok(Mode::Serve(options))
}

/// The words behind a command, one after the other.
struct Words<'a, I>(I, &'static str, Option<&'a str>);

/// What comes next.
enum Word<'a> {
    /// An option's name, with its dashes.
    Option(&'a str),
    /// Something else.
    Plain(&'a str),
}

impl<'a, I: Iterator<Item = &'a str>> Words<'a, I> {
    fn next(&mut self) -> Result<Option<Word<'a>>, String> {
        if self.2.take().is_some() {
            return Err(format!("an option of {} takes no value", self.1));
        }
        let Some(word) = self.0.next() else {
            return Ok(None);
        };
        if !word.starts_with("--") {
            return Ok(Some(Word::Plain(word)));
        }
        let (name, attached) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        self.2 = attached;
        Ok(Some(Word::Option(name)))
    }

    /// The value of the option that came last.
    fn value(&mut self, name: &str) -> Result<&'a str, String> {
        let value = self.2.take().or_else(|| self.0.next());
        value
            .filter(|value| !value.is_empty())
            .ok_or_else(|| format!("option {name} needs a value"))
    }

    /// The value that stands in one word with the option that came last.
    fn attached(&mut self) -> Option<&'a str> {
        self.2.take()
    }

    fn unknown(&self, word: &str) -> String {
        format!("{} does not know {word:?}; try vdkr-agent --help", self.1)
    }
}

fn parse_configure<'a>(args: impl Iterator<Item = &'a str>) -> Result<ConfigureOptions, String> {
    let mut options = ConfigureOptions::default();
    let mut words = Words(args, "configure", None);
    while let Some(word) = words.next()? {
        match word {
            Word::Option("--diff") => options.diff = true,
            Word::Option("--undo") => options.undo = true,
            Word::Option("--no-translate") => options.no_translate = true,
            Word::Option(name @ "--root") => options.root = words.value(name)?.into(),
            Word::Option(name @ "--ca") => options.ca = Some(words.value(name)?.into()),
            Word::Option(name @ "--registry") => {
                options.registry = Some(words.value(name)?.to_owned());
            }
            Word::Option(name @ "--profile") => {
                for profile in words.value(name)?.split(',') {
                    let profile: Profile = profile
                        .trim()
                        .parse()
                        .map_err(|error: vdkr_core::emit::EmitError| error.to_string())?;
                    if !options.profiles.contains(&profile) {
                        options.profiles.push(profile);
                    }
                }
            }
            Word::Option(word) | Word::Plain(word) => return Err(words.unknown(word)),
        }
    }
    let asks = options.registry.is_some()
        || options.ca.is_some()
        || options.no_translate
        || !options.profiles.is_empty();
    if options.undo && asks {
        return Err("--undo takes everything back; leave the other options out".to_owned());
    }
    Ok(options)
}

fn parse_pull<'a>(args: impl Iterator<Item = &'a str>) -> Result<PullOptions, String> {
    let mut options = PullOptions {
        state: DEFAULT_STATE.into(),
        ..PullOptions::default()
    };
    let mut words = Words(args, "pull", None);
    while let Some(word) = words.next()? {
        match word {
            Word::Plain(name) => options.names.push(name.to_owned()),
            Word::Option(name) if from(&mut options.from, name, &mut words)? => {}
            Word::Option(name) if options.engine.take(name, &mut words)? => {}
            Word::Option(name @ "--platform") => {
                options.platform = Some(words.value(name)?.to_owned());
            }
            Word::Option(name @ ("--state" | "--state-dir")) => {
                options.state = words.value(name)?.into();
            }
            Word::Option(word) => return Err(words.unknown(word)),
        }
    }
    if options.names.is_empty() {
        return Err("pull needs the name of an image; try vdkr-agent --help".to_owned());
    }
    Ok(options)
}

/// Takes the options that say where images are pulled from.
fn from<'a>(
    from: &mut PullFrom,
    name: &str,
    words: &mut Words<'a, impl Iterator<Item = &'a str>>,
) -> Result<bool, String> {
    match name {
        "--registry" => from.registry = Some(words.value(name)?.to_owned()),
        "--ca" => from.ca = Some(words.value(name)?.into()),
        "--authfile" => from.authfile = Some(words.value(name)?.into()),
        _ => return Ok(false),
    }
    Ok(true)
}

fn parse_status<'a>(args: impl Iterator<Item = &'a str>) -> Result<StatusOptions, String> {
    let mut options = StatusOptions {
        root: "/".into(),
        state: DEFAULT_STATE.into(),
        engine: EngineWish::default(),
    };
    let mut words = Words(args, "status", None);
    while let Some(word) = words.next()? {
        match word {
            Word::Option(name) if options.engine.take(name, &mut words)? => {}
            Word::Option(name @ "--root") => options.root = words.value(name)?.into(),
            Word::Option(name @ ("--state" | "--state-dir")) => {
                options.state = words.value(name)?.into();
            }
            Word::Option(word) | Word::Plain(word) => return Err(words.unknown(word)),
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_words(pid: u32, words: &str) -> Result<Mode, String> {
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        parse(pid, &words)
    }

    #[test]
    fn process_one_boots_whatever_the_kernel_passes() {
        for words in ["/init", "/init splash serve", "/sbin/init"] {
            assert_eq!(parse_words(1, words), Ok(Mode::Boot));
        }
        assert_eq!(parse_words(77, "/sbin/init x"), Ok(Mode::Boot));
    }

    #[test]
    fn serve_takes_options_in_both_forms() {
        let Mode::Serve(options) = parse_words(
            5,
            "vdkr-agent serve --channel=unix:/a --state /b --own-machine --channel vsock:7",
        )
        .unwrap() else {
            panic!("not serve");
        };
        assert_eq!(
            options.channels,
            [Address::Unix("/a".into()), Address::Vsock(7)]
        );
        assert_eq!(options.state, PathBuf::from("/b"));
        assert!(options.own_machine);
        assert_eq!(options.boot_report, None);
        let Mode::Serve(options) = parse_words(
            5,
            "vdkr-agent serve --vsock --vsock=7 --serial /dev/ttyS1 --unix=/a --state-dir /b",
        )
        .unwrap() else {
            panic!("not serve");
        };
        let all = [
            Address::Vsock(VSOCK_PORT),
            Address::Vsock(7),
            Address::Serial("/dev/ttyS1".into()),
            Address::Unix("/a".into()),
        ];
        assert_eq!(options.channels, all);
        assert_eq!(options.state, PathBuf::from("/b"));
    }

    #[test]
    fn configure_pull_and_status_take_options_in_both_forms() {
        let Mode::Configure(options) = parse_words(
            5,
            "vdkr-agent configure --profile=docker,podman --profile docker --root /mnt --diff \
             --registry h:5000/x --ca=/c",
        )
        .unwrap() else {
            panic!("not configure");
        };
        assert_eq!(options.profiles, [Profile::Docker, Profile::Podman]);
        assert_eq!(options.root, PathBuf::from("/mnt"));
        assert_eq!(options.registry.as_deref(), Some("h:5000/x"));
        assert_eq!(options.ca, Some("/c".into()));
        assert!(options.diff && !options.undo);
        let Mode::Pull(options) = parse_words(
            5,
            "vdkr-agent pull a --state=/s b --platform linux/arm64 --authfile=/l",
        )
        .unwrap() else {
            panic!("not pull");
        };
        assert_eq!(options.names, ["a", "b"]);
        assert_eq!(options.platform.as_deref(), Some("linux/arm64"));
        assert_eq!(options.from.authfile, Some("/l".into()));
        assert_eq!(options.state, PathBuf::from("/s"));
        assert!(matches!(
            parse_words(5, "vdkr-agent status"),
            Ok(Mode::Status(_))
        ));
    }

    #[test]
    fn mistakes_are_named() {
        for words in [
            "vdkr-agent",
            "vdkr-agent fly",
            "vdkr-agent serve",
            "vdkr-agent serve --channel",
            "vdkr-agent serve --channel=",
            "vdkr-agent serve --channel tcp:1",
            "vdkr-agent serve --vsock=x",
            "vdkr-agent serve --vsock 7",
            "vdkr-agent serve --channel unix:/a --own-machine=no",
            "vdkr-agent serve --channel unix:/a extra",
            "vdkr-agent configure now",
            "vdkr-agent configure --diff=yes",
            "vdkr-agent configure --diff=yes --undo",
            "vdkr-agent configure --profile lxc",
            "vdkr-agent configure --undo --ca /c",
            "vdkr-agent configure --undo --no-translate",
            "vdkr-agent pull",
            "vdkr-agent pull --registry",
            "vdkr-agent pull a --force",
            "vdkr-agent status extra",
        ] {
            assert!(parse_words(5, words).is_err(), "{words}");
        }
    }
}
