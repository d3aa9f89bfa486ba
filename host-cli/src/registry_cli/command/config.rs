//! `config`: every value and where it came from.

use anyhow::Result;
use serde_json::json;
use vdkr_core::tags::parse_strategies;

use crate::exit::Exit;
use crate::out;
use crate::registry_cli::config::{Config, KEYS};
use crate::registry_cli::error::WithExit as _;
use crate::registry_cli::{listen, secure};

/// Prints the configuration; secrets only as set or unset. What no command could use is an error then.
pub fn run(config: &Config, as_json: bool) -> Result<()> {
    print(config, as_json)?;
    config.registry()?;
    config.insecure_hosts()?;
    listen::addresses(config)?;
    secure::checked(config)?;
    parse_strategies(config.value("tag_strategy").unwrap_or_default()).exit(Exit::Usage)?;
    Ok(())
}

fn print(config: &Config, as_json: bool) -> Result<()> {
    let shown = |secret: bool, value: &str| {
        if secret {
            "***".to_owned()
        } else {
            value.to_owned()
        }
    };
    if as_json {
        let entries: Vec<_> = KEYS
            .iter()
            .map(|key| {
                let found = config.get(key.name);
                json!({
                    "name": key.name,
                    "variable": key.env,
                    "value": found.map(|(value, _)| shown(key.secret, value)),
                    "origin": found.map(|(_, origin)| origin.to_string()),
                })
            })
            .collect();
        out!("{}", serde_json::to_string_pretty(&entries)?);
        return Ok(());
    }
    let values: Vec<_> = KEYS
        .iter()
        .map(|key| match config.get(key.name) {
            Some((value, origin)) => (key, shown(key.secret, value), origin.to_string()),
            None => (key, "-".to_owned(), "unset".to_owned()),
        })
        .collect();
    let width = values
        .iter()
        .map(|(_, value, _)| value.len())
        .max()
        .unwrap_or(0)
        .min(60);
    for (key, value, origin) in values {
        out!("{:32} {value:width$}  {origin}", key.env);
    }
    Ok(())
}
