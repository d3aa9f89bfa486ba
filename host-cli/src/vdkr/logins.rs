//! Which login a registry gets: from the file of `--config`, from the options, else what `login`,
//! docker or podman keep on this computer. Nothing of it stays in the machine.

use std::{
    env, fs,
    io::{self, BufRead as _, Read as _},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use vdkr_core::{
    candidates::RegistryPrefix,
    credentials::{Credential, DockerConfig, Secret, parse_docker_config},
    reference::Host,
};

use super::{
    baked::Baked,
    error::{Error, Result},
    settings::Settings,
    words::say,
};
use crate::{
    exit::Exit,
    registry_cli::{auth, error::words},
};

/// Longest password that is read, in bytes.
const MAX_PASSWORD: u64 = 64 * 1024;
/// Shortest and longest file of logins, in bytes.
const FILE_SIZE: std::ops::RangeInclusive<u64> = 2..=1024 * 1024;

/// What the user gave with this command.
#[derive(Debug, Default)]
pub struct Given {
    file: Option<(PathBuf, DockerConfig)>,
    user: Option<Credential>,
    /// The login that came with the machine's image, and its host.
    baked: Option<(Host, Credential)>,
}

/// Reads what the options and variables give. To be called once: a password on standard input is
/// read here.
pub fn given(settings: &Settings) -> Result<Given> {
    let variable = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
    let named = settings.global.config.clone();
    let by_variable = || {
        // The second is of the sister program for podman.
        let named = variable("VDKR_CONFIG").or_else(|| variable("VPDMN_CONFIG"));
        named.map(PathBuf::from)
    };
    let file = match named.or_else(by_variable) {
        Some(path) => Some((path.clone(), read_file(&path)?)),
        None => None,
    };
    let user = match user(settings, &variable)? {
        Some(_) if file.is_some() => {
            say("the logins of --config are used, not the user and password of the options");
            None
        }
        user => user,
    };
    let baked = Baked::of(settings).login();
    Ok(Given { file, user, baked })
}

fn user(
    settings: &Settings,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<Credential>> {
    let global = &settings.global;
    let named = global.registry_user.clone();
    let Some(username) = named.or_else(|| variable("VDKR_REGISTRY_USER")) else {
        if global.registry_password.is_some() || global.registry_password_stdin {
            return Err(Error::usage("a password without a user")
                .with_hint("name the user with --registry-user"));
        }
        return Ok(None);
    };
    let password = if global.registry_password_stdin {
        read_password(io::stdin().lock())?
    } else if let Some(password) = &global.registry_password {
        say(
            "everybody on this computer can see a password on the command line; use \
             --registry-password-stdin, or vdkr login",
        );
        password.clone()
    } else {
        let password = variable("VDKR_REGISTRY_PASSWORD").map(Secret::new);
        password.ok_or_else(|| {
            Error::usage("no password for --registry-user")
                .with_hint("give it with --registry-password-stdin or in VDKR_REGISTRY_PASSWORD")
        })?
    };
    Ok(Some(Credential::Basic { username, password }))
}

fn read_password(input: impl io::BufRead) -> Result<Secret> {
    let mut line = String::new();
    input
        .take(MAX_PASSWORD)
        .read_line(&mut line)
        .map_err(|error| Error::usage(format!("cannot read the password: {error}")))?;
    let password = line.trim_end_matches(['\r', '\n']);
    if password.is_empty() {
        return Err(Error::usage("the password on standard input is empty"));
    }
    Ok(Secret::new(password))
}

/// Reads a file of logins that the user named, and refuses one that others can read or that is not
/// what it seems.
fn read_file(path: &Path) -> Result<DockerConfig> {
    let shown = path.display();
    let wrong = |reason: &str| Error::usage(format!("{shown}: {reason}"));
    let metadata = fs::symlink_metadata(path).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::NotFound => Exit::NotFound,
            _ => Exit::Usage,
        };
        Error::new(exit, format!("cannot read the logins in {shown}: {error}"))
    })?;
    if metadata.is_symlink() {
        return Err(wrong("a file of logins must not be a symbolic link"));
    }
    if !metadata.is_file() {
        return Err(wrong("it is not a regular file"));
    }
    if !FILE_SIZE.contains(&metadata.len()) {
        return Err(wrong("a file of logins has between 2 bytes and 1 MiB"));
    }
    let mode = metadata.mode() & 0o7777;
    if mode & !0o600 != 0 {
        let reason = format!("its mode is {mode:o}; logins are for their owner alone");
        return Err(wrong(&reason).with_hint(format!("chmod 600 {shown}")));
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        say(&format!("{shown} belongs to another user"));
    }
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(*FILE_SIZE.end() + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(&format!("cannot be read: {error}")))?;
    parse_docker_config(&bytes).map_err(|error| wrong(&error.to_string()))
}

impl Given {
    /// The login for a registry as this computer calls it; anonymous when there is none. A user
    /// that the options name is for the configured registry, or for the one of the name where none
    /// is configured.
    /// The login that came with the machine's image is the last.
    pub fn for_host(
        &self,
        host: &Host,
        namespace: &str,
        configured: Option<&RegistryPrefix>,
    ) -> Result<Credential> {
        let own = self.own(host, namespace, configured)?;
        Ok(match &self.baked {
            Some((known, login)) if own == Credential::Anonymous && known == host => login.clone(),
            _ => own,
        })
    }

    fn own(
        &self,
        host: &Host,
        namespace: &str,
        configured: Option<&RegistryPrefix>,
    ) -> Result<Credential> {
        let refused = |error: anyhow::Error| Error::new(Exit::Usage, words(&error));
        if let Some((path, file)) = &self.file {
            let sources = auth::in_file(host, namespace, path, file.clone());
            return sources.walk(host, &mut |_| {}).map_err(refused);
        }
        if let Some(user) = &self.user
            && configured.is_none_or(|prefix| prefix.host() == host)
        {
            return Ok(user.clone());
        }
        match auth::stored(host).walk(host, &mut |_| {}) {
            Ok(credential) => Ok(credential),
            // Somebody else's broken file must not stop a pull that may need no login.
            Err(error) => {
                say(&format!("no login for {host} is used: {}", words(&error)));
                Ok(Credential::Anonymous)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::vdkr::{args::Global, settings::tests::settings};

    fn user_of(global: Global, variables: &[(&str, &str)]) -> Result<Option<Credential>> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        user(&settings(global, &[], "").unwrap(), &variable)
    }

    #[test]
    fn users_and_passwords() {
        let user = |name: &str| Some(name.to_owned());
        let basic = |password: &str| {
            Some(Credential::Basic {
                username: "u".into(),
                password: Secret::new(password),
            })
        };
        let option = Global {
            registry_user: user("u"),
            registry_password: Some(Secret::new("p")),
            ..Global::default()
        };
        let variables = [("VDKR_REGISTRY_USER", "u"), ("VDKR_REGISTRY_PASSWORD", "v")];
        assert_eq!(user_of(option, &variables).unwrap(), basic("p"));
        assert_eq!(user_of(Global::default(), &variables).unwrap(), basic("v"));
        assert_eq!(user_of(Global::default(), &[]).unwrap(), None);
        let alone = Global {
            registry_user: user("u"),
            ..Global::default()
        };
        assert!(user_of(alone, &[]).is_err());
        let password = Global {
            registry_password: Some(Secret::new("p")),
            ..Global::default()
        };
        assert!(user_of(password, &[]).is_err());
        let line = read_password(&b"s3cret with spaces \r\nrest"[..]).unwrap();
        assert_eq!(line.expose(), "s3cret with spaces ");
        assert!(read_password(&b"\n"[..]).is_err());
    }

    #[test]
    fn files_that_others_can_read_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let write = |text: &str, mode: u32| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let good = r#"{"auths":{"localhost:5000":{"auth":"dTpw"}}}"#;
        for mode in [0o600, 0o400] {
            write(good, mode);
            assert!(read_file(&path).is_ok(), "{mode:o}");
            fs::remove_file(&path).unwrap();
        }
        for mode in [0o644, 0o640, 0o601, 0o700, 0o4600] {
            write(good, mode);
            let error = read_file(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("{mode:o}")) && error.contains("chmod 600"));
        }
        write("", 0o600);
        assert!(
            read_file(&path)
                .unwrap_err()
                .to_string()
                .contains("2 bytes")
        );
        write(&" ".repeat(1024 * 1024 + 1), 0o600);
        assert!(read_file(&path).is_err());
        write("{ torn", 0o600);
        assert!(read_file(&path).is_err());
        write(good, 0o600);
        symlink(&path, dir.path().join("link")).unwrap();
        let error = read_file(&dir.path().join("link")).unwrap_err();
        assert!(error.to_string().contains("symbolic link"));
        assert!(read_file(dir.path()).is_err());
        let missing = read_file(&dir.path().join("missing")).unwrap_err();
        assert_eq!(missing.exit(), Exit::NotFound);
    }

    #[test]
    fn logins_go_to_their_registry_alone() {
        let host = |text: &str| Host::parse(text).unwrap();
        let user = Credential::from_pair("u:p").unwrap();
        let given = Given {
            file: None,
            user: Some(user.clone()),
            baked: None,
        };
        let prefix = RegistryPrefix::parse("localhost:5000/yocto").unwrap();
        let found = given.for_host(&host("localhost:5000"), "yocto", Some(&prefix));
        assert_eq!(found.unwrap(), user);
        let file = parse_docker_config(br#"{"auths":{"ghcr.io":{"auth":"Zjpn"}}}"#).unwrap();
        let given = Given {
            file: Some(("f".into(), file)),
            user: None,
            baked: Some((host("localhost:5001"), user.clone())),
        };
        let found = given.for_host(&host("localhost:5001"), "", None).unwrap();
        assert_eq!(found, user);
        let found = given.for_host(&host("ghcr.io"), "", Some(&prefix)).unwrap();
        assert_eq!(found, Credential::from_pair("f:g").unwrap());
        let found = given.for_host(&host("localhost:5000"), "", Some(&prefix));
        assert_eq!(found.unwrap(), Credential::Anonymous);
    }
}
