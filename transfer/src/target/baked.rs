//! What a root file system is set up to pull from: baked into it, or written by `configure`.

use vdkr_core::{
    channel::message::RegistryDefaults,
    credentials::{Credential, parse_docker_config},
    emit::{
        CONTAINERS_LOGINS, MAX_FILE, docker_path,
        vdkr::{CONF, RegistryConf, parse},
    },
    reference::Host,
};

use super::{RootFs, TargetError, home, text};

/// The CA of the registry, unless an option or the engines' own files name another.
pub const CA: &str = "/etc/vdkr/ca.crt";

/// What the target is set up to pull from.
#[derive(Debug, Default)]
pub struct Baked {
    /// `/etc/vdkr/registry.conf`.
    pub conf: RegistryConf,
    /// The registry's CA, in PEM, and where it lies.
    pub ca: Option<(String, String)>,
}

impl Baked {
    /// Reads it from a root file system.
    pub fn read(root: &RootFs) -> Result<Self, TargetError> {
        let conf = match read_text(root, CONF)? {
            Some(text) => parse(&text).map_err(|error| content(CONF, &error))?,
            None => RegistryConf::default(),
        };
        let mut places = vec![CA.to_owned()];
        if let Some(registry) = &conf.registry {
            let host = registry.host();
            places.push(format!("/etc/docker/certs.d/{host}/ca.crt"));
            places.push(format!("/etc/containers/certs.d/{host}/ca.crt"));
        }
        for path in places {
            if let Some(text) = read_text(root, &path)? {
                return Ok(Self {
                    conf,
                    ca: Some((text, path)),
                });
            }
        }
        Ok(Self { conf, ca: None })
    }

    /// The login that root has at the registry.
    fn credential(&self, root: &RootFs) -> Result<Credential, TargetError> {
        let Some(registry) = &self.conf.registry else {
            return Ok(Credential::Anonymous);
        };
        login(
            root,
            registry.host(),
            registry.namespace().unwrap_or_default(),
        )
    }
}

/// The login that root has for a repository of a registry: in docker's file, as `bake --authfile`
/// writes it, else in the system's file of podman and CRI-O. An empty repository asks for the host.
pub fn login(root: &RootFs, host: &Host, repository: &str) -> Result<Credential, TargetError> {
    for path in [&docker_path(&home(root)?), CONTAINERS_LOGINS] {
        let Some(found) = root.read(path, MAX_FILE)? else {
            continue;
        };
        let credential = parse_docker_config(&found.bytes)
            .and_then(|file| file.lookup(host, repository))
            .map_err(|error| content(path, &error))?;
        if credential != Credential::Anonymous {
            return Ok(credential);
        }
    }
    Ok(Credential::Anonymous)
}

/// Everything that requests without a registry of their own get.
pub fn defaults(root: &RootFs) -> Result<RegistryDefaults, TargetError> {
    Ok(RegistryDefaults {
        credential: Baked::read(root)?.credential(root)?,
        ..defaults_without_login(root)?
    })
}

/// The same without a login, for where the files of logins cannot be read: what is asked for may need
/// none.
pub fn defaults_without_login(root: &RootFs) -> Result<RegistryDefaults, TargetError> {
    let baked = Baked::read(root)?;
    Ok(RegistryDefaults {
        credential: Credential::Anonymous,
        conf: baked.conf,
        ca_pem: baked.ca.map(|(text, _)| text),
    })
}

fn read_text(root: &RootFs, path: &str) -> Result<Option<String>, TargetError> {
    let found = root.read(path, MAX_FILE)?;
    found.map(|found| text(root, path, found.bytes)).transpose()
}

fn content(path: &str, problem: &dyn ToString) -> TargetError {
    TargetError::Content {
        path: path.to_owned(),
        problem: problem.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn registry_ca_and_login_come_together() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let root = RootFs::open(dir.path()).unwrap();
        assert_eq!(defaults(&root).unwrap(), RegistryDefaults::default());
        write(
            "etc/vdkr/registry.conf",
            "VDKR_DEFAULT_REGISTRY=10.0.2.2:5000/yocto\n",
        );
        write("etc/docker/certs.d/10.0.2.2:5000/ca.crt", "a certificate");
        write(
            "root/.docker/config.json",
            r#"{"auths": {"10.0.2.2:5000": {"auth": "eW9jdG86cHc="}, "h": {"auth": "eDp5"}}}"#,
        );
        let found = defaults(&root).unwrap();
        assert_eq!(
            found.conf.registry.unwrap().to_string(),
            "10.0.2.2:5000/yocto"
        );
        assert_eq!(found.ca_pem.as_deref(), Some("a certificate"));
        let Credential::Basic { username, .. } = found.credential else {
            panic!("no login");
        };
        assert_eq!(username, "yocto");
        write("root/.docker/config.json", "{secret");
        let error = defaults(&root).unwrap_err().to_string();
        assert!(
            error.contains("config.json") && !error.contains("secret"),
            "{error}"
        );
        let without = defaults_without_login(&root).unwrap();
        assert_eq!(without.credential, Credential::Anonymous);
        assert_eq!(without.ca_pem.as_deref(), Some("a certificate"));
        assert!(without.conf.registry.is_some());
        write("etc/vdkr/registry.conf", "VDKR_DEFAULT_REGISTRY=$(reboot)");
        assert!(defaults_without_login(&root).is_err());
        let error = defaults(&root).unwrap_err().to_string();
        assert!(error.contains("registry.conf: line 1"), "{error}");
    }
    #[test]
    fn a_login_is_for_its_host_and_dockers_file_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write(
            "root/.docker/config.json",
            r#"{"auths": {"ghcr.io": {"auth": "YTpi"}}}"#,
        );
        write(
            "etc/containers/auth.json",
            r#"{"auths": {"ghcr.io": {"auth": "YzpkCg=="}, "h:1/team": {"auth": "ZTpm"}}}"#,
        );
        let root = RootFs::open_to_read(dir.path()).unwrap();
        for (host, repository, expected) in [
            ("ghcr.io", "x/y", Some("a:b")),
            ("h:1", "team/app", Some("e:f")),
            ("h:1", "other/app", None),
            ("h:2", "team/app", None),
            ("docker.io", "library/app", None),
        ] {
            let host = Host::parse(host).unwrap();
            let expected = expected.map(|pair| Credential::from_pair(pair).unwrap());
            let found = login(&root, &host, repository).unwrap();
            assert_eq!(found, expected.unwrap_or_default(), "{host}/{repository}");
        }
    }
}
