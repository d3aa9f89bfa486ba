//! Changes of a configuration in the words of a Dockerfile: `import --change 'CMD ["sh"]'`.

use alloc::{borrow::ToOwned as _, collections::BTreeMap, format, string::String, vec, vec::Vec};

use super::ContainerConfig;

/// The instructions that say how an image is run.
const KNOWN: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME, WORKDIR";

/// A change cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no change of an image: {reason}")]
pub struct ChangeError {
    /// What was given.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Makes one change, such as `ENV A=b`.
pub fn apply(config: &mut ContainerConfig, text: &str) -> Result<(), ChangeError> {
    change(config, text.trim()).map_err(|reason| ChangeError {
        text: text.to_owned(),
        reason,
    })
}

fn change(config: &mut ContainerConfig, text: &str) -> Result<(), String> {
    let (name, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    let rest = rest.trim();
    let name = name.to_ascii_uppercase();
    let known = KNOWN.split(", ").any(|known| known == name);
    if !known {
        return Err(format!("there are {KNOWN}"));
    }
    if rest.is_empty() {
        return Err(format!("{name} needs a value"));
    }
    match name.as_str() {
        "CMD" => config.cmd = command(rest)?,
        "ENTRYPOINT" => config.entrypoint = command(rest)?,
        "ENV" => {
            for (name, value) in pairs(rest, true)? {
                let prefix = format!("{name}=");
                config.env.retain(|entry| !entry.starts_with(&prefix));
                config.env.push(prefix + &value);
            }
        }
        "LABEL" => config
            .labels
            .extend(pairs(rest, false)?.into_iter().collect::<BTreeMap<_, _>>()),
        "EXPOSE" => {
            for port in words(rest)? {
                let (number, protocol) = port.split_once('/').unwrap_or((&port, "tcp"));
                let legal = number.parse::<u16>().is_ok_and(|number| number > 0);
                if !legal || !matches!(protocol, "tcp" | "udp" | "sctp") {
                    return Err(format!("{port:?} is not a port such as 80 or 53/udp"));
                }
                config.exposed_ports.insert(format!("{number}/{protocol}"));
            }
        }
        "VOLUME" => {
            let paths = match list(rest)? {
                Some(paths) => paths,
                None => words(rest)?,
            };
            if paths.iter().any(String::is_empty) {
                return Err("a volume needs a path".to_owned());
            }
            config.volumes.extend(paths);
        }
        "USER" => rest.clone_into(&mut config.user),
        "STOPSIGNAL" => config.stop_signal = Some(rest.to_owned()),
        _ if rest.starts_with('/') => rest.clone_into(&mut config.working_dir),
        _ => {
            let base = config.working_dir.trim_end_matches('/');
            config.working_dir = format!("{base}/{rest}");
        }
    }
    Ok(())
}

/// A JSON list of words, or a line for the shell.
fn command(text: &str) -> Result<Vec<String>, String> {
    Ok(match list(text)? {
        Some(words) => words,
        None => vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()],
    })
}

fn list(text: &str) -> Result<Option<Vec<String>>, String> {
    if !text.starts_with('[') {
        return Ok(None);
    }
    let words = serde_json::from_str(text);
    words
        .map(Some)
        .map_err(|_| "it is no list of words in JSON".to_owned())
}

/// `a=b c="d e"`, or `a b c`, which is one pair, for variables.
fn pairs(text: &str, old_form: bool) -> Result<Vec<(String, String)>, String> {
    let first = text.split(char::is_whitespace).next().unwrap_or_default();
    if old_form && !first.contains('=') {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("{first} has no value"))?;
        return Ok(vec![(name.to_owned(), value.trim().to_owned())]);
    }
    words(text)?
        .into_iter()
        .map(|word| match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
            _ => Err(format!("{word:?} is not NAME=VALUE")),
        })
        .collect()
}

/// Words apart by blanks, but for what is quoted or behind a backslash.
fn words(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match (c, quote) {
            ('\\', None | Some('"')) => {
                let next = rest.next().ok_or("a backslash at its end")?;
                let word = word.get_or_insert_default();
                // Within quotes it stays before anything that it does not protect.
                if quote.is_some() && !matches!(next, '"' | '\\' | '$') {
                    word.push('\\');
                }
                word.push(next);
            }
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    if let Some(quote) = quote {
        return Err(format!("{quote} without its end"));
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use alloc::string::ToString as _;

    use super::*;

    fn changed(changes: &[&str]) -> ContainerConfig {
        let mut config = ContainerConfig::default();
        for change in changes {
            apply(&mut config, change).unwrap();
        }
        config
    }

    #[test]
    fn every_instruction() {
        let config = changed(&[
            "CMD [\"sh\", \"-l\"]",
            "entrypoint echo $HOME",
            "ENV A=1 B=\"two words\" C=a\\ b",
            "ENV A new value",
            "EXPOSE 80 53/udp",
            "LABEL a.b=c \"quoted key\"='it is'",
            "USER 1000:100",
            "VOLUME /data /more",
            "VOLUME [\"/a b\"]",
            "WORKDIR /srv",
            "WORKDIR app",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(config.cmd, ["sh", "-l"]);
        assert_eq!(config.entrypoint, ["/bin/sh", "-c", "echo $HOME"]);
        assert_eq!(config.env, ["B=two words", "C=a b", "A=new value"]);
        assert!(config.exposed_ports.iter().eq(["53/udp", "80/tcp"]));
        assert_eq!(config.labels["quoted key"], "it is");
        assert_eq!(config.labels["a.b"], "c");
        assert_eq!(config.user, "1000:100");
        assert!(config.volumes.iter().eq(["/a b", "/data", "/more"]));
        assert_eq!(config.working_dir, "/srv/app");
        assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    }

    #[test]
    fn mistakes_are_told() {
        for (text, word) in [
            ("RUN true", "CMD, ENTRYPOINT"),
            ("", "CMD, ENTRYPOINT"),
            ("CMD", "needs a value"),
            ("CMD [sh]", "JSON"),
            ("ENV A", "no value"),
            ("ENV =x", "NAME=VALUE"),
            ("LABEL x", "NAME=VALUE"),
            ("LABEL a=\"b", "without its end"),
            ("EXPOSE 0", "port"),
            ("EXPOSE 80/icmp", "port"),
            ("VOLUME [\"\"]", "path"),
        ] {
            let error = apply(&mut ContainerConfig::default(), text).unwrap_err();
            assert!(error.to_string().contains(word), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn any_value_of_a_variable_arrives(value in "[ -~]{0,40}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let config = changed(&[&format!("ENV A=\"{quoted}\"")]);
            prop_assert_eq!(&config.env, &[format!("A={value}")]);
        }

        #[test]
        fn never_panics(text in "(CMD|ENV|LABEL|EXPOSE|VOLUME) [ -~]{0,40}") {
            let _ = apply(&mut ContainerConfig::default(), &text);
        }
    }
}
