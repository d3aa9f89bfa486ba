//! `vdkr run`, `create` and `vrun`: a new container.

use std::{
    ffi::OsString,
    fs,
    io::{self, IsTerminal as _},
};

use vdkr_core::{
    channel::message::{ContainerReply, Life, Network, Reply, Request, RunRequest, Until},
    volume::{MountOption, Source},
};

use super::{memres, wrong_reply};
use crate::{
    exit::Exit,
    out,
    progress::Mode,
    vdkr::{
        attach::{FAILED, Terms, ask, attach},
        environment,
        error::{Error, Result},
        granted::{Granted, is_id},
        layers,
        news::News,
        platform,
        publish::{Target, no_ports, publish, wanted},
        registry,
        run_options::{self, Parsed, RunOptions, Verb},
        sandbox,
        session::{Session, with_session},
        settings::Settings,
        volumes, volumes_from,
        words::say,
    },
};

/// Runs a container and returns its status. Wrong settings are a failure of `run` too.
pub async fn run(settings: Result<Settings>, verb: Verb, words: Vec<OsString>) -> u8 {
    let status = match settings {
        Ok(settings) => try_run(&settings, verb, words).await,
        Err(error) => Err(error),
    };
    match status {
        Ok(status) => status,
        Err(error) => {
            say(&error.to_string());
            error.signalled().unwrap_or(FAILED)
        }
    }
}

async fn try_run(settings: &Settings, verb: Verb, words: Vec<OsString>) -> Result<u8> {
    let options = match run_options::parse(verb, words).map_err(|e| Error::usage(e.to_string()))? {
        Parsed::Run(options) => options,
        Parsed::Help => {
            out!("{}", verb.help().trim_end());
            return Ok(0);
        }
    };
    let until = match (verb, options.detach) {
        (Verb::Create, _) => Until::Created,
        (_, true) => Until::Started,
        (_, false) => Until::Ended,
    };
    if until == Until::Ended && options.tty && options.interactive && !io::stdin().is_terminal() {
        return Err(Error::usage("the input device is not a TTY"));
    }
    registry::check_name(&options.image)?;
    if let (Some(wanted), None) = (&options.platform, &settings.target) {
        platform::check(wanted, settings.arch.oci_name(), verb.word())?;
    }
    let registry_settings = registry::for_request(settings, &[&options.image])?;
    let mounts = volumes::check(&options.mounts)?;
    let env = environment::assemble(&options.env, &|name| std::env::var(name).ok())?;
    for warning in &options.warnings {
        say(warning);
    }
    let mut sandbox = sandbox::assemble(&options.sandbox)?;
    if settings.target.is_some() {
        check_for_target(&options, until)?;
    }
    let cidfile = options.cidfile.as_deref().map(new_cidfile).transpose()?;
    // What is gone when its machine ends needs one that stays.
    if until == Until::Started || (until == Until::Created && options.rm) {
        memres::ensure(settings).await?;
    }
    with_session(settings, verb.purpose(), async |session| {
        if let (Some(wanted), true) = (&options.platform, session.is_target()) {
            platform::check(
                wanted,
                platform::architecture(session, settings),
                verb.word(),
            )?;
        }
        let mut mounts = volumes::share(session, mounts).await?;
        volumes_from::add(session, settings, &options.volumes_from, &mut mounts).await?;
        let mut request = RunRequest {
            image: registry::translate_name(&options.image),
            args: options.args.clone(),
            entrypoint: options
                .entrypoint
                .clone()
                .map(|program| match program.as_str() {
                    "" => Vec::new(),
                    _ => vec![program],
                }),
            env,
            workdir: options.workdir.clone(),
            user: options.user.clone(),
            hostname: options.hostname.clone(),
            tty: options.tty,
            stdin: options.interactive,
            name: options.name.clone(),
            rm: options.rm,
            life: Life {
                until,
                restart: options.restart,
                init: options.init,
                stop_signal: options.stop_signal,
                stop_timeout: options.stop_timeout,
                labels: options.labels.clone(),
            },
            read_only: options.read_only,
            mounts,
            pull: options.pull,
            settings: registry_settings,
            ..RunRequest::default()
        };
        let mode = if options.quiet {
            Mode::None
        } else {
            settings.global.progress
        };
        let mut news = News::new(mode, settings.verbose);
        layers::prepare(session, settings, &mut request, &mut news).await?;
        let target = Target {
            image: &request.image,
            pull: request.pull,
            settings: &request.settings,
        };
        let ports = wanted(session, &options.sandbox, &target).await?;
        let granted = Granted {
            machine: sandbox.network == Network::Host,
            ports: ports.clone(),
            ..Granted::of_mounts(&request.mounts)
        };
        // One that is only made gets its ports at its start.
        let published = !ports.is_empty() && until != Until::Created;
        if published {
            publish(session, ports, options.name.as_deref(), &mut sandbox).await?;
        }
        request.sandbox = sandbox;
        let request = Request::Run(request);
        let mut news = news.with_id_to(cidfile);
        if !options.rm {
            let settings = settings.clone();
            news = news.with_hook(move |id| granted.note(&settings, id));
        }
        if until == Until::Ended {
            let terms = Terms {
                tty: options.tty,
                interactive: options.interactive,
                sig_proxy: options.sig_proxy,
                detach_keys: options.detach_keys.clone(),
            };
            let news = news.with_ports(published.then(|| session.adoption()).flatten());
            attach(session, &request, terms, news).await
        } else {
            begin(session, &request, news, published).await
        }
    })
    .await
}

/// What a target cannot do is told before anything happens there.
fn check_for_target(options: &RunOptions, until: Until) -> Result<()> {
    if options.sandbox.publishes() {
        return Err(no_ports());
    }
    let of_host = |mount: &MountOption| matches!(mount.source, Source::Host(_));
    if until != Until::Ended && options.mounts.iter().any(of_host) {
        return Err(Error::usage(
            "directories of this computer reach a target only as long as this command is there, \
             and the container would outlive it",
        )
        .with_hint("run it without -d, or use a volume: -v NAME:/path"));
    }
    Ok(())
}

/// Has a container made, and started when the request says so; prints its id.
async fn begin(
    session: &mut Session,
    request: &Request,
    mut news: News,
    published: bool,
) -> Result<u8> {
    match ask(session, request, &mut news).await? {
        Reply::Container(ContainerReply::Created { id }) => {
            if !is_id(&id) {
                let message = "the machine's agent gives the container an id that is none";
                return Err(Error::new(Exit::Failed, message));
            }
            if published {
                session.adopt_ports(&id).await?;
            }
            news.write_id(&id);
            out!("{id}");
            Ok(0)
        }
        // Its command could not be executed.
        Reply::Ran { status } => Ok(u8::try_from(status & 0xff).unwrap_or(FAILED)),
        other => Err(wrong_reply(&other)),
    }
}

/// Makes the file for the id, which must not be there yet.
fn new_cidfile(path: &str) -> Result<fs::File> {
    match fs::File::create_new(path) {
        Ok(file) => Ok(file),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(Error::usage(format!(
            "the file {path} for the container's id is there already; remove it, or name another"
        ))),
        Err(error) => Err(Error::usage(format!("cannot make {path}: {error}"))),
    }
}
