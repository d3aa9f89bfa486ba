//! A full image for tests: Debian with systemd, as a board has it, and the agent as its service.
//!
//! `target/board/<name>` holds `kernel`, `initramfs` and `disk`. The kernel is that of the VM image;
//! the initramfs loads its modules, sets the network up, copies what lies below `/overlay` into
//! the disk's root file system (the agent, its unit, and what a test appends as one more archive),
//! and goes on to systemd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::{self, Apt};
use crate::cache::{self, Key, file_sha256};
use crate::fixtures;
use crate::image;
use crate::newc::Archive;
use crate::run::{need_program, run};
use crate::workspace::{Arch, Workspace};

/// What makes a minimal Debian one that boots, and has a trust store.
const PACKAGES: [&str; 3] = ["systemd", "systemd-sysv", "ca-certificates"];

/// What is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// Debian with systemd: the board of the tests.
    Plain,
    /// Docker's engine too, of this architecture: the peer of benchmarks.
    Docker(Arch),
}

impl Content {
    /// Architecture of the board.
    pub(crate) fn arch(self) -> Arch {
        match self {
            Self::Plain => Arch::X86_64,
            Self::Docker(arch) => arch,
        }
    }

    fn packages(self) -> Vec<&'static str> {
        let more: &[&str] = match self {
            Self::Plain => &[],
            Self::Docker(_) => &["docker.io"],
        };
        [&PACKAGES, more].concat()
    }

    /// Size of the disk; it is sparse.
    fn disk(self) -> &'static str {
        match self {
            Self::Plain => "1G",
            Self::Docker(_) => "4G",
        }
    }

    /// Name of the link below `target/board`.
    fn name(self) -> String {
        match self {
            Self::Plain => self.arch().name().to_owned(),
            Self::Docker(arch) => format!("{}-docker", arch.name()),
        }
    }
}

/// The first program: from an initramfs to the disk.
const INIT: &str = "\
#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /root
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for module in $($b cat /modules/load.list); do $b insmod /modules/$module; done
$b cat /modules/later.list | while read name files; do
  for module in $files; do $b insmod /modules/$module; done
done
tries=0
until $b mount -t ext4 /dev/vda /root; do
  tries=$((tries + 1))
  [ $tries -lt 300 ] || exec $b sh
  $b sleep 0.1
done
$b ip link set lo up
$b ip address add 10.0.2.15/24 dev eth0
$b ip link set eth0 up
$b ip route add default via 10.0.2.2
$b cp -a /overlay/. /root/
[ -e /root/etc/passwd ] || . /unpacked.sh
$b ln -sf /etc/systemd/system/vdkr-agent.service /root/etc/systemd/system/multi-user.target.wants/
for dir in dev proc sys; do $b mount --move /$dir /root/$dir; done
exec $b switch_root /root /lib/systemd/systemd
";

/// What the packages' own scripts would have done, where the packages are of another architecture and were
/// only unpacked.
const UNPACKED: &str = "\
for file in passwd group; do
  $b cp /root/usr/share/base-passwd/$file.master /root/etc/$file
done
echo docker:x:999: >> /root/etc/group
$b rm -rf /root/var/run
$b ln -s /run /root/var/run
echo 0123456789abcdef0123456789abcdef > /root/etc/machine-id
units=/lib/systemd/system
for unit in multi-user.target/containerd.service multi-user.target/docker.service \
    sockets.target/docker.socket; do
  $b mkdir -p /root/etc/systemd/system/${unit%/*}.wants
  $b ln -s $units/${unit#*/} /root/etc/systemd/system/${unit%/*}.wants/
done
";

/// Makes it around an agent and returns the link to it.
pub(crate) fn build(workspace: &Workspace, agent: &Path, content: Content) -> Result<PathBuf> {
    let apt = Apt::open(workspace)?;
    let arch = content.arch();
    let busybox = apt.fetch("busybox-static", arch, false)?;
    let disk = disk(workspace, &apt, content)?;
    // `image::kernel` opens it again.
    drop(apt);
    let kernel = image::kernel(workspace, arch)?;
    let unit = workspace.root.join("images/systemd/vdkr-agent.service");
    let key = Key::new("board", 1)
        .with("kernel", kernel.as_os_str().as_encoded_bytes())
        .with("disk", disk.as_os_str().as_encoded_bytes())
        .with("busybox", &busybox.sha256)
        .with("agent", file_sha256(agent)?)
        .with("init", INIT)
        .with("unpacked", UNPACKED)
        .with_file(&unit)?
        .finish();
    let entry = cache::entry(workspace, "board", &key, |place| {
        eprintln!("packing the board");
        for (from, name) in [
            (kernel.join("kernel"), "kernel"),
            (disk.join("disk"), "disk"),
        ] {
            fs::hard_link(&from, place.join(name))
                .or_else(|_| fs::copy(&from, place.join(name)).map(drop))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        let mut archive = Archive::default();
        for dir in ["bin", "dev", "modules", "overlay", "overlay/etc"] {
            archive.directory(dir);
        }
        archive.device("dev/console", 0o600, 5, 1);
        archive.device("dev/null", 0o666, 1, 3);
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("unpacked.sh", 0o644, UNPACKED.as_bytes());
        let program = fixtures::busybox_of(place, &busybox.file)?;
        archive.file("bin/busybox", 0o755, &fs::read(program)?);
        for file in cache::files_below(&kernel.join("modules"))? {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            archive.file(&format!("modules/{name}"), 0o644, &fs::read(&file)?);
        }
        for list in ["load.list", "later.list"] {
            archive.file(
                &format!("modules/{list}"),
                0o644,
                &fs::read(kernel.join(list))?,
            );
        }
        for dir in [
            "etc/systemd",
            "etc/systemd/system",
            "etc/systemd/system/multi-user.target.wants",
            "usr",
            "usr/bin",
        ] {
            archive.directory(&format!("overlay/{dir}"));
        }
        archive.file("overlay/usr/bin/vdkr-agent", 0o755, &fs::read(agent)?);
        let unit = fs::read(&unit)?;
        archive.file(
            "overlay/etc/systemd/system/vdkr-agent.service",
            0o644,
            &unit,
        );
        archive.file("overlay/etc/hostname", 0o644, b"board\n");
        archive.file("overlay/etc/resolv.conf", 0o644, b"nameserver 10.0.2.3\n");
        fs::write(place.join("initramfs"), archive.finish())?;
        cache::remove(&place.join(busybox.file.file_stem().unwrap_or_default()))
    })?;
    cache::link(workspace, &format!("board/{}", content.name()), &entry)
}

/// The disk with Debian on it. Nobody needs to be root for it.
fn disk(workspace: &Workspace, apt: &Apt, content: Content) -> Result<PathBuf> {
    let (arch, packages, size) = (content.arch(), content.packages(), content.disk());
    let install = match arch == Arch::HOST {
        true => apt::Install::Configured,
        false => apt::Install::Unpacked,
    };
    let fakeroot = need_program("fakeroot", "fakeroot")?;
    let mke2fs = need_program("mke2fs", "e2fsprogs")?;
    let key = Key::new("board-disk", 1)
        .with("suite", &apt.suite)
        .with("arch", arch.name())
        .with("packages", packages.join(" "))
        .with("size", size)
        .finish();
    cache::entry(workspace, "board-disk", &key, |place| {
        eprintln!("making a Debian with systemd");
        let archive = place.join("root.tar");
        apt::bootstrap(apt, arch, install, &packages, &archive)?;
        // Whoever unpacks it, owners, modes and devices reach the disk as they are in the archive; what
        // not even its owner may read is made readable behind fakeroot's back.
        let script = "mkdir root && tar -xpf root.tar --numeric-owner -C root && \
                      env -u LD_PRELOAD chmod -R u+rwX root && \
                      \"$0\" -q -t ext4 -m 0 -E root_owner=0:0 -d root disk \"$1\"";
        run(Command::new(fakeroot)
            .args(["--", "sh", "-c", script])
            .arg(mke2fs)
            .arg(size)
            .current_dir(place))?;
        fs::remove_file(&archive)?;
        cache::remove(&place.join("root"))
    })
}
