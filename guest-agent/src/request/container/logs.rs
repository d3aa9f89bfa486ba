//! `logs`: what a container has written, and what it writes.

use std::{future::pending, rc::Rc, time::Duration};

use tokio::{task::yield_now, time::sleep};
use vdkr_core::{
    channel::{
        Pipe,
        message::{Done, LogsRequest},
    },
    container::lines::{Lines, Want},
};

use super::{Agent, done};
use crate::{
    channel::stream::SharedStream,
    container::{
        Entry,
        log::{Cursor, now_ns},
        streams::send_bytes,
    },
    request::cancelled,
};

/// What a reader is told who was slower than the log is long.
const OVERTAKEN: &[u8] = b"vdkr: lines are missing here: the log grew faster than it was read\n";
/// Records between two looks at what else there is to do.
const BREATH: u32 = 32;

/// Sends a container's log, and with `follow` what comes until it ends, or
/// the time has come that is wanted as the last.
pub async fn logs(agent: &Rc<Agent>, request: &LogsRequest, stream: &SharedStream) -> Done {
    let entry = agent.book().find(&request.name)?;
    let skip = match request.tail {
        Some(tail) => count(&entry, request).await.saturating_sub(tail),
        None => 0,
    };
    let mut lines = Lines::new(Want {
        skip,
        since_ns: request.since_ns.unwrap_or(0),
        until_ns: request.until_ns.unwrap_or(u64::MAX),
        timestamps: request.timestamps,
    });
    let mut cursor = entry.log.read();
    loop {
        let grown = entry.log.grown.notified();
        let left = request.until_ns.map(|until| until.saturating_sub(now_ns()));
        let over = !request.follow || !entry.is_active() || left == Some(0);
        if !send_new(&mut cursor, &mut lines, stream).await {
            return Err(cancelled());
        }
        if over {
            return Ok(done());
        }
        let late = async {
            match left {
                Some(left) => sleep(Duration::from_nanos(left)).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = grown => {}
            () = late => {}
            () = stream.cancelled().cancelled() => return Err(cancelled()),
        }
    }
}

/// How many lines there are.
async fn count(entry: &Entry, request: &LogsRequest) -> u64 {
    let mut lines = Lines::new(Want {
        since_ns: request.since_ns.unwrap_or(0),
        until_ns: request.until_ns.unwrap_or(u64::MAX),
        ..Want::default()
    });
    let mut cursor = entry.log.read();
    let mut number = 0_u32;
    while let Some(record) = cursor.next_entry() {
        lines.count(record.pipe, record.time_ns, &record.bytes);
        number = number.wrapping_add(1);
        if number.is_multiple_of(BREATH) {
            yield_now().await;
        }
    }
    lines.counted()
}

/// Sends what is there now. `false` when the host has gone.
async fn send_new(cursor: &mut Cursor<'_>, lines: &mut Lines, stream: &SharedStream) -> bool {
    while let Some(record) = cursor.next_entry() {
        if cursor.take_lost() && !send(stream, Pipe::Stderr, OVERTAKEN).await {
            return false;
        }
        let shown = lines.show(record.pipe, record.time_ns, &record.bytes);
        if !send(stream, record.pipe, &shown).await {
            return false;
        }
    }
    true
}

async fn send(stream: &SharedStream, pipe: Pipe, bytes: &[u8]) -> bool {
    tokio::select! {
        sent = send_bytes(stream, pipe, bytes) => sent,
        () = stream.cancelled().cancelled() => false,
    }
}
