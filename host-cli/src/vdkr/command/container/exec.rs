//! `vdkr exec`: one more process in a container.

use std::io::{self, IsTerminal as _};

use vdkr_core::channel::message::{ContainerReply, ContainerRequest, ExecRequest, Reply, Request};

use crate::vdkr::{
    attach::{FAILED, Terms, ask, attach},
    command::wrong_reply,
    container_args::ExecArgs,
    environment,
    error::{Error, Result},
    news::News,
    run_options::EnvSource,
    session::with_session,
    settings::Settings,
};

/// Runs it to its end, or with `--detach` until it runs; its status.
pub async fn run(settings: &Settings, args: ExecArgs) -> Result<u8> {
    let text = |word: std::ffi::OsString| {
        word.into_string().map_err(|word| {
            Error::usage(format!(
                "argument {:?} is not valid UTF-8 text and cannot be passed on",
                word.display().to_string()
            ))
        })
    };
    let mut words = args.words.into_iter();
    let name = text(words.next().unwrap_or_default())?;
    let command = words.map(text).collect::<Result<Vec<_>>>()?;
    if command.is_empty() {
        return Err(Error::usage(
            "exec needs a container and a command; see vdkr exec --help",
        ));
    }
    if args.tty && args.interactive && !args.detach && !io::stdin().is_terminal() {
        return Err(Error::usage("the input device is not a TTY"));
    }
    let files = args.env_file.into_iter().map(EnvSource::File);
    let sources: Vec<_> = files
        .chain(args.env.into_iter().map(EnvSource::Entry))
        .collect();
    let env = environment::assemble(&sources, &|name| std::env::var(name).ok())?;
    let terms = Terms {
        tty: args.tty,
        interactive: args.interactive,
        sig_proxy: true,
        detach_keys: Terms::keys(args.detach_keys.as_deref())?,
    };
    let request = ContainerRequest::Exec(ExecRequest {
        name,
        args: command,
        env,
        workdir: args.workdir,
        user: args.user,
        tty: args.tty,
        stdin: args.interactive,
        detach: args.detach,
        privileged: args.privileged,
    });
    with_session(settings, "vdkr exec", async |session| {
        let mut news = News::new(settings.global.progress, settings.verbose);
        let request = Request::Container(request.clone());
        if !args.detach {
            return attach(session, &request, terms, news).await;
        }
        match ask(session, &request, &mut news).await? {
            Reply::Container(ContainerReply::Done) => Ok(0),
            // It could not be executed.
            Reply::Ran { status } => Ok(u8::try_from(status & 0xff).unwrap_or(FAILED)),
            other => Err(wrong_reply(&other)),
        }
    })
    .await
}
