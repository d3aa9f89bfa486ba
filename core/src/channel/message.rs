//! JSON messages of the channel.
//!
//! Fields that a later version adds carry a default and fields that are not known are ignored, so
//! that host and agent of different versions understand each other; a request that an agent does
//! not know reads as [`Request::Unknown`] and is answered by [`FailureCode::Unsupported`].

use alloc::{collections::BTreeMap, string::String, vec::Vec};

use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};

use super::frame::{FrameError, Kind, MAX_MESSAGE, encode_message};
use crate::credentials::Secret;

mod bounds;
mod container;
mod layers;
mod ports;
mod reply;
mod request;
mod sandbox;
mod volume;

pub use bounds::MAX_VALUES;
pub use container::{
    ContainerReply, ContainerRequest, ContainerRow, ContainerState, ExecRequest, Life, LogsRequest,
    PathFacts, PathKind, RowMount, Sample, Until,
};
pub use layers::{AdmitRequest, KeptLayer, LayerDisk, NeededLayers};
pub use ports::{Publication, PublishRequest};
pub use reply::{
    Done, Event, ExportedImage, ExportedLayer, Failure, FailureCode, ImageRow, Info, LogLevel,
    MachineState, Phase, Pulled, Removed, Reply, Usage,
};
pub use request::{
    AddImage, DiskRequest, HostCredential, Mirror, PruneRequest, PullPolicy, PullRequest,
    RegistryDefaults, RegistrySettings, Request, RunRequest,
};
pub use sandbox::{HostEntry, Network, Sandbox, Seccomp};
pub use volume::{MountSource, MountSpec, VolumeAction, VolumeRow};

/// The version of the protocol that this crate speaks.
pub const PROTOCOL_VERSION: u32 = 1;
/// The oldest version that it still understands.
pub const MIN_PROTOCOL_VERSION: u32 = 1;

/// A message could not be written or read.
///
/// The text never repeats the message, which may hold credentials.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is too long, or its frames are wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// It is no JSON, or not of the expected form.
    #[error("{problem} at line {line} column {column} of a channel message")]
    Json {
        /// What is wrong.
        problem: &'static str,
        /// Line, from 1; 0 when the position is not known.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
    },
    /// It has more than [`MAX_VALUES`] values.
    #[error("a channel message has more than {MAX_VALUES} values")]
    TooManyValues,
    /// The versions of both sides have nothing in common.
    #[error(
        "the other side speaks channel versions {min_version} to {version}, this one \
         {MIN_PROTOCOL_VERSION} to {PROTOCOL_VERSION}; use programs of the same release"
    )]
    Version {
        /// Oldest version of the other side.
        min_version: u32,
        /// Newest version of the other side.
        version: u32,
    },
}

impl From<serde_json::Error> for MessageError {
    fn from(error: serde_json::Error) -> Self {
        let problem = match error.classify() {
            serde_json::error::Category::Syntax => "invalid JSON",
            serde_json::error::Category::Eof => "unexpected end",
            serde_json::error::Category::Data => "missing or mistyped field",
            serde_json::error::Category::Io => "unreadable text",
        };
        Self::Json {
            problem,
            line: error.line(),
            column: error.column(),
        }
    }
}

/// A type that travels as JSON in frames of one kind.
pub trait Message: Serialize + DeserializeOwned {
    /// The kind of frame that carries it.
    const KIND: Kind;

    /// Appends this message to `out` as the frames that carry it.
    fn encode(&self, out: &mut Vec<u8>, stream: u32) -> Result<(), MessageError> {
        let json = serde_json::to_vec(self)?;
        if !bounds::has_few_values(&json) {
            return Err(MessageError::TooManyValues);
        }
        Ok(encode_message(out, Self::KIND, stream, &json)?)
    }

    /// Reads the payload of a frame that an [`Assembler`](super::Assembler) let through.
    fn decode(payload: &[u8]) -> Result<Self, MessageError> {
        if payload.len() > MAX_MESSAGE {
            return Err(FrameError::TooLarge {
                length: payload.len(),
            }
            .into());
        }
        if !bounds::has_few_values(payload) {
            return Err(MessageError::TooManyValues);
        }
        Ok(serde_json::from_slice(payload)?)
    }
}

impl Message for HostHello {
    const KIND: Kind = Kind::Hello;
}
impl Message for GuestHello {
    const KIND: Kind = Kind::Hello;
}
impl Message for Request {
    const KIND: Kind = Kind::Open;
}
impl Message for Event {
    const KIND: Kind = Kind::Event;
}
impl Message for Done {
    const KIND: Kind = Kind::Done;
}

/// The version that both sides use: the newest common one.
pub fn negotiate(min_version: u32, version: u32) -> Result<u32, MessageError> {
    let common = version.min(PROTOCOL_VERSION);
    if common < min_version.max(MIN_PROTOCOL_VERSION) {
        return Err(MessageError::Version {
            min_version,
            version,
        });
    }
    Ok(common)
}

/// The host's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostHello {
    /// Newest protocol version of the host.
    pub version: u32,
    /// Oldest protocol version it understands.
    pub min_version: u32,
    /// Name and version of the program, for logs.
    #[serde(default)]
    pub software: String,
    /// The host's clock, in milliseconds since 1970.
    #[serde(default)]
    pub now_unix_ms: u64,
    /// 32 bytes of randomness for the guest's pool, as hex digits.
    #[serde(default, serialize_with = "exposed")]
    pub entropy_hex: Secret,
    /// Where a machine of the agent's own shall keep its state: `disk` when the host has attached
    /// one, `tmpfs` when there is none; empty when the agent shall look by itself.
    #[serde(default)]
    pub state: String,
}

impl HostHello {
    /// A greeting of this version.
    pub fn new(software: impl Into<String>, now_unix_ms: u64, entropy: &[u8; 32]) -> Self {
        Self {
            version: PROTOCOL_VERSION,
            min_version: MIN_PROTOCOL_VERSION,
            software: software.into(),
            now_unix_ms,
            entropy_hex: Secret::new(to_hex(entropy)),
            state: String::new(),
        }
    }

    /// The randomness, when there are exactly 32 bytes of it.
    pub fn entropy(&self) -> Option<[u8; 32]> {
        let digits = self.entropy_hex.expose().as_bytes();
        let (pairs, []) = digits.as_chunks::<2>() else {
            return None;
        };
        if pairs.len() != 32 {
            return None;
        }
        let mut bytes = [0; 32];
        for (byte, &[high, low]) in bytes.iter_mut().zip(pairs) {
            let digit = |digit: u8| (digit as char).to_digit(16);
            *byte = u8::try_from(digit(high)? << 4 | digit(low)?).ok()?;
        }
        Some(bytes)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect()
}

/// The agent's greeting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestHello {
    /// Newest protocol version of the agent.
    pub version: u32,
    /// Oldest protocol version it understands.
    pub min_version: u32,
    /// Name and version of the program.
    #[serde(default)]
    pub software: String,
    /// Architecture as in OCI platforms (`amd64`, `arm64`).
    #[serde(default)]
    pub arch: String,
    /// Milliseconds from the start of the kernel to this greeting.
    #[serde(default)]
    pub boot_ms: u64,
    /// Milliseconds from the start of the kernel to the end of each stage of the agent's start.
    #[serde(default)]
    pub stages: BTreeMap<String, u64>,
    /// Milliseconds from the start of the kernel to the first sign of this host: what came before
    /// may lie in a snapshot.
    #[serde(default)]
    pub met_ms: u64,
    /// Identity of an agent's own machine, in the form of `machine-id(5)`.
    #[serde(default)]
    pub machine_id: String,
    /// Where images are kept: `disk` or `tmpfs`.
    #[serde(default)]
    pub state: String,
    /// What runs containers: `native`.
    #[serde(default)]
    pub engine: String,
    /// The registry that the agent's machine is set up for, asked when a request names none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registry: Option<String>,
    /// The address of the machine's default route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

impl Default for GuestHello {
    fn default() -> Self {
        Self {
            version: PROTOCOL_VERSION,
            min_version: MIN_PROTOCOL_VERSION,
            software: String::new(),
            arch: String::new(),
            boot_ms: 0,
            stages: BTreeMap::new(),
            met_ms: 0,
            machine_id: String::new(),
            state: String::new(),
            engine: String::new(),
            registry: None,
            gateway: None,
        }
    }
}

// The channel is the one place where a secret is written out; the type itself cannot be serialised.
fn exposed<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose())
}

#[cfg(test)]
#[expect(
    clippy::large_stack_arrays,
    reason = "a list of requests, once in a test"
)]
mod tests {
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
        let spec: MountSpec =
            serde_json::from_str(r#"{"target":"/a","source":{"type":"x"}}"#).unwrap();
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
}
