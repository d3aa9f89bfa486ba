//! Podman, Buildah, Skopeo and CRI-O: a drop-in of `registries.conf.d`, and `certs.d`
//! (containers-registries.conf(5), containers-certs.d(5)).

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::fmt::Write as _;

use super::toml::{self, Kind, quoted};
use super::{Emission, EmitError, HEADER, Present, Profile, Search, Target};

/// The file that the drop-ins refine.
pub(super) const MAIN: &str = "/etc/containers/registries.conf";
/// Where the drop-ins are.
pub(super) const DROPS: &str = "/etc/containers/registries.conf.d";
const NAME: &str = "50-container-registry.conf";

pub(super) fn emit(
    profile: Profile,
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let own = format!("{DROPS}/{NAME}");
    let before = Before::read(present, &own, target, emission)?;
    let mut text = HEADER.to_owned();
    let ours = target.registry.to_string();
    let mut search: Vec<&str> = before
        .search
        .iter()
        .map(String::as_str)
        .filter(|other| *other != target.host)
        .collect();
    match target.search {
        Search::First => search.insert(0, &target.host),
        Search::Last => search.push(&target.host),
        Search::Off => {}
    }
    if target.search != Search::Off {
        text.push_str("\n# A drop-in replaces this list, so it repeats what was there.\n");
        let list: Vec<_> = search.iter().map(|entry| quoted(entry)).collect();
        let list = list.join(", ");
        let _ = writeln!(text, "unqualified-search-registries = [{list}]");
        if search.len() > 1 && before.enforcing && target.aliases.is_empty() {
            emission.note(format!(
                "short-name-mode is \"enforcing\": without a terminal, short names need an alias (--alias NAME) or their registry ({ours}/NAME)"
            ));
        }
    }
    let namespaced = ours != target.host && target.search != Search::Off;
    if namespaced {
        let (place, insecure) = (quoted(&ours), target.is_insecure);
        // The list takes hosts alone. A short name becomes HOST/NAME, and the mirror makes that mean
        // HOST/NAMESPACE/NAME where such an image exists. Full names skip it by their longer prefix.
        let _ = write!(
            text,
            "\n[[registry]]\nprefix = {place}\nlocation = {place}\ninsecure = {insecure}\n"
        );
    }
    let mut hosts: Vec<&str> = target.insecure_hosts().collect();
    if !hosts.contains(&target.host.as_str()) {
        hosts.insert(0, &target.host);
    }
    for host in hosts {
        let insecure = target.insecure.iter().any(|entry| entry == host);
        let location = quoted(host);
        let _ = writeln!(
            text,
            "\n[[registry]]\nlocation = {location}\ninsecure = {insecure}"
        );
        if namespaced && host == target.host {
            let mirror = quoted(&ours);
            let _ = writeln!(
                text,
                "\n# Short names are looked for in the namespace first.\n[[registry.mirror]]\nlocation = {mirror}\ninsecure = {insecure}"
            );
        }
    }
    if target.insecure_hosts().count() < target.insecure.len() {
        emission.note(
            "networks among the insecure registries mean nothing to podman and CRI-O; name the hosts"
                .to_owned(),
        );
    }
    if !target.aliases.is_empty() {
        text.push_str("\n[aliases]\n");
        for alias in &target.aliases {
            let image = quoted(&format!("{ours}/{alias}"));
            let _ = writeln!(text, "{} = {image}", quoted(alias));
        }
    }
    emission.file(profile, own, text, false);
    if let Some(authority) = &target.authority {
        let path = format!("/etc/containers/certs.d/{}/ca.crt", target.host);
        emission.file(profile, path, authority.clone(), false);
    }
    Ok(())
}

/// What is configured without us.
#[derive(Debug, Default)]
struct Before {
    search: Vec<String>,
    enforcing: bool,
}

impl Before {
    fn read(
        present: &Present,
        own: &str,
        target: &Target,
        emission: &mut Emission,
    ) -> Result<Self, EmitError> {
        let mut before = Self::default();
        let prefix = format!("{DROPS}/");
        // The map is in the order of paths, which is the order in which drop-ins are applied.
        let drops = present.iter().filter(|(path, _)| path.starts_with(&prefix));
        let files = present.get_key_value(MAIN).into_iter().chain(drops);
        for (path, text) in files.filter(|(path, _)| *path != own) {
            let later = path != MAIN && path.as_str() > own;
            let statements = toml::statements(text).map_err(|offset| {
                let line = text[..offset].matches('\n').count() + 1;
                EmitError::present(path, format!("line {line} is not TOML"))
            })?;
            for statement in &statements {
                let Kind::Value { value, .. } = &statement.kind else {
                    continue;
                };
                let value = &text[value.clone()];
                match statement.path()[..] {
                    // The second is the first version of the format, which podman 4 still reads.
                    ["unqualified-search-registries"] | ["registries", "search", "registries"] => {
                        let list = toml::string_array(value).ok_or_else(|| {
                            EmitError::present(path, "its search list is no list of texts")
                        })?;
                        if !later {
                            before.search = list;
                        } else if target.search != Search::Off {
                            emission.note(format!(
                                "{path} sets unqualified-search-registries again, and its list is the one that counts; add {} to it",
                                quoted(&target.host)
                            ));
                        }
                    }
                    ["short-name-mode"] => {
                        before.enforcing = toml::string(value).as_deref() == Some("enforcing");
                    }
                    ["registry", "location" | "prefix"]
                        if toml::string(value).as_deref() == Some(&target.host) =>
                    {
                        emission.note(if later {
                            format!(
                                "{path} has an entry for {} that counts instead of ours",
                                target.host
                            )
                        } else {
                            format!(
                                "our entry for {} counts instead of the one in {path}",
                                target.host
                            )
                        });
                    }
                    _ => {}
                }
            }
        }
        Ok(before)
    }
}
