//! What this machine is set up to pull from: baked into its image, or written by `configure`.

use std::path::Path;

use vdkr_core::{
    channel::message::{Failure, FailureCode, RegistrySettings},
    emit::MAX_FILE,
};
use vdkr_transfer::target::RootFs;
pub use vdkr_transfer::target::baked::{Baked, CA, defaults, defaults_without_login};

use crate::command::CommandError;

/// Where distributions keep the authorities that are trusted anyway.
const BUNDLES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Fills in what a request leaves to this machine.
pub fn fill(settings: &mut RegistrySettings) -> Result<(), Failure> {
    if !settings.defaults {
        return Ok(());
    }
    let failed = |error: CommandError| {
        Failure::new(
            FailureCode::Failed,
            format!("what this machine is set up to pull from cannot be read: {error}"),
        )
        .with_hint("mend the file there, or name a registry, or --no-registry")
    };
    let root = super::command::open(Path::new("/")).map_err(failed)?;
    let set_up = match defaults(&root) {
        Ok(set_up) => set_up,
        Err(error) => {
            let without = defaults_without_login(&root).map_err(|error| failed(error.into()))?;
            eprintln!("warning: no login of this machine is used: {error}");
            without
        }
    };
    settings.take_defaults(set_up);
    if settings.public_roots.is_none() {
        settings.public_roots = public_roots(&root).map_err(failed)?;
    }
    Ok(())
}

/// The registry that requests without one of their own get; `None` also when that cannot be read.
pub fn registry() -> Option<String> {
    let root = super::command::open(Path::new("/")).ok()?;
    let registry = Baked::read(&root).ok()?.conf.registry?;
    Some(registry.to_string())
}

/// The authorities that this machine trusts anyway.
pub fn public_roots(root: &RootFs) -> Result<Option<String>, CommandError> {
    for path in BUNDLES {
        if let Some(found) = root.read(path, MAX_FILE)? {
            return Ok(String::from_utf8(found.bytes).ok());
        }
    }
    Ok(None)
}
