//! What the files of docker and of podman, skopeo and buildah say about the registry: why a client gets
//! through or does not, and what to write where.

use std::fs;
use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use vdkr_core::credentials::{Credential, StepSource, parse_docker_config};
use vdkr_core::reference::Host;

use super::super::{Check, Places};
use crate::registry_cli::auth::store;

/// Longest file of configuration that is read, in bytes.
const MAX_FILE: u64 = 1024 * 1024;
/// All authorities of a system in one file, where programs written in Go look for it.
const BUNDLES: [&str; 4] = [
    "ssl/certs/ca-certificates.crt",
    "pki/tls/certs/ca-bundle.crt",
    "ssl/ca-bundle.pem",
    "pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];

/// What docker's files say. `ca` is the authority of a registry in secure mode; without one it speaks
/// plain HTTP.
pub(super) fn docker(host: &Host, ca: Option<&Path>, places: &Places) -> Check {
    const ADVICE: &str =
        "as root: container-registry bake --rootfs / --profile docker; then restart docker";
    // The daemon counts 127.0.0.0/8 and ::1 among the insecure registries by itself: it tries TLS without
    // looking at the certificate, then plain HTTP.
    if host.is_loopback() {
        return Check::ok(
            "docker",
            format!("takes {host} as it is, with any certificate or none"),
        );
    }
    if let Some(ca) = ca {
        let dirs = [places.etc.join("docker/certs.d")];
        return trusted("docker", host, ca, &dirs, places, ADVICE);
    }
    let path = places.etc.join("docker/daemon.json");
    let insecure = match read(&path).and_then(|text| docker_insecure(&text)) {
        Ok(insecure) => insecure,
        Err(reason) => {
            let found = format!("{}: {reason}", path.display());
            return Check::fail("docker", found, "mend the file, then restart docker");
        }
    };
    if insecure.iter().any(|entry| docker_means(entry, host)) {
        return Check::ok("docker", format!("{} lists {host}", path.display()));
    }
    Check::warn(
        "docker",
        format!(
            "{} does not list {host} in insecure-registries",
            path.display()
        ),
        ADVICE,
    )
}

/// What the files of podman, skopeo or buildah, which are the same, say.
pub(super) fn containers(
    name: &'static str,
    host: &Host,
    ca: Option<&Path>,
    places: &Places,
) -> Check {
    const ADVICE: &str =
        "as root: container-registry bake --rootfs / --profile podman; or pass --tls-verify=false";
    let user = places
        .home
        .as_ref()
        .map(|home| home.join(".config/containers"));
    if let Some(ca) = ca {
        let dirs: Vec<_> = user
            .iter()
            .map(|dir| dir.join("certs.d"))
            .chain(["containers/certs.d", "docker/certs.d"].map(|dir| places.etc.join(dir)))
            .collect();
        // Beside the directory of keys, for this very option.
        let alone = ca.ancestors().nth(2).map(|storage| storage.join("certs"));
        let advice = format!(
            "as root: container-registry bake --rootfs / --profile podman; or pass --cert-dir {}",
            alone.unwrap_or_default().display()
        );
        return trusted(name, host, ca, &dirs, places, &advice);
    }
    let mut insecure = false;
    for path in registries_files(places, user.as_deref()) {
        match read(&path).and_then(|text| registries_insecure(&text, host)) {
            Ok(Some(said)) => insecure = said,
            Ok(None) => {}
            Err(reason) => {
                let found = format!("{}: {reason}", path.display());
                return Check::fail(name, found, "mend the file");
            }
        }
    }
    if insecure {
        return Check::ok(name, format!("may use plain HTTP with {host}"));
    }
    Check::warn(name, format!("insists on TLS with {host}"), ADVICE)
}

/// Whether one of the directories, or the system's trust store, makes a client trust the registry's CA.
fn trusted(
    subject: &'static str,
    host: &Host,
    ca: &Path,
    dirs: &[PathBuf],
    places: &Places,
    advice: &str,
) -> Check {
    let Ok(wanted) = read(ca) else {
        let found = format!("{} cannot be read", ca.display());
        return Check::fail(subject, found, "container-registry start makes it");
    };
    if wanted.trim().is_empty() {
        let found = format!("there is no CA at {}", ca.display());
        return Check::warn(subject, found, "container-registry start makes it");
    }
    let name = host.to_string();
    for dir in dirs {
        let dir = dir.join(&name);
        let files = fs::read_dir(&dir).into_iter().flatten().flatten();
        let mut certificates = files.filter(|file| file.path().extension() == Some("crt".as_ref()));
        if certificates
            .any(|file| read(&file.path()).is_ok_and(|text| text.contains(wanted.trim())))
        {
            return Check::ok(
                subject,
                format!("{} holds the registry's CA", dir.display()),
            );
        }
    }
    let bundles = match &places.ssl_cert_file {
        Some(file) => vec![file.clone()],
        None => BUNDLES.iter().map(|file| places.etc.join(file)).collect(),
    };
    for bundle in bundles {
        if read(&bundle).is_ok_and(|text| text.contains(wanted.trim())) {
            let found = format!("{} holds the registry's CA", bundle.display());
            return Check::ok(subject, found);
        }
    }
    Check::warn(subject, format!("does not know the CA of {host}"), advice)
}

/// Why podman, skopeo and buildah take no image of the registry, whoever lets them in: containers-policy.json(5)
/// forbids it, or is missing. `image` is `HOST/REPOSITORY:TAG`.
pub(super) fn forbidden(image: &str, places: &Places) -> Option<String> {
    let user = places.home.as_ref().map(|home| home.join(".config"));
    let dirs = user.into_iter().chain([places.etc.clone()]);
    let mut files = dirs.map(|dir| dir.join("containers/policy.json"));
    let Some(path) = files.find(|path| path.exists()) else {
        return Some("there is no policy.json, without which it takes no image".to_owned());
    };
    let policy = read(&path).and_then(|text| {
        serde_json::from_str::<serde_json::Value>(&text).map_err(|error| error.to_string())
    });
    match policy {
        Ok(policy) if rejects(&policy, image) => {
            Some(format!("{} rejects {image}", path.display()))
        }
        Ok(_) => None,
        Err(reason) => Some(format!("{}: {reason}", path.display())),
    }
}

/// Whether the requirements for the narrowest scope that holds an image reject it. What they say about
/// signatures is the client's to judge.
fn rejects(policy: &serde_json::Value, image: &str) -> bool {
    let mut scopes = vec![image.to_owned()];
    let mut name = match image.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => name,
        _ => image,
    };
    // One part after the other, down to the host, and the domains it is in.
    while let Some((parent, _)) = name.rsplit_once('/') {
        scopes.push(name.to_owned());
        name = parent;
    }
    scopes.push(name.to_owned());
    while let Some((_, parent)) = name.split_once('.') {
        scopes.push(format!("*.{parent}"));
        name = parent;
    }
    scopes.push(String::new());
    let docker = policy.pointer("/transports/docker");
    let found = docker.and_then(|docker| scopes.iter().find_map(|scope| docker.get(scope)));
    let list = found.or_else(|| policy.get("default"));
    let list = list.and_then(|list| list.as_array());
    list.into_iter()
        .flatten()
        .any(|requirement| requirement["type"] == "reject")
}

/// The user that docker would log in as, by its `config.json`: its command has no word for it.
pub(super) fn docker_login(host: &Host) -> Option<String> {
    let path = store::docker_file(&|name| std::env::var(name).ok())?;
    let file = parse_docker_config(&store::read(&path).ok()?).ok()?;
    let steps = file.steps(host, "").ok()?;
    steps.into_iter().find_map(|step| match step.source {
        StepSource::Stored(Credential::Basic { username, .. }) => Some(username),
        StepSource::Stored(_) => None,
        StepSource::Helper(helper) => Some(format!("docker-credential-{helper} says")),
    })
}

/// The files of registries.conf(5) in the order in which later ones win.
fn registries_files(places: &Places, user: Option<&Path>) -> Vec<PathBuf> {
    let own = user
        .map(|dir| dir.join("registries.conf"))
        .filter(|path| path.exists());
    let main = places.registries_conf.clone().or(own);
    let mut files = vec![main.unwrap_or_else(|| places.etc.join("containers/registries.conf"))];
    let user = user.map(|dir| dir.join("registries.conf.d"));
    for dir in [Some(places.etc.join("containers/registries.conf.d")), user] {
        let entries = dir
            .into_iter()
            .filter_map(|dir| fs::read_dir(dir).ok())
            .flatten();
        let mut parts: Vec<_> = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension() == Some("conf".as_ref()))
            .collect();
        parts.sort();
        files.extend(parts);
    }
    files
}

/// A file's text; one that is not there is empty.
fn read(path: &Path) -> Result<String, String> {
    let mut text = String::new();
    match fs::File::open(path) {
        Ok(file) => file
            .take(MAX_FILE)
            .read_to_string(&mut text)
            .map_err(|error| error.to_string())?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(text),
        Err(error) => return Err(error.to_string()),
    };
    Ok(text)
}

/// `insecure-registries` of docker's `daemon.json`.
fn docker_insecure(text: &str) -> Result<Vec<String>, String> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: serde_json::Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let list = value
        .get("insecure-registries")
        .and_then(|list| list.as_array());
    let entries = list
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.as_str());
    Ok(entries.map(str::to_owned).collect())
}

/// Whether an entry of `insecure-registries`, a host or a network, is for this registry.
fn docker_means(entry: &str, host: &Host) -> bool {
    let entry = entry
        .strip_prefix("http://")
        .or_else(|| entry.strip_prefix("https://"))
        .unwrap_or(entry);
    if let (Some((network, bits)), Some(address)) = (entry.split_once('/'), host.address())
        && let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>())
    {
        return in_network(address, network, bits);
    }
    entry.eq_ignore_ascii_case(&host.to_string())
}

fn in_network(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

/// What one file of registries.conf(5), in the new or the old form, says about plain HTTP with the
/// registry; `None` when it says nothing.
fn registries_insecure(text: &str, host: &Host) -> Result<Option<bool>, String> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let host = host.to_string();
    let mut best: Option<(usize, bool)> = None;
    let registries = table.get("registry").and_then(|list| list.as_array());
    for entry in registries.into_iter().flatten() {
        let text = |name: &str| entry.get(name).and_then(|value| value.as_str());
        let Some(prefix) = text("prefix")
            .filter(|p| !p.is_empty())
            .or_else(|| text("location"))
        else {
            continue;
        };
        let wild = prefix
            .strip_prefix("*")
            .is_some_and(|rest| rest.starts_with('.') && host.ends_with(rest));
        if (prefix == host || wild) && best.is_none_or(|(length, _)| length <= prefix.len()) {
            let insecure = entry.get("insecure").and_then(toml::Value::as_bool);
            best = Some((prefix.len(), insecure.unwrap_or(false)));
        }
    }
    let old = table
        .get("registries")
        .and_then(|table| table.get("insecure")?.get("registries")?.as_array());
    let listed = old.is_some_and(|list| list.iter().any(|entry| entry.as_str() == Some(&host)));
    Ok(best
        .map(|(_, insecure)| insecure)
        .or(listed.then_some(true)))
}

#[cfg(test)]
mod tests {
    use super::super::super::Verdict;
    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn places(dir: &Path) -> Places {
        Places {
            etc: dir.join("etc"),
            home: Some(dir.join("home")),
            registries_conf: None,
            ssl_cert_file: None,
        }
    }

    fn write(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn entries_of_docker() {
        for (entry, registry, expected) in [
            ("build:5000", "build:5000", true),
            ("http://build:5000", "build:5000", true),
            ("build", "build:5000", false),
            ("10.0.0.0/8", "10.1.2.3:5000", true),
            ("10.0.0.0/8", "11.1.2.3:5000", false),
            ("0.0.0.0/0", "11.1.2.3:5000", true),
            ("10.0.0.0/99", "10.1.2.3:5000", false),
            ("fd00::/8", "[fd00::1]:5000", true),
            ("10.0.0.0/8", "build:5000", false),
        ] {
            assert_eq!(
                docker_means(entry, &host(registry)),
                expected,
                "{entry} {registry}"
            );
        }
        assert_eq!(docker_insecure("").unwrap(), [""; 0]);
        assert!(docker_insecure("{").is_err());
    }

    #[test]
    fn registries_conf_in_both_forms() {
        let says = |text: &str| registries_insecure(text, &host("r.example:5000"));
        assert_eq!(says(""), Ok(None));
        assert_eq!(
            says("[[registry]]\nlocation='r.example:5000'\ninsecure=true"),
            Ok(Some(true))
        );
        assert_eq!(
            says("[[registry]]\nlocation='r.example:5000'"),
            Ok(Some(false))
        );
        assert_eq!(
            says("[[registry]]\nlocation='r.example'\ninsecure=true"),
            Ok(None)
        );
        let rewritten = "[[registry]]\nprefix='x'\nlocation='r.example:5000'\ninsecure=true";
        assert_eq!(says(rewritten), Ok(None));
        let wild = "[[registry]]\nprefix='*.example:5000'\ninsecure=true\n[[registry]]\nprefix='r.example:5000'";
        assert_eq!(says(wild), Ok(Some(false)));
        assert_eq!(
            says("[registries.insecure]\nregistries=['r.example:5000']"),
            Ok(Some(true))
        );
        assert!(says("[[registry").is_err());
    }

    #[test]
    fn policies_of_every_scope() {
        let accept = r#"[{"type":"insecureAcceptAnything"}]"#;
        let reject = r#"[{"type":"reject"}]"#;
        let image = "lab.example.com:5000/yocto/app:v1";
        for (default, scopes, expected) in [
            (accept, vec![], false),
            (reject, vec![], true),
            (reject, vec![("", accept)], false),
            (reject, vec![("lab.example.com:5000", accept)], false),
            (reject, vec![("lab.example.com", accept)], true),
            (reject, vec![("lab.example.com:5000/yocto", accept)], false),
            (reject, vec![("lab.example.com:5000/yo", accept)], true),
            (
                accept,
                vec![
                    ("lab.example.com:5000/yocto/app", reject),
                    ("lab.example.com:5000", accept),
                ],
                true,
            ),
            (accept, vec![(image, reject)], true),
            (reject, vec![("*.example.com:5000", accept)], false),
            (reject, vec![("*.com:5000", accept)], false),
            (reject, vec![("*.org:5000", accept)], true),
        ] {
            let scopes: Vec<_> = scopes
                .iter()
                .map(|(scope, list)| format!("\"{scope}\":{list}"))
                .collect();
            let text = format!(
                r#"{{"default":{default},"transports":{{"docker":{{{}}}}}}}"#,
                scopes.join(",")
            );
            let policy = serde_json::from_str(&text).unwrap();
            assert_eq!(rejects(&policy, image), expected, "{text}");
        }
        assert!(!rejects(&serde_json::Value::Null, "localhost:1/a:b"));

        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let says = || forbidden("localhost:5000/a:b", &places);
        assert!(says().unwrap().contains("no policy.json"));
        let system = places.etc.join("containers/policy.json");
        write(&system, &format!(r#"{{"default":{reject}}}"#));
        assert!(says().unwrap().contains("rejects"));
        write(&system, "{ torn");
        assert!(says().is_some());
        let own = dir.path().join("home/.config/containers/policy.json");
        write(&own, &format!(r#"{{"default":{accept}}}"#));
        assert_eq!(says(), None);
    }

    #[test]
    fn docker_needs_no_setting_for_loopback_and_one_for_others() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        assert_eq!(
            docker(&host("localhost:5000"), None, &places).verdict,
            Verdict::Ok
        );
        assert_eq!(
            docker(&host("build:5000"), None, &places).verdict,
            Verdict::Warn
        );
        let file = places.etc.join("docker/daemon.json");
        write(&file, r#"{"insecure-registries": ["build:5000"]}"#);
        assert_eq!(
            docker(&host("build:5000"), None, &places).verdict,
            Verdict::Ok
        );
        write(&file, "{ torn");
        assert_eq!(
            docker(&host("build:5000"), None, &places).verdict,
            Verdict::Fail
        );
    }

    #[test]
    fn later_files_win_for_podman() {
        let dir = tempfile::tempdir().unwrap();
        let places = places(dir.path());
        let verdict = || containers("podman", &host("localhost:5000"), None, &places).verdict;
        assert_eq!(verdict(), Verdict::Warn);
        let allow = "[[registry]]\nlocation='localhost:5000'\ninsecure=true\n";
        write(&places.etc.join("containers/registries.conf"), allow);
        assert_eq!(verdict(), Verdict::Ok);
        let part = places.etc.join("containers/registries.conf.d/50-x.conf");
        write(&part, "[[registry]]\nlocation='localhost:5000'\n");
        assert_eq!(verdict(), Verdict::Warn);
        let user = dir
            .path()
            .join("home/.config/containers/registries.conf.d/1.conf");
        write(&user, allow);
        assert_eq!(verdict(), Verdict::Ok);
    }

    #[test]
    fn a_ca_must_be_the_registrys_and_docker_needs_none_on_loopback() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = places(dir.path());
        let ca = dir.path().join("pki/ca.crt");
        let host = host("build:5000");
        let both = |places: &Places| {
            [
                docker(&host, Some(&ca), places).verdict,
                containers("podman", &host, Some(&ca), places).verdict,
            ]
        };
        assert_eq!(both(&places), [Verdict::Warn; 2]);
        write(&ca, "CERTIFICATE 1\n");
        assert_eq!(both(&places), [Verdict::Warn; 2]);
        let installed = places.etc.join("docker/certs.d/build:5000/ca.crt");
        write(&installed, "CERTIFICATE 2\n");
        assert_eq!(both(&places), [Verdict::Warn; 2]);
        write(&installed, "CERTIFICATE 1\n");
        assert_eq!(both(&places), [Verdict::Ok; 2]);
        // What the whole system trusts, they trust; unless they are sent elsewhere.
        write(&installed, "CERTIFICATE 2\n");
        let bundle = places.etc.join("ssl/certs/ca-certificates.crt");
        write(&bundle, "CERTIFICATE 3\nCERTIFICATE 1\n");
        assert_eq!(both(&places), [Verdict::Ok; 2]);
        places.ssl_cert_file = Some(installed);
        assert_eq!(both(&places), [Verdict::Warn; 2]);
        let own = Host::parse("localhost:5000").unwrap();
        assert_eq!(docker(&own, Some(&ca), &places).verdict, Verdict::Ok);
        let podman = containers("podman", &own, Some(&ca), &places);
        assert_eq!(podman.verdict, Verdict::Warn);
        let certs = dir.path().join("certs");
        let option = format!("--cert-dir {}", certs.display());
        assert!(podman.advice.unwrap().ends_with(&option));
    }
}
