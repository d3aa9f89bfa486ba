//! From files to an agent that has greeted: the start of a virtual machine.

use std::{
    fs::File,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use tokio::{
    net::unix::{OwnedReadHalf, OwnedWriteHalf},
    time::timeout,
};
use vdkr_core::channel::message::GuestHello;

use super::{
    accel::{self, AccelWish, Circumstances, KvmError, Plan, Verdicts},
    arch::Arch,
    disk::{self, DiskError},
    locate::{self, KernelFormat, LocateError, Search, VmImage},
    pipe::{FrameReader, PipeError, greet_guest},
    process::{Qemu, SpawnError, ending},
    qemu::{Accel, Board, Machine},
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
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Directory of the state disk and the logs; none for a machine that forgets.
    pub state_dir: Option<PathBuf>,
    /// Where proofs of acceleration are kept.
    pub cache_dir: PathBuf,
    /// How long a boot under emulation may take.
    pub boot_timeout: Duration,
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
        memory_mib: options.memory_mib,
        kernel: image.kernel.clone(),
        format: image.format,
        initrd: image.initrd.clone(),
        state_disk,
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
    };

    if plan != Plan::Emulate {
        let machine = Machine {
            accel: Accel::Kvm,
            chatty: plan != Plan::Trust,
            ..machine.clone()
        };
        match boot.with_kvm(&machine, stages).await {
            Ok(started) => {
                remember(&verdicts, &circumstances, Accel::Kvm, say);
                return Ok(started);
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
                remember(&verdicts, &circumstances, Accel::Tcg, say);
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
    match boot
        .once(&machine, None, options.boot_timeout, stages)
        .await
    {
        Ok(started) => Ok(started),
        Err(failed) => Err(failed.into_error(options.state_dir.as_deref())),
    }
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

struct Boot<'a> {
    program: &'a Path,
    options: &'a StartOptions,
    lock: Option<&'a File>,
}

/// A boot that came to nothing.
enum Failed {
    Spawn(SpawnError),
    /// The emulator ended; its own words.
    Ended {
        how: String,
        words: String,
        console: String,
    },
    /// Nothing was heard of the guest, or not enough, within the time.
    Late {
        waited: Duration,
        silent: bool,
        console: String,
    },
    Pipe(PipeError),
}

impl Boot<'_> {
    async fn with_kvm(&self, machine: &Machine, stages: &mut Stages) -> Result<Started, Failed> {
        let first_output = machine.chatty.then_some(FIRST_OUTPUT);
        self.once(machine, first_output, PROOF, stages).await
    }

    /// Boots once. `first_output` limits the time to the guest's first word, `patience` the time
    /// to the agent's greeting.
    async fn once(
        &self,
        machine: &Machine,
        first_output: Option<Duration>,
        patience: Duration,
        stages: &mut Stages,
    ) -> Result<Started, Failed> {
        let console_log = self
            .options
            .state_dir
            .as_ref()
            .map(|dir| dir.join(CONSOLE_LOG));
        let lock = self
            .lock
            .and_then(|lock| lock.try_clone().ok())
            .map(Into::into);
        let (mut qemu, agent) = Qemu::spawn(self.program, machine, console_log.as_deref(), lock)
            .map_err(Failed::Spawn)?;
        stages.mark("spawn");
        let spawned = Instant::now();
        let (reader, mut writer) = agent.into_split();
        let greeted = {
            let console = qemu.console().clone();
            let greeting = timeout(patience, greet_guest(reader, &mut writer, super::SOFTWARE));
            let silence = async {
                // A console that closes belongs to an emulator that ends, which is told below.
                match first_output {
                    Some(limit) if timeout(limit, console.first_output()).await.is_err() => {}
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                greeted = greeting => greeted.ok(),
                _ = qemu.ended() => Some(Err(PipeError::Closed)),
                () = silence => None,
            }
        };
        match greeted {
            Some(Ok((reader, hello))) => {
                stages.boot(spawned.elapsed(), &hello);
                Ok(Started {
                    qemu,
                    reader,
                    writer,
                    hello,
                    accel: machine.accel,
                    board: machine.board,
                    kernel: machine.kernel.clone(),
                    initrd: machine.initrd.clone(),
                })
            }
            Some(Err(PipeError::Closed)) => Err(Failed::ended(&mut qemu).await),
            Some(Err(error)) => {
                qemu.kill().await;
                Err(Failed::Pipe(error))
            }
            None => {
                let console = qemu.console().tail();
                qemu.kill().await;
                let silent = console.is_empty();
                Err(Failed::Late {
                    waited: spawned.elapsed(),
                    silent,
                    console,
                })
            }
        }
    }
}

impl Failed {
    /// The channel closed: the emulator has ended or is about to.
    async fn ended(qemu: &mut Qemu) -> Self {
        let how = match timeout(Duration::from_secs(2), qemu.ended()).await {
            Ok(Ok(status)) => ending(status),
            Ok(Err(error)) => format!("cannot be waited for: {error}"),
            Err(_) => {
                qemu.kill().await;
                "closed the agent's channel".to_owned()
            }
        };
        qemu.heard_out().await;
        Self::Ended {
            how,
            words: qemu.complaints(),
            console: qemu.console().tail(),
        }
    }

    /// One line.
    fn reason(&self) -> String {
        match self {
            Self::Spawn(error) => error.to_string(),
            Self::Ended { how, words, .. } => match words.lines().next() {
                Some(words) => format!("the emulator {how}: {words}"),
                None => format!("the emulator {how}"),
            },
            Self::Late {
                waited,
                silent: true,
                ..
            } => {
                format!("no sign of life in {:.1} s", waited.as_secs_f64())
            }
            Self::Late { waited, .. } => {
                format!("no answer of its agent in {:.1} s", waited.as_secs_f64())
            }
            Self::Pipe(error) => error.to_string(),
        }
    }

    fn into_error(self, state_dir: Option<&Path>) -> StartError {
        let reason = self.reason();
        let (words, console) = match self {
            Self::Spawn(error) => return error.into(),
            Self::Pipe(error) => return error.into(),
            Self::Ended { words, console, .. } => (words, console),
            Self::Late { console, .. } => (String::new(), console),
        };
        let mut text = format!("the virtual machine did not start: {reason}");
        // The first line is in the reason.
        for line in words.lines().skip(1) {
            text.push_str("\n  ");
            text.push_str(line);
        }
        if !console.is_empty() {
            text.push_str("\nlast lines of its console:");
            for line in console.lines() {
                text.push_str("\n  ");
                text.push_str(line);
            }
        }
        if let Some(dir) = state_dir {
            text.push_str("\nits whole console is in ");
            text.push_str(&dir.join(CONSOLE_LOG).display().to_string());
        }
        StartError::Boot(text)
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

    #[test]
    fn a_failed_boot_shows_its_last_words() {
        let failed = Failed::Ended {
            how: "ended with status 1".into(),
            words: "qemu: no such machine\nqemu: hint".into(),
            console: "Kernel panic".into(),
        };
        let text = failed.into_error(Some(Path::new("/state"))).to_string();
        assert_eq!(
            text,
            "the virtual machine did not start: the emulator ended with status 1: qemu: no such \
             machine\n  qemu: hint\nlast lines of its console:\n  Kernel panic\nits whole console \
             is in /state/console.log"
        );
    }
}
