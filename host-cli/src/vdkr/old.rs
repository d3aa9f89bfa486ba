//! What the earlier shell program had on its command line: what is cheap to honour is honoured, of
//! the rest is said what to use instead.

use std::{ffi::OsString, path::PathBuf};

use clap::Args;

use super::{
    args::{Cli, Command},
    container_args::{ContainerCommand, ContainerGroup},
    error::{Error, Result},
    words::say,
};

/// Options that stood before the command.
#[derive(Clone, Debug, Default, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of the command line"
)]
pub struct OldOptions {
    /// Keep no machine that this command starts.
    #[arg(long, hide = true)]
    pub no_daemon: bool,
    /// The container's network is none.
    #[arg(long, hide = true)]
    pub no_network: bool,
    /// The state was written into this archive.
    #[arg(long, hide = true)]
    pub storage: Option<PathBuf>,
    /// The state was made of this archive.
    #[arg(long, hide = true)]
    pub input_storage: Option<PathBuf>,
    /// `-i` and `-t` of the command.
    #[arg(long, hide = true)]
    pub interactive: bool,
    /// `-i` of the command.
    #[arg(short = 'i', hide = true)]
    pub stdin: bool,
    /// `-t` of the command.
    #[arg(short = 't', hide = true)]
    pub tty: bool,
}

/// Has the old options mean what they meant, or refuses them.
pub fn apply(cli: &mut Cli) -> Result<()> {
    let old = cli.global.old.clone();
    if old.storage.is_some() {
        return Err(Error::usage(
            "there is no --storage: images stay in the machine's state directory",
        )
        .with_hint(
            "that is printed by: vdkr vstorage path; images are taken out of it by: vdkr \
                     save -o FILE IMAGE",
        ));
    }
    if old.input_storage.is_some() {
        return Err(Error::usage("there is no --input-storage")
            .with_hint("bring images in by: vdkr load -i FILE, or vdkr vimport PATH NAME"));
    }
    let stdin = old.stdin || old.interactive;
    let tty = old.tty || old.interactive;
    let Some(command) = &mut cli.command else {
        return Ok(());
    };
    let mut added: Vec<OsString> = Vec::new();
    if stdin {
        added.push("-i".into());
    }
    if tty {
        added.push("-t".into());
    }
    if old.no_network {
        added.push("--network=none".into());
    }
    if added.is_empty() {
        return Ok(());
    }
    match command {
        Command::Run { words }
        | Command::Create { words }
        | Command::Vrun { words }
        | Command::Container {
            command: ContainerGroup::Run { words } | ContainerGroup::Create { words },
        } => {
            if old.no_network {
                say("--no-network: the container gets no network, as by run --network none");
            }
            words.splice(0..0, added);
            Ok(())
        }
        _ if old.no_network => Err(Error::usage(
            "--no-network is about containers: images are pulled by this computer",
        )
        .with_hint("use it as: vdkr run --network none IMAGE")),
        Command::Containers(ContainerCommand::Exec(args))
        | Command::Container {
            command: ContainerGroup::Alone(ContainerCommand::Exec(args)),
        } => {
            args.interactive |= stdin;
            args.tty |= tty;
            Ok(())
        }
        _ => Err(
            Error::usage("-i and -t before the command are for run, create, vrun and exec")
                .with_hint("use them as: vdkr run -it IMAGE, vdkr exec -it CONTAINER COMMAND"),
        ),
    }
}

/// What to say of variables of the earlier program that are set and do nothing any more.
pub fn of_variables(variable: &dyn Fn(&str) -> Option<String>) -> Vec<String> {
    let gone = GONE.into_iter().filter(|(name, meant, _)| {
        variable(name).is_some_and(|value| !meant.contains(&value.as_str()))
    });
    gone.map(|(name, _, instead)| format!("the variable {name} has no effect: {instead}"))
        .collect()
}

/// Variables, values that still say what is so, and what to use instead.
const GONE: [(&str, &[&str], &str); 4] = [
    (
        "VCONTAINER_CA_DIR",
        &[],
        "name a file of certificates by --ca-cert FILE, or for good by: vdkr vconfig ca-cert FILE",
    ),
    (
        "VCONTAINER_LIBDIR",
        &[],
        "this program is one file; machine images are named by --blob-dir DIR",
    ),
    (
        "VCONTAINER_HYPERVISOR",
        &["qemu"],
        "machines run under QEMU; what accelerates it is named by --accel",
    ),
    (
        "VDKR_RUNNER",
        &[],
        "machines are started by this program itself; another one is talked to by --target",
    ),
];

/// Ports of the whole machine.
pub fn no_ports_of_machine() -> Error {
    Error::usage("ports are published by containers, not by the machine")
        .with_hint("use: vdkr run -d -p 8080:80 IMAGE")
}

/// Ports that nothing closed.
pub fn no_ports_to_clean() -> Error {
    Error::usage("there are no ports to clean: they close when their container ends")
        .with_hint("which there are is told by: vdkr ps, vdkr port CONTAINER")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Result<Cli> {
        let line: Vec<_> = ["vdkr"].iter().chain(words).map(OsString::from).collect();
        let mut cli = Cli::read(&line).unwrap();
        apply(&mut cli)?;
        Ok(cli)
    }

    #[test]
    fn a_terminal_asked_for_before_the_command_is_the_containers() {
        for (before, expected) in [
            (&["-it"][..], &["-i", "-t"][..]),
            (&["-t", "-i"], &["-i", "-t"]),
            (&["-i"], &["-i"]),
            (&["--interactive"], &["-i", "-t"]),
            (&["--no-network"], &["--network=none"]),
            (&["-v"], &[]),
        ] {
            for command in [&["run"][..], &["vrun"], &["create"], &["container", "run"]] {
                let cli = read(&[before, command, &["img", "-x"]].concat()).unwrap();
                let Some(
                    Command::Run { words }
                    | Command::Create { words }
                    | Command::Vrun { words }
                    | Command::Container {
                        command: ContainerGroup::Run { words },
                    },
                ) = cli.command
                else {
                    panic!("{command:?}")
                };
                assert_eq!(words, [expected, &["img", "-x"]].concat(), "{before:?}");
            }
        }
        let cli = read(&["-it", "exec", "web", "sh"]).unwrap();
        let Some(Command::Containers(ContainerCommand::Exec(args))) = cli.command else {
            panic!()
        };
        assert!(args.interactive && args.tty);
    }

    #[test]
    fn variables_that_do_nothing_are_told_of() {
        let told = |set: &[(&str, &str)]| {
            let value = |name: &str| set.iter().find(|(known, _)| *known == name);
            of_variables(&|name| value(name).map(|(_, value)| (*value).to_owned()))
        };
        assert!(told(&[("VCONTAINER_HYPERVISOR", "qemu")]).is_empty());
        assert!(told(&[("VDKR_ARCH", "x86_64")]).is_empty());
        for (name, instead) in [
            ("VCONTAINER_CA_DIR", "--ca-cert"),
            ("VCONTAINER_LIBDIR", "--blob-dir"),
            ("VCONTAINER_HYPERVISOR", "--accel"),
            ("VDKR_RUNNER", "--target"),
        ] {
            let told = told(&[(name, "/x")]);
            assert_eq!(told.len(), 1, "{name}");
            assert!(
                told[0].contains(name) && told[0].contains(instead),
                "{told:?}"
            );
        }
    }

    #[test]
    fn what_is_gone_says_what_to_use_instead() {
        for (words, instead) in [
            (&["--storage", "x.tar", "pull", "img"][..], "vdkr save -o"),
            (&["--input-storage", "x.tar", "run", "img"], "vdkr load -i"),
            (&["--no-network", "images"], "run --network none"),
            (&["-it", "images"], "vdkr run -it"),
        ] {
            let error = read(words).unwrap_err().to_string();
            assert!(error.contains(instead), "{words:?}: {error}");
        }
        assert!(read(&["--no-daemon", "images"]).is_ok());
    }
}
