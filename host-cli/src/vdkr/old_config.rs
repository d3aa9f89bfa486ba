//! The configuration file of the earlier shell program: lines of `key=value`.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Its name in the configuration directory.
const FILE: &str = "config";
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// The keys that mean the same here. The earlier `timeout` was that of a whole command.
const KEYS: [&str; 6] = [
    "arch",
    "auto-daemon",
    "idle-timeout",
    "registry",
    "state-dir",
    "verbose",
];

/// Keys and their values.
pub type Values = Vec<(&'static str, String)>;

/// Reads the file in a directory: where it is, and what it sets. `None` when there is none.
pub fn read(dir: &Path) -> io::Result<Option<(PathBuf, Values)>> {
    let path = dir.join(FILE);
    let file = match fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    // Something else of that name is none.
    if !file.metadata()?.is_file() {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some((path, parse(&String::from_utf8_lossy(&bytes)))))
}

/// The keys that are known, each with its last value; as before, values lose their blanks, and lines
/// that set nothing are passed over.
fn parse(text: &str) -> Values {
    let mut found = Values::new();
    for line in text.lines() {
        let Some((name, value)) = line.split_once('=') else {
            continue;
        };
        let Some(key) = KEYS.into_iter().find(|key| *key == name.trim()) else {
            continue;
        };
        let value: String = value.chars().filter(|c| !c.is_whitespace()).collect();
        found.retain(|(known, _)| *known != key);
        if !value.is_empty() {
            found.push((key, value));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_keys() {
        let text = "# comment\narch=aarch64\n registry = localhost:5000/yocto \ntimeout=300\n\
                    nokey=1\nverbose\nidle-timeout=60\nidle-timeout=90\nauto-daemon=\n";
        assert_eq!(
            parse(text),
            [
                ("arch", "aarch64".to_owned()),
                ("registry", "localhost:5000/yocto".to_owned()),
                ("idle-timeout", "90".to_owned()),
            ]
        );
        let dir = tempfile::tempdir().unwrap();
        assert!(read(dir.path()).unwrap().is_none());
        fs::write(dir.path().join(FILE), "arch=x86_64").unwrap();
        let (path, values) = read(dir.path()).unwrap().unwrap();
        assert_eq!(path, dir.path().join("config"));
        assert_eq!(values, [("arch", "x86_64".to_owned())]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read(dir.path()).unwrap().is_none());
    }

    proptest! {
        #[test]
        fn nothing_is_made_up(text in "(?s).{0,200}", key in 0..KEYS.len(), value in "[a-z0-9:/]{1,20}") {
            for (name, value) in parse(&text) {
                prop_assert!(KEYS.contains(&name) && text.contains('='));
                prop_assert!(!value.is_empty() && !value.contains(char::is_whitespace));
            }
            let line = format!("{text}\n{}= {value}\t", KEYS[key]);
            prop_assert!(parse(&line).contains(&(KEYS[key], value)));
        }
    }
}
