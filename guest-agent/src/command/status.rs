//! `status`: what this target pulls from, and who on it knows.

use std::{path::PathBuf, time::Duration};

use tokio::time::timeout;
use vdkr_core::{emit::vdkr::CONF, engine::EngineKind};
use vdkr_transfer::target::{RootFs, read_state};

use super::{CommandError, local, open};
use crate::{args::EngineWish, baked::Baked, engine::Engine, machine, request};

/// How long an engine has to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Options of `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// The root file system.
    pub root: PathBuf,
    /// Directory of images and containers.
    pub state: PathBuf,
    /// The engine instead of the configured one.
    pub engine: EngineWish,
}

/// Prints it.
pub fn status(options: &StatusOptions) -> Result<(), CommandError> {
    let root = open(&options.root)?;
    let baked = Baked::read(&root)?;
    println!("{}", machine::SOFTWARE);
    match &baked.conf.registry {
        Some(registry) => println!("registry: {registry}"),
        None => println!("registry: none ({CONF} names none)"),
    }
    if !baked.conf.insecure.is_empty() {
        println!("insecure: {}", baked.conf.insecure.join(" "));
    }
    match &baked.ca {
        Some((_, path)) => println!("ca: {path}"),
        None => println!("ca: none"),
    }
    let configured: Vec<_> = read_state(&root)?
        .profiles()
        .into_iter()
        .map(vdkr_core::emit::Profile::as_str)
        .collect();
    match &configured[..] {
        [] => println!("configured: nothing (vdkr-agent configure does it)"),
        names => println!("configured: {}", names.join(", ")),
    }
    match local::is_served(&options.state) {
        true => println!("service: running"),
        false => println!("service: not running (vdkr-agent serve, or systemctl start vdkr-agent)"),
    }
    if let Some(line) = engine(options, &root)? {
        println!("{line}");
        return Ok(());
    }
    println!("engine: {}", EngineKind::Native);
    let there = options.state.join("layers").is_dir();
    println!(
        "images: {}{}",
        options.state.display(),
        if there { "" } else { " (none yet)" }
    );
    Ok(())
}

/// What is to be said of an engine beside the agent's own.
fn engine(options: &StatusOptions, root: &RootFs) -> Result<Option<String>, CommandError> {
    let Some(engine) = Engine::chosen(&options.engine.choice_of(root)?, &options.state) else {
        return Ok(None);
    };
    let (kind, place) = (engine.kind(), engine.socket().display().to_string());
    if options.root != std::path::Path::new("/") {
        return Ok(Some(format!("engine: {kind} at {place}")));
    }
    let failed = |error: std::io::Error| CommandError::Failed(format!("cannot start: {error}"));
    let asked = async { timeout(PATIENCE, engine.version()).await };
    Ok(Some(
        match request::runtime().map_err(failed)?.block_on(asked) {
            Ok(Ok(version)) => format!("engine: {kind} {version} at {place}"),
            Ok(Err(failure)) => format!("engine: {}", failure.message),
            Err(_) => format!(
                "engine: {kind} at {place} gives no answer for {} seconds",
                PATIENCE.as_secs()
            ),
        },
    ))
}
