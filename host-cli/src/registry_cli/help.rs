//! Help: the parser's own, followed by the configuration that commands would use now.

use std::fmt::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _};

use super::args::{Cli, EXAMPLES};
use super::config::{Config, DeployRoots, listing};
use super::error::printable;
use super::secure::Mode;
use crate::exit::Exit;
use crate::out;

/// The whole command line of this program.
pub fn command() -> clap::Command {
    Cli::command().after_long_help(format!("{EXAMPLES}\n\n{}", listing().trim_end()))
}

/// Reads the command line of this process. Help, the version and mistakes are printed, and end it
/// with the status in `Err`.
pub fn read(args: impl IntoIterator<Item = std::ffi::OsString>) -> Result<Cli, ExitCode> {
    let args: Vec<_> = args.into_iter().collect();
    let words: Vec<_> = args
        .iter()
        .skip(1)
        .filter_map(|word| word.to_str())
        .collect();
    // The helper script printed its help when it was given nothing to do.
    let whole = args.len() <= 1 || words == ["help"] || words == ["--help"] || words == ["-h"];
    if whole {
        let mut command = command();
        let text = if words == ["-h"] {
            command.render_help()
        } else {
            command.render_long_help()
        };
        out!("{}", text.to_string().trim_end());
        // Without a usable configuration there is still help.
        if let Ok(config) = Config::resolve(&vec![], &|name| std::env::var(name).ok()) {
            out!("\n{}", configuration(&config).trim_end());
        }
        return Err(Exit::Done.into());
    }
    let parsed = command()
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    parsed.map_err(|error| {
        // Help and version go to stdout and are success; clap knows.
        let code = if error.use_stderr() {
            Exit::Usage
        } else {
            Exit::Done
        };
        let text = error.render().to_string();
        let shown = printable(&text);
        if shown == text || !error.use_stderr() {
            let _ = error.print();
        } else {
            eprint!("{shown}");
        }
        if matches!(error.kind(), ErrorKind::InvalidSubcommand) {
            eprintln!("\nAll commands: container-registry help");
        }
        code.into()
    })
}

/// What the helper script printed below its help: where everything is.
pub fn configuration(config: &Config) -> String {
    let mut text = String::from(
        "Configuration (container-registry config tells where each value comes from):\n",
    );
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "  {:13} {value}", format!("{name}:"));
    };
    let value = |name: &str| config.value(name).unwrap_or("-");
    line("URL", value("url"));
    line("Namespace", value("namespace"));
    line("Tag strategy", value("tag_strategy"));
    if let Some(arch) = config.value("target_arch") {
        line("Target arch", arch);
    }
    line("Storage", &config.storage().display().to_string());
    match config.deploy_roots() {
        DeployRoots::AllMachines(dir) | DeployRoots::Machine(dir) => {
            line("Deploy dir", &dir.display().to_string());
        }
        DeployRoots::Unknown => line("Deploy dir", "-"),
    }
    line("Auth mode", value("auth_mode"));
    let mode = Mode::in_use(config).unwrap_or(Mode::Plain);
    if mode.is_secure() {
        line("Mode", "secure");
        line("PKI", &config.storage().join("pki").display().to_string());
        if mode == Mode::TlsAuth {
            let file = config.storage().join("auth/password");
            line("Password file", &file.display().to_string());
        }
    }
    text
}
