//! `start`: a container that exists, again.

use std::rc::Rc;

use vdkr_core::channel::message::{Done, Event, LogLevel, Reply};

use super::{
    Agent,
    attach::{Mode, attach},
    done,
};
use crate::{
    channel::stream::SharedStream,
    container::{Entry, life},
    run::EXIT_NOT_CREATED,
};

/// Ports of the host are opened by the host, before each start.
pub fn warn_of_ports(entry: &Entry, stream: &SharedStream) {
    if !entry.placed.take() && entry.record.borrow().request.sandbox.address.is_some() {
        let message = format!(
            "the ports that container {} was run with are not published again: this computer does \
             not know them; remove it and run another",
            entry.name()
        );
        let level = LogLevel::Warn;
        stream.event(&Event::Log { level, message });
    }
}

/// Starts a container, and stays at its streams with `attached`.
pub async fn start(
    agent: &Rc<Agent>,
    name: &str,
    attached: bool,
    stdin: bool,
    stream: &SharedStream,
) -> Done {
    let entry = agent.book().find(name)?;
    let seat = attached.then(|| entry.hub.join(stream));
    let ran = entry.is_active();
    let pid = match life::start(agent, &entry).await {
        Ok(pid) => pid,
        Err(why) if why.status == EXIT_NOT_CREATED => return Err(why.into()),
        Err(why) => {
            let (level, message) = (LogLevel::Warn, why.message);
            stream.event(&Event::Log { level, message });
            return Ok(Reply::Ran { status: why.status });
        }
    };
    if !ran {
        warn_of_ports(&entry, stream);
    }
    stream.event(&Event::Started {
        pid,
        container: entry.id.clone(),
    });
    let Some(seat) = seat else {
        return Ok(done());
    };
    let stdin = stdin && entry.record.borrow().request.stdin;
    let mode = Mode {
        stdin,
        last_input: true,
        ends_with_host: false,
    };
    attach(&entry, stream, seat, mode).await
}
