//! The channel's messages of protocol version 1, from outside: as they stand in `protocol/v1.jsonl`,
//! which is never changed but added to.

mod protocol;

use std::collections::BTreeSet;
use std::fmt::Debug;

use protocol::{by_kind, decode, golden, through_the_wire};
use serde_json::{Value, json};
use vdkr_core::channel::message::{
    ContainerReply, ContainerRequest, Done, Event, Message, Reply, Request, VolumeAction,
};
use vdkr_core::channel::{Decoder, Kind};

/// What need not be said, since it holds for whoever hears nothing.
fn is_left_out(value: &Value) -> bool {
    value.is_null() || value == "no" || value == "ended"
}

/// Whether everything that `old` says is said by `new` as well.
fn says_as_much(old: &Value, new: &Value) -> bool {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => old.iter().all(|(name, old)| {
            new.get(name)
                .map_or(is_left_out(old), |new| says_as_much(old, new))
        }),
        (Value::Array(old), Value::Array(new)) => {
            old.len() == new.len() && old.iter().zip(new).all(|(old, new)| says_as_much(old, new))
        }
        _ => old == new,
    }
}

fn stays<M: Message + PartialEq + Debug>(message: &Value) {
    let decoded: M = decode(message);
    let sent = through_the_wire(&decoded).unwrap();
    // A side of version 1 finds everything in it that it knows, where it looks for it.
    assert!(says_as_much(message, &sent), "{message} became {sent}");
    assert_eq!(decode::<M>(&sent), decoded);
}

#[test]
fn messages_of_version_1_are_understood_and_said_in_the_same_way() {
    for (kind, message) in golden() {
        by_kind!(&*kind, stays(&message));
    }
}

/// Objects in which every name means something, so that no later version can add a field: names that
/// users choose, documents that are passed on, and choices with a value.
const CLOSED: [&str; 9] = [
    "Ok or Err",
    "labels",
    "sysctls",
    "stages",
    "documents",
    "restart",
    "network",
    "seccomp",
    "removed",
];

/// Adds a field that nobody knows to every object.
fn later(value: &mut Value, name: &str) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if name != "documents" {
                    later(value, name);
                }
            }
            if !CLOSED.contains(&name) {
                fields.insert("later".to_owned(), json!({"x": [1, {"y": null}]}));
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| later(value, name)),
        _ => {}
    }
}

fn ignores_what_is_later<M: Message + PartialEq + Debug>(message: &Value) {
    let mut extended = message.clone();
    let outermost = match message {
        Value::Object(fields) if fields.contains_key("Ok") || fields.contains_key("Err") => {
            "Ok or Err"
        }
        _ => "",
    };
    later(&mut extended, outermost);
    assert_ne!(extended, *message);
    assert_eq!(decode::<M>(&extended), decode::<M>(message), "{extended}");
}

#[test]
fn fields_of_later_versions_are_ignored_wherever_they_stand() {
    for (kind, message) in golden() {
        by_kind!(&*kind, ignores_what_is_later(&message));
    }
}

/// Numbers of what a message is, so that one without a line above does not go unnoticed. Whoever adds a
/// message adds a number here, raises the count, and adds lines to the file.
fn request(request: &Request) -> usize {
    match request {
        Request::Admit(_) => 0,
        Request::Layers { .. } => 1,
        Request::Mount { .. } => 2,
        Request::AttachDisk(_) => 3,
        Request::DetachDisk { .. } => 4,
        Request::Machine => 5,
        Request::Pull(_) => 6,
        Request::Run(_) => 7,
        Request::Container(_) => 8,
        Request::Images => 9,
        Request::Inspect { .. } => 10,
        Request::Remove { .. } => 11,
        Request::Tag { .. } => 12,
        Request::Info => 13,
        Request::AddImage(_) => 14,
        Request::AddLayer { .. } => 15,
        Request::Export { .. } => 16,
        Request::ReadBlob { .. } => 17,
        Request::Prune(_) => 18,
        Request::Usage => 19,
        Request::Shutdown => 20,
        Request::AdoptPorts { .. } => 21,
        Request::Publish(_) => 22,
        Request::Published => 23,
        Request::MountShare { .. } => 24,
        Request::Release { .. } => 25,
        Request::KeepShare { .. } => 26,
        Request::Share { .. } => 27,
        Request::Volume { .. } => 28,
        Request::Unknown => panic!("it is not understood"),
    }
}

fn container_request(request: &ContainerRequest) -> usize {
    match request {
        ContainerRequest::Attach { .. } => 0,
        ContainerRequest::Changes { .. } => 1,
        ContainerRequest::Commit { .. } => 2,
        ContainerRequest::CopyIn { .. } => 3,
        ContainerRequest::CopyOut { .. } => 4,
        ContainerRequest::Exec(_) => 5,
        ContainerRequest::Export { .. } => 6,
        ContainerRequest::Inspect { .. } => 7,
        ContainerRequest::Kill { .. } => 8,
        ContainerRequest::List => 9,
        ContainerRequest::Logs(_) => 10,
        ContainerRequest::Path { .. } => 11,
        ContainerRequest::Pause { .. } => 12,
        ContainerRequest::Place { .. } => 13,
        ContainerRequest::Remove { .. } => 14,
        ContainerRequest::Rename { .. } => 15,
        ContainerRequest::Restart { .. } => 16,
        ContainerRequest::Resume => 17,
        ContainerRequest::Start { .. } => 18,
        ContainerRequest::Stats { .. } => 19,
        ContainerRequest::Stop { .. } => 20,
        ContainerRequest::Top { .. } => 21,
        ContainerRequest::Unpause { .. } => 22,
        ContainerRequest::Wait { .. } => 23,
        ContainerRequest::Unknown => panic!("it is not understood"),
    }
}

fn volume_action(action: &VolumeAction) -> usize {
    match action {
        VolumeAction::Create { .. } => 0,
        VolumeAction::List { .. } => 1,
        VolumeAction::Remove { .. } => 2,
        VolumeAction::Prune { .. } => 3,
        VolumeAction::Unknown => panic!("it is not understood"),
    }
}

fn reply(reply: &Reply) -> usize {
    match reply {
        Reply::Layers(_) => 0,
        Reply::Mounted => 1,
        Reply::Attached => 2,
        Reply::Detached => 3,
        Reply::Machine(_) => 4,
        Reply::Pulled(_) => 5,
        Reply::Ran { .. } => 6,
        Reply::Container(_) => 7,
        Reply::Images { .. } => 8,
        Reply::Inspected { .. } => 9,
        Reply::Removed { .. } => 10,
        Reply::Tagged => 11,
        Reply::Added { .. } => 12,
        Reply::LayerAdded { .. } => 13,
        Reply::Exported { .. } => 14,
        Reply::Sent => 15,
        Reply::Pruned { .. } => 16,
        Reply::Usage(_) => 17,
        Reply::Info(_) => 18,
        Reply::Released => 19,
        Reply::Shared { .. } => 20,
        Reply::Unmounted => 21,
        Reply::Volumes { .. } => 22,
        Reply::VolumesRemoved { .. } => 23,
        Reply::Bye => 24,
        Reply::Settled => 25,
        Reply::Published { .. } => 26,
        Reply::Unknown => panic!("it is not understood"),
    }
}

fn container_reply(reply: &ContainerReply) -> usize {
    match reply {
        ContainerReply::Created { .. } => 0,
        ContainerReply::Done => 1,
        ContainerReply::List { .. } => 2,
        ContainerReply::Path(_) => 3,
        ContainerReply::Top { .. } => 4,
        ContainerReply::Stats { .. } => 5,
        ContainerReply::Unknown => panic!("it is not understood"),
    }
}

fn event(event: &Event) -> usize {
    match event {
        Event::Trying { .. } => 0,
        Event::Progress { .. } => 1,
        Event::Log { .. } => 2,
        Event::Mounted => 3,
        Event::Started { .. } => 4,
        Event::Unknown => panic!("it is not understood"),
    }
}

#[test]
fn every_message_of_version_1_has_a_line() {
    let mut seen: [BTreeSet<usize>; 6] = Default::default();
    for (kind, message) in golden() {
        match &*kind {
            "open" => {
                let decoded: Request = decode(&message);
                seen[0].insert(request(&decoded));
                match decoded {
                    Request::Container(verb) => seen[1].insert(container_request(&verb)),
                    Request::Volume { action } => seen[2].insert(volume_action(&action)),
                    _ => false,
                };
            }
            "done" => {
                if let Ok(decoded) = decode::<Done>(&message) {
                    seen[3].insert(reply(&decoded));
                    if let Reply::Container(what) = decoded {
                        seen[4].insert(container_reply(&what));
                    }
                }
            }
            "event" => {
                seen[5].insert(event(&decode(&message)));
            }
            _ => {}
        }
    }
    for (seen, count) in seen.iter().zip([29, 24, 4, 27, 6, 5]) {
        assert!(seen.iter().copied().eq(0..count), "{seen:?} of {count}");
    }
}

/// Frames of version 1: their bytes in hex, kind, stream and payload.
const FRAMES: [(&str, Kind, u32, &[u8]); 18] = [
    ("020000000100000000", Kind::Hello, 0, b"{}"),
    ("020000000203000000", Kind::Open, 3, b"{}"),
    ("030000000303000000", Kind::Stdin, 3, b"a\0b"),
    ("010000000403000000", Kind::Stdout, 3, b"o"),
    ("010000000503000000", Kind::Stderr, 3, b"e"),
    ("010000000603000000", Kind::Eof, 3, b"\0"),
    ("050000000703000000", Kind::Credit, 3, b"\x01\0\0\x04\0"),
    ("020000000803000000", Kind::Event, 3, b"{}"),
    ("020000000903000000", Kind::Done, 3, b"{}"),
    ("010000000a03000000", Kind::Signal, 3, b"\x0f"),
    ("040000000b03000000", Kind::Resize, 3, b"\x18\0\x50\0"),
    ("000000000c03000000", Kind::Cancel, 3, b""),
    ("000000000d00000000", Kind::Ping, 0, b""),
    ("000000000e00000000", Kind::Pong, 0, b""),
    ("010000000f03000000", Kind::Part, 3, b"{"),
    ("000000001003000000", Kind::Detach, 3, b""),
    ("000000001103000000", Kind::Unknown(17), 3, b""),
    ("00000000fffffeff7f", Kind::Unknown(255), 0x7fff_feff, b""),
];

#[test]
fn frames_of_version_1_have_their_bytes() {
    for (header, kind, stream, payload) in FRAMES {
        let bytes = (0..header.len() / 2).map(|at| {
            let digits = &header[2 * at..2 * at + 2];
            u8::from_str_radix(digits, 16).unwrap()
        });
        let mut wire: Vec<u8> = bytes.collect();
        wire.extend(payload);
        let mut decoder = Decoder::new();
        decoder.push(&wire);
        let frame = decoder.next().unwrap().unwrap();
        assert_eq!((frame.kind, frame.stream), (kind, stream), "{header}");
        assert_eq!(frame.payload, payload);
        let mut made = Vec::new();
        vdkr_core::channel::encode(&mut made, kind, stream, payload).unwrap();
        assert_eq!(made, wire);
    }
}
