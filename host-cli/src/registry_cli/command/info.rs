//! `info`: where everything is, in short. Scripts written for the helper script look for it.

use crate::registry_cli::config::Config;
use crate::registry_cli::help;

/// Prints the configuration as `help` does.
pub fn run(config: &Config) {
    crate::output::write(format_args!("{}", help::configuration(config)));
}
