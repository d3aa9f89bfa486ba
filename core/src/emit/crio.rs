//! CRI-O reads what podman reads; only credentials have to be pointed out to it (crio.conf(5)).

use alloc::borrow::ToOwned as _;
use alloc::format;

use super::toml::quoted;
use super::{Emission, HEADER, Profile, Target, logins};

/// Our drop-in.
pub(super) const DROP: &str = "/etc/crio/crio.conf.d/50-container-registry.conf";

pub(super) fn emit(target: &Target, emission: &mut Emission) {
    if !target.logins.is_empty() {
        let text = format!(
            "{HEADER}\n[crio.image]\nglobal_auth_file = {}\n",
            quoted(logins::CONTAINERS)
        );
        emission.file(Profile::CriO, DROP.to_owned(), text, false);
    }
}
