//! Shares one agent among many clients: frames pass through with their stream numbers exchanged,
//! and credit passes through with them, so that a slow client slows only its own process down.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::sync::{OwnedSemaphorePermit, mpsc};
use vdkr_core::channel::{
    Frame, Kind, encode,
    message::{Done, Failure, FailureCode, Message as _, Request},
};

/// Streams that an agent serves at one time.
const MAX_STREAMS: usize = 512;
/// Bytes that may wait for one client before its news are dropped.
const NEWS_LIMIT: usize = 1 << 20;
/// Bytes that may wait for one client before it is cut off. Credit keeps an honest one below.
const CLIENT_LIMIT: usize = 32 << 20;
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
        self.waiting.fetch_sub(bytes.len(), Ordering::Relaxed);
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
fn own_request(payload: &[u8]) -> Option<Request> {
    let rest = payload.strip_prefix(br#"{"op":""#)?;
    let end = rest.iter().position(|&byte| byte == b'"')?;
    let name = std::str::from_utf8(rest.get(..end)?).ok()?;
    let own = OWN_REQUESTS.contains(&name) && payload.len() <= OWN_REQUEST;
    own.then(|| Request::decode(payload).ok()).flatten()
}

/// The table of streams.
#[derive(Debug)]
pub struct Router {
    guest: mpsc::UnboundedSender<ToGuest>,
    clients: HashMap<ClientId, Client>,
    routes: HashMap<u32, Route>,
    last_stream: u32,
    last_client: ClientId,
}

#[derive(Debug)]
struct Client {
    queue: ClientQueue,
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
        }
    }

    /// Adds a client.
    pub fn connect(&mut self, queue: ClientQueue) -> ClientId {
        self.last_client += 1;
        self.clients.insert(
            self.last_client,
            Client {
                queue,
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

    /// How many requests are under way.
    pub fn busy(&self) -> usize {
        self.routes.len()
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
                    None => match self.add_route(id, frame.stream) {
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
            self.send_to_guest(Kind::Pong, frame.stream, &[], None);
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

    fn add_route(&mut self, client: ClientId, stream: u32) -> Option<u32> {
        if self.routes.len() >= MAX_STREAMS {
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
        .with_hint("wait until other commands have ended");
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
        queue.waiting.fetch_add(bytes.len(), Ordering::Relaxed);
        // Closed when the client has gone, which its reader reports.
        let _ = queue.frames.send(bytes);
        None
    }
}

#[cfg(test)]
mod tests {
    use vdkr_core::channel::{
        Decoder,
        message::{Event, Reply, RunRequest},
    };

    use super::*;

    struct Bench {
        router: Router,
        guest: mpsc::UnboundedReceiver<ToGuest>,
    }

    impl Bench {
        fn new() -> Self {
            let (sender, guest) = mpsc::unbounded_channel();
            Self {
                router: Router::new(sender),
                guest,
            }
        }

        fn at_guest(&mut self) -> Vec<Frame> {
            let mut decoder = Decoder::new();
            let mut frames = Vec::new();
            while let Ok(sent) = self.guest.try_recv() {
                decoder.push(&sent.bytes);
                while let Some(frame) = decoder.next().unwrap() {
                    frames.push(frame);
                }
            }
            frames
        }
    }

    fn at_client(client: &mut ClientFrames) -> Vec<Frame> {
        let mut decoder = Decoder::new();
        let mut frames = Vec::new();
        while let Ok(bytes) = client.frames.try_recv() {
            decoder.push(&bytes);
            while let Some(frame) = decoder.next().unwrap() {
                frames.push(frame);
            }
        }
        frames
    }

    fn frame(kind: Kind, stream: u32, payload: &[u8]) -> Frame {
        Frame {
            kind,
            stream,
            payload: payload.to_vec(),
        }
    }

    fn open(stream: u32) -> Frame {
        let mut bytes = Vec::new();
        let run = RunRequest {
            image: "i".into(),
            ..RunRequest::default()
        };
        Request::Run(run).encode(&mut bytes, stream).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&bytes);
        decoder.next().unwrap().unwrap()
    }

    #[test]
    fn equal_numbers_of_two_clients_are_kept_apart() {
        let mut bench = Bench::new();
        let (one_queue, mut one) = client_queue();
        let (two_queue, mut two) = client_queue();
        let (first, second) = (
            bench.router.connect(one_queue),
            bench.router.connect(two_queue),
        );
        assert_eq!(
            bench.router.from_client(first, &open(1), None),
            Verdict::Routed
        );
        assert_eq!(
            bench.router.from_client(second, &open(1), None),
            Verdict::Routed
        );
        bench
            .router
            .from_client(second, &frame(Kind::Stdin, 1, b"in"), None);
        let sent: Vec<_> = bench
            .at_guest()
            .iter()
            .map(|f| (f.kind, f.stream))
            .collect();
        assert_eq!(sent, [(Kind::Open, 1), (Kind::Open, 2), (Kind::Stdin, 2)]);

        bench.router.from_guest(&frame(Kind::Stdout, 2, b"two"));
        bench.router.from_guest(&frame(Kind::Stdout, 1, b"one"));
        bench.router.from_guest(&frame(Kind::Done, 1, b"{}"));
        assert_eq!(
            at_client(&mut one),
            [frame(Kind::Stdout, 1, b"one"), frame(Kind::Done, 1, b"{}")]
        );
        assert_eq!(at_client(&mut two), [frame(Kind::Stdout, 1, b"two")]);
        assert_eq!(bench.router.busy(), 1);
        // A late frame of the stream that has ended goes nowhere.
        bench
            .router
            .from_client(first, &frame(Kind::Signal, 1, &[2]), None);
        assert_eq!(bench.at_guest(), []);
        // Its number may be used again by the client, and is a new one for the agent.
        bench.router.from_client(first, &open(1), None);
        assert_eq!(bench.at_guest()[0].stream, 3);
    }

    #[test]
    fn a_client_that_goes_cancels_its_work() {
        let mut bench = Bench::new();
        let (queue, _frames) = client_queue();
        let id = bench.router.connect(queue);
        bench.router.from_client(id, &open(1), None);
        bench
            .router
            .from_client(id, &frame(Kind::Part, 2, b"{"), None);
        bench.at_guest();
        bench.router.disconnect(id);
        let mut cancelled: Vec<_> = bench
            .at_guest()
            .iter()
            .map(|f| (f.kind, f.stream))
            .collect();
        cancelled.sort_by_key(|&(_, stream)| stream);
        assert_eq!(cancelled, [(Kind::Cancel, 1), (Kind::Cancel, 2)]);
        assert_eq!(
            bench.router.busy(),
            1,
            "the request is under way until the agent says done"
        );
        bench.router.from_guest(&frame(Kind::Stdout, 1, b"late"));
        bench.router.from_guest(&frame(Kind::Done, 1, b"{}"));
        assert_eq!(bench.router.busy(), 0);
    }

    #[test]
    fn stopping_is_the_monitors_own_business() {
        let mut bench = Bench::new();
        let (queue, mut frames) = client_queue();
        let id = bench.router.connect(queue);
        let stop = frame(Kind::Open, 7, br#"{"op":"shutdown"}"#);
        assert_eq!(
            bench.router.from_client(id, &stop, None),
            Verdict::Own(7, Box::new(Request::Shutdown))
        );
        assert_eq!(bench.at_guest(), []);
        bench.router.answer(id, 7, &Ok(Reply::Bye));
        let answer = at_client(&mut frames).remove(0);
        assert_eq!((answer.kind, answer.stream), (Kind::Done, 7));
        assert_eq!(Done::decode(&answer.payload).unwrap(), Ok(Reply::Bye));
    }

    #[test]
    fn rule_breakers_are_cut_off() {
        let mut bench = Bench::new();
        let (queue, _frames) = client_queue();
        let id = bench.router.connect(queue);
        assert_eq!(
            bench
                .router
                .from_client(id, &frame(Kind::Open, 0, b"{}"), None),
            Verdict::CutOff
        );
        assert_eq!(
            bench.router.from_client(id, &open(1), None),
            Verdict::Routed
        );
        assert_eq!(
            bench.router.from_client(id, &open(1), None),
            Verdict::CutOff
        );
        assert_eq!(
            bench.router.from_client(99, &open(1), None),
            Verdict::CutOff
        );
    }

    #[test]
    fn too_many_requests_are_refused_one_by_one() {
        let mut bench = Bench::new();
        let (queue, mut frames) = client_queue();
        let id = bench.router.connect(queue);
        for stream in 1..=MAX_STREAMS as u32 + 1 {
            assert_eq!(
                bench.router.from_client(id, &open(stream), None),
                Verdict::Routed
            );
        }
        assert_eq!(bench.at_guest().len(), MAX_STREAMS);
        let refused = at_client(&mut frames);
        assert_eq!(refused.len(), 1);
        assert!(Done::decode(&refused[0].payload).unwrap().is_err());
    }

    #[test]
    fn a_client_that_reads_nothing_loses_news_then_its_place() {
        let mut bench = Bench::new();
        let (queue, mut frames) = client_queue();
        let id = bench.router.connect(queue);
        bench.router.from_client(id, &open(1), None);
        let mut news = Vec::new();
        let event = Event::Trying {
            reference: "x".repeat(50_000),
        };
        event.encode(&mut news, 1).unwrap();
        let mut decoder = Decoder::new();
        decoder.push(&news);
        let event = decoder.next().unwrap().unwrap();
        for _ in 0..100 {
            assert_eq!(bench.router.from_guest(&event), None);
        }
        let kept = at_client(&mut frames).len();
        assert!(kept < 30, "{kept} events wait");

        let data = frame(Kind::Stdout, 1, &vec![0; 60_000]);
        let cut = (0..10_000).find_map(|_| bench.router.from_guest(&data));
        assert_eq!(cut, Some(id));
    }
}
