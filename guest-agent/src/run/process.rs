//! What a container executes: the image's defaults and the request put together as docker does.

use super::RunError;

/// `PATH` when neither image nor request sets one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The part of an image configuration that a container starts from (`config` of an OCI image
/// configuration).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageDefaults {
    /// `Entrypoint`; empty means none.
    pub entrypoint: Vec<String>,
    /// `Cmd`; empty means none.
    pub cmd: Vec<String>,
    /// `Env` as `NAME=value`.
    pub env: Vec<String>,
    /// `WorkingDir`; empty means `/`.
    pub workdir: String,
    /// `User` as `user[:group]`; empty means root.
    pub user: String,
}

/// The argument vector of the container's first process.
///
/// An entrypoint of the request replaces the image's *and* drops the image's command; an empty
/// one (or `[""]`) clears it. Arguments of the request replace the image's command.
pub fn argv(
    image: &ImageDefaults,
    entrypoint: Option<&[String]>,
    args: &[String],
) -> Result<Vec<String>, RunError> {
    let given = entrypoint.map(|words| match words {
        [only] if only.is_empty() => &[],
        words => words,
    });
    let head = given.unwrap_or(&image.entrypoint);
    let tail = match (args, given) {
        ([], None) => &image.cmd,
        (args, _) => args,
    };
    let argv: Vec<String> = head.iter().chain(tail).cloned().collect();
    if argv.is_empty() {
        return Err(RunError::NoCommand);
    }
    if argv.iter().any(|word| word.contains('\0')) {
        return Err(RunError::NulByte("argument"));
    }
    Ok(argv)
}

/// The environment, in order: defaults, then the image's, then the request's; of several entries
/// with one name the last wins. An entry of the request without `=` removes the name.
///
/// `HOME` is not set here: it depends on the container's own `/etc/passwd`.
pub fn environment(
    image: &[String],
    request: &[String],
    hostname: &str,
    tty: bool,
) -> Result<Vec<String>, RunError> {
    let mut env: Vec<(String, String)> = Vec::new();
    set(&mut env, "PATH", DEFAULT_PATH);
    set(&mut env, "HOSTNAME", hostname);
    if tty {
        set(&mut env, "TERM", "xterm");
    }
    for entry in image.iter().chain(request) {
        if entry.contains('\0') {
            return Err(RunError::NulByte("environment"));
        }
        match entry.split_once('=') {
            Some(("", _)) => return Err(RunError::BadEnvironment(entry.clone())),
            Some((name, value)) => set(&mut env, name, value),
            None => env.retain(|(name, _)| name != entry),
        }
    }
    Ok(env
        .into_iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

fn set(env: &mut Vec<(String, String)>, name: &str, value: &str) {
    match env.iter_mut().find(|(known, _)| known == name) {
        Some((_, old)) => value.clone_into(old),
        None => env.push((name.to_owned(), value.to_owned())),
    }
}

/// The working directory, absolute: the request's, else the image's, else `/`. A relative one
/// of the request is refused, one of the image starts at `/`.
pub fn workdir(image: &str, request: Option<&str>) -> Result<String, RunError> {
    match request {
        Some(dir) if !dir.starts_with('/') => Err(RunError::RelativeWorkdir(dir.to_owned())),
        Some(dir) => Ok(dir.to_owned()),
        None if image.is_empty() => Ok("/".to_owned()),
        None if image.starts_with('/') => Ok(image.to_owned()),
        None => Ok(format!("/{image}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn image(entrypoint: &[&str], cmd: &[&str]) -> ImageDefaults {
        ImageDefaults {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..Default::default()
        }
    }

    /// Image entrypoint, image command, request entrypoint, request arguments, result.
    type Case<'a> = (
        &'a [&'a str],
        &'a [&'a str],
        Option<&'a [&'a str]>,
        &'a [&'a str],
        &'a [&'a str],
    );

    #[test]
    fn entrypoint_and_command_combine_as_in_docker() {
        let cases: &[Case<'_>] = &[
            (&["/e"], &["c"], None, &[], &["/e", "c"]),
            (&["/e"], &["c"], None, &["x", "y"], &["/e", "x", "y"]),
            (&[], &["sh"], None, &[], &["sh"]),
            (&[], &["sh"], None, &["ls"], &["ls"]),
            (&["/e"], &["c"], Some(&["/n"]), &[], &["/n"]),
            (
                &["/e"],
                &["c"],
                Some(&["/n", "-v"]),
                &["x"],
                &["/n", "-v", "x"],
            ),
            (&["/e"], &["c"], Some(&[""]), &["x"], &["x"]),
            (&["/e"], &["c"], Some(&[]), &["x"], &["x"]),
        ];
        for (entry, cmd, given, args, expected) in cases {
            let given = given.map(words);
            let got = argv(&image(entry, cmd), given.as_deref(), &words(args)).unwrap();
            assert_eq!(got, words(expected), "{entry:?} {cmd:?} {given:?} {args:?}");
        }
    }

    #[test]
    fn nothing_to_execute_is_an_error() {
        assert!(matches!(
            argv(&image(&[], &[]), None, &[]),
            Err(RunError::NoCommand)
        ));
        // An entrypoint that is cleared takes the image's command with it.
        let cleared = argv(&image(&["/e"], &["c"]), Some(&words(&[""])), &[]);
        assert!(matches!(cleared, Err(RunError::NoCommand)));
    }

    #[test]
    fn words_pass_unchanged_but_nul_is_refused() {
        let odd = words(&["a b", "\"q'", "new\nline", "", "é"]);
        assert_eq!(argv(&image(&[], &[]), None, &odd).unwrap(), odd);
        assert!(argv(&image(&[], &[]), None, &words(&["a\0b"])).is_err());
    }

    #[test]
    fn later_environment_wins_and_bare_names_remove() {
        let image = words(&["PATH=/bin", "A=1", "B=2"]);
        let request = words(&["A=x=y", "B", "C="]);
        let env = environment(&image, &request, "box", true).unwrap();
        assert_eq!(
            env,
            words(&["PATH=/bin", "HOSTNAME=box", "TERM=xterm", "A=x=y", "C="])
        );
    }

    #[test]
    fn environment_without_help_has_path_and_host_name() {
        let env = environment(&[], &[], "box", false).unwrap();
        assert_eq!(env, [format!("PATH={DEFAULT_PATH}"), "HOSTNAME=box".into()]);
        assert!(environment(&[], &words(&["=x"]), "box", false).is_err());
    }

    #[test]
    fn working_directory() {
        assert_eq!(workdir("", None).unwrap(), "/");
        assert_eq!(workdir("app", None).unwrap(), "/app");
        assert_eq!(workdir("/app", Some("/x")).unwrap(), "/x");
        assert!(workdir("/app", Some("x")).is_err());
    }
}
