//! The channel's messages, from outside: those of protocol version 1 as they stand in
//! `protocol/v1.jsonl`, which is never changed but added to, and everything that can be made of them
//! by somebody who means harm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use vdkr_core::channel::message::{
    ContainerReply, ContainerRequest, Done, Event, GuestHello, HostHello, MAX_VALUES, Message,
    MessageError, Reply, Request, VolumeAction,
};
use vdkr_core::channel::{
    Assembler, Decoder, FrameError, Kind, MAX_MESSAGE, SyncMarker, SyncScanner,
};

/// One message a line, beside the kind of frame that carries it: with all of its fields, and with as
/// few as it can have.
const GOLDEN: &str = include_str!("protocol/v1.jsonl");

/// Bytes that a decoder may take for each byte of a short message, beside [`FIXED`]. A list of many
/// small rows is the worst: three bytes become one that has room for all of its fields.
const FACTOR: usize = 256;
const FIXED: usize = 64 << 10;
/// Bytes that a decoder may take for any message.
const MOST: usize = 64 << 20;

/// Counts what each thread has allocated.
struct Counting;

thread_local! {
    static NOW: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

fn note(more: usize, less: usize) {
    // Threads that end count no more.
    let _ = NOW.try_with(|now| {
        now.set(now.get().saturating_add(more).saturating_sub(less));
        let _ = PEAK.try_with(|peak| peak.set(peak.get().max(now.get())));
    });
}

#[allow(
    unsafe_code,
    reason = "whoever counts allocations has to be an allocator"
)]
// SAFETY: every call is passed on to the system's allocator as it came; counting neither allocates nor
// fails.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both may be there for a moment.
        note(size, 0);
        note(0, layout.size());
        // SAFETY: as above.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What something gives, and the most bytes that it had allocated at a time.
fn measured<T>(work: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.get();
    PEAK.set(before);
    let result = work();
    (result, PEAK.get() - before)
}

fn golden() -> Vec<(String, Value)> {
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
            "host_hello" => $does::<HostHello>($($argument),*),
            "guest_hello" => $does::<GuestHello>($($argument),*),
            "open" => $does::<Request>($($argument),*),
            "event" => $does::<Event>($($argument),*),
            "done" => $does::<Done>($($argument),*),
            other => panic!("no kind of message: {other}"),
        }
    };
}

/// Sends a message and takes it from the wire again.
fn through_the_wire<M: Message>(message: &M) -> Result<Value, MessageError> {
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

fn decode<M: Message>(message: &Value) -> M {
    let text = message.to_string();
    let decoded = M::decode(text.as_bytes());
    decoded.unwrap_or_else(|error| panic!("{error}: {text}"))
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

/// What may stand in place of any value.
const ODD: [&str; 22] = [
    "null",
    "true",
    "0",
    "-1",
    "1.5",
    "256",
    "65536",
    "4294967296",
    "18446744073709551615",
    "18446744073709551616",
    "1e999",
    "\"\"",
    "\"x\"",
    "\"\\u0000\\n\\u001b[2J\"",
    "\"\\ud800\"",
    "\"../../../etc\"",
    "[]",
    "[null]",
    "{}",
    "{\"a\":{\"a\":{}}}",
    "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
    "{\"op\":\"info\",\"op\":\"run\",\"reply\":\"ran\",\"event\":\"log\"}",
];

/// One thing that is done to a value within a message.
#[derive(Clone, Debug)]
enum Change {
    Drop,
    Twice(usize),
    Replace(usize),
    Rename(usize),
    Many(usize),
}

/// Values in a message.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Object(fields) => fields.values().map(count).sum(),
        Value::Array(values) => values.iter().map(count).sum(),
        _ => 0,
    }
}

/// Writes a message with changes; `next` is the number of the value that comes.
fn write(value: &Value, changes: &[(usize, Change)], next: &mut usize, out: &mut String) {
    *next += 1;
    match value {
        Value::Object(fields) => {
            out.push('{');
            members(fields, changes, next, out);
            out.push('}');
        }
        Value::Array(values) => {
            out.push('[');
            for (at, value) in values.iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                member(None, value, changes, next, out);
            }
            out.push(']');
        }
        other => out.push_str(&other.to_string()),
    }
}

fn members(
    fields: &Map<String, Value>,
    changes: &[(usize, Change)],
    next: &mut usize,
    out: &mut String,
) {
    let mut first = true;
    for (name, value) in fields {
        let here = *next;
        if changes
            .iter()
            .any(|(at, change)| *at == here && matches!(change, Change::Drop))
        {
            *next += count(value);
            continue;
        }
        if !first {
            out.push(',');
        }
        first = false;
        member(Some(name), value, changes, next, out);
    }
}

fn member(
    name: Option<&str>,
    value: &Value,
    changes: &[(usize, Change)],
    next: &mut usize,
    out: &mut String,
) {
    let change = changes
        .iter()
        .find(|(at, _)| at == next)
        .map(|(_, change)| change);
    let label = |name: &str| format!("{}:", json!(name));
    let shown = name.map(label).unwrap_or_default();
    match change {
        Some(Change::Replace(odd)) => {
            *next += count(value);
            out.push_str(&shown);
            out.push_str(ODD[odd % ODD.len()]);
        }
        Some(Change::Many(odd)) => {
            *next += count(value);
            out.push_str(&shown);
            let many = vec![ODD[odd % ODD.len()]; 500];
            out.push_str(&format!("[{}]", many.join(",")));
        }
        Some(Change::Twice(odd)) => {
            out.push_str(&shown);
            write(value, changes, next, out);
            out.push(',');
            out.push_str(&shown);
            out.push_str(ODD[odd % ODD.len()]);
        }
        Some(Change::Rename(odd)) => {
            let names = ["", "Ok", "op", "type", "later", "settings"];
            let renamed = name.map(|_| label(names[odd % names.len()]));
            out.push_str(&renamed.unwrap_or_default());
            write(value, changes, next, out);
        }
        Some(Change::Drop) | None => {
            out.push_str(&shown);
            write(value, changes, next, out);
        }
    }
}

/// One thing that is done to the bytes.
#[derive(Clone, Debug)]
enum Damage {
    Flip(Index, u8),
    Cut(Index),
    Repeat(Index, Index),
    Insert(Index, Vec<u8>),
}

fn damage(bytes: &mut Vec<u8>, how: &Damage) {
    if bytes.is_empty() {
        return;
    }
    match how {
        Damage::Flip(at, bits) => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Repeat(from, to) => {
            let (from, to) = (from.index(bytes.len()), to.index(bytes.len()));
            let part = bytes[from.min(to)..from.max(to)].to_vec();
            let at = from.max(to);
            bytes.splice(at..at, part);
        }
        Damage::Insert(at, more) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more.iter().copied());
        }
    }
}

fn a_change() -> impl Strategy<Value = Change> {
    prop_oneof![
        Just(Change::Drop),
        any::<usize>().prop_map(Change::Twice),
        any::<usize>().prop_map(Change::Replace),
        any::<usize>().prop_map(Change::Rename),
        any::<usize>().prop_map(Change::Many),
    ]
}

fn some_damage() -> impl Strategy<Value = Damage> {
    let bytes = prop::collection::vec(any::<u8>(), 1..20);
    prop_oneof![
        (any::<Index>(), 1..=u8::MAX).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<Index>().prop_map(Damage::Cut),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Damage::Repeat(from, to)),
        (any::<Index>(), bytes).prop_map(|(at, more)| Damage::Insert(at, more)),
    ]
}

/// Reads bytes as a message: within bounds, and what is understood is a message like any other.
fn survives<M: Message + PartialEq + Debug>(bytes: &[u8]) {
    let (decoded, peak) = measured(|| M::decode(bytes));
    let most = FIXED + FACTOR * bytes.len();
    assert!(
        peak <= most,
        "{peak} bytes for {} of a message",
        bytes.len()
    );
    let Ok(message) = decoded else { return };
    match through_the_wire(&message) {
        Ok(sent) => assert_eq!(decode::<M>(&sent), message),
        // Defaults that are written out may make it too long.
        Err(MessageError::Frame(FrameError::MessageTooLong { .. })) => {}
        Err(error) => panic!("{error}"),
    }
}

fn survives_as_all(bytes: &[u8]) {
    for kind in ["host_hello", "guest_hello", "open", "event", "done"] {
        by_kind!(kind, survives(bytes));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn what_is_made_of_a_message_is_survived(
        which in any::<Index>(),
        changes in prop::collection::vec((any::<Index>(), a_change()), 0..4),
        damages in prop::collection::vec(some_damage(), 0..3),
    ) {
        let golden = golden();
        let (_, message) = which.get(&golden);
        let values = count(message);
        let changes: Vec<_> = changes
            .into_iter()
            .map(|(at, change)| (at.index(values), change))
            .collect();
        let mut text = String::new();
        member(None, message, &changes, &mut 0, &mut text);
        let mut bytes = text.into_bytes();
        for how in &damages {
            damage(&mut bytes, how);
        }
        survives_as_all(&bytes);
    }

    #[test]
    fn what_is_made_of_frames_is_survived(
        which in prop::collection::vec(any::<Index>(), 1..6),
        damages in prop::collection::vec(some_damage(), 1..4),
        cuts in prop::collection::vec(1..200_usize, 1..8),
    ) {
        let golden = golden();
        let mut wire = Vec::new();
        for (stream, which) in which.iter().enumerate() {
            let (kind, message) = which.get(&golden);
            let stream = u32::try_from(stream).unwrap();
            by_kind!(&**kind, put(message, stream, &mut wire));
        }
        for how in &damages {
            damage(&mut wire, how);
        }
        let ((), peak) = measured(|| take(&wire, &cuts));
        prop_assert!(peak <= FIXED + 8 * wire.len(), "{peak} bytes for {}", wire.len());
        // A marker that stands in it is found with what is behind it.
        let marker = SyncMarker::new([7; 8]);
        let at = wire.len();
        wire.extend(marker.to_bytes());
        wire.push(1);
        let found = SyncScanner::exactly(marker).push(&wire);
        prop_assert!(found.is_some_and(|(_, rest)| !rest.is_empty()), "not found at {at}");
    }
}

fn put<M: Message>(message: &Value, stream: u32, wire: &mut Vec<u8>) {
    decode::<M>(message).encode(wire, stream).unwrap();
}

/// Takes frames off a wire until it is at its end, or broken.
fn take(wire: &[u8], cuts: &[usize]) {
    let (mut decoder, mut assembler) = (Decoder::new(), Assembler::new());
    let (mut rest, mut cuts) = (wire, cuts.iter().cycle());
    while !rest.is_empty() {
        let length = cuts.next().copied().unwrap_or(1).min(rest.len());
        let (piece, tail) = rest.split_at(length);
        rest = tail;
        decoder.push(piece);
        loop {
            let frame = match decoder.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(_) => return,
            };
            if assembler.push(frame).is_err() {
                return;
            }
        }
    }
}

/// Messages with as many small values as they may have, in each place that takes a list.
#[test]
fn the_worst_message_takes_bounded_memory() {
    let lists = [
        (
            "open",
            r#"{"op":"run","image":"a","args":["#,
            r#""","#,
            r#"""]}"#,
        ),
        ("open", r#"{"op":"admit","layers":["#, "{},", "{}]}"),
        ("open", r#"{"op":"info","later":["#, "0,", "0]}"),
        ("open", r#"{"op":"info","later":["#, "{},", "{}]}"),
        (
            "open",
            r#"{"op":"pull","reference":"a","settings":{"credentials":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"images","images":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"volumes","volumes":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"inspected","documents":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"ran","status":1,"later":["#,
            "[],",
            "[]]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"container","what":"list","containers":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"container","what":"stats","samples":["#,
            "{},",
            "{}]}}",
        ),
        (
            "done",
            r#"{"Ok":{"reply":"container","what":"top","titles":[],"processes":["#,
            "[],",
            "[]]}}",
        ),
    ];
    for (kind, begin, one, end) in lists {
        let each = one.bytes().filter(|byte| b",[{".contains(byte)).count();
        let text = |count: usize| format!("{begin}{}{end}", one.repeat(count));
        let text_with_most = text(MAX_VALUES / each - 5);
        let (understood, peak) = by_kind!(kind, peak_of(text_with_most.as_bytes()));
        assert!(understood, "{begin}");
        assert!(peak <= MOST, "{peak} bytes for {begin}");
        let (understood, peak) = by_kind!(kind, peak_of(text(MAX_VALUES / each).as_bytes()));
        assert!(!understood, "{begin}");
        assert!(peak < 1024, "{peak} bytes for {begin}");
    }
}

/// Whether a message is understood, and what that takes.
fn peak_of<M: Message>(bytes: &[u8]) -> (bool, usize) {
    assert!(bytes.len() <= MAX_MESSAGE);
    measured(|| M::decode(bytes).is_ok())
}

fn refuses_to_send<M: Message>(message: &M) {
    let mut wire = Vec::new();
    let refused = message.encode(&mut wire, 1);
    assert_eq!(refused, Err(MessageError::TooManyValues));
    assert!(wire.is_empty());
}

#[test]
fn what_the_other_side_would_refuse_is_not_sent() {
    let names = vec![String::new(); MAX_VALUES];
    refuses_to_send(&Request::Inspect {
        names: names.clone(),
    });
    refuses_to_send::<Done>(&Ok(Reply::VolumesRemoved { names, freed: 0 }));
}
