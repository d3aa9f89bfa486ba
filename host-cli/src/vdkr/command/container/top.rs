//! `vdkr top`: the processes of a container.

use vdkr_core::channel::message::{ContainerReply, ContainerRequest, Reply, Request};

use crate::vdkr::{
    command::wrong_reply,
    container_args::TopArgs,
    error::{Error, Result},
    human,
    session::with_session,
    settings::Settings,
};

/// Columns as `ps` calls them, and the agent's column that each shows.
const FIELDS: [(&str, &str, &str); 17] = [
    ("args", "COMMAND", "CMD"),
    ("bsdtime", "TIME", "TIME"),
    ("c", "C", "C"),
    ("cmd", "CMD", "CMD"),
    ("command", "COMMAND", "CMD"),
    ("cputime", "TIME", "TIME"),
    ("euid", "EUID", "UID"),
    ("pid", "PID", "PID"),
    ("ppid", "PPID", "PPID"),
    ("start", "START", "STIME"),
    ("stime", "STIME", "STIME"),
    ("time", "TIME", "TIME"),
    ("tname", "TTY", "TTY"),
    ("tt", "TT", "TTY"),
    ("tty", "TT", "TTY"),
    ("ucmd", "CMD", "CMD"),
    ("uid", "UID", "UID"),
];

/// A column to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Column {
    head: String,
    /// The agent's title of it.
    of: &'static str,
}

/// Lists them.
pub async fn run(settings: &Settings, args: &TopArgs) -> Result<u8> {
    let columns = columns(&args.options)?;
    let request = Request::Container(ContainerRequest::Top {
        name: args.container.clone(),
    });
    let reply = with_session(settings, "vdkr top", async |session| {
        session.ask(&request).await
    })
    .await?;
    let Reply::Container(ContainerReply::Top { titles, processes }) = reply else {
        return Err(wrong_reply(&reply));
    };
    let rows = table(titles, &processes, columns.as_deref());
    crate::output::write(format_args!("{}", human::columns(&rows)));
    Ok(0)
}

/// The lines, with the agent's own columns when none were asked for.
fn table(
    titles: Vec<String>,
    processes: &[Vec<String>],
    columns: Option<&[Column]>,
) -> Vec<Vec<String>> {
    // A process chooses what stands there.
    let plain = |cell: &String| cell.chars().filter(|c| !c.is_control()).collect::<String>();
    let shown: Vec<(String, Option<usize>)> = match columns {
        None => titles
            .into_iter()
            .enumerate()
            .map(|(at, title)| (title, Some(at)))
            .collect(),
        Some(columns) => columns
            .iter()
            .map(|column| {
                let at = titles.iter().position(|title| title == column.of);
                (column.head.clone(), at)
            })
            .collect(),
    };
    let cell = |row: &Vec<String>, at: Option<usize>| {
        at.and_then(|at| row.get(at))
            .map_or_else(|| "-".to_owned(), plain)
    };
    let heads = shown.iter().map(|(head, _)| head.clone()).collect();
    let lines = processes
        .iter()
        .map(|row| shown.iter().map(|(_, at)| cell(row, *at)).collect());
    std::iter::once(heads).chain(lines).collect()
}

/// The columns that options of `ps` ask for; `None` for the usual ones.
fn columns(options: &[String]) -> Result<Option<Vec<Column>>> {
    let refused = |word: &str| {
        let known: Vec<&str> = FIELDS.iter().map(|(name, ..)| *name).collect();
        Error::usage(format!("top knows no option {word:?} of ps")).with_hint(format!(
            "there are -ef and -o COLUMN,… with: {}",
            known.join(" ")
        ))
    };
    let mut columns: Vec<Column> = Vec::new();
    let mut words = options.iter().map(String::as_str);
    while let Some(word) = words.next() {
        let (switches, list) = match word.strip_prefix("--format") {
            Some("") => ("", Some(None)),
            Some(rest) => match rest.strip_prefix('=') {
                Some(list) => ("", Some(Some(list))),
                None => return Err(refused(word)),
            },
            None => {
                let letters = word.strip_prefix('-').unwrap_or(word);
                match letters.split_once('o') {
                    Some((before, "")) => (before, Some(None)),
                    Some((before, list)) => (before, Some(Some(list))),
                    None => (letters, None),
                }
            }
        };
        // Every process is shown anyway, in the full form.
        let empty = word.is_empty() || word == "-";
        if empty
            || !switches
                .chars()
                .all(|letter| matches!(letter, 'e' | 'f' | 'A'))
        {
            return Err(refused(word));
        }
        let Some(list) = list else {
            continue;
        };
        let list = match list {
            Some(list) => list,
            None => words
                .next()
                .ok_or_else(|| Error::usage(format!("{word} needs the names of columns")))?,
        };
        columns.extend(read(list).map_err(|word| refused(&word))?);
    }
    Ok((!columns.is_empty()).then_some(columns))
}

/// Reads `pid,cmd` and `pid=HEAD`; the head of the last column takes the rest, as with `ps`.
fn read(list: &str) -> Result<Vec<Column>, String> {
    let mut columns = Vec::new();
    let mut rest = list;
    while !rest.is_empty() {
        let end = rest.find([',', ' ', '=']).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        let known = FIELDS.iter().find(|(known, ..)| *known == name);
        let &(_, head, of) = known.ok_or_else(|| name.to_owned())?;
        let (head, next) = match after.strip_prefix('=') {
            Some(head) => (head, ""),
            None => (head, after.get(1..).unwrap_or_default()),
        };
        columns.push(Column {
            head: head.to_owned(),
            of,
        });
        rest = next;
    }
    match columns.is_empty() {
        true => Err(list.to_owned()),
        false => Ok(columns),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn words(options: &[&str]) -> Vec<String> {
        options.iter().map(ToString::to_string).collect()
    }

    fn shown(options: &[&str]) -> Result<Vec<String>, String> {
        let columns = columns(&words(options)).map_err(|error| error.to_string())?;
        let titles = words(&["UID", "PID", "PPID", "CMD"]);
        let processes = vec![words(&["0", "7", "1", "sh\u{1b} -c x"])];
        let rows = table(titles, &processes, columns.as_deref());
        Ok(rows.iter().map(|row| row.join("|")).collect())
    }

    #[test]
    fn options_of_ps() {
        let usual = ["UID|PID|PPID|CMD", "0|7|1|sh -c x"];
        for options in [&[][..], &["-ef"], &["-e", "-f"], &["-A"], &["ef"]] {
            assert_eq!(shown(options).unwrap(), usual, "{options:?}");
        }
        for (options, expected) in [
            (&["-o", "pid,cmd"][..], ["PID|CMD", "7|sh -c x"]),
            (&["-opid,cmd"], ["PID|CMD", "7|sh -c x"]),
            (&["-eo", "pid cmd"], ["PID|CMD", "7|sh -c x"]),
            (&["-o", "pid", "-o", "args"], ["PID|COMMAND", "7|sh -c x"]),
            (&["--format", "pid=Number one"], ["Number one", "7"]),
            (&["--format=ppid,uid="], ["PPID|", "1|0"]),
            // An agent of an earlier version may have no such column.
            (&["-o", "pid,tty"], ["PID|TT", "7|-"]),
        ] {
            assert_eq!(shown(options).unwrap(), expected, "{options:?}");
        }
    }

    #[test]
    fn what_cannot_be_shown_is_refused() {
        for (options, word) in [
            (&["aux"][..], "\"aux\""),
            (&["-o", "pid,rss"], "\"rss\""),
            (&["-o", ""], "\"\""),
            (&["-o", ",pid"], "\"\""),
            (&["-o"], "needs the names"),
            (&["--sort", "pid"], "\"--sort\""),
            (&["--formats"], "\"--formats\""),
            (&["-"], "\"-\""),
        ] {
            let error = shown(options).unwrap_err();
            assert!(error.contains(word), "{options:?}: {error}");
        }
        assert!(shown(&["-o", "rss"]).unwrap_err().contains("ppid"));
    }

    proptest! {
        #[test]
        fn any_words_are_read_or_refused(options: Vec<String>) {
            let _ = columns(&options);
        }
    }
}
