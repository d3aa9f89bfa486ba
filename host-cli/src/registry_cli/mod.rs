//! `container-registry`: the registry of a Yocto build, from the command line.

/// Shadows the standard macro, so that whatever is said here is a JSON line where stderr shall be that
/// (`--progress jsonl`).
macro_rules! eprintln {
    () => {
        $crate::progress::speak(format_args!(""))
    };
    ($($arg:tt)+) => {
        $crate::progress::speak(format_args!($($arg)*))
    };
}

pub mod args;
pub mod auth;
pub mod candidate;
pub mod command;
pub mod config;
pub mod confirm;
pub mod deploy;
pub mod doctor;
pub mod error;
pub mod facts;
pub mod help;
pub mod images;
pub mod index;
pub mod instance;
pub mod listen;
pub mod maintenance;
pub mod name;
pub mod notify;
pub mod prompt;
pub mod remote;
pub mod secure;
pub mod tagging;
pub mod transport;

use std::env::VarError;
use std::process::ExitCode;

use anyhow::Result;

use self::args::{Cli, Command, GlobalArgs, ServeArgs};
use self::command::push::PushArgs;
use self::config::{Config, ConfigError, KEYS, Origin, Overrides};
use self::error::{exit_of, printable, words};
use crate::exit::Exit;
use crate::progress::{self, Mode};

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let cli = match help::read(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    let json = cli.global.progress == Mode::Jsonl;
    if json {
        progress::speak_json();
    }
    tracing_subscriber::fmt()
        .with_writer(|| progress::Spoken)
        .with_ansi(false)
        .with_max_level(log_level())
        // A log that cannot be written is no reason to stop.
        .log_internal_errors(false)
        .with_target(false)
        .init();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start worker threads: {error}");
            return Exit::Failed.into();
        }
    };
    let logs_in = matches!(cli.command, Command::Login(_));
    match runtime.block_on(run(cli)) {
        Ok(exit) => exit.into(),
        Err(error) => {
            eprintln!("error: {}", printable(&words(&error)));
            let exit = exit_of(&error);
            if exit == Exit::Denied && !logs_in {
                eprintln!(
                    "hint: container-registry auth explain shows which credentials were used and why; container-registry login stores new ones"
                );
            }
            exit.into()
        }
    }
}

fn log_level() -> tracing::level_filters::LevelFilter {
    std::env::var("CONTAINER_REGISTRY_LOG")
        .ok()
        .and_then(|level| level.parse().ok())
        .unwrap_or(tracing::level_filters::LevelFilter::WARN)
}

async fn run(cli: Cli) -> Result<Exit> {
    // These work whatever the configuration is.
    match &cli.command {
        Command::Completions(args) => {
            command::completions::run(args)?;
            return Ok(Exit::Done);
        }
        Command::Man(args) => {
            command::man::run(args)?;
            return Ok(Exit::Done);
        }
        _ => {}
    }
    let config = configuration(&cli.global, &cli.command)?;
    for warning in config.warnings() {
        eprintln!("warning: {warning}");
    }
    let progress = cli.global.progress;
    match cli.command {
        Command::Start(_) => command::start::run(&config).await?,
        Command::Stop => command::stop::run(&config).await?,
        Command::Status(args) => return command::status::run(&config, args.json).await,
        Command::Serve(_) => command::serve::run(&config).await?,
        Command::Push(args) => return command::push::run(&config, &args, progress).await,
        Command::Import(args) => return command::import::run(&config, &args, progress).await,
        Command::Copy(args) => command::copy::run(&config, &args, progress).await?,
        Command::Inspect(args) => command::inspect::run(&config, &args).await?,
        Command::List(args) => command::list::run(&config, &args).await?,
        Command::Tags(args) => command::tags::run(&config, &args).await?,
        Command::Catalog(args) => command::catalog::run(&config, args.json).await?,
        Command::Delete(args) => return command::delete::run(&config, &args).await,
        Command::Login(args) => command::login::run(&config, &args).await?,
        Command::Logout(args) => command::logout::run(&config, &args)?,
        Command::Auth(args) => return command::auth::run(&config, &args),
        Command::Doctor(args) => return command::doctor::run(&config, &args).await,
        Command::Pki(args) => command::pki::run(&config, &args).await?,
        Command::Bake(args) => return command::bake::run(&config, &args),
        Command::Label(args) => return command::label::run(&config, &args),
        Command::History(args) => command::history::run(&config, &args).await?,
        Command::Rollback(args) => command::rollback::run(&config, &args).await?,
        Command::Pin(args) => command::pin::run(&config, &args, true).await?,
        Command::Unpin(args) => command::pin::run(&config, &args, false).await?,
        Command::Prune(args) => return command::prune::run(&config, &args).await,
        Command::Gc(args) => return command::gc::run(&config, &args).await,
        Command::Fsck(args) => return command::fsck::run(&config, &args).await,
        Command::Config(args) => command::config::run(&config, args.json)?,
        Command::Info => command::info::run(&config),
        // Done above.
        Command::Completions(_) | Command::Man(_) => {}
    }
    Ok(Exit::Done)
}

fn configuration(global: &GlobalArgs, command: &Command) -> Result<Config> {
    let mut overrides = global.overrides();
    let mut add = |key, option, value: &Option<String>| {
        if let Some(value) = value {
            overrides.push((key, option, value.clone()));
        }
    };
    match command {
        Command::Start(ServeArgs { listen }) | Command::Serve(ServeArgs { listen }) => {
            add("listen", "--listen", listen);
        }
        Command::Push(PushArgs {
            strategy,
            image_version,
            deploy_dir_images,
            deploy_dir_image,
            ..
        }) => {
            add("tag_strategy", "--strategy", strategy);
            add("image_version", "--version", image_version);
            add(
                "deploy_dir_images",
                "--deploy-dir-images",
                deploy_dir_images,
            );
            add("deploy_dir_image", "--deploy-dir-image", deploy_dir_image);
        }
        Command::Bake(args) => args.overrides(&mut overrides),
        Command::Label(args) => add("image_version", "--version", &args.image_version),
        _ => {}
    }
    let overrides: Overrides = overrides;
    // What is no text would count as unset, and another storage or registry be used without a word.
    for key in KEYS {
        if let Err(VarError::NotUnicode(value)) = std::env::var(key.env) {
            Err(ConfigError::Value {
                name: key.name,
                value: if key.secret {
                    "***".to_owned()
                } else {
                    value.to_string_lossy().into_owned()
                },
                origin: Origin::Environment(key.env),
                reason: "expected text in UTF-8".to_owned(),
            })?;
        }
    }
    Ok(Config::resolve(&overrides, &|name| {
        std::env::var(name).ok()
    })?)
}
