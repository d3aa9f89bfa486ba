//! A container's life: its starts, its ends, and what happens in between without any host.

use std::{
    fs,
    net::Ipv4Addr,
    rc::Rc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{OwnedMutexGuard, oneshot},
    task::spawn_blocking,
    time::{sleep, timeout},
};
use vdkr_core::{
    channel::message::{self, ContainerState, Failure, FailureCode},
    container::{
        restart::{RestartPolicy, pause_ms},
        signal,
    },
};

use super::{
    Entry,
    process::{NotStarted, Told, incarnation, thaw},
    record::{Record, now_ms},
};
use crate::{
    request::{Agent, mounts},
    run::{EXIT_NOT_CREATED, Remains},
};

/// How long a killed container's processes have to end: they may stand in the kernel, writing.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Starts a container and gives its process's number once the command runs. One that runs already
/// is left alone.
pub async fn start(agent: &Rc<Agent>, entry: &Rc<Entry>) -> Result<u32, NotStarted> {
    let pid = |entry: &Entry| entry.live().map_or(0, |live| live.pid());
    if entry.is_active() {
        return Ok(pid(entry));
    }
    // What is left of an earlier start is cleaned up first.
    let gate = entry.gate.clone().lock_owned().await;
    if entry.is_active() {
        return Ok(pid(entry));
    }
    let refuse = |message: &str| NotStarted {
        status: EXIT_NOT_CREATED,
        message: message.to_owned(),
        usage: false,
    };
    if entry.is_removed() {
        return Err(refuse("it was removed meanwhile"));
    }
    let (tell, told) = oneshot::channel();
    entry.active.set(true);
    entry.halt.set(false);
    agent
        .tasks()
        .spawn_local(live(agent.clone(), entry.clone(), tell, gate));
    told.await
        .unwrap_or_else(|_| Err(refuse("the agent is shutting down")))
}

/// From a start to an end that is followed by none.
async fn live(agent: Rc<Agent>, entry: Rc<Entry>, told: Told, gate: OwnedMutexGuard<()>) {
    let mut told = Some(told);
    let (mut pause, mut restarts) = (0, 0);
    let policy = entry.record.borrow().request.life.restart;
    entry.record.borrow_mut().status.stopped_by_user = false;
    let remains = loop {
        let begun = Instant::now();
        let (ended, remains) = incarnation(&agent, &entry, &mut told).await;
        let status = match ended {
            Ok(status) => status,
            Err(why) => {
                settle(&entry, why.status, &why.message);
                if let Some(told) = told.take() {
                    let _ = told.send(Err(why));
                    break remains;
                }
                why.status
            }
        };
        let halted = entry.halt.get() || agent.is_stopping();
        if !policy.again(status, halted, restarts) {
            if told.is_none() && entry.state() != ContainerState::Exited {
                settle(&entry, status, "");
            }
            break remains;
        }
        restarts += 1;
        entry.update(|now| {
            now.state = ContainerState::Restarting;
            now.exit_code = status;
            now.finished_ms = Some(now_ms());
            now.restarts = restarts;
        });
        clear(remains).await;
        let ran = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        pause = pause_ms(pause, ran);
        let halted = entry.halted.notified();
        if !entry.halt.get() {
            tokio::select! {
                () = sleep(Duration::from_millis(pause)) => {}
                () = halted => {}
                () = agent.stopping() => {}
            }
        }
        if entry.halt.get() || agent.is_stopping() {
            settle(&entry, status, "");
            break None;
        }
    };
    let passing = entry.record.borrow().passing();
    if passing {
        agent.book().forget(&entry);
    } else {
        sync(&entry).await;
    }
    let cleaning = &agent.book().cleaning;
    cleaning.set(cleaning.get() + 1);
    entry.log.close();
    entry.active.set(false);
    // Those who wait for the end need not wait for the cleaning.
    entry.tell();
    clear(remains).await;
    if passing {
        let dir = entry.dir.clone();
        remove_dir(dir).await;
        mounts::remove_anonymous(&agent, &entry).await;
    }
    let cleaning = &agent.book().cleaning;
    cleaning.set(cleaning.get() - 1);
    drop(gate);
}

/// It has ended, or did not start.
fn settle(entry: &Entry, status: i32, error: &str) {
    entry.update(|now| {
        now.exit_code = status;
        error.clone_into(&mut now.error);
        // As docker has it: what never ran stays created.
        if now.started_ms.is_some() {
            now.state = ContainerState::Exited;
            now.finished_ms = Some(now_ms());
        } else {
            now.state = ContainerState::Created;
        }
    });
}

async fn clear(remains: Option<Remains>) {
    if let Some(remains) = remains
        && let Ok(Err(error)) = spawn_blocking(|| remains.clear()).await
    {
        eprintln!("vdkr-agent: {error}");
    }
}

/// Makes what was written last about a container outlive the machine.
pub(super) async fn sync(entry: &Entry) {
    if entry.record.borrow().passing() || entry.is_removed() {
        return;
    }
    let dir = entry.dir.clone();
    if let Ok(Err(error)) = spawn_blocking(move || Record::sync(&dir)).await {
        eprintln!("vdkr-agent: {}: {error}", entry.dir.display());
    }
}

/// Removes the directory of a container that is in the book no more.
async fn remove_dir(dir: std::path::PathBuf) {
    let shown = dir.display().to_string();
    if let Ok(Err(error)) = spawn_blocking(|| fs::remove_dir_all(dir)).await {
        eprintln!("vdkr-agent: cannot remove {shown}: {error}");
    }
}

/// Gives a container that does not run another address.
pub fn place_at(entry: &Entry, address: Option<Ipv4Addr>) -> Result<(), Failure> {
    if entry.is_active() {
        let message = format!("container {} is running", entry.name());
        return Err(Failure::new(FailureCode::Failed, message));
    }
    {
        let sandbox = &mut entry.record.borrow_mut().request.sandbox;
        if address.is_some() {
            sandbox.network = message::Network::Bridge;
        }
        sandbox.address = address;
    }
    entry.placed.set(true);
    entry.save();
    Ok(())
}

/// Stops a container for good: its stop signal, and after `timeout` seconds (below zero: never)
/// the one that cannot be ignored.
pub async fn stop(entry: &Rc<Entry>, timeout: Option<i64>, number: Option<u8>) {
    if !entry.is_active() {
        return;
    }
    let (own_signal, own_timeout) = {
        let record = entry.record.borrow();
        (record.stop_signal(), record.stop_timeout())
    };
    entry.halt(true);
    if let Some(live) = entry.live() {
        thaw(&live);
        let _ = live.container.signal(number.unwrap_or(own_signal));
    }
    let patience = u64::try_from(timeout.unwrap_or(own_timeout)).ok();
    let late = async {
        match patience {
            Some(seconds) => sleep(Duration::from_secs(seconds)).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = entry.ended() => return,
        () = late => {}
    }
    entry.kill(true);
    entry.ended().await;
}

/// Sends a signal as `kill` does: one that is meant to end it ends it for good, and one that nothing
/// withstands is waited for.
pub async fn kill(entry: &Entry, number: u8) -> Result<(), Failure> {
    let Some(live) = entry.live() else {
        let name = entry.name();
        let message = format!("container {name} is not running");
        return Err(Failure::new(FailureCode::Failed, message));
    };
    if number == signal::KILL || number == entry.record.borrow().stop_signal() {
        entry.halt(true);
    }
    if number == signal::KILL {
        thaw(&live);
        live.container.kill();
        // Whoever kills it may remove it next.
        return timeout(KILL_PATIENCE, entry.ended()).await.map_err(|_| {
            let text = format!("container {} has not ended yet", entry.name());
            Failure::new(FailureCode::Failed, text)
        });
    }
    live.container.signal(number).map_err(|error| {
        Failure::new(
            FailureCode::Failed,
            format!("cannot send signal {number}: {error}"),
        )
    })
}

/// Removes a container that does not run, or kills it first when `force` says so; with `volumes`
/// also those of its volumes that nobody has named.
pub async fn remove(
    agent: &Rc<Agent>,
    entry: &Rc<Entry>,
    force: bool,
    volumes: bool,
) -> Result<(), Failure> {
    // What has ended may still be about to hand its last output on.
    let over = entry.state() == ContainerState::Exited
        && entry.record.borrow().request.life.restart == RestartPolicy::No;
    if entry.is_active() {
        if !force && !over {
            let name = entry.name();
            let message = format!("container {name} is {}", entry.state().name());
            return Err(Failure::new(FailureCode::Failed, message)
                .with_hint("stop it first, or use rm --force"));
        }
        entry.kill(true);
        entry.ended().await;
    }
    let _gate = entry.gate.clone().lock_owned().await;
    if entry.is_removed() {
        return Ok(());
    }
    if entry.is_active() {
        let message = format!("container {} was started meanwhile", entry.name());
        return Err(Failure::new(FailureCode::Failed, message));
    }
    agent.book().forget(entry);
    entry.shares.take();
    remove_dir(entry.dir.clone()).await;
    if volumes || entry.record.borrow().request.rm {
        mounts::remove_anonymous(agent, entry).await;
    }
    Ok(())
}

/// Starts what starts with the machine.
pub async fn resume(agent: &Rc<Agent>) {
    for entry in agent.book().all() {
        let starts = entry.record.borrow().resumes();
        if starts && let Err(why) = start(agent, &entry).await {
            let name = entry.name();
            eprintln!(
                "vdkr-agent: container {name} does not start: {}",
                why.message
            );
        }
    }
}
