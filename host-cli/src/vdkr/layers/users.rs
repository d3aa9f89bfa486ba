//! Which layers the images of each state directory have, so that none of them is collected.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::{ffi::OsStrExt as _, fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use vdkr_core::digest::Digest;
use vdkr_transfer::pull::ImageError;

use super::Cache;

/// Bytes of a note; some ten thousand layers.
const MAX_NOTE: u64 = 1 << 20;

/// What one state directory has.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    state_dir: PathBuf,
    layers: BTreeSet<Digest>,
}

fn note_path(cache: &Cache, state_dir: &Path) -> PathBuf {
    let digest = Digest::sha256(state_dir.as_os_str().as_bytes());
    let name = format!("{}.json", &digest.hex()[..32]);
    cache.users_directory().join(name)
}

/// Notes that images of a state directory are about to have these layers too.
pub fn note_use<'a>(
    cache: &Cache,
    state_dir: &Path,
    layers: impl IntoIterator<Item = &'a Digest>,
) -> Result<(), ImageError> {
    change(cache, state_dir, |known| {
        known.extend(layers.into_iter().cloned());
    })
}

/// Notes which layers the images of a state directory have, and no others.
pub fn note_users_layers(
    cache: &Cache,
    state_dir: &Path,
    layers: BTreeSet<Digest>,
) -> Result<(), ImageError> {
    change(cache, state_dir, |known| *known = layers)
}

/// The layers that the images of a state directory were given.
pub(super) fn layers_of(cache: &Cache, state_dir: &Path) -> Result<BTreeSet<Digest>, ImageError> {
    let user = read(&note_path(cache, state_dir))?;
    Ok(user.map(|user| user.layers).unwrap_or_default())
}

/// Forgets a state directory.
pub fn forget_user(cache: &Cache, state_dir: &Path) {
    let _ = fs::remove_file(note_path(cache, state_dir));
}

fn change(
    cache: &Cache,
    state_dir: &Path,
    change: impl FnOnce(&mut BTreeSet<Digest>),
) -> Result<(), ImageError> {
    let path = note_path(cache, state_dir);
    // One writer at a time; readers see the old note or the new one.
    let lock_path = path.with_extension("lock");
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options
        .open(&lock_path)
        .map_err(ImageError::io("open", &lock_path))?;
    lock.lock().map_err(ImageError::io("lock", &lock_path))?;
    let mut user = read(&path)?.unwrap_or_default();
    state_dir.clone_into(&mut user.state_dir);
    let before = user.layers.clone();
    change(&mut user.layers);
    if user.layers == before && path.exists() {
        return Ok(());
    }
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(&serde_json::to_vec(&user)?)?;
        fs::rename(&unfinished, &path)
    };
    write().map_err(ImageError::io("write", &path))
}

fn read(path: &Path) -> Result<Option<User>, ImageError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ImageError::io("open", path)(error)),
    };
    let mut text = Vec::new();
    file.take(MAX_NOTE + 1)
        .read_to_end(&mut text)
        .map_err(ImageError::io("read", path))?;
    let user = serde_json::from_slice(&text).map_err(|error| ImageError::Damaged {
        path: path.to_owned(),
        reason: error.to_string(),
    })?;
    Ok(Some(user))
}

/// The layers of every state directory that is still there. A note that cannot be read is an error:
/// what it protects would be collected.
pub(super) fn used(cache: &Cache) -> Result<BTreeSet<Digest>, ImageError> {
    let directory = cache.users_directory();
    let list = ImageError::io("list", &directory);
    let mut used = BTreeSet::new();
    for entry in fs::read_dir(&directory).map_err(list)?.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let Some(user) = read(&path)? else { continue };
        if user.state_dir.is_dir() {
            used.extend(user.layers);
        } else {
            let _ = fs::remove_file(path);
        }
    }
    Ok(used)
}
