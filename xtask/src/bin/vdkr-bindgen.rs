//! `vdkr-bindgen MODULE DIR`: writes the JavaScript around a module, and the module as that wants it.
//!
//! The library and the generator of wasm-bindgen must be of one version; as a dependency here, the lock
//! file sees to it.

use std::env;

use anyhow::{Context, Result, bail};
use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<()> {
    let arguments: Vec<_> = env::args_os().skip(1).collect();
    let [module, place] = arguments.as_slice() else {
        bail!("usage: vdkr-bindgen MODULE DIR");
    };
    Bindgen::new()
        .input_path(module)
        .out_name("vdkr_core")
        .web(true)?
        .typescript(true)
        .remove_name_section(true)
        .remove_producers_section(true)
        .generate(place)
        .with_context(|| format!("cannot bind {}", module.display()))
}
