//! `vdkr export`: the files of a container as an archive.

use std::io::{self, IsTerminal as _, Write as _};

use tokio::task::spawn_blocking;
use vdkr_core::channel::message::{ContainerRequest, Request};

use super::receive::receive;
use crate::vdkr::{
    container_args::ExportArgs,
    content::out::Out,
    error::{Error, Result},
    layers,
    session::with_session,
    settings::Settings,
};

/// Writes the archive; a file is there when all of it is.
pub async fn run(settings: &Settings, args: &ExportArgs) -> Result<u8> {
    let out = match &args.output {
        Some(path) => Out::file(path)?,
        None if io::stdout().is_terminal() => {
            return Err(Error::usage("an archive is nothing for a terminal")
                .with_hint("name a file with -o FILE, or send it on: vdkr export NAME | ..."));
        }
        None => Out::Stdout,
    };
    let name = args.container.clone();
    let request = Request::Container(ContainerRequest::Export { name: name.clone() });
    with_session(settings, "vdkr export", async |session| {
        layers::prepare_containers(session, settings, std::slice::from_ref(&name)).await?;
        let mut writer = out.writer()?;
        receive(session, &request, async move |mut pieces| {
            let written = spawn_blocking(move || {
                io::copy(&mut pieces, &mut writer)?;
                writer.flush()
            });
            Ok(written.await.map_err(io::Error::other)??)
        })
        .await?;
        out.keep()
    })
    .await?;
    Ok(0)
}
