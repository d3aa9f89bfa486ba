//! Credential files: where they are, reading them, and replacing them whole.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use vdkr_core::credentials::{CredentialFile, MAX_FILE};

/// Links that are followed from a credential file to where it really is.
const MAX_LINKS: usize = 16;

/// A file that `login` may have written to, and why it is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The file.
    pub path: PathBuf,
    /// Whether the user named it, so that its absence is an error.
    pub named: bool,
}

/// The credential files that are looked into when nobody named one, strongest first:
/// `$REGISTRY_AUTH_FILE` alone when it is set; else docker's, then podman's and skopeo's.
pub fn login_files(env: &dyn Fn(&str) -> Option<String>) -> Vec<Candidate> {
    let set = |name| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = set("REGISTRY_AUTH_FILE") {
        return vec![Candidate { path, named: true }];
    }
    let config_home = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")));
    let runtime = set("XDG_RUNTIME_DIR");
    let containers = [runtime, config_home].map(|dir| Some(dir?.join("containers/auth.json")));
    docker_file(env)
        .into_iter()
        .chain(containers.into_iter().flatten())
        .map(|path| Candidate { path, named: false })
        .collect()
}

/// Docker's `config.json`: in `$DOCKER_CONFIG`, else in `~/.docker`.
pub fn docker_file(env: &dyn Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let set = |name| {
        env(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let dir = set("DOCKER_CONFIG").or_else(|| Some(set("HOME")?.join(".docker")))?;
    Some(dir.join("config.json"))
}

/// Reads a file of credentials, a little more than [`MAX_FILE`] at most.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_FILE as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether everybody on this machine can read the file.
pub fn is_exposed(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.mode() & 0o004 != 0)
}

/// Changes a credential file: read, changed and replaced whole under a lock, with mode 600. What
/// `change` returns is handed on; a `false` with it leaves the file alone.
///
/// A symbolic link stays: the file it leads to is replaced.
pub fn update<T>(
    path: &Path,
    change: impl FnOnce(&mut CredentialFile) -> Result<(T, bool)>,
) -> Result<T> {
    let target = behind_links(path).with_context(|| format!("cannot follow {}", path.display()))?;
    let dir = target
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let cannot = || format!("cannot write {}", target.display());
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("cannot create the directory {}", dir.display()))?;
    // The directory is the lock: the file itself is another one after each change.
    let _lock = Flock::lock(
        File::open(dir).with_context(cannot)?,
        FlockArg::LockExclusive,
    )
    .map_err(|(_, errno)| errno)
    .with_context(cannot)?;
    let before = match std::fs::symlink_metadata(&target) {
        Ok(meta) if !meta.is_file() => bail!("{} is not a regular file", target.display()),
        Ok(_) => read(&target).with_context(|| format!("cannot read {}", target.display()))?,
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(cannot),
    };
    let mut file = CredentialFile::parse(&before)
        .with_context(|| format!("{} was left as it is", target.display()))?;
    let (result, changed) = change(&mut file)?;
    if changed {
        let text = file.to_text()?;
        // Created with mode 600, and gone again unless it takes the name.
        let mut new = tempfile::NamedTempFile::new_in(dir).with_context(cannot)?;
        new.write_all(text.expose().as_bytes())
            .with_context(cannot)?;
        new.as_file().sync_all().with_context(cannot)?;
        new.persist(&target)
            .map_err(|error| error.error)
            .with_context(cannot)?;
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .with_context(cannot)?;
    }
    Ok(result)
}

/// The file that a path leads to, whether it exists or not.
fn behind_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match std::fs::read_link(&path) {
            Ok(link) => path = path.parent().unwrap_or(Path::new("/")).join(link),
            Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::NotFound) => {
                return Ok(path);
            }
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use vdkr_core::credentials::Credential;
    use vdkr_core::reference::Host;

    use super::*;

    fn log_in(path: &Path, host: &str) -> Result<()> {
        update(path, |file| {
            file.set(&Host::parse(host).unwrap(), &Credential::from_pair("u:p")?)?;
            Ok(((), true))
        })
    }

    #[test]
    fn files_of_docker_and_podman_are_found() {
        let files = |pairs: &[(&str, &str)]| {
            let env = |name: &str| {
                let found = pairs.iter().find(|(n, _)| *n == name);
                found.map(|(_, value)| (*value).to_owned())
            };
            let files = login_files(&env);
            let shown =
                |c: &Candidate| format!("{}{}", c.path.display(), if c.named { "!" } else { "" });
            files.iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(
            files(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]),
            [
                "/h/.docker/config.json",
                "/r/containers/auth.json",
                "/h/.config/containers/auth.json"
            ]
        );
        let own = [
            ("HOME", "/h"),
            ("DOCKER_CONFIG", "/d"),
            ("XDG_CONFIG_HOME", "/c"),
        ];
        assert_eq!(files(&own), ["/d/config.json", "/c/containers/auth.json"]);
        assert_eq!(
            files(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/a")]),
            ["/a!"]
        );
        assert_eq!(files(&[("HOME", "")]), [""; 0]);
    }

    #[test]
    fn a_file_is_replaced_whole_and_for_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/deep/config.json");
        log_in(&path, "a.example").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(is_exposed(&path));
        log_in(&path, "b.example").unwrap();
        assert_eq!(mode(&path), 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains("a.example") && text.contains("b.example"));
        let left: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(left.len(), 1, "{left:?}");
    }

    #[test]
    fn a_link_stays_and_its_target_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let (link, target) = (
            dir.path().join("link"),
            dir.path().join("dotfiles/config.json"),
        );
        std::os::unix::fs::symlink("dotfiles/config.json", &link).unwrap();
        log_in(&link, "a.example").unwrap();
        log_in(&link, "b.example").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(
            std::fs::read_to_string(&target)
                .unwrap()
                .contains("b.example")
        );
        std::os::unix::fs::symlink("circle", dir.path().join("circle")).unwrap();
        assert!(log_in(&dir.path().join("circle"), "a").is_err());
    }

    #[test]
    fn a_file_that_is_not_understood_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, "{ torn").unwrap();
        let error = log_in(&path, "a.example").unwrap_err();
        assert!(format!("{error:#}").contains("config.json"), "{error:#}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{ torn");
    }

    #[test]
    fn two_logins_at_once_lose_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::thread::scope(|scope| {
            for number in 0..8 {
                let path = &path;
                scope.spawn(move || log_in(path, &format!("h{number}.example")).unwrap());
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.matches(".example").count(), 8, "{text}");
    }
}
