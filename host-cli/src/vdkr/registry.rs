//! How a request tells the agent to reach registries: the user's words, translated for the guest.

use std::{fs, io::Read as _, path::Path, sync::Arc};

use vdkr_core::{
    candidates::{RegistryPrefix, Scheme},
    channel::message::{HostCredential, Mirror, RegistrySettings},
    credentials::Credential,
    loopback::{
        DEFAULT_GATEWAY, LOCAL_HOST, from_gateway, translate_host, translate_insecure,
        translate_prefix, translate_reference, translate_url,
    },
    reference::{Host, Reference, is_image_id},
};
use vdkr_transfer::{Client, ClientConfig, CredentialSource, Roots, pull::client_config};

use super::{
    baked::Baked,
    config::NO_REGISTRY,
    error::{Error, Result},
    logins, roots,
    session::Session,
    settings::{Origin, Settings},
    value::{check_insecure, list, parse_bool},
    words::say,
};

/// Longest file of certificates that is read, in bytes.
const MAX_CA: u64 = 1024 * 1024;

/// How registries are reached, for one request; wrong settings are told before a machine is started
/// for nothing. To be called once: a password on standard input is read here.
pub fn for_request(settings: &Settings, names: &[&str]) -> Result<RegistrySettings> {
    with_logins(settings, &logins::given(settings)?, names)
}

/// As [`for_request`], with logins that were read already.
pub fn with_logins(
    settings: &Settings,
    given: &logins::Given,
    names: &[&str],
) -> Result<RegistrySettings> {
    let baked = Baked::of(settings);
    let mut request = complete(settings, &baked)?;
    let prefix = prefix(settings, baked.registry().as_deref())?;
    request.credentials = hosts(prefix.as_ref(), names)
        .into_iter()
        .map(|(host, namespace)| {
            let credential = given.for_host(&host, &namespace, prefix.as_ref())?;
            let host = translate_host(&host, DEFAULT_GATEWAY).to_string();
            Ok(HostCredential::new(host, credential))
        })
        .filter(|entry| !matches!(entry, Ok(entry) if entry.credential() == Credential::Anonymous))
        .collect::<Result<_>>()?;
    request.public_roots = roots::of_this_computer();
    if settings.verbose {
        say(&describe(settings, &request));
    }
    Ok(request)
}

/// The configured registry as this computer sees it.
pub fn configured(settings: &Settings) -> Result<Option<RegistryPrefix>> {
    prefix(settings, Baked::of(settings).registry().as_deref())
}

/// The registries that a request for these names may ask, with the namespace whose logins are preferred.
fn hosts(prefix: Option<&RegistryPrefix>, names: &[&str]) -> Vec<(Host, String)> {
    let mut hosts: Vec<(Host, String)> = Vec::new();
    let configured = prefix.map(|prefix| {
        let namespace = prefix.namespace().unwrap_or_default();
        (prefix.host().clone(), namespace.to_owned())
    });
    hosts.extend(configured);
    for name in names {
        if let (false, Ok(reference)) = (is_image_id(name), Reference::parse(name)) {
            hosts.push((host_side(reference.host()), String::new()));
        }
    }
    let mut known: Vec<Host> = Vec::new();
    hosts.retain(|(host, _)| {
        let is_new = !known.contains(host);
        known.push(host.clone());
        is_new
    });
    hosts
}

/// A host as this computer calls it: the machine's gateway is this computer.
pub fn host_side(host: &Host) -> Host {
    let local = Host::parse("localhost").ok();
    match local.filter(|_| host.name() == DEFAULT_GATEWAY) {
        Some(local) => local.with_port(host.port()),
        None => host.clone(),
    }
}

/// A client for registries that this computer asks itself, by the settings that a pull has.
pub fn client(settings: &Settings, credentials: Arc<dyn CredentialSource>) -> Result<Client> {
    Ok(Client::new(ClientConfig {
        credentials,
        ..of_client(settings)?
    })?)
}

fn of_client(settings: &Settings) -> Result<ClientConfig> {
    let request = complete(settings, &Baked::of(settings))?;
    // Nothing is lent to a machine: the trust store is the one that programs here use.
    let mut roots = Roots::native();
    if let Some(pem) = &request.ca_pem {
        roots = roots.with_pem(pem.as_bytes(), "the file of --ca-cert")?;
    }
    Ok(ClientConfig {
        roots,
        ..client_config(&as_seen_here(&request))?
    })
}

/// The settings of a request as this computer follows them in the machine's place: what is the gateway
/// there, is this computer.
pub fn as_seen_here(settings: &RegistrySettings) -> RegistrySettings {
    let here = |text: &String| from_gateway(text, &settings.gateway);
    let mut seen = settings.clone();
    seen.registry = settings.registry.as_ref().map(here);
    // A network is one everywhere.
    let insecure = settings.insecure.iter().map(|entry| match entry {
        network if network.contains('/') => network.clone(),
        host => here(host),
    });
    seen.insecure = insecure.collect();
    for mirror in &mut seen.mirrors {
        mirror.host = here(&mirror.host);
        mirror.endpoints = mirror.endpoints.iter().map(here).collect();
    }
    for credential in &mut seen.credentials {
        credential.host = here(&credential.host);
    }
    if !settings.gateway.is_empty() {
        LOCAL_HOST.clone_into(&mut seen.gateway);
    }
    seen
}

/// Puts the settings together with what was written into the machine's image.
fn complete(settings: &Settings, baked: &Baked) -> Result<RegistrySettings> {
    let Some(defaults) = &baked.defaults else {
        return assemble(settings, baked.registry().as_deref());
    };
    let mut request = assemble(settings, None)?;
    request.take_defaults(defaults.clone());
    Ok(request)
}

/// Puts the settings together. `baked` is the registry that was written into the machine's image;
/// it holds when nobody named another one.
fn assemble(settings: &Settings, baked: Option<&str>) -> Result<RegistrySettings> {
    let prefix = prefix(settings, baked)?;
    let gateway = DEFAULT_GATEWAY;
    let (insecure, insecure_origin) = settings.value("insecure-registry");
    let mut insecure = list(insecure);
    for entry in &insecure {
        check_insecure(entry)
            .map_err(|reason| Error::usage(format!("{insecure_origin}: {reason}")))?;
    }
    let mut secure = parse_bool(settings.value("secure-registry").0).map_err(Error::usage)?;
    let ca_pem = settings
        .path("ca-cert")
        .map(|path| read_ca(&path))
        .transpose()?;
    if let Some(prefix) = &prefix {
        match prefix.scheme() {
            Some(Scheme::Http) => insecure.push(prefix.host().to_string()),
            Some(Scheme::Https) => secure = true,
            None => {}
        }
        // Whoever gives a certificate means the registry to be proved by it.
        let excepted = insecure
            .iter()
            .any(|entry| *entry == prefix.host().to_string());
        secure |= ca_pem.is_some() && !excepted;
        if secure && excepted {
            return Err(Error::usage(format!(
                "registry {} cannot be both secure and insecure",
                prefix.host()
            )));
        }
    }
    let mirrors = settings
        .config
        .mirrors()
        .into_iter()
        .map(|(host, urls)| Mirror {
            host,
            endpoints: urls.iter().map(|url| translate_url(url, gateway)).collect(),
        });
    Ok(RegistrySettings {
        registry: prefix.map(|prefix| translate_prefix(&prefix, gateway).to_string()),
        insecure: insecure
            .iter()
            .map(|entry| translate_insecure(entry, gateway))
            .collect(),
        secure,
        mirrors: mirrors.collect(),
        ca_pem,
        public_roots: None,
        credentials: Vec::new(),
        gateway: gateway.to_owned(),
        timeout: settings.value("timeout").0.parse().ok(),
        defaults: !settings.global.no_registry && settings.value("registry").0.is_empty(),
    })
}

/// A name that states a host of this computer means, inside the machine, the gateway.
pub fn translate_name(name: &str) -> String {
    if is_image_id(name) {
        return name.to_owned();
    }
    // A name that cannot be read is left for the agent to refuse.
    let Ok(reference) = Reference::parse(name) else {
        return name.to_owned();
    };
    if !reference.has_explicit_host() || !reference.host().is_loopback() {
        return name.to_owned();
    }
    match translate_reference(&reference, DEFAULT_GATEWAY) {
        Ok(translated) => translated.to_string(),
        Err(_) => name.to_owned(),
    }
}

/// A name or pattern as the machine of a session stores it: a host of this computer is its gateway
/// there, unless the machine is a target that has another way here, or none.
pub fn as_stored(session: &Session, name: &str) -> String {
    let gateway = session.connection.hello().gateway.as_deref();
    match session.is_target() && gateway != Some(DEFAULT_GATEWAY) {
        true => name.to_owned(),
        false => translate_pattern(name),
    }
}

/// As [`translate_name`], of what may be a pattern behind its host.
fn translate_pattern(text: &str) -> String {
    let Some((first, rest)) = text.split_once('/') else {
        return text.to_owned();
    };
    match Host::parse(first) {
        Ok(host) if host.is_loopback() => {
            format!("{}/{rest}", translate_host(&host, DEFAULT_GATEWAY))
        }
        _ => text.to_owned(),
    }
}

/// Checks a name before a machine is started for it.
pub fn check_name(name: &str) -> Result<()> {
    if !is_image_id(name) {
        Reference::parse(name).map_err(|error| Error::usage(format!("{name:?}: {error}")))?;
    }
    Ok(())
}

fn prefix(settings: &Settings, baked: Option<&str>) -> Result<Option<RegistryPrefix>> {
    if settings.global.no_registry {
        return Ok(None);
    }
    let (text, origin) = match (settings.value("registry"), baked) {
        (("", _), Some(baked)) => (baked, "the machine's image".to_owned()),
        (("", _), None) | ((NO_REGISTRY, _), _) => return Ok(None),
        ((text, origin), _) => (text, origin.to_string()),
    };
    let prefix = RegistryPrefix::parse(text)
        .map_err(|error| Error::usage(format!("{origin}: registry {text:?}: {error}")))?;
    Ok(Some(prefix))
}

fn read_ca(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_CA + 1).read_to_string(&mut text));
    let shown = path.display();
    match read {
        Ok(length) if length as u64 > MAX_CA => Err(Error::usage(format!(
            "{shown} is too long for a file of certificates"
        ))),
        Ok(_) if !text.contains("-----BEGIN CERTIFICATE-----") => {
            Err(Error::usage(format!("{shown} holds no PEM certificate")))
        }
        Ok(_) => Ok(text),
        Err(error) => Err(Error::usage(format!(
            "cannot read the certificates in {shown}: {error}"
        ))),
    }
}

/// What `--verbose` says about the registry of a request.
fn describe(settings: &Settings, request: &RegistrySettings) -> String {
    let origin = match settings.value("registry") {
        ("", _) => "machine image".to_owned(),
        (_, Origin::Default) => "default".to_owned(),
        (_, origin) => origin.to_string(),
    };
    match &request.registry {
        Some(registry) => format!("registry {registry} ({origin})"),
        None => "no registry".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use vdkr_transfer::Trust;

    use super::*;
    use crate::vdkr::{args::Global, settings::tests::settings};

    fn request(global: Global, variables: &[(&str, &str)], file: &str) -> Result<RegistrySettings> {
        assemble(
            &settings(global, variables, file).unwrap(),
            Some("baked:5000/ns"),
        )
    }

    fn with_registry(registry: &str) -> Global {
        Global {
            registry: Some(registry.into()),
            ..Global::default()
        }
    }

    #[test]
    fn the_option_beats_the_variable_beats_the_file_beats_the_image() {
        let file = "registry = \"file:1\"";
        let variable = [("VDKR_REGISTRY", "variable:1")];
        let registry =
            |global, variables: &[_], file| request(global, variables, file).unwrap().registry;
        assert_eq!(
            registry(with_registry("option:1"), &variable, file).unwrap(),
            "option:1"
        );
        assert_eq!(
            registry(Global::default(), &variable, file).unwrap(),
            "variable:1"
        );
        assert_eq!(registry(Global::default(), &[], file).unwrap(), "file:1");
        assert_eq!(
            registry(Global::default(), &[], "").unwrap(),
            "baked:5000/ns"
        );
        let none = Global {
            no_registry: true,
            ..Global::default()
        };
        assert_eq!(registry(none, &variable, file), None);
        assert_eq!(registry(with_registry("none"), &variable, file), None);
    }

    #[test]
    fn loopback_becomes_the_gateway_everywhere() {
        let global = Global {
            insecure_registry: vec!["localhost:5000".into(), "r.example.com".into()],
            ..with_registry("localhost:5000/yocto")
        };
        let file =
            "[mirror]\n\"docker.io\" = [\"http://127.0.0.1:5001\", \"https://m.example.com\"]";
        let request = request(global, &[], file).unwrap();
        assert_eq!(request.registry.as_deref(), Some("10.0.2.2:5000/yocto"));
        assert_eq!(request.insecure, ["10.0.2.2:5000", "r.example.com"]);
        assert_eq!(request.mirrors[0].host, "docker.io");
        assert_eq!(
            request.mirrors[0].endpoints,
            ["http://10.0.2.2:5001", "https://m.example.com"]
        );
        assert_eq!(request.gateway, "10.0.2.2");
        let far = super::assemble(
            &settings(with_registry("localhost.example.com/x"), &[], "").unwrap(),
            None,
        );
        assert_eq!(
            far.unwrap().registry.as_deref(),
            Some("localhost.example.com/x")
        );
    }

    #[test]
    fn schemes_decide_about_tls() {
        let plain = request(with_registry("http://r.example.com:5000/ns"), &[], "").unwrap();
        assert_eq!(plain.insecure, ["r.example.com:5000"]);
        assert!(!plain.secure);
        let tls = request(with_registry("https://localhost:5000/ns"), &[], "").unwrap();
        assert_eq!(tls.registry.as_deref(), Some("10.0.2.2:5000/ns"));
        assert!(tls.secure);
    }

    #[test]
    fn certificates() {
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.crt");
        let global = || Global {
            ca_cert: Some(ca.clone()),
            ..with_registry("localhost:5000")
        };
        assert!(
            request(global(), &[], "")
                .unwrap_err()
                .to_string()
                .contains("ca.crt")
        );
        fs::write(&ca, "nothing").unwrap();
        assert!(
            request(global(), &[], "")
                .unwrap_err()
                .to_string()
                .contains("no PEM")
        );
        let pem = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
        fs::write(&ca, pem).unwrap();
        let sent = request(global(), &[], "").unwrap();
        assert!(sent.secure);
        assert_eq!(sent.ca_pem.as_deref(), Some(pem));
        let both = Global {
            insecure_registry: vec!["localhost:5000".into()],
            ..global()
        };
        assert!(!request(both, &[], "").unwrap().secure);
        let contradiction = Global {
            secure_registry: true,
            insecure_registry: vec!["localhost:5000".into()],
            ..with_registry("localhost:5000")
        };
        assert!(request(contradiction, &[], "").is_err());
    }

    #[test]
    fn this_computer_asks_by_the_settings_of_a_pull() {
        let global = Global {
            insecure_registry: vec!["10.0.0.0/8".into(), "lab".into(), "10.0.2.2/32".into()],
            ..with_registry("http://localhost:5000/yocto")
        };
        let file = "timeout = \"7\"\n[mirror]\n\"docker.io\" = [\"http://localhost:5001\"]";
        let config = of_client(&settings(global, &[], file).unwrap()).unwrap();
        for (host, trust) in [
            ("10.1.2.3:5000", Trust::Insecure),
            ("lab:80", Trust::Insecure),
            ("localhost:5000", Trust::Insecure),
            ("localhost:5001", Trust::PlainOrTls),
            ("11.1.2.3:5000", Trust::Tls),
        ] {
            assert_eq!((config.trust)(&Host::parse(host).unwrap()), trust, "{host}");
        }
        assert_eq!(config.idle_timeout.as_secs(), 7);
        assert_eq!(config.mirrors.len(), 1);
        assert_eq!(config.mirrors[0].endpoints, ["http://localhost:5001"]);
        let secure = Global {
            secure_registry: true,
            ..with_registry("localhost:5000")
        };
        let config = of_client(&settings(secure, &[], "").unwrap()).unwrap();
        assert_eq!(
            (config.trust)(&Host::parse("localhost:5000").unwrap()),
            Trust::Tls
        );
    }

    #[test]
    fn logins_are_looked_up_for_the_registries_that_may_be_asked() {
        let prefix = RegistryPrefix::parse("localhost:5000/yocto").unwrap();
        let asked = |prefix, names: &[&str]| -> Vec<String> {
            let hosts = hosts(prefix, names).into_iter();
            hosts
                .map(|(host, namespace)| format!("{host} {namespace}"))
                .collect()
        };
        assert_eq!(
            asked(
                Some(&prefix),
                &["app", "10.0.2.2:5000/x", "ghcr.io/x/y", "0123456789ab"]
            ),
            ["localhost:5000 yocto", "docker.io ", "ghcr.io "]
        );
        assert_eq!(asked(None, &["localhost/x"]), ["localhost "]);
        assert_eq!(asked(None, &[]), [""; 0]);
    }

    #[test]
    fn patterns_on_this_computer() {
        for (text, expected) in [
            ("localhost:5000/yocto/x", "10.0.2.2:5000/yocto/x"),
            ("127.0.0.1:5000/*/x:1.?", "10.0.2.2:5000/*/x:1.?"),
            ("localhost/x", "10.0.2.2/x"),
            ("[::1]:5000/x", "10.0.2.2:5000/x"),
            ("localhost.example.com/x", "localhost.example.com/x"),
            ("yocto/x", "yocto/x"),
            ("localhost", "localhost"),
            ("*/x", "*/x"),
            ("", ""),
        ] {
            assert_eq!(translate_pattern(text), expected);
        }
    }

    #[test]
    fn names_on_this_computer() {
        for (name, expected) in [
            ("localhost:5000/yocto/app:1", "10.0.2.2:5000/yocto/app:1"),
            ("127.0.0.1:5000/app", "10.0.2.2:5000/app"),
            ("app", "app"),
            ("docker.io/library/app", "docker.io/library/app"),
            ("0123456789ab", "0123456789ab"),
            ("Foo//bar:", "Foo//bar:"),
        ] {
            assert_eq!(translate_name(name), expected);
        }
        assert!(check_name("Foo//bar:").is_err() && check_name("0123456789ab").is_ok());
    }
}
