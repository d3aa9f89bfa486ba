//! Platforms that users name, against that of the machine.

use vdkr_core::platform::Platform;

use super::{
    error::{Error, Result},
    session::Session,
    settings::Settings,
};
use crate::vm::arch::Arch;

/// The architecture of a session's machine, as OCI platforms name it.
pub fn architecture<'a>(session: &'a Session, settings: &Settings) -> &'a str {
    let told = session.connection.hello().arch.as_str();
    match session.is_target() && !told.is_empty() {
        true => told,
        false => settings.arch.oci_name(),
    }
}

/// Refuses a platform that is not the machine's, whose architecture `own` is. `verb` is the command.
pub fn check(wanted: &str, own: &str, verb: &str) -> Result<()> {
    let (wanted, own) = (read(wanted)?, Platform::linux(own));
    if own.same_as(&wanted) {
        return Ok(());
    }
    let error = Error::usage(format!(
        "option --platform: the machine runs {own}, not {wanted}"
    ));
    let other = |arch: &Arch| Platform::linux(arch.oci_name()).same_as(&wanted);
    Err(match Arch::ALL.into_iter().find(other) {
        Some(arch) => error.with_hint(format!(
            "a machine of that architecture is had by: vdkr -a {arch} {verb} ..."
        )),
        None => error,
    })
}

/// What to say about a platform that is pulled for a machine of architecture `own`, when that cannot
/// run it.
pub fn warning(wanted: &str, own: &str) -> Result<Option<String>> {
    let (wanted, own) = (read(wanted)?, Platform::linux(own));
    Ok(own.distance(&wanted).is_none().then(|| {
        format!("the machine runs {own} and can keep images of {wanted}, but not run them")
    }))
}

fn read(text: &str) -> Result<Platform> {
    Platform::parse(text)
        .map_err(|error| Error::usage(format!("option --platform {text:?}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_own_platform_in_every_spelling() {
        for (own, wanted) in [
            ("amd64", "linux/amd64"),
            ("amd64", "linux/x86_64"),
            ("amd64", "Linux/AMD64/v1"),
            ("amd64", "amd64"),
            ("arm64", "linux/arm64"),
            ("arm64", "linux/arm64/v8"),
            ("arm64", "aarch64"),
        ] {
            assert!(check(wanted, own, "run").is_ok(), "{wanted}");
            assert_eq!(warning(wanted, own).unwrap(), None, "{wanted}");
        }
        for (own, wanted, word) in [
            ("amd64", "linux/aarch64", "vdkr -a aarch64 run ..."),
            ("arm64", "linux/amd64", "vdkr -a x86_64 run ..."),
            ("amd64", "linux/amd64/v3", "not linux/amd64/v3"),
            (
                "amd64",
                "windows/amd64",
                "runs linux/amd64, not windows/amd64",
            ),
            ("amd64", "linux/riscv64", "not linux/riscv64"),
            ("amd64", "linux/", "os/architecture"),
            ("amd64", "linux", "needs an architecture"),
        ] {
            let error = check(wanted, own, "run").unwrap_err().to_string();
            assert!(error.contains(word), "{wanted}: {error}");
        }
    }

    #[test]
    fn what_cannot_run_is_told_at_the_pull() {
        assert_eq!(warning("linux/386", "amd64").unwrap(), None);
        let told = warning("linux/arm64", "amd64").unwrap().unwrap();
        assert!(told.contains("linux/amd64") && told.contains("linux/arm64"));
        assert!(warning("a/b/c/d", "amd64").is_err());
    }
}
