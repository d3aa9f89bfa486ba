//! The agent's side of a container: directories, cgroup, streams, and the process that runs it.

use std::{
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
};

use nix::{
    fcntl::OFlag,
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::pipe2,
};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::unix::pipe,
};

use super::{
    ContainerSpec, Report, RunError,
    cgroup::Cgroup,
    device_filter,
    report::{borrow, send_with_fds},
    spec::{self, BoundFile, Process, Root},
};
use crate::watch::watch;

/// Bytes that lie between a container and the agent: few switches between the two. Not worth
/// failing for: an ordinary user has a limit.
const PIPE_SIZE: usize = 256 * 1024;
/// Longest host name (RFC 1123 label and dots).
const MAX_HOSTNAME: usize = 63;

/// The image's part of a container.
#[derive(Clone, Debug)]
pub struct Image {
    /// Directory under which the layers are.
    pub layers_dir: PathBuf,
    /// Layer directories, lowest first.
    pub layers: Vec<PathBuf>,
}

/// The request's part of a container.
#[derive(Clone, Debug)]
pub struct Options {
    /// Host name inside.
    pub hostname: String,
    /// The first process.
    pub process: Process,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Whether standard input comes from the host; it is empty otherwise.
    pub stdin: bool,
}

/// The agent's ends of a container's streams; a terminal comes later, by [`Report::Terminal`].
#[derive(Debug)]
pub struct Streams {
    /// Standard input, unless it is empty.
    pub stdin: Option<pipe::Sender>,
    /// Standard output.
    pub stdout: pipe::Receiver,
    /// Standard error.
    pub stderr: pipe::Receiver,
}

/// A container that was started. Call [`Container::remove`] at its end.
#[derive(Debug)]
pub struct Container {
    id: String,
    dir: PathBuf,
    cgroup: Option<Cgroup>,
    monitor: Child,
    reports: AsyncFd<OwnedFd>,
    pidfd: Option<OwnedFd>,
    killed: bool,
}

impl Container {
    /// Makes a container beneath `containers_dir` and starts it. Its streams are `None` when it
    /// gets a terminal.
    ///
    /// Must be called inside a tokio runtime. What was made before a failure is removed again.
    pub fn start(
        containers_dir: &Path,
        id: &str,
        image: &Image,
        options: Options,
    ) -> Result<(Self, Option<Streams>), RunError> {
        let dir = containers_dir.join(id);
        let cgroup = Cgroup::create(id);
        let started = prepare(&dir, image, options, cgroup.as_ref())
            .and_then(|(spec, stdin)| spawn(&spec, stdin));
        match started {
            Ok((monitor, reports, streams)) => {
                let id = id.to_owned();
                Ok((
                    Self {
                        id,
                        dir,
                        cgroup,
                        monitor,
                        reports,
                        pidfd: None,
                        killed: false,
                    },
                    streams,
                ))
            }
            Err(error) => {
                let _ = fs::remove_dir_all(&dir);
                let _ = cgroup.map(Cgroup::remove);
                Err(error)
            }
        }
    }

    /// Its id, 64 hex digits.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The next news of it, and the terminal's master side with [`Report::Terminal`]. `None` when
    /// its monitor ended, which comes after [`Report::Exited`] or [`Report::Failed`].
    pub async fn next_report(&mut self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let receive = |fd: &OwnedFd| Report::receive(fd.as_fd()).map_err(io::Error::from);
        let Some((report, mut fds)) = self.reports.async_io(Interest::READABLE, receive).await?
        else {
            return Ok(None);
        };
        let fd = (!fds.is_empty()).then(|| fds.remove(0));
        if matches!(report, Report::Created { .. }) {
            self.pidfd = fd;
            if self.killed {
                self.kill();
            }
            return Ok(Some((report, None)));
        }
        Ok(Some((report, fd)))
    }

    /// Sends a signal to its first process, which ignores those that it has no handler for (other
    /// than `KILL`), as the first process of a system does.
    pub fn signal(&self, number: u8) -> io::Result<()> {
        let signal = Signal::from_named_raw(i32::from(number));
        match (&self.pidfd, signal) {
            (Some(pidfd), Some(signal)) => Ok(pidfd_send_signal(pidfd, signal)?),
            (_, None) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "no such signal",
            )),
            (None, _) => Ok(()),
        }
    }

    /// Kills everything in it, as soon as there is something to kill.
    pub fn kill(&mut self) {
        self.killed = true;
        if let Some(pidfd) = &self.pidfd {
            // The first process takes all others of its PID namespace with it; the group also
            // reaches what was put there from outside.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
            let _ = self.cgroup.as_ref().map(Cgroup::kill);
        }
    }

    /// Removes what is left of it, killing it first if it still runs. Blocks for a moment.
    pub fn remove(mut self) -> Result<(), RunError> {
        self.kill();
        // Without the agent the monitor kills what it may have started meanwhile.
        drop(self.reports);
        self.monitor
            .wait()
            .map_err(RunError::io("wait for the container's monitor"))?;
        let group = self.cgroup.map_or(Ok(()), Cgroup::remove);
        fs::remove_dir_all(&self.dir)
            .map_err(RunError::io(format!("remove {}", self.dir.display())))?;
        group.map_err(RunError::io(format!(
            "remove the cgroup of container {}",
            self.id
        )))
    }
}

/// What an agent that was killed left behind. To be listed before the first container is made, and
/// removed at leisure.
pub fn leftovers(containers_dir: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(containers_dir) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// A new container id.
pub fn new_id() -> io::Result<String> {
    let mut bytes = [0; 32];
    let mut filled = 0;
    while filled < bytes.len() {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
    }
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16).unwrap_or('0');
    Ok(bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(byte & 15)])
        .collect())
}

/// Checks a host name before it comes to the kernel and into `/etc/hosts`.
pub fn check_hostname(name: &str) -> Result<(), RunError> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if name.is_empty() || name.len() > MAX_HOSTNAME || !name.bytes().all(legal) {
        return Err(RunError::BadHostname(name.to_owned()));
    }
    Ok(())
}

fn prepare(
    dir: &Path,
    image: &Image,
    options: Options,
    cgroup: Option<&Cgroup>,
) -> Result<(ContainerSpec, bool), RunError> {
    check_hostname(&options.hostname)?;
    let make = |path: &Path, mode: u32| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(RunError::io(format!("make {}", path.display())))
    };
    make(dir, 0o700)?;
    // The upper directory becomes the container's `/`.
    make(&dir.join("upper"), 0o755)?;
    for name in ["work", "merged", "empty"] {
        make(&dir.join(name), 0o755)?;
    }

    let base = &image.layers_dir;
    let mut lower: Vec<PathBuf> = image
        .layers
        .iter()
        .rev()
        .map(|l| relative(base, l))
        .collect();
    if lower.is_empty() {
        lower.push(relative(base, &dir.join("empty")));
    }
    let files = write_files(dir, &options.hostname)?;
    let spec = ContainerSpec {
        root: Root {
            base: base.clone(),
            lower,
            upper: relative(base, &dir.join("upper")),
            work: relative(base, &dir.join("work")),
            merged: dir.join("merged"),
            read_only: options.read_only,
        },
        hostname: options.hostname,
        process: options.process,
        mounts: spec::default_mounts(),
        files,
        masked_paths: spec::default_masked_paths(),
        readonly_paths: spec::default_readonly_paths(),
        cgroup: cgroup.map(|group| group.path().to_owned()),
        devices_filtered: cgroup.is_some_and(|group| device_filter::attach(group.path()).is_ok()),
    };
    Ok((spec, options.stdin))
}

/// The files of name resolution; those of the agent's own machine hold for its containers, which
/// share its network.
fn write_files(dir: &Path, hostname: &str) -> Result<Vec<BoundFile>, RunError> {
    let resolv = fs::read("/etc/resolv.conf").unwrap_or_default();
    let hosts = format!(
        "127.0.0.1\tlocalhost {hostname}\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n"
    );
    let contents = [
        ("resolv.conf", resolv),
        ("hosts", hosts.into_bytes()),
        ("hostname", format!("{hostname}\n").into_bytes()),
    ];
    contents
        .into_iter()
        .map(|(name, bytes)| {
            let source = dir.join(name);
            fs::write(&source, bytes)
                .map_err(RunError::io(format!("write {}", source.display())))?;
            Ok(BoundFile {
                source,
                target: format!("/etc/{name}"),
            })
        })
        .collect()
}

/// `to` as seen from `base`, both absolute; a relative `to` is taken to be seen from there already.
fn relative(base: &Path, to: &Path) -> PathBuf {
    if to.is_relative() {
        return to.to_owned();
    }
    let (base, to): (Vec<_>, Vec<_>) = (base.components().collect(), to.components().collect());
    let common = base
        .iter()
        .zip(&to)
        .take_while(|(left, right)| left == right)
        .count();
    let up = base.iter().skip(common).map(|_| Component::ParentDir);
    up.chain(to.into_iter().skip(common)).collect()
}

type Started = (Child, AsyncFd<OwnedFd>, Option<Streams>);

/// Starts the monitor and hands it spec and streams.
fn spawn(spec: &ContainerSpec, stdin: bool) -> Result<Started, RunError> {
    let step = |error: nix::Error| RunError::io("start the container's monitor")(error.into());
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )
    .map_err(step)?;
    let monitor = Command::new("/proc/self/exe")
        .arg("container-init")
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()
        .map_err(RunError::io("start the container's monitor"))?;
    hand_over(spec, stdin, ours, monitor)
}

/// Sends spec and streams; kills the monitor when that fails.
fn hand_over(
    spec: &ContainerSpec,
    stdin: bool,
    socket: OwnedFd,
    mut monitor: Child,
) -> Result<Started, RunError> {
    let sent = (|| -> io::Result<(AsyncFd<OwnedFd>, Option<Streams>)> {
        let mut file = fs::File::from(rustix::fs::memfd_create(
            "container-spec",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        file.write_all(&serde_json::to_vec(spec)?)?;
        let mut fds = vec![OwnedFd::from(file)];
        let streams = if spec.process.tty {
            None
        } else {
            Some(open_streams(stdin, &mut fds)?)
        };
        send_with_fds(socket.as_fd(), b"spec", &borrow(&fds))?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok((watch(socket, Interest::READABLE)?, streams))
    })();
    match sent {
        Ok((reports, streams)) => Ok((monitor, reports, streams)),
        Err(error) => {
            let _ = monitor.kill();
            let _ = monitor.wait();
            Err(RunError::io("hand the container to its monitor")(error))
        }
    }
}

/// Opens three pipes; the container's ends are added to `fds`.
fn open_streams(stdin: bool, fds: &mut Vec<OwnedFd>) -> io::Result<Streams> {
    let stdin = if stdin {
        let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
        let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_SIZE);
        fds.push(theirs);
        rustix::io::ioctl_fionbio(&ours, true)?;
        Some(pipe::Sender::from_owned_fd(ours)?)
    } else {
        fds.push(fs::File::open("/dev/null")?.into());
        None
    };
    let mut output = || -> io::Result<pipe::Receiver> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_SIZE);
        fds.push(theirs);
        rustix::io::ioctl_fionbio(&ours, true)?;
        pipe::Receiver::from_owned_fd(ours)
    };
    Ok(Streams {
        stdin,
        stdout: output()?,
        stderr: output()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_relative() {
        let cases = [
            ("/state/layers", "/state/layers/ab", "ab"),
            (
                "/state/layers",
                "/state/containers/x/upper",
                "../containers/x/upper",
            ),
            ("/a/b", "/c", "../../c"),
            ("/a", "short", "short"),
        ];
        for (base, to, expected) in cases {
            assert_eq!(
                relative(Path::new(base), Path::new(to)),
                Path::new(expected)
            );
        }
    }

    #[test]
    fn host_names_are_checked_before_they_reach_a_file() {
        for good in ["a", "box-1", "a.example.org", "my_box", &"x".repeat(63)] {
            assert!(check_hostname(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a\n127.0.0.1 evil", "a/b", &"x".repeat(64), "é"] {
            assert!(check_hostname(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_differ_and_have_the_length_of_a_digest() {
        let (one, two) = (new_id().unwrap(), new_id().unwrap());
        assert_eq!(one.len(), 64);
        assert_ne!(one, two);
    }

    #[test]
    fn leftovers_are_listed_once() {
        let state = tempfile::tempdir().unwrap();
        let containers = state.path().join("containers");
        assert!(leftovers(&containers).unwrap().is_empty());
        fs::create_dir_all(containers.join("old/upper/etc")).unwrap();
        let old = leftovers(&containers).unwrap();
        fs::create_dir(containers.join("new")).unwrap();
        assert_eq!(old, [containers.join("old")]);
    }
}
