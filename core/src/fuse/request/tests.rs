use alloc::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::fuse::{MAX_NAME, errno};

/// A request as the kernel writes it.
fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = u32::try_from(HEADER + body.len()).unwrap();
    bytes.extend(length.to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(77_u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.extend([0; 16]);
    bytes.extend(body);
    bytes
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

#[track_caller]
fn check(opcode: u32, body: &[u8], expected: Operation<'_>) {
    let message = message(opcode, 5, body);
    let request = Request::parse(&message).unwrap();
    assert_eq!((request.unique, request.node), (77, 5));
    assert_eq!(request.operation, expected);
    // Without its last byte it is another request, or none.
    let mut short = message.clone();
    short.pop();
    assert!(Request::parse(&short).is_err());
}

#[track_caller]
fn refused(opcode: u32, body: &[u8], errno: i32) {
    assert_eq!(
        Request::parse(&message(opcode, 5, body)),
        Err(RequestError::Malformed {
            opcode,
            unique: 77,
            errno
        })
    );
}

#[test]
fn operations_are_read_as_the_kernel_writes_them() {
    let handle = 9;
    check(1, b"a\0", Operation::Lookup { name: b"a" });
    check(2, &words(&[3]), Operation::Forget { lookups: 3 });
    check(
        3,
        &words(&[1, 9]),
        Operation::GetAttr {
            handle: Some(handle),
        },
    );
    check(3, &words(&[0, 9]), Operation::GetAttr { handle: None });
    let (name, target) = (&b"n"[..], &b"/t/u"[..]);
    check(6, b"n\0/t/u\0", Operation::SymLink { name, target });
    let mode = 0o644;
    let body = [&words(&[0o644, 0])[..], b"n\0"].concat();
    check(8, &body, Operation::MkNod { name, mode });
    check(
        9,
        &[&words(&[0o644])[..], b"n\0"].concat(),
        Operation::MkDir { name, mode },
    );
    let moved = |flags| Operation::Rename {
        name: b"a",
        directory: 4,
        new_name: b"b",
        flags,
    };
    check(12, &[&words(&[4])[..], b"a\0b\0"].concat(), moved(0));
    check(45, &[&words(&[4, 1])[..], b"a\0b\0"].concat(), moved(1));
    check(
        13,
        &[&words(&[8])[..], b"n\0"].concat(),
        Operation::Link { target: 8, name },
    );
    check(
        14,
        &words(&[2 | 1 << 32]),
        Operation::Open {
            flags: 2,
            kill: true,
        },
    );
    check(
        15,
        &words(&[9, 4096, 100, 0, 0]),
        Operation::Read {
            handle,
            offset: 4096,
            size: 100,
        },
    );
    let body = [&words(&[9, 7, 3 | 5 << 32, 0, 0])[..], b"abc"].concat();
    check(
        16,
        &body,
        Operation::Write {
            handle,
            offset: 7,
            data: b"abc",
            cached: true,
            kill: true,
        },
    );
    for plus in [false, true] {
        check(
            if plus { 44 } else { 28 },
            &words(&[9, 2, 4096, 0, 0]),
            Operation::ReadDir {
                handle,
                offset: 2,
                size: 4096,
                plus,
            },
        );
    }
    check(
        20,
        &words(&[9, 1]),
        Operation::FSync {
            handle,
            data_only: true,
        },
    );
    let name = XattrName(b"user.x");
    let body = [&words(&[2 | 1 << 32])[..], b"user.x\0hi"].concat();
    check(
        21,
        &body,
        Operation::SetXattr {
            name,
            value: b"hi",
            flags: 1,
        },
    );
    let body = [&words(&[16])[..], b"user.x\0"].concat();
    check(22, &body, Operation::GetXattr { name, size: 16 });
    check(
        35,
        &[&words(&[0o102 | 0o600 << 32, 0])[..], b"n\0"].concat(),
        Operation::Create {
            name: b"n",
            flags: 0o102,
            mode: 0o600,
        },
    );
    check(
        43,
        &words(&[9, 1, 2, 3]),
        Operation::FAllocate {
            handle,
            offset: 1,
            length: 2,
            mode: 3,
        },
    );
    check(
        47,
        &words(&[9, 1, 2, 8, 3, 4, 0]),
        Operation::CopyFileRange {
            from: 9,
            from_offset: 1,
            to: 8,
            to_offset: 3,
            length: 4,
        },
    );
    check(
        26,
        &words(&[7 | 38 << 32, 65536 | 5 << 32, 0]),
        Operation::Init(Init {
            major: 7,
            minor: 38,
            max_readahead: 65536,
            flags: 5,
        }),
    );
    check(4000, b"whatever", Operation::Unsupported { opcode: 4000 });
}

#[test]
fn attributes_are_set_as_their_bits_say() {
    let mut body = words(&[0, 9, 100, 0, u64::MAX, 22, 0]);
    for field in [5_u32, 6, 0, 0o755, 0, 1000, 1001, 0] {
        body.extend(field.to_le_bytes());
    }
    let mut with = |valid: u32| {
        body[..4].copy_from_slice(&valid.to_le_bytes());
        let message = message(4, 5, &body);
        match Request::parse(&message).unwrap().operation {
            Operation::SetAttr(set) => set,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(0), SetAttr::default());
    assert_eq!(with(1).mode, Some(0o755));
    assert_eq!((with(6).uid, with(6).gid), (Some(1000), Some(1001)));
    assert_eq!((with(8).size, with(64).handle), (Some(100), Some(9)));
    assert_eq!(with(16).atime, Some(Time::At(-1, 5)));
    assert_eq!(with(32).mtime, Some(Time::At(22, 6)));
    assert_eq!(with(32 | 256).mtime, Some(Time::Now));
    assert!(with(1 << 11).kill);
    body[56..60].copy_from_slice(&1_000_000_000_u32.to_le_bytes());
    refused(4, &body, errno::EINVAL);
}

#[test]
fn names_never_lead_anywhere_else() {
    for bad in [
        &b".\0"[..],
        b"..\0",
        b"\0",
        b"a/b\0",
        b"/\0",
        b"../x\0",
        b"a",
    ] {
        refused(1, bad, errno::EINVAL);
        refused(10, bad, errno::EINVAL);
    }
    refused(1, &[&[b'x'; 256][..], b"\0"].concat(), 36);
    refused(12, &[&words(&[4])[..], b"a\0..\0"].concat(), errno::EINVAL);
    for good in [&b"..."[..], b".a", b"\xff\n", &[b'x'; 255]] {
        let body = [good, b"\0"].concat();
        check(1, &body, Operation::Lookup { name: good });
    }
    refused(6, b"n\0\0", errno::EINVAL);
}

#[test]
fn what_is_forgotten_is_counted_by_what_is_there() {
    let message_of = |count: u64| message(42, 0, &words(&[count, 5, 1, 6, 2]));
    let message = message_of(2);
    let Operation::BatchForget(forgets) = Request::parse(&message).unwrap().operation else {
        panic!()
    };
    assert_eq!(forgets.collect::<Vec<_>>(), [(5, 1), (6, 2)]);
    for count in [3, u64::from(u32::MAX)] {
        assert!(Request::parse(&message_of(count)).is_err());
    }
}

#[test]
fn a_write_has_all_its_bytes() {
    let body = [&words(&[9, 7, 4, 0, 0])[..], b"abc"].concat();
    refused(16, &body, errno::EINVAL);
    refused(
        21,
        &[&words(&[70_000])[..], b"user.x\0", &vec![0; 70_000]].concat(),
        errno::EINVAL,
    );
}

#[test]
fn only_users_attributes_are_users() {
    for (name, users) in [
        (&b"user.x"[..], true),
        (b"user.", false),
        (b"security.capability", false),
        (b"trusted.overlay.opaque", false),
        (b"system.posix_acl_access", false),
        (b"userx", false),
    ] {
        assert_eq!(XattrName(name).is_users(), users);
    }
}

#[test]
fn what_changes_something_is_known() {
    for (flags, changes) in [
        (0, false),
        (1, true),
        (2, true),
        (0o1000, true),
        (0o2000, false),
    ] {
        assert_eq!(Operation::Open { flags, kill: false }.changes(), changes);
    }
    assert!(Operation::Unlink { name: b"a" }.changes());
    assert!(!Operation::StatFs.changes());
}

proptest! {
    #[test]
    fn nothing_panics_and_names_are_clean(
        opcode in 0_u32..60,
        body in proptest::collection::vec(prop_oneof![Just(0_u8), Just(b'/'), Just(b'.'), any::<u8>()], 0..200),
        cut in 0_usize..300,
    ) {
        let mut bytes = message(opcode, 1, &body);
        match Request::parse(&bytes) {
            Ok(Request { operation: Operation::Lookup { name } | Operation::MkDir { name, .. }
                | Operation::Link { name, .. } | Operation::Create { name, .. }, .. }) => {
                prop_assert!(!name.is_empty() && name.len() <= MAX_NAME);
                prop_assert!(!name.contains(&b'/') && !name.contains(&0));
                prop_assert!(name != b"." && name != b"..");
            }
            Ok(Request { operation: Operation::BatchForget(forgets), .. }) => {
                prop_assert!(forgets.count() <= body.len() / 16);
            }
            _ => {}
        }
        bytes.truncate(cut);
        let _ = Request::parse(&bytes);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = Request::parse(&bytes);
    }
}
