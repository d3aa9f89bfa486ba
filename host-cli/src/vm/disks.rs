//! Disks that come and go while a machine runs: a SCSI disk on a controller that every machine of
//! our own images has, so that one snapshot serves machines with any disks.

use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;
use vdkr_core::channel::message::{DiskRequest, Failure, FailureCode};

use super::{
    process::Qemu,
    qemu::{DISK_CONTROLLER, ON_ERROR, block_node},
    qmp::{Qmp, QmpError},
};

/// Longest serial number that a SCSI disk shows.
const MAX_SERIAL: usize = 36;
/// Disks that one controller has numbers for.
const MAX_DISKS: usize = 250;
/// How long it may take to say what went wrong.
const ERRORS: Duration = Duration::from_secs(2);
/// How long the emulator may take for one command.
const PATIENCE: Duration = Duration::from_secs(20);

/// A disk cannot be attached or taken away.
#[derive(Debug, thiserror::Error)]
pub enum DisksError {
    /// The serial number is no plain word.
    #[error("{0:?} is no serial number for a disk: use up to 36 letters, digits, '-' and '_'")]
    Serial(String),
    /// Another file has the serial number.
    #[error("the machine has a disk {serial} already, which is {path}")]
    Taken {
        /// The serial number.
        serial: String,
        /// The file behind it.
        path: String,
    },
    /// The controller is full.
    #[error("the machine has {MAX_DISKS} disks and cannot take more; restart it")]
    Full,
    /// The machine was booted without a controller for them.
    #[error(
        "this machine takes no disks while it runs: its kernel was given with --kernel or \
         --initrd, or its image is older than this program"
    )]
    NotHot,
    /// The emulator cannot do it.
    #[error("cannot {what} disk {serial}: {source}")]
    Qmp {
        /// What was tried.
        what: &'static str,
        /// The serial number.
        serial: String,
        /// Its words.
        source: QmpError,
    },
    /// The emulator does not answer.
    #[error("cannot {what} disk {serial}: the emulator does not answer")]
    Silent {
        /// What was tried.
        what: &'static str,
        /// The serial number.
        serial: String,
    },
}

impl From<DisksError> for Failure {
    fn from(error: DisksError) -> Self {
        let code = match error {
            DisksError::Serial(_) => FailureCode::Usage,
            DisksError::NotHot => FailureCode::Unsupported,
            _ => FailureCode::Failed,
        };
        Self::new(code, error.to_string())
    }
}

/// A machine as its emulator sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What went wrong with its disks since this was asked last, in words.
    pub disk_errors: Vec<String>,
    /// Why its processor stands still, if it does.
    pub stopped: Option<String>,
}

/// The disks that a machine was given.
#[derive(Debug, Default)]
pub struct HotDisks {
    disks: Vec<Attached>,
    last: u32,
}

#[derive(Debug)]
struct Attached {
    disk: DiskRequest,
    /// Name of its node and its device.
    name: String,
    /// Its device is gone; what is left is the node.
    unplugged: bool,
}

impl Qemu {
    /// Attaches a disk. The guest sees it a moment later, under its serial number
    /// (`vdkr_agent::boot::disks::wait_for`). To attach the same file once more changes nothing.
    pub async fn attach(&mut self, disk: &DiskRequest) -> Result<(), DisksError> {
        let (control, disks) = self.disks();
        let disks = disks.ok_or(DisksError::NotHot)?;
        patiently("attach", &disk.serial, disks.attach(control, disk)).await
    }

    /// Takes a disk away, which the guest must have let go of. One that is not there is gone.
    pub async fn detach(&mut self, serial: &str) -> Result<(), DisksError> {
        let (control, disks) = self.disks();
        let disks = disks.ok_or(DisksError::NotHot)?;
        patiently("detach", serial, disks.detach(control, serial)).await
    }

    /// What went wrong on this computer with the machine's disks since this was asked last, in
    /// words; the guest has only seen that something did.
    pub async fn disk_errors(&mut self) -> Vec<String> {
        self.health().await.disk_errors
    }

    /// How the machine is, as the emulator sees it.
    pub async fn health(&mut self) -> Health {
        let state_disk = self.state_disk().map(str::to_owned);
        let (control, disks) = self.disks();
        health(control, disks.as_deref(), state_disk.as_deref()).await
    }

    /// Serial numbers of the disks that are attached.
    pub fn attached(&mut self) -> Vec<String> {
        let (_, disks) = self.disks();
        disks.map_or_else(Vec::new, |disks| {
            let serials = disks.disks.iter().map(|known| known.disk.serial.clone());
            serials.collect()
        })
    }
}

async fn health(control: &mut Qmp, disks: Option<&HotDisks>, state_disk: Option<&str>) -> Health {
    // Events come before the answer to whatever is asked. One that ends says what it can.
    let stopped = match timeout(ERRORS, control.execute("query-status")).await {
        Ok(Ok(status)) if status["running"] == false => {
            Some(status["status"].as_str().unwrap_or("stopped").to_owned())
        }
        _ => None,
    };
    Health {
        disk_errors: disk_errors(control, disks, state_disk),
        stopped,
    }
}

fn disk_errors(
    control: &mut Qmp,
    disks: Option<&HotDisks>,
    state_disk: Option<&str>,
) -> Vec<String> {
    let mut told: Vec<String> = Vec::new();
    for event in control.take_events("BLOCK_IO_ERROR") {
        let text = |key: &str| event[key].as_str().unwrap_or_default();
        let known = disks.and_then(|disks| {
            let mut disks = disks.disks.iter();
            disks.find(|known| text("node-name") == known.name)
        });
        let file = known.map(|known| &*known.disk.path);
        let file = file.or(state_disk).unwrap_or("the machine's disk");
        let verb = match text("operation") {
            "read" => "read",
            _ => "write to",
        };
        let words = format!("cannot {verb} {file}: {}", text("reason"));
        if !told.contains(&words) {
            told.push(words);
        }
    }
    told
}

async fn patiently(
    what: &'static str,
    serial: &str,
    work: impl Future<Output = Result<(), DisksError>>,
) -> Result<(), DisksError> {
    timeout(PATIENCE, work).await.unwrap_or_else(|_| {
        Err(DisksError::Silent {
            what,
            serial: serial.to_owned(),
        })
    })
}

impl HotDisks {
    async fn attach(&mut self, control: &mut Qmp, disk: &DiskRequest) -> Result<(), DisksError> {
        let serial = &disk.serial;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if serial.is_empty() || serial.len() > MAX_SERIAL || !serial.chars().all(legal) {
            return Err(DisksError::Serial(serial.clone()));
        }
        if let Some(known) = self.disks.iter().find(|known| known.disk.serial == *serial) {
            return if known.disk == *disk {
                Ok(())
            } else {
                Err(DisksError::Taken {
                    serial: serial.clone(),
                    path: known.disk.path.clone(),
                })
            };
        }
        if self.disks.len() == MAX_DISKS {
            return Err(DisksError::Full);
        }
        let failed = |source| DisksError::Qmp {
            what: "attach",
            serial: serial.clone(),
            source,
        };
        self.last += 1;
        let name = format!("hot-{}", self.last);
        let node = block_node(&name, &disk.path, disk.read_only);
        control
            .execute_with("blockdev-add", node)
            .await
            .map_err(failed)?;
        let device = json!({
            "driver": "scsi-hd",
            "id": name,
            "bus": format!("{DISK_CONTROLLER}.0"),
            "drive": name,
            "serial": serial,
            "rotation_rate": 1,
            "werror": ON_ERROR,
            "rerror": ON_ERROR,
        });
        if let Err(error) = control.execute_with("device_add", device).await {
            let _ = control
                .execute_with("blockdev-del", json!({ "node-name": name }))
                .await;
            return Err(failed(error));
        }
        let disk = disk.clone();
        self.disks.push(Attached {
            disk,
            name,
            unplugged: false,
        });
        Ok(())
    }

    async fn detach(&mut self, control: &mut Qmp, serial: &str) -> Result<(), DisksError> {
        let known = |known: &Attached| known.disk.serial == serial;
        let Some(at) = self.disks.iter().position(known) else {
            return Ok(());
        };
        let Some(Attached {
            name, unplugged, ..
        }) = self.disks.get_mut(at)
        else {
            return Ok(());
        };
        let failed = |source| DisksError::Qmp {
            what: "detach",
            serial: serial.to_owned(),
            source,
        };
        if !*unplugged {
            let device = json!({ "id": name });
            match control.execute_with("device_del", device).await {
                Ok(_) => control
                    .event("DEVICE_DELETED", |data| data["device"] == **name)
                    .await
                    .map_err(failed)?,
                // An earlier attempt was given up before the answer.
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(failed(error)),
            }
            *unplugged = true;
        }
        let node = json!({ "node-name": name });
        match control.execute_with("blockdev-del", node).await {
            Err(error) if !is_gone(&error) => return Err(failed(error)),
            _ => {}
        }
        self.disks.remove(at);
        Ok(())
    }
}

/// Whether the emulator has no device or node of that name.
fn is_gone(error: &QmpError) -> bool {
    let gone = |reason: &str| {
        reason.ends_with("not found") || reason.starts_with("Failed to find node with node-name")
    };
    matches!(error, QmpError::Refused { reason, .. } if gone(reason))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::UnixStream,
    };

    use super::*;

    /// An emulator that refuses devices whose serial number is `bad`, and what it was asked.
    async fn emulator(socket: UnixStream) -> Vec<String> {
        let (reader, mut writer) = socket.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut asked = Vec::new();
        writer.write_all(b"{\"QMP\":{}}\n").await.unwrap();
        while let Some(line) = lines.next_line().await.unwrap() {
            let message: Value = serde_json::from_str(&line).unwrap();
            let command = message["execute"].as_str().unwrap().to_owned();
            let arguments = &message["arguments"];
            let answer = match &*command {
                "device_add" if arguments["serial"] == "bad" => {
                    json!({ "error": { "desc": "no" } }).to_string()
                }
                "device_del" => {
                    let data = json!({ "device": arguments["id"] });
                    let event = json!({ "event": "DEVICE_DELETED", "data": data });
                    format!("{}\n{event}", json!({ "return": {} }))
                }
                _ => json!({ "return": {} }).to_string(),
            };
            writer
                .write_all(format!("{answer}\n").as_bytes())
                .await
                .unwrap();
            asked.push(command);
        }
        asked
    }

    fn disk(serial: &str, path: &str) -> DiskRequest {
        DiskRequest {
            path: path.to_owned(),
            serial: serial.to_owned(),
            read_only: true,
        }
    }

    #[tokio::test]
    async fn disks_come_and_go_by_their_serial_numbers() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let emulator = tokio::spawn(emulator(theirs));
        let (mut control, mut disks) = (Qmp::new(ours), HotDisks::default());
        disks.attach(&mut control, &disk("a", "/a")).await.unwrap();
        // Once more the same, and the same number for another file.
        disks.attach(&mut control, &disk("a", "/a")).await.unwrap();
        let taken = disks.attach(&mut control, &disk("a", "/b")).await;
        assert!(taken.unwrap_err().to_string().contains("which is /a"));
        disks
            .attach(&mut control, &disk("bad", "/c"))
            .await
            .unwrap_err();
        for serial in ["", "a b", "a,b", "é", &"x".repeat(37)] {
            let error = disks.attach(&mut control, &disk(serial, "/d")).await;
            assert!(matches!(error, Err(DisksError::Serial(_))), "{serial}");
        }
        disks.detach(&mut control, "a").await.unwrap();
        disks.detach(&mut control, "a").await.unwrap();
        assert!(disks.disks.is_empty());
        drop(control);
        assert_eq!(
            emulator.await.unwrap(),
            [
                "qmp_capabilities",
                "blockdev-add",
                "device_add",
                "blockdev-add",
                "device_add",
                "blockdev-del",
                "device_del",
                "blockdev-del"
            ]
        );
    }

    #[tokio::test]
    async fn what_goes_wrong_with_a_disk_is_told_once() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut control = Qmp::new(ours);
        let disks = HotDisks {
            disks: vec![Attached {
                disk: disk("a", "/full/state.img"),
                name: "hot-1".to_owned(),
                unplugged: false,
            }],
            last: 1,
        };
        let emulator = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut lines = BufReader::new(reader).lines();
            let event = |node: &str, operation: &str| {
                let data = json!({
                    "device": "", "node-name": node, "operation": operation, "action": "report",
                    "nospace": true, "reason": "No space left on device",
                });
                format!("{}\n", json!({ "event": "BLOCK_IO_ERROR", "data": data }))
            };
            let done = "{\"return\":{}}\n";
            let answers = [
                done.to_owned(),
                event("hot-1", "write").repeat(3) + &event("state", "read") + done,
                event("state", "write")
                    + "{\"return\":{\"running\":false,\"status\":\"io-error\"}}\n",
                done.to_owned(),
            ];
            writer.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            for answer in answers {
                lines.next_line().await.unwrap();
                writer.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let first = health(&mut control, Some(&disks), None).await;
        assert_eq!(
            first.disk_errors,
            [
                "cannot write to /full/state.img: No space left on device",
                "cannot read the machine's disk: No space left on device",
            ]
        );
        assert_eq!(first.stopped, None);
        let second = health(&mut control, None, Some("/boot/state.img")).await;
        assert_eq!(
            second.disk_errors,
            ["cannot write to /boot/state.img: No space left on device"]
        );
        assert_eq!(second.stopped.as_deref(), Some("io-error"));
        let quiet = Health::default();
        assert_eq!(health(&mut control, Some(&disks), None).await, quiet);
        emulator.await.unwrap();
        // An emulator that has gone says nothing.
        assert_eq!(health(&mut control, Some(&disks), None).await, quiet);
    }

    #[tokio::test]
    async fn a_detach_that_was_given_up_goes_on_where_it_was() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (reader, mut writer) = theirs.into_split();
        let mut lines = BufReader::new(reader).lines();
        let mut control = Qmp::new(ours);
        let mut disks = HotDisks::default();
        for (serial, name) in [("a", "hot-1"), ("b", "hot-2")] {
            disks.disks.push(Attached {
                disk: disk(serial, "/a"),
                name: name.to_owned(),
                unplugged: false,
            });
        }
        let emulator = tokio::spawn(async move {
            let mut say = async |line: Value| {
                writer
                    .write_all(format!("{line}\n").as_bytes())
                    .await
                    .unwrap();
            };
            let done = json!({ "return": {} });
            let refused = |text: &str| json!({ "error": { "desc": text } });
            let deleted =
                |name: &str| json!({ "event": "DEVICE_DELETED", "data": { "device": name } });
            say(json!({ "QMP": {} })).await;
            let mut asked = Vec::new();
            while let Some(line) = lines.next_line().await.unwrap() {
                let message: Value = serde_json::from_str(&line).unwrap();
                asked.push(message["execute"].as_str().unwrap().to_owned());
                // The first disk: its device goes while nobody waits, its node before it is asked
                // for. The second: its node is in use at first.
                match asked.len() {
                    2 => say(done.clone()).await,
                    3 => {
                        say(deleted("hot-1")).await;
                        say(refused("Device 'hot-1' not found")).await;
                    }
                    4 => say(refused("Failed to find node with node-name='hot-1'")).await,
                    5 => {
                        say(done.clone()).await;
                        say(deleted("hot-2")).await;
                    }
                    6 => say(refused("Node hot-2 is in use")).await,
                    _ => say(done.clone()).await,
                }
            }
            asked
        });
        let abandoned = disks.detach(&mut control, "a");
        let patience = Duration::from_millis(200);
        assert!(timeout(patience, abandoned).await.is_err());
        disks.detach(&mut control, "a").await.unwrap();
        let error = disks.detach(&mut control, "b").await.unwrap_err();
        assert!(error.to_string().contains("in use"), "{error}");
        disks.detach(&mut control, "b").await.unwrap();
        assert!(disks.disks.is_empty());
        drop(control);
        assert_eq!(
            emulator.await.unwrap(),
            [
                "qmp_capabilities",
                "device_del",
                "device_del",
                "blockdev-del",
                "device_del",
                "blockdev-del",
                "blockdev-del"
            ]
        );
    }
}
