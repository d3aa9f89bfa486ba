//! containerd: `certs.d/<host>/hosts.toml` (containerd's docs/hosts.md), and the `config_path` by
//! which its CRI plugin finds that directory. `ctr --hosts-dir` and nerdctl find it by themselves.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::toml::{self, Kind, Statement, quoted};
use super::{Emission, EmitError, HEADER, Present, Profile, Target};

/// containerd's own configuration.
pub(super) const MAIN: &str = "/etc/containerd/config.toml";
const HOSTS: &str = "/etc/containerd/certs.d";
/// The table that has `config_path`, by the version of the configuration.
const TABLES: [(&str, &str); 2] = [
    ("2", "io.containerd.grpc.v1.cri"),
    ("3", "io.containerd.cri.v1.images"),
];

pub(super) fn emit(
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let profile = Profile::Containerd;
    let mut file = |name: String, text: String| {
        emission.file(profile, format!("{HOSTS}/{name}"), text, false);
    };
    for host in target.insecure_hosts() {
        // Whoever says https:// and insecure has a certificate that nobody can verify.
        let text = if host == target.host && target.is_https() {
            hosts(&format!("https://{host}"), "  skip_verify = true\n")
        } else {
            hosts(&format!("http://{host}"), "")
        };
        file(format!("{host}/hosts.toml"), text);
    }
    if !target.is_insecure {
        let ca = match &target.authority {
            Some(authority) => {
                file(format!("{}/ca.crt", target.host), authority.clone());
                // Found beside the file that names it.
                "  ca = \"ca.crt\"\n"
            }
            None => "",
        };
        let text = hosts(&format!("https://{}", target.host), ca);
        file(format!("{}/hosts.toml", target.host), text);
    }
    if target.insecure_hosts().count() < target.insecure.len() {
        emission.note(
            "networks among the insecure registries mean nothing to containerd; name the hosts"
                .to_owned(),
        );
    }
    let text = present.get(MAIN).map_or("", String::as_str);
    if let Some(text) = config_path(text, emission)? {
        emission.file(profile, MAIN.to_owned(), text, false);
    }
    Ok(())
}

fn hosts(server: &str, more: &str) -> String {
    // The server alone would do for containerd 2, but 1.x refuses a file without a host.
    let server = quoted(server);
    format!(
        "{HEADER}\nserver = {server}\n\n[host.{server}]\n  capabilities = [\"pull\", \"resolve\"]\n{more}"
    )
}

/// containerd's configuration with its CRI plugin pointed to [`HOSTS`]; `None` where that cannot be
/// done, which a note explains.
fn config_path(text: &str, emission: &mut Emission) -> Result<Option<String>, EmitError> {
    let statements = toml::statements(text).map_err(|offset| {
        let line = text[..offset].matches('\n').count() + 1;
        EmitError::present(MAIN, format!("line {line} is not TOML"))
    })?;
    let version = statements
        .iter()
        .find(|statement| statement.path() == ["version"])
        .and_then(|statement| value(text, statement));
    let table = match version {
        None if statements.is_empty() => TABLES[0].1,
        version => {
            let known = TABLES.iter().find(|(known, _)| Some(*known) == version);
            let Some((_, table)) = known else {
                emission.note(format!(
                    "{MAIN} is of version {}; set config_path of its CRI registry to {HOSTS} by hand",
                    version.unwrap_or("1")
                ));
                return Ok(None);
            };
            table
        }
    };
    let registry = ["plugins", table, "registry"];
    // `config default` prints empty tables of these names, which say nothing.
    let old = statements.iter().find(|statement| {
        let path = statement.path();
        let inline = value(text, statement).is_some_and(|value| value != "{}");
        path.starts_with(&registry)
            && matches!(path.get(3), Some(&("mirrors" | "configs")))
            && (path.len() > 4 || inline)
    });
    if let Some(old) = old {
        emission.note(format!(
            "{MAIN} configures registries in the old way ({}), which containerd refuses together with config_path; move it to {HOSTS}, then bake again",
            old.path().join(".")
        ));
        return Ok(None);
    }
    let ours = format!("config_path = {}", quoted(HOSTS));
    let set = statements
        .iter()
        .find(|statement| statement.path() == ["plugins", table, "registry", "config_path"]);
    if let Some(set) = set {
        return Ok(set_already(text, set, emission));
    }
    let header = statements
        .iter()
        .find(|statement| statement.kind == Kind::Table && statement.path() == registry);
    if let Some(header) = header {
        let line = text[header.range.end..]
            .find('\n')
            .map_or(text.len(), |newline| header.range.end + newline);
        let indent = "  ";
        return Ok(Some(format!(
            "{}\n{indent}{ours}{}",
            &text[..line],
            &text[line..]
        )));
    }
    // Defined inline or by dotted keys, the table cannot be opened again.
    let defined = statements.iter().find(|statement| {
        let path = statement.path();
        matches!(statement.kind, Kind::Value { .. })
            && (registry.starts_with(&path)
                || path.starts_with(&registry) && statement.table.len() < registry.len())
    });
    if let Some(defined) = defined {
        emission.note(format!(
            "{MAIN} writes {} on one line; set config_path of its registry to {HOSTS} by hand",
            defined.path().join(".")
        ));
        return Ok(None);
    }
    let mut whole = if text.trim().is_empty() {
        format!("{HEADER}\nversion = 2\n")
    } else {
        text.to_owned()
    };
    if !whole.ends_with('\n') {
        whole.push('\n');
    }
    let table = format!("\n[plugins.{}.registry]\n{ours}\n", quoted(table));
    whole.push_str(&table);
    Ok(Some(whole))
}

/// The file with a `config_path` that was there as it shall be, or nothing when it leads elsewhere.
fn set_already(text: &str, set: &Statement, emission: &mut Emission) -> Option<String> {
    let path = value(text, set).and_then(toml::string).unwrap_or_default();
    if path
        .split(':')
        .any(|part| part.trim_end_matches('/') == HOSTS)
    {
        return Some(text.to_owned());
    }
    if !path.is_empty() {
        emission.note(format!(
            "config_path in {MAIN} is {path}; containerd looks there and not in {HOSTS}"
        ));
        return None;
    }
    let (before, after) = (&text[..set.range.start], &text[set.range.end..]);
    let Kind::Value { key, .. } = &set.kind else {
        return None;
    };
    let key: Vec<_> = key.iter().map(|part| bare_or_quoted(part)).collect();
    let line = format!("{} = {}", key.join("."), quoted(HOSTS));
    Some(format!("{before}{line}{after}"))
}

fn value<'t>(text: &'t str, statement: &Statement) -> Option<&'t str> {
    match &statement.kind {
        Kind::Value { value, .. } => Some(&text[value.clone()]),
        _ => None,
    }
}

fn bare_or_quoted(part: &str) -> String {
    let bare = part
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte));
    if bare && !part.is_empty() {
        part.to_owned()
    } else {
        quoted(part)
    }
}
