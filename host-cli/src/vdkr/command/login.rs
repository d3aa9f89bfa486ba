//! `vdkr login`: a password for a registry, checked there and kept on this computer.

use vdkr_core::reference::Host;

use crate::{
    out,
    registry_cli::{
        auth::store,
        command::login::{self, LoginArgs as Shared},
        error::WithExit as _,
    },
    vdkr::{
        error::{Error, Result},
        image_args::LoginArgs,
        registry,
        session::interruptible,
        settings::Settings,
        words::say,
    },
};

/// Logs in: nothing is kept unless the registry takes it.
pub async fn run(settings: &Settings, args: &LoginArgs) -> Result<u8> {
    let host = host_of(settings, args.host.as_deref())?;
    let path = login::file_of(settings.global.config.as_ref())?;
    if args.password.is_some() {
        say(
            "everybody on this computer can see a password on the command line; use \
             --password-stdin",
        );
    }
    let shared = Shared {
        host: None,
        username: args.username.clone(),
        password: args.password.clone(),
        password_stdin: args.password_stdin,
        authfile: None,
    };
    let credential = login::credential(&shared, &host)?;
    let asked = interruptible(async {
        let client = |source| {
            registry::client(settings, source).map_err(|error| {
                let exit = error.exit();
                Err::<(), _>(anyhow::anyhow!("{error}"))
                    .exit(exit)
                    .unwrap_err()
            })
        };
        Ok(login::check(&host, &credential, client).await?)
    })
    .await?;
    if !asked {
        say(&format!(
            "{host} asked for no credentials, so these are not proved to be right"
        ));
    }
    let kept = login::keep(&path, &host, &credential)?;
    out!("Login Succeeded");
    eprintln!("{kept}");
    if store::is_exposed(&path) {
        say(&format!("others can read {}", path.display()));
    }
    Ok(0)
}

/// The registry that the user means: the configured one unless it is named, else Docker Hub.
pub fn host_of(settings: &Settings, typed: Option<&str>) -> Result<Host> {
    let Some(typed) = typed else {
        let configured = registry::configured(settings)?;
        return Ok(configured.map_or_else(Host::docker_hub, |prefix| prefix.host().clone()));
    };
    let bare = typed
        .strip_prefix("https://")
        .or_else(|| typed.strip_prefix("http://"))
        .unwrap_or(typed);
    let bare = bare
        .strip_suffix("/v1/")
        .unwrap_or(bare)
        .trim_end_matches('/');
    let host = Host::parse(bare)
        .map_err(|error| Error::usage(format!("{typed:?} is no registry's host: {error}")))?;
    Ok(match host.name() {
        "index.docker.io" | "registry-1.docker.io" => Host::docker_hub(),
        _ => registry::host_side(&host),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdkr::{args::Global, settings::tests::settings};

    #[test]
    fn hosts_as_people_type_them() {
        let global = || Global {
            registry: Some("localhost:5000/yocto".into()),
            ..Global::default()
        };
        let with = settings(global(), &[], "").unwrap();
        let none = settings(
            Global {
                no_registry: true,
                ..Global::default()
            },
            &[],
            "",
        )
        .unwrap();
        for (settings, typed, host) in [
            (&with, None, "localhost:5000"),
            (&none, None, "docker.io"),
            (&with, Some("ghcr.io"), "ghcr.io"),
            (&with, Some("https://ghcr.io/"), "ghcr.io"),
            (&with, Some("https://index.docker.io/v1/"), "docker.io"),
            (&with, Some("10.0.2.2:5000"), "localhost:5000"),
        ] {
            assert_eq!(host_of(settings, typed).unwrap().to_string(), host);
        }
        assert!(host_of(&with, Some("ghcr.io/team")).is_err());
    }
}
