//! The emulator's command line: a pure function of what the machine shall be.
//!
//! Everything a user gave that is nobody else's business (names, arguments, credentials) travels
//! over the agent's channel; the command line and the kernel's hold only what the machine is made of.

use std::{ffi::OsString, os::fd::RawFd, path::PathBuf};

use serde_json::{Value, json};

use super::{
    arch::Arch,
    locate::KernelFormat,
    processor::{CpuWish, MAX_CPUS_GIC2},
};

/// Name of the virtio-serial port that the agent serves.
pub const AGENT_PORT: &str = "vdkr.agent";
/// The emulator's own name for that port, in its events.
pub const AGENT_DEVICE: &str = "agent-port";
/// The emulator's name of the agent's channel.
pub const AGENT_CHANNEL: &str = "agent";
/// The emulator's name for the controller of hot disks.
pub const DISK_CONTROLLER: &str = "disks";
/// Name of the user network at the emulator.
pub const NETWORK: &str = "net0";
/// The emulator's name for what is behind the state disk.
const STATE: &str = "state";
/// Serial number of the block device with the agent's state.
pub const STATE_SERIAL: &str = "vdkr-state";

/// What becomes of a request of the guest that fails on this computer, as when its disk is full:
/// the guest is told, which knows what to do. By itself the emulator would stop the machine.
pub const ON_ERROR: &str = "report";

/// The board that is emulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Board {
    /// x86 without PCI and firmware tables that a small kernel does not need.
    Microvm,
    /// An x86 PC.
    Q35,
    /// The Arm board made for virtual machines.
    Virt,
}

impl Board {
    /// The word in `--machine` and on the emulator's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Microvm => "microvm",
            Self::Q35 => "q35",
            Self::Virt => "virt",
        }
    }

    /// Whether virtio devices sit on PCI rather than on memory-mapped slots.
    fn has_pci(self) -> bool {
        self == Self::Q35
    }
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// The processor itself.
    Kvm,
    /// The emulator's translator.
    Tcg,
}

impl Accel {
    /// The word in `--accel` and on the emulator's command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What is behind the disk with the agent's state, which the machine has from its first instruction on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateDisk {
    /// There is no such disk.
    Absent,
    /// The file with this path.
    File(String),
    /// Zeros, as many bytes as the file has that a start from the snapshot puts there: the guest
    /// has found its disk already, and only has to mount it.
    Blank(u64),
}

/// A file in the place of the machine's memory, inherited by the emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryFile {
    /// Its descriptor.
    pub fd: RawFd,
    /// Whether what the guest writes goes to the file; else the file is only what memory begins as.
    pub shared: bool,
}

/// A virtual machine to be started.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Architecture of the guest.
    pub arch: Arch,
    /// The board; must be one of the architecture's.
    pub board: Board,
    /// What runs the guest.
    pub accel: Accel,
    /// The model of its processors.
    pub cpu: CpuWish,
    /// How many there are.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// The kernel.
    pub kernel: PathBuf,
    /// Its format.
    pub format: KernelFormat,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Its state disk.
    pub state_disk: StateDisk,
    /// Whether it has a controller for disks that come while it runs; the guest must know it.
    pub hot_disks: bool,
    /// What its memory is made of; anonymous memory when absent.
    pub memory_file: Option<MemoryFile>,
    /// Wait for a saved state instead of booting.
    pub incoming: bool,
    /// Rate of the host's time-stamp counter in kHz.
    pub tsc_khz: Option<u32>,
    /// Let the kernel talk from its first instruction on, as proof that it runs.
    pub chatty: bool,
}

/// Sockets that the emulator inherits, by descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Sockets {
    /// The agent's channel.
    pub agent: RawFd,
    /// The serial console.
    pub console: RawFd,
    /// The emulator's own control protocol.
    pub control: RawFd,
}

impl Machine {
    /// The emulator leaves out the memory barriers of a guest that can never have a second processor,
    /// as if devices did not run beside it: an interrupt of a disk may then be lost, and whoever waits
    /// for that disk waits for ever.
    fn processors(&self) -> String {
        match (self.accel, self.cpus) {
            (Accel::Tcg, 1) => "1,maxcpus=2".to_owned(),
            (_, cpus) => cpus.to_string(),
        }
    }

    /// The arguments after the program's name.
    pub fn arguments(&self, sockets: Sockets) -> Vec<OsString> {
        let mut args = Arguments::default();
        args.pair("-name", "vdkr");
        args.flags(&["-nodefaults", "-no-user-config", "-no-reboot"]);
        args.pair("-display", "none");
        args.pair("-M", &self.machine());
        args.pair("-accel", self.accel.name());
        args.pair("-cpu", self.cpu.model(self.accel, self.arch));
        args.pair("-smp", &self.processors());
        args.pair("-m", &format!("{}M", self.memory_mib));
        if let Some(MemoryFile { fd, shared }) = self.memory_file {
            let share = if shared { "on" } else { "off" };
            args.pair(
                "-object",
                &format!(
                    "memory-backend-file,id=memory,size={}M,mem-path=/proc/self/fd/{fd},share={share}",
                    self.memory_mib
                ),
            );
        }
        if self.incoming {
            args.pair("-incoming", "defer");
        }
        match (self.incoming, self.board) {
            // The kernel is in the saved memory. This board's loader wants one all the same, and
            // would read all of it, twice.
            (true, Board::Virt) => args.pair("-kernel", "/dev/null"),
            _ => {
                args.path("-kernel", &self.kernel);
                args.path("-initrd", &self.initrd);
            }
        }
        args.pair("-append", &self.kernel_command_line());

        let socket = |id: &str, fd: RawFd| format!("socket,id={id},fd={fd}");
        args.pair("-chardev", &socket("console", sockets.console));
        args.pair("-serial", "chardev:console");
        args.pair("-chardev", &socket("control", sockets.control));
        args.pair("-mon", "chardev=control,mode=control");

        args.pair("-chardev", &socket(AGENT_CHANNEL, sockets.agent));
        args.device("virtio-serial", self.board, "");
        args.pair(
            "-device",
            &format!("virtserialport,chardev={AGENT_CHANNEL},name={AGENT_PORT},id={AGENT_DEVICE}"),
        );
        args.pair("-netdev", &format!("user,id={NETWORK},ipv6=off"));
        let no_boot_rom = if self.board.has_pci() {
            ",romfile="
        } else {
            ""
        };
        args.device(
            "virtio-net",
            self.board,
            // A machine that was saved has not moved within a network that would have to know.
            &format!(",netdev={NETWORK},guest_announce=off{no_boot_rom}"),
        );
        if let Some(node) = self.state_node() {
            args.pair("-blockdev", &node.to_string());
            args.device(
                "virtio-blk",
                self.board,
                &format!(
                    ",drive={STATE},serial={STATE_SERIAL},werror={ON_ERROR},rerror={ON_ERROR}"
                ),
            );
        }
        if self.hot_disks {
            args.device("virtio-scsi", self.board, &format!(",id={DISK_CONTROLLER}"));
        }
        args.0
    }

    fn state_node(&self) -> Option<Value> {
        match &self.state_disk {
            StateDisk::Absent => None,
            StateDisk::File(path) => Some(block_node(STATE, path, false)),
            StateDisk::Blank(size) => Some(json!({
                "driver": "null-co", "node-name": STATE, "size": size, "read-zeroes": true,
            })),
        }
    }

    /// The kernel's command line. It may be read by every container.
    pub fn kernel_command_line(&self) -> String {
        let mut words: Vec<String> = Vec::new();
        let mut add = |text: &str| words.extend(text.split(' ').map(str::to_owned));
        add(match self.arch {
            Arch::X86_64 => "console=ttyS0",
            Arch::Aarch64 => "console=ttyAMA0",
        });
        match (self.chatty, self.arch) {
            (false, _) => add("quiet"),
            (true, Arch::X86_64) => add("earlyprintk=ttyS0"),
            (true, Arch::Aarch64) => add("earlycon"),
        }
        // On aarch64 a kernel at a secret place keeps page tables of its own, and the emulator begins
        // anew with every change of tables.
        add("panic=-1 cryptomgr.notests random.trust_cpu=on nokaslr mitigations=off");
        if self.arch == Arch::X86_64 {
            add("no_timer_check");
            if self.accel == Accel::Tcg {
                if self.board == Board::Microvm
                    && let Some(khz) = self.tsc_khz
                {
                    add(&format!("tsc_early_khz={khz}"));
                }
                add("tsc=reliable");
            }
            if !self.board.has_pci() {
                add("pci=off");
            }
        }
        words.join(" ")
    }

    fn machine(&self) -> String {
        let mut text = match (self.board, self.accel) {
            (Board::Virt, Accel::Kvm) => "virt,gic-version=host".to_owned(),
            (Board::Virt, Accel::Tcg) if self.cpus > MAX_CPUS_GIC2 => {
                "virt,gic-version=3".to_owned()
            }
            (board, _) => board.name().to_owned(),
        };
        if self.memory_file.is_some() {
            text.push_str(",memory-backend=memory");
        }
        text
    }
}

/// The emulator's node for a raw image. JSON, so that no character of the path has a meaning of
/// its own.
pub fn block_node(name: &str, path: &str, read_only: bool) -> Value {
    json!({
        "driver": "raw",
        "node-name": name,
        "read-only": read_only,
        "discard": "unmap",
        "file": {
            "driver": "file", "filename": path, "read-only": read_only, "discard": "unmap",
        },
    })
}

#[derive(Default)]
struct Arguments(Vec<OsString>);

impl Arguments {
    fn flags(&mut self, flags: &[&str]) {
        self.0.extend(flags.iter().map(OsString::from));
    }

    fn pair(&mut self, option: &str, value: &str) {
        self.0.extend([option.into(), value.into()]);
    }

    fn path(&mut self, option: &str, value: &std::path::Path) {
        self.0.extend([option.into(), value.into()]);
    }

    fn device(&mut self, kind: &str, board: Board, rest: &str) {
        let bus = if board.has_pci() { "pci" } else { "device" };
        self.pair("-device", &format!("{kind}-{bus}{rest}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOCKETS: Sockets = Sockets {
        agent: 11,
        console: 12,
        control: 13,
    };

    fn machine() -> Machine {
        Machine {
            arch: Arch::X86_64,
            board: Board::Microvm,
            accel: Accel::Tcg,
            cpu: CpuWish::Auto,
            cpus: 1,
            memory_mib: 512,
            kernel: "/vm/kernel".into(),
            format: KernelFormat::Vmlinux,
            initrd: "/vm/initramfs".into(),
            state_disk: StateDisk::File("/a,b/state \"1\".img".into()),
            hot_disks: false,
            memory_file: None,
            incoming: false,
            tsc_khz: Some(2_445_435),
            chatty: false,
        }
    }

    fn line(machine: &Machine) -> Vec<String> {
        let args = machine.arguments(SOCKETS);
        args.into_iter()
            .map(|arg| arg.into_string().unwrap())
            .collect()
    }

    fn value<'a>(line: &'a [String], option: &str) -> Vec<&'a str> {
        line.windows(2)
            .filter(|pair| pair[0] == option)
            .map(|pair| pair[1].as_str())
            .collect()
    }

    #[test]
    fn emulated_microvm() {
        let line = line(&machine());
        assert_eq!(value(&line, "-M"), ["microvm"]);
        assert_eq!(value(&line, "-accel"), ["tcg"]);
        assert_eq!(value(&line, "-cpu"), ["qemu64"]);
        // Never `1` alone under emulation.
        assert_eq!(value(&line, "-smp"), ["1,maxcpus=2"]);
        assert_eq!(value(&line, "-m"), ["512M"]);
        assert_eq!(
            value(&line, "-append"),
            [
                "console=ttyS0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on nokaslr \
              mitigations=off no_timer_check tsc_early_khz=2445435 tsc=reliable pci=off"
            ]
        );
        assert_eq!(
            value(&line, "-chardev"),
            [
                "socket,id=console,fd=12",
                "socket,id=control,fd=13",
                "socket,id=agent,fd=11"
            ]
        );
        assert_eq!(
            value(&line, "-device"),
            [
                "virtio-serial-device",
                "virtserialport,chardev=agent,name=vdkr.agent,id=agent-port",
                "virtio-net-device,netdev=net0,guest_announce=off",
                "virtio-blk-device,drive=state,serial=vdkr-state,werror=report,rerror=report"
            ]
        );
        assert!(line.contains(&"-no-reboot".to_owned()));
    }

    #[test]
    fn any_path_of_the_disk_is_taken_literally() {
        let line = line(&machine());
        let node: serde_json::Value = serde_json::from_str(value(&line, "-blockdev")[0]).unwrap();
        assert_eq!(node["file"]["filename"], "/a,b/state \"1\".img");
    }

    #[test]
    fn stateless_has_no_disk() {
        let line = line(&Machine {
            state_disk: StateDisk::Absent,
            ..machine()
        });
        assert!(
            !line
                .iter()
                .any(|arg| arg.contains("blk") || arg.contains("blockdev"))
        );
    }

    #[test]
    fn disks_come_to_a_controller_while_the_machine_runs() {
        let hot = Machine {
            hot_disks: true,
            ..machine()
        };
        let devices = |machine: &Machine| {
            let line = line(machine);
            value(&line, "-device").last().map(ToString::to_string)
        };
        assert_eq!(devices(&hot).unwrap(), "virtio-scsi-device,id=disks");
        let pc = Machine {
            board: Board::Q35,
            ..hot
        };
        assert_eq!(devices(&pc).unwrap(), "virtio-scsi-pci,id=disks");
    }

    #[test]
    fn a_blank_state_disk_differs_in_nothing_that_the_guest_has_found() {
        let blank = Machine {
            state_disk: StateDisk::Blank(64 << 30),
            ..machine()
        };
        let (blank, given) = (line(&blank), line(&machine()));
        let node: Value = serde_json::from_str(value(&blank, "-blockdev")[0]).unwrap();
        assert_eq!(node["driver"], "null-co");
        assert_eq!(node["size"], 64_u64 << 30);
        assert_eq!(node["read-zeroes"], true);
        let differing: Vec<_> = blank
            .iter()
            .zip(&given)
            .filter(|(blank, given)| blank != given)
            .collect();
        assert_eq!(blank.len(), given.len());
        assert_eq!(differing.len(), 1, "{differing:?}");
    }

    #[test]
    fn memory_can_be_a_file() {
        let saved = Machine {
            memory_file: Some(MemoryFile {
                fd: 9,
                shared: false,
            }),
            incoming: true,
            ..machine()
        };
        let line = line(&saved);
        assert_eq!(value(&line, "-M"), ["microvm,memory-backend=memory"]);
        assert_eq!(
            value(&line, "-object"),
            ["memory-backend-file,id=memory,size=512M,mem-path=/proc/self/fd/9,share=off"]
        );
        assert_eq!(value(&line, "-incoming"), ["defer"]);
    }

    #[test]
    fn the_counter_is_given_to_an_emulated_microvm_only() {
        let base = machine();
        for (board, accel, given) in [
            (Board::Microvm, Accel::Tcg, true),
            (Board::Q35, Accel::Tcg, false),
            (Board::Microvm, Accel::Kvm, false),
        ] {
            let text = Machine {
                board,
                accel,
                ..base.clone()
            }
            .kernel_command_line();
            assert_eq!(text.contains("tsc_early_khz"), given, "{text}");
            assert_eq!(text.contains("pci=off"), board == Board::Microvm, "{text}");
        }
        let unknown = Machine {
            tsc_khz: None,
            ..base
        };
        assert!(!unknown.kernel_command_line().contains("tsc_early_khz"));
    }

    #[test]
    fn pc_with_kvm() {
        let line = line(&Machine {
            board: Board::Q35,
            accel: Accel::Kvm,
            ..machine()
        });
        assert_eq!(value(&line, "-cpu"), ["host"]);
        assert!(
            value(&line, "-device")
                .contains(&"virtio-net-pci,netdev=net0,guest_announce=off,romfile=")
        );
        assert!(value(&line, "-device").contains(&"virtio-serial-pci"));
    }

    #[test]
    fn arm() {
        let arm = Machine {
            arch: Arch::Aarch64,
            board: Board::Virt,
            format: KernelFormat::Image,
            ..machine()
        };
        let line = line(&arm);
        assert_eq!(value(&line, "-M"), ["virt"]);
        assert_eq!(value(&line, "-cpu"), ["cortex-a57"]);
        assert_eq!(
            value(&line, "-append"),
            [
                "console=ttyAMA0 quiet panic=-1 cryptomgr.notests random.trust_cpu=on nokaslr mitigations=off"
            ]
        );
        assert_eq!(value(&line, "-kernel"), ["/vm/kernel"]);
        assert_eq!(value(&line, "-initrd"), ["/vm/initramfs"]);
        let saved = self::line(&Machine {
            incoming: true,
            ..arm.clone()
        });
        assert_eq!(value(&saved, "-kernel"), ["/dev/null"]);
        assert!(value(&saved, "-initrd").is_empty());
        let kvm = Machine {
            accel: Accel::Kvm,
            ..arm
        };
        let line = self::line(&kvm);
        assert_eq!(value(&line, "-M"), ["virt,gic-version=host"]);
        assert_eq!(value(&line, "-smp"), ["1"]);
    }

    #[test]
    fn processors_are_as_wished() {
        let more = Machine {
            cpu: CpuWish::Only("max,-erms".into()),
            cpus: 2,
            ..machine()
        };
        assert_eq!(value(&line(&more), "-cpu"), ["max,-erms"]);
        assert_eq!(value(&line(&more), "-smp"), ["2"]);
        for (cpus, board) in [(8, "virt"), (9, "virt,gic-version=3")] {
            let arm = Machine {
                arch: Arch::Aarch64,
                board: Board::Virt,
                cpus,
                ..machine()
            };
            assert_eq!(value(&line(&arm), "-M"), [board]);
        }
    }

    #[test]
    fn a_proving_boot_is_not_quiet() {
        let text = Machine {
            chatty: true,
            ..machine()
        }
        .kernel_command_line();
        assert!(
            text.contains("earlyprintk=ttyS0") && !text.contains("quiet"),
            "{text}"
        );
    }
}
