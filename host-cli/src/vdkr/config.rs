//! The user's configuration file.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use toml::{Table, Value};

use super::old_config;
use super::value::check_mirror;

mod keys;

pub use keys::{KEYS, Key, NO_REGISTRY, NO_TARGET, key, names};

/// Name of the file in the configuration directory.
const FILE: &str = "config.toml";
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// Name of the table of mirrors.
const MIRROR: &str = "mirror";

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// No such key.
    #[error("unknown key {0:?}; the keys are: {names}", names = names().join(", "))]
    Key(String),
    /// The value does not fit the key.
    #[error("{origin}: {reason}")]
    Value {
        /// The key, variable or option.
        origin: String,
        /// What is wrong.
        reason: String,
    },
    /// The file is no TOML, or a value in it has a wrong type.
    #[error("{}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is no place for the file.
    #[error("HOME is not set; name a configuration directory with --config-dir")]
    NoHome,
}

/// The configuration file, read once.
#[derive(Clone, Debug, Default)]
pub struct Config {
    path: PathBuf,
    values: Table,
    /// The earlier program's file, when the values are from there.
    old: Option<PathBuf>,
}

impl Config {
    /// Reads the file in a directory; one that is not there is empty. Every value in it is checked.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let config = Self::read(dir)?;
        config.check()?;
        Ok(config)
    }

    /// Reads the file in a directory as it is, to mend it.
    pub fn read(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join(FILE);
        let mut text = String::new();
        match fs::File::open(&path) {
            Ok(file) => {
                file.take(MAX_FILE)
                    .read_to_string(&mut text)
                    .map_err(|source| ConfigError::Io {
                        path: path.clone(),
                        source,
                    })?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::read_old(dir),
            Err(source) => return Err(ConfigError::Io { path, source }),
        }
        let values: Table = text
            .parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: path.clone(),
                reason: error.to_string(),
            })?;
        Ok(Self {
            path,
            values,
            old: None,
        })
    }

    /// What the file of the earlier program sets; it is written into the new one, never back.
    fn read_old(dir: &Path) -> Result<Self, ConfigError> {
        let mut config = Self {
            path: dir.join(FILE),
            ..Self::default()
        };
        let found = old_config::read(dir).map_err(|source| ConfigError::Io {
            path: dir.to_owned(),
            source,
        })?;
        for (path, values) in found {
            for (name, value) in values {
                let set = config.set(key(name)?, &value);
                set.map_err(|error| ConfigError::Syntax {
                    path: path.clone(),
                    reason: error.to_string(),
                })?;
            }
            config.old.get_or_insert(path);
        }
        Ok(config)
    }

    /// What to say when the values are those of the earlier program.
    pub fn notice(&self) -> Option<String> {
        let old = self.old.as_ref()?.display();
        let new = self.path.display();
        Some(format!(
            "the configuration is that of an earlier vdkr, {old}; any setting by vdkr vconfig \
             takes it over into {new}"
        ))
    }

    fn check(&self) -> Result<(), ConfigError> {
        for name in self.values.keys() {
            if name == MIRROR {
                self.check_mirrors()?;
            } else if let Some(value) = self.get(key(name).map_err(|error| self.wrong(&error))?)? {
                key(name)?
                    .check(&value, name)
                    .map_err(|error| self.wrong(&error))?;
            }
        }
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The value of a key.
    pub fn get(&self, key: &Key) -> Result<Option<String>, ConfigError> {
        match self.values.get(key.name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Integer(number)) => Ok(Some(number.to_string())),
            Some(Value::Boolean(truth)) => Ok(Some(truth.to_string())),
            Some(Value::Array(items)) if items.iter().all(Value::is_str) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                Ok(Some(items.join(",")))
            }
            Some(_) => Err(self.syntax(format!("{} has a value of a wrong type", key.name))),
        }
    }

    /// Sets a key to a checked value. Nothing is written yet.
    pub fn set(&mut self, key: &Key, value: &str) -> Result<(), ConfigError> {
        let value = key.check(value, key.name)?;
        let typed = match (value.parse::<bool>(), value.parse::<i64>()) {
            (Ok(truth), _) => Value::Boolean(truth),
            (_, Ok(number)) => Value::Integer(number),
            _ => Value::String(value),
        };
        self.values.insert(key.name.to_owned(), typed);
        Ok(())
    }

    /// Takes a key back to its default. `false` when it was not set.
    pub fn reset(&mut self, key: &Key) -> bool {
        self.remove(key.name)
    }

    /// Takes out whatever has this name. `false` when nothing has.
    pub fn remove(&mut self, name: &str) -> bool {
        self.values.remove(name).is_some()
    }

    /// All mirrors: the host whose names are mirrored, and URLs.
    pub fn mirrors(&self) -> Vec<(String, Vec<String>)> {
        let table = self.values.get(MIRROR).and_then(Value::as_table);
        table
            .into_iter()
            .flatten()
            .map(|(host, urls)| {
                let urls = urls.as_array().map(Vec::as_slice).unwrap_or_default();
                (
                    host.clone(),
                    urls.iter()
                        .filter_map(Value::as_str)
                        .map(str::to_owned)
                        .collect(),
                )
            })
            .collect()
    }

    /// Sets the mirrors of a host.
    pub fn set_mirrors(&mut self, host: &str, urls: &[String]) -> Result<(), ConfigError> {
        check_mirror(host, urls).map_err(|reason| ConfigError::Value {
            origin: MIRROR.to_owned(),
            reason,
        })?;
        let urls = urls.iter().cloned().map(Value::String).collect();
        let table = self
            .values
            .entry(MIRROR)
            .or_insert_with(|| Value::Table(Table::new()));
        if let Some(table) = table.as_table_mut() {
            table.insert(host.to_owned(), Value::Array(urls));
        }
        Ok(())
    }

    /// Forgets the mirrors of a host, or of all. `false` when there were none.
    pub fn reset_mirrors(&mut self, host: Option<&str>) -> bool {
        let Some(host) = host else {
            return self.values.remove(MIRROR).is_some();
        };
        let Some(table) = self.values.get_mut(MIRROR).and_then(Value::as_table_mut) else {
            return false;
        };
        let was_there = table.remove(host).is_some();
        if table.is_empty() {
            self.values.remove(MIRROR);
        }
        was_there
    }

    /// Writes the file in one step: a reader sees the old one or the new one.
    pub fn save(&self) -> Result<(), ConfigError> {
        let io_error = |source| ConfigError::Io {
            path: self.path.clone(),
            source,
        };
        let dir = self.path.parent().unwrap_or(Path::new("."));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(io_error)?;
        // A link that the user made stays one: the file behind it is replaced.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let unfinished = path.with_extension(format!("toml.{}", std::process::id()));
        let text = toml::to_string(&self.values).map_err(|error| self.syntax(error.to_string()))?;
        let written = fs::File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&unfinished, &path));
        written.map_err(|source| {
            let _ = fs::remove_file(&unfinished);
            io_error(source)
        })
    }

    fn check_mirrors(&self) -> Result<(), ConfigError> {
        let table = self.values.get(MIRROR).and_then(Value::as_table);
        let table = table
            .ok_or_else(|| self.syntax("mirror is not a table of lists of URLs".to_owned()))?;
        for (host, urls) in table {
            let urls: Option<Vec<String>> = urls.as_array().and_then(|urls| {
                urls.iter()
                    .map(|url| url.as_str().map(str::to_owned))
                    .collect()
            });
            let urls =
                urls.ok_or_else(|| self.syntax(format!("mirror of {host} is not a list of URLs")))?;
            check_mirror(host, &urls).map_err(|reason| self.syntax(reason))?;
        }
        Ok(())
    }

    fn syntax(&self, reason: String) -> ConfigError {
        ConfigError::Syntax {
            path: self.path.clone(),
            reason,
        }
    }

    fn wrong(&self, error: &ConfigError) -> ConfigError {
        self.syntax(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Result<Config, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), text).unwrap();
        Config::load(dir.path())
    }

    #[test]
    fn set_save_load_reset() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("new/vdkr");
        let mut config = Config::load(&place).unwrap();
        let values = [
            ("registry", "localhost:5000/yocto"),
            ("idle-timeout", "60"),
            ("secure-registry", "true"),
            ("memory", "1G"),
            ("insecure-registry", "a:1,b:2"),
        ];
        let registry = key("registry").unwrap();
        config.set(registry, "none").unwrap();
        assert_eq!(config.get(registry).unwrap().as_deref(), Some("none"));
        for (name, value) in values {
            config.set(key(name).unwrap(), value).unwrap();
        }
        config
            .set_mirrors("docker.io", &["http://localhost:5001".to_owned()])
            .unwrap();
        config.save().unwrap();

        let mut config = Config::load(&place).unwrap();
        for (name, value) in values {
            assert_eq!(
                config.get(key(name).unwrap()).unwrap().as_deref(),
                Some(value),
                "{name}"
            );
        }
        let mirror = (
            "docker.io".to_owned(),
            vec!["http://localhost:5001".to_owned()],
        );
        assert_eq!(config.mirrors(), [mirror]);
        assert!(config.reset(key("registry").unwrap()));
        assert!(!config.reset(key("registry").unwrap()));
        assert!(config.reset_mirrors(Some("docker.io")));
        assert!(!config.reset_mirrors(None));
        config.save().unwrap();
        let text = fs::read_to_string(place.join(FILE)).unwrap();
        assert!(
            !text.contains("registry = \"localhost") && !text.contains("mirror"),
            "{text}"
        );
        assert_eq!(fs::read_dir(&place).unwrap().count(), 1);
    }

    #[test]
    fn the_earlier_programs_file_counts_until_there_is_a_new_one() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(
            dir.path().join("config"),
            "registry=localhost:5000/yocto\nverbose=true\n",
        )
        .unwrap();
        let mut config = Config::load(dir.path()).unwrap();
        let value = |config: &Config, name| config.get(key(name).unwrap()).unwrap();
        assert_eq!(
            value(&config, "registry").as_deref(),
            Some("localhost:5000/yocto")
        );
        assert!(config.notice().unwrap().contains("config.toml"));
        config.set(key("idle-timeout").unwrap(), "60").unwrap();
        config.save().unwrap();
        let config = Config::load(dir.path()).unwrap();
        assert_eq!(config.notice(), None);
        for (name, expected) in [
            ("registry", "localhost:5000/yocto"),
            ("verbose", "true"),
            ("idle-timeout", "60"),
        ] {
            assert_eq!(value(&config, name).as_deref(), Some(expected), "{name}");
        }
        fs::remove_file(dir.path().join(FILE)).unwrap();
        fs::write(dir.path().join("config"), "arch=mips\n").unwrap();
        let error = Config::load(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("mips") && error.contains("/config: "),
            "{error}"
        );
    }

    #[test]
    fn values_are_checked_when_set() {
        let mut config = Config::default();
        for (name, bad) in [
            ("arch", "riscv64"),
            ("registry", "Foo//bar:"),
            ("insecure-registry", "a b/c"),
            ("secure-registry", "maybe"),
            ("ca-cert", "ca.crt"),
            ("accel", "fast"),
            ("machine", "pc"),
            ("memory", "lots"),
            ("memory", "64M"),
            ("memory", "4294967295G"),
            ("state-dir", "here"),
            ("idle-timeout", "-1"),
            ("boot-timeout", "0"),
            ("timeout", "0"),
            ("timeout", "soon"),
            ("verbose", "loud"),
            ("auto-daemon", "2"),
        ] {
            let error = config.set(key(name).unwrap(), bad).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{name}: ")), "{error}");
        }
        for (host, url) in [
            ("docker.io", "localhost:5001"),
            ("docker.io", "http://u:p@h"),
            ("", "http://h"),
            ("docker.io", "ftp://h"),
        ] {
            assert!(
                config.set_mirrors(host, &[url.to_owned()]).is_err(),
                "{host} {url}"
            );
        }
        assert!(config.set_mirrors("docker.io", &[]).is_err());
        assert!(config.values.is_empty());
        let error = key("registri").unwrap_err().to_string();
        assert!(
            error.contains("idle-timeout") && error.contains("mirror"),
            "{error}"
        );
    }

    #[test]
    fn a_file_written_by_hand_is_checked_too() {
        for (text, word) in [
            ("registri = \"x\"", "registri"),
            ("accel = \"fast\"", "fast"),
            ("memory = 1.5", "memory"),
            ("memory = ", "config.toml"),
            ("mirror = 1", "mirror"),
            ("[mirror]\n\"docker.io\" = \"http://h\"", "docker.io"),
            ("[mirror]\n\"docker.io\" = [\"h\"]", "http://"),
        ] {
            let error = config(text).unwrap_err().to_string();
            assert!(
                error.contains(word) && error.contains("config.toml"),
                "{text}: {error}"
            );
        }
        let config = config("insecure-registry = [\"a:1\", \"10.0.0.0/8\"]\nmemory = 600").unwrap();
        let value = |name| config.get(key(name).unwrap()).unwrap().unwrap();
        assert_eq!(value("insecure-registry"), "a:1,10.0.0.0/8");
        assert_eq!(value("memory"), "600");
    }

    #[test]
    fn every_default_passes_its_own_check() {
        for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
            assert_eq!(key.check(key.default, key.name).unwrap(), key.default);
        }
    }
}
