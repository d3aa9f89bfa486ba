//! `vdkr logs`: what a container has written.

use jiff::{Timestamp, tz::TimeZone};
use vdkr_core::channel::message::{ContainerRequest, LogsRequest, Request};

use crate::vdkr::{
    attach::show,
    container_args::LogsArgs,
    error::{Error, Result},
    session::with_session,
    settings::Settings,
    since,
};

/// Prints it, output and errors apart.
pub async fn run(settings: &Settings, args: &LogsArgs) -> Result<u8> {
    let (now, zone) = (Timestamp::now(), TimeZone::system());
    let time = |text: &Option<String>| match text {
        Some(text) => since::parse(text, now, &zone)
            .map(Some)
            .map_err(Error::usage),
        None => Ok(None),
    };
    let request = LogsRequest {
        name: args.container.clone(),
        follow: args.follow,
        timestamps: args.timestamps,
        tail: tail(&args.tail)?,
        since_ns: time(&args.since)?,
        until_ns: time(&args.until)?,
    };
    let request = Request::Container(ContainerRequest::Logs(request));
    with_session(settings, "vdkr logs", async |session| {
        show(session, &request).await
    })
    .await
}

/// A number of lines; below zero, as with docker, all.
fn tail(text: &str) -> Result<Option<u64>> {
    if text == "all" {
        return Ok(None);
    }
    let number: i64 = text
        .parse()
        .map_err(|_| Error::usage(format!("{text:?} is neither a number of lines nor all")))?;
    Ok(u64::try_from(number).ok())
}
