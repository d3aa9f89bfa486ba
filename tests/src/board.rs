//! A full image in QEMU: Debian with systemd, and the agent as its service.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::newc::{self, File};
use crate::process::{Background, tool, wait_until};
use crate::vm::PATIENCE;

/// The service that answers [`Board::sh`].
const SHELL_UNIT: &str = "\
[Unit]
Description=Shell of the test
[Service]
ExecStart=/bin/sh /usr/lib/test-shell
Restart=always
RestartSec=1
[Install]
WantedBy=multi-user.target
";
const SHELL: &str = "\
for port in /sys/class/virtio-ports/*; do
  [ \"$(cat $port/name)\" = test.shell ] && exec /bin/sh <>/dev/${port##*/} >&0 2>&0
done
exit 1
";
/// Loads the unit above without a link, which the archive cannot hold.
const WANTS: &str = "[Unit]\nWants=test-shell.service\n";
/// The agent listens on a serial line, too.
const CHANNELS: &str =
    "VDKR_AGENT_CHANNELS=--channel port:vdkr.agent --serial /dev/ttyS1 --vsock\n";

/// What a board runs on.
struct Machine {
    program: &'static str,
    board: &'static str,
    cpu: &'static str,
    /// The kernel's name of the first serial line.
    console: &'static str,
    /// Whether there is a second serial line.
    two_lines: bool,
}

const PC: Machine = Machine {
    program: "qemu-system-x86_64",
    board: "q35",
    cpu: "qemu64",
    console: "ttyS0",
    two_lines: true,
};
const ARM: Machine = Machine {
    program: "qemu-system-aarch64",
    board: "virt",
    cpu: "cortex-a57",
    console: "ttyAMA0",
    two_lines: false,
};

/// A running board; switched off when dropped.
#[derive(Debug)]
pub struct Board {
    _qemu: Background,
    _vsock: Background,
    dir: TempDir,
    shell: UnixStream,
    asked: u32,
}

impl Board {
    /// Starts one with these files more, and waits until its shell answers.
    #[track_caller]
    pub fn boot(files: Vec<File>) -> Self {
        Self::boot_on(&PC, "x86_64", files)
    }

    /// Starts the one of this architecture with Docker's engine.
    #[track_caller]
    pub fn boot_docker(arch: &str, files: Vec<File>) -> Self {
        let machine = match arch {
            "aarch64" => &ARM,
            _ => &PC,
        };
        Self::boot_on(machine, &format!("{arch}-docker"), files)
    }

    /// Starts the one of this name below `target/board`.
    #[track_caller]
    fn boot_on(machine: &Machine, name: &str, files: Vec<File>) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let image = image(name);
        let console = machine.console;
        let text = |path: &str, text: &str| (path.to_owned(), 0o644, text.as_bytes().to_vec());
        let unit = "etc/systemd/system";
        let mut all = vec![
            text(&format!("{unit}/test-shell.service"), SHELL_UNIT),
            text(&format!("{unit}/multi-user.target.d/test.conf"), WANTS),
            text("usr/lib/test-shell", SHELL),
            text("etc/default/vdkr-agent", CHANNELS),
        ];
        all.extend(files);
        for (path, ..) in &mut all {
            *path = format!("overlay/{path}");
        }
        let mut initramfs = std::fs::read(image.join("initramfs")).expect("the board's initramfs");
        initramfs.extend(newc::archive(&all));
        std::fs::write(dir.path().join("initramfs"), initramfs).expect("write");

        let path = |name: &str| dir.path().join(name).display().to_string();
        let socket = |id: &str| {
            format!(
                "socket,id={id},path={},server=on,wait=off",
                path(&format!("{id}.sock"))
            )
        };
        let monitor = tool("vhost-device-vsock")
            .args(["--guest-cid", "3", "--socket", &path("vhost.sock")])
            .args(["--uds-path", &path("vsock.sock")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let vsock = Background(monitor.expect("vhost-device-vsock starts"));
        let vhost = dir.path().join("vhost.sock");
        wait_until("vhost-device-vsock", PATIENCE, || vhost.exists());
        let disk = image.join("disk");
        let mut qemu = tool(machine.program);
        qemu.args(["-M", machine.board, "-accel", "tcg"])
            .args(["-cpu", machine.cpu, "-m", "768"])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(image.join("kernel"))
            .args(["-initrd", &path("initramfs")])
            .arg("-append")
            .arg(format!(
                "console={console} panic=-1 cryptomgr.notests random.trust_cpu=on mitigations=off \
                 systemd.mask=serial-getty@{console}.service systemd.mask=getty@tty1.service \
                 systemd.mask=systemd-random-seed.service systemd.mask=apt-daily.timer"
            ))
            .args(["-serial", &format!("file:{}", path("console"))])
            .args(["-chardev", &socket("line")]);
        if machine.two_lines {
            qemu.args(["-serial", "chardev:line"]);
        }
        qemu.arg("-drive")
            .arg(format!(
                "file={},if=none,id=disk,format=raw,snapshot=on",
                disk.display()
            ))
            .args(["-device", "virtio-blk-pci,drive=disk"])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net",
            ])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &socket("agent")])
            .args([
                "-device",
                "virtserialport,nr=1,chardev=agent,name=vdkr.agent",
            ])
            .args(["-chardev", &socket("shell")])
            .args([
                "-device",
                "virtserialport,nr=2,chardev=shell,name=test.shell",
            ])
            // Its other end reads the memory of the machine.
            .args(["-machine", "memory-backend=memory", "-object"])
            .arg("memory-backend-memfd,id=memory,size=768M,share=on")
            .arg("-chardev")
            .arg(format!("socket,id=vsock,path={}", path("vhost.sock")))
            .args(["-device", "vhost-user-vsock-pci,chardev=vsock"]);
        let child = qemu.spawn().expect("the emulator starts");
        let qemu = Background(child);
        let shell = dir.path().join("shell.sock");
        wait_until("the emulator's sockets", Duration::from_mins(1), || {
            UnixStream::connect(&shell).is_ok()
        });
        let mut board = Self {
            _qemu: qemu,
            _vsock: vsock,
            shell: UnixStream::connect(&shell).expect("the shell's socket"),
            dir,
            asked: 0,
        };
        board.sh("true");
        board
    }

    /// Where QEMU has the socket of the port that the agent serves.
    pub fn port(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// Where QEMU has the socket of the serial line that the agent serves.
    pub fn line(&self) -> PathBuf {
        self.dir.path().join("line.sock")
    }

    /// Where vhost-device-vsock has the socket that leads to the board's vsock ports.
    pub fn vsock(&self) -> PathBuf {
        self.dir.path().join("vsock.sock")
    }

    /// Runs a script on the board as root, which has to succeed; gives what it wrote.
    #[track_caller]
    pub fn sh(&mut self, script: &str) -> String {
        let (status, text) = self.try_sh(script);
        assert_eq!(
            status,
            0,
            "{script}\n{text}\n--- console\n{}",
            self.console()
        );
        text
    }

    /// Runs a script on the board as root; gives its status and what it wrote.
    #[track_caller]
    pub fn try_sh(&mut self, script: &str) -> (i32, String) {
        self.try_sh_within(script, PATIENCE)
    }

    /// The same for one that may take longer than others.
    #[track_caller]
    pub fn try_sh_within(&mut self, script: &str, patience: Duration) -> (i32, String) {
        self.asked += 1;
        let (begin, end) = (
            format!("begin-{}-x", self.asked),
            format!("end-{}-x", self.asked),
        );
        // The words stand apart, so that an echo of the script is not taken for its output.
        let line = format!(
            "echo begin-{n}-''x; (\n{script}\n) </dev/null 2>&1; echo end-{n}-''x $?\n",
            n = self.asked
        );
        self.shell.write_all(line.as_bytes()).expect("write");
        let quick = Some(Duration::from_millis(500));
        self.shell.set_read_timeout(quick).expect("a time limit");
        let deadline = Instant::now() + patience;
        let mut seen = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.shell.read(&mut buffer) {
                Ok(0) => panic!("the board is gone\n{}", self.console()),
                Ok(length) => seen.extend_from_slice(&buffer[..length]),
                Err(_) => assert!(
                    Instant::now() < deadline,
                    "{script}: no end within {patience:?}\n{}\n--- console\n{}",
                    String::from_utf8_lossy(&seen),
                    self.console()
                ),
            }
            let text = String::from_utf8_lossy(&seen).replace('\r', "");
            let Some((_, after)) = text.split_once(&begin) else {
                continue;
            };
            if let Some((output, status)) = after.split_once(&end)
                && let Some((status, _)) = status.split_once('\n')
            {
                let output = output.strip_prefix('\n').unwrap_or(output).to_owned();
                return (status.trim().parse().expect("a status"), output);
            }
        }
    }

    /// The last lines of the board's console.
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.dir.path().join("console")).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

/// The directory that `cargo xtask board` made.
#[track_caller]
fn image(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of the running test");
    exe.ancestors()
        .map(|dir: &Path| dir.join("board").join(name))
        .find(|dir| dir.join("disk").is_file())
        .unwrap_or_else(|| panic!("target/board/{name} is missing; `cargo xtask board` makes it"))
        .canonicalize()
        .expect("the directory just seen")
}
