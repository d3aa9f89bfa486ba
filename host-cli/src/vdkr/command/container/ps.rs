//! `vdkr ps`: the containers.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use vdkr_core::{
    channel::message::{ContainerRow, ContainerState, Publication},
    container::name,
};

use super::list;
use crate::{
    out_line,
    vdkr::{
        container_args::PsArgs,
        error::{Error, Result},
        expression::Expression,
        format::Format,
        human, names, registry,
        session::with_session,
        settings::Settings,
    },
};

/// Characters that are shown of a command.
const COMMAND_WIDTH: usize = 20;
const HEADS: &[(&str, &str)] = &[
    ("ID", "CONTAINER ID"),
    ("Image", "IMAGE"),
    ("Command", "COMMAND"),
    ("RunningFor", "CREATED"),
    ("Status", "STATUS"),
    ("Ports", "PORTS"),
    ("Names", "NAMES"),
];

/// Lists them.
pub async fn run(settings: &Settings, args: &PsArgs) -> Result<u8> {
    let mut filters = args
        .filter
        .iter()
        .map(|text| Filter::read(text))
        .collect::<Result<Vec<_>>>()?;
    let format = Format::read(args.format.as_deref())?;
    let (rows, publications) = with_session(settings, "vdkr ps", async |session| {
        for filter in &mut filters {
            if let Filter::Ancestor(image) = filter {
                image.alternative = registry::as_stored(session, &image.written);
                // A name that says nothing of what is stored may still be one that a container has.
                let found = names::find(session, settings, &image.written).await;
                image.id = found.ok().flatten().map(|found| found.id);
            }
        }
        Ok((list(session).await?, session.published().await))
    })
    .await?;
    let rows = wanted(&rows, args, &filters)?;
    if args.quiet {
        for row in &rows {
            out_line!("{}", id(row, args.no_trunc));
        }
        return Ok(0);
    }
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let values: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut value = value(row, args.no_trunc, now, &zone);
            value["Ports"] = json!(ports(row, &publications));
            value
        })
        .collect();
    crate::output::write(format_args!("{}", format.rows(&values, HEADS)?));
    Ok(0)
}

/// What `--filter` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Filter {
    Ancestor(Ancestor),
    Before(String),
    Exited(i32),
    Id(String),
    Label(String, Option<String>),
    Name(Expression),
    Network(String),
    Since(String),
    Status(ContainerState),
    Volume(String),
}

/// An image as the user calls it, and as the machine does: a container may say either.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ancestor {
    written: String,
    alternative: String,
    /// The stored image that it means, if it means one.
    id: Option<String>,
}

impl Filter {
    fn read(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::usage(format!("filter {text:?}: {reason}"));
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("write KEY=VALUE"))?;
        let value = value.to_owned();
        Ok(match key {
            "ancestor" => Self::Ancestor(Ancestor {
                alternative: value.clone(),
                written: value,
                id: None,
            }),
            "before" => Self::Before(value),
            "exited" => Self::Exited(value.parse().map_err(|_| wrong("the status is a number"))?),
            "id" => Self::Id(value),
            "label" => match value.split_once('=') {
                Some((key, value)) => Self::Label(key.to_owned(), Some(value.to_owned())),
                None => Self::Label(value, None),
            },
            "name" => Self::Name(Expression::parse(&value).map_err(|reason| wrong(&reason))?),
            "network" => Self::Network(value),
            "since" => Self::Since(value),
            "volume" => Self::Volume(value),
            "status" => Self::Status(match value.as_str() {
                "created" => ContainerState::Created,
                "running" => ContainerState::Running,
                "paused" => ContainerState::Paused,
                "restarting" => ContainerState::Restarting,
                "exited" => ContainerState::Exited,
                _ => {
                    return Err(wrong(
                        "a status is created, running, paused, restarting or exited",
                    ));
                }
            }),
            _ => {
                return Err(wrong(
                    "the keys are ancestor, before, exited, id, label, name, network, since, \
                     status and volume",
                ));
            }
        })
    }

    fn fits(&self, row: &ContainerRow, all: &[ContainerRow]) -> Result<bool> {
        let made = |wanted: &str| {
            let names = all.iter().map(|row| (row.id.as_str(), row.name.as_str()));
            let id = name::find(wanted, names)
                .map_err(|error| Error::new(crate::exit::Exit::NotFound, error.to_string()))?;
            let known = all.iter().find(|row| row.id == id);
            Ok::<_, Error>(known.map_or(0, |row| row.created_ms))
        };
        Ok(match self {
            Self::Ancestor(ancestor) => {
                let image = &ancestor.written;
                let bare = |name: &str| name.strip_suffix(":latest").unwrap_or(name).to_owned();
                let digest = row.image_id.trim_start_matches("sha256:");
                ancestor.id.as_ref() == Some(&row.image_id)
                    || bare(&row.image) == bare(image)
                    || bare(&row.image) == bare(&ancestor.alternative)
                    || (image.len() >= 4 && digest.starts_with(image.trim_start_matches("sha256:")))
            }
            Self::Before(other) => row.created_ms < made(other)?,
            Self::Exited(status) => row.state == ContainerState::Exited && row.exit_code == *status,
            Self::Id(part) => row.id.starts_with(part.as_str()),
            Self::Label(key, value) => row
                .labels
                .get(key)
                .is_some_and(|known| value.as_ref().is_none_or(|value| known == value)),
            // With docker a name may be written with a slash before it.
            Self::Name(name) => name.is_in(&row.name) || name.is_in(&format!("/{}", row.name)),
            Self::Network(name) => !name.is_empty() && row.network == *name,
            Self::Volume(wanted) => row.mounts.iter().any(|mount| {
                let place = wanted.trim_end_matches('/');
                mount.target == *wanted || mount.target == place || mount.source == *wanted
            }),
            Self::Since(other) => row.created_ms > made(other)?,
            Self::Status(state) => row.state == *state,
        })
    }
}

/// Which of them are shown: of several filters with one key one has to fit, of several keys all.
fn wanted(all: &[ContainerRow], args: &PsArgs, filters: &[Filter]) -> Result<Vec<ContainerRow>> {
    let last = if args.latest { Some(1) } else { args.last };
    let by_state = filters
        .iter()
        .any(|filter| matches!(filter, Filter::Status(_) | Filter::Exited(_)));
    let mut kinds: BTreeMap<String, Vec<&Filter>> = BTreeMap::new();
    for filter in filters {
        let kind = match filter {
            // Labels are wanted together, be it two values of one.
            Filter::Label(key, value) => format!("label {key} {value:?}"),
            other => format!("{:?}", std::mem::discriminant(other)),
        };
        kinds.entry(kind).or_default().push(filter);
    }
    let mut shown = Vec::new();
    for row in all {
        let mut fits = args.all
            || last.is_some()
            || by_state
            || row.state.is_live()
            || row.state == ContainerState::Restarting;
        for alternatives in kinds.values() {
            let mut any = false;
            for filter in alternatives {
                any |= filter.fits(row, all)?;
            }
            fits &= any;
        }
        if fits {
            shown.push(row.clone());
        }
    }
    shown.truncate(last.unwrap_or(usize::MAX));
    Ok(shown)
}

/// As docker shows them: `127.0.0.1:8080->80/tcp`.
fn ports(row: &ContainerRow, publications: &[Publication]) -> String {
    let known = |name: &String| *name == row.id || *name == row.name;
    let its = publications
        .iter()
        .filter(|publication| publication.container.iter().any(known));
    let ports: Vec<_> = its
        .flat_map(|publication| &publication.ports)
        .map(ToString::to_string)
        .collect();
    ports.join(", ")
}

fn id(row: &ContainerRow, whole: bool) -> &str {
    if whole { &row.id } else { name::short(&row.id) }
}

pub(in crate::vdkr::command) fn value(
    row: &ContainerRow,
    whole: bool,
    now: Timestamp,
    zone: &TimeZone,
) -> Value {
    let created = timestamp(row.created_ms);
    let labels: Vec<_> = row
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    // As docker: memory is not named, and what is long is shortened.
    let named = row.mounts.iter().filter(|mount| !mount.source.is_empty());
    let mounts: Vec<_> = named.map(|mount| shown(&mount.source, whole)).collect();
    let volumes = row.mounts.iter().filter(|mount| mount.volume).count();
    json!({
        "ID": id(row, whole),
        "Image": row.image,
        "Command": command(&row.command, whole),
        "CreatedAt": created.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S %z %Z").to_string(),
        "RunningFor": human::ago(now.as_second() - created.as_second()),
        "State": row.state.name(),
        "Status": status(row, now),
        "Ports": "",
        "Names": row.name,
        "Labels": labels.join(","),
        "Mounts": mounts.join(","),
        "Networks": row.network,
        "LocalVolumes": volumes.to_string(),
        "Size": "",
    })
}

/// A mount's source, of which the start is shown.
fn shown(source: &str, whole: bool) -> String {
    const WIDTH: usize = 15;
    if whole || source.chars().count() <= WIDTH {
        return source.to_owned();
    }
    let cut: String = source.chars().take(WIDTH - 1).collect();
    format!("{cut}…")
}

fn timestamp(milliseconds: u64) -> Timestamp {
    let milliseconds = i64::try_from(milliseconds).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(milliseconds).unwrap_or(Timestamp::MAX)
}

fn command(words: &[String], whole: bool) -> String {
    let text = words.join(" ");
    let plain: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if whole || plain.chars().count() <= COMMAND_WIDTH {
        return format!("\"{plain}\"");
    }
    let cut: String = plain.chars().take(COMMAND_WIDTH - 1).collect();
    format!("\"{cut}…\"")
}

fn status(row: &ContainerRow, now: Timestamp) -> String {
    let since = |time: Option<u64>| {
        time.map(|time| human::duration(now.as_second() - timestamp(time).as_second()))
    };
    match row.state {
        ContainerState::Created => "Created".to_owned(),
        ContainerState::Running => match since(row.started_ms) {
            Some(up) => format!("Up {up}"),
            None => "Up".to_owned(),
        },
        ContainerState::Paused => match since(row.started_ms) {
            Some(up) => format!("Up {up} (Paused)"),
            None => "Up (Paused)".to_owned(),
        },
        ContainerState::Restarting | ContainerState::Exited => {
            let word = if row.state == ContainerState::Exited {
                "Exited"
            } else {
                "Restarting"
            };
            match since(row.finished_ms) {
                Some(ago) => format!("{word} ({}) {ago} ago", row.exit_code),
                None => format!("{word} ({})", row.exit_code),
            }
        }
        ContainerState::Unknown => "Unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::channel::message::RowMount;

    use super::*;

    fn row(id: char, name: &str, state: ContainerState, created: u64) -> ContainerRow {
        ContainerRow {
            id: id.to_string().repeat(64),
            name: name.into(),
            image: "base:latest".into(),
            image_id: format!("sha256:{}", "ab".repeat(32)),
            command: ["sh", "-c", "sleep 1000000"].map(Into::into).into(),
            created_ms: created * 1000,
            state,
            started_ms: Some(created * 1000),
            finished_ms: Some(created * 1000 + 1000),
            exit_code: 7,
            labels: BTreeMap::from([("a".into(), "1".into())]),
            network: "bridge".into(),
            ..ContainerRow::default()
        }
    }

    fn rows() -> Vec<ContainerRow> {
        let mount = |source: &str, target: &str, volume| RowMount {
            source: source.into(),
            target: target.into(),
            volume,
        };
        let web = ContainerRow {
            mounts: vec![
                mount("data", "/srv", true),
                mount("/home/me/site", "/www", false),
                mount("", "/tmp", false),
            ],
            network: "host".into(),
            ..row('c', "web", ContainerState::Running, 30)
        };
        vec![
            web,
            row('b', "web-old", ContainerState::Exited, 20),
            row('a', "db", ContainerState::Paused, 10),
        ]
    }

    fn names(args: &PsArgs, filters: &[&str]) -> Vec<String> {
        let filters: Vec<_> = filters
            .iter()
            .map(|text| Filter::read(text).unwrap())
            .collect();
        wanted(&rows(), args, &filters)
            .unwrap()
            .into_iter()
            .map(|row| row.name)
            .collect()
    }

    #[test]
    fn who_is_shown() {
        let some = PsArgs::default();
        let all = PsArgs {
            all: true,
            ..PsArgs::default()
        };
        assert_eq!(names(&some, &[]), ["web", "db"]);
        assert_eq!(names(&all, &[]), ["web", "web-old", "db"]);
        assert_eq!(
            names(
                &PsArgs {
                    latest: true,
                    ..PsArgs::default()
                },
                &[]
            ),
            ["web"]
        );
        assert_eq!(
            names(
                &PsArgs {
                    last: Some(2),
                    ..PsArgs::default()
                },
                &[]
            ),
            ["web", "web-old"]
        );
        assert_eq!(names(&some, &["status=exited"]), ["web-old"]);
        assert_eq!(
            names(&some, &["status=exited", "status=paused"]),
            ["web-old", "db"]
        );
        assert_eq!(names(&some, &["exited=7"]), ["web-old"]);
        assert_eq!(names(&some, &["exited=8"]), Vec::<String>::new());
        assert_eq!(names(&all, &["name=web"]), ["web", "web-old"]);
        assert_eq!(names(&all, &["name=^web$"]), ["web"]);
        assert_eq!(names(&all, &["name=^/web$"]), ["web"]);
        assert_eq!(names(&all, &["name=^web-[a-z]+$"]), ["web-old"]);
        assert_eq!(names(&all, &["name=^w.*d$|^d"]), ["web-old", "db"]);
        assert_eq!(names(&all, &["label=a=1", "name=db"]), ["db"]);
        assert_eq!(names(&all, &["label=a=2"]), Vec::<String>::new());
        assert_eq!(
            names(&all, &["label=a=1", "label=a=2"]),
            Vec::<String>::new()
        );
        assert_eq!(names(&all, &["label=a=1", "label=a"]).len(), 3);
        assert_eq!(names(&all, &["network=host"]), ["web"]);
        assert_eq!(names(&all, &["network=host", "network=bridge"]).len(), 3);
        for volume in ["data", "/srv", "/srv/", "/home/me/site"] {
            assert_eq!(
                names(&all, &[&format!("volume={volume}")]),
                ["web"],
                "{volume}"
            );
        }
        assert_eq!(names(&all, &["volume=dat"]), Vec::<String>::new());
        assert_eq!(names(&all, &["id=bb"]), ["web-old"]);
        assert_eq!(names(&all, &["ancestor=base"]).len(), 3);
        assert_eq!(names(&all, &["ancestor=abab"]).len(), 3);
        assert_eq!(names(&all, &["before=web-old"]), ["db"]);
        assert_eq!(names(&all, &["since=web-old"]), ["web"]);
        for bad in [
            "status",
            "status=happy",
            "exited=x",
            "colour=red",
            "name=(web|db)",
        ] {
            assert!(Filter::read(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_is_dockers() {
        let now = Timestamp::from_second(100).unwrap();
        let values: Vec<_> = rows()
            .iter()
            .map(|row| value(row, false, now, &TimeZone::UTC))
            .collect();
        let text = Format::read(None).unwrap().rows(&values, HEADS).unwrap();
        assert_eq!(
            text,
            "CONTAINER ID   IMAGE         COMMAND                  CREATED              STATUS                          PORTS   NAMES\n\
             cccccccccccc   base:latest   \"sh -c sleep 1000000\"    About a minute ago   Up About a minute                       web\n\
             bbbbbbbbbbbb   base:latest   \"sh -c sleep 1000000\"    About a minute ago   Exited (7) About a minute ago           web-old\n\
             aaaaaaaaaaaa   base:latest   \"sh -c sleep 1000000\"    About a minute ago   Up About a minute (Paused)              db\n"
                .replace("1000000\"    ", "1000000\"   ").replace("COMMAND                  ", "COMMAND                 ")
        );
        let template = Format::read(Some("{{.Names}}:{{.State}}")).unwrap();
        assert_eq!(
            template.rows(&values, HEADS).unwrap(),
            "web:running\nweb-old:exited\ndb:paused\n"
        );
        let template = Format::read(Some("{{.Mounts}}|{{.LocalVolumes}}|{{.Networks}}"));
        assert_eq!(
            template.unwrap().rows(&values[..2], HEADS).unwrap(),
            "data,/home/me/site|1|host\n|0|bridge\n"
        );
        assert_eq!(shown("/home/me/somewhere", false), "/home/me/somew…");
        assert_eq!(shown("/home/me/somewhere", true), "/home/me/somewhere");
    }

    #[test]
    fn commands_are_shortened_and_harmless() {
        let words = |text: &str| vec![text.to_owned()];
        assert_eq!(command(&words("short"), false), "\"short\"");
        assert_eq!(
            command(&words(&"x".repeat(30)), false),
            format!("\"{}…\"", "x".repeat(19))
        );
        assert_eq!(command(&words(&"x".repeat(30)), true).len(), 32);
        assert_eq!(command(&words("a\u{1b}[2J\n"), true), "\"a [2J \"");
    }
}
