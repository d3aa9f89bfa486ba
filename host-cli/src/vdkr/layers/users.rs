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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct User {
    state_dir: PathBuf,
    /// Layers that it was given.
    layers: BTreeSet<Digest>,
    /// Layers that its machine says it has, since the list was lost. They are not collected; before one
    /// is given again its registry is asked.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    unproved: BTreeSet<Digest>,
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
    change(cache, state_dir, |user| {
        for layer in layers {
            user.unproved.remove(layer);
            user.layers.insert(layer.clone());
        }
    })
}

/// Notes that the images of a state directory have no other layers any more. `layers` is the word of a
/// machine, which gives it nothing that it was not given before.
pub fn note_users_layers(
    cache: &Cache,
    state_dir: &Path,
    layers: &BTreeSet<Digest>,
) -> Result<(), ImageError> {
    change(cache, state_dir, |user| {
        user.layers.retain(|layer| layers.contains(layer));
        user.unproved.retain(|layer| layers.contains(layer));
    })
}

/// Writes the note of a state directory anew when it cannot be read. From then on the layers of the
/// cache that its machine says it has are kept for it.
pub fn repair(
    cache: &Cache,
    state_dir: &Path,
    layers: &BTreeSet<Digest>,
) -> Result<(), ImageError> {
    let path = note_path(cache, state_dir);
    let is_damaged = || matches!(read(&path), Err(ImageError::Damaged { .. }));
    if !is_damaged() {
        return Ok(());
    }
    let _lock = lock(&path)?;
    if !is_damaged() {
        return Ok(());
    }
    let there = cache.layers()?.into_iter().map(|layer| layer.diff_id);
    let user = User {
        state_dir: state_dir.to_owned(),
        layers: BTreeSet::new(),
        unproved: there.filter(|layer| layers.contains(layer)).collect(),
    };
    write(&path, &user)
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
    change: impl FnOnce(&mut User),
) -> Result<(), ImageError> {
    let path = note_path(cache, state_dir);
    let _lock = lock(&path)?;
    let before = read(&path)?;
    let mut user = before.clone().unwrap_or_default();
    state_dir.clone_into(&mut user.state_dir);
    change(&mut user);
    if before.as_ref() == Some(&user) {
        return Ok(());
    }
    write(&path, &user)
}

/// One writer of a note at a time; readers see the old note or the new one.
fn lock(path: &Path) -> Result<File, ImageError> {
    let path = path.with_extension("lock");
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    let lock = options.open(&path).map_err(ImageError::io("open", &path))?;
    lock.lock().map_err(ImageError::io("lock", &path))?;
    Ok(lock)
}

fn write(path: &Path, user: &User) -> Result<(), ImageError> {
    let unfinished = path.with_extension("new");
    let write = || -> io::Result<()> {
        let text = serde_json::to_vec(user)?;
        // It could not be read again.
        if text.len() as u64 > MAX_NOTE {
            let layers = user.layers.len() + user.unproved.len();
            let message = format!("{layers} layers are too many; remove images");
            return Err(io::Error::other(message));
        }
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&unfinished)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    };
    write().map_err(ImageError::io("write", path))
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
/// what it protects would be collected. [`repair`] mends it when the state directory is used next.
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
        if is_gone(&user.state_dir) {
            let _ = fs::remove_file(path);
        } else {
            used.extend(user.layers);
            used.extend(user.unproved);
        }
    }
    Ok(used)
}

/// Whether a directory was removed. One whose place is not there either, or cannot be looked at, may be
/// on a disk that is not mounted now.
fn is_gone(directory: &Path) -> bool {
    let is_absent = |path: &Path| matches!(fs::metadata(path), Err(error) if error.kind() == io::ErrorKind::NotFound);
    let parent = directory.parent();
    is_absent(directory) && parent.is_some_and(|parent| fs::metadata(parent).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layers(numbers: std::ops::Range<u32>) -> BTreeSet<Digest> {
        numbers.map(|n| Digest::sha256(&n.to_le_bytes())).collect()
    }

    #[test]
    fn a_machine_cannot_add_to_its_own_layers() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        note_use(&cache, root.path(), &layers(0..3)).unwrap();
        note_users_layers(&cache, root.path(), &layers(1..6)).unwrap();
        assert_eq!(layers_of(&cache, root.path()).unwrap(), layers(1..3));
        assert_eq!(used(&cache).unwrap(), layers(1..3));
    }

    #[test]
    fn a_note_stays_readable() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        note_use(&cache, root.path(), &layers(0..5)).unwrap();
        let many = note_use(&cache, root.path(), &layers(0..20_000)).unwrap_err();
        assert!(many.to_string().contains("too many"), "{many}");
        assert_eq!(layers_of(&cache, root.path()).unwrap(), layers(0..5));
    }

    #[test]
    fn a_damaged_note_is_written_anew_and_gives_nothing() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let name = |layer: &Digest| fs::write(cache.path(layer), "x").unwrap();
        layers(0..3).iter().for_each(name);
        note_use(&cache, root.path(), &layers(0..3)).unwrap();
        // Nothing happens to one that is whole.
        repair(&cache, root.path(), &layers(0..1)).unwrap();
        assert_eq!(layers_of(&cache, root.path()).unwrap(), layers(0..3));
        let path = note_path(&cache, root.path());
        for damage in ["", "{", "[]"] {
            fs::write(&path, damage).unwrap();
            assert!(used(&cache).is_err());
            // What the machine names and the cache has is kept, and nothing given.
            repair(&cache, root.path(), &layers(1..9)).unwrap();
            assert_eq!(used(&cache).unwrap(), layers(1..3));
            assert!(layers_of(&cache, root.path()).unwrap().is_empty());
        }
        // Once proved it is given again.
        note_use(&cache, root.path(), &layers(1..2)).unwrap();
        assert_eq!(layers_of(&cache, root.path()).unwrap(), layers(1..2));
        note_users_layers(&cache, root.path(), &layers(1..2)).unwrap();
        assert_eq!(used(&cache).unwrap(), layers(1..2));
    }

    #[test]
    fn only_a_directory_that_was_removed_is_forgotten() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::open(root.path()).unwrap();
        let disk = root.path().join("disk");
        let (there, file) = (disk.join("there"), disk.join("file"));
        fs::create_dir_all(&there).unwrap();
        note_use(&cache, &there, &layers(0..1)).unwrap();
        // Its disk is not mounted, and is again.
        fs::rename(&disk, root.path().join("away")).unwrap();
        assert_eq!(used(&cache).unwrap(), layers(0..1));
        fs::rename(root.path().join("away"), &disk).unwrap();
        // Something that is no directory was not removed.
        fs::write(&file, "").unwrap();
        note_use(&cache, &file.join("below"), &layers(1..2)).unwrap();
        assert_eq!(used(&cache).unwrap(), layers(0..2));
        fs::remove_dir(&there).unwrap();
        assert_eq!(used(&cache).unwrap(), layers(1..2));
        assert!(!note_path(&cache, &there).exists());
    }
}
