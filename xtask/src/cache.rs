//! The cache: directories that appear whole or not at all, named by a hash of what they are made from.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::workspace::Workspace;

/// Entries not used for this long are removed when a newer one is made beside them.
const KEEP: Duration = Duration::from_hours(30 * 24);

/// Collects the inputs of an artifact.
#[derive(Clone)]
pub(crate) struct Key(Sha256);

impl Key {
    /// Starts a key; raise `format` when the steps that make the artifact change.
    pub(crate) fn new(kind: &str, format: u32) -> Self {
        Self(Sha256::new())
            .with("kind", kind)
            .with("format", format.to_string())
    }

    /// Adds a named value.
    pub(crate) fn with(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.0.update(format!("{name}:{}:", value.len()));
        self.0.update(value);
        self
    }

    /// Adds one file's content.
    pub(crate) fn with_file(self, path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        Ok(self.with(&name, bytes))
    }

    /// Adds every regular file below a directory, by relative name and content.
    pub(crate) fn with_tree(mut self, dir: &Path) -> Result<Self> {
        for file in files_below(dir)? {
            let name = file
                .strip_prefix(dir)
                .unwrap_or(&file)
                .to_string_lossy()
                .into_owned();
            self = self.with("path", &name).with_file(&file)?;
        }
        Ok(self)
    }

    /// The key as 24 hex digits.
    pub(crate) fn finish(self) -> String {
        hex(&self.0.finalize()[..12])
    }
}

/// Every regular file below a directory, sorted; `target` directories are left out.
pub(crate) fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_path_buf()];
    while let Some(next) = open.pop() {
        for entry in
            fs::read_dir(&next).with_context(|| format!("cannot list {}", next.display()))?
        {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() && entry.file_name() != "target" {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The SHA-256 of a file in hex, read piecewise.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            return Ok(hex(&hash.finalize()));
        }
        hash.update(&buffer[..count]);
    }
}

/// Bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

/// Returns `<cache>/<kind>/<key>`, made by `build` in a temporary directory when it is not there
/// yet. Two processes that want the same kind wait for each other.
pub(crate) fn entry(
    workspace: &Workspace,
    kind: &str,
    key: &str,
    build: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let parent = workspace.cache.join(kind);
    fs::create_dir_all(&parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let place = parent.join(key);
    let _lock = lock(&parent.join(".lock"))?;
    if place.is_dir() {
        // The modification time is the time of last use, which `sweep` goes by.
        File::open(&place)?.set_modified(SystemTime::now())?;
        return Ok(place);
    }
    let work = parent.join(format!(".{key}.new"));
    remove(&work)?;
    fs::create_dir(&work).with_context(|| format!("cannot create {}", work.display()))?;
    if let Err(error) = build(&work) {
        let _ = remove(&work);
        return Err(error);
    }
    fs::rename(&work, &place).with_context(|| format!("cannot create {}", place.display()))?;
    sweep(&parent, key);
    Ok(place)
}

/// An exclusive lock on a file, held until the value is dropped.
pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    file.lock()
        .with_context(|| format!("cannot lock {}", path.display()))?;
    Ok(file)
}

/// Removes a directory tree that may be absent.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", dir.display())),
    }
}

/// Removes entries that nobody has used for long; failures only leave something to sweep later.
fn sweep(parent: &Path, keep: &str) {
    let Ok(entries) = fs::read_dir(parent) else {
        return;
    };
    for entry in entries.flatten() {
        let old = entry
            .metadata()
            .and_then(|meta| meta.modified())
            .is_ok_and(|time| time.elapsed().is_ok_and(|age| age > KEEP));
        if old && entry.file_name() != keep && entry.path().is_dir() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Points the symbolic link `<target>/<name>` at a cache entry.
pub(crate) fn link(workspace: &Workspace, name: &str, entry: &Path) -> Result<PathBuf> {
    let place = workspace.target.join(name);
    let parent = place.parent().context("a link has a parent directory")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    if fs::read_link(&place).is_ok_and(|now| now == entry) {
        return Ok(place);
    }
    let fresh = place.with_extension("new");
    let _ = fs::remove_file(&fresh);
    std::os::unix::fs::symlink(entry, &fresh)
        .and_then(|()| fs::rename(&fresh, &place))
        .with_context(|| format!("cannot link {} to {}", place.display(), entry.display()))?;
    Ok(place)
}
