//! vdkr on this machine: its own settings, CA and login are made to ask the registry.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use vdkr_core::credentials::Credential;
use vdkr_core::loopback::{DEFAULT_GATEWAY, from_gateway};
use vdkr_core::reference::{Host, Reference, ReferenceError};
use vdkr_transfer::{Repository, TransferError};

use super::clients::{Registry, untried};
use super::{Ask, Check, Verdict};
use crate::registry_cli::config::Config;
use crate::registry_cli::error::printable;
use crate::vdkr::error::Error;
use crate::vdkr::settings::Settings;
use crate::vdkr::{logins, registry};

/// How long the registry may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What vdkr says of the registry, and whether the registry lets it have an image.
pub(super) async fn check(config: &Config, settings: &Settings, ask: &Ask) -> Result<Check> {
    let set = match settings.value("registry").0 {
        // What was written into the machine's image holds where the user says nothing.
        "" => registry::configured(settings).map(|set| set.map(|set| set.to_string())),
        set => Ok(Some(set.to_owned())),
    };
    let set = match set {
        Ok(set) => set.unwrap_or_default(),
        Err(error) => return Ok(unusable(&error)),
    };
    let by_settings = named(config, &set)?;
    if by_settings.verdict != Verdict::Ok {
        return Ok(by_settings);
    }
    if settings.target.is_some() {
        let reason = "its target asks the registry itself";
        return Ok(untried(by_settings, reason));
    }
    if *ask == Ask::Nobody {
        return Ok(untried(by_settings, "the registry does not answer"));
    }
    let ours = Registry::of(config)?;
    Ok(match request(settings, ask).await {
        Ok(answer) => told(&ours, &set, ask, answer),
        Err(error) => unusable(&error),
    })
}

fn unusable(error: &Error) -> Check {
    Check::warn(
        "vdkr",
        format!("cannot pull: {}", printable(&error.to_string())),
        "mend it with: vdkr vconfig",
    )
}

/// Whether the registry is the one that vdkr asks first.
fn named(config: &Config, set: &str) -> Result<Check> {
    let registry = config.registry()?;
    let wanted = match registry.namespace() {
        Some(namespace) => format!("{}/{namespace}", registry.host()),
        None => registry.host().to_string(),
    };
    let bare = set.split_once("://").map_or(set, |(_, rest)| rest);
    let bare = from_gateway(bare.trim_end_matches('/'), DEFAULT_GATEWAY);
    Ok(if bare == wanted {
        Check::ok("vdkr", format!("pulls from {set} first"))
    } else if set.is_empty() || set == "none" {
        Check::warn(
            "vdkr",
            "has no registry set: names without a host are Docker Hub's",
            format!("set it with: vdkr vconfig registry {wanted}"),
        )
    } else {
        Check::warn(
            "vdkr",
            format!("pulls from {set} first, not from {wanted}"),
            format!("if that is not meant: vdkr vconfig registry {wanted}"),
        )
    })
}

/// What came of a request.
struct Answer {
    /// Whether there was a login to send.
    logged_in: bool,
    /// Whether the image is there; where none was asked for, whether the registry lets vdkr in.
    found: Result<bool, TransferError>,
}

/// One request as `vdkr pull` sends it from this machine.
async fn request(settings: &Settings, ask: &Ask) -> Result<Answer, Error> {
    let Some(prefix) = registry::configured(settings)? else {
        return Err(Error::usage("no registry is set"));
    };
    let host = registry::host_side(prefix.host());
    let namespace = prefix.namespace().unwrap_or_default();
    let login = logins::given(settings)?.for_host(&host, namespace, Some(&prefix))?;
    let logged_in = login != Credential::Anonymous;
    let own = host.clone();
    let credentials = move |asked: &Host| {
        Ok(match *asked == own {
            true => login.clone(),
            false => Credential::Anonymous,
        })
    };
    let client = registry::client(settings, Arc::new(credentials))?;
    let asked = async {
        let Ask::Image(image) = ask else {
            return client.ping(&host).await.map(|()| true);
        };
        let unusable = |error: ReferenceError| TransferError::Config(format!("{image}: {error}"));
        let image = Reference::parse(image).map_err(unusable)?;
        let repository = Repository::new(host.clone(), image.repository()).map_err(unusable)?;
        let found = client.find_manifest(&repository, image.selector()).await?;
        Ok(found.is_some())
    };
    let found = tokio::time::timeout(PATIENCE, asked).await;
    let found = found.unwrap_or_else(|_| {
        Err(TransferError::Unreachable {
            url: host.to_string(),
            reason: format!("no answer within {} seconds", PATIENCE.as_secs()),
        })
    });
    Ok(Answer { logged_in, found })
}

fn told(ours: &Registry, set: &str, ask: &Ask, answer: Answer) -> Check {
    let host = &ours.host;
    let error = match (answer.found, ask) {
        (Ok(true), Ask::Image(image)) => {
            let found = format!("pulls from {set} first: its settings, CA and login got {image}");
            return Check::ok("vdkr", found);
        }
        (Ok(true), _) => {
            let found = format!(
                "pulls from {set} first: its settings, CA and login are let in; there is no image to \
                 fetch yet"
            );
            return Check::ok("vdkr", found);
        }
        (Ok(false), _) => {
            return Check::warn(
                "vdkr",
                "was told that there is no such image, which other clients see",
                "another registry or a mirror answers it; look at its settings: vdkr vconfig",
            );
        }
        (Err(error), _) => error,
    };
    let advice = match &error {
        TransferError::Tls { .. } => match &ours.ca {
            Some(ca) => format!("vdkr vconfig ca-cert {}", ca.display()),
            None => format!(
                "vdkr vconfig ca-cert FILE, with the certificate of its CA; where nobody shall \
                 verify it: vdkr vconfig insecure-registry {host}"
            ),
        },
        TransferError::Denied { .. } | TransferError::Credentials { .. } => match &ours.own_login {
            Some(own) => format!("vdkr login {own}"),
            None => format!("vdkr login {host}"),
        },
        _ => "look at its settings: vdkr vconfig".to_owned(),
    };
    let found = match &error {
        TransferError::Denied { .. } if answer.logged_in => {
            format!("cannot pull: {host} refuses its login")
        }
        TransferError::Denied { .. } => format!("cannot pull: it has no login for {host}"),
        error => format!("cannot pull: {}", printable(&error.to_string())),
    };
    Check::warn("vdkr", found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let env =
            |name: &str| (name == "CONTAINER_REGISTRY_STORAGE").then(|| "/nonexistent".to_owned());
        Config::resolve(&vec![], &env).unwrap()
    }

    #[test]
    fn vdkr_should_know_this_registry() {
        let config = config();
        for (set, verdict) in [
            ("localhost:5000/yocto", Verdict::Ok),
            ("http://localhost:5000/yocto/", Verdict::Ok),
            ("10.0.2.2:5000/yocto", Verdict::Ok),
            ("", Verdict::Warn),
            ("none", Verdict::Warn),
            ("localhost:5001/yocto", Verdict::Warn),
        ] {
            assert_eq!(named(&config, set).unwrap().verdict, verdict, "{set}");
        }
    }

    #[test]
    fn what_to_do_follows_from_the_answer() {
        let secure = Registry {
            host: Host::parse("localhost:5000").unwrap(),
            ca: Some("/s/pki/ca.crt".into()),
            plain: false,
            own_login: Some("-u yocto --password-stdin h < /f".into()),
        };
        let foreign = Registry {
            host: secure.host.clone(),
            ca: None,
            plain: false,
            own_login: None,
        };
        let image = Ask::Image("localhost:5000/yocto/app:v1".into());
        let check = |registry: &Registry, found| {
            let answer = Answer {
                logged_in: false,
                found,
            };
            told(registry, "localhost:5000/yocto", &image, answer)
        };
        let tls = || TransferError::Tls {
            url: "https://localhost:5000".into(),
            reason: "UnknownIssuer".into(),
        };
        for (registry, advice) in [
            (&secure, "vdkr vconfig ca-cert /s/pki/ca.crt"),
            (&foreign, "vdkr vconfig ca-cert FILE"),
        ] {
            let refused = check(registry, Err(tls()));
            assert_eq!(refused.verdict, Verdict::Warn);
            assert!(refused.advice.unwrap().starts_with(advice));
        }
        let good = check(&secure, Ok(true));
        assert_eq!(good.verdict, Verdict::Ok);
        assert!(good.found.contains("yocto/app:v1"), "{}", good.found);
        assert_eq!(check(&secure, Ok(false)).verdict, Verdict::Warn);
    }
}
