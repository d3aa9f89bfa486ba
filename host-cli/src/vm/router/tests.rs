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
    let run = RunRequest {
        image: "i".into(),
        ..RunRequest::default()
    };
    opened(&Request::Run(run), stream)
}

fn opened(request: &Request, stream: u32) -> Frame {
    let mut bytes = Vec::new();
    request.encode(&mut bytes, stream).unwrap();
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
        bench.router.connect(one_queue, false),
        bench.router.connect(two_queue, false),
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
    let id = bench.router.connect(queue, false);
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
    let id = bench.router.connect(queue, false);
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
    let id = bench.router.connect(queue, false);
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
fn a_guest_that_asks_and_does_not_read_gets_one_answer() {
    let mut bench = Bench::new();
    for _ in 0..1000 {
        bench.router.from_guest(&frame(Kind::Ping, 7, b""));
    }
    let written = bench.guest.try_recv().unwrap();
    assert!(bench.guest.try_recv().is_err(), "more than one waits");
    bench.router.from_guest(&frame(Kind::Ping, 7, b""));
    assert!(bench.guest.try_recv().is_err(), "the first is not written");
    drop(written);
    bench.router.from_guest(&frame(Kind::Ping, 8, b""));
    let [pong] = &bench.at_guest()[..] else {
        panic!("no answer to the next one")
    };
    assert_eq!((pong.kind, pong.stream), (Kind::Pong, 8));
}

#[test]
fn too_many_requests_are_refused_one_by_one() {
    let mut bench = Bench::new();
    let (queue, mut frames) = client_queue();
    let id = bench.router.connect(queue, false);
    for stream in 1..=CLIENT_STREAMS as u32 + 1 {
        assert_eq!(
            bench.router.from_client(id, &open(stream), None),
            Verdict::Routed
        );
    }
    assert_eq!(bench.at_guest().len(), CLIENT_STREAMS);
    let refused = at_client(&mut frames);
    assert_eq!(refused.len(), 1);
    assert!(Done::decode(&refused[0].payload).unwrap().is_err());
    // What makes room is let through.
    let stop = br#"{"op":"container","verb":"stop","name":"a"}"#;
    bench
        .router
        .from_client(id, &frame(Kind::Open, 9999, stop), None);
    assert_eq!(bench.at_guest().len(), 1);
    assert_eq!(at_client(&mut frames), []);
}

#[test]
fn directories_that_are_served_leave_room_and_are_nobodys_use() {
    let mut bench = Bench::new();
    let (queue, mut own) = client_queue();
    let (other, mut others) = client_queue();
    let own_id = bench.router.connect(queue, true);
    let id = bench.router.connect(other, false);
    for stream in 1..=SHARE_STREAMS as u32 + 1 {
        let share = Request::MountShare {
            share: format!("{stream:08x}"),
            directory: true,
            read_only: true,
        };
        bench
            .router
            .from_client(own_id, &opened(&share, stream), None);
    }
    assert_eq!(bench.at_guest().len(), SHARE_STREAMS);
    assert_eq!(at_client(&mut own).len(), 1, "the last one is refused");
    assert_eq!(bench.router.busy(), 0);
    bench.router.from_client(id, &open(1), None);
    let release = Request::Release {
        share: "00000001".into(),
    };
    bench
        .router
        .from_client(own_id, &opened(&release, 9999), None);
    assert_eq!(bench.at_guest().len(), 2);
    assert_eq!(at_client(&mut others), []);
    assert_eq!(bench.router.busy(), 1);
}

#[test]
fn a_client_that_reads_nothing_loses_news_then_its_place() {
    let mut bench = Bench::new();
    let (queue, mut frames) = client_queue();
    let id = bench.router.connect(queue, false);
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

#[test]
fn small_pieces_that_nobody_reads_are_as_bounded() {
    let mut bench = Bench::new();
    let (queue, _frames) = client_queue();
    let id = bench.router.connect(queue, false);
    bench.router.from_client(id, &open(1), None);
    let data = frame(Kind::Stdout, 1, b"x");
    let most = CLIENT_LIMIT / PIECE;
    let cut = (0..=most).find_map(|_| bench.router.from_guest(&data));
    assert_eq!(cut, Some(id));
}
