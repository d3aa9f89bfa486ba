//! The command `vdkr`.

pub mod args;
pub mod attach;
pub mod command;
pub mod config;
pub mod container_args;
pub mod docker_options;
pub mod environment;
pub mod error;
pub mod human;
pub mod labels;
pub mod layers;
pub mod news;
pub mod registry;
pub mod roots;
pub mod run_options;
pub mod session;
pub mod settings;
pub mod since;
pub mod state;
pub mod table;
pub mod terminal;
pub mod value;

use clap::CommandFactory as _;

use self::{
    args::{Cli, Command, ImageCommand, missing_command},
    error::{Error, Result},
    run_options::Verb,
    session::say,
    settings::{Settings, Surroundings},
};
use crate::exit::Exit;

/// Does what the command line asks for and ends the process with its status.
pub fn main() -> ! {
    let status = match Cli::read(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(cli) => execute(cli),
        Err(error) => {
            // A reader that has seen enough of the help is no failure.
            let _ = error.print();
            if error.use_stderr() {
                Exit::Usage.code()
            } else {
                Exit::Done.code()
            }
        }
    };
    std::process::exit(status.into());
}

fn execute(cli: Cli) -> u8 {
    // One thread, this one: the emulator is bound to the life of the thread that started it.
    let runtime = match tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            say(&format!("cannot start: {error}"));
            return Exit::Failed.code();
        }
    };
    let status = match runtime.block_on(dispatch(cli)) {
        Ok(status) => status,
        Err(error) => {
            say(&error.to_string());
            error.signalled().unwrap_or(error.exit().code())
        }
    };
    // A thread that waits for input would be waited for.
    runtime.shutdown_background();
    status
}

async fn dispatch(cli: Cli) -> Result<u8> {
    let Some(command) = cli.command else {
        crate::output::write(format_args!("{}", Cli::command().render_help()));
        return Ok(Exit::Done.code());
    };
    if let Command::Other(words) = &command {
        let name = words
            .first()
            .map(|name| name.to_string_lossy())
            .unwrap_or_default();
        return Err(Error::usage(missing_command(&name)));
    }
    let settings = Settings::resolve(cli.global, &Surroundings::real());
    match command {
        Command::Run { words } => return Ok(command::run::run(settings, Verb::Run, words).await),
        Command::Create { words } => {
            return Ok(command::run::run(settings, Verb::Create, words).await);
        }
        Command::Vrun { words } => return Ok(command::run::run(settings, Verb::Vrun, words).await),
        _ => {}
    }
    let settings = settings?;
    match command {
        Command::Pull(args)
        | Command::Image {
            command: ImageCommand::Pull(args),
        } => command::pull::run(&settings, &args).await,
        Command::Images(args)
        | Command::Image {
            command: ImageCommand::Ls(args),
        } => command::images::run(&settings, &args).await,
        Command::Inspect(args) => command::inspect::run(&settings, &args).await,
        Command::Image {
            command: ImageCommand::Inspect(mut args),
        } => {
            args.kind.get_or_insert_with(|| "image".to_owned());
            command::inspect::run(&settings, &args).await
        }
        Command::Rmi(args)
        | Command::Image {
            command: ImageCommand::Rm(args),
        } => command::remove::run(&settings, &args).await,
        Command::Tag(args)
        | Command::Image {
            command: ImageCommand::Tag(args),
        } => command::tag::run(&settings, &args).await,
        Command::Vconfig(args) => command::vconfig::run(&settings, &args),
        Command::Memres { command } => command::memres::run(&settings, &command).await,
        Command::Vstorage { command } => command::vstorage::run(&settings, &command).await,
        Command::Version => command::version::run(&settings).await,
        Command::Containers(command) => command::container::run(&settings, command).await,
        Command::Run { .. } | Command::Create { .. } | Command::Vrun { .. } | Command::Other(_) => {
            Err(Error::usage("unknown command"))
        }
    }
}
