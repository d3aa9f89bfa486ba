//! Docker: `insecure-registries` of `daemon.json`, and `certs.d`.

use alloc::borrow::ToOwned as _;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde_json::Value;

use super::{Emission, EmitError, Present, Profile, Target};
use crate::json_text::{self, Step};

/// The daemon's configuration.
pub(super) const DAEMON: &str = "/etc/docker/daemon.json";
const KEY: &str = "insecure-registries";

pub(super) fn emit(
    target: &Target,
    present: &Present,
    emission: &mut Emission,
) -> Result<(), EmitError> {
    let daemon = present
        .get(DAEMON)
        .filter(|text| !text.trim().is_empty())
        .map(String::as_str);
    let listed = match daemon {
        Some(text) => listed(text)?,
        None => Vec::new(),
    };
    if !target.is_insecure && listed.contains(&target.host) {
        emission.note(format!(
            "{DAEMON} lists {} under {KEY}: docker will not verify it",
            target.host
        ));
    }
    if !target.insecure.is_empty() {
        let mut text = daemon.unwrap_or("{\n}\n").to_owned();
        for host in target.insecure.iter().filter(|host| !listed.contains(host)) {
            text = json_text::push(&text, &[Step::Key(KEY)], &Value::from(host.as_str()))
                .map_err(EmitError::json(DAEMON))?;
        }
        emission.file(Profile::Docker, DAEMON.to_owned(), text, false);
    }
    certificate(Profile::Docker, target, emission);
    Ok(())
}

/// The authority where docker, and podman too, look for it.
pub(super) fn certificate(profile: Profile, target: &Target, emission: &mut Emission) {
    if let Some(authority) = &target.authority {
        let path = format!("/etc/docker/certs.d/{}/ca.crt", target.host);
        emission.file(profile, path, authority.clone(), false);
    }
}

fn listed(text: &str) -> Result<Vec<String>, EmitError> {
    let Some(array) = json_text::get(text, &[Step::Key(KEY)]).map_err(EmitError::json(DAEMON))?
    else {
        // No object has no members either.
        return Ok(Vec::new());
    };
    serde_json::from_str::<Option<Vec<String>>>(array)
        .map(Option::unwrap_or_default)
        .map_err(|_| EmitError::present(DAEMON, format!("{KEY} is no list of texts")))
}
