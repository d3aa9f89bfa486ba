//! From files to an agent that has greeted: the start of a virtual machine.

use std::{
    fs::File,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde_json::json;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use vdkr_core::channel::message::GuestHello;

use super::{
    accel::{self, AccelWish, Circumstances, KvmError, Plan, Verdicts},
    arch::Arch,
    boot::{Boot, Failed},
    disk::{self, DiskError},
    locate::{self, KernelFormat, LocateError, Search, VmImage},
    pipe::{FrameReader, PipeError},
    process::{Qemu, SpawnError},
    processor::CpuWish,
    qemu::{Accel, Board, Machine, Sockets, StateDisk},
    snapshot::{self, Key, Snapshots, Turn},
    timing::Stages,
    tsc,
};

/// Name of the console's log in a state directory.
pub const CONSOLE_LOG: &str = "console.log";
/// A guest that runs under KVM says its first word long before this.
const FIRST_OUTPUT: Duration = Duration::from_secs(3);
/// From the first word to the agent's greeting under KVM, on a busy host.
const PROOF: Duration = Duration::from_secs(20);

/// The board that the user wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BoardWish {
    /// The quickest that the image is made for.
    #[default]
    Auto,
    /// This one.
    Only(Board),
}

impl BoardWish {
    /// The word in `--machine`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Only(board) => board.name(),
        }
    }
}

/// The word is no machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown machine {0:?}; it is one of auto, microvm, q35, virt")]
pub struct UnknownBoard(String);

impl FromStr for BoardWish {
    type Err = UnknownBoard;

    fn from_str(word: &str) -> Result<Self, UnknownBoard> {
        match word {
            "auto" => Ok(Self::Auto),
            "microvm" => Ok(Self::Only(Board::Microvm)),
            "q35" => Ok(Self::Only(Board::Q35)),
            "virt" => Ok(Self::Only(Board::Virt)),
            other => Err(UnknownBoard(other.to_owned())),
        }
    }
}

/// What to start.
#[derive(Clone, Debug)]
pub struct StartOptions {
    /// Architecture of the guest.
    pub arch: Arch,
    /// Where its files are.
    pub search: Search,
    /// The board.
    pub board: BoardWish,
    /// What runs the guest.
    pub accel: AccelWish,
    /// The model of its processors.
    pub cpu: CpuWish,
    /// How many there are.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Directory of the state disk and the logs; none for a machine that forgets.
    pub state_dir: Option<PathBuf>,
    /// Where proofs of acceleration are kept.
    pub cache_dir: PathBuf,
    /// How long a boot under emulation may take.
    pub boot_timeout: Duration,
    /// Whether to start from a snapshot, and to make one when there is none.
    pub snapshot: bool,
    /// Whether the user wants to know what became of that.
    pub verbose: bool,
}

/// A machine whose agent has greeted.
#[derive(Debug)]
pub struct Started {
    /// The emulator.
    pub qemu: Qemu,
    /// What comes from the agent.
    pub reader: FrameReader<OwnedReadHalf>,
    /// What goes to the agent.
    pub writer: OwnedWriteHalf,
    /// The agent's greeting.
    pub hello: GuestHello,
    /// What runs the guest.
    pub accel: Accel,
    /// The board.
    pub board: Board,
    /// The model of its processors, as the emulator calls it.
    pub cpu: String,
    /// The kernel.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
}

/// Why there is no machine.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Files or programs are missing.
    #[error(transparent)]
    Locate(#[from] LocateError),
    /// The state disk cannot be made.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// KVM was asked for and is not to be had.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The board is not one of the architecture's, or not one that the image boots on.
    #[error("machine {} cannot boot this {arch} image; it boots on: {}", board.name(), offered.join(", "))]
    Board {
        /// What was asked for.
        board: Board,
        /// The guest's architecture.
        arch: Arch,
        /// What the image is made for.
        offered: Vec<String>,
    },
    /// The path of the state disk cannot be given to the emulator.
    #[error("state directory {} is not valid UTF-8; name another one with --state-dir", .0.display())]
    StatePath(PathBuf),
    /// The emulator cannot be started.
    #[error(transparent)]
    Spawn(#[from] SpawnError),
    /// The boot failed; the text holds what is known.
    #[error("{0}")]
    Boot(String),
    /// The pipe to the agent cannot be used.
    #[error(transparent)]
    Pipe(#[from] PipeError),
}

/// Starts a machine and waits for its agent. `say` is told what a user should know meanwhile.
///
/// `lock` is held by the emulator too, so that the state disk stays locked until both are gone.
pub async fn start(
    options: &StartOptions,
    lock: Option<&File>,
    stages: &mut Stages,
    say: &mut dyn FnMut(&str),
) -> Result<Started, StartError> {
    let image = options.search.locate(options.arch)?;
    let program = locate::emulator(options.arch)?;
    let board = choose_board(options.board, &image)?;
    stages.mark("locate");
    let state_disk = match &options.state_dir {
        Some(dir) => {
            let disk = disk::ensure(dir).await?;
            Some(
                disk.into_os_string()
                    .into_string()
                    .map_err(|_| StartError::StatePath(dir.clone()))?,
            )
        }
        None => None,
    };
    stages.mark("disk");
    let machine = Machine {
        arch: options.arch,
        board,
        accel: Accel::Tcg,
        cpu: options.cpu.clone(),
        cpus: options.cpus,
        memory_mib: options.memory_mib,
        kernel: image.kernel.clone(),
        format: image.format,
        initrd: image.initrd.clone(),
        state_disk: state_disk
            .clone()
            .map_or(StateDisk::Absent, StateDisk::File),
        hot_disks: image.hot_disks,
        memory_file: None,
        incoming: false,
        tsc_khz: None,
        chatty: false,
    };
    let circumstances = Circumstances::here(&program, &image.kernel, board.name());
    let verdicts = Verdicts::in_directory(&options.cache_dir);
    let kvm = accel::kvm_usable(options.arch);
    let plan = accel::plan(options.accel, kvm, verdicts.recall(&circumstances))?;
    let boot = Boot {
        program: &program,
        options,
        lock,
        state_disk: state_disk.as_deref(),
    };

    let mut disproved = false;
    if plan != Plan::Emulate {
        let machine = Machine {
            accel: Accel::Kvm,
            chatty: plan != Plan::Trust,
            ..machine.clone()
        };
        let first_output = machine.chatty.then_some(FIRST_OUTPUT);
        let begun = begin(&boot, &machine, first_output, PROOF, stages, say).await;
        match begun {
            Ok(started) => {
                remember(&verdicts, &circumstances, Accel::Kvm, say);
                return Ok(started);
            }
            Err(failed) if !failed.speaks_of_the_guest() => {
                return Err(failed.into_error(options.state_dir.as_deref()));
            }
            Err(failed) => {
                let reason = failed.reason();
                if options.accel == AccelWish::Kvm {
                    return Err(StartError::Boot(format!(
                        "the guest does not run under kvm: {reason}; use --accel auto or tcg"
                    )));
                }
                say(&format!(
                    "the guest does not run under kvm ({reason}); using emulation"
                ));
                // A model of the user's own may be what does not run.
                disproved = plan.can_disprove() && options.cpu == CpuWish::Auto;
                stages.mark("kvm trial");
            }
        }
    }
    let tsc_khz = if options.arch == Arch::X86_64 {
        tsc::host_khz()
    } else {
        None
    };
    // Without the counter's rate a microvm may hang; a PC has other clocks to measure it by.
    let guess = options.board == BoardWish::Auto && board == Board::Microvm && tsc_khz.is_none();
    let machine = Machine {
        tsc_khz,
        board: if guess { Board::Q35 } else { board },
        ..machine
    };
    let started = begin(&boot, &machine, None, options.boot_timeout, stages, say)
        .await
        .map_err(|failed| failed.into_error(options.state_dir.as_deref()))?;
    // Now it was kvm, and nothing that emulation has in common with it.
    if disproved {
        remember(&verdicts, &circumstances, Accel::Tcg, say);
    }
    Ok(started)
}

/// Starts from a snapshot where that can be, else boots.
async fn begin(
    boot: &Boot<'_>,
    machine: &Machine,
    first_output: Option<Duration>,
    patience: Duration,
    stages: &mut Stages,
    say: &mut dyn FnMut(&str),
) -> Result<Started, Failed> {
    // A boot that is to prove something has to be one.
    if boot.options.snapshot && machine.hot_disks && first_output.is_none() {
        let verbose = boot.options.verbose;
        let mut explain = |text: &str| {
            if verbose {
                say(text);
            }
        };
        let started = from_snapshot(boot, machine, patience, stages, &mut explain).await?;
        if let Some(started) = started {
            return Ok(started);
        }
    }
    boot.once(machine, first_output, patience, stages).await
}

/// Starts from a snapshot, after making it when there is none. `None` when the machine has to be
/// booted; the reason was told.
async fn from_snapshot(
    boot: &Boot<'_>,
    machine: &Machine,
    patience: Duration,
    stages: &mut Stages,
    explain: &mut dyn FnMut(&str),
) -> Result<Option<Started>, Failed> {
    let snapshots = Snapshots::in_directory(&boot.options.cache_dir);
    let size = match boot.state_disk.map(std::fs::metadata) {
        Some(Ok(file)) => file.len(),
        // The emulator tells better why it cannot be used.
        Some(Err(_)) => return Ok(None),
        None => disk::SIZE,
    };
    let blank = Machine {
        state_disk: StateDisk::Blank(size),
        ..machine.clone()
    };
    // Without state the machine has the blank disk too, and takes its memory.
    let machine = match machine.state_disk {
        StateDisk::File(_) => machine,
        StateDisk::Absent | StateDisk::Blank(_) => &blank,
    };
    let key = match facts(boot.program, &blank) {
        Ok(facts) => Key::new(&facts),
        Err(error) => {
            explain(&format!("no snapshot: {error}"));
            return Ok(None);
        }
    };
    match snapshots.find(&key) {
        Ok(None) => {}
        Ok(Some(saved)) => match boot.restore(machine, &saved, stages).await {
            Ok(started) => return Ok(Some(started)),
            // It would not be there for a booted machine either.
            Err(failed) if failed.speaks_of_the_disk(boot.state_disk) => return Err(failed),
            Err(failed) => {
                let reason = failed.reason();
                // That this computer is slow now is no fault of the snapshot.
                let next = match failed {
                    Failed::Late { .. } => "is tried once more",
                    _ => {
                        snapshots.discard(&key);
                        "is renewed"
                    }
                };
                explain(&format!(
                    "the snapshot does not start, so it {next}: {reason}"
                ));
                stages.mark("failed restore");
            }
        },
        Err(error) => {
            explain(&format!("the snapshot is renewed: {error}"));
            snapshots.discard(&key);
        }
    }
    if let Some(reason) = snapshots.unusable(&key) {
        explain(&format!(
            "no snapshot, since the last one did not start: {reason}"
        ));
        return Ok(None);
    }
    let turn = snapshots.begin(&key, machine.memory_mib, patience).await;
    let saved = match turn {
        Ok(Turn::Saved(saved)) => saved,
        Ok(Turn::Build(unfinished)) => {
            explain("making a snapshot for the next starts");
            match boot.take(&blank, &unfinished, patience).await {
                Ok(()) => {}
                Err(failed @ Failed::Late { .. }) => return Err(failed),
                Err(failed) => {
                    explain(&format!("no snapshot: {}", failed.reason()));
                    return Ok(None);
                }
            }
            stages.mark("boot to be saved");
            match snapshots.publish(unfinished) {
                Ok(saved) => {
                    stages.mark("save");
                    saved
                }
                Err(error) => {
                    explain(&format!("no snapshot: {error}"));
                    return Ok(None);
                }
            }
        }
        Err(error) => {
            explain(&format!("no snapshot: {error}"));
            return Ok(None);
        }
    };
    match boot.restore(machine, &saved, stages).await {
        Ok(started) => Ok(Some(started)),
        Err(failed) if failed.speaks_of_the_disk(boot.state_disk) => Err(failed),
        Err(failed) => {
            let reason = failed.reason();
            explain(&format!("the snapshot does not start: {reason}"));
            match failed {
                Failed::Late { .. } => snapshots.discard(&key),
                _ => snapshots.condemn(&key, &reason),
            }
            stages.mark("failed restore");
            Ok(None)
        }
    }
}

/// Everything that makes a machine what it is when its agent listens.
fn facts(program: &Path, machine: &Machine) -> std::io::Result<serde_json::Value> {
    let sockets = Sockets {
        agent: 0,
        console: 0,
        control: 0,
    };
    // Files count by what they are, not by their names.
    let anonymous = Machine {
        kernel: PathBuf::new(),
        initrd: PathBuf::new(),
        ..machine.clone()
    };
    let arguments: Vec<_> = anonymous
        .arguments(sockets)
        .into_iter()
        .map(|argument| argument.to_string_lossy().into_owned())
        .collect();
    Ok(json!({
        "software": super::SOFTWARE,
        "emulator": snapshot::identity(program)?,
        "kernel": snapshot::identity(&machine.kernel)?,
        "initrd": snapshot::identity(&machine.initrd)?,
        "arguments": arguments,
        "tsc_khz": machine.tsc_khz,
        // A guest that the processor runs has seen what it is.
        "host": (machine.accel == Accel::Kvm).then(accel::host_identity),
    }))
}

fn remember(
    verdicts: &Verdicts,
    circumstances: &Circumstances,
    works: Accel,
    say: &mut dyn FnMut(&str),
) {
    if verdicts.recall(circumstances) == Some(works) {
        return;
    }
    if let Err(error) = verdicts.remember(circumstances, works) {
        let path = verdicts.path().display();
        say(&format!(
            "cannot remember in {path} what acceleration works: {error}"
        ));
    }
}

/// A kernel that the user gave is only assumed to boot on the architecture's ordinary board.
fn choose_board(wish: BoardWish, image: &VmImage) -> Result<Board, StartError> {
    let offered: Vec<Board> = match image.arch {
        Arch::X86_64 => vec![Board::Microvm, Board::Q35],
        Arch::Aarch64 => vec![Board::Virt],
    };
    let made_for = |board: &Board| image.machines.iter().any(|name| name == board.name());
    match wish {
        BoardWish::Only(board) if offered.contains(&board) => Ok(board),
        BoardWish::Only(board) => Err(StartError::Board {
            board,
            arch: image.arch,
            offered: offered
                .iter()
                .map(|board| board.name().to_owned())
                .collect(),
        }),
        BoardWish::Auto => Ok(match image.arch {
            Arch::Aarch64 => Board::Virt,
            Arch::X86_64 if image.format == KernelFormat::Vmlinux => {
                offered.into_iter().find(made_for).unwrap_or(Board::Q35)
            }
            Arch::X86_64 => Board::Q35,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(arch: Arch, format: KernelFormat, machines: &[&str]) -> VmImage {
        VmImage {
            arch,
            kernel: "k".into(),
            initrd: "i".into(),
            format,
            machines: machines.iter().map(ToString::to_string).collect(),
            registry: None,
            baked: None,
            hot_disks: true,
        }
    }

    #[test]
    fn what_a_snapshot_is_of() {
        use std::fs;

        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let program = file("qemu", "1");
        let machine = Machine {
            arch: Arch::X86_64,
            board: Board::Microvm,
            accel: Accel::Tcg,
            cpu: CpuWish::Auto,
            cpus: 1,
            memory_mib: 512,
            kernel: file("kernel", "1"),
            format: KernelFormat::Vmlinux,
            initrd: file("initramfs", "1"),
            state_disk: StateDisk::Absent,
            hot_disks: true,
            memory_file: None,
            incoming: false,
            tsc_khz: Some(2_000_000),
            chatty: false,
        };
        let before = facts(&program, &machine).unwrap();
        assert_eq!(before, facts(&program, &machine).unwrap());
        // By another name it is the same file.
        let link = dir.path().join("link");
        fs::hard_link(&machine.kernel, &link).unwrap();
        let kernel = link.clone();
        let named = Machine {
            kernel,
            ..machine.clone()
        };
        assert_eq!(before, facts(&program, &named).unwrap());

        let other = file("other", "two");
        let changed = |machine: Machine| facts(&program, &machine).unwrap();
        let machine = || machine.clone();
        for (what, after) in [
            ("emulator", facts(&other, &machine()).unwrap()),
            (
                "kernel",
                changed(Machine {
                    kernel: other.clone(),
                    ..machine()
                }),
            ),
            (
                "agent",
                changed(Machine {
                    initrd: other.clone(),
                    ..machine()
                }),
            ),
            (
                "rate of the counter",
                changed(Machine {
                    tsc_khz: Some(2_000_001),
                    ..machine()
                }),
            ),
            (
                "board",
                changed(Machine {
                    board: Board::Q35,
                    ..machine()
                }),
            ),
            (
                "memory",
                changed(Machine {
                    memory_mib: 513,
                    ..machine()
                }),
            ),
            (
                "processors",
                changed(Machine {
                    cpus: 2,
                    ..machine()
                }),
            ),
        ] {
            assert_ne!(before, after, "{what}");
        }
    }

    #[test]
    fn boards() {
        use KernelFormat::{BzImage, Image, Vmlinux};
        let x86 = image(Arch::X86_64, Vmlinux, &["microvm", "q35"]);
        let given = image(Arch::X86_64, BzImage, &[]);
        let arm = image(Arch::Aarch64, Image, &["virt"]);
        for (wish, image, board) in [
            (BoardWish::Auto, &x86, Board::Microvm),
            (BoardWish::Only(Board::Q35), &x86, Board::Q35),
            (
                BoardWish::Auto,
                &image(Arch::X86_64, Vmlinux, &["q35"]),
                Board::Q35,
            ),
            (BoardWish::Auto, &given, Board::Q35),
            (BoardWish::Only(Board::Microvm), &given, Board::Microvm),
            (BoardWish::Auto, &arm, Board::Virt),
        ] {
            assert_eq!(choose_board(wish, image).unwrap(), board);
        }
        let error = choose_board(BoardWish::Only(Board::Virt), &x86).unwrap_err();
        assert!(error.to_string().contains("microvm, q35"), "{error}");
    }
}
