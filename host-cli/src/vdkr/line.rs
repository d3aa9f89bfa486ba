//! From the words of a command line to a command, with docker's ways: switches that take
//! `=true` and `=false`, and the last of several holding.

use std::ffi::{OsStr, OsString};

use clap::{
    ArgAction, Command, CommandFactory as _, Error, FromArgMatches as _, Parser as _,
    builder::ValueParser,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::{args::Cli, nearest::nearest, value::parse_switch};

/// Commands whose help the parser does not know.
const OWN_HELP: [&str; 3] = ["run", "create", "vrun"];

/// Reads a command line, the program's name first.
pub fn parse(line: &[OsString]) -> Result<Cli, Error> {
    let mut command = lenient(Cli::command());
    let error = match command.try_get_matches_from_mut(line) {
        Ok(mut matches) => {
            let cli = Cli::from_arg_matches_mut(&mut matches);
            return cli.map_err(|error| error.format(&mut command));
        }
        Err(error) => error,
    };
    if error.kind() == ErrorKind::DisplayHelp
        && let Some(line) = own_help(line)
    {
        return Cli::try_parse_from(line);
    }
    if let Some(misplaced) = misplaced(&error, line) {
        return misplaced;
    }
    if let Some(words) = unknown_in_group(&error, &command, line) {
        return Err(Error::raw(error.kind(), words));
    }
    // Help and hints are those of the plain definition.
    match Cli::try_parse_from(line) {
        Err(plain) if plain.kind() == error.kind() => Err(plain),
        _ => Err(error),
    }
}

/// What to say about a command that a group such as `image` does not have.
fn unknown_in_group(error: &Error, command: &Command, line: &[OsString]) -> Option<String> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidSubcommand) else {
        return None;
    };
    let mut pairs = line.iter().zip(line.iter().skip(1));
    let group = pairs.find_map(|(word, next)| {
        let group = command.find_subcommand(word)?;
        (next.to_str() == Some(unknown) && group.has_subcommands()).then_some(group)
    })?;
    let shown = |known: &&Command| !known.is_hide_set() && known.get_name() != "help";
    let known: Vec<_> = group.get_subcommands().filter(shown).collect();
    let near = nearest(unknown, known.iter().map(|known| known.get_name()));
    let hint = match near.is_empty() {
        true => String::new(),
        false => format!("; did you mean {}?", near.join(" or ")),
    };
    let names: Vec<_> = known.iter().map(|known| known.get_name()).collect();
    let (group, names) = (group.get_name(), names.join(", "));
    Some(format!(
        "unknown command {unknown:?} of {group}{hint}; there are: {names}\n"
    ))
}

/// The same command, where each switch may have a value, and of what is given several times the
/// last holds, unless it gathers values.
fn lenient(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        if arg.is_positional() {
            return arg;
        }
        let id = arg.get_id().clone();
        match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_parser(ValueParser::from(parse_switch))
                .default_value("false")
                .default_missing_value("true")
                .overrides_with(id),
            ArgAction::Set => arg.overrides_with(id),
            _ => arg,
        }
    });
    command.mut_subcommands(lenient)
}

/// `help run` as `run --help`.
fn own_help(line: &[OsString]) -> Option<Vec<OsString>> {
    let help = line.iter().rposition(|word| word == "help")?;
    let verb = line.last()?;
    let between = line.get(help + 1..line.len() - 1)?;
    let known = OWN_HELP.iter().any(|own| verb == own);
    if !known || !between.iter().all(|word| word == "container") {
        return None;
    }
    let mut words = line.to_vec();
    words.remove(help);
    words.push("--help".into());
    Some(words)
}

/// What becomes of an option of all commands that stands behind one.
fn misplaced(error: &Error, line: &[OsString]) -> Option<Result<Cli, Error>> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if word == "--version" {
        let program = line.first().cloned().unwrap_or_default();
        return Some(Cli::try_parse_from([
            program.as_os_str(),
            OsStr::new("--version"),
        ]));
    }
    let option = global_option(word)?;
    let text = format!("{}\n", stands_before(&option));
    Some(Err(Error::raw(ErrorKind::UnknownArgument, text)))
}

/// The option of all commands that a word is, as it is written.
pub fn global_option(word: &str) -> Option<String> {
    let name = word.split('=').next().unwrap_or_default();
    let command = Cli::command();
    let known = command.get_arguments().any(|arg| {
        let long = name.strip_prefix("--").map(|long| {
            arg.get_long() == Some(long)
                || arg
                    .get_all_aliases()
                    .is_some_and(|aliases| aliases.contains(&long))
        });
        let short = || {
            let mut letters = name.strip_prefix('-')?.chars();
            Some(arg.get_short() == letters.next() && letters.next().is_none())
        };
        !arg.is_hide_set() && long.or_else(short).unwrap_or_default()
    });
    known.then(|| name.to_owned())
}

/// Where an option of all commands belongs.
pub fn stands_before(option: &str) -> String {
    format!("option {option} is one of all commands: write it before the command, behind vdkr")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdkr::{
        args::Command as Verb,
        container_args::{ContainerCommand, ContainerGroup},
        image_args::ImageCommand,
    };

    fn read(words: &[&str]) -> Result<Cli, Error> {
        let line: Vec<_> = ["vdkr"].iter().chain(words).map(OsString::from).collect();
        parse(&line)
    }

    fn said(words: &[&str]) -> String {
        read(words).unwrap_err().to_string()
    }

    #[test]
    fn switches_take_a_value_and_the_last_holds() {
        let all = |words: &[&str]| match read(&[&["ps"], words].concat()).unwrap().command {
            Some(Verb::Containers(ContainerCommand::Ps(args))) => (args.all, args.quiet),
            other => panic!("{other:?}"),
        };
        for (words, expected) in [
            (&[][..], (false, false)),
            (&["-a"], (true, false)),
            (&["-aq"], (true, true)),
            (&["--all=true"], (true, false)),
            (&["--all=1", "-q=T"], (true, true)),
            (&["--all=false"], (false, false)),
            (&["-a=false", "-q"], (false, true)),
            (&["-a", "--all=False"], (false, false)),
            (&["--all=0", "--all", "-a"], (true, false)),
        ] {
            assert_eq!(all(words), expected, "{words:?}");
        }
        assert!(said(&["ps", "--all=maybe"]).contains("--all"));
        // Only behind `=`: what follows is another word.
        assert!(read(&["ps", "--all", "false"]).is_err());
        for words in [
            &["rm", "--force=true", "web"][..],
            &["logs", "-f=false", "web"],
            &["exec", "--interactive=true", "-t=0", "web", "ls", "-t=x"],
            &["image", "ls", "--all=false"],
            &["--stateless=false", "rmi", "-f=1", "img"],
            &["history", "--human=false", "--human", "img"],
        ] {
            assert!(read(words).is_ok(), "{words:?}: {}", said(words));
        }
        let tail = |words: &[&str]| match read(words).unwrap().command {
            Some(Verb::Containers(ContainerCommand::Logs(args))) => args.tail,
            other => panic!("{other:?}"),
        };
        assert_eq!(tail(&["logs", "--tail=all", "-n", "1", "web"]), "1");
        assert_eq!(tail(&["logs", "-n5", "--tail", "-1", "web"]), "-1");
        // What gathers values goes on doing so.
        let Some(Verb::Image {
            command: ImageCommand::Ls(args),
        }) = read(&["image", "ls", "-f", "a=1", "--filter", "b=2"])
            .unwrap()
            .command
        else {
            panic!()
        };
        assert_eq!(args.filter, ["a=1", "b=2"]);
        assert!(read(&["images", "-q", "--json"]).is_err());
    }

    #[test]
    fn every_switch_of_every_command_takes_a_value() {
        fn check(command: &Command, seen: &mut usize) {
            for arg in command.get_arguments() {
                assert!(!matches!(arg.get_action(), ArgAction::SetTrue), "{arg}");
                *seen += 1;
            }
            for below in command.get_subcommands() {
                check(below, seen);
            }
        }
        let mut seen = 0;
        check(&lenient(Cli::command()), &mut seen);
        assert!(seen > 100, "{seen}");
        lenient(Cli::command()).debug_assert();
    }

    #[test]
    fn options_of_all_commands_are_sent_before_the_command() {
        for (words, option) in [
            (&["images", "--registry", "r:1"][..], "--registry"),
            (&["pull", "--registry-pass=x", "img"], "--registry-pass"),
            (&["image", "ls", "-I", "x"], "-I"),
            (&["memres", "start", "--memory=1G"], "--memory"),
        ] {
            let text = said(words);
            assert!(
                text.contains(&format!("option {option} is")) && text.contains("before"),
                "{text}"
            );
            assert!(!text.contains("=x"), "{text}");
        }
        let text = said(&["images", "--nothing"]);
        assert!(text.contains("--nothing") && !text.contains("before the"));
        // What is hidden is not pointed to.
        assert!(!said(&["images", "--storage", "x"]).contains("before the"));
        for words in [&["pull", "--version"][..], &["--version"]] {
            let error = read(words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::DisplayVersion);
        }
    }

    #[test]
    fn help_of_run_is_its_own() {
        for words in [
            &["help", "run"][..],
            &["-v", "help", "create"],
            &["help", "container", "run"],
            &["container", "help", "create"],
        ] {
            let Some(
                Verb::Run { words: given }
                | Verb::Create { words: given }
                | Verb::Container {
                    command:
                        ContainerGroup::Run { words: given } | ContainerGroup::Create { words: given },
                },
            ) = read(words).unwrap().command
            else {
                panic!("{words:?}")
            };
            assert_eq!(given, ["--help"], "{words:?}");
        }
        let error = read(&["help", "images"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::DisplayHelp);
        // The help is the plain one.
        assert!(
            !said(&["ps", "--help"]).contains("[=<"),
            "{}",
            said(&["ps", "--help"])
        );
        assert!(!said(&["--help"]).contains("--no-daemon"));
    }
}
