//! The disk with the agent's state: a sparse file with an ext4 file system, made at first use.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::process::Command;

use super::locate;

/// File name of the disk in a state directory.
pub const NAME: &str = "state.img";
/// File name of a disk in the making. It is left behind only by a kill, and never used.
const UNFINISHED: &str = "state.img.unfinished";
/// Size as the guest sees it, in bytes. The file takes what is written.
pub const SIZE: u64 = 64 << 30;

/// Options of mkfs.ext4, best first: an older one does not know them all. The file is fresh, so
/// its blocks read as zeros and nothing has to be zeroed, now or in the guest; the features left
/// out are newer than the kernels of some targets.
const ATTEMPTS: [&[&str]; 2] = [
    &[
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1,nodiscard",
        "-O",
        "^orphan_file,^metadata_csum_seed",
    ],
    &["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"],
];

/// The disk could not be made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The program that makes the file system is missing.
    #[error("mkfs.ext4 is not installed; install it with: apt-get install e2fsprogs")]
    NoMkfs,
    /// It failed.
    #[error("cannot make a file system in {}: {reason}", path.display())]
    Mkfs {
        /// The unfinished disk.
        path: PathBuf,
        /// The last words of the program.
        reason: String,
    },
    /// A file cannot be made.
    #[error("cannot make the state disk {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Gives the path of the disk in a state directory, making the disk when there is none.
///
/// The caller holds the directory's lock. A kill at any moment leaves either no disk or a whole one.
pub async fn ensure(state_dir: &Path) -> Result<PathBuf, DiskError> {
    let path = state_dir.join(NAME);
    let unfinished = state_dir.join(UNFINISHED);
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| DiskError::Io { path, source }
    };
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(io_error(&unfinished)(error));
        }
        _ => {}
    }
    if path.try_exists().map_err(io_error(&path))? {
        return Ok(path);
    }
    let mkfs = locate::program("mkfs.ext4", &["/usr/sbin", "/sbin"]).ok_or(DiskError::NoMkfs)?;
    format(&mkfs, &unfinished).await?;
    // What the rename publishes must be on the disk before the name is.
    File::open(&unfinished)
        .and_then(|file| file.sync_all())
        .map_err(io_error(&unfinished))?;
    fs::rename(&unfinished, &path).map_err(io_error(&path))?;
    File::open(state_dir)
        .and_then(|dir| dir.sync_all())
        .map_err(io_error(state_dir))?;
    Ok(path)
}

async fn format(mkfs: &Path, path: &Path) -> Result<(), DiskError> {
    let mut reason = String::new();
    for options in ATTEMPTS {
        // A fresh file for each attempt, so that "all zeros" stays true.
        let made = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .and_then(|file| file.set_len(SIZE));
        made.map_err(|source| DiskError::Io {
            path: path.to_owned(),
            source,
        })?;
        let output = Command::new(mkfs)
            .args(["-q", "-F", "-L", "vdkr-state", "-m", "0", "-J", "size=32"])
            .args(options)
            .arg(path)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| DiskError::Io {
                path: mkfs.to_owned(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        let words = String::from_utf8_lossy(&output.stderr);
        let last = words.lines().rfind(|line| !line.trim().is_empty());
        last.unwrap_or_default().clone_into(&mut reason);
    }
    Err(DiskError::Mkfs {
        path: path.to_owned(),
        reason,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[tokio::test]
    async fn made_once_sparse_and_private() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(UNFINISHED), "left by a kill").unwrap();
        let path = ensure(dir.path()).await.unwrap();
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(meta.len(), SIZE);
        assert!(
            meta.blocks() * 512 < 64 << 20,
            "takes {} bytes",
            meta.blocks() * 512
        );
        assert_eq!(meta.mode() & 0o777, 0o600);
        let mut label = vec![0; 2048];
        std::os::unix::fs::FileExt::read_exact_at(&File::open(&path).unwrap(), &mut label, 0)
            .unwrap();
        assert_eq!(label[0x438..0x43a], [0x53, 0xef], "ext4's magic number");
        assert_eq!(&label[0x478..0x482], b"vdkr-state");

        let before = meta.ino();
        ensure(dir.path()).await.unwrap();
        assert_eq!(fs::metadata(&path).unwrap().ino(), before);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[tokio::test]
    async fn a_failure_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = ensure(&dir.path().join("missing")).await.unwrap_err();
        assert!(error.to_string().contains("missing/state.img"), "{error}");
    }
}
