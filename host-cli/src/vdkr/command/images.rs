//! `vdkr images`: what the machine's store has.

use jiff::Timestamp;
use vdkr_core::channel::message::{ImageRow, Reply, Request};

use super::wrong_reply;
use crate::{
    out,
    vdkr::{
        args::{ImagesArgs, ListFormat},
        error::{Error, Result},
        human,
        session::with_session,
        settings::Settings,
    },
};

/// Digits of a shortened id.
const SHORT_ID: usize = 12;

/// Lists the images.
pub async fn run(settings: &Settings, args: &ImagesArgs) -> Result<u8> {
    let reply = with_session(settings, "vdkr images", async |session| {
        session.ask(&Request::Images).await
    })
    .await?;
    let Reply::Images { images } = reply else {
        return Err(wrong_reply(&reply));
    };
    let wanted = |row: &ImageRow| args.name.as_deref().is_none_or(|name| matches(row, name));
    let rows: Vec<_> = images.into_iter().filter(wanted).collect();
    if args.json || args.format == ListFormat::Json {
        let text =
            serde_json::to_string_pretty(&rows).map_err(|error| Error::usage(error.to_string()))?;
        out!("{text}");
    } else if args.quiet {
        let mut shown: Vec<String> = Vec::new();
        for row in &rows {
            let id = shorten(&row.id, args.no_trunc);
            if !shown.contains(&id) {
                out!("{id}");
                shown.push(id);
            }
        }
    } else {
        let table = table(&rows, args, Timestamp::now());
        crate::output::write(format_args!("{table}"));
    }
    Ok(0)
}

fn table(rows: &[ImageRow], args: &ImagesArgs, now: Timestamp) -> String {
    let mut head = vec!["REPOSITORY", "TAG"];
    if args.digests {
        head.push("DIGEST");
    }
    head.extend(["IMAGE ID", "CREATED", "SIZE"]);
    let none = || "<none>".to_owned();
    let mut lines: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for row in rows {
        let mut line = vec![
            familiar(&row.name).to_owned(),
            row.tag.clone().unwrap_or_else(none),
        ];
        if args.digests {
            line.push(row.digest.clone().unwrap_or_else(none));
        }
        line.push(shorten(&row.id, args.no_trunc));
        line.push(created(row.created.as_deref(), now));
        line.push(human::size(row.size));
        lines.push(line);
    }
    human::columns(&lines)
}

fn created(time: Option<&str>, now: Timestamp) -> String {
    match time.and_then(|time| time.parse::<Timestamp>().ok()) {
        Some(time) => human::ago(now.as_second() - time.as_second()),
        None => "N/A".to_owned(),
    }
}

fn shorten(id: &str, whole: bool) -> String {
    if whole {
        return id.to_owned();
    }
    let digits = id.split_once(':').map_or(id, |(_, digits)| digits);
    digits.chars().take(SHORT_ID).collect()
}

/// The name as docker shows it: without what Docker Hub's names need not say.
fn familiar(name: &str) -> &str {
    let Some(rest) = name.strip_prefix("docker.io/") else {
        return name;
    };
    rest.strip_prefix("library/")
        .filter(|rest| !rest.contains('/'))
        .unwrap_or(rest)
}

/// Whether a row is what `REPOSITORY[:TAG]` asks for, where the repository may be given by its
/// last components.
fn matches(row: &ImageRow, wanted: &str) -> bool {
    let (name, tag) = match wanted.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (wanted, None),
    };
    let ends = row
        .name
        .strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('/'));
    ends && (tag.is_none() || tag == row.tag.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, tag: Option<&str>) -> ImageRow {
        ImageRow {
            name: name.into(),
            tag: tag.map(Into::into),
            digest: Some("sha256:d".into()),
            id: format!("sha256:{}", "0a".repeat(32)),
            created: Some("2026-01-01T00:00:00Z".into()),
            size: 4_261_550,
        }
    }

    #[test]
    fn the_table_is_dockers() {
        let rows = [
            row("10.0.2.2:5000/yocto/base", Some("latest")),
            row("docker.io/library/alpine", None),
        ];
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        assert_eq!(
            table(&rows, &ImagesArgs::default(), now),
            "REPOSITORY                 TAG      IMAGE ID       CREATED      SIZE\n\
             10.0.2.2:5000/yocto/base   latest   0a0a0a0a0a0a   3 days ago   4.26MB\n\
             alpine                     <none>   0a0a0a0a0a0a   3 days ago   4.26MB\n"
        );
        let whole = ImagesArgs {
            no_trunc: true,
            digests: true,
            ..ImagesArgs::default()
        };
        let text = table(&rows, &whole, now);
        assert!(
            text.contains("DIGEST") && text.contains(&rows[0].id),
            "{text}"
        );
        assert_eq!(created(Some("yesterday"), now), "N/A");
    }

    #[test]
    fn names() {
        assert_eq!(familiar("docker.io/library/alpine"), "alpine");
        assert_eq!(familiar("docker.io/me/app"), "me/app");
        assert_eq!(familiar("h:5000/library/app"), "h:5000/library/app");
        let base = row("10.0.2.2:5000/yocto/base", Some("1.0"));
        for (wanted, found) in [
            ("base", true),
            ("yocto/base", true),
            ("base:1.0", true),
            ("10.0.2.2:5000/yocto/base", true),
            ("10.0.2.2:5000/yocto/base:1.0", true),
            ("ase", false),
            ("base:2.0", false),
        ] {
            assert_eq!(matches(&base, wanted), found, "{wanted}");
        }
    }
}
