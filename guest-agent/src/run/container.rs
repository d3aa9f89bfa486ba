//! The agent's side of a container: directories, cgroup, streams, and the process that runs it.

use std::{
    cell::{Cell, RefCell},
    fs,
    io::{self, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::DirBuilderExt,
    },
    path::{Component, Path, PathBuf},
    process::{Child, Command, Stdio},
    rc::Rc,
};

use nix::{
    fcntl::OFlag,
    sys::socket::{AddressFamily, SockFlag, SockType, socketpair},
    unistd::pipe2,
};
use rustix::process::{Signal, pidfd_send_signal};
use tokio::io::{Interest, unix::AsyncFd};
use vdkr_core::channel::message::Sandbox;

use super::{
    ContainerSpec, Report, RunError,
    cgroup::{self, Cgroup},
    device_filter, isolation, names,
    pipes::{Reader, Writer},
    report::{borrow, send_with_fds},
    spec::{self, BoundFile, FilesJob, IdleRoot, InitMessage, Network, Process, Root, Volume},
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
    /// What is mounted beside the image.
    pub volumes: Vec<Volume>,
    /// Whether standard input comes from the host; it is empty otherwise.
    pub stdin: bool,
    /// Whether a small first process of the agent's stands before the command.
    pub init: bool,
    /// What it may do and use.
    pub sandbox: Sandbox,
    /// Its network.
    pub network: Network,
    /// Directory of the container whose files of name resolution hold here too.
    pub shared_files: Option<PathBuf>,
}

/// The agent's ends of a container's streams; a terminal comes later, by [`Report::Terminal`].
#[derive(Debug)]
pub struct Streams {
    /// Standard input, unless it is empty.
    pub stdin: Option<Writer>,
    /// Standard output.
    pub stdout: Reader,
    /// Standard error.
    pub stderr: Reader,
}

/// A container that was started, or one more process in it. Call [`Container::take_remains`] at its
/// end.
pub struct Container {
    spec: Option<ContainerSpec>,
    remains: Cell<Option<Remains>>,
    cgroup: Option<PathBuf>,
    reports: RefCell<Option<Rc<AsyncFd<OwnedFd>>>>,
    pidfd: RefCell<Option<OwnedFd>>,
    killed: Cell<bool>,
}

/// What has to be cleared away when a container has ended.
#[derive(Debug)]
pub struct Remains {
    cgroup: Option<Cgroup>,
    monitor: Child,
}

impl Container {
    /// Makes a container in its directory `dir` and starts it. Its streams are `None` when it
    /// gets a terminal. What it writes outlives it when it is `lasting`.
    ///
    /// Must be called inside a tokio runtime.
    pub fn start(
        dir: &Path,
        id: &str,
        image: &Image,
        options: Options,
        lasting: bool,
    ) -> Result<(Self, Option<Streams>), RunError> {
        let cgroup = Cgroup::create(id);
        let started =
            prepare(dir, image, options, cgroup.as_ref(), lasting).and_then(|(spec, stdin)| {
                let started = spawn(&InitMessage::Run(spec.clone()), stdin, None)?;
                Ok((spec, started))
            });
        match started {
            Ok((spec, started)) => Ok(Self::new(Some(spec), cgroup, started)),
            Err(error) => {
                let _ = cgroup.map(Cgroup::remove);
                Err(error)
            }
        }
    }

    /// Starts one more process in the container.
    pub fn join(
        &self,
        process: Process,
        stdin: bool,
        privileged: bool,
    ) -> Result<(Self, Option<Streams>), RunError> {
        let pidfd = self.pidfd.borrow();
        let (Some(pidfd), Some(spec)) = (pidfd.as_ref(), &self.spec) else {
            return Err(RunError::Setup("the container has no process".to_owned()));
        };
        let spec = ContainerSpec {
            process,
            ..spec.clone()
        };
        let message = InitMessage::Join {
            spec: spec.clone(),
            privileged,
        };
        let started = spawn(&message, stdin, Some(pidfd.as_fd()))?;
        Ok(Self::new(Some(spec), None, started))
    }

    /// Starts a process that works on the files of a container: of one that runs, or of one whose
    /// root is made of this.
    pub fn work_on_files(
        of: &Result<&Self, IdleRoot>,
        job: FilesJob,
    ) -> Result<(Self, Option<Streams>), RunError> {
        let pidfd = of.as_ref().ok().map(|running| running.pidfd.borrow());
        let pidfd = pidfd.as_ref().and_then(|pidfd| pidfd.as_ref());
        if of.is_ok() && pidfd.is_none() {
            return Err(RunError::Setup("the container has no process".to_owned()));
        }
        let stdin = matches!(job, FilesJob::Unpack { .. });
        let message = InitMessage::Files {
            root: of.as_ref().err().cloned(),
            job,
        };
        let started = spawn(&message, stdin, pidfd.map(AsFd::as_fd))?;
        Ok(Self::new(None, None, started))
    }

    fn new(
        spec: Option<ContainerSpec>,
        cgroup: Option<Cgroup>,
        (monitor, reports, streams): Started,
    ) -> (Self, Option<Streams>) {
        let container = Self {
            spec,
            cgroup: cgroup.as_ref().map(|group| group.path().to_owned()),
            remains: Cell::new(Some(Remains { cgroup, monitor })),
            reports: RefCell::new(Some(Rc::new(reports))),
            pidfd: RefCell::default(),
            killed: Cell::new(false),
        };
        (container, streams)
    }

    /// Directory of its cgroup, when it has one.
    pub fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_deref()
    }

    /// The next news of it, and the terminal's master side with [`Report::Terminal`]. `None` when
    /// its monitor ended, which comes after [`Report::Exited`] or [`Report::Failed`].
    pub async fn next_report(&self) -> io::Result<Option<(Report, Option<OwnedFd>)>> {
        let receive = |fd: &OwnedFd| Report::receive(fd.as_fd()).map_err(io::Error::from);
        let Some(reports) = self.reports.borrow().clone() else {
            return Ok(None);
        };
        let Some((report, mut fds)) = reports.async_io(Interest::READABLE, receive).await? else {
            return Ok(None);
        };
        let fd = (!fds.is_empty()).then(|| fds.remove(0));
        if matches!(report, Report::Created { .. }) {
            *self.pidfd.borrow_mut() = fd;
            if self.killed.get() {
                self.kill();
            }
            return Ok(Some((report, None)));
        }
        Ok(Some((report, fd)))
    }

    /// Sends a signal to its first process, which ignores those that it has no handler for (other
    /// than `KILL`), as the first process of a system does.
    pub fn signal(&self, number: u8) -> io::Result<()> {
        let Some(signal) = Signal::from_named_raw(i32::from(number)) else {
            return self.signal_unnamed(number);
        };
        match &*self.pidfd.borrow() {
            Some(pidfd) => Ok(pidfd_send_signal(pidfd, signal)?),
            None => Ok(()),
        }
    }

    /// Real-time signals, which have no names.
    #[allow(unsafe_code, reason = "rustix has no safe way to name these signals")]
    fn signal_unnamed(&self, number: u8) -> io::Result<()> {
        const FIRST: u8 = 34;
        if !(FIRST..=64).contains(&number) {
            let text = "no such signal";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        // SAFETY: the kernel's real-time signals that the C library does not keep for itself;
        // the signal is sent to another process and none is handled here.
        let signal = unsafe { Signal::from_raw_unchecked(i32::from(number)) };
        match &*self.pidfd.borrow() {
            Some(pidfd) => Ok(pidfd_send_signal(pidfd, signal)?),
            None => Ok(()),
        }
    }

    /// Kills everything in it, as soon as there is something to kill.
    pub fn kill(&self) {
        self.killed.set(true);
        if let Some(pidfd) = &*self.pidfd.borrow() {
            // The first process takes all others of its PID namespace with it; the group also
            // reaches what was put there from outside.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
            if let Some(cgroup) = &self.cgroup {
                let _ = cgroup::kill(cgroup);
            }
        }
    }

    /// What has to be cleared away, once; kills what still runs.
    pub fn take_remains(&self) -> Option<Remains> {
        self.kill();
        // Without the agent the monitor kills what it may have started meanwhile.
        self.reports.take();
        self.pidfd.take();
        self.remains.take()
    }
}

impl Remains {
    /// Waits for the last of it and removes its cgroup. Blocks for a moment.
    pub fn clear(mut self) -> Result<(), RunError> {
        self.monitor
            .wait()
            .map_err(RunError::io("wait for the container's monitor"))?;
        let group = self.cgroup.map_or(Ok(()), Cgroup::remove);
        group.map_err(RunError::io("remove the container's cgroup"))
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
    lasting: bool,
) -> Result<(ContainerSpec, bool), RunError> {
    check_hostname(&options.hostname)?;
    let sandbox = &options.sandbox;
    let (isolation, devices) = isolation::resolve(sandbox, options.network.clone())?;
    let shm_size = sandbox.shm_size.unwrap_or(spec::SHM_SIZE);
    let mut mounts = spec::default_mounts(shm_size, sandbox.privileged);
    mounts.extend(isolation::tmpfs_mounts(sandbox)?);
    match cgroup {
        Some(group) => group
            .limit(&sandbox.limits)
            .map_err(RunError::io("limit the container"))?,
        None if sandbox.limits.is_empty() => {}
        None => {
            let text = "limits need cgroups of version 2, which this machine does not have";
            return Err(RunError::Refused(text.to_owned()));
        }
    }
    make_directories(dir)?;
    let mut files = match &options.shared_files {
        Some(other) => names::bound_files(other),
        None => names::write_files(dir, &options.hostname, sandbox, &options.network)?,
    };
    if sandbox.ipc_host {
        files.push(BoundFile {
            source: "/dev/shm".into(),
            target: "/dev/shm".to_owned(),
        });
    }
    let bare = sandbox.privileged || sandbox.unmasked;
    let paths = |paths: Vec<String>| if bare { Vec::new() } else { paths };
    let filtered = |group: &Cgroup| {
        sandbox.privileged || device_filter::attach(group.path(), &devices).is_ok()
    };
    let spec = ContainerSpec {
        root: root_of(dir, image, options.read_only, lasting),
        init: options.init,
        hostname: options.hostname,
        process: options.process,
        mounts,
        files,
        volumes: options.volumes,
        masked_paths: paths(spec::default_masked_paths()),
        readonly_paths: paths(spec::default_readonly_paths()),
        cgroup: cgroup.map(|group| group.path().to_owned()),
        devices_filtered: cgroup.is_some_and(filtered),
        isolation,
    };
    Ok((spec, options.stdin))
}

/// What the root of the container in `dir` is made of.
pub fn root_of(dir: &Path, image: &Image, read_only: bool, lasting: bool) -> Root {
    let base = &image.layers_dir;
    let mut lower: Vec<PathBuf> = image
        .layers
        .iter()
        .rev()
        .map(|layer| relative(base, layer))
        .collect();
    if lower.is_empty() {
        lower.push(relative(base, &dir.join("empty")));
    }
    Root {
        base: base.clone(),
        lower,
        upper: relative(base, &dir.join("upper")),
        work: relative(base, &dir.join("work")),
        merged: dir.join("merged"),
        read_only,
        lasting,
    }
}

/// Makes the directories that a root is made of, in the container's own.
pub fn make_directories(dir: &Path) -> Result<(), RunError> {
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
    Ok(())
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
fn spawn(
    message: &InitMessage,
    stdin: bool,
    target: Option<BorrowedFd<'_>>,
) -> Result<Started, RunError> {
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
    hand_over(message, stdin, target, ours, monitor)
}

/// Sends spec and streams; kills the monitor when that fails.
fn hand_over(
    message: &InitMessage,
    stdin: bool,
    target: Option<BorrowedFd<'_>>,
    socket: OwnedFd,
    mut monitor: Child,
) -> Result<Started, RunError> {
    let sent = (|| -> io::Result<(AsyncFd<OwnedFd>, Option<Streams>)> {
        let mut file = fs::File::from(rustix::fs::memfd_create(
            "container-spec",
            rustix::fs::MemfdFlags::CLOEXEC,
        )?);
        file.write_all(&serde_json::to_vec(message)?)?;
        let mut fds = vec![OwnedFd::from(file)];
        let streams = if message.spec().is_some_and(|spec| spec.process.tty) {
            None
        } else {
            Some(open_streams(stdin, &mut fds)?)
        };
        let mut sent = borrow(&fds);
        sent.extend(target);
        send_with_fds(socket.as_fd(), b"spec", &sent)?;
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
        Some(Writer::new(ours)?)
    } else {
        fds.push(fs::File::open("/dev/null")?.into());
        None
    };
    let mut output = || -> io::Result<Reader> {
        let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
        let _ = rustix::pipe::fcntl_setpipe_size(&ours, PIPE_SIZE);
        fds.push(theirs);
        Reader::new(ours)
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
}
