//! The registry that was written into the machine's image, for a user who names none. What was baked
//! lies beside the image too, so that this computer can pull from there for the machine.

use std::io;

use vdkr_core::{
    channel::message::RegistryDefaults,
    credentials::Credential,
    loopback::{DEFAULT_GATEWAY, from_gateway},
    reference::Host,
};
use vdkr_transfer::target::{RootFs, baked::defaults};

use super::{registry::host_side, settings::Settings, words::say};

/// What the machine's image says about registries.
#[derive(Debug, Default)]
pub struct Baked {
    /// The registry that its description names.
    named: Option<String>,
    /// Registry, CA and login, where this computer has them.
    pub defaults: Option<RegistryDefaults>,
}

impl Baked {
    /// Reads it; nothing for a user who says what registry to ask, or none.
    pub fn of(settings: &Settings) -> Self {
        let is_told = settings.global.no_registry || !settings.value("registry").0.is_empty();
        if is_told || settings.target.is_some() {
            return Self::default();
        }
        let Ok(image) = settings.start.search.locate(settings.arch) else {
            return Self::default();
        };
        let found = image.baked.as_ref().map(|dir| {
            let root = RootFs::open_to_read(dir)?;
            defaults(&root).map_err(io::Error::other)
        });
        let defaults = match found.transpose() {
            Ok(defaults) => defaults,
            // The machine itself has it all.
            Err(error) => {
                if settings.verbose {
                    say(&format!(
                        "images are pulled in the machine, since this computer cannot read what \
                         its image is set up for: {error}"
                    ));
                }
                None
            }
        };
        Self {
            named: image.registry,
            defaults,
        }
    }

    /// The registry, as this computer calls it.
    pub fn registry(&self) -> Option<String> {
        let conf = self.defaults.as_ref().map(|defaults| &defaults.conf);
        match conf.and_then(|conf| conf.registry.as_ref()) {
            Some(registry) => Some(from_gateway(&registry.to_string(), DEFAULT_GATEWAY)),
            None => self.named.clone(),
        }
    }

    /// Hosts that may be spoken to without TLS, as this computer calls them.
    pub fn insecure(&self) -> Vec<String> {
        let entries = self.defaults.iter().flat_map(|found| &found.conf.insecure);
        entries
            .map(|entry| from_gateway(entry, DEFAULT_GATEWAY))
            .collect()
    }

    /// The login at the registry, and its host as this computer calls it.
    pub fn login(self) -> Option<(Host, Credential)> {
        let defaults = self.defaults?;
        let host = host_side(defaults.conf.registry?.host());
        let login = defaults.credential;
        (login != Credential::Anonymous).then_some((host, login))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::vdkr::{args::Global, registry, settings::tests::settings};

    const CONF: &str = "VDKR_DEFAULT_REGISTRY=10.0.2.2:5000/yocto\n\
                        VDKR_INSECURE_REGISTRIES=\"10.0.2.2:5001 r.example.com\"\n";

    fn image(dir: &Path) {
        let dir = dir.join("x86_64");
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("kernel", "k");
        write("initramfs", "i");
        write("vm.json", r#"{"arch":"x86_64","kernel_format":"vmlinux"}"#);
        write("baked/etc/vdkr/registry.conf", CONF);
        write(
            "baked/etc/docker/certs.d/10.0.2.2:5000/ca.crt",
            "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n",
        );
        write(
            "baked/root/.docker/config.json",
            r#"{"auths": {"10.0.2.2:5000": {"auth": "eW9jdG86cHc="}}}"#,
        );
    }

    fn global(dir: &Path) -> Global {
        Global {
            arch: Some("x86_64".into()),
            blob_dir: Some(dir.to_owned()),
            ..Global::default()
        }
    }

    #[test]
    fn this_computer_knows_what_the_machine_does() {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path());
        let plain = settings(global(dir.path()), &[], "").unwrap();
        let baked = Baked::of(&plain);
        assert_eq!(baked.registry().as_deref(), Some("localhost:5000/yocto"));
        assert_eq!(baked.insecure(), ["localhost:5001", "r.example.com"]);
        let (host, login) = baked.login().unwrap();
        assert_eq!(host.to_string(), "localhost:5000");
        assert_eq!(login, Credential::from_pair("yocto:pw").unwrap());

        let request = registry::for_request(&plain, &["app"]).unwrap();
        assert_eq!(request.registry.as_deref(), Some("10.0.2.2:5000/yocto"));
        assert_eq!(request.insecure, ["10.0.2.2:5001", "r.example.com"]);
        assert!(request.secure && request.ca_pem.is_some() && !request.defaults);
        assert_eq!(request.credentials.len(), 1);
        assert_eq!(request.credentials[0].host, "10.0.2.2:5000");
        assert_eq!(request.credentials[0].credential(), login);

        // What the user says wins over all of it.
        let named = Global {
            registry: Some("r.example.com".into()),
            ..global(dir.path())
        };
        let none = Global {
            no_registry: true,
            ..global(dir.path())
        };
        for (global, registry) in [(named, Some("r.example.com")), (none, None)] {
            let settings = settings(global, &[], "").unwrap();
            let request = registry::for_request(&settings, &[]).unwrap();
            assert_eq!(request.registry.as_deref(), registry);
            assert!(request.credentials.is_empty() && request.ca_pem.is_none());
            assert!(Baked::of(&settings).login().is_none());
        }
    }

    #[test]
    fn what_cannot_be_read_is_left_to_the_machine() {
        let dir = tempfile::tempdir().unwrap();
        image(dir.path());
        let conf = dir.path().join("x86_64/baked/etc/vdkr/registry.conf");
        fs::write(conf, "VDKR_DEFAULT_REGISTRY=$(reboot)").unwrap();
        let settings = settings(global(dir.path()), &[], "").unwrap();
        assert_eq!(Baked::of(&settings).registry(), None);
        let request = registry::for_request(&settings, &[]).unwrap();
        assert!(request.defaults && request.registry.is_none());
    }
}
