//! The user of the local server: `auth/htpasswd` for the server, `auth/password` for the commands.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use vdkr_core::credentials::Secret;
use vdkr_core::credentials::htpasswd::{
    MAX_PASSWORD, check_user, parse_htpasswd, with_user, without_user,
};
use vdkr_registry::{hash_password, password_matches};

use crate::pki::files::{self, PRIVATE};
use crate::random::alphanumeric;
use crate::registry_cli::config::Config;

/// Length of a password that is made up: 119 bits.
const LENGTH: usize = 20;

/// Where the password lies.
pub(crate) fn password_file(storage: &Path) -> PathBuf {
    storage.join("auth/password")
}

/// The user's name, checked.
pub(crate) fn name(config: &Config) -> Result<&str> {
    let name = config.value("username").unwrap_or_default();
    check_user(name).map_err(|rule| config.bad_value("username", rule.to_string()))?;
    Ok(name)
}

/// The password that the configuration gives, checked.
pub(crate) fn given(config: &Config) -> Result<Option<Secret>> {
    let Some(password) = config.value("password").filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    check(password).map_err(|reason| config.bad_value("password", reason))?;
    Ok(Some(Secret::new(password)))
}

fn check(password: &str) -> Result<(), String> {
    if password.is_empty() || password.len() > MAX_PASSWORD || password.contains(char::is_control) {
        return Err(format!(
            "a password has 1 to {MAX_PASSWORD} bytes and no control characters"
        ));
    }
    Ok(())
}

/// The password that the running server was started with; `None` if there is none.
pub(crate) fn stored(storage: &Path) -> Result<Option<Secret>> {
    let path = password_file(storage);
    let Some(content) = files::read(&path)? else {
        return Ok(None);
    };
    let text = Secret::from(
        String::from_utf8(content.bytes)
            .map_err(|_| anyhow::anyhow!("{} is not text", path.display()))?,
    );
    let line = text.expose().trim_end_matches(['\n', '\r']);
    if line.is_empty() {
        return Ok(None);
    }
    check(line).map_err(|reason| {
        anyhow::anyhow!(
            "{}: {reason}; remove it to have a password made",
            path.display()
        )
    })?;
    Ok(Some(Secret::new(line)))
}

/// Makes sure that the server's user has a password, and that both files agree: the given one, else
/// the stored one, else a new one. Other users of the file stay, but not the one that was made here under an
/// earlier name. Gives the htpasswd file. Blocks.
pub(crate) fn ensure(storage: &Path, user: &str, given: Option<&Secret>) -> Result<PathBuf> {
    let directory = storage.join("auth");
    files::make_directory(&directory, 0o700)?;
    let _lock = files::lock(&directory)?;
    let htpasswd = directory.join("htpasswd");
    let stored = stored(storage)?;
    let password = match given.cloned().or_else(|| stored.clone()) {
        Some(password) => password,
        None => Secret::from(alphanumeric(LENGTH).context("no random numbers for a password")?),
    };
    let text = match files::read(&htpasswd)? {
        None => String::new(),
        Some(content) => {
            if content.shared {
                eprintln!(
                    "warning: {} can be read by others; put that right with: chmod 600 {0}",
                    htpasswd.display()
                );
            }
            String::from_utf8(content.bytes)
                .map_err(|_| anyhow::anyhow!("{} is not text", htpasswd.display()))?
        }
    };
    let entries = parse_htpasswd(text.as_bytes())
        .with_context(|| format!("the htpasswd file {} is not usable", htpasswd.display()))?;
    let right = entries
        .iter()
        .any(|entry| entry.user == user && password_matches(&password, &entry.hash));
    let mut new = text.clone();
    if !right {
        new = with_user(&new, user, &hash_password(&password)?)?;
    }
    // The user that was made here before has another name now: the old one may not stay valid.
    let owned = directory.join("user");
    let before = files::read(&owned)?.and_then(|content| String::from_utf8(content.bytes).ok());
    let before = before.as_deref().map(|name| name.trim_end_matches('\n'));
    if let Some(before) = before.filter(|before| *before != user)
        && let Some(entry) = entries.iter().find(|entry| entry.user == before)
    {
        if stored
            .as_ref()
            .is_some_and(|stored| password_matches(stored, &entry.hash))
        {
            new = without_user(&new, before);
        } else {
            eprintln!(
                "warning: {before} is no longer the name of the registry's user, but has another password in {} and stays valid; remove the line if that is not meant",
                htpasswd.display()
            );
        }
    }
    if new != text {
        files::write(&htpasswd, PRIVATE, new.as_bytes())?;
    }
    if before != Some(user) {
        files::write(&owned, PRIVATE, format!("{user}\n").as_bytes())?;
    }
    if stored.as_ref() != Some(&password) {
        let line = Secret::from(format!("{}\n", password.expose()));
        files::write(&password_file(storage), PRIVATE, line.expose().as_bytes())?;
    } else if files::read(&password_file(storage))?.is_some_and(|content| content.shared) {
        bail!(
            "{} can be read by others; put that right with: chmod 600 {0}",
            password_file(storage).display()
        );
    }
    Ok(htpasswd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn text(storage: &Path, name: &str) -> String {
        std::fs::read_to_string(storage.join("auth").join(name)).unwrap()
    }

    #[test]
    fn a_password_is_made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path();
        assert_eq!(stored(storage).unwrap(), None);
        ensure(storage, "yocto", None).unwrap();
        let first = stored(storage).unwrap().unwrap();
        assert_eq!(first.expose().len(), LENGTH);
        let hashes = text(storage, "htpasswd");
        assert!(hashes.starts_with("yocto:$2y$10$"), "{hashes}");
        assert!(!hashes.contains(first.expose()));
        ensure(storage, "yocto", None).unwrap();
        assert_eq!(text(storage, "htpasswd"), hashes, "left alone");
        assert_eq!(stored(storage).unwrap().unwrap(), first);
        for name in ["auth", "auth/password", "auth/htpasswd"] {
            let mode = std::fs::metadata(storage.join(name))
                .unwrap()
                .permissions()
                .mode();
            assert_eq!(mode & 0o077, 0, "{name} {mode:o}");
        }
    }

    #[test]
    fn a_given_password_beats_the_stored_one_and_other_users_stay() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path();
        ensure(storage, "yocto", None).unwrap();
        let made = text(storage, "htpasswd");
        let other = made.replace("yocto:", "ci:");
        std::fs::write(storage.join("auth/htpasswd"), format!("# team\n{other}")).unwrap();
        // weakness 4b.18: blanks and shell characters are letters like others.
        let given = Secret::new("a b $* 'c'");
        ensure(storage, "yocto", Some(&given)).unwrap();
        assert_eq!(stored(storage).unwrap().unwrap(), given);
        let now = text(storage, "htpasswd");
        assert!(
            now.starts_with(&format!("# team\n{other}yocto:$2y$")),
            "{now}"
        );
        // A file that says something else is brought in line with the stored password.
        std::fs::write(storage.join("auth/htpasswd"), &made).unwrap();
        ensure(storage, "yocto", None).unwrap();
        let entries = parse_htpasswd(text(storage, "htpasswd").as_bytes()).unwrap();
        assert!(password_matches(&given, &entries[0].hash));
    }

    #[test]
    fn a_renamed_user_leaves_no_login_behind() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path();
        ensure(storage, "yocto", None).unwrap();
        let other = text(storage, "htpasswd").replace("yocto:", "ci:");
        let both = format!("{other}{}", text(storage, "htpasswd"));
        std::fs::write(storage.join("auth/htpasswd"), both).unwrap();
        ensure(storage, "build", None).unwrap();
        let now = text(storage, "htpasswd");
        assert!(now.starts_with(&other) && !now.contains("yocto:"), "{now}");
        assert!(now.contains("build:"), "{now}");
        // A line that somebody gave another password is theirs.
        let hash = hash_password(&Secret::new("own")).unwrap();
        let changed = with_user(&now, "build", &hash).unwrap();
        std::fs::write(storage.join("auth/htpasswd"), changed).unwrap();
        ensure(storage, "yocto", None).unwrap();
        let now = text(storage, "htpasswd");
        assert!(now.contains("build:") && now.contains("yocto:"), "{now}");
    }

    #[test]
    fn what_cannot_be_used_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path();
        ensure(storage, "yocto", None).unwrap();
        let path = storage.join("auth/htpasswd");
        std::fs::write(&path, "ci:$apr1$x$y\n").unwrap();
        let error = format!("{:#}", ensure(storage, "yocto", None).unwrap_err());
        assert!(
            error.contains("htpasswd") && error.contains("line 1"),
            "{error}"
        );
        std::fs::write(&path, "").unwrap();
        std::fs::write(storage.join("auth/password"), "x".repeat(80)).unwrap();
        let error = format!("{:#}", ensure(storage, "yocto", None).unwrap_err());
        assert!(error.contains("auth/password"), "{error}");
        assert!(!error.contains("xxx"), "{error}");
        std::fs::write(storage.join("auth/password"), "fine\r\n").unwrap();
        let open = std::fs::Permissions::from_mode(0o644);
        std::fs::set_permissions(storage.join("auth/password"), open).unwrap();
        let error = format!("{:#}", ensure(storage, "yocto", None).unwrap_err());
        assert!(error.contains("chmod 600"), "{error}");
    }
}
