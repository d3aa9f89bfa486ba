//! The container's environment out of `-e` and `--env-file`, by docker's rules.

use std::{fs, io::Read as _};

use super::{
    error::{Error, Result},
    run_options::EnvSource,
};

/// Longest environment file that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Puts the environment together: files first, then single entries, later ones winning.
///
/// `own` gives this process's value of a name that stands without one. A name that has none here is
/// left out of what a file says; as an entry it stays bare, which takes the image's value away.
pub fn assemble(
    sources: &[EnvSource],
    own: &dyn Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let mut env = Vec::new();
    for source in sources {
        if let EnvSource::File(path) = source {
            let text = read(path)?;
            parse_file(&text, own, &mut env)
                .map_err(|reason| Error::usage(format!("{path}: {reason}")))?;
        }
    }
    for source in sources {
        if let EnvSource::Entry(entry) = source {
            match entry.split_once('=') {
                Some(("", _)) | None if entry.is_empty() || entry.starts_with('=') => {
                    return Err(Error::usage(format!(
                        "invalid environment variable {entry:?}"
                    )));
                }
                Some(_) => env.push(entry.clone()),
                None => env.push(match own(entry) {
                    Some(value) => format!("{entry}={value}"),
                    None => entry.clone(),
                }),
            }
        }
    }
    Ok(env)
}

fn read(path: &str) -> Result<String> {
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE + 1).read_to_end(&mut bytes))
        .map_err(|error| {
            Error::usage(format!("cannot read the environment file {path}: {error}"))
        })?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Error::usage(format!(
            "{path}: longer than {MAX_FILE} bytes"
        )));
    }
    String::from_utf8(bytes).map_err(|_| Error::usage(format!("{path}: not valid UTF-8")))
}

fn parse_file(
    text: &str,
    own: &dyn Fn(&str) -> Option<String>,
    env: &mut Vec<String>,
) -> Result<(), String> {
    for (number, line) in text
        .strip_prefix('\u{feff}')
        .unwrap_or(text)
        .lines()
        .enumerate()
    {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (line.trim_end(), None),
        };
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(format!(
                "line {}: {name:?} is no name of a variable",
                number + 1
            ));
        }
        let value = value.map(str::to_owned).or_else(|| own(name));
        env.extend(value.map(|value| format!("{name}={value}")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/home/me".to_owned())
    }

    fn entry(text: &str) -> EnvSource {
        EnvSource::Entry(text.into())
    }

    #[test]
    fn entries_come_after_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env").to_str().unwrap().to_owned();
        let text = "\u{feff}# comment\n\n  A=1 # not a comment\nB=\"q\"\nHOME\nNOTHERE\nC=x=y\r\n";
        fs::write(&path, text).unwrap();
        let sources = [
            entry("A=2"),
            EnvSource::File(path),
            entry("HOME"),
            entry("NONE"),
            entry("E="),
        ];
        assert_eq!(
            assemble(&sources, &own).unwrap(),
            [
                "A=1 # not a comment",
                "B=\"q\"",
                "HOME=/home/me",
                "C=x=y",
                "A=2",
                "HOME=/home/me",
                "NONE",
                "E="
            ]
        );
    }

    #[test]
    fn what_is_no_variable_is_refused() {
        for bad in ["", "=x", "="] {
            assert!(assemble(&[entry(bad)], &own).is_err(), "{bad:?}");
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("env").to_str().unwrap().to_owned();
        for bad in ["A B=1", "=1"] {
            fs::write(&path, format!("OK=1\n{bad}\n")).unwrap();
            let error = assemble(&[EnvSource::File(path.clone())], &own)
                .unwrap_err()
                .to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        let missing = EnvSource::File(format!("{path}.not"));
        assert!(
            assemble(&[missing], &own)
                .unwrap_err()
                .to_string()
                .contains("env.not")
        );
    }
}
