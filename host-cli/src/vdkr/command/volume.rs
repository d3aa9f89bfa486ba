//! `vdkr volume`: what containers leave behind and find again.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, IsTerminal as _, Write as _},
};

use jiff::Timestamp;
use serde_json::{Value, json};
use vdkr_core::{
    channel::message::{Reply, Request, VolumeAction, VolumeRow},
    volume::check_name,
};

use super::wrong_reply;
use crate::{
    out,
    vdkr::{
        args::{VolumeCommand, VolumeListArgs},
        error::{Error, Result},
        human,
        session::with_session,
        settings::Settings,
    },
};

/// Carries out one of the commands.
pub async fn run(settings: &Settings, command: VolumeCommand) -> Result<u8> {
    match command {
        VolumeCommand::Create(args) => {
            if let Some(name) = &args.name {
                check_name(name).map_err(|error| Error::usage(error.to_string()))?;
            }
            let action = VolumeAction::Create {
                name: args.name,
                labels: labels(&args.label)?,
            };
            for volume in volumes(settings, action).await? {
                out!("{}", volume.name);
            }
        }
        VolumeCommand::Ls(args) => {
            let names = Vec::new();
            list(
                &volumes(settings, VolumeAction::List { names }).await?,
                &args,
            )?;
        }
        VolumeCommand::Inspect { names } => {
            let found = volumes(settings, VolumeAction::List { names }).await?;
            let shown: Vec<Value> = found.iter().map(document).collect();
            let text = serde_json::to_string_pretty(&shown)
                .map_err(|error| Error::usage(error.to_string()))?;
            out!("{text}");
        }
        VolumeCommand::Rm { names, force } => {
            let (names, _) = removed(settings, VolumeAction::Remove { names, force }).await?;
            for name in names {
                out!("{name}");
            }
        }
        VolumeCommand::Prune { all, force } => {
            if !force && !confirmed(all)? {
                return Ok(0);
            }
            let (names, freed) = removed(settings, VolumeAction::Prune { all }).await?;
            for name in names {
                out!("{name}");
            }
            crate::vdkr::session::say(&format!("{} freed", human::size(freed)));
        }
    }
    Ok(0)
}

async fn ask(settings: &Settings, action: VolumeAction) -> Result<Reply> {
    with_session(settings, "vdkr volume", async |session| {
        session.ask(&Request::Volume { action }).await
    })
    .await
}

async fn volumes(settings: &Settings, action: VolumeAction) -> Result<Vec<VolumeRow>> {
    match ask(settings, action).await? {
        Reply::Volumes { volumes } => Ok(volumes),
        other => Err(wrong_reply(&other)),
    }
}

async fn removed(settings: &Settings, action: VolumeAction) -> Result<(Vec<String>, u64)> {
    match ask(settings, action).await? {
        Reply::VolumesRemoved { names, freed } => Ok((names, freed)),
        other => Err(wrong_reply(&other)),
    }
}

fn labels(given: &[String]) -> Result<BTreeMap<String, String>> {
    let split = |label: &String| {
        let (name, value) = label.split_once('=').unwrap_or((label, ""));
        if name.is_empty() {
            return Err(Error::usage(format!("label {label:?} has no name")));
        }
        Ok((name.to_owned(), value.to_owned()))
    };
    given.iter().map(split).collect()
}

/// Content that is removed does not come back: somebody has to say yes.
fn confirmed(all: bool) -> Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(Error::usage(
            "volume prune removes content for good; confirm it with --force",
        ));
    }
    let which = if all { "all" } else { "all anonymous" };
    eprint!("This removes {which} volumes that no container uses. Go on? [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn list(volumes: &[VolumeRow], args: &VolumeListArgs) -> Result<()> {
    if args.json {
        let shown: Vec<Value> = volumes.iter().map(document).collect();
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|error| Error::usage(error.to_string()))?;
        out!("{text}");
    } else if args.quiet {
        for volume in volumes {
            out!("{}", volume.name);
        }
    } else {
        crate::output::write(format_args!("{}", table(volumes, Timestamp::now())));
    }
    Ok(())
}

fn table(volumes: &[VolumeRow], now: Timestamp) -> String {
    let mut lines = vec![
        ["DRIVER", "VOLUME NAME", "CREATED", "IN USE"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for volume in volumes {
        let created = i64::try_from(volume.created).unwrap_or_default();
        lines.push(vec![
            "local".to_owned(),
            volume.name.clone(),
            human::ago(now.as_second().saturating_sub(created)),
            if volume.in_use { "yes" } else { "no" }.to_owned(),
        ]);
    }
    human::columns(&lines)
}

/// A volume as docker describes it.
fn document(volume: &VolumeRow) -> Value {
    let created = i64::try_from(volume.created)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    json!({
        "CreatedAt": created.map(|created| created.to_string()),
        "Driver": "local",
        "Labels": volume.labels,
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Options": null,
        "Scope": "local",
        "Anonymous": volume.anonymous,
        "InUse": volume.in_use,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_shown_as_docker_shows_them() {
        let volume = VolumeRow {
            name: "data".into(),
            created: 1_767_225_600,
            labels: BTreeMap::from([("a".into(), "b".into())]),
            in_use: true,
            mountpoint: "/var/lib/vdkr/volumes/data/_data".into(),
            ..VolumeRow::default()
        };
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        assert_eq!(
            table(std::slice::from_ref(&volume), now),
            "DRIVER   VOLUME NAME   CREATED      IN USE\n\
             local    data          3 days ago   yes\n"
        );
        let shown = document(&volume);
        assert_eq!(shown["CreatedAt"], "2026-01-01T00:00:00Z");
        assert_eq!(shown["Labels"]["a"], "b");
    }

    #[test]
    fn labels_have_names() {
        let given = ["a=b=c".to_owned(), "d".to_owned()];
        let read = labels(&given).unwrap();
        assert_eq!((&*read["a"], &*read["d"]), ("b=c", ""));
        assert!(labels(&["=x".to_owned()]).is_err());
    }
}
