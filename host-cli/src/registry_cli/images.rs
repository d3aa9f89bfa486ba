//! A list of images to import (`images.toml`), and the digests they had (`images.lock`).

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use serde::{Deserialize, Serialize};
use vdkr_core::digest::Digest;

/// Largest list or lock file, bytes.
const MAX_FILE: u64 = 1024 * 1024;
const HEAD: &str = "# Written by `container-registry import --file`; refreshed with --update.\n";

/// The list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// The images in their order.
    #[serde(default, rename = "image")]
    pub images: Vec<Image>,
}

/// An image of the list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Where it is: a reference, by tag or digest.
    pub source: String,
    /// Its name here, with an optional tag.
    #[serde(default)]
    pub name: Option<String>,
    /// The platforms that are wanted; none means all.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Whether what refers to it comes too; it does unless this says no.
    #[serde(default)]
    pub referrers: Option<bool>,
}

impl Images {
    /// Reads the list.
    pub fn read(path: &Path) -> Result<Self> {
        let list: Self = toml::from_str(&text(path)?)
            .with_context(|| format!("the list of images {}", path.display()))?;
        if list.images.is_empty() {
            return Err(anyhow!("{} lists no [[image]]", path.display()));
        }
        for (at, image) in list.images.iter().enumerate() {
            if list.images[..at]
                .iter()
                .any(|other| other.source == image.source && other.name == image.name)
            {
                return Err(anyhow!("{} lists {} twice", path.display(), image.source));
            }
        }
        Ok(list)
    }
}

/// The digests of a list's images.
#[derive(Debug)]
pub struct Locks {
    path: PathBuf,
    digests: BTreeMap<String, Digest>,
    before: BTreeMap<String, Digest>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LockFile {
    #[serde(default)]
    image: Vec<LockedImage>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct LockedImage {
    source: String,
    digest: Digest,
}

impl Locks {
    /// The lock file of the list `images`: `images.toml` has `images.lock`. None there is an empty one.
    pub fn beside(images: &Path) -> Result<Self> {
        let path = images.with_extension("lock");
        let file: LockFile = match path.try_exists() {
            Ok(false) => LockFile::default(),
            _ => toml::from_str(&text(&path)?)
                .with_context(|| format!("the lock file {}", path.display()))?,
        };
        let locked = file.image.into_iter();
        let digests: BTreeMap<_, _> = locked.map(|image| (image.source, image.digest)).collect();
        Ok(Self {
            path,
            before: digests.clone(),
            digests,
        })
    }

    /// The digest of a source.
    pub fn get(&self, source: &str) -> Option<&Digest> {
        self.digests.get(source)
    }

    /// Keeps a digest.
    pub fn set(&mut self, source: String, digest: Digest) {
        self.digests.insert(source, digest);
    }

    /// Forgets what is no longer listed.
    pub fn keep_only<'a>(&mut self, sources: impl Iterator<Item = &'a str>) {
        let listed: std::collections::BTreeSet<_> = sources.collect();
        self.digests
            .retain(|source, _| listed.contains(source.as_str()));
    }

    /// Writes the file, whole or not at all, when something changed.
    pub fn write(&self) -> Result<()> {
        if self.digests == self.before {
            return Ok(());
        }
        let image = self.digests.iter().map(|(source, digest)| LockedImage {
            source: source.clone(),
            digest: digest.clone(),
        });
        let text = toml::to_string(&LockFile {
            image: image.collect(),
        })?;
        let failed = || format!("cannot write the lock file {}", self.path.display());
        let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty());
        let mut file = tempfile::Builder::new()
            .prefix(".images.lock")
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir.unwrap_or(Path::new(".")))
            .with_context(failed)?;
        file.write_all(HEAD.as_bytes()).with_context(failed)?;
        file.write_all(text.as_bytes()).with_context(failed)?;
        file.persist(&self.path).with_context(failed)?;
        Ok(())
    }
}

fn text(path: &Path) -> Result<String> {
    let read = || -> std::io::Result<String> {
        let mut text = String::new();
        std::fs::File::open(path)?
            .take(MAX_FILE + 1)
            .read_to_string(&mut text)?;
        Ok(text)
    };
    let text = read().with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > MAX_FILE {
        return Err(anyhow!(
            "{} is larger than {MAX_FILE} bytes",
            path.display()
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_survive_and_are_forgotten_with_their_images() {
        let dir = tempfile::tempdir().unwrap();
        let list = dir.path().join("images.toml");
        let digest = Digest::sha256(b"x");
        let mut locks = Locks::beside(&list).unwrap();
        locks.set("a:1".to_owned(), digest.clone());
        locks.set("b:1".to_owned(), digest.clone());
        locks.write().unwrap();
        assert!(dir.path().join("images.lock").exists());
        let mut locks = Locks::beside(&list).unwrap();
        assert_eq!(locks.get("a:1"), Some(&digest));
        locks.keep_only(std::iter::once("a:1"));
        locks.write().unwrap();
        assert_eq!(Locks::beside(&list).unwrap().get("b:1"), None);
    }

    #[test]
    fn lists_say_what_is_wrong_with_them() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("images.toml");
        for (text, words) in [
            ("", "no [[image]]"),
            ("[[image]]\nname = 'x'", "source"),
            ("[[image]]\nsource = 'a'\nsurce = 'b'", "surce"),
            ("[[image]]\nsource = 'a'\n[[image]]\nsource = 'a'", "twice"),
            ("[[image", "images.toml"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", Images::read(&path).unwrap_err());
            assert!(error.contains(words), "{error}");
        }
        assert!(Images::read(&dir.path().join("none")).is_err());
    }
}
