//! Shares one agent among many clients: frames pass through with their stream numbers exchanged,
//! and credit passes through with them, so that a slow client slows only its own process down.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use vdkr_core::channel::{
    Frame, Kind, MAX_STREAMS, encode,
    message::{Done, Failure, FailureCode, Message as _, Request},
};

/// Streams of clients. What the agent serves beyond is for the monitor's own requests, and for
/// those that make room.
const CLIENT_STREAMS: usize = MAX_STREAMS - 32;
/// Of these, mounts of directories that this process serves; containers that have ended keep
/// theirs, and other commands must go on.
const SHARE_STREAMS: usize = CLIENT_STREAMS - 64;
/// Bytes that may wait for one client before its news are dropped.
const NEWS_LIMIT: usize = 1 << 20;
/// Bytes that may wait for one client before it is cut off. Credit keeps an honest one below.
const CLIENT_LIMIT: usize = 32 << 20;
/// Bytes that each piece waiting for a client takes beside what is in it.
const PIECE: usize = 64;
/// Longest `Open` frame that is looked into: the requests that are the monitor's own are short,
/// paths and ports the longest things in them.
const OWN_REQUEST: usize = 64 * 1024;
/// How they begin; nothing else is read.
const OWN_REQUESTS: [&str; 8] = [
    "adopt_ports",
    "attach_disk",
    "detach_disk",
    "machine",
    "publish",
    "published",
    "share",
    "shutdown",
];

/// Frames on their way to the agent, with the client's share of the queue that they take.
#[derive(Debug)]
pub struct ToGuest {
    /// Encoded frames.
    pub bytes: Vec<u8>,
    /// Given back when they are written.
    pub share: Option<OwnedSemaphorePermit>,
}

/// Frames on their way to one client. The queue is bounded by what the router lets into it.
#[derive(Clone, Debug)]
pub struct ClientQueue {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

/// The end of a [`ClientQueue`] from which a client is written to.
#[derive(Debug)]
pub struct ClientFrames {
    frames: mpsc::UnboundedReceiver<Vec<u8>>,
    waiting: Arc<AtomicUsize>,
}

/// A queue for a new client.
pub fn client_queue() -> (ClientQueue, ClientFrames) {
    let (sender, frames) = mpsc::unbounded_channel();
    let waiting = Arc::new(AtomicUsize::new(0));
    (
        ClientQueue {
            frames: sender,
            waiting: Arc::clone(&waiting),
        },
        ClientFrames { frames, waiting },
    )
}

impl ClientFrames {
    /// The next frames to write; `None` when the client is to be cut off.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        let bytes = self.frames.recv().await?;
        self.waiting
            .fetch_sub(bytes.len() + PIECE, Ordering::Relaxed);
        Some(bytes)
    }
}

/// Number of a client at this router.
pub type ClientId = u64;

/// What a client's frame calls for beyond routing.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Routed,
    /// The client asks for something that is the monitor's to do, on this stream of its own.
    Own(u32, Box<Request>),
    /// The client breaks the protocol.
    CutOff,
}

/// The request in a frame, when it is the monitor's own.
pub fn own_request(payload: &[u8]) -> Option<Request> {
    let rest = payload.strip_prefix(br#"{"op":""#)?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    let name = std::str::from_utf8(rest.get(..end)?).ok()?;
    let own = OWN_REQUESTS.contains(&name) && payload.len() <= OWN_REQUEST;
    own.then(|| Request::decode(payload).ok()).flatten()
}

/// Whether a request, in one frame, gives streams back.
fn makes_room(frame: &Frame) -> bool {
    frame.kind == Kind::Open
        && Request::decode(&frame.payload).is_ok_and(|request| request.makes_room())
}

/// The table of streams.
#[derive(Debug)]
pub struct Router {
    guest: mpsc::UnboundedSender<ToGuest>,
    clients: HashMap<ClientId, Client>,
    routes: HashMap<u32, Route>,
    last_stream: u32,
    last_client: ClientId,
    /// For the one answer to a ping that may wait for the agent to read it.
    pong: Arc<Semaphore>,
}

#[derive(Debug)]
struct Client {
    queue: ClientQueue,
    /// It is this process itself, which serves directories.
    own: bool,
    /// The client's stream numbers to the agent's.
    streams: HashMap<u32, u32>,
}

#[derive(Debug)]
struct Route {
    /// Who wants the answer; nobody when the client has gone.
    client: Option<ClientId>,
    /// The client's number for the stream.
    stream: u32,
    /// Whether the request has been sent whole.
    opened: bool,
}

impl Router {
    /// A router that sends to this agent.
    pub fn new(guest: mpsc::UnboundedSender<ToGuest>) -> Self {
        Self {
            guest,
            clients: HashMap::new(),
            routes: HashMap::new(),
            last_stream: 0,
            last_client: 0,
            pong: Arc::new(Semaphore::new(1)),
        }
    }

    /// Adds a client; `own` is one that serves directories in this process and is nobody's use of
    /// the machine.
    pub fn connect(&mut self, queue: ClientQueue, own: bool) -> ClientId {
        self.last_client += 1;
        self.clients.insert(
            self.last_client,
            Client {
                queue,
                own,
                streams: HashMap::new(),
            },
        );
        self.last_client
    }

    /// Removes a client and cancels what it has under way.
    pub fn disconnect(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        for stream in client.streams.into_values() {
            self.send_to_guest(Kind::Cancel, stream, &[], None);
            if self.routes.get(&stream).is_some_and(|route| route.opened) {
                if let Some(route) = self.routes.get_mut(&stream) {
                    route.client = None;
                }
            } else {
                // The agent never saw a request there and will not answer.
                self.routes.remove(&stream);
            }
        }
    }

    /// How many requests are under way, without the directories that this process serves.
    pub fn busy(&self) -> usize {
        let own = self.clients.values().filter(|client| client.own);
        let served: usize = own.map(|client| client.streams.len()).sum();
        self.routes.len().saturating_sub(served)
    }

    /// How many clients there are.
    pub fn clients(&self) -> usize {
        self.clients.len()
    }

    /// Opens a stream of the monitor's own and gives its number at the agent.
    pub fn own_request(&mut self, request: &Request) -> Option<u32> {
        let stream = self.new_stream()?;
        let mut bytes = Vec::new();
        if request.encode(&mut bytes, stream).is_ok() {
            self.routes.insert(
                stream,
                Route {
                    client: None,
                    stream,
                    opened: true,
                },
            );
            let _ = self.guest.send(ToGuest { bytes, share: None });
        }
        Some(stream)
    }

    /// Answers a client's stream on the agent's behalf.
    pub fn answer(&mut self, id: ClientId, stream: u32, done: &Done) {
        let mut bytes = Vec::new();
        if done.encode(&mut bytes, stream).is_ok() {
            self.send_to_client(id, bytes, false);
        }
    }

    /// Takes a frame from a client.
    pub fn from_client(
        &mut self,
        id: ClientId,
        frame: &Frame,
        share: Option<OwnedSemaphorePermit>,
    ) -> Verdict {
        let Some(client) = self.clients.get(&id) else {
            return Verdict::CutOff;
        };
        let known = client.streams.get(&frame.stream).copied();
        match frame.kind {
            Kind::Ping => {
                let mut pong = Vec::new();
                if encode(&mut pong, Kind::Pong, frame.stream, &[]).is_ok() {
                    self.send_to_client(id, pong, true);
                }
            }
            Kind::Open | Kind::Part => {
                let begun = known.and_then(|stream| self.routes.get(&stream));
                if frame.stream == 0 || begun.is_some_and(|route| route.opened) {
                    return Verdict::CutOff;
                }
                if begun.is_none()
                    && frame.kind == Kind::Open
                    && let Some(request) = own_request(&frame.payload)
                {
                    return Verdict::Own(frame.stream, Box::new(request));
                }
                let stream = match known {
                    Some(stream) => stream,
                    None => match self.add_route(id, frame) {
                        Some(stream) => stream,
                        // The rest of a long request would read as one of its own.
                        None if frame.kind == Kind::Part => return Verdict::CutOff,
                        None => {
                            self.refuse(id, frame.stream);
                            return Verdict::Routed;
                        }
                    },
                };
                if frame.kind == Kind::Open
                    && let Some(route) = self.routes.get_mut(&stream)
                {
                    route.opened = true;
                }
                self.send_to_guest(frame.kind, stream, &frame.payload, share);
            }
            Kind::Stdin
            | Kind::Eof
            | Kind::Credit
            | Kind::Signal
            | Kind::Resize
            | Kind::Cancel
            | Kind::Detach => {
                // An answer may have crossed with it; then there is nobody to send it to.
                if let Some(stream) = known {
                    self.send_to_guest(frame.kind, stream, &frame.payload, share);
                }
            }
            _ => {}
        }
        Verdict::Routed
    }

    /// Takes a frame from the agent. Gives a client that has to be cut off because it takes
    /// nothing off its queue.
    pub fn from_guest(&mut self, frame: &Frame) -> Option<ClientId> {
        if frame.kind == Kind::Ping {
            // A guest that asks and does not read gets one answer.
            if let Ok(turn) = Arc::clone(&self.pong).try_acquire_owned() {
                self.send_to_guest(Kind::Pong, frame.stream, &[], Some(turn));
            }
            return None;
        }
        let &Route { client, stream, .. } = self.routes.get(&frame.stream)?;
        if frame.kind == Kind::Done {
            self.routes.remove(&frame.stream);
            if let Some(client) = client.and_then(|id| self.clients.get_mut(&id)) {
                client.streams.remove(&stream);
            }
        }
        let id = client?;
        let mut bytes = Vec::new();
        encode(&mut bytes, frame.kind, stream, &frame.payload).ok()?;
        self.send_to_client(id, bytes, frame.kind == Kind::Event)
    }

    /// Whether a client is still there.
    pub fn is_connected(&self, id: ClientId) -> bool {
        self.clients.contains_key(&id)
    }

    fn add_route(&mut self, client: ClientId, first: &Frame) -> Option<u32> {
        let stream = first.stream;
        let known = self.clients.get(&client)?;
        let full = self.routes.len() >= CLIENT_STREAMS
            || known.own && known.streams.len() >= SHARE_STREAMS;
        if full && (self.routes.len() >= MAX_STREAMS || !makes_room(first)) {
            return None;
        }
        let number = self.new_stream()?;
        self.routes.insert(
            number,
            Route {
                client: Some(client),
                stream,
                opened: false,
            },
        );
        self.clients
            .get_mut(&client)?
            .streams
            .insert(stream, number);
        Some(number)
    }

    /// Numbers only grow, as the agent expects; four thousand million are enough for one machine.
    fn new_stream(&mut self) -> Option<u32> {
        self.last_stream = self.last_stream.checked_add(1)?;
        Some(self.last_stream)
    }

    fn refuse(&mut self, id: ClientId, stream: u32) {
        let failure = Failure::new(
            FailureCode::Failed,
            "the virtual machine has too much to do",
        )
        .with_hint(
            "wait until other commands have ended, or remove containers that are not needed",
        );
        self.answer(id, stream, &Err(failure));
    }

    fn send_to_guest(
        &mut self,
        kind: Kind,
        stream: u32,
        payload: &[u8],
        share: Option<OwnedSemaphorePermit>,
    ) {
        let mut bytes = Vec::new();
        if encode(&mut bytes, kind, stream, payload).is_ok() {
            // Closed only when the machine has ended, which shows elsewhere.
            let _ = self.guest.send(ToGuest { bytes, share });
        }
    }

    fn send_to_client(&mut self, id: ClientId, bytes: Vec<u8>, news: bool) -> Option<ClientId> {
        let queue = &self.clients.get(&id)?.queue;
        let waiting = queue.waiting.load(Ordering::Relaxed);
        if news && waiting > NEWS_LIMIT {
            return None;
        }
        if waiting > CLIENT_LIMIT {
            return Some(id);
        }
        queue
            .waiting
            .fetch_add(bytes.len() + PIECE, Ordering::Relaxed);
        // Closed when the client has gone, which its reader reports.
        let _ = queue.frames.send(bytes);
        None
    }
}

#[cfg(test)]
mod tests;
