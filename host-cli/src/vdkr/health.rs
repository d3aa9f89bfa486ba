//! What a user is told of a machine that is not well: disks that fail on this computer, and an agent
//! that says nothing for long.

use std::time::Duration;

use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use vdkr_core::channel::message::{MachineState, Reply, Request};

use super::words::say;
use crate::vm::channel::Connection;

/// After what silence of a request the machine is asked whether it is there.
const QUIET: Duration = Duration::from_secs(15);
/// How long it may take to say so.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the one who keeps a machine may take to say how it is.
const LOOK: Duration = Duration::from_secs(3);

/// What the user can do about a failing disk.
const DISK_HINT: &str = "what was written in the machine since then may be lost; make room there, or \
                         mend that disk, and then start the machine anew: vdkr memres restart";

/// Tells of the disks of a kept machine that failed on this computer. The machine itself has only
/// seen that something did, and its programs perhaps not even that.
pub fn tell_disk_errors(errors: &[String]) {
    if errors.is_empty() {
        return;
    }
    for error in errors {
        say(error);
    }
    say(DISK_HINT);
}

/// How a kept machine is, as the one who keeps it sees it. `None` when that says nothing.
async fn state(connection: &Connection) -> Option<MachineState> {
    match timeout(LOOK, connection.ask(&Request::Machine)).await {
        Ok(Ok(Ok(Reply::Machine(state)))) => Some(state),
        // Of an earlier version, or gone.
        _ => None,
    }
}

/// Looks after a kept machine at the end of a command.
pub async fn look(connection: &Connection) {
    if let Some(state) = state(connection).await {
        tell_disk_errors(&state.disk_errors);
    }
}

/// Whose machine a command waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One that is kept.
    Kept,
    /// The command's own.
    Own,
    /// A board or a full image.
    Target,
}

/// Somebody who notices that a machine answers nothing at all, and tells the user. Nothing is ended:
/// it may only be slow. Stops when it is dropped.
#[derive(Debug)]
pub struct Watch(JoinHandle<()>);

impl Watch {
    /// Watches over a connection.
    pub fn over(connection: Connection, whose: Whose) -> Self {
        Self(tokio::spawn(watch(connection, whose, say)))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn watch(connection: Connection, whose: Whose, mut tell: impl FnMut(&str)) {
    loop {
        sleep(QUIET).await;
        if connection.silence() < QUIET {
            continue;
        }
        // A command may take its time in silence; a machine that is well answers meanwhile.
        let mut asked = std::pin::pin!(connection.ask(&Request::Info));
        match timeout(PATIENCE, &mut asked).await {
            Ok(Ok(_)) => continue,
            // Whoever waits is told.
            Ok(Err(_)) => return,
            Err(_) => tell(&words(whose, stopped(&connection, whose).await.as_deref())),
        }
        match asked.await {
            Ok(_) => tell("the machine answers again"),
            Err(_) => return,
        }
    }
}

async fn stopped(connection: &Connection, whose: Whose) -> Option<String> {
    match whose {
        Whose::Kept => state(connection).await?.stopped,
        Whose::Own | Whose::Target => None,
    }
}

fn words(whose: Whose, stopped: Option<&str>) -> String {
    let silence = (QUIET + PATIENCE).as_secs();
    let state = match stopped {
        Some(state) => format!("its emulator says that it is stopped ({state})"),
        None => "it may have much to do, or hang".to_owned(),
    };
    let way_out = match whose {
        Whose::Kept => {
            "another one is had, without what runs in this one, with: vdkr memres restart"
        }
        Whose::Own => "Ctrl-C ends it",
        Whose::Target => "the target's console may tell why",
    };
    format!(
        "the machine has answered nothing for {silence} s: {state}. This command still waits; {way_out}"
    )
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::net::UnixStream;
    use vdkr_core::channel::message::RunRequest;

    use super::*;
    use crate::vm::{fake_agent::FakeAgent, pipe::greet_guest};

    fn run(args: &[&str]) -> Request {
        Request::Run(RunRequest {
            image: "i".into(),
            args: args.iter().map(ToString::to_string).collect(),
            ..RunRequest::default()
        })
    }

    async fn connected(agent: &FakeAgent) -> Connection {
        let (host, guest) = UnixStream::pair().unwrap();
        tokio::spawn(agent.clone().serve(guest));
        let (reader, mut writer) = host.into_split();
        let (reader, hello) = greet_guest(reader, &mut writer, "test").await.unwrap();
        Connection::new(reader, writer, hello)
    }

    /// What is told of a quiet container within `seconds`, and how often the agent was asked.
    async fn told(agent: &FakeAgent, whose: Whose, seconds: u64) -> (Vec<String>, usize) {
        let connection = connected(agent).await;
        let _call = connection.call(&run(&["stubborn"])).await.unwrap();
        let told = Arc::new(Mutex::new(Vec::new()));
        let words = Arc::clone(&told);
        let tell = move |text: &str| words.lock().unwrap().push(text.to_owned());
        let watching = tokio::spawn(watch(connection, whose, tell));
        sleep(Duration::from_secs(seconds)).await;
        watching.abort();
        let requests = agent.requests.lock().unwrap();
        let asked = requests.iter().filter(|request| **request == Request::Info);
        (told.lock().unwrap().clone(), asked.count())
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_container_is_no_reason_for_words() {
        let (told, asked) = told(&FakeAgent::default(), Whose::Kept, 300).await;
        assert_eq!(told, [""; 0]);
        assert!(asked > 5, "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_says_nothing_is_told_of_once() {
        let agent = FakeAgent::default();
        agent.mute.store(true, std::sync::atomic::Ordering::SeqCst);
        for (whose, hint) in [
            (Whose::Kept, "vdkr memres restart"),
            (Whose::Own, "Ctrl-C"),
            (Whose::Target, "console"),
        ] {
            agent.requests.lock().unwrap().clear();
            let (told, asked) = told(&agent, whose, 300).await;
            assert_eq!((told.len(), asked), (1, 1), "{told:?}");
            assert!(told[0].contains("nothing for 45 s"), "{told:?}");
            assert!(told[0].contains(hint), "{told:?}");
        }
        assert!(words(Whose::Kept, Some("paused")).contains("stopped (paused)"));
    }
}
