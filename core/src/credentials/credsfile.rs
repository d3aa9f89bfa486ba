use alloc::string::String;

use super::{Credential, CredentialError, MAX_FILE, Secret};

/// Reads a credentials file: lines `KEY=value` with `CONTAINER_REGISTRY_TOKEN`, or
/// `CONTAINER_REGISTRY_USER` and `CONTAINER_REGISTRY_PASSWORD`; the token wins.
///
/// Blank lines, lines that begin with `#`, lines without `=` and other keys are passed over, a
/// leading `export` too. White space around key and value goes, and one quote of either kind on
/// each side of a value. Of two lines with one key the later counts; an empty value is no value.
pub fn parse_credsfile(text: &[u8]) -> Result<Credential, CredentialError> {
    if text.len() > MAX_FILE {
        return Err(CredentialError::TooLarge { length: text.len() });
    }
    let text = core::str::from_utf8(text).map_err(|_| CredentialError::NotText)?;
    let (mut user, mut password, mut token) = ("", "", "");
    for line in text.trim_start_matches('\u{feff}').lines() {
        let line = line.trim();
        if line.starts_with('#') {
            continue;
        }
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = key.trim();
        let key = match key.split_once(char::is_whitespace) {
            Some(("export", key)) => key.trim(),
            _ => key,
        };
        let slot = match key {
            "CONTAINER_REGISTRY_USER" => &mut user,
            "CONTAINER_REGISTRY_PASSWORD" => &mut password,
            "CONTAINER_REGISTRY_TOKEN" => &mut token,
            _ => continue,
        };
        let value = value.trim();
        let value = value.strip_prefix(['"', '\'']).unwrap_or(value);
        *slot = value.strip_suffix(['"', '\'']).unwrap_or(value);
    }
    if !token.is_empty() {
        return Ok(Credential::Bearer(Secret::new(token)));
    }
    if user.is_empty() || password.is_empty() {
        return Err(CredentialError::Incomplete);
    }
    if user.contains(':') {
        return Err(CredentialError::ColonInUsername);
    }
    Ok(Credential::Basic {
        username: String::from(user),
        password: Secret::new(password),
    })
}

#[cfg(test)]
mod tests {
    use alloc::{format, vec};

    use proptest::prelude::*;

    use super::*;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.into(),
            password: Secret::new(password),
        }
    }

    #[test]
    fn files_as_people_write_them() {
        let file = "\u{feff}# registry\r\n\r\n  CONTAINER_REGISTRY_USER = yocto \r\n\
                    export CONTAINER_REGISTRY_PASSWORD=\"a=b #c\"\r\nOTHER=x\r\nno line\r\n";
        assert_eq!(
            parse_credsfile(file.as_bytes()),
            Ok(basic("yocto", "a=b #c"))
        );
        let file = "CONTAINER_REGISTRY_USER='u\"\nCONTAINER_REGISTRY_PASSWORD=''p''\n";
        assert_eq!(parse_credsfile(file.as_bytes()), Ok(basic("u", "'p'")));
        let file = "CONTAINER_REGISTRY_USER=u\nCONTAINER_REGISTRY_PASSWORD=p\n\
                    CONTAINER_REGISTRY_TOKEN=old\nCONTAINER_REGISTRY_TOKEN=t==";
        assert_eq!(
            parse_credsfile(file.as_bytes()),
            Ok(Credential::Bearer(Secret::new("t==")))
        );
        let file = "CONTAINER_REGISTRY_USER=u\n#CONTAINER_REGISTRY_TOKEN=t\n\
                    CONTAINER_REGISTRY_TOKEN=\"\"\nCONTAINER_REGISTRY_PASSWORD=\"";
        assert_eq!(
            parse_credsfile(file.as_bytes()),
            Err(CredentialError::Incomplete)
        );
    }

    #[test]
    fn useless_files_are_errors() {
        for bad in [
            "",
            "CONTAINER_REGISTRY_USER=u",
            "CONTAINER_REGISTRY_PASSWORD=p",
            "CONTAINER_REGISTRY_USERS=u\nCONTAINER_REGISTRY_PASSWORD=p",
            "container_registry_token=t",
            "CONTAINER_REGISTRY_TOKEN",
        ] {
            assert_eq!(
                parse_credsfile(bad.as_bytes()),
                Err(CredentialError::Incomplete),
                "{bad}"
            );
        }
        let colon = b"CONTAINER_REGISTRY_USER=a:b\nCONTAINER_REGISTRY_PASSWORD=p";
        assert_eq!(
            parse_credsfile(colon),
            Err(CredentialError::ColonInUsername)
        );
        assert_eq!(parse_credsfile(b"\xff"), Err(CredentialError::NotText));
        assert_eq!(
            parse_credsfile(&vec![b'#'; MAX_FILE + 1]),
            Err(CredentialError::TooLarge {
                length: MAX_FILE + 1
            })
        );
    }

    proptest! {
        #[test]
        fn round_trip(user in "[a-z][a-z@.]{0,10}", password in "[!#-&(-~]([ -~]{0,10}[!#-&(-~])?") {
            let file = format!(
                "CONTAINER_REGISTRY_USER='{user}'\nCONTAINER_REGISTRY_PASSWORD={password}\n"
            );
            prop_assert_eq!(parse_credsfile(file.as_bytes()), Ok(basic(&user, &password)));
        }

        #[test]
        fn never_panics(file in "(CONTAINER_REGISTRY_(USER|PASSWORD|TOKEN)|=|\"|'|#|\n|.){0,40}") {
            let _ = parse_credsfile(file.as_bytes());
        }
    }
}
