//! The guest: what a virtual machine needs, and whether it will find the registry.

use anyhow::Result;

use super::{Ask, Check, vdkr};
use crate::registry_cli::config::Config;
use crate::registry_cli::listen;
use crate::vdkr::args::Global;
use crate::vdkr::settings::{Settings, Surroundings};
use crate::vm::accel::{Circumstances, Verdicts, kvm_usable};
use crate::vm::locate::emulator;
use crate::vm::qemu::{Accel, Board};

pub(super) async fn checks(config: &Config, ask: &Ask) -> Result<Vec<Check>> {
    let mut checks = vec![gateway(config)?];
    let settings = match Settings::resolve(Global::default(), &Surroundings::real()) {
        Ok(settings) => settings,
        Err(error) => {
            checks.push(Check::fail(
                "vdkr",
                error.to_string(),
                "mend it with: vdkr vconfig",
            ));
            return Ok(checks);
        }
    };
    checks.push(vdkr::check(config, &settings, ask).await?);
    let arch = settings.arch;
    let program = emulator(arch);
    let image = settings.start.search.locate(arch);
    match &program {
        Ok(path) => checks.push(Check::ok("qemu", path.display().to_string())),
        Err(error) => checks.push(Check::warn(
            "qemu",
            error.to_string(),
            "vdkr cannot start a machine without it",
        )),
    }
    match &image {
        Ok(image) => checks.push(Check::ok("vm image", image.kernel.display().to_string())),
        Err(error) => checks.push(Check::warn(
            "vm image",
            error.to_string(),
            "vdkr cannot start a machine without one",
        )),
    }
    let proved = match (&program, &image) {
        (Ok(program), Ok(image)) => {
            let verdicts = Verdicts::in_directory(&settings.start.cache_dir);
            [Board::Microvm, Board::Q35, Board::Virt]
                .iter()
                .find_map(|board| {
                    verdicts.recall(&Circumstances::here(program, &image.kernel, board.name()))
                })
        }
        _ => None,
    };
    checks.push(match (kvm_usable(arch), proved) {
        (Ok(()), Some(Accel::Kvm)) => Check::ok("kvm", "runs guests here (proved)"),
        (Ok(()), Some(Accel::Tcg)) => Check::warn(
            "kvm",
            "/dev/kvm opens, but no guest got anywhere with it; machines are emulated",
            "enable nested virtualisation for this machine, or live with slower guests",
        ),
        (Ok(()), None) => Check::ok("kvm", "/dev/kvm opens; the first machine will prove it"),
        (Err(error), _) => Check::warn(
            "kvm",
            error.to_string(),
            "machines are emulated, which is slower",
        ),
    });
    Ok(checks)
}

/// A guest speaks to 10.0.2.2, which QEMU leads to this machine's loopback.
fn gateway(config: &Config) -> Result<Check> {
    let host = config.registry()?.host().clone();
    if !host.is_loopback() {
        let found = format!("reaches {host} through this machine's network (not tried in one)");
        return Ok(Check::ok("guest", found));
    }
    let (addresses, port) = listen::addresses(config)?;
    let reachable = addresses
        .iter()
        .any(|address| address.ip().is_loopback() || address.ip().is_unspecified());
    if reachable {
        return Ok(Check::ok(
            "guest",
            format!(
                "{host} listens where a guest reaches it, as 10.0.2.2:{port} (not tried in one)"
            ),
        ));
    }
    Ok(Check::fail(
        "guest",
        format!(
            "10.0.2.2:{port} leads to this machine's loopback, where the registry does not listen"
        ),
        "add 127.0.0.1 to CONTAINER_REGISTRY_LISTEN",
    ))
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    fn config(pairs: &'static [(&'static str, &'static str)]) -> Config {
        let env = |name: &str| {
            let base = ("CONTAINER_REGISTRY_STORAGE", "/nonexistent");
            let found = pairs.iter().chain([&base]).find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Config::resolve(&vec![], &env).unwrap()
    }

    #[test]
    fn a_guest_reaches_loopback_alone() {
        assert_eq!(gateway(&config(&[])).unwrap().verdict, Verdict::Ok);
        let open = config(&[("CONTAINER_REGISTRY_LISTEN", "0.0.0.0")]);
        assert_eq!(gateway(&open).unwrap().verdict, Verdict::Ok);
        let lan = config(&[("CONTAINER_REGISTRY_LISTEN", "192.168.7.1")]);
        assert_eq!(gateway(&lan).unwrap().verdict, Verdict::Fail);
    }
}
