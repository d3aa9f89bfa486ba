use tokio::net::UnixStream;
use vdkr_core::channel::message::{Reply, RunRequest};

use super::*;
use crate::vm::{fake_agent::FakeAgent, pipe::greet_guest};

async fn connected() -> (Connection, FakeAgent) {
    let (host, guest) = UnixStream::pair().unwrap();
    let agent = FakeAgent::default();
    tokio::spawn(agent.clone().serve(guest));
    let (reader, mut writer) = host.into_split();
    let (reader, hello) = greet_guest(reader, &mut writer, "test").await.unwrap();
    (Connection::new(reader, writer, hello), agent)
}

fn run(args: &[&str]) -> Request {
    let args = args.iter().map(ToString::to_string).collect();
    Request::Run(RunRequest {
        image: "i".into(),
        args,
        ..RunRequest::default()
    })
}

/// Reads a call to its end.
async fn finish(call: &mut Call) -> (Vec<u8>, Vec<u8>, Done) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match call.next().await.unwrap() {
            Incoming::Data(pipe, bytes) => {
                call.sender.consumed(pipe, bytes.len()).await.unwrap();
                if pipe == Pipe::Stdout {
                    &mut out
                } else {
                    &mut err
                }
                .extend(bytes);
            }
            Incoming::Event(_) => {}
            Incoming::Done(done) => return (out, err, done),
        }
    }
}

#[tokio::test]
async fn output_of_any_length_arrives_whole_and_apart() {
    let (connection, _) = connected().await;
    let mut both = connection
        .call(&run(&["both", "to out", "to err"]))
        .await
        .unwrap();
    let (out, err, done) = finish(&mut both).await;
    assert_eq!(
        (out.as_slice(), err.as_slice()),
        (&b"to out"[..], &b"to err"[..])
    );
    assert_eq!(done, Ok(Reply::Ran { status: 3 }));

    let mut emit = connection.call(&run(&["emit", "5000001"])).await.unwrap();
    let (out, _, done) = finish(&mut emit).await;
    assert_eq!(out.len(), 5_000_001);
    assert!(
        out.iter()
            .enumerate()
            .all(|(i, &byte)| byte == (i % 251) as u8)
    );
    assert_eq!(done, Ok(Reply::Ran { status: 0 }));
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_own_process_only() {
    let (connection, _) = connected().await;
    let mut slow = connection.call(&run(&["emit", "3000000"])).await.unwrap();
    let mut taken = 0;
    while taken < 100_000 {
        // Not acknowledged.
        if let Incoming::Data(_, bytes) = slow.next().await.unwrap() {
            taken += bytes.len();
        }
    }
    let mut quick = connection.call(&run(&["emit", "3000000"])).await.unwrap();
    assert_eq!(finish(&mut quick).await.0.len(), 3_000_000);
    slow.sender.consumed(Pipe::Stdout, taken).await.unwrap();
    assert_eq!(taken + finish(&mut slow).await.0.len(), 3_000_000);
}

#[tokio::test]
async fn input_is_sent_as_fast_as_it_is_taken() {
    let (connection, _) = connected().await;
    let mut call = connection.call(&run(&["cat"])).await.unwrap();
    let sender = call.sender();
    let input: Vec<u8> = (0..2_000_000_u32).map(|i| (i % 253) as u8).collect();
    let copy = input.clone();
    let feeding = tokio::spawn(async move {
        assert!(sender.stdin(&copy).await.unwrap());
        sender.end_stdin().await.unwrap();
        sender
    });
    assert!(finish(&mut call).await.0 == input);
    let sender = feeding.await.unwrap();
    assert!(!sender.stdin(b"too late").await.unwrap());
}

#[tokio::test]
async fn signals_sizes_and_cancellation_arrive() {
    let (connection, agent) = connected().await;
    let mut call = connection.call(&run(&["signal"])).await.unwrap();
    call.sender().signal(15).await.unwrap();
    assert_eq!(finish(&mut call).await.2, Ok(Reply::Ran { status: 143 }));

    let mut call = connection.call(&run(&["size"])).await.unwrap();
    call.sender().resize(24, 80).await.unwrap();
    assert_eq!(finish(&mut call).await.0, b"24x80\r\n");

    let mut call = connection.call(&run(&["endless"])).await.unwrap();
    call.sender().cancel().await.unwrap();
    assert!(finish(&mut call).await.2.is_err());

    let dropped = connection.call(&run(&["signal"])).await.unwrap();
    drop(dropped);
    // Its cancel is behind it on the same pipe.
    assert_eq!(
        finish(&mut connection.call(&run(&["exit", "0"])).await.unwrap())
            .await
            .2,
        Ok(Reply::Ran { status: 0 })
    );
    assert_eq!(*agent.cancelled.lock().unwrap(), [3, 4]);
}

#[tokio::test]
async fn a_cancel_is_not_lost_in_a_full_queue() {
    let (connection, agent) = connected().await;
    let mut call = connection.call(&run(&["cat"])).await.unwrap();
    let dropped = connection.call(&run(&["signal"])).await.unwrap();
    while agent.requests.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    // Nobody else has a turn before the drop: what is put in here stays in.
    let mut resize = Vec::new();
    encode(&mut resize, Kind::Resize, 1, &[0; 4]).unwrap();
    let outgoing = &connection.shared.outgoing;
    while outgoing.try_send(resize.clone()).is_ok() {}
    drop(dropped);
    while agent.cancelled.lock().unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(*agent.cancelled.lock().unwrap(), [2]);
    call.sender().end_stdin().await.unwrap();
    assert_eq!(finish(&mut call).await.2, Ok(Reply::Ran { status: 0 }));
}

#[tokio::test]
async fn an_agent_that_breaks_the_rules_is_left() {
    let (connection, _) = connected().await;
    let mut call = connection.call(&run(&["flood"])).await.unwrap();
    let error = loop {
        match call.next().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("protocol"), "{error}");
    assert!(connection.call(&Request::Info).await.is_err());
}

#[tokio::test]
async fn the_end_of_the_machine_ends_every_call() {
    let (connection, _) = connected().await;
    let mut waiting = connection.call(&run(&["signal"])).await.unwrap();
    let mut dying = connection.call(&run(&["die"])).await.unwrap();
    for call in [&mut waiting, &mut dying] {
        let error = loop {
            match call.next().await {
                Ok(Incoming::Done(done)) => panic!("{done:?}"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(&error, ChannelError::Lost(_)), "{error}");
    }
}

#[tokio::test]
async fn a_long_request_travels_in_parts() {
    let (connection, agent) = connected().await;
    let long = "x".repeat(700_000);
    let mut call = connection.call(&run(&["show", &long])).await.unwrap();
    let (out, _, _) = finish(&mut call).await;
    assert!(out.len() > 700_000);
    let requests = agent.requests.lock().unwrap();
    let [Request::Run(request)] = &requests[..] else {
        panic!()
    };
    assert_eq!(request.args[1], long);
}
