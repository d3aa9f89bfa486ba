//! Where `pull` and `run` fetch from: the words of the command line, and the logins of this system.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use vdkr_core::{
    candidates::{RegistryPrefix, Scheme, pull_candidates},
    channel::message::{HostCredential, RegistrySettings},
    credentials::{Credential, CredentialError, parse_docker_config},
};
use vdkr_transfer::{
    pull::translated,
    target::{RootFs, baked::login},
};

use super::{CommandError, given, host_address, registry};
use crate::{baked::Baked, boot::network};

/// Options of the commands that pull.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullFrom {
    /// The registry instead of the configured one; `none` asks no registry of our own.
    pub registry: Option<String>,
    /// Its CA instead of the configured one.
    pub ca: Option<PathBuf>,
    /// File of logins instead of root's own.
    pub authfile: Option<PathBuf>,
}

impl PullFrom {
    /// The settings of a request for this image; what is not said here is filled in by the agent
    /// that gets it.
    pub(super) fn settings(&self, image: &str) -> Result<RegistrySettings, CommandError> {
        let root = RootFs::open_to_read(Path::new("/"))
            .map_err(|error| CommandError::Failed(format!("cannot read /: {error}")))?;
        self.settings_on(&root, network::gateway(), image)
    }

    /// The same on a system with this default route.
    fn settings_on(
        &self,
        root: &RootFs,
        route: Option<Ipv4Addr>,
        image: &str,
    ) -> Result<RegistrySettings, CommandError> {
        let own = match self.registry.as_deref() {
            None | Some("none") => None,
            Some(text) => Some(registry(text)?),
        };
        let ca_pem = self.ca.as_ref().map(given).transpose()?;
        let mut settings = RegistrySettings {
            registry: own.as_ref().map(ToString::to_string),
            secure: ca_pem.is_some(),
            ca_pem,
            gateway: host_address(route).unwrap_or_default().to_owned(),
            defaults: self.registry.as_deref() != Some("none"),
            ..RegistrySettings::default()
        };
        match own.as_ref().map(|own| (own.scheme(), own.host())) {
            Some((Some(Scheme::Http), host)) => settings.insecure.push(host.to_string()),
            Some((Some(Scheme::Https), _)) => settings.secure = true,
            _ => {}
        }
        let own = match own {
            // A file that makes no sense is told of by the agent.
            None if settings.defaults => Baked::read(root).ok().and_then(|read| read.conf.registry),
            own => own,
        };
        settings.credentials = self.logins(root, own.as_ref(), &settings, image)?;
        if let (Some(own), Some(_)) = (&own, &self.authfile) {
            let host = own.host().to_string();
            if !settings.credentials.iter().any(|login| login.host == host) {
                // The agent would take root's own otherwise.
                let nobody = HostCredential::new(host, Credential::Anonymous);
                settings.credentials.push(nobody);
            }
        }
        Ok(settings)
    }

    /// The logins at the registries that may be asked for an image, each for its own host.
    fn logins(
        &self,
        root: &RootFs,
        own: Option<&RegistryPrefix>,
        settings: &RegistrySettings,
        image: &str,
    ) -> Result<Vec<HostCredential>, CommandError> {
        let file = match &self.authfile {
            Some(path) => {
                let bad = |error: CredentialError| {
                    CommandError::Failed(format!("{}: {error}", path.display()))
                };
                Some((
                    parse_docker_config(given(path)?.as_bytes()).map_err(bad)?,
                    bad,
                ))
            }
            None => None,
        };
        // A name that cannot be read is left for the agent to refuse.
        let name = translated(image, settings).unwrap_or_default();
        let candidates = pull_candidates(&name, own).unwrap_or_default();
        let mut logins = Vec::new();
        for candidate in &candidates {
            let host = candidate.reference.host();
            let repository = candidate.reference.repository();
            let found = match &file {
                Some((file, bad)) => file.lookup(host, repository).map_err(bad)?,
                // A broken file must not stop a pull that may need no login.
                None => login(root, host, repository).unwrap_or_else(|error| {
                    eprintln!("warning: no login for {host} is used: {error}");
                    Credential::Anonymous
                }),
            };
            if found != Credential::Anonymous {
                logins.push(HostCredential::new(host.to_string(), found));
            }
        }
        if let (Some(path), [], [asked, ..]) = (&self.authfile, &logins[..], &candidates[..]) {
            let (path, host) = (path.display(), asked.reference.host());
            eprintln!("warning: {path} has no login for {host}");
        }
        Ok(logins)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LOGINS: &str = r#"{"auths": {
        "ghcr.io": {"auth": "ZzpnaGNy"},
        "https://index.docker.io/v1/": {"auth": "aDpodWI="},
        "lab:5000": {"auth": "bDpsYWI="},
        "10.0.2.2:5000": {"auth": "cTpxZW11"}
    }}"#;
    const QEMU: Option<Ipv4Addr> = Some(Ipv4Addr::new(10, 0, 2, 2));
    const LAN: Option<Ipv4Addr> = Some(Ipv4Addr::new(192, 168, 7, 1));

    struct Board(tempfile::TempDir);

    impl Board {
        fn new(conf: &str) -> Self {
            let board = Self(tempfile::tempdir().unwrap());
            board.write("etc/vdkr/registry.conf", conf);
            board
        }

        fn write(&self, path: &str, text: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            path
        }

        fn settings(
            &self,
            from: &PullFrom,
            route: Option<Ipv4Addr>,
            image: &str,
        ) -> RegistrySettings {
            let root = RootFs::open_to_read(self.0.path()).unwrap();
            from.settings_on(&root, route, image).unwrap()
        }

        /// `HOST USER` of each login that goes along.
        fn logins(&self, from: &PullFrom, route: Option<Ipv4Addr>, image: &str) -> Vec<String> {
            let logins = self.settings(from, route, image).credentials;
            let shown = logins
                .into_iter()
                .map(|login| format!("{} {}", login.host, login.username.unwrap_or_default()));
            shown.collect()
        }
    }

    fn of(registry: &str) -> PullFrom {
        PullFrom {
            registry: Some(registry.to_owned()),
            ..PullFrom::default()
        }
    }

    #[test]
    fn each_registry_that_may_be_asked_gets_its_own_login() {
        let board = Board::new("VDKR_DEFAULT_REGISTRY=lab:5000/yocto\n");
        board.write("root/.docker/config.json", LOGINS);
        let plain = PullFrom::default();
        for (from, image, expected) in [
            (&plain, "app", &["lab:5000 l", "docker.io h"][..]),
            (&plain, "ghcr.io/x/y", &["ghcr.io g"]),
            (&plain, "quay.io/x/y", &[]),
            (&plain, "lab:5001/app", &[]),
            (&of("none"), "app", &["docker.io h"]),
            (&of("other:1"), "app", &["docker.io h"]),
            (&of("lab:5000"), "app", &["lab:5000 l", "docker.io h"]),
            (&plain, "0123456789ab", &[]),
            (&plain, "No//name", &[]),
        ] {
            assert_eq!(board.logins(from, LAN, image), expected, "{image}");
        }
    }

    #[test]
    fn a_file_that_is_named_stands_for_the_others() {
        let board = Board::new("");
        board.write("root/.docker/config.json", LOGINS);
        let file = |text: &str| PullFrom {
            authfile: Some(board.write("logins.json", text)),
            ..PullFrom::default()
        };
        let own = file(r#"{"auths": {"quay.io/team": {"auth": "cTp0"}}}"#);
        assert_eq!(board.logins(&own, LAN, "quay.io/team/x"), ["quay.io q"]);
        assert_eq!(board.logins(&own, LAN, "quay.io/x"), [""; 0]);
        assert_eq!(board.logins(&own, LAN, "ghcr.io/x"), [""; 0]);
        let root = RootFs::open_to_read(board.0.path()).unwrap();
        let broken = file("{secret").settings_on(&root, LAN, "app").unwrap_err();
        let words = broken.to_string();
        assert!(
            words.contains("logins.json") && !words.contains("secret"),
            "{words}"
        );
        let missing = PullFrom {
            authfile: Some("/nonexistent/logins".into()),
            ..PullFrom::default()
        };
        let missing = missing.settings_on(&root, LAN, "app");
        assert!(matches!(missing, Err(CommandError::NotFound(_))));
        // Nobody named this one.
        board.write("root/.docker/config.json", "{torn");
        assert_eq!(board.logins(&PullFrom::default(), LAN, "app"), [""; 0]);
    }

    #[test]
    fn a_file_without_the_login_leaves_none_to_the_agent() {
        let board = Board::new("VDKR_DEFAULT_REGISTRY=lab:5000/yocto\n");
        board.write("root/.docker/config.json", LOGINS);
        let own = PullFrom {
            authfile: Some(board.write("logins.json", r#"{"auths": {}}"#)),
            ..PullFrom::default()
        };
        let mut settings = board.settings(&own, LAN, "app");
        let root = RootFs::open_to_read(board.0.path()).unwrap();
        settings.take_defaults(crate::baked::defaults(&root).unwrap());
        assert_eq!(settings.registry.as_deref(), Some("lab:5000/yocto"));
        let credentials = settings.credentials.iter();
        let logins: Vec<_> = credentials.map(HostCredential::credential).collect();
        assert_eq!(logins, [Credential::Anonymous]);
    }

    #[test]
    fn a_board_has_no_host_to_trust() {
        let board = Board::new("");
        board.write("root/.docker/config.json", LOGINS);
        let plain = PullFrom::default();
        let name = "localhost:5000/app";
        assert_eq!(board.settings(&plain, QEMU, name).gateway, "10.0.2.2");
        assert_eq!(board.logins(&plain, QEMU, name), ["10.0.2.2:5000 q"]);
        for route in [LAN, None] {
            assert_eq!(board.settings(&plain, route, name).gateway, "");
            assert_eq!(board.logins(&plain, route, name), [""; 0]);
        }
    }

    #[test]
    fn a_scheme_says_whether_tls_is_wanted() {
        let board = Board::new("");
        let http = board.settings(&of("http://lab:5000/x"), LAN, "app");
        assert_eq!(http.insecure, ["lab:5000"]);
        assert_eq!(http.registry.as_deref(), Some("lab:5000/x"));
        assert!(board.settings(&of("https://lab:5000"), QEMU, "app").secure);
        assert!(!board.settings(&of("lab:5000"), LAN, "app").secure);
    }
}
