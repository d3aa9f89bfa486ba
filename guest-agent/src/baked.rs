//! What this machine is set up to pull from: baked into its image, or written by `configure`.

use std::path::Path;

use vdkr_core::{
    channel::message::{Failure, FailureCode, RegistryDefaults, RegistrySettings},
    credentials::{Credential, parse_docker_config},
    emit::{
        MAX_FILE,
        vdkr::{CONF, RegistryConf},
    },
};
use vdkr_transfer::target::{RootFs, home};

use crate::command::CommandError;

/// The CA of the registry, unless an option or the engines' own files name another.
pub const CA: &str = "/etc/vdkr/ca.crt";
/// Where distributions keep the authorities that are trusted anyway.
const BUNDLES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

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
    pub fn read(root: &RootFs) -> Result<Self, CommandError> {
        let conf = match text(root, CONF)? {
            Some(text) => vdkr_core::emit::vdkr::parse(&text)
                .map_err(|error| CommandError::Failed(format!("{CONF}: {error}")))?,
            None => RegistryConf::default(),
        };
        let mut places = vec![CA.to_owned()];
        if let Some(registry) = &conf.registry {
            let host = registry.host();
            places.push(format!("/etc/docker/certs.d/{host}/ca.crt"));
            places.push(format!("/etc/containers/certs.d/{host}/ca.crt"));
        }
        for path in places {
            if let Some(text) = text(root, &path)? {
                return Ok(Self {
                    conf,
                    ca: Some((text, path)),
                });
            }
        }
        Ok(Self { conf, ca: None })
    }

    /// The login that root has at the registry in docker's file, as `bake --authfile` writes it.
    fn credential(&self, root: &RootFs) -> Result<Credential, CommandError> {
        let Some(registry) = &self.conf.registry else {
            return Ok(Credential::Anonymous);
        };
        let path = format!("{}/.docker/config.json", home(root)?.trim_end_matches('/'));
        let Some(found) = root.read(&path, MAX_FILE)? else {
            return Ok(Credential::Anonymous);
        };
        let namespace = registry.namespace().unwrap_or_default();
        parse_docker_config(&found.bytes)
            .and_then(|file| file.lookup(registry.host(), namespace))
            .map_err(|error| CommandError::Failed(format!("{path}: {error}")))
    }
}

/// Everything that requests without a registry of their own get.
fn defaults(root: &RootFs) -> Result<RegistryDefaults, CommandError> {
    let baked = Baked::read(root)?;
    Ok(RegistryDefaults {
        credential: baked.credential(root)?,
        conf: baked.conf,
        ca_pem: baked.ca.map(|(text, _)| text),
    })
}

/// Fills in what a request leaves to this machine.
pub fn fill(settings: &mut RegistrySettings) -> Result<(), Failure> {
    if !settings.defaults {
        return Ok(());
    }
    let failed = |error: CommandError| {
        Failure::new(
            FailureCode::Failed,
            format!("what this machine is set up to pull from cannot be read: {error}"),
        )
        .with_hint("mend the file there, or name a registry, or --no-registry")
    };
    let root = super::command::open(Path::new("/")).map_err(failed)?;
    settings.take_defaults(defaults(&root).map_err(failed)?);
    if settings.public_roots.is_none() {
        settings.public_roots = public_roots(&root).map_err(failed)?;
    }
    Ok(())
}

/// The registry that requests without one of their own get; `None` also when that cannot be read.
pub fn registry() -> Option<String> {
    let root = super::command::open(Path::new("/")).ok()?;
    let registry = Baked::read(&root).ok()?.conf.registry?;
    Some(registry.to_string())
}

/// The authorities that this machine trusts anyway.
pub fn public_roots(root: &RootFs) -> Result<Option<String>, CommandError> {
    for path in BUNDLES {
        if let Some(found) = root.read(path, MAX_FILE)? {
            return Ok(String::from_utf8(found.bytes).ok());
        }
    }
    Ok(None)
}

fn text(root: &RootFs, path: &str) -> Result<Option<String>, CommandError> {
    let Some(found) = root.read(path, MAX_FILE)? else {
        return Ok(None);
    };
    match String::from_utf8(found.bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(CommandError::Failed(format!(
            "{path} in {} is not text",
            root.path().display()
        ))),
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
        write("etc/vdkr/registry.conf", "VDKR_DEFAULT_REGISTRY=$(reboot)");
        let error = defaults(&root).unwrap_err().to_string();
        assert!(error.contains("registry.conf: line 1"), "{error}");
    }
}
