//! Everything that can be made of the channel's messages by somebody who means harm: it is survived, in
//! bounded memory.

mod protocol;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fmt::Debug;

use proptest::prelude::*;
use proptest::sample::Index;
use protocol::{by_kind, decode, golden, through_the_wire};
use serde_json::{Map, Value, json};
use vdkr_core::channel::message::{Done, MAX_VALUES, Message, MessageError, Reply, Request};
use vdkr_core::channel::{Assembler, Decoder, FrameError, MAX_MESSAGE, SyncMarker, SyncScanner};

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
