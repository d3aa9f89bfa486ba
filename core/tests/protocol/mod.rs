//! Messages of protocol version 1, and the wire that they go over.

use serde_json::Value;
use vdkr_core::channel::message::{Message, MessageError};
use vdkr_core::channel::{Assembler, Decoder};

/// One message a line, beside the kind of frame that carries it: with all of its fields, and with as
/// few as it can have.
const GOLDEN: &str = include_str!("v1.jsonl");

pub(crate) fn golden() -> Vec<(String, Value)> {
    let lines = GOLDEN.lines().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        let kind = line["kind"].as_str().unwrap().to_owned();
        (kind, line["message"].take())
    });
    lines.collect()
}

/// Does something with the type of a kind of message.
macro_rules! by_kind {
    ($kind:expr, $does:ident($($argument:expr),*)) => {
        match $kind {
            "host_hello" => $does::<vdkr_core::channel::message::HostHello>($($argument),*),
            "guest_hello" => $does::<vdkr_core::channel::message::GuestHello>($($argument),*),
            "open" => $does::<vdkr_core::channel::message::Request>($($argument),*),
            "event" => $does::<vdkr_core::channel::message::Event>($($argument),*),
            "done" => $does::<vdkr_core::channel::message::Done>($($argument),*),
            other => panic!("no kind of message: {other}"),
        }
    };
}
pub(crate) use by_kind;

/// Sends a message and takes it from the wire again.
pub(crate) fn through_the_wire<M: Message>(message: &M) -> Result<Value, MessageError> {
    let mut wire = Vec::new();
    message.encode(&mut wire, 7)?;
    let (mut decoder, mut assembler) = (Decoder::new(), Assembler::new());
    decoder.push(&wire);
    let mut whole = None;
    while let Some(frame) = decoder.next()? {
        assert!(whole.is_none());
        whole = assembler.push(frame)?;
    }
    let frame = whole.unwrap();
    assert_eq!((frame.kind, frame.stream), (M::KIND, 7));
    Ok(serde_json::from_slice(&frame.payload).unwrap())
}

pub(crate) fn decode<M: Message>(message: &Value) -> M {
    let text = message.to_string();
    let decoded = M::decode(text.as_bytes());
    decoded.unwrap_or_else(|error| panic!("{error}: {text}"))
}
