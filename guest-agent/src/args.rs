//! The command line, read by hand: the agent has few options and counts its bytes.

use std::path::PathBuf;

use crate::channel::Address;

/// Where images are kept unless `--state` says otherwise.
const DEFAULT_STATE: &str = "/var/lib/vdkr";

/// Help text.
pub const USAGE: &str = "\
vdkr-agent: runs containers inside a target, on behalf of a host program

usage:
  vdkr-agent serve --channel CHANNEL [--state DIR]
      serve hosts on CHANNEL: port:NAME (a virtio-serial port), vsock:PORT or unix:PATH
      (a socket, made for the caller alone); several channels may be named
      --state DIR   where images and containers are kept (default /var/lib/vdkr)
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
        Some(other) => Err(format!("unknown command {other:?}; try vdkr-agent --help")),
    }
}

fn parse_serve<'a>(mut args: impl Iterator<Item = &'a str>) -> Result<Mode, String> {
    let mut channels = Vec::new();
    let mut channel = None;
    let mut state = None;
    let mut own_machine = false;
    let mut boot_report = None;
    while let Some(arg) = args.next() {
        let (name, attached) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (arg, None),
        };
        if name == "--own-machine" && attached.is_none() {
            own_machine = true;
            continue;
        }
        let slot = match name {
            "--channel" => &mut channel,
            "--state" => &mut state,
            "--boot-report" => &mut boot_report,
            _ => {
                return Err(format!(
                    "unknown option {arg:?} of serve; try vdkr-agent --help"
                ));
            }
        };
        let value = attached
            .or_else(|| args.next())
            .filter(|value| !value.is_empty());
        *slot = Some(value.ok_or_else(|| format!("option {name} needs a value"))?);
        if let Some(channel) = channel.take() {
            channels.push(channel.parse()?);
        }
    }
    if channels.is_empty() {
        return Err("serve needs --channel; try vdkr-agent --help".to_owned());
    }
    Ok(Mode::Serve(ServeOptions {
        channels,
        state: state.unwrap_or(DEFAULT_STATE).into(),
        own_machine,
        boot_report: boot_report.map(PathBuf::from),
    }))
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
            "vdkr-agent serve --channel unix:/a --own-machine=no",
            "vdkr-agent serve --channel unix:/a extra",
        ] {
            assert!(parse_words(5, words).is_err(), "{words}");
        }
    }
}
