//! `config`: every value and where it came from.

use anyhow::Result;
use serde_json::json;

use crate::out;
use crate::registry_cli::config::{Config, KEYS};

/// Prints the configuration; secrets only as set or unset.
pub fn run(config: &Config, as_json: bool) -> Result<()> {
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
