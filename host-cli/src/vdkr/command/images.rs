//! `vdkr images`: what the machine's store has.

use jiff::Timestamp;
use serde_json::{Map, Value};
use vdkr_core::{
    candidates::RegistryPrefix,
    channel::message::{ImageRow, Reply, Request},
    reference::Reference,
};

use super::wrong_reply;
use crate::{
    exit::Exit,
    out, out_line,
    vdkr::{
        error::{Error, Result},
        format::Format,
        human,
        image_args::ImagesArgs,
        names, registry,
        session::{Session, with_session},
        settings::Settings,
        value::parse_bool,
    },
};

/// Digits of a shortened id.
const SHORT_ID: usize = 12;

/// Lists the images.
pub async fn run(settings: &Settings, args: &ImagesArgs) -> Result<u8> {
    let format = Format::read(args.format.as_deref())?;
    let filters = args.filter.iter().map(|text| Filter::read(text));
    let mut filters = filters.collect::<Result<Vec<_>>>()?;
    let (all, name) = with_session(settings, "vdkr images", async |session| {
        let stored = |name: &str| registry::as_stored(session, name);
        for filter in &mut filters {
            filter.translate(&stored);
        }
        let name = args.name.as_deref().map(stored);
        Ok((rows(session).await?, name))
    })
    .await?;
    let mut rows = Vec::new();
    let registry = registry::configured(settings)?;
    let times = filters
        .iter()
        .map(|filter| filter.time(&all, registry.as_ref()));
    let times = times.collect::<Result<Vec<_>>>()?;
    for row in &all {
        let named = name.as_deref().is_none_or(|name| matches(row, name));
        if named && fits_all(row, &filters, &times) {
            rows.push(row);
        }
    }
    if args.json {
        let text = serde_json::to_string_pretty(&rows);
        out!("{}", text.map_err(|error| Error::usage(error.to_string()))?);
    } else if args.quiet {
        let mut shown: Vec<String> = Vec::new();
        for row in &rows {
            let id = shorten(&row.id, args.no_trunc);
            if !shown.contains(&id) {
                out_line!("{id}");
                shown.push(id);
            }
        }
    } else {
        let text = table(&rows, &format, args, Timestamp::now())?;
        crate::output::write(format_args!("{text}"));
    }
    Ok(0)
}

/// Whether an image fits all filters; of several for its name one is enough, as with docker.
fn fits_all(row: &ImageRow, filters: &[Filter], times: &[Option<String>]) -> bool {
    let is_name = |filter: &&Filter| matches!(filter, Filter::Reference(_));
    let mut names = filters.iter().filter(is_name).peekable();
    let named = names.peek().is_none() || names.any(|filter| filter.fits(row, None));
    let mut all = filters.iter().zip(times);
    named && all.all(|(filter, time)| is_name(&filter) || filter.fits(row, time.as_deref()))
}

/// What the store has.
pub async fn rows(session: &mut Session) -> Result<Vec<ImageRow>> {
    match session.ask(&Request::Images).await? {
        Reply::Images { images } => Ok(images),
        other => Err(wrong_reply(&other)),
    }
}

/// What can be shown of a row.
pub fn fields(row: &ImageRow, whole: bool, now: Timestamp) -> Map<String, Value> {
    let none = || "<none>".to_owned();
    let labels: Vec<String> = row.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    let fields = [
        ("Repository", familiar(&row.name).to_owned()),
        ("Tag", row.tag.clone().unwrap_or_else(none)),
        ("Digest", row.digest.clone().unwrap_or_else(none)),
        ("ID", shorten(&row.id, whole)),
        (
            "CreatedAt",
            row.created.clone().unwrap_or_else(|| "N/A".to_owned()),
        ),
        ("CreatedSince", created(row.created.as_deref(), now)),
        ("Size", human::size(row.size)),
        ("VirtualSize", human::size(row.size)),
        ("Labels", labels.join(",")),
        ("Containers", "N/A".to_owned()),
    ];
    let fields = fields.into_iter();
    fields
        .map(|(name, text)| (name.to_owned(), text.into()))
        .collect()
}

fn table(rows: &[&ImageRow], format: &Format, args: &ImagesArgs, now: Timestamp) -> Result<String> {
    let line = |row: &&ImageRow| fields(row, args.no_trunc, now);
    let lines: Vec<Map<String, Value>> = rows.iter().map(line).collect();
    let mut columns = vec![("Repository", "REPOSITORY"), ("Tag", "TAG")];
    if args.digests {
        columns.push(("Digest", "DIGEST"));
    }
    columns.extend([
        ("ID", "IMAGE ID"),
        ("CreatedSince", "CREATED"),
        ("Size", "SIZE"),
    ]);
    // Heads of what only a template shows.
    if matches!(format, Format::Template { .. }) {
        columns.extend([("CreatedAt", "CREATED AT"), ("Digest", "DIGEST")]);
    }
    format.rows(&lines, &columns)
}

/// What `--filter` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// The name fits a pattern.
    Reference(String),
    /// Without a tag, or with one.
    Dangling(bool),
    /// Has a label, with a value if one is given; or has not.
    Label(String, Option<String>, bool),
    /// Made before another image was.
    Before(String),
    /// Made after another image was.
    Since(String),
    /// Made before a time.
    Until(Timestamp),
}

impl Filter {
    /// Reads `name=value`.
    pub fn read(text: &str) -> Result<Self> {
        let wrong = |reason: &str| Error::usage(format!("--filter {text:?}: {reason}"));
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("a filter is written NAME=VALUE"))?;
        if value.is_empty() {
            return Err(wrong("the value is missing"));
        }
        let value_text = value.to_owned();
        let label = |with| match value.split_once('=') {
            Some((name, value)) => Self::Label(name.to_owned(), Some(value.to_owned()), with),
            None => Self::Label(value.to_owned(), None, with),
        };
        Ok(match name {
            "reference" => Self::Reference(value_text),
            "dangling" => Self::Dangling(parse_bool(value).map_err(|reason| wrong(&reason))?),
            "label" => label(true),
            "label!" => label(false),
            "before" => Self::Before(value_text),
            "since" => Self::Since(value_text),
            "until" => Self::Until(time(value, Timestamp::now()).map_err(|reason| wrong(&reason))?),
            _ => {
                return Err(wrong(
                    "there are reference, dangling, label, before, since and until",
                ));
            }
        })
    }

    /// Names images as the machine stores them.
    pub fn translate(&mut self, stored: &impl Fn(&str) -> String) {
        if let Self::Reference(name) | Self::Before(name) | Self::Since(name) = self {
            *name = stored(name);
        }
    }

    /// The time of the image that the filter compares with.
    pub fn time(
        &self,
        all: &[ImageRow],
        registry: Option<&RegistryPrefix>,
    ) -> Result<Option<String>> {
        let (Self::Before(name) | Self::Since(name)) = self else {
            return Ok(None);
        };
        let found = names::find_in(all, registry, name)?;
        match all
            .iter()
            .find(|row| found.as_ref().is_some_and(|found| found.id == row.id))
        {
            Some(row) => Ok(row.created.clone()),
            None => Err(Error::new(
                Exit::NotFound,
                format!("no image {name:?} here"),
            )),
        }
    }

    /// Whether an image fits. `other` is what [`Filter::time`] gave.
    pub fn fits(&self, row: &ImageRow, other: Option<&str>) -> bool {
        let parse = |text: Option<&str>| text?.parse::<Timestamp>().ok();
        let own = parse(row.created.as_deref());
        match self {
            Self::Reference(pattern) => matches(row, pattern),
            Self::Dangling(wanted) => row.tag.is_none() == *wanted,
            Self::Label(name, value, wanted) => {
                let found = row.labels.get(name);
                let has = found.is_some_and(|found| value.as_ref().is_none_or(|v| v == found));
                has == *wanted
            }
            Self::Before(_) => parse(other)
                .zip(own)
                .is_some_and(|(other, own)| own < other),
            Self::Since(_) => parse(other)
                .zip(own)
                .is_some_and(|(other, own)| own > other),
            Self::Until(time) => own.is_some_and(|own| own < *time),
        }
    }
}

/// A time, or how long ago it was: `24h`, `1h30m`, `7d`.
fn time(text: &str, now: Timestamp) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(seconds) = text.parse::<i64>() {
        return Timestamp::from_second(seconds).map_err(|error| error.to_string());
    }
    let wrong = || format!("{text:?} is neither a time nor an age such as 24h");
    let (mut seconds, mut number) = (0_i64, String::new());
    for c in text.chars() {
        let unit = match c {
            '0'..='9' => {
                number.push(c);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            'w' => 7 * 86400,
            _ => return Err(wrong()),
        };
        let count: i64 = std::mem::take(&mut number).parse().map_err(|_| wrong())?;
        let more = count.checked_mul(unit).ok_or_else(wrong)?;
        seconds = seconds.checked_add(more).ok_or_else(wrong)?;
    }
    if !number.is_empty() || text.is_empty() {
        return Err(wrong());
    }
    let then = now.as_second().checked_sub(seconds).ok_or_else(wrong)?;
    Timestamp::from_second(then).map_err(|_| wrong())
}

/// How long ago a time is.
pub fn created(time: Option<&str>, now: Timestamp) -> String {
    match time.and_then(|time| time.parse::<Timestamp>().ok()) {
        Some(time) => human::ago(now.as_second() - time.as_second()),
        None => "N/A".to_owned(),
    }
}

/// An id as it is shown.
pub fn shorten(id: &str, whole: bool) -> String {
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

/// Repository and tag.
fn split(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (name, None),
    }
}

/// Whether a row is what `REPOSITORY[:TAG]` asks for: the repository may be given by its last
/// components, and both may be patterns.
pub fn matches(row: &ImageRow, wanted: &str) -> bool {
    let (name, tag) = split(wanted);
    let name = match Reference::parse(name) {
        Ok(reference) if reference.has_explicit_host() => reference.without_tag().familiar(),
        _ => name.to_owned(),
    };
    let whole = familiar(&row.name);
    let starts = whole.match_indices('/').map(|(at, _)| at + 1);
    let mut ends = std::iter::once(0)
        .chain(starts)
        .map(|start| &whole[start..]);
    let fits = |pattern: &str, text: &str| {
        glob(
            &pattern.chars().collect::<Vec<_>>(),
            &text.chars().collect::<Vec<_>>(),
        )
    };
    ends.any(|end| fits(&name, end))
        && tag.is_none_or(|tag| row.tag.as_deref().is_some_and(|own| fits(tag, own)))
}

/// `*` for anything and `?` for one character, but for a slash.
fn glob(pattern: &[char], text: &[char]) -> bool {
    // Where to go on when a star has to take one more.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(c) if *c == text[t] || (*c == '?' && text[t] != '/') => {
                p += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) if text[taken] != '/' => {
                    star = Some((at, taken + 1));
                    p = at + 1;
                    t = taken + 1;
                }
                _ => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
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
            ..ImageRow::default()
        }
    }

    #[test]
    fn the_table_is_dockers() {
        let rows = [
            row("10.0.2.2:5000/yocto/base", Some("latest")),
            row("docker.io/library/alpine", None),
        ];
        let now = "2026-01-04T00:00:00Z".parse().unwrap();
        let rows: Vec<&ImageRow> = rows.iter().collect();
        let table = |args: &ImagesArgs| table(&rows, &Format::Table, args, now).unwrap();
        assert_eq!(
            table(&ImagesArgs::default()),
            "REPOSITORY                 TAG      IMAGE ID       CREATED      SIZE\n\
             10.0.2.2:5000/yocto/base   latest   0a0a0a0a0a0a   3 days ago   4.26MB\n\
             alpine                     <none>   0a0a0a0a0a0a   3 days ago   4.26MB\n"
        );
        let whole = ImagesArgs {
            no_trunc: true,
            digests: true,
            ..ImagesArgs::default()
        };
        let text = table(&whole);
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

    #[test]
    fn patterns() {
        let base = row("10.0.2.2:5000/yocto/container-base", Some("1.0"));
        for (wanted, found) in [
            ("container-*", true),
            ("*base:1.?", true),
            ("yocto/*", true),
            ("*", true),
            ("*:2*", false),
            ("y*e", false),
            ("10.0.2.2:5000/*/container-base", true),
            ("?", false),
        ] {
            assert_eq!(matches(&base, wanted), found, "{wanted}");
        }
    }

    #[test]
    fn filters() {
        let at = |name: &str, tag: Option<&str>, created: &str| ImageRow {
            created: Some(created.into()),
            labels: [("a".to_owned(), "b".to_owned())].into(),
            id: format!(
                "sha256:{:0>64x}",
                name.len() * 256 + usize::from(name.as_bytes()[0])
            ),
            ..row(name, tag)
        };
        let all = [
            at("old", Some("latest"), "2026-01-01T00:00:00Z"),
            at("mid", Some("latest"), "2026-01-02T00:00:00Z"),
            at("new", None, "2026-01-03T00:00:00Z"),
        ];
        let fitting = |text: &str| -> Vec<&str> {
            let filter = Filter::read(text).unwrap();
            let time = filter.time(&all, None).unwrap();
            let fits = all.iter().filter(|row| filter.fits(row, time.as_deref()));
            fits.map(|row| row.name.as_str()).collect()
        };
        assert_eq!(fitting("dangling=true"), ["new"]);
        assert_eq!(fitting("dangling=false"), ["old", "mid"]);
        assert_eq!(fitting("before=mid"), ["old"]);
        assert_eq!(fitting("since=mid:latest"), ["new"]);
        assert_eq!(fitting("label=a").len(), 3);
        assert_eq!(fitting("label=a=c").len(), 0);
        assert_eq!(fitting("label!=a=c").len(), 3);
        assert_eq!(fitting("reference=?id"), ["mid"]);
        let fitting_all = |texts: &[&str]| -> Vec<&str> {
            let filters: Vec<_> = texts
                .iter()
                .map(|text| Filter::read(text).unwrap())
                .collect();
            let times: Vec<_> = filters
                .iter()
                .map(|f| f.time(&all, None).unwrap())
                .collect();
            let fits = all.iter().filter(|row| fits_all(row, &filters, &times));
            fits.map(|row| row.name.as_str()).collect()
        };
        assert_eq!(
            fitting_all(&["reference=old", "reference=new"]),
            ["old", "new"]
        );
        let with_time = ["reference=old", "reference=new", "since=mid"];
        assert_eq!(fitting_all(&with_time), ["new"]);
        assert_eq!(fitting_all(&["label=a", "label=a=c"]), [""; 0]);
        assert_eq!(fitting_all(&[]).len(), 3);
        assert_eq!(fitting("until=2026-01-02T12:00:00Z"), ["old", "mid"]);
        for bad in [
            "",
            "x",
            "x=y",
            "dangling=maybe",
            "label=",
            "until=soon",
            "until=5",
        ] {
            assert!(bad == "until=5" || Filter::read(bad).is_err(), "{bad}");
        }
        assert!(
            Filter::read("before=none")
                .unwrap()
                .time(&all, None)
                .is_err()
        );
        let now = "2026-01-02T00:00:00Z".parse().unwrap();
        assert_eq!(
            time("1h30m", now).unwrap().to_string(),
            "2026-01-01T22:30:00Z"
        );
        assert!(time("99999999999999999w", now).is_err() && time("h", now).is_err());
    }
}
