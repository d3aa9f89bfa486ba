//! Labels of containers, as docker's options give them.

use std::{collections::BTreeMap, fs, io::Read as _};

/// Longest file of labels that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Adds `key=value`, or `key` without a value.
pub fn add(labels: &mut BTreeMap<String, String>, text: &str) -> Result<(), String> {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    if key.is_empty() {
        return Err(format!("{text:?} is no label; write KEY=VALUE"));
    }
    labels.insert(key.to_owned(), value.to_owned());
    Ok(())
}

/// Adds the lines of a file; empty lines and those that start with `#` are left out.
pub fn add_file(labels: &mut BTreeMap<String, String>, path: &str) -> Result<(), String> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    let lines = text.lines().map(str::trim_start);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        add(labels, line).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_one_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("labels");
        let read = |text: &str| {
            fs::write(&path, text).unwrap();
            let mut labels = BTreeMap::new();
            add_file(&mut labels, path.to_str().unwrap()).map(|()| labels)
        };
        let labels = read("# comment\n\na=1\n  b = 2\nc\n").unwrap();
        let labels: Vec<_> = labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect();
        assert_eq!(labels, [("a", "1"), ("b ", " 2"), ("c", "")]);
        assert!(read("=x\n").unwrap_err().contains("no label"));
        assert!(add_file(&mut BTreeMap::new(), "/no/such").is_err());
    }
}
