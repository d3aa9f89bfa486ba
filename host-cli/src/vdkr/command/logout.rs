//! `vdkr logout`: forgets what `login` kept.

use super::login::host_of;
use crate::{
    registry_cli::command::{login::file_of, logout},
    vdkr::{error::Result, image_args::LogoutArgs, settings::Settings},
};

/// Logs out. Not being logged in is success.
pub fn run(settings: &Settings, args: &LogoutArgs) -> Result<u8> {
    let host = host_of(settings, args.host.as_deref())?;
    let path = file_of(settings.global.config.as_ref())?;
    logout::forget(&host, &path)?;
    if settings.global.config.is_none() {
        logout::still_elsewhere(&host);
    }
    Ok(0)
}
