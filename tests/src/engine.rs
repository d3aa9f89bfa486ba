//! Docker's engine or podman, its command and a registry of ours on a computer of their own: in namespaces where
//! the only network is the loopback interface, so that the engine can be given certificates, and where
//! `/etc/docker` is theirs.

use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::namespaces::{as_root, as_whole_root};
use crate::process::{Ran, program, tool, wait_until};

/// An engine on a busy machine.
const PATIENCE: Duration = Duration::from_mins(2);
/// An address that is nobody's (RFC 5737). The engine checks no certificate on 127.0.0.0/8.
pub const ADDRESS: &str = "192.0.2.9";

/// Sets the computer up, starts the engine that `$3` names, and performs what comes on stdin: one number for each file
/// of commands. Everything ends with stdin.
const COMPUTER: &str = r#"
d=$1; cd "$d" || exit 1
ip link set lo up && ip address add "$2/32" dev lo || exit 1
mkdir etc && mount -t tmpfs tmpfs etc && mkdir etc/.real && mount --rbind /etc etc/.real || exit 1
for name in /etc/*; do ln -s "/etc/.real/${name##*/}" etc/ || exit 1; done
rm -f etc/docker etc/hosts && mkdir etc/docker && echo '127.0.0.1 localhost' >etc/hosts || exit 1
mount --rbind etc /etc || exit 1
trap 'test -z "$pids" || { kill $pids; wait $pids; }' EXIT
case $3 in
docker)
containerd --config /dev/null --root "$d/c/root" --state "$d/c/state" --address "$d/c.sock" \
    >containerd.log 2>&1 & containerd=$!; pids=$containerd
until test -S c.sock; do kill -0 $containerd || exit 1; sleep 0.1; done
dockerd --storage-driver vfs --data-root "$d/data" --exec-root "$d/exec" --pidfile "$d/pid" \
    --containerd "$d/c.sock" --host "unix://$d/d.sock" --bridge none --userland-proxy=false \
    --iptables=false --ip6tables=false >dockerd.log 2>&1 & dockerd=$!
trap 'kill $dockerd; wait $dockerd; kill $containerd; wait $containerd' EXIT
until docker version >/dev/null 2>&1; do kill -0 $dockerd || exit 1; sleep 0.1; done
;;
podman)
# What it runs containers with knows a hierarchy of version 2 alone.
test -e /sys/fs/cgroup/cgroup.controllers ||
    { umount -l /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; } 2>/dev/null
printf '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\ncgroups = "disabled"\n' >containers.conf
printf '[storage]\ndriver = "vfs"\ngraphroot = "%s"\nrunroot = "%s"\n' "$d/data" "$d/run" >storage.conf
podman --cgroup-manager cgroupfs --events-backend file system service --time 0 "unix://$d/d.sock" \
    >podman.log 2>&1 & pids=$!
# It leaves somebody with the status of each process for five minutes.
trap 'kill $pids; wait $pids
    for process in /proc/[0-9]*; do
        case $(tr "\0" " " 2>/dev/null <"$process/cmdline") in
        *conmon*"$d/"*) kill -9 "${process#/proc/}" ;;
        esac
    done' EXIT
until test -S d.sock; do kill -0 $pids || exit 1; sleep 0.1; done
;;
esac
: >ready
while read -r number; do
    sh "$number.sh" >"$number.out" 2>"$number.err" </dev/null
    echo $? >"$number.new" && mv "$number.new" "$number.code"
done
test ! -e end.sh || sh end.sh
"#;

/// The computer; it ends with the test.
#[derive(Debug)]
pub struct Computer {
    dir: TempDir,
    shell: Child,
    commands: Option<ChildStdin>,
    performed: std::cell::Cell<usize>,
}

impl Computer {
    /// Starts it with docker's engine and waits until that answers.
    #[track_caller]
    pub fn start() -> Self {
        let needs = ["containerd", "dockerd", "runc", "docker", "ip"];
        Self::with("docker", &needs, as_root())
    }

    /// Starts it with an engine (`docker`, `podman`) that runs containers, where whoever runs the test
    /// may have that.
    #[track_caller]
    pub fn that_runs(engine: &str) -> Self {
        let needs: &[&str] = match engine {
            "docker" => &[
                "containerd",
                "containerd-shim-runc-v2",
                "dockerd",
                "runc",
                "docker",
            ],
            _ => &["podman"],
        };
        Self::with(engine, needs, as_whole_root())
    }

    #[track_caller]
    fn with(engine: &str, needs: &[&str], mut command: Command) -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        // What is not there is said now, and not in a log.
        for name in needs {
            tool(name);
        }
        command
            .arg(tool("unshare").get_program())
            .args(["--net", "sh", "-c", COMPUTER, "sh"])
            .arg(dir.path())
            .args([ADDRESS, engine])
            .env("HOME", dir.path())
            .env("CONTAINERS_CONF", dir.path().join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", dir.path().join("storage.conf"))
            .env("DOCKER_HOST", Self::host(dir.path()))
            .env("PATH", path())
            .env_remove("DOCKER_CONFIG")
            .env_remove("XDG_RUNTIME_DIR")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).expect("a log"));
        let mut shell = command.spawn().expect("run a shell in namespaces");
        let commands = shell.stdin.take();
        let mut computer = Self {
            dir,
            shell,
            commands,
            performed: std::cell::Cell::new(0),
        };
        wait_until("the engine answers", PATIENCE, || {
            let ended = computer.shell.try_wait().expect("wait for a shell");
            assert!(ended.is_none(), "no engine: {}", computer.logs());
            computer.path("ready").exists()
        });
        computer
    }

    fn host(dir: &Path) -> String {
        format!("unix://{}", dir.join("d.sock").display())
    }

    /// A file of the user's.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What was said by those who run in the background.
    pub fn logs(&self) -> String {
        let logs = [
            "log",
            "containerd.log",
            "dockerd.log",
            "podman.log",
            "agent.log",
        ];
        let texts = logs.map(|name| std::fs::read_to_string(self.path(name)).unwrap_or_default());
        texts.concat()
    }

    /// Performs commands of the shell there.
    #[track_caller]
    pub fn sh(&self, commands: &str) -> Ran {
        let number = self.performed.get();
        self.performed.set(number + 1);
        let file = |end: &str| self.path(&format!("{number}.{end}"));
        std::fs::write(file("sh"), commands).expect("write commands");
        let mut to = self.commands.as_ref().expect("a shell that runs");
        writeln!(to, "{number}").expect("a shell that listens");
        wait_until(commands, PATIENCE, || file("code").exists());
        let text = |end: &str| std::fs::read(file(end)).expect("what was said");
        let code = String::from_utf8_lossy(&text("code")).trim().to_owned();
        Ran {
            status: ExitStatus::from_raw(code.parse::<i32>().expect("a status") << 8),
            stdout: text("out"),
            stderr: String::from_utf8_lossy(&text("err")).into_owned(),
        }
    }

    /// Performs one command there.
    #[track_caller]
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        let words = words.into_iter().map(quoted);
        self.sh(&words.collect::<Vec<_>>().join(" "))
    }

    /// `docker` there.
    #[track_caller]
    pub fn docker<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        self.run(std::iter::once("docker").chain(words))
    }

    /// Performs commands of the shell at the computer's end.
    pub fn at_end(&self, commands: &str) {
        let path = self.path("end.sh");
        let before = std::fs::read_to_string(&path).unwrap_or_default();
        std::fs::write(path, format!("{before}{commands}\n")).expect("write commands");
    }

    /// Starts a registry of ours at this host and port; it is stopped with the computer.
    #[track_caller]
    pub fn registry(&self, host: &str, variables: &[(&str, &str)]) -> RegistryThere<'_> {
        let mut prefix = String::from("env");
        let storage = self.path(&format!("storage-{host}"));
        let own = [
            ("CONTAINER_REGISTRY_URL", host),
            (
                "CONTAINER_REGISTRY_STORAGE",
                storage.to_str().unwrap_or_default(),
            ),
        ];
        for (name, value) in own.iter().chain(variables) {
            prefix += &format!(" {name}={}", quoted(value));
        }
        prefix += &format!(
            " {}",
            quoted(&program("container-registry").display().to_string())
        );
        self.at_end(&format!("{prefix} stop"));
        let registry = RegistryThere {
            computer: self,
            host: host.to_owned(),
            prefix,
            storage: storage.clone(),
        };
        registry.run(["start", "--listen", "0.0.0.0"]).expect(0);
        registry
    }
}

impl Drop for Computer {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.shell.wait();
    }
}

/// A registry on that computer.
#[derive(Debug)]
pub struct RegistryThere<'a> {
    computer: &'a Computer,
    host: String,
    prefix: String,
    storage: PathBuf,
}

impl RegistryThere<'_> {
    /// `HOST:PORT`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Its storage.
    pub fn storage(&self) -> &Path {
        &self.storage
    }

    /// Performs a command of `container-registry` for it.
    #[track_caller]
    pub fn run<'a>(&self, words: impl IntoIterator<Item = &'a str>) -> Ran {
        let mut command = self.prefix.clone();
        for word in words {
            command.push(' ');
            command += &quoted(word);
        }
        self.computer.sh(&command)
    }
}

/// `PATH` with the places of the system's own programs, which an ordinary user's may lack.
fn path() -> std::ffi::OsString {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    std::env::join_paths(all).expect("places without colons")
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
