//! From what a request asks for to what a container's first process is told: names become numbers,
//! and what cannot be had is refused.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::Path,
};

use rustix::fs::{major, minor};
use vdkr_core::{
    channel::message::{Sandbox, Seccomp},
    container::{capability, mounts},
};

use super::{
    RunError,
    device_filter::Extra,
    spec::{DeviceNode, Isolation, Mount, Network},
};

/// Kernel parameters outside `net` that belong to a container's own IPC objects.
const IPC_SYSCTLS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];
/// Most device nodes that a privileged container gets.
const MAX_DEVICES: usize = 1024;

/// What a container's processes may do, and the devices that they may open beside the usual ones.
pub fn resolve(sandbox: &Sandbox, network: Network) -> Result<(Isolation, Vec<Extra>), RunError> {
    let refused = |error: &dyn std::fmt::Display| RunError::Refused(error.to_string());
    let capabilities = if sandbox.privileged {
        capability::ALL
    } else {
        capability::resolve(&sandbox.cap_add, &sandbox.cap_drop).map_err(|error| refused(&error))?
    };
    sandbox.limits.check().map_err(|error| refused(&error))?;
    let rlimits = sandbox
        .ulimits
        .iter()
        .map(|limit| Ok((limit.number()?, limit.soft, limit.hard)))
        .collect::<Result<_, vdkr_core::container::limits::LimitError>>()
        .map_err(|error| refused(&error))?;
    check_sysctls(&sandbox.sysctls, &network, sandbox.ipc_host)?;
    let (devices, extra) = if sandbox.privileged {
        (all_devices(Path::new("/dev")), Vec::new())
    } else {
        chosen_devices(sandbox)?
    };
    let seccomp = match &sandbox.seccomp {
        Seccomp::Default if sandbox.privileged => Seccomp::Unconfined,
        other => other.clone(),
    };
    let isolation = Isolation {
        capabilities: capabilities.0,
        seccomp,
        no_new_privileges: sandbox.no_new_privileges,
        own_ipc: !sandbox.ipc_host,
        own_pids: !sandbox.pid_host,
        own_uts: !sandbox.uts_host,
        network,
        groups: sandbox.group_add.clone(),
        domainname: sandbox.domainname.clone(),
        devices,
        sysctls: sandbox.sysctls.clone(),
        rlimits,
        oom_score_adj: sandbox.oom_score_adj,
    };
    Ok((isolation, extra))
}

/// The file systems in memory that a request asks for.
pub fn tmpfs_mounts(sandbox: &Sandbox) -> Result<Vec<Mount>, RunError> {
    let mount = |tmpfs: &mounts::Tmpfs| {
        tmpfs
            .check()
            .map_err(|error| RunError::Refused(error.to_string()))?;
        Ok(Mount {
            kind: "tmpfs".to_owned(),
            target: tmpfs.target.clone(),
            options: tmpfs.options.clone(),
            asked: true,
        })
    };
    sandbox.tmpfs.iter().map(mount).collect()
}

/// Parameters that are not the container's own would be the machine's.
fn check_sysctls(
    sysctls: &BTreeMap<String, String>,
    network: &Network,
    ipc_host: bool,
) -> Result<(), RunError> {
    for (name, value) in sysctls {
        let error = |why: &str| RunError::Refused(format!("kernel parameter {name}: {why}"));
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if !name.bytes().all(legal) || name.split('.').any(str::is_empty) || value.contains('\0') {
            return Err(error("this is no name of a parameter"));
        }
        let ipc = IPC_SYSCTLS.contains(&name.as_str()) || name.starts_with("fs.mqueue.");
        let own = if name.starts_with("net.") {
            matches!(network, Network::None | Network::Bridge { .. })
        } else {
            ipc && !ipc_host
        };
        if !own {
            return Err(error(
                "it belongs to the whole machine and cannot be set for one container",
            ));
        }
    }
    Ok(())
}

fn node(source: &Path, target: &str) -> Option<DeviceNode> {
    let meta = fs::metadata(source).ok()?;
    let kind = meta.file_type();
    (kind.is_block_device() || kind.is_char_device()).then(|| DeviceNode {
        path: target.to_owned(),
        block: kind.is_block_device(),
        major: major(meta.rdev()),
        minor: minor(meta.rdev()),
        mode: meta.mode() & 0o777,
    })
}

fn chosen_devices(sandbox: &Sandbox) -> Result<(Vec<DeviceNode>, Vec<Extra>), RunError> {
    let mut devices = (Vec::new(), Vec::new());
    for device in &sandbox.devices {
        device
            .check()
            .map_err(|error| RunError::Refused(error.to_string()))?;
        let node = node(Path::new(&device.source), &device.target).ok_or_else(|| {
            RunError::Refused(format!("the machine has no device {}", device.source))
        })?;
        devices.1.push(Extra {
            block: node.block,
            major: node.major,
            minor: node.minor,
            read: device.access.contains('r'),
            write: device.access.contains('w'),
        });
        devices.0.push(node);
    }
    Ok(devices)
}

/// Every device of the machine but terminals, which a container has of its own.
fn all_devices(dir: &Path) -> Vec<DeviceNode> {
    let mut found = Vec::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, Ok(kind)) = (entry.path(), entry.file_type()) else {
                continue;
            };
            let own = [
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/dev/ptmx",
                "/dev/console",
            ];
            let own = own.iter().any(|own| path == Path::new(own));
            if kind.is_dir() && !own {
                waiting.push(path);
            } else if !own && found.len() < MAX_DEVICES {
                let target = path.to_string_lossy();
                found.extend(node(&path, &target).filter(|_| !kind.is_symlink()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use vdkr_core::container::mounts::Device;

    use super::*;

    #[test]
    fn privileges_are_resolved() {
        let sandbox = Sandbox::default();
        let (isolation, extra) = resolve(&sandbox, Network::None).unwrap();
        assert_eq!(isolation.capabilities, capability::DEFAULT.0);
        assert_eq!(isolation.seccomp, Seccomp::Default);
        assert!(extra.is_empty() && isolation.own_pids && isolation.own_ipc && isolation.own_uts);
        let sandbox = Sandbox {
            privileged: true,
            ..Sandbox::default()
        };
        let (isolation, _) = resolve(&sandbox, Network::None).unwrap();
        assert_eq!(isolation.capabilities, capability::ALL.0);
        assert_eq!(isolation.seccomp, Seccomp::Unconfined);
        assert!(
            isolation
                .devices
                .iter()
                .any(|node| node.path == "/dev/null")
        );
    }

    #[test]
    fn devices_come_with_their_numbers() {
        let device = |source: &str| Sandbox {
            devices: vec![Device {
                source: source.to_owned(),
                target: "/dev/other".to_owned(),
                access: "r".to_owned(),
            }],
            ..Sandbox::default()
        };
        let (isolation, extra) = resolve(&device("/dev/null"), Network::None).unwrap();
        let node = &isolation.devices[0];
        assert_eq!(
            (node.path.as_str(), node.block, node.major, node.minor),
            ("/dev/other", false, 1, 3)
        );
        assert_eq!((extra[0].read, extra[0].write), (true, false));
        for missing in ["/dev/no-such-device", "/dev/../etc/passwd", "/etc/passwd"] {
            assert!(
                resolve(&device(missing), Network::None).is_err(),
                "{missing}"
            );
        }
    }

    #[test]
    fn only_a_containers_own_parameters_are_set() {
        let check = |name: &str, network: &Network, ipc_host| {
            let sysctls = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            check_sysctls(&sysctls, network, ipc_host).is_ok()
        };
        let none = Network::None;
        assert!(check("net.ipv4.ip_forward", &none, false));
        assert!(!check("net.ipv4.ip_forward", &Network::Host, false));
        assert!(!check("net.ipv4.ip_forward", &Network::Process(1), false));
        assert!(check("kernel.shmmax", &none, false) && !check("kernel.shmmax", &none, true));
        assert!(check("fs.mqueue.msg_max", &none, false));
        for bad in [
            "kernel.hostname",
            "vm.swappiness",
            "kernel/shmmax",
            "net..ipv4",
            "net.ipv4.../x",
            "",
        ] {
            assert!(!check(bad, &none, false), "{bad}");
        }
    }
}
