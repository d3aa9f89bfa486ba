//! `vdkr vconfig`: shows and changes the configuration.

use std::path::Path;

use serde_json::json;

use crate::{
    out,
    vdkr::{
        args::VconfigArgs,
        config::{self, Config, ConfigError, Key},
        error::{Error, Result},
        human,
        session::ignored,
        settings::{Origin, Settings, Surroundings},
        value,
        words::say,
    },
};

/// Lists, prints, sets or resets.
pub async fn run(settings: &Settings, args: &VconfigArgs) -> Result<u8> {
    let Some(name) = args.key.as_deref() else {
        list(settings, args.json);
        return Ok(0);
    };
    let mut config = settings.config.clone();
    if name == "mirror" {
        mirror(&mut config, args)?;
        return Ok(0);
    }
    let key = config::key(name)?;
    match (&args.values[..], args.reset) {
        ([], false) if args.json => {
            let (value, origin) = settings.value(name);
            out!(
                "{}",
                json!({ "key": name, "value": value, "origin": origin.to_string() })
            );
        }
        ([], false) => out!("{}", settings.value(name).0),
        ([], true) => {
            config.reset(key);
            config.save()?;
            out!("Reset {name} to default: {}", shown(key.default));
            tell_if_late(settings, key).await;
        }
        ([value], false) => {
            config.set(key, value)?;
            config.save()?;
            out!("Set {name} = {}", config.get(key)?.unwrap_or_default());
            overruled(settings, key);
            tell_if_late(settings, key).await;
        }
        _ => return Err(Error::usage(format!("give {name} one value, or --reset"))),
    }
    Ok(0)
}

/// Changes a file that cannot be used as it is. `false` when that was not asked for.
pub fn mend(dir: &Path, args: &VconfigArgs) -> Result<bool> {
    let Some(name) = args.key.as_deref() else {
        return Ok(false);
    };
    let mut config = Config::read(dir)?;
    match (&args.values[..], args.reset) {
        ([], true) if config.remove(name) => {
            config.save()?;
            out!("Reset {name}");
        }
        ([value], false) => {
            let key = config::key(name)?;
            config.set(key, value)?;
            config.save()?;
            out!("Set {name} = {}", config.get(key)?.unwrap_or_default());
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn list(settings: &Settings, json: bool) {
    let mirrors = settings.config.mirrors();
    if json {
        let keys: Vec<_> = settings
            .all()
            .map(|(key, value, origin)| {
                json!({ "key": key.name, "value": value, "origin": origin.to_string() })
            })
            .collect();
        let mirrors: serde_json::Map<_, _> = mirrors
            .into_iter()
            .map(|(host, urls)| (host, json!(urls)))
            .collect();
        out!(
            "{:#}",
            json!({ "file": settings.config.path(), "keys": keys, "mirror": mirrors })
        );
        return;
    }
    let mut rows = vec![["KEY", "VALUE", "FROM", ""].map(str::to_owned).to_vec()];
    for (key, value, origin) in settings.all() {
        rows.push(vec![
            key.name.into(),
            shown(value).into(),
            origin.to_string(),
            key.help.into(),
        ]);
    }
    for (host, urls) in mirrors {
        let help = "asked before that registry".to_owned();
        rows.push(vec![
            format!("mirror {host}"),
            urls.join(","),
            Origin::File.to_string(),
            help,
        ]);
    }
    crate::output::write(format_args!("{}", human::columns(&rows)));
    eprintln!("The file is {}", settings.config.path().display());
}

fn shown(value: &str) -> &str {
    if value.is_empty() { "-" } else { value }
}

/// A value in the file that something stronger hides would seem to have no effect.
fn overruled(settings: &Settings, key: &Key) {
    if let (value, origin @ (Origin::Variable(_) | Origin::ProgramName)) = settings.value(key.name)
    {
        eprintln!("vdkr: the {origin} says {value:?} and beats it here");
    }
}

/// A change that a machine which runs does not follow would seem to have no effect.
async fn tell_if_late(settings: &Settings, key: &Key) {
    let Ok(changed) = Settings::resolve(settings.global.clone(), &Surroundings::real()) else {
        return;
    };
    if ignored::by_running(&changed, key.name).await {
        say(&format!(
            "the machine that is running keeps its own {}; the new one holds after: vdkr memres \
             restart",
            key.name
        ));
    }
}

fn mirror(config: &mut Config, args: &VconfigArgs) -> Result<(), Error> {
    match (&args.values[..], args.reset) {
        ([], false) => {
            let mirrors = config.mirrors();
            if args.json {
                let map: serde_json::Map<_, _> = mirrors
                    .into_iter()
                    .map(|(host, urls)| (host, json!(urls)))
                    .collect();
                out!("{:#}", serde_json::Value::Object(map));
            } else {
                for (host, urls) in mirrors {
                    out!("{host} {}", urls.join(","));
                }
            }
        }
        ([], true) => {
            config.reset_mirrors(None);
            config.save()?;
            out!("Reset all mirrors");
        }
        ([host], true) => {
            config.reset_mirrors(Some(host));
            config.save()?;
            out!("Reset mirror of {host}");
        }
        ([host], false) => match config
            .mirrors()
            .into_iter()
            .find(|(known, _)| known == host)
        {
            Some((_, urls)) => out!("{}", urls.join(",")),
            None => {
                return Err(ConfigError::Value {
                    origin: format!("mirror {host}"),
                    reason: "has no mirrors; give URLs to set some".to_owned(),
                }
                .into());
            }
        },
        ([host, urls @ ..], false) => {
            let urls: Vec<_> = urls.iter().flat_map(|urls| value::list(urls)).collect();
            config.set_mirrors(host, &urls)?;
            config.save()?;
            out!("Set mirror of {host} = {}", urls.join(","));
        }
        _ => return Err(Error::usage("give --reset with one host, or none")),
    }
    Ok(())
}
