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

use super::{
    prune::{tell_freed, tell_removed},
    wrong_reply,
};
use crate::{
    exit::Exit,
    out, out_line,
    vdkr::{
        error::{Error, Result},
        format::Format,
        human,
        session::with_session,
        settings::Settings,
        value::parse_switch,
        volume_args::{VolumeCommand, VolumeListArgs},
        words::say,
    },
};

/// What keeps every volume.
const DRIVER: &str = "local";

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
                out_line!("{}", volume.name);
            }
        }
        VolumeCommand::Ls(args) => {
            let format = Format::read(args.format.as_deref())?;
            let filters = args.filter.iter().map(|text| Filter::read(text));
            let filters = filters.collect::<Result<Vec<_>>>()?;
            let names = Vec::new();
            let mut found = volumes(settings, VolumeAction::List { names }).await?;
            found.retain(|volume| fits(volume, &filters));
            list(&found, &args, &format)?;
        }
        VolumeCommand::Inspect { names, format } => {
            let format = Format::read(format.as_deref())?;
            return inspect(settings, &names, &format).await;
        }
        VolumeCommand::Rm { names, force } => return remove(settings, names, force).await,
        VolumeCommand::Prune { all, force } => {
            if !force && !confirmed(all)? {
                return Ok(0);
            }
            let (names, freed) = removed(settings, VolumeAction::Prune { all }).await?;
            tell_removed("Volumes", &names, false);
            tell_freed(freed, false);
        }
    }
    Ok(0)
}

/// Describes what is found; what is not gives a sentence each, and the exit status.
async fn inspect(settings: &Settings, names: &[String], format: &Format) -> Result<u8> {
    let mut documents = Vec::new();
    let outcomes = each(
        settings,
        names,
        |name| VolumeAction::List { names: vec![name] },
        |reply| {
            let Reply::Volumes { volumes } = reply else {
                return Err(wrong_reply(&reply));
            };
            documents.extend(volumes.iter().map(document));
            Ok(())
        },
    )
    .await?;
    match format {
        Format::Template { .. } => {
            for document in &documents {
                crate::output::write(format_args!("{}", format.object(document)?));
            }
        }
        _ => crate::output::write(format_args!("{}", format.object(&documents.into())?)),
    }
    Ok(Exit::of_several(outcomes).code())
}

/// Removes one after the other; one that cannot be removed does not stop the others.
async fn remove(settings: &Settings, names: Vec<String>, force: bool) -> Result<u8> {
    let action = |name| VolumeAction::Remove {
        names: vec![name],
        force,
    };
    let outcomes = each(settings, &names, action, |reply| {
        let Reply::VolumesRemoved { names, .. } = reply else {
            return Err(wrong_reply(&reply));
        };
        for name in names {
            out_line!("{name}");
        }
        Ok(())
    })
    .await?;
    let outcomes = outcomes.into_iter();
    Ok(Exit::of_several(outcomes.map(|outcome| outcome.of_removal(force))).code())
}

/// Asks for the same of one volume after the other.
async fn each(
    settings: &Settings,
    names: &[String],
    action: impl Fn(String) -> VolumeAction,
    mut take: impl FnMut(Reply) -> Result<()>,
) -> Result<Vec<Exit>> {
    with_session(settings, "vdkr volume", async |session| {
        let mut outcomes = Vec::new();
        for name in names {
            let action = action(name.clone());
            match session.ask(&Request::Volume { action }).await {
                Ok(reply) => {
                    take(reply)?;
                    outcomes.push(Exit::Done);
                }
                Err(error) if error.exit() == Exit::Unreachable || error.signalled().is_some() => {
                    return Err(error);
                }
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit());
                }
            }
        }
        Ok(outcomes)
    })
    .await
}

/// What `--filter` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Dangling(bool),
    Driver(String),
    Label(String, Option<String>),
    Name(String),
}

impl Filter {
    fn read(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::usage(format!("filter {text:?}: {reason}"));
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("write KEY=VALUE"))?;
        Ok(match key {
            "dangling" => Self::Dangling(parse_switch(value).map_err(|reason| wrong(&reason))?),
            "driver" => Self::Driver(value.to_owned()),
            "label" => match value.split_once('=') {
                Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned())),
                None => Self::Label(value.to_owned(), None),
            },
            "name" => Self::Name(value.to_owned()),
            _ => return Err(wrong("the keys are dangling, driver, label and name")),
        })
    }

    fn fits(&self, volume: &VolumeRow) -> bool {
        match self {
            Self::Dangling(wanted) => volume.in_use != *wanted,
            Self::Driver(driver) => driver == DRIVER,
            Self::Label(name, value) => {
                let found = volume.labels.get(name);
                found.is_some_and(|found| value.as_ref().is_none_or(|value| found == value))
            }
            Self::Name(part) => volume.name.contains(part.as_str()),
        }
    }
}

/// As docker: all labels, and of each other key one.
fn fits(volume: &VolumeRow, filters: &[Filter]) -> bool {
    filters.iter().all(|filter| match filter {
        Filter::Label(..) => filter.fits(volume),
        _ => filters.iter().any(|other| {
            std::mem::discriminant(other) == std::mem::discriminant(filter) && other.fits(volume)
        }),
    })
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

fn list(volumes: &[VolumeRow], args: &VolumeListArgs, format: &Format) -> Result<()> {
    if *format != Format::Table {
        let rows: Vec<Value> = volumes.iter().map(fields).collect();
        let heads = &[("Driver", "DRIVER"), ("Name", "VOLUME NAME")];
        crate::output::write(format_args!("{}", format.rows(&rows, heads)?));
    } else if args.json {
        let shown: Vec<Value> = volumes.iter().map(document).collect();
        let text = serde_json::to_string_pretty(&shown)
            .map_err(|error| Error::usage(error.to_string()))?;
        out!("{text}");
    } else if args.quiet {
        for volume in volumes {
            out_line!("{}", volume.name);
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
            DRIVER.to_owned(),
            volume.name.clone(),
            human::ago(now.as_second().saturating_sub(created)),
            if volume.in_use { "yes" } else { "no" }.to_owned(),
        ]);
    }
    human::columns(&lines)
}

/// A volume as docker lists it.
fn fields(volume: &VolumeRow) -> Value {
    let labels = volume.labels.iter();
    let labels: Vec<_> = labels
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    json!({
        "Availability": "N/A",
        "Driver": DRIVER,
        "Group": "N/A",
        "Labels": labels.join(","),
        "Links": "N/A",
        "Mountpoint": volume.mountpoint,
        "Name": volume.name,
        "Scope": "local",
        "Size": "N/A",
        "Status": "N/A",
    })
}

/// A volume as docker describes it.
pub(super) fn document(volume: &VolumeRow) -> Value {
    let created = i64::try_from(volume.created)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    json!({
        "CreatedAt": created.map(|created| created.to_string()),
        "Driver": DRIVER,
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
    fn filters_are_dockers() {
        let volume = |name: &str, in_use| VolumeRow {
            name: name.into(),
            in_use,
            labels: BTreeMap::from([("a".into(), "b".into())]),
            ..VolumeRow::default()
        };
        let all = [volume("data", true), volume("other", false)];
        let names = |filters: &[&str]| -> Vec<&str> {
            let filters = filters.iter().map(|text| Filter::read(text).unwrap());
            let filters: Vec<_> = filters.collect();
            let fitting = all.iter().filter(|volume| fits(volume, &filters));
            fitting.map(|volume| volume.name.as_str()).collect()
        };
        for (filters, expected) in [
            (&[][..], &["data", "other"][..]),
            (&["dangling=true"], &["other"]),
            (&["dangling=0"], &["data"]),
            (&["dangling=1", "dangling=0"], &["data", "other"]),
            (&["driver=local"], &["data", "other"]),
            (&["driver=nfs"], &[]),
            (&["name=at"], &["data"]),
            (&["name=data", "name=other"], &["data", "other"]),
            (&["name=data", "dangling=true"], &[]),
            (&["label=a"], &["data", "other"]),
            (&["label=a=b", "label=a=c"], &[]),
        ] {
            assert_eq!(names(filters), expected, "{filters:?}");
        }
        for bad in ["", "dangling", "dangling=maybe", "size=1"] {
            assert!(Filter::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels_have_names() {
        let given = ["a=b=c".to_owned(), "d".to_owned()];
        let read = labels(&given).unwrap();
        assert_eq!((&*read["a"], &*read["d"]), ("b=c", ""));
        assert!(labels(&["=x".to_owned()]).is_err());
    }
}
