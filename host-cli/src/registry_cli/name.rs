//! Names as users type them, and what they mean in the configured registry.

use anyhow::{Context as _, Result};
use vdkr_core::candidates::RegistryPrefix;
use vdkr_core::reference::Reference;

use super::error::WithExit as _;
use crate::exit::Exit;

/// The image that `typed` means: a full name (`localhost:5000/yocto/app:v1`) of this registry, a
/// repository as it is (`yocto/app`), or a name without a slash, which gets the namespace.
pub fn in_registry(typed: &str, registry: &RegistryPrefix) -> Result<Reference> {
    let no_name = || format!("{typed:?} is no name of an image");
    let parsed = Reference::parse(typed).with_context(no_name)?;
    if parsed.has_explicit_host() {
        if parsed.host() != registry.host() {
            return Err(anyhow::anyhow!(
                "{typed} is in {}, but the configured registry is {}; choose it with --url",
                parsed.host(),
                registry.host()
            ))
            .exit(Exit::Usage);
        }
        return Ok(parsed);
    }
    // Parsed without a host it would be Docker Hub's, where one word means `library/…`.
    let name = typed.split(['@', ':']).next().unwrap_or(typed);
    let repository = match registry.namespace() {
        Some(namespace) if !name.contains('/') => format!("{namespace}/{name}"),
        _ => name.to_owned(),
    };
    let (tag, digest) = (parsed.tag(), parsed.digest().cloned());
    Reference::from_parts(registry.host().clone(), &repository, tag, digest).with_context(no_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_host_and_namespace_where_they_lack_them() {
        let registry = RegistryPrefix::parse("localhost:5000/yocto").unwrap();
        for (typed, meant) in [
            ("app", "localhost:5000/yocto/app"),
            ("app:v1", "localhost:5000/yocto/app:v1"),
            ("library/app:v1", "localhost:5000/library/app:v1"),
            ("yocto/app", "localhost:5000/yocto/app"),
            ("localhost:5000/x/app:v1", "localhost:5000/x/app:v1"),
        ] {
            assert_eq!(
                in_registry(typed, &registry).unwrap().to_string(),
                meant,
                "{typed}"
            );
        }
        assert!(in_registry("docker.io/library/app", &registry).is_err());
        assert!(in_registry("Foo//bar:", &registry).is_err());
    }
}
