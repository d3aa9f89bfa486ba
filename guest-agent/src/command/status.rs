//! `status`: what this target pulls from, and who on it knows.

use std::path::PathBuf;

use vdkr_core::emit::vdkr::CONF;
use vdkr_transfer::target::read_state;

use super::{CommandError, local, open};
use crate::{baked::Baked, machine};

/// Options of `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusOptions {
    /// The root file system.
    pub root: PathBuf,
    /// Directory of images and containers.
    pub state: PathBuf,
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
    let there = options.state.join("layers").is_dir();
    println!(
        "images: {}{}",
        options.state.display(),
        if there { "" } else { " (none yet)" }
    );
    Ok(())
}
