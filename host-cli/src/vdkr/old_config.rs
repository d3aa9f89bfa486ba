//! The configuration of the earlier shell program: a file with lines of `key=value`, and before that
//! one with the name of the architecture alone.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

/// Its name in the configuration directory.
const FILE: &str = "config";
/// The file with an architecture, which holds where the other one names none.
const ARCH_FILE: &str = "arch";
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

/// Reads the files in a directory: where they are, and what each sets, the stronger one first.
pub fn read(dir: &Path) -> io::Result<Vec<(PathBuf, Values)>> {
    let mut found = Vec::new();
    if let Some((path, text)) = text(dir.join(FILE))? {
        found.push((path, parse(&text)));
    }
    if let Some((path, text)) = text(dir.join(ARCH_FILE))? {
        let arch: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let is_named = found.iter().flat_map(|(_, values)| values);
        let is_named = is_named.into_iter().any(|(key, _)| *key == ARCH_FILE);
        if !arch.is_empty() && !is_named {
            found.push((path, vec![(ARCH_FILE, arch)]));
        }
    }
    Ok(found)
}

fn text(path: PathBuf) -> io::Result<Option<(PathBuf, String)>> {
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
    Ok(Some((path, String::from_utf8_lossy(&bytes).into_owned())))
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
        assert_eq!(read(dir.path()).unwrap(), []);
        fs::write(dir.path().join(FILE), "arch=x86_64").unwrap();
        let path = dir.path().join("config");
        let set = |arch: &str| vec![("arch", arch.to_owned())];
        assert_eq!(read(dir.path()).unwrap(), [(path.clone(), set("x86_64"))]);
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert_eq!(read(dir.path()).unwrap(), []);
    }

    #[test]
    fn a_file_with_an_architecture_holds_where_nothing_else_names_one() {
        let dir = tempfile::tempdir().unwrap();
        let [config, arch] = [FILE, ARCH_FILE].map(|name| dir.path().join(name));
        fs::write(&arch, "aarch64\n").unwrap();
        let of_arch = || (arch.clone(), vec![("arch", "aarch64".to_owned())]);
        assert_eq!(read(dir.path()).unwrap(), [of_arch()]);
        let verbose = vec![("verbose", "true".to_owned())];
        fs::write(&config, "verbose=true").unwrap();
        assert_eq!(
            read(dir.path()).unwrap(),
            [(config.clone(), verbose), of_arch()]
        );
        fs::write(&config, "arch=x86_64").unwrap();
        let found = read(dir.path()).unwrap();
        assert_eq!(found, [(config, vec![("arch", "x86_64".to_owned())])]);
        fs::write(&arch, " \n").unwrap();
        assert_eq!(read(dir.path()).unwrap().len(), 1);
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
