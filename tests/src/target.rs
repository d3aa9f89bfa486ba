//! A root file system that `bake` writes to, and programs for which its configuration is the system's.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::namespaces::as_root;
use crate::process::{run, tool};
use crate::registry::Registry;

/// A root file system with a policy and a search registry in `/etc/containers`, and what bake adds.
#[derive(Debug)]
pub struct Target {
    dir: TempDir,
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

impl Target {
    /// One that nothing was baked into.
    pub fn new() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("runtime")).unwrap();
        let containers = dir.path().join("rootfs/etc/containers");
        std::fs::create_dir_all(containers.join("registries.conf.d")).unwrap();
        std::fs::write(
            containers.join("policy.json"),
            r#"{"default":[{"type":"insecureAcceptAnything"}]}"#,
        )
        .unwrap();
        std::fs::write(
            containers.join("registries.conf"),
            "unqualified-search-registries = [\"other.invalid\"]\n",
        )
        .unwrap();
        Self { dir }
    }

    /// A directory for whatever a test needs beside it; home of the programs inside.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The root file system.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    /// Bakes, and expects success.
    #[track_caller]
    pub fn bake(&self, registry: &Registry, args: &[&str]) {
        let mut command = registry.command();
        command.arg("bake").arg("--rootfs").arg(self.root());
        run(command.args(args)).expect(0);
    }

    /// A command for which the target's `/etc/containers` is the system's: in a mount namespace.
    pub fn inside(&self, program: &str) -> Command {
        self.within(Path::new(tool(program).get_program()))
    }

    /// As [`Target::inside`], for a program at this path.
    pub fn within(&self, program: &Path) -> Command {
        let mut command = as_root();
        command
            .args(["sh", "-c"])
            .arg(
                "mount --bind \"$1\" /etc/containers || exit 1; shift; \"$@\"; status=$?; \
                 umount /etc/containers; exit $status",
            )
            .arg("sh")
            .arg(self.root().join("etc/containers"))
            .arg(program)
            .env("HOME", self.dir.path())
            .env("XDG_RUNTIME_DIR", self.dir.path().join("runtime"))
            .env_remove("XDG_CONFIG_HOME")
            .env_remove("DOCKER_CONFIG")
            .env_remove("REGISTRY_AUTH_FILE");
        command
    }

    /// podman with a store of its own.
    pub fn podman(&self) -> Command {
        let mut command = self.inside("podman");
        command
            .arg("--root")
            .arg(self.dir.path().join("podman"))
            .arg("--runroot")
            .arg(self.dir.path().join("podman-run"))
            .args(["--storage-driver", "vfs", "--events-backend", "none"])
            .args(["--cgroup-manager", "cgroupfs"]);
        command
    }
}
