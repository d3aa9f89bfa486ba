//! Which Debian sources the private apt uses: those of the host for its own release, in deb822 form.

use std::fs;
use std::path::PathBuf;

/// The sources where the host has no Debian sources of its own.
const FALLBACK: &str = "\
Types: deb
URIs: http://deb.debian.org/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://deb.debian.org/debian-security
Suites: bookworm-security
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
";

/// The release and the source list: the host's entries of its own Debian release (main archive,
/// updates, security), else [`FALLBACK`].
pub(super) fn of_host() -> (String, String) {
    let fallback = || ("bookworm".to_owned(), FALLBACK.to_owned());
    let os = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let value = |name: &str| {
        os.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
            .map(|v| v.trim_matches('"'))
    };
    let (Some("debian"), Some(codename)) = (value("ID"), value("VERSION_CODENAME")) else {
        return fallback();
    };
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d")
        .into_iter()
        .flatten()
        .flatten();
    files.extend(parts.map(|entry| entry.path()));
    files.sort();
    let mut stanzas = String::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => {
                stanzas.extend(text.lines().filter_map(|line| from_line(line, codename)));
            }
            Some("sources") => {
                stanzas.extend(
                    text.split("\n\n")
                        .filter_map(|stanza| from_stanza(stanza, codename)),
                );
            }
            _ => {}
        }
    }
    if stanzas.is_empty() {
        fallback()
    } else {
        (codename.to_owned(), stanzas)
    }
}

/// The source list of another suite, from the mirror and with the keys of the host's own main archive.
pub(super) fn of_suite(suite: &str) -> String {
    let (codename, stanzas) = of_host();
    moved(&stanzas, &codename, suite)
        .or_else(|| moved(FALLBACK, "bookworm", suite))
        .unwrap_or_default()
}

/// The stanza that offers `codename` itself, offering `suite` instead.
fn moved(stanzas: &str, codename: &str, suite: &str) -> Option<String> {
    stanzas.split_inclusive("\n\n").find_map(|stanza| {
        let line = stanza.lines().find(|line| line.starts_with("Suites:"))?;
        line.split_whitespace()
            .any(|word| word == codename)
            .then(|| stanza.replace(line, &format!("Suites: {suite}")))
    })
}

/// Whether a suite is the release itself, its updates or its security fixes.
fn is_wanted(suite: &str, codename: &str) -> bool {
    suite
        .strip_prefix(codename)
        .is_some_and(|rest| matches!(rest, "" | "-updates" | "-security" | "/updates"))
}

/// A stanza of a deb822 source file, reduced to Debian's main component and all architectures.
fn from_stanza(stanza: &str, codename: &str) -> Option<String> {
    let lines: Vec<&str> = stanza
        .lines()
        .filter(|line| !line.starts_with('#'))
        .collect();
    let words = |name: &str| {
        lines
            .iter()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.split_whitespace().collect::<Vec<_>>())
            .unwrap_or_default()
    };
    let suites: Vec<_> = words("Suites")
        .into_iter()
        .filter(|suite| is_wanted(suite, codename))
        .collect();
    let usable = words("Types").contains(&"deb")
        && words("Components").contains(&"main")
        && words("Enabled") != ["no"]
        && !suites.is_empty();
    if !usable {
        return None;
    }
    let mut text = format!(
        "Types: deb\nSuites: {}\nComponents: main\n",
        suites.join(" ")
    );
    let mut copied = false;
    for line in lines {
        // URIs, keys and their continuation lines are taken as they are.
        if line.starts_with([' ', '\t']) {
            if copied {
                text.extend([line, "\n"]);
            }
            continue;
        }
        let name = line.split(':').next().unwrap_or_default();
        copied = ![
            "Types",
            "Suites",
            "Components",
            "Architectures",
            "Enabled",
            "",
        ]
        .contains(&name);
        if copied {
            text.extend([line, "\n"]);
        }
    }
    Some(text + "\n")
}

/// A line of a classic source list as a deb822 stanza.
fn from_line(line: &str, codename: &str) -> Option<String> {
    let rest = line.trim().strip_prefix("deb")?;
    let rest = rest.strip_prefix([' ', '\t'])?.trim_start();
    let (options, rest) = match rest.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", rest),
    };
    let mut words = rest.split('#').next()?.split_whitespace();
    let (uri, suite) = (words.next()?, words.next()?);
    if !is_wanted(suite, codename) || !words.any(|component| component == "main") {
        return None;
    }
    let mut text = format!("Types: deb\nURIs: {uri}\nSuites: {suite}\nComponents: main\n");
    for option in options.split_whitespace() {
        match option.split_once('=')? {
            ("signed-by", keys) => text.extend(["Signed-By: ", &keys.replace(',', " "), "\n"]),
            ("trusted", value) => text.extend(["Trusted: ", value, "\n"]),
            _ => {}
        }
    }
    Some(text + "\n")
}

#[cfg(test)]
mod tests {
    use super::{FALLBACK, from_line, from_stanza, moved};

    #[test]
    fn another_suite_comes_from_the_same_mirror() {
        let stanza = moved(FALLBACK, "bookworm", "sid").unwrap();
        assert_eq!(
            stanza,
            "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: sid\nComponents: main\n\
             Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n\n"
        );
        assert_eq!(moved(FALLBACK, "trixie", "sid"), None);
    }

    #[test]
    fn foreign_sources_are_left_out() {
        assert_eq!(
            from_line("deb https://example.org/node nodistro main", "bookworm"),
            None
        );
        assert_eq!(
            from_line("deb http://h/debian bookworm-backports main", "bookworm"),
            None
        );
        assert_eq!(
            from_line("# deb http://h/debian bookworm main", "bookworm"),
            None
        );
        assert_eq!(
            from_line("deb-src http://h/debian bookworm main", "bookworm"),
            None
        );
        assert_eq!(
            from_line("deb https://h/docker bookworm stable", "bookworm"),
            None
        );
    }

    #[test]
    fn a_line_keeps_its_key_and_loses_its_architecture() {
        let stanza = from_line(
            "deb [arch=amd64 signed-by=/k.gpg] http://h/debian bookworm main contrib",
            "bookworm",
        );
        let wanted = "Types: deb\nURIs: http://h/debian\nSuites: bookworm\nComponents: main\nSigned-By: /k.gpg\n\n";
        assert_eq!(stanza.as_deref(), Some(wanted));
    }

    #[test]
    fn a_stanza_keeps_uris_and_wanted_suites() {
        let stanza = "# mirror\nTypes: deb deb-src\nURIs: http://h/debian\n http://i/debian\n\
                      Suites: bookworm bookworm-backports\nComponents: main contrib\nArchitectures: amd64\n\
                      Signed-By:\n -----BEGIN";
        let wanted = "Types: deb\nSuites: bookworm\nComponents: main\nURIs: http://h/debian\n http://i/debian\n\
                      Signed-By:\n -----BEGIN\n\n";
        assert_eq!(from_stanza(stanza, "bookworm").as_deref(), Some(wanted));
    }
}
