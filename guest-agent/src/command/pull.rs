//! `pull`: an image into this target's own store, the configured registry first.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;
use vdkr_core::{
    channel::message::{Event, LogLevel, RegistrySettings},
    emit::MAX_FILE,
    loopback::DEFAULT_GATEWAY,
};

use super::{Baked, CommandError, given, open, registry};
use crate::store::Store;

/// Where distributions keep the authorities that are trusted anyway.
const BUNDLES: [&str; 2] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
];

/// Options of `pull`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullOptions {
    /// Names of images.
    pub names: Vec<String>,
    /// The registry instead of the configured one; `none` asks no registry of our own.
    pub registry: Option<String>,
    /// Its CA instead of the configured one.
    pub ca: Option<PathBuf>,
    /// `os/arch[/variant]` instead of this machine's.
    pub platform: Option<String>,
    /// Directory of images and containers.
    pub state: PathBuf,
}

/// Pulls the images, one after the other, and prints the names that they have here.
pub fn pull(options: &PullOptions) -> Result<(), CommandError> {
    let settings = settings(options)?;
    let store = Store::open(&options.state)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CommandError::Failed(format!("cannot start: {error}")))?;
    runtime.block_on(async {
        let cancel = CancellationToken::new();
        for name in &options.names {
            let platform = options.platform.as_deref();
            let pulled =
                crate::pull::pull(&store, name, &settings, platform, &say, &cancel).await?;
            println!("{}", pulled.name);
        }
        Ok(())
    })
}

fn settings(options: &PullOptions) -> Result<RegistrySettings, CommandError> {
    let root = open("/".as_ref())?;
    let baked = Baked::read(&root)?;
    let own = match options.registry.as_deref() {
        Some("none") => None,
        Some(text) => Some(registry(text)?.to_string()),
        None => baked.conf.registry.map(|registry| registry.to_string()),
    };
    let ca_pem = match &options.ca {
        Some(path) => Some(given(path)?),
        None => baked.ca.map(|(text, _)| text),
    };
    let mut public_roots = None;
    for path in BUNDLES {
        if let Some(found) = root.read(path, MAX_FILE)? {
            public_roots = String::from_utf8(found.bytes).ok();
            break;
        }
    }
    Ok(RegistrySettings {
        registry: own,
        insecure: baked.conf.insecure,
        ca_pem,
        public_roots,
        gateway: DEFAULT_GATEWAY.to_owned(),
        ..RegistrySettings::default()
    })
}

fn say(event: Event) {
    match event {
        Event::Trying { reference } => eprintln!("asking for {reference}"),
        Event::Log { level, message } => match level {
            LogLevel::Warn => eprintln!("warning: {message}"),
            LogLevel::Info => eprintln!("{message}"),
            LogLevel::Debug => {}
        },
        _ => {}
    }
}
