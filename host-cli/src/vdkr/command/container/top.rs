//! `vdkr top`: the processes of a container.

use vdkr_core::channel::message::{ContainerReply, ContainerRequest, Reply, Request};

use crate::vdkr::{
    command::wrong_reply, container_args::OneArgs, error::Result, human, session::with_session,
    settings::Settings,
};

/// Lists them.
pub async fn run(settings: &Settings, args: &OneArgs) -> Result<u8> {
    let request = Request::Container(ContainerRequest::Top {
        name: args.container.clone(),
    });
    let reply = with_session(settings, "vdkr top", async |session| {
        session.ask(&request).await
    })
    .await?;
    let Reply::Container(ContainerReply::Top { titles, processes }) = reply else {
        return Err(wrong_reply(&reply));
    };
    let mut rows = vec![titles];
    rows.extend(processes.into_iter().map(|row| {
        // A process chooses what stands there.
        let plain = |cell: String| cell.chars().filter(|c| !c.is_control()).collect();
        row.into_iter().map(plain).collect::<Vec<String>>()
    }));
    crate::output::write(format_args!("{}", human::columns(&rows)));
    Ok(0)
}
