//! `vdkr attach`: at the streams of a container that runs.

use std::io::{self, IsTerminal as _};

use vdkr_core::channel::message::{ContainerRequest, Request};

use super::find;
use crate::vdkr::{
    attach::{Terms, attach},
    container_args::AttachArgs,
    error::{Error, Result},
    news::News,
    session::with_session,
    settings::Settings,
};

/// Stays until the container ends; its status.
pub async fn run(settings: &Settings, args: &AttachArgs) -> Result<u8> {
    let keys = Terms::keys(args.detach_keys.as_deref())?;
    with_session(settings, "vdkr attach", async |session| {
        let row = find(session, &args.container).await?;
        let interactive = row.stdin && !args.no_stdin;
        if row.tty && interactive && !io::stdin().is_terminal() {
            return Err(Error::usage("the input device is not a TTY"));
        }
        let request = Request::Container(ContainerRequest::Attach {
            name: row.id,
            stdin: interactive,
        });
        let terms = Terms {
            tty: row.tty,
            interactive,
            sig_proxy: args.sig_proxy,
            detach_keys: keys.clone(),
        };
        let news = News::new(settings.global.progress, settings.verbose);
        attach(session, &request, terms, news).await
    })
    .await
}
