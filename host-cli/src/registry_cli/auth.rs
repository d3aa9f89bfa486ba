//! Credentials of a registry: the modes login, none, home, authfile, credsfile and env, and what is
//! given on the command line. Source and destination never mix: each gets a source of its own.
//!
//! One walk over the places where credentials may lie serves the commands and `auth explain` alike,
//! so that the explanation is what happens.

pub mod helper;
pub mod store;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use vdkr_core::credentials::{
    Credential, DockerConfig, Secret, StepSource, parse_credsfile, parse_docker_config,
};
use vdkr_core::reference::Host;
use vdkr_transfer::CredentialSource;

use self::store::Candidate;
use super::args::{AuthArgs, SourceArgs};
use super::config::Config;
use super::error::WithExit as _;
use super::secure;
use crate::exit::Exit;

/// Mode when none is set: what `login`, docker, podman or skopeo stored, looked up when a registry
/// asks for it.
pub const DEFAULT_MODE: &str = "login";

/// Credentials for the configured registry, for commands without options of their own.
pub fn configured(config: &Config) -> Result<Arc<dyn CredentialSource>> {
    destination(config, &AuthArgs::default())
}

/// Credentials for the configured registry. They are given to its host and to no other.
pub fn destination(config: &Config, args: &AuthArgs) -> Result<Arc<dyn CredentialSource>> {
    Ok(Arc::new(sources(config, args)?))
}

/// Credentials for a registry that a command line names. What the options say is for it; a fixed
/// login of the configuration is for the configured registry alone.
pub fn named(config: &Config, args: &AuthArgs, host: &Host) -> Result<Arc<dyn CredentialSource>> {
    Ok(Arc::new(sources_for(config, args, host)?))
}

/// The sources behind [`named`].
pub fn sources_for(config: &Config, args: &AuthArgs, host: &Host) -> Result<Sources> {
    if *host == *config.registry()?.host() {
        return sources(config, args);
    }
    let (mode, _) = mode(config, args);
    let by_option = args.creds.is_some() || args.token.is_some() || args.credsfile.is_some();
    // These files tell their registries apart by themselves.
    let by_host = matches!(mode.as_str(), "login" | "home" | "authfile");
    let given = if by_option || by_host {
        by_mode(config, args).exit(Exit::Usage)?
    } else {
        Given::Nothing("the configured login is for the configured registry alone")
    };
    Ok(Sources {
        registry: host.clone(),
        namespace: String::new(),
        given,
    })
}

/// Credentials for a registry that is read from: what the options say, else what was stored for it
/// by a login.
pub fn source(
    config: &Config,
    args: &SourceArgs,
    host: &Host,
) -> Result<Arc<dyn CredentialSource>> {
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
    let given = if let Some(path) = &args.src_authfile {
        docker_config(path)
    } else if let Some(path) = &args.src_credsfile {
        credsfile(path)
    } else if let Some(pair) = &args.src_creds {
        pair_of("option --src-creds", pair.expose())
    } else if let Some(token) = &args.src_token {
        bearer("option --src-token", token.expose())
    } else {
        return named(config, &AuthArgs::default(), host);
    };
    Ok(Arc::new(Sources {
        registry: host.clone(),
        namespace: String::new(),
        given: given.exit(Exit::Usage)?,
    }))
}

/// Where the credentials of one registry come from.
pub struct Sources {
    registry: Host,
    /// Entries of credential files for this namespace are preferred to those of the host.
    namespace: String,
    given: Given,
}

/// What a mode leads to.
enum Given {
    /// No credentials, and why.
    Nothing(&'static str),
    /// One credential, and where it was given.
    Fixed(String, Credential),
    /// A file that was named.
    File(PathBuf, DockerConfig),
    /// Files that may hold something, read when a registry asks.
    Stores(Vec<Candidate>),
}

/// What came of one place where credentials may lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The option, variable, file or helper.
    pub source: String,
    /// What came of it.
    pub verdict: Verdict,
    /// Why.
    pub reason: String,
}

/// What came of a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Its credential is sent.
    Used,
    /// It was not asked or had nothing.
    Unused,
    /// It is broken, and nothing weaker is tried.
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Used => "used",
            Self::Unused => "not used",
            Self::Failed => "failed",
        })
    }
}

/// The sources for the configured registry.
pub fn sources(config: &Config, args: &AuthArgs) -> Result<Sources> {
    let registry = config.registry()?;
    let given = match own_password(config, args)? {
        Some(given) => given,
        None => by_mode(config, args).exit(Exit::Usage)?,
    };
    Ok(Sources {
        registry: registry.host().clone(),
        namespace: registry.namespace().unwrap_or_default().to_owned(),
        given,
    })
}

/// In secure mode the local server's password, where nobody says which credentials to use.
fn own_password(config: &Config, args: &AuthArgs) -> Result<Option<Given>> {
    let (mode, _) = mode(config, args);
    if !matches!(mode.as_str(), "none" | DEFAULT_MODE) {
        return Ok(None);
    }
    let source = format!("secure mode, {}", secure::password_file(config).display());
    Ok(secure::stored(config)?.map(|credential| Given::Fixed(source, credential)))
}

/// The sources for a registry that no option and no mode is for: what was stored by a login.
pub fn stored(host: &Host) -> Sources {
    Sources {
        registry: host.clone(),
        namespace: String::new(),
        given: Given::Stores(store::login_files(&environment)),
    }
}

/// The source for a registry in a file that the user named and that was read already.
pub fn in_file(host: &Host, namespace: &str, path: &Path, file: DockerConfig) -> Sources {
    Sources {
        registry: host.clone(),
        namespace: namespace.to_owned(),
        given: Given::File(path.to_owned(), file),
    }
}

impl CredentialSource for Sources {
    fn credential(&self, host: &Host) -> Result<Credential, String> {
        self.walk(host, &mut |_| {})
            .map_err(|error| format!("{error:#}"))
    }
}

impl Sources {
    /// The credential for a host, with what came of each place told to `tell` in order.
    pub fn walk(&self, host: &Host, tell: &mut dyn FnMut(Finding)) -> Result<Credential> {
        let mut say = |source: &str, verdict, reason: String| {
            tell(Finding {
                source: source.to_owned(),
                verdict,
                reason,
            });
        };
        if *host != self.registry {
            let reason = format!("is for {} alone", self.registry);
            say(&self.given.name(), Verdict::Unused, reason);
            return Ok(Credential::Anonymous);
        }
        match &self.given {
            Given::Nothing(why) => {
                say(&self.given.name(), Verdict::Unused, (*why).to_owned());
                Ok(Credential::Anonymous)
            }
            Given::Fixed(source, credential) => {
                say(source, Verdict::Used, credential.kind().to_owned());
                Ok(credential.clone())
            }
            Given::File(path, file) => {
                let file = Ok(Some(file.clone()));
                Ok(self.look_into(path, file, &mut say)?.unwrap_or_default())
            }
            Given::Stores(candidates) => {
                let mut found = None;
                for candidate in candidates {
                    let path = &candidate.path;
                    if found.is_some() {
                        let reason = "a stronger source came first".to_owned();
                        say(&path.display().to_string(), Verdict::Unused, reason);
                        continue;
                    }
                    found = self.look_into(path, read_candidate(candidate), &mut say)?;
                }
                Ok(found.unwrap_or_default())
            }
        }
    }

    /// Looks into one credential file, asking helpers where it names them.
    fn look_into(
        &self,
        path: &Path,
        file: Result<Option<DockerConfig>>,
        say: &mut dyn FnMut(&str, Verdict, String),
    ) -> Result<Option<Credential>> {
        let name = path.display().to_string();
        let steps = file.and_then(|file| {
            let Some(file) = file else { return Ok(None) };
            let steps = file
                .steps(&self.registry, &self.namespace)
                .with_context(|| name.clone())?;
            Ok(Some((file, steps)))
        });
        let (file, steps) = match steps {
            Ok(Some(known)) => known,
            Ok(None) => {
                say(&name, Verdict::Unused, "no such file".to_owned());
                return Ok(None);
            }
            Err(error) => {
                say(&name, Verdict::Failed, format!("{error:#}"));
                return Err(error);
            }
        };
        if steps.is_empty() {
            say(&name, Verdict::Unused, no_entry(&file, &self.registry));
        }
        let mut found = None;
        for step in steps {
            let place = match &step.source {
                StepSource::Stored(_) => format!("{name}, entry {:?}", step.key),
                StepSource::Helper(helper) => {
                    format!("{name}, {:?}: docker-credential-{helper}", step.key)
                }
            };
            if found.is_some() {
                say(
                    &place,
                    Verdict::Unused,
                    "a stronger source came first".to_owned(),
                );
                continue;
            }
            let credential = match step.source {
                StepSource::Stored(credential) => credential,
                StepSource::Helper(helper) => match helper::get(&helper, &self.registry) {
                    Ok(credential) => credential,
                    Err(error) => {
                        say(&place, Verdict::Failed, format!("{error:#}"));
                        return Err(error.context(name));
                    }
                },
            };
            if credential == Credential::Anonymous {
                let reason = format!("knows no login for {}", self.registry);
                say(&place, Verdict::Unused, reason);
            } else {
                say(&place, Verdict::Used, credential.kind().to_owned());
                found = Some(credential);
            }
        }
        Ok(found)
    }
}

impl Given {
    fn name(&self) -> String {
        match self {
            Self::Nothing(_) => "auth mode".to_owned(),
            Self::Fixed(source, _) => source.clone(),
            Self::File(path, _) => path.display().to_string(),
            Self::Stores(_) => "logins".to_owned(),
        }
    }
}

fn no_entry(file: &DockerConfig, host: &Host) -> String {
    const SHOWN: usize = 5;
    let known: Vec<_> = file.keys().take(SHOWN).collect();
    let more = if file.keys().count() > SHOWN {
        ", …"
    } else {
        ""
    };
    if known.is_empty() {
        return format!("holds nothing for {host}");
    }
    format!(
        "holds nothing for {host}, but for {}{more}",
        known.join(", ")
    )
}

fn read_candidate(candidate: &Candidate) -> Result<Option<DockerConfig>> {
    let path = &candidate.path;
    match store::read(path) {
        Ok(bytes) => parse_docker_config(&bytes)
            .map(Some)
            .with_context(|| path.display().to_string()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !candidate.named => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// The mode that is in force and what set it.
pub fn mode(config: &Config, args: &AuthArgs) -> (String, String) {
    let option = |name: &str| (name.to_owned(), format!("option --{name}"));
    if args.creds.is_some() {
        return option("creds");
    }
    if args.token.is_some() {
        return option("token");
    }
    if args.credsfile.is_some() {
        return option("credsfile");
    }
    if args.authfile.is_some() {
        return option("authfile");
    }
    if args.use_home_auth {
        return ("home".to_owned(), "option --use-home-auth".to_owned());
    }
    if let Some(mode) = &args.auth_mode {
        return (mode.clone(), "option --auth-mode".to_owned());
    }
    match config.get("auth_mode") {
        Some((mode, origin)) if !mode.is_empty() => (mode.to_owned(), origin.to_string()),
        _ => (DEFAULT_MODE.to_owned(), "default".to_owned()),
    }
}

fn by_mode(config: &Config, args: &AuthArgs) -> Result<Given> {
    let path = |given: &Option<PathBuf>, name: &str| {
        given
            .clone()
            .or_else(|| config.value(name).map(PathBuf::from))
            .with_context(|| format!("auth mode {name} needs a file: pass --{name} FILE"))
    };
    let (mode, _) = mode(config, args);
    match mode.as_str() {
        "none" => Ok(Given::Nothing("no credentials are sent in this mode")),
        "login" => Ok(Given::Stores(store::login_files(&environment))),
        "home" => {
            let file = store::docker_file(&environment)
                .context("auth mode home: no home directory is known")?;
            docker_config(&file).context(
                "auth mode home; log in with container-registry login or docker login, or use another mode",
            )
        }
        "authfile" => docker_config(&path(&args.authfile, "authfile")?),
        "credsfile" => credsfile(&path(&args.credsfile, "credsfile")?),
        "env" => {
            if let Some(token) = config.value("token") {
                return bearer("environment CONTAINER_REGISTRY_TOKEN", token);
            }
            let source = "environment CONTAINER_REGISTRY_USER and CONTAINER_REGISTRY_PASSWORD";
            match (config.value("user"), config.value("password")) {
                (Some(user), _) if user.contains(':') => Err(anyhow!(
                    "CONTAINER_REGISTRY_USER: a user name cannot contain a colon"
                )),
                (Some(user), Some(password)) => Ok(Given::Fixed(
                    source.to_owned(),
                    Credential::Basic {
                        username: user.to_owned(),
                        password: Secret::new(password),
                    },
                )),
                _ => Err(anyhow!(
                    "auth mode env needs CONTAINER_REGISTRY_TOKEN, or CONTAINER_REGISTRY_USER and CONTAINER_REGISTRY_PASSWORD"
                )),
            }
        }
        "creds" => match &args.creds {
            Some(pair) => pair_of("option --creds", pair.expose()),
            None => Err(anyhow!("auth mode creds needs --creds USER:PASS")),
        },
        "token" => match &args.token {
            Some(token) => bearer("option --token", token.expose()),
            None => Err(anyhow!("auth mode token needs --token TOKEN")),
        },
        other => Err(anyhow!(
            "unknown auth mode {other:?}; known: login, none, home, authfile, credsfile, env"
        )),
    }
}

fn environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn pair_of(source: &str, pair: &str) -> Result<Given> {
    Ok(Given::Fixed(
        source.to_owned(),
        Credential::from_pair(pair).with_context(|| source.to_owned())?,
    ))
}

fn bearer(source: &str, token: &str) -> Result<Given> {
    if token.trim().is_empty() {
        return Err(anyhow!("the token is empty ({source})"));
    }
    Ok(Given::Fixed(
        source.to_owned(),
        Credential::Bearer(Secret::new(token.trim())),
    ))
}

fn docker_config(path: &Path) -> Result<Given> {
    let file = parse_docker_config(&read(path)?)
        .with_context(|| format!("auth file {}", path.display()))?;
    Ok(Given::File(path.to_owned(), file))
}

fn credsfile(path: &Path) -> Result<Given> {
    let credential = parse_credsfile(&read(path)?)
        .with_context(|| format!("credentials file {}", path.display()))?;
    Ok(Given::Fixed(path.display().to_string(), credential))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = store::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    if store::is_exposed(path) {
        eprintln!(
            "warning: everybody on this machine can read {}; mend it with: chmod 600 {0}",
            path.display()
        );
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
