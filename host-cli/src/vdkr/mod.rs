//! The command `vdkr`.

pub mod args;
pub mod attach;
pub mod baked;
pub mod command;
pub mod config;
pub mod container_args;
pub mod content;
pub mod docker_options;
pub mod environment;
pub mod error;
pub mod expression;
pub mod format;
pub mod granted;
pub mod health;
pub mod human;
pub mod image_args;
pub mod labels;
pub mod layers;
pub mod line;
pub mod logins;
pub mod machine_args;
pub mod names;
pub mod nearest;
pub mod news;
pub mod old;
pub mod old_config;
pub mod platform;
pub mod publish;
pub mod registry;
pub mod roots;
pub mod run_options;
pub mod sandbox;
pub mod sandbox_options;
pub mod session;
pub mod settings;
pub mod since;
pub mod state;
pub mod terminal;
pub mod value;
pub mod volume_args;
pub mod volumes;
pub mod volumes_from;
pub mod words;

use clap::CommandFactory as _;

use self::{
    args::{Cli, Command, missing_command},
    container_args::ContainerGroup,
    error::{Error, Result},
    image_args::{ImageCommand, SystemCommand},
    machine_args::VstorageCommand,
    run_options::Verb,
    settings::{Settings, Surroundings},
    words::say,
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

async fn dispatch(mut cli: Cli) -> Result<u8> {
    old::apply(&mut cli)?;
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
    let outside = Surroundings::real();
    let config_dir = settings::config_dir(&cli.global, &outside);
    let settings = Settings::resolve(cli.global, &outside);
    if let Ok(Some(notice)) = settings.as_ref().map(|settings| settings.config.notice()) {
        say(&notice);
    }
    for word in old::of_variables(outside.variable) {
        say(&word);
    }
    match command {
        Command::Run { words }
        | Command::Container {
            command: ContainerGroup::Run { words },
        } => return Ok(command::run::run(settings, Verb::Run, words).await),
        Command::Create { words }
        | Command::Container {
            command: ContainerGroup::Create { words },
        } => {
            return Ok(command::run::run(settings, Verb::Create, words).await);
        }
        Command::Vrun { words } => return Ok(command::run::run(settings, Verb::Vrun, words).await),
        // What is wrong may be what it is to change.
        Command::Vconfig(ref args)
            if settings.is_err() && command::vconfig::mend(&config_dir?, args)? =>
        {
            return Ok(0);
        }
        _ => {}
    }
    let settings = settings?;
    match command {
        Command::History(args) => command::history::run(&settings, &args).await,
        Command::Images(args) => command::images::run(&settings, &args).await,
        Command::Image { command } => image(&settings, command).await,
        Command::Import(args) => command::import::run(&settings, &args).await,
        Command::Info(args) => command::info::run(&settings, &args).await,
        Command::Inspect(args) => command::inspect::run(&settings, &args).await,
        Command::Load(args) => command::load::run(&settings, &args).await,
        Command::Login(args) => command::login::run(&settings, &args).await,
        Command::Logout(args) => command::logout::run(&settings, &args),
        Command::Pull(args) => command::pull::run(&settings, &args).await,
        Command::Push(args) => command::push::run(&settings, &args).await,
        Command::Rmi(args) => command::remove::run(&settings, &args).await,
        Command::Save(args) => command::save::run(&settings, &args).await,
        Command::Search { .. } => Err(command::search::instead()),
        Command::System { command } => match command {
            SystemCommand::Df(args) => command::df::run(&settings, &args).await,
            SystemCommand::Info(args) => command::info::run(&settings, &args).await,
            SystemCommand::Prune(args) => command::system_prune::run(&settings, &args).await,
            SystemCommand::Events { .. } => Err(command::search::no_events()),
        },
        Command::Tag(args) => command::tag::run(&settings, &args).await,
        Command::Vimport(args) => command::vimport::run(&settings, &args).await,
        Command::Vconfig(args) => command::vconfig::run(&settings, &args).await,
        Command::Memres { command } => command::memres::run(&settings, &command).await,
        Command::Port(args) => command::port::run(&settings, &args).await,
        Command::Vstorage { command } => command::vstorage::run(&settings, &command).await,
        Command::Version(args) => command::version::run(&settings, &args).await,
        Command::Volume { command } => command::volume::run(&settings, command).await,
        Command::Clean(args) => {
            say("clean is called vstorage clean now");
            command::vstorage::run(&settings, &VstorageCommand::Clean(args)).await
        }
        Command::Containers(command) => command::container::run(&settings, command).await,
        Command::Container { command } => container(&settings, command).await,
        Command::Run { .. } | Command::Create { .. } | Command::Vrun { .. } | Command::Other(_) => {
            Err(Error::usage("unknown command"))
        }
    }
}

async fn container(settings: &Settings, command: ContainerGroup) -> Result<u8> {
    match command {
        ContainerGroup::Alone(command) => command::container::run(settings, command).await,
        ContainerGroup::Inspect(mut args) => {
            args.kind.get_or_insert_with(|| "container".to_owned());
            command::inspect::run(settings, &args).await
        }
        ContainerGroup::Ls(args) => command::container::ps::run(settings, &args).await,
        ContainerGroup::Prune(args) => command::container::prune::run(settings, &args).await,
        ContainerGroup::Run { .. } | ContainerGroup::Create { .. } => {
            Err(Error::usage("unknown command"))
        }
    }
}

async fn image(settings: &Settings, command: ImageCommand) -> Result<u8> {
    match command {
        ImageCommand::History(args) => command::history::run(settings, &args).await,
        ImageCommand::Import(args) => command::import::run(settings, &args).await,
        ImageCommand::Inspect(mut args) => {
            args.kind.get_or_insert_with(|| "image".to_owned());
            command::inspect::run(settings, &args).await
        }
        ImageCommand::Load(args) => command::load::run(settings, &args).await,
        ImageCommand::Ls(args) => command::images::run(settings, &args).await,
        ImageCommand::Prune(args) => command::prune::run(settings, &args).await,
        ImageCommand::Pull(args) => command::pull::run(settings, &args).await,
        ImageCommand::Push(args) => command::push::run(settings, &args).await,
        ImageCommand::Rm(args) => command::remove::run(settings, &args).await,
        ImageCommand::Save(args) => command::save::run(settings, &args).await,
        ImageCommand::Tag(args) => command::tag::run(settings, &args).await,
    }
}
