//! What is known of a container, and its file on the state disk.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use vdkr_core::{
    channel::message::{ContainerState, RegistrySettings, RunRequest},
    container::{name, signal},
    digest::Digest,
    manifest::ImageConfig,
};

/// Name of the file in a container's directory.
const FILE: &str = "container.json";
const FILE_NEW: &str = "container.json.new";
/// Longest file that is read, in bytes.
const MAX_FILE: u64 = 16 << 20;
/// The form of the file.
const FORMAT: u32 = 1;
/// Seconds that a container has to stop.
const STOP_SECONDS: i64 = 10;
/// The status of a container whose machine went away under it, as docker has it.
pub const STATUS_LOST: i32 = 255;

/// A container on the disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// 64 hex digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// Digest of the image's configuration.
    pub image: Digest,
    /// The image's configuration, which stays known when the image is removed.
    pub config: ImageConfig,
    /// What was asked for, without registries and their credentials.
    pub request: RunRequest,
    /// How it does.
    pub status: Status,
}

/// How a container does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// What it is doing.
    pub state: ContainerState,
    /// Status of its last end.
    pub exit_code: i32,
    /// The kernel killed a process of it for want of memory before that end.
    pub oom_killed: bool,
    /// Why it did not start the last time.
    pub error: String,
    /// When its process started last.
    pub started_ms: Option<u64>,
    /// When its process ended last.
    pub finished_ms: Option<u64>,
    /// How often it was started again by its policy.
    pub restarts: u32,
    /// The user stopped it, so that its policy is not asked.
    pub stopped_by_user: bool,
}

impl Record {
    /// A container that has not run.
    pub fn new(
        id: String,
        name: String,
        image: Digest,
        mut config: ImageConfig,
        request: &RunRequest,
    ) -> Self {
        config.history.clear();
        Self {
            format: FORMAT,
            id,
            name,
            created_ms: now_ms(),
            image,
            config,
            request: RunRequest {
                settings: RegistrySettings::default(),
                ..request.clone()
            },
            status: Status::default(),
        }
    }

    /// Reads a container of an earlier run of the machine; whatever it was doing then is over.
    pub fn load(dir: &Path) -> io::Result<Self> {
        let file = File::open(dir.join(FILE))?;
        let modified = file.metadata()?.modified().ok();
        let mut text = Vec::new();
        file.take(MAX_FILE).read_to_end(&mut text)?;
        let mut record: Self = serde_json::from_slice(&text)?;
        let id = dir.file_name().and_then(|name| name.to_str());
        if record.format != FORMAT
            || id != Some(&record.id)
            || record.id.len() != name::ID_LENGTH
            || name::check(&record.name).is_err()
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "its file is of another container or another version",
            ));
        }
        if !matches!(
            record.status.state,
            ContainerState::Created | ContainerState::Exited
        ) {
            record.status.state = ContainerState::Exited;
            record.status.exit_code = STATUS_LOST;
            record.status.finished_ms = modified.map(milliseconds);
        }
        Ok(record)
    }

    /// Replaces the file. What was there before stays until the new one is whole.
    pub fn save(&self, dir: &Path, durable: bool) -> io::Result<()> {
        let new = dir.join(FILE_NEW);
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        if durable {
            file.sync_data()?;
        }
        fs::rename(new, dir.join(FILE))
    }

    /// Makes the file that was written last outlive the machine. Blocks while the disk writes.
    pub fn sync(dir: &Path) -> io::Result<()> {
        File::open(dir.join(FILE))?.sync_all()?;
        File::open(dir)?.sync_all()
    }

    /// Forgets a container, so that its directory is swept at the next start at the latest.
    pub fn forget(dir: &Path) -> io::Result<()> {
        match fs::remove_file(dir.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether it goes away at its end. Such a container is never on the disk.
    pub fn passing(&self) -> bool {
        self.request.rm
    }

    /// Whether it starts with a machine that stays.
    pub fn resumes(&self) -> bool {
        let status = &self.status;
        // What never ran was only created.
        status.started_ms.is_some() && self.request.life.restart.at_start(status.stopped_by_user)
    }

    /// What it is stopped with.
    pub fn stop_signal(&self) -> u8 {
        let image = self.config.config.stop_signal.as_deref();
        self.request
            .life
            .stop_signal
            .or_else(|| image.and_then(|text| signal::parse(text).ok()))
            .unwrap_or(signal::TERM)
    }

    /// Seconds that it has to stop.
    pub fn stop_timeout(&self) -> i64 {
        self.request.life.stop_timeout.unwrap_or(STOP_SECONDS)
    }
}

/// Now, in milliseconds since 1970.
pub fn now_ms() -> u64 {
    milliseconds(SystemTime::now())
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn record(id: char, name: &str) -> Record {
        let request = RunRequest {
            image: "img".into(),
            settings: RegistrySettings {
                registry: Some("secret.example".into()),
                ..RegistrySettings::default()
            },
            ..RunRequest::default()
        };
        let id = id.to_string().repeat(64);
        let digest = Digest::of(vdkr_core::digest::Algorithm::Sha256, b"x");
        Record::new(id, name.into(), digest, ImageConfig::default(), &request)
    }

    #[test]
    fn a_record_comes_back_without_registries() {
        let state = tempfile::tempdir().unwrap();
        let record = record('a', "web");
        let dir = state.path().join(&record.id);
        fs::create_dir(&dir).unwrap();
        record.save(&dir, true).unwrap();
        assert_eq!(Record::load(&dir).unwrap(), record);
        assert!(
            !fs::read_to_string(dir.join(FILE))
                .unwrap()
                .contains("secret.example")
        );
        Record::forget(&dir).unwrap();
        Record::forget(&dir).unwrap();
        assert!(Record::load(&dir).is_err());
    }

    #[test]
    fn what_ran_when_the_machine_went_has_ended() {
        let state = tempfile::tempdir().unwrap();
        for live in [
            ContainerState::Running,
            ContainerState::Paused,
            ContainerState::Restarting,
        ] {
            let mut record = record('a', "web");
            let dir = state.path().join(&record.id);
            fs::create_dir_all(&dir).unwrap();
            record.status.state = live;
            record.save(&dir, false).unwrap();
            let loaded = Record::load(&dir).unwrap().status;
            assert_eq!(
                (loaded.state, loaded.exit_code),
                (ContainerState::Exited, STATUS_LOST)
            );
            assert!(loaded.finished_ms.is_some());
        }
    }

    #[test]
    fn half_a_record_or_another_ones_is_none() {
        let state = tempfile::tempdir().unwrap();
        let record = record('a', "web");
        let dir = state.path().join(&record.id);
        fs::create_dir(&dir).unwrap();
        record.save(&dir, false).unwrap();
        let whole = fs::read(dir.join(FILE)).unwrap();
        for length in 0..whole.len() {
            fs::write(dir.join(FILE), &whole[..length]).unwrap();
            assert!(Record::load(&dir).is_err(), "{length}");
        }
        let other = state.path().join("b".repeat(64));
        fs::create_dir(&other).unwrap();
        fs::write(other.join(FILE), &whole).unwrap();
        assert!(Record::load(&other).is_err());
    }

    #[test]
    fn how_it_is_stopped() {
        let mut record = record('a', "web");
        assert_eq!((record.stop_signal(), record.stop_timeout()), (15, 10));
        record.config.config.stop_signal = Some("SIGQUIT".into());
        assert_eq!(record.stop_signal(), 3);
        record.request.life.stop_signal = Some(2);
        record.request.life.stop_timeout = Some(-1);
        assert_eq!((record.stop_signal(), record.stop_timeout()), (2, -1));
    }
}
