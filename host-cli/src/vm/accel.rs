//! Chooses between the processor's own virtualisation and emulation, by proof.
//!
//! That `/dev/kvm` opens says little: inside another virtual machine a guest may get nowhere. So
//! the first start tries, under a deadline, and what came of it is remembered for as long as
//! nothing that could change it changes.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::{arch::Arch, qemu::Accel};

/// Verdicts that are kept, newest first.
const MAX_VERDICTS: usize = 16;
/// Longest file of verdicts that is read, in bytes.
const MAX_FILE: u64 = 256 * 1024;

/// What the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccelWish {
    /// The processor's where it is proved to work, else emulation.
    #[default]
    Auto,
    /// The processor's, or an error.
    Kvm,
    /// Emulation.
    Tcg,
}

impl AccelWish {
    /// The word in `--accel`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => Accel::Kvm.name(),
            Self::Tcg => Accel::Tcg.name(),
        }
    }
}

/// The word is no acceleration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown acceleration {0:?}; it is one of auto, kvm, tcg")]
pub struct UnknownAccel(String);

impl FromStr for AccelWish {
    type Err = UnknownAccel;

    fn from_str(word: &str) -> Result<Self, UnknownAccel> {
        match word {
            "auto" => Ok(Self::Auto),
            "kvm" => Ok(Self::Kvm),
            "tcg" => Ok(Self::Tcg),
            other => Err(UnknownAccel(other.to_owned())),
        }
    }
}

/// How to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// With emulation.
    Emulate,
    /// With the processor's help, known to work here; emulation if it fails all the same.
    Trust,
    /// With the processor's help under a short deadline, then emulation.
    Prove,
    /// With the processor's help under a short deadline, or not at all.
    Insist,
}

impl Plan {
    /// Whether a failure with the processor's help, where emulation then works, is worth
    /// remembering. Once the help was proved, one failure may have any reason.
    pub fn can_disprove(self) -> bool {
        self == Self::Prove
    }
}

/// KVM was asked for and cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// It runs guests of the host's architecture only.
    #[error("kvm cannot run {guest} guests on this host; use --accel tcg")]
    Foreign {
        /// The guest's architecture.
        guest: Arch,
    },
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm: {0}; is virtualisation on, and are you in the group kvm?")]
    Device(io::Error),
}

/// Decides how to start a guest.
///
/// `kvm` is what [`kvm_usable`] said, `verdict` what an earlier start proved.
pub fn plan(
    wish: AccelWish,
    kvm: Result<(), KvmError>,
    verdict: Option<Accel>,
) -> Result<Plan, KvmError> {
    match (wish, kvm) {
        (AccelWish::Tcg, _) | (AccelWish::Auto, Err(_)) => Ok(Plan::Emulate),
        (AccelWish::Kvm, Err(error)) => Err(error),
        (AccelWish::Kvm, Ok(())) if verdict == Some(Accel::Kvm) => Ok(Plan::Trust),
        (AccelWish::Kvm, Ok(())) => Ok(Plan::Insist),
        (AccelWish::Auto, Ok(())) => Ok(match verdict {
            None => Plan::Prove,
            Some(Accel::Kvm) => Plan::Trust,
            Some(Accel::Tcg) => Plan::Emulate,
        }),
    }
}

/// Whether KVM is worth a try: the architecture fits and the device opens.
pub fn kvm_usable(guest: Arch) -> Result<(), KvmError> {
    if Arch::host() != Some(guest) {
        return Err(KvmError::Foreign { guest });
    }
    File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .map_err(KvmError::Device)
}

/// Everything that a verdict depends on. Files are named with size and time of change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Circumstances {
    emulator: String,
    guest_kernel: String,
    board: String,
    host_kernel: String,
    processor: String,
}

impl Circumstances {
    /// The circumstances of a start on this host.
    pub fn here(emulator: &Path, guest_kernel: &Path, board: &str) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            emulator: identity(emulator),
            guest_kernel: identity(guest_kernel),
            board: board.to_owned(),
            host_kernel: release.trim().to_owned(),
            processor: processor(&cpuinfo),
        }
    }
}

/// The host's kernel and processor.
pub fn host_identity() -> String {
    let here = Circumstances::here(Path::new(""), Path::new(""), "");
    format!("{} {}", here.host_kernel, here.processor)
}

fn identity(path: &Path) -> String {
    match fs::metadata(path) {
        Ok(meta) => {
            let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
            format!("{} {} {seconds}.{nanos:09}", path.display(), meta.len())
        }
        Err(_) => path.display().to_string(),
    }
}

/// What names the first processor's model, on x86 and on Arm.
fn processor(cpuinfo: &str) -> String {
    const FIELDS: [&str; 4] = ["model name", "CPU implementer", "CPU part", "CPU revision"];
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    let values = first.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        FIELDS.contains(&key.trim()).then(|| value.trim())
    });
    values.collect::<Vec<_>>().join(" ")
}

/// The file of verdicts.
#[derive(Clone, Debug)]
pub struct Verdicts {
    path: PathBuf,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    #[serde(flatten)]
    circumstances: Circumstances,
    works: Accel,
}

impl Verdicts {
    /// The verdicts kept in a cache directory, which need not exist.
    pub fn in_directory(cache_dir: &Path) -> Self {
        Self {
            path: cache_dir.join("acceleration.json"),
        }
    }

    /// Where they are kept.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was proved under the same circumstances. A file that cannot be read proves nothing.
    pub fn recall(&self, circumstances: &Circumstances) -> Option<Accel> {
        let entry = self
            .entries()
            .into_iter()
            .find(|entry| entry.circumstances == *circumstances);
        entry.map(|entry| entry.works)
    }

    /// Remembers what was proved.
    pub fn remember(&self, circumstances: &Circumstances, works: Accel) -> io::Result<()> {
        let mut entries = self.entries();
        entries.retain(|entry| entry.circumstances != *circumstances);
        entries.insert(
            0,
            Entry {
                circumstances: circumstances.clone(),
                works,
            },
        );
        entries.truncate(MAX_VERDICTS);
        let text = serde_json::to_vec_pretty(&entries)?;
        if let Some(dir) = self.path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
        }
        let unfinished = self.path.with_extension(format!("{}", std::process::id()));
        // What an earlier process of this number left, or somebody's link, is not written through.
        let _ = fs::remove_file(&unfinished);
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        options.open(&unfinished)?.write_all(&text)?;
        fs::rename(&unfinished, &self.path)
    }

    fn entries(&self) -> Vec<Entry> {
        let mut text = Vec::new();
        let read =
            File::open(&self.path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
        read.ok()
            .and_then(|_| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn no_device() -> Result<(), KvmError> {
        Err(KvmError::Device(io::ErrorKind::NotFound.into()))
    }

    #[test]
    fn plans() {
        use Accel::{Kvm, Tcg};
        for (wish, usable, verdict, expected) in [
            (AccelWish::Auto, false, None, Plan::Emulate),
            (AccelWish::Auto, false, Some(Kvm), Plan::Emulate),
            (AccelWish::Auto, true, None, Plan::Prove),
            (AccelWish::Auto, true, Some(Kvm), Plan::Trust),
            (AccelWish::Auto, true, Some(Tcg), Plan::Emulate),
            (AccelWish::Kvm, true, Some(Tcg), Plan::Insist),
            (AccelWish::Kvm, true, Some(Kvm), Plan::Trust),
            (AccelWish::Tcg, true, Some(Kvm), Plan::Emulate),
        ] {
            let kvm = if usable { Ok(()) } else { no_device() };
            assert_eq!(
                plan(wish, kvm, verdict).unwrap(),
                expected,
                "{wish:?} {usable} {verdict:?}"
            );
        }
        // Only where nothing is known is something learnt from a failure.
        let learning = |plan: &Plan| plan.can_disprove();
        let plans = [Plan::Emulate, Plan::Trust, Plan::Prove, Plan::Insist];
        let learns: Vec<_> = plans.into_iter().filter(learning).collect();
        assert_eq!(learns, [Plan::Prove]);
        let error = plan(AccelWish::Kvm, no_device(), None).unwrap_err();
        assert!(error.to_string().contains("group kvm"), "{error}");
    }

    #[test]
    fn foreign_guests_cannot_use_it() {
        let foreign = Arch::ALL
            .into_iter()
            .find(|&arch| Some(arch) != Arch::host())
            .unwrap();
        assert!(matches!(kvm_usable(foreign), Err(KvmError::Foreign { .. })));
    }

    #[test]
    fn a_verdict_holds_until_something_changes() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("kernel");
        fs::write(&kernel, "one").unwrap();
        let here = || Circumstances::here(Path::new("/usr/bin/qemu"), &kernel, "microvm");
        let verdicts = Verdicts::in_directory(&dir.path().join("cache/vdkr"));
        assert_eq!(verdicts.recall(&here()), None);
        verdicts.remember(&here(), Accel::Kvm).unwrap();
        verdicts.remember(&here(), Accel::Tcg).unwrap();
        assert_eq!(verdicts.recall(&here()), Some(Accel::Tcg));
        assert_eq!(verdicts.entries().len(), 1);
        fs::write(&kernel, "another").unwrap();
        assert_eq!(verdicts.recall(&here()), None);

        for number in 0..30 {
            let board = format!("board {number}");
            let other = Circumstances { board, ..here() };
            verdicts.remember(&other, Accel::Kvm).unwrap();
        }
        assert_eq!(verdicts.entries().len(), MAX_VERDICTS);
        let unfinished = verdicts
            .path()
            .with_extension(std::process::id().to_string());
        let foreign = dir.path().join("foreign");
        fs::write(&foreign, "untouched").unwrap();
        std::os::unix::fs::symlink(&foreign, &unfinished).unwrap();
        verdicts.remember(&here(), Accel::Kvm).unwrap();
        assert_eq!(fs::read_to_string(&foreign).unwrap(), "untouched");
        assert!(fs::symlink_metadata(verdicts.path()).unwrap().is_file());
        fs::write(verdicts.path(), "{ torn").unwrap();
        assert_eq!(verdicts.recall(&here()), None);
        verdicts.remember(&here(), Accel::Kvm).unwrap();
        assert_eq!(verdicts.recall(&here()), Some(Accel::Kvm));
    }

    #[test]
    fn processors() {
        assert_eq!(
            processor("processor: 0\nmodel name\t: AMD EPYC\nflags: x\n\nmodel name: other\n"),
            "AMD EPYC"
        );
        assert_eq!(
            processor("CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"),
            "0x41 0xd0c"
        );
    }
}
