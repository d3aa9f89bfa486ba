use alloc::{format, string::ToString, vec};

use super::*;
use crate::channel::{Assembler, Decoder};
use crate::credentials::Credential;

fn round_trip<M: Message + PartialEq + core::fmt::Debug>(message: &M) {
    let mut wire = Vec::new();
    message.encode(&mut wire, 3).unwrap();
    let (mut decoder, mut assembler) = (Decoder::new(), Assembler::new());
    decoder.push(&wire);
    let mut whole = None;
    while let Some(frame) = decoder.next().unwrap() {
        whole = assembler.push(frame).unwrap();
    }
    let frame = whole.unwrap();
    assert_eq!((frame.kind, frame.stream), (M::KIND, 3));
    assert_eq!(M::decode(&frame.payload).unwrap(), *message);
}

fn settings() -> RegistrySettings {
    RegistrySettings {
        registry: Some("10.0.2.2:5000/yocto".into()),
        insecure: vec!["10.0.2.2:5000".into()],
        secure: true,
        mirrors: vec![Mirror {
            host: "docker.io".into(),
            endpoints: vec!["http://10.0.2.2:5001".into()],
        }],
        ca_pem: Some("-----BEGIN".into()),
        public_roots: Some("-----BEGIN".into()),
        credentials: vec![HostCredential::new(
            "10.0.2.2:5000",
            Credential::Basic {
                username: "yocto".into(),
                password: Secret::new("hunter2"),
            },
        )],
        gateway: "10.0.2.2".into(),
        timeout: Some(60),
        defaults: true,
    }
}

#[test]
fn every_message_comes_back() {
    round_trip(&HostHello::new(
        "vdkr 0.1.0",
        1_700_000_000_000,
        &[0xab; 32],
    ));
    round_trip(&GuestHello {
        boot_ms: 7,
        ..GuestHello::default()
    });
    let pull = PullRequest {
        reference: "a".into(),
        settings: settings(),
        platform: None,
    };
    let run = RunRequest {
        image: "a".into(),
        args: vec![
            "sh".into(),
            "-c".into(),
            "printf '%s\\n' \"a b\"\n\u{0}".into(),
        ],
        entrypoint: Some(Vec::new()),
        stdin: true,
        mounts: vec![MountSpec {
            target: "/data".into(),
            source: MountSource::Volume {
                name: Some("data".into()),
                no_copy: false,
            },
            read_only: true,
        }],
        pull: PullPolicy::Never,
        settings: settings(),
        ..RunRequest::default()
    };
    let long = RunRequest {
        args: vec!["x".repeat(300_000)],
        ..run.clone()
    };
    for request in [
        Request::Pull(pull),
        Request::Run(run),
        Request::Run(long),
        Request::Images,
        Request::Inspect {
            names: vec!["a".into()],
        },
        Request::Remove {
            names: vec!["a".into()],
            force: true,
        },
        Request::Tag {
            source: "a".into(),
            target: "b".into(),
        },
        Request::Info,
        Request::Admit(AdmitRequest {
            reference: "h:1/a:b".into(),
            layers: vec![KeptLayer::default()],
            ..AdmitRequest::default()
        }),
        Request::Layers {
            image: Some("a".into()),
            of_container: true,
            settings: RegistrySettings::default(),
        },
        Request::Mount {
            layers: vec![LayerDisk::default()],
        },
        Request::Shutdown,
        Request::AttachDisk(DiskRequest {
            path: "/a b/c".into(),
            serial: "s".into(),
            read_only: true,
        }),
        Request::DetachDisk { serial: "s".into() },
        Request::Machine,
        Request::Container(ContainerRequest::List),
        Request::Container(ContainerRequest::Stop {
            name: "a".into(),
            timeout: Some(-1),
            signal: None,
        }),
        Request::Container(ContainerRequest::Exec(ExecRequest {
            name: "a".into(),
            args: vec!["sh".into()],
            ..ExecRequest::default()
        })),
        Request::MountShare {
            share: "00ff".into(),
            directory: true,
            read_only: true,
        },
        Request::Release {
            share: "00ff".into(),
        },
        Request::KeepShare {
            share: "00ff".into(),
        },
        Request::Share {
            path: "/a".into(),
            read_only: false,
            name: Some("00ff00ff".into()),
        },
        Request::Shutdown,
        Request::Volume {
            action: VolumeAction::Prune { all: true },
        },
    ] {
        round_trip(&request);
    }
    for reply in [
        Reply::Pulled(Pulled {
            size: u64::MAX,
            ..Pulled::default()
        }),
        Reply::Ran { status: -1 },
        Reply::Images {
            images: vec![ImageRow::default()],
        },
        Reply::Inspected {
            documents: vec![serde_json::json!({"Id": "x"})],
        },
        Reply::Removed {
            removed: vec![Removed::Untagged("a".into()), Removed::Deleted("b".into())],
        },
        Reply::Tagged,
        Reply::Attached,
        Reply::Detached,
        Reply::Machine(MachineState {
            idle_left_ms: Some(7),
            ..MachineState::default()
        }),
        Reply::Layers(NeededLayers {
            missing: vec!["a".into()],
            ..NeededLayers::default()
        }),
        Reply::Mounted,
        Reply::Info(Info::default()),
        Reply::Container(ContainerReply::Done),
        Reply::Container(ContainerReply::List {
            containers: vec![ContainerRow {
                state: ContainerState::Exited,
                finished_ms: Some(7),
                ..ContainerRow::default()
            }],
        }),
        Reply::Container(ContainerReply::Stats {
            samples: vec![Sample::default()],
        }),
        Reply::Released,
        Reply::Shared {
            share: "00ff".into(),
        },
        Reply::Unmounted,
        Reply::Volumes {
            volumes: vec![VolumeRow::default()],
        },
        Reply::VolumesRemoved {
            names: vec!["v1".into()],
            freed: 7,
        },
        Reply::Bye,
        Reply::Settled,
    ] {
        round_trip::<Done>(&Ok(reply));
    }
    round_trip::<Done>(&Err(
        Failure::new(FailureCode::Denied, "no").with_hint("log in")
    ));
    for event in [
        Event::Trying {
            reference: "a".into(),
        },
        Event::Progress {
            layer: "x".into(),
            phase: Phase::Unpack,
            done: 1,
            total: None,
        },
        Event::Log {
            level: LogLevel::Warn,
            message: "m".into(),
        },
        Event::Mounted,
        Event::Started {
            pid: 12,
            container: "c".into(),
        },
    ] {
        round_trip(&event);
    }
}

#[test]
fn the_wire_form_is_stable() {
    let json = serde_json::to_string(&Request::Info).unwrap();
    assert_eq!(json, r#"{"op":"info"}"#);
    let done: Done = Ok(Reply::Ran { status: 7 });
    assert_eq!(
        serde_json::to_string(&done).unwrap(),
        r#"{"Ok":{"reply":"ran","status":7}}"#
    );
    let done: Done = Err(Failure::new(FailureCode::NotFound, "m"));
    assert_eq!(
        serde_json::to_string(&done).unwrap(),
        r#"{"Err":{"code":"not_found","message":"m"}}"#
    );
}

#[test]
fn words_of_later_versions_are_understood() {
    let request = Request::decode(br#"{"op":"freeze","disk":1}"#).unwrap();
    assert_eq!(request, Request::Unknown);
    let request = Request::decode(br#"{"op":"container","verb":"melt","name":"x"}"#).unwrap();
    assert_eq!(request, Request::Container(ContainerRequest::Unknown));
    let request = Request::decode(br#"{"op":"info","later":[1,{"x":2}]}"#).unwrap();
    assert_eq!(request, Request::Info);
    let pull = Request::decode(br#"{"op":"pull","reference":"a","later":1}"#).unwrap();
    let expected = PullRequest {
        reference: "a".into(),
        ..PullRequest::default()
    };
    assert_eq!(pull, Request::Pull(expected));
    let done = Done::decode(br#"{"Err":{"code":"overheated","message":"m"}}"#).unwrap();
    assert_eq!(done, Err(Failure::new(FailureCode::Failed, "m")));
    assert_eq!(
        Done::decode(br#"{"Ok":{"reply":"x","y":1}}"#).unwrap(),
        Ok(Reply::Unknown)
    );
    assert_eq!(
        Event::decode(br#"{"event":"x","y":1}"#).unwrap(),
        Event::Unknown
    );
    let spec: MountSpec = serde_json::from_str(r#"{"target":"/a","source":{"type":"x"}}"#).unwrap();
    assert_eq!(spec.source, MountSource::Unknown);
    let volume = Request::decode(br#"{"op":"volume","action":{"do":"resize","by":1}}"#);
    let action = VolumeAction::Unknown;
    assert_eq!(volume.unwrap(), Request::Volume { action });
    let event = br#"{"event":"progress","layer":"l","phase":"melt","done":1}"#;
    let Event::Progress { phase, .. } = Event::decode(event).unwrap() else {
        panic!()
    };
    assert_eq!(phase, Phase::Unknown);
}

#[test]
fn versions_meet_or_part() {
    assert_eq!(negotiate(1, 1), Ok(1));
    assert_eq!(negotiate(0, 9), Ok(1));
    for (min_version, version) in [(2, 3), (0, 0)] {
        assert_eq!(
            negotiate(min_version, version),
            Err(MessageError::Version {
                min_version,
                version
            })
        );
    }
}

#[test]
fn errors_do_not_repeat_the_message() {
    let json = br#"{"op":"pull","reference":"a","settings":{"credentials":"hunter2"}}"#;
    let error = Request::decode(json).unwrap_err();
    assert!(!error.to_string().contains("hunter2"), "{error}");
    assert!(!format!("{error:?}").contains("hunter2"));
    let shown = format!(
        "{:?}",
        Request::Pull(PullRequest {
            settings: settings(),
            ..PullRequest::default()
        })
    );
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn entropy_is_thirty_two_bytes_or_nothing() {
    let mut hello = HostHello::new("x", 0, &[0x5f; 32]);
    assert_eq!(hello.entropy(), Some([0x5f; 32]));
    for bad in [
        "",
        "5f",
        &"5".repeat(63),
        &"5".repeat(66),
        &"g".repeat(64),
        &"é".repeat(32),
    ] {
        hello.entropy_hex = Secret::new(bad);
        assert_eq!(hello.entropy(), None, "{bad}");
    }
}

#[test]
fn deep_nesting_is_an_error() {
    let mut json = br#"{"op":"info","x":"#.to_vec();
    json.extend(vec![b'['; 100_000]);
    assert!(Request::decode(&json).is_err());
}

#[test]
fn credentials_keep_their_kind() {
    for credential in [
        Credential::Anonymous,
        Credential::Basic {
            username: "u".into(),
            password: Secret::new("p"),
        },
        Credential::Bearer(Secret::new("t")),
        Credential::IdentityToken(Secret::new("i")),
    ] {
        assert_eq!(
            HostCredential::new("h", credential.clone()).credential(),
            credential
        );
    }
}

proptest::proptest! {
    #[test]
    fn decoding_never_panics(payload in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Request::decode(&payload);
        let _ = Done::decode(&payload);
        let _ = Event::decode(&payload);
    }
}
