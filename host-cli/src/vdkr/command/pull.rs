//! `vdkr pull`: images from registries into the machine.

use std::cell::RefCell;
use std::sync::Arc;

use vdkr_core::{
    candidates::{Source, pull_candidates},
    channel::message::{PullRequest, Pulled, Reply, Request},
    credentials::Credential,
    reference::{Host, Reference},
};
use vdkr_transfer::{Repository, TransferError, pull::ImageError};

use super::wrong_reply;
use crate::{
    exit::Exit,
    out_line,
    output::plain,
    progress::Mode,
    vdkr::{
        error::{Error, Result},
        image_args::PullArgs,
        layers, logins,
        news::News,
        platform, registry,
        session::{Session, interruptible, with_session},
        settings::Settings,
        words::say,
    },
    vm::channel::Incoming,
};

/// Pulls one after the other, and prints the names under which the images are stored; one that
/// cannot be pulled does not stop the others.
pub async fn run(settings: &Settings, args: &PullArgs) -> Result<u8> {
    for name in &args.names {
        registry::check_name(name)?;
    }
    let asked: Vec<&str> = args.names.iter().map(String::as_str).collect();
    let registries = registry::for_request(settings, &asked)?;
    let names = match args.all_tags {
        true => interruptible(all_tags(settings, &args.names)).await?,
        false => args.names.clone(),
    };
    let outcomes = with_session(settings, "vdkr pull", async |session| {
        let mode = match args.quiet {
            true => Mode::None,
            false => settings.global.progress,
        };
        if let Some(platform) = &args.platform {
            let own = platform::architecture(session, settings);
            if let Some(warning) = platform::warning(platform, own)? {
                say(&warning);
            }
        }
        let mut outcomes = Vec::new();
        for name in &names {
            let request = PullRequest {
                reference: registry::translate_name(name),
                settings: registries.clone(),
                platform: args.platform.clone(),
            };
            let mut news = News::new(mode, settings.verbose);
            match pull(session, settings, request, &mut news).await {
                Ok(pulled) => {
                    if mode != Mode::None {
                        eprintln!("Digest: {}", plain(&pulled.digest));
                    }
                    out_line!("{}", pulled.name);
                    outcomes.push(Exit::Done);
                }
                // Alone, it is the command's own error.
                Err(error) if names.len() == 1 || error.signalled().is_some() => return Err(error),
                Err(error) => {
                    say(&error.to_string());
                    outcomes.push(error.exit());
                }
            }
        }
        Ok(outcomes)
    })
    .await?;
    Ok(Exit::of_several(outcomes).code())
}

/// Every tag of these repositories, in the first registry that knows them.
async fn all_tags(settings: &Settings, names: &[String]) -> Result<Vec<String>> {
    let given = logins::given(settings)?;
    let prefix = registry::configured(settings)?;
    let mut all = Vec::new();
    for name in names {
        let reference = Reference::parse(name)?;
        if reference.tag().is_some() || reference.digest().is_some() {
            return Err(Error::usage(format!(
                "{name:?} has a tag or digest; with --all-tags give the repository alone"
            )));
        }
        let mut found = None;
        for candidate in pull_candidates(name, prefix.as_ref())? {
            let mut host = candidate.reference.clone();
            if let Ok(local) = Reference::from_parts(
                registry::host_side(host.host()),
                host.repository(),
                None,
                None,
            ) {
                host = local;
            }
            let login = given.for_host(host.host(), "", prefix.as_ref())?;
            let own = host.host().clone();
            let credentials = move |asked: &Host| {
                Ok(if *asked == own {
                    login.clone()
                } else {
                    Credential::Anonymous
                })
            };
            let client = registry::client(settings, Arc::new(credentials))?;
            match client.tags(&Repository::from(&host)).await {
                Ok(tags) => {
                    found = Some((host.without_tag(), tags));
                    break;
                }
                Err(TransferError::NotFound { .. }) => {}
                // With the words of a pull, which say how to do without the configured registry.
                Err(error) => {
                    return Err(ImageError::Pull {
                        reference: host.without_tag().to_string(),
                        unknown: Vec::new(),
                        source: Box::new(error),
                        registry: prefix
                            .as_ref()
                            .filter(|_| candidate.source == Source::Registry)
                            .map(ToString::to_string),
                    }
                    .into());
                }
            }
        }
        let Some((repository, tags)) = found else {
            return Err(Error::new(
                Exit::NotFound,
                format!("no repository {name:?}"),
            ));
        };
        for tag in tags {
            all.push(repository.with_tag(&tag)?.to_string());
        }
    }
    Ok(all)
}

/// Pulls in the place that the user wants, or where it can be done.
async fn pull(
    session: &mut Session,
    settings: &Settings,
    request: PullRequest,
    news: &mut News,
) -> Result<Pulled> {
    session.check_reach(&request.reference, &request.settings)?;
    if layers::pulls_here(session, settings, &request.settings) {
        let shown = RefCell::new(&mut *news);
        if let Some(pulled) = layers::pull(session, settings, &request, &shown).await? {
            return Ok(pulled);
        }
    }
    let request = Request::Pull(request);
    let done = interruptible(async {
        let mut call = session.connection.call(&request).await?;
        loop {
            match call.next().await {
                Ok(Incoming::Event(event)) => news.show(&event),
                Ok(Incoming::Data(pipe, bytes)) => {
                    call.sender().consumed(pipe, bytes.len()).await?;
                }
                Ok(Incoming::Done(done)) => return Ok(Ok(done)),
                Err(error) => return Ok(Err(error)),
            }
        }
    })
    .await?;
    match session.answer(done).await? {
        Reply::Pulled(pulled) => Ok(pulled),
        other => Err(wrong_reply(&other)),
    }
}
