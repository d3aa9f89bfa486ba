//! Credentials of a registry: the modes none, home, authfile, credsfile and env, and what is given
//! on the command line. Source and destination never mix: each gets a source of its own.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use vdkr_core::credentials::{
    Credential, DockerConfig, MAX_FILE, Secret, StepSource, helper_server, parse_credsfile,
    parse_docker_config, parse_helper_answer,
};
use vdkr_core::reference::Host;
use vdkr_transfer::{CredentialSource, anonymous};

use super::args::{AuthArgs, ImportArgs};
use super::config::Config;
use super::error::WithExit as _;
use crate::exit::Exit;

/// Most that is read of a credential helper's answer, in bytes.
const MAX_HELPER: u64 = 64 * 1024;

/// Credentials for the configured registry, for commands without options of their own.
pub fn configured(config: &Config) -> Result<Arc<dyn CredentialSource>> {
    destination(config, &AuthArgs::default())
}

/// Credentials for the configured registry. They are given to its host and to no other.
pub fn destination(config: &Config, args: &AuthArgs) -> Result<Arc<dyn CredentialSource>> {
    let found = by_mode(config, args).exit(Exit::Usage)?;
    Ok(only_for(config.registry()?.host().clone(), found))
}

/// Credentials for the source of an import.
pub fn source(args: &ImportArgs) -> Result<Arc<dyn CredentialSource>> {
    let given = [
        args.src_authfile.is_some(),
        args.src_credsfile.is_some(),
        args.src_creds.is_some(),
        args.src_token.is_some(),
    ];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(anyhow!(
            "give one of --src-authfile, --src-credsfile, --src-creds, --src-token"
        ))
        .exit(Exit::Usage);
    }
    let host = vdkr_core::reference::Reference::parse(&args.source)?
        .host()
        .clone();
    let found = if let Some(path) = &args.src_authfile {
        docker_config(path)
    } else if let Some(path) = &args.src_credsfile {
        credsfile(path)
    } else if let Some(pair) = &args.src_creds {
        pair_of(pair)
    } else if let Some(token) = &args.src_token {
        bearer(token)
    } else {
        Ok(Found::Nothing)
    };
    Ok(only_for(host, found.exit(Exit::Usage)?))
}

/// What a mode found.
enum Found {
    Nothing,
    Fixed(Credential),
    File(PathBuf, DockerConfig),
}

fn only_for(registry: Host, found: Found) -> Arc<dyn CredentialSource> {
    match found {
        Found::Nothing => anonymous(),
        Found::Fixed(credential) => Arc::new(move |host: &Host| {
            Ok(if *host == registry {
                credential.clone()
            } else {
                Credential::Anonymous
            })
        }),
        Found::File(path, file) => Arc::new(move |host: &Host| {
            if *host != registry {
                return Ok(Credential::Anonymous);
            }
            look_up(&file, host).map_err(|error| format!("{}: {error:#}", path.display()))
        }),
    }
}

fn by_mode(config: &Config, args: &AuthArgs) -> Result<Found> {
    let mode = match args {
        AuthArgs { creds: Some(_), .. } => "creds",
        AuthArgs { token: Some(_), .. } => "token",
        AuthArgs {
            credsfile: Some(_), ..
        } => "credsfile",
        AuthArgs {
            authfile: Some(_), ..
        } => "authfile",
        AuthArgs {
            use_home_auth: true,
            ..
        } => "home",
        AuthArgs {
            auth_mode: Some(mode),
            ..
        } => mode,
        _ => config.value("auth_mode").unwrap_or("none"),
    };
    let path = |given: &Option<PathBuf>, name: &str| {
        given
            .clone()
            .or_else(|| config.value(name).map(PathBuf::from))
            .with_context(|| format!("auth mode {name} needs a file: pass --{name} FILE"))
    };
    match mode {
        "none" | "" => Ok(Found::Nothing),
        "home" => {
            let home = std::env::var_os("DOCKER_CONFIG")
                .map(PathBuf::from)
                .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker")))
                .context("auth mode home: no home directory is known")?;
            docker_config(&home.join("config.json"))
                .context("auth mode home; log in with docker login, or use another mode")
        }
        "authfile" => docker_config(&path(&args.authfile, "authfile")?),
        "credsfile" => credsfile(&path(&args.credsfile, "credsfile")?),
        "env" => {
            if let Some(token) = config.value("token") {
                return bearer(token);
            }
            match (config.value("user"), config.value("password")) {
                (Some(user), Some(password)) => pair_of(&format!("{user}:{password}")),
                _ => Err(anyhow!(
                    "auth mode env needs CONTAINER_REGISTRY_TOKEN, or CONTAINER_REGISTRY_USER and CONTAINER_REGISTRY_PASSWORD"
                )),
            }
        }
        "creds" => pair_of(args.creds.as_deref().unwrap_or_default()),
        "token" => bearer(args.token.as_deref().unwrap_or_default()),
        other => Err(anyhow!(
            "unknown auth mode {other:?}; known: none, home, authfile, credsfile, env"
        )),
    }
}

fn pair_of(pair: &str) -> Result<Found> {
    Ok(Found::Fixed(
        Credential::from_pair(pair).context("credentials are written USER:PASSWORD")?,
    ))
}

fn bearer(token: &str) -> Result<Found> {
    if token.trim().is_empty() {
        return Err(anyhow!("the token is empty"));
    }
    Ok(Found::Fixed(Credential::Bearer(Secret::new(token.trim()))))
}

fn docker_config(path: &Path) -> Result<Found> {
    let file = parse_docker_config(&read(path)?)
        .with_context(|| format!("auth file {}", path.display()))?;
    Ok(Found::File(path.to_owned(), file))
}

fn credsfile(path: &Path) -> Result<Found> {
    let credential = parse_credsfile(&read(path)?)
        .with_context(|| format!("credentials file {}", path.display()))?;
    Ok(Found::Fixed(credential))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?
            .take(MAX_FILE as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// What the file knows, asking credential helpers where it names them.
fn look_up(file: &DockerConfig, host: &Host) -> Result<Credential> {
    for step in file.steps(host, "")? {
        let credential = match step.source {
            StepSource::Stored(credential) => credential,
            StepSource::Helper(name) => ask_helper(&name, host)?,
        };
        if credential != Credential::Anonymous {
            return Ok(credential);
        }
    }
    Ok(Credential::Anonymous)
}

fn ask_helper(name: &str, host: &Host) -> Result<Credential> {
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot run {program}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that ends without reading gave its answer all the same.
        let _ = stdin.write_all(helper_server(host).as_bytes());
    }
    let mut answer = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_HELPER + 1).read_to_end(&mut answer)?;
    }
    let status = child.wait()?;
    parse_helper_answer(&answer, status.success()).context(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn config(pairs: &'static [(&'static str, &'static str)]) -> Config {
        let env = |name: &str| {
            let base = [
                ("CONTAINER_REGISTRY_STORAGE", "/nonexistent"),
                ("CONTAINER_REGISTRY_URL", "reg.example:5000"),
            ];
            pairs
                .iter()
                .chain(&base)
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        };
        Config::resolve(&vec![], &env).unwrap()
    }

    #[test]
    fn credentials_go_to_their_registry_alone() {
        let args = AuthArgs {
            creds: Some("me:secret".into()),
            ..AuthArgs::default()
        };
        let source = destination(&config(&[]), &args).unwrap();
        assert!(matches!(
            source.credential(&host("reg.example:5000")).unwrap(),
            Credential::Basic { username, .. } if username == "me"
        ));
        for other in ["reg.example:5001", "reg.example", "evil.example:5000"] {
            assert_eq!(
                source.credential(&host(other)).unwrap(),
                Credential::Anonymous
            );
        }
    }

    #[test]
    fn env_prefers_a_token_and_is_asked_only_in_its_mode() {
        let env = config(&[
            ("CONTAINER_REGISTRY_AUTH_MODE", "env"),
            ("CONTAINER_REGISTRY_TOKEN", "t"),
            ("CONTAINER_REGISTRY_USER", "u"),
        ]);
        let source = configured(&env).unwrap();
        let credential = source.credential(&host("reg.example:5000")).unwrap();
        assert_eq!(credential, Credential::Bearer(Secret::new("t")));
        let none = config(&[("CONTAINER_REGISTRY_TOKEN", "t")]);
        let source = configured(&none).unwrap();
        assert_eq!(
            source.credential(&host("reg.example:5000")).unwrap(),
            Credential::Anonymous
        );
    }

    #[test]
    fn useless_files_and_modes_are_errors_that_name_them() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("creds");
        std::fs::write(&empty, "# nothing\n").unwrap();
        for args in [
            AuthArgs {
                auth_mode: Some("magic".into()),
                ..AuthArgs::default()
            },
            AuthArgs {
                auth_mode: Some("env".into()),
                ..AuthArgs::default()
            },
            AuthArgs {
                auth_mode: Some("authfile".into()),
                ..AuthArgs::default()
            },
            AuthArgs {
                authfile: Some(dir.path().join("missing")),
                ..AuthArgs::default()
            },
            AuthArgs {
                credsfile: Some(empty),
                ..AuthArgs::default()
            },
            AuthArgs {
                creds: Some("no-colon".into()),
                ..AuthArgs::default()
            },
        ] {
            let error = destination(&config(&[]), &args).err().expect("an error");
            assert_eq!(
                crate::registry_cli::error::exit_of(&error),
                Exit::Usage,
                "{error:#}"
            );
        }
    }

    #[test]
    fn errors_do_not_show_secrets() {
        let args = AuthArgs {
            creds: Some("hunter2".into()),
            ..AuthArgs::default()
        };
        let error = destination(&config(&[]), &args).err().expect("an error");
        assert!(!format!("{error:#} {error:?}").contains("hunter2"));
    }
}
