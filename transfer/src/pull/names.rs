//! Names in the light of a request's settings.

use vdkr_core::{
    candidates::RegistryPrefix, channel::message::RegistrySettings, loopback::translate_reference,
    reference::Reference,
};

use super::ImageError;

/// The configured registry.
pub fn registry(settings: &RegistrySettings) -> Result<Option<RegistryPrefix>, ImageError> {
    let text = settings.registry.as_deref().filter(|text| !text.is_empty());
    text.map(RegistryPrefix::parse)
        .transpose()
        .map_err(|error| ImageError::Setting {
            setting: "registry",
            value: text.unwrap_or_default().to_owned(),
            reason: error.to_string(),
        })
}

/// A name as this machine sees it: a loopback host that the user wrote is the gateway here.
pub fn translated(name: &str, settings: &RegistrySettings) -> Result<String, ImageError> {
    if settings.gateway.is_empty() || vdkr_core::reference::is_image_id(name) {
        return Ok(name.to_owned());
    }
    let bad = |source| ImageError::Name {
        name: name.to_owned(),
        source,
    };
    let reference = Reference::parse(name).map_err(bad)?;
    if !reference.has_explicit_host() || !reference.host().is_loopback() {
        return Ok(name.to_owned());
    }
    let reference = translate_reference(&reference, &settings.gateway).map_err(bad)?;
    Ok(reference.to_string())
}
