//! Docker, podman, skopeo and buildah on this machine: each that is there is made to fetch an image's
//! manifest. What its files say is told with it, as the reason and as what to do.

mod probe;
mod settings;

use anyhow::Result;
use futures_util::future::join_all;
use vdkr_core::reference::Host;

use self::probe::{Client, Outcome};
use super::{Ask, Check, Places, Verdict};
use crate::registry_cli::config::Config;
use crate::registry_cli::error::printable;
use crate::registry_cli::secure::{self, Mode};
use crate::vm::locate::program;

/// Directories that an ordinary user's `PATH` often lacks.
const SYSTEM: [&str; 4] = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin"];

pub(super) async fn checks(config: &Config, places: &Places, ask: &Ask) -> Result<Vec<Check>> {
    let registry = Registry::of(config)?;
    // Which names a foreign registry would admit not to know is its own affair.
    let is_ours = registry.ca.is_some() || registry.plain;
    if !is_ours && !matches!(ask, Ask::Image(_)) {
        return Ok(Vec::new());
    }
    let registry = &registry;
    let clients = ["docker", "podman", "skopeo", "buildah"].map(|name| async move {
        let client = program(name, &SYSTEM).map(|program| Client { name, program });
        match client {
            Some(client) => Some(examine(&client, registry, places, ask).await),
            None if name == "docker" && program("dockerd", &SYSTEM).is_some() => {
                let why = registry.settings(name, places);
                Some(untried(why, "there is no docker command to try it with"))
            }
            None => None,
        }
    });
    Ok(join_all(clients).await.into_iter().flatten().collect())
}

/// What the clients are judged against.
pub(super) struct Registry {
    pub(super) host: Host,
    /// Its authority, in secure mode.
    pub(super) ca: Option<std::path::PathBuf>,
    /// It speaks plain HTTP.
    pub(super) plain: bool,
    /// How its own user logs in, in secure mode.
    pub(super) own_login: Option<String>,
}

impl Registry {
    pub(super) fn of(config: &Config) -> Result<Self> {
        let host = config.registry()?.host().clone();
        let secure = Mode::in_use(config)?.is_secure();
        let password = secure::password_file(config);
        Ok(Self {
            ca: secure.then(|| config.storage().join("pki/ca.crt")),
            plain: !secure && (host.is_loopback() || config.insecure_hosts()?.contains(&host)),
            own_login: (secure && password.is_file())
                .then(|| {
                    let user = secure::username(config)?;
                    anyhow::Ok(format!(
                        "-u {user} --password-stdin {host} < {}",
                        password.display()
                    ))
                })
                .transpose()?,
            host,
        })
    }

    fn settings(&self, name: &'static str, places: &Places) -> Check {
        match name {
            _ if self.ca.is_none() && !self.plain => {
                Check::ok(name, format!("treats {} as any registry", self.host))
            }
            "docker" => settings::docker(&self.host, self.ca.as_deref(), places),
            _ => settings::containers(name, &self.host, self.ca.as_deref(), places),
        }
    }
}

async fn examine(client: &Client, registry: &Registry, places: &Places, ask: &Ask) -> Check {
    let why = registry.settings(client.name, places);
    let image = match ask {
        // Its store cannot be put elsewhere for a moment, and it shares files and code with the others.
        _ if client.name == "buildah" => {
            return untried(why, "it reads the same files as podman and skopeo");
        }
        Ask::Nobody => return untried(why, "the registry does not answer"),
        // Docker's command says the same of an unknown image and of a registry that it cannot reach.
        Ask::Unknown(_) if client.name == "docker" => {
            return untried(why, "there is no image to ask for yet");
        }
        Ask::Image(image) | Ask::Unknown(image) => image,
    };
    let insecure = registry.plain && why.verdict == Verdict::Ok;
    let host = registry.host.to_string();
    let (outcome, login) = tokio::join!(probe::fetch(client, image, insecure), async {
        match client.name {
            "docker" => settings::docker_login(&registry.host),
            _ => probe::login(client, &host).await,
        }
    });
    if client.name != "docker"
        && matches!(outcome, Outcome::Fetched | Outcome::Unknown)
        && let Some(reason) = settings::forbidden(image, places)
    {
        return Check::warn(
            client.name,
            format!("cannot pull: {reason}"),
            "allow it there, see containers-policy.json(5); distributions have the file in containers-common",
        );
    }
    told(client.name, registry, ask, &outcome, login, &why)
}

/// What the files say, where nothing could be tried.
pub(super) fn untried(why: Check, reason: &str) -> Check {
    Check {
        found: format!("{} (by its files; not tried: {reason})", why.found),
        ..why
    }
}

/// A request and the files, as one finding.
fn told(
    name: &'static str,
    registry: &Registry,
    ask: &Ask,
    outcome: &Outcome,
    login: Option<String>,
    why: &Check,
) -> Check {
    let login = login.map(|user| printable(&user));
    let as_user = login
        .as_ref()
        .map_or_else(String::new, |user| format!(" as {user}"));
    let host = &registry.host;
    let by_hand = || match why.advice.clone() {
        Some(advice) => advice,
        None => format!("its files look right ({}); try it by hand", why.found),
    };
    match outcome {
        Outcome::Fetched => match ask {
            Ask::Image(image) => Check::ok(name, format!("can pull: it fetched {image}{as_user}")),
            _ => Check::ok(name, format!("can pull from {host}{as_user}")),
        },
        Outcome::Unknown if matches!(ask, Ask::Unknown(_)) => Check::ok(
            name,
            format!("is let in at {host}{as_user}; there is no image to fetch yet"),
        ),
        Outcome::Unknown => Check::warn(
            name,
            "was told that there is no such image, which other clients see",
            "another registry or a mirror answers it; look at its registries.conf",
        ),
        Outcome::Distrust(words) => {
            let reason = match why.verdict {
                Verdict::Ok => words.clone(),
                _ => why.found.clone(),
            };
            Check::warn(
                name,
                format!("cannot pull: {}", printable(&reason)),
                by_hand(),
            )
        }
        Outcome::NoLogin => {
            let found = match &login {
                Some(user) => format!("cannot pull: {host} refuses its login as {user}"),
                None => format!("cannot pull: it has no login for {host}"),
            };
            let advice = match &registry.own_login {
                Some(own) => format!("{name} login {own}"),
                None => format!("{name} login {host}"),
            };
            Check::warn(name, found, advice)
        }
        Outcome::Failed(words) => {
            let reason = match why.verdict {
                Verdict::Ok => words.clone(),
                _ => format!("{} ({words})", why.found),
            };
            Check::warn(
                name,
                format!("cannot pull: {}", printable(&reason)),
                by_hand(),
            )
        }
        Outcome::Late => Check::warn(name, "cannot pull: it did not end in time", by_hand()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> Registry {
        Registry {
            host: Host::parse("localhost:5000").unwrap(),
            ca: None,
            plain: true,
            own_login: None,
        }
    }

    #[test]
    fn what_a_client_did_counts_more_than_its_files() {
        let image = Ask::Image("localhost:5000/yocto/app:v1".into());
        let files_say_no = || Check::warn("skopeo", "insists on TLS", "bake it");
        let files_say_yes = || Check::ok("skopeo", "may use plain HTTP");
        let check = |outcome: Outcome, why: Check| {
            told("skopeo", &registry(), &image, &outcome, None, &why)
        };
        let good = check(Outcome::Fetched, files_say_no());
        assert_eq!((good.verdict, good.advice), (Verdict::Ok, None));
        // The files explain, and say what to do.
        let bad = check(Outcome::Distrust("x509: who".into()), files_say_no());
        assert_eq!(bad.found, "cannot pull: insists on TLS");
        assert_eq!(bad.advice.as_deref(), Some("bake it"));
        let odd = check(Outcome::Distrust("x509: who".into()), files_say_yes());
        assert_eq!(odd.found, "cannot pull: x509: who");
        assert!(odd.advice.unwrap().contains("may use plain HTTP"));
        for outcome in [
            Outcome::Unknown,
            Outcome::NoLogin,
            Outcome::Failed(String::new()),
            Outcome::Late,
        ] {
            assert_eq!(check(outcome, files_say_yes()).verdict, Verdict::Warn);
        }
    }

    #[test]
    fn an_empty_registry_and_a_login_are_told() {
        let unknown = Ask::Unknown("localhost:5000/yocto/none:latest".into());
        let why = || Check::ok("podman", "trusts it");
        let login = Some("me".to_owned());
        let in_secure_mode = Registry {
            own_login: Some("-u yocto --password-stdin h < /f".into()),
            ..registry()
        };
        let check = |outcome: Outcome, login: Option<String>| {
            told("podman", &in_secure_mode, &unknown, &outcome, login, &why())
        };
        let empty = check(Outcome::Unknown, login.clone());
        assert_eq!(empty.verdict, Verdict::Ok);
        assert!(empty.found.contains("as me"), "{}", empty.found);
        let refused = check(Outcome::NoLogin, login);
        assert!(refused.found.contains("as me"), "{}", refused.found);
        let none = check(Outcome::NoLogin, None);
        assert!(none.found.contains("has no login"), "{}", none.found);
        assert_eq!(
            none.advice.as_deref(),
            Some("podman login -u yocto --password-stdin h < /f")
        );
    }
}
