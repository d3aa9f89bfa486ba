//! The npm package of the core: WebAssembly, its JavaScript, types and a manifest.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cache::{self, Key};
use crate::run::{need_program, run};
use crate::toolchain::{Toolchain, WASM};
use crate::workspace::Workspace;

/// The largest module that may ship, in bytes.
const MOST: u64 = 150 * 1000;

/// What the module is made of, beside the compiler.
const SOURCES: [&str; 2] = ["core/src", "wasm/src"];

/// Builds the package unless the cache has it and links it as `target/wasm/pkg`.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    let toolchain = Toolchain::for_target(workspace, WASM)?;
    let template = workspace.root.join("wasm/npm");
    let mut key = Key::new("wasm", 1)
        .with("toolchain", toolchain.id())
        .with_tree(&template)?;
    for file in [
        "Cargo.toml",
        "Cargo.lock",
        "core/Cargo.toml",
        "wasm/Cargo.toml",
    ] {
        key = key.with_file(&workspace.root.join(file))?;
    }
    for source in SOURCES {
        key = key.with_tree(&workspace.root.join(source))?;
    }
    let entry = cache::entry(workspace, "wasm", &key.finish(), |place| {
        eprintln!("building the npm package with {}", toolchain.id());
        let module = compile(workspace, &toolchain)?;
        bindgen(workspace, &module, place)?;
        for file in cache::files_below(&template)? {
            let name = file.file_name().context("a file has a name")?;
            fs::copy(&file, place.join(name))
                .with_context(|| format!("cannot copy {}", file.display()))?;
        }
        fs::copy(workspace.root.join("LICENSE"), place.join("LICENSE"))?;
        set_version(&place.join("package.json"))?;
        check_size(&place.join("vdkr_core_bg.wasm"))
    })?;
    let package = cache::link(workspace, "wasm/pkg", &entry)?;
    let size = fs::metadata(package.join("vdkr_core_bg.wasm"))?.len();
    eprintln!(
        "npm package: {} (wasm {} kB)",
        package.display(),
        size.div_ceil(1000)
    );
    Ok(package)
}

/// Builds the package and runs its tests under node.
pub(crate) fn test(workspace: &Workspace) -> Result<()> {
    let node = need_program("node", "nodejs")?;
    let package = build(workspace)?;
    let tests = workspace.root.join("wasm/test");
    let files = cache::files_below(&tests)?
        .into_iter()
        .filter(|file| file.to_string_lossy().ends_with(".test.mjs"));
    run(Command::new(node)
        .arg("--test")
        .args(files)
        .env("VDKR_CORE_PACKAGE", package))
}

fn compile(workspace: &Workspace, toolchain: &Toolchain) -> Result<PathBuf> {
    run(toolchain
        .cargo_build(workspace)
        .args(["--package", "vdkr-wasm", "--lib", "--profile", "small"])
        // wasm-bindgen reads the names and features that stripping removes, and removes them itself.
        .env("CARGO_PROFILE_SMALL_STRIP", "false"))?;
    Ok(toolchain
        .target_dir(workspace)
        .join(WASM)
        .join("small/vdkr_wasm.wasm"))
}

/// Runs `vdkr-bindgen`, which is built first: it takes minutes the first time, so it is no part of this
/// program and keeps its target directory in the cache.
fn bindgen(workspace: &Workspace, module: &Path, place: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    run(Command::new(cargo)
        .args(["run", "--package", "xtask", "--features", "wasm"])
        .args(["--bin", "vdkr-bindgen", "--target-dir"])
        .arg(workspace.cache.join("target/bindgen"))
        .arg("--")
        .args([module, place])
        .current_dir(&workspace.root))
}

/// Gives the package this workspace's version.
fn set_version(manifest: &Path) -> Result<()> {
    let text = fs::read_to_string(manifest)?;
    let placeholder = "\"version\": \"0.0.0\"";
    if !text.contains(placeholder) {
        bail!("{} has no {placeholder} to fill in", manifest.display());
    }
    let version = format!("\"version\": \"{}\"", env!("CARGO_PKG_VERSION"));
    fs::write(manifest, text.replace(placeholder, &version))?;
    Ok(())
}

fn check_size(module: &Path) -> Result<()> {
    let size = fs::metadata(module)?.len();
    if size > MOST {
        bail!(
            "{} has {size} bytes; the module may have {MOST}",
            module.display()
        );
    }
    Ok(())
}
