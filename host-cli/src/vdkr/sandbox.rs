//! What is read of this computer's files for a container's isolation.

use std::{fs, io::Read as _};

use vdkr_core::{
    channel::message::{Sandbox, Seccomp},
    container::capability,
    seccomp::{MAX_PROFILE, Machine, compile, parse_profile},
};

use super::{
    error::{Error, Result},
    sandbox_options::SandboxOptions,
};

/// The isolation to ask for: the options', with the seccomp profile that they name.
pub fn assemble(options: &SandboxOptions) -> Result<Sandbox> {
    let mut sandbox = options.sandbox.clone();
    if let Some(path) = &options.seccomp_file {
        sandbox.seccomp = Seccomp::Profile(read_profile(path)?);
    }
    Ok(sandbox)
}

/// The text of a profile that the agent will understand.
fn read_profile(path: &str) -> Result<String> {
    let wrong = |reason: String| Error::usage(format!("seccomp profile {path}: {reason}"));
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(MAX_PROFILE as u64 + 1).read_to_end(&mut bytes))
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("not valid UTF-8".to_owned()))?;
    for machine in [Machine::X86_64, Machine::Aarch64] {
        let profile = parse_profile(&text, machine, capability::ALL, (u32::MAX, 0))
            .map_err(|error| wrong(error.to_string()))?;
        compile(&profile, machine).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_and_checked_here() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p.json");
        let assemble = |text: &str| {
            fs::write(&path, text).unwrap();
            let options = SandboxOptions {
                seccomp_file: Some(path.to_str().unwrap().to_owned()),
                ..SandboxOptions::default()
            };
            super::assemble(&options)
        };
        let good = r#"{"defaultAction":"SCMP_ACT_ALLOW"}"#;
        assert_eq!(
            assemble(good).unwrap().seccomp,
            Seccomp::Profile(good.to_owned())
        );
        for bad in ["", "{}", r#"{"defaultAction":"SCMP_ACT_NO"}"#] {
            let error = assemble(bad).unwrap_err().to_string();
            assert!(error.contains("p.json"), "{error}");
        }
        fs::remove_file(&path).unwrap();
        let options = SandboxOptions {
            seccomp_file: Some("/no/such/profile".to_owned()),
            ..SandboxOptions::default()
        };
        assert!(
            super::assemble(&options)
                .unwrap_err()
                .to_string()
                .contains("/no/such/profile")
        );
    }
}
