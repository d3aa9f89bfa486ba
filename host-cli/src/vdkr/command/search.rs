//! What `vdkr` does not have, and what to use instead.

use crate::vdkr::error::Error;

/// Docker Hub's search is a service of its own, which registries do not have.
pub fn instead() -> Error {
    Error::usage("vdkr does not search: registries have no such service").with_hint(
        "for the registry on this computer use: container-registry list; for Docker Hub: \
         https://hub.docker.com/search",
    )
}

/// The agent keeps no list of what happened.
pub fn no_events() -> Error {
    Error::usage("vdkr has no events")
        .with_hint("what runs is told by: vdkr ps, vdkr memres status, vdkr system df")
}
