//! The agent's ends of a container's pipes.
//!
//! Reading or writing a pipe waits for its lock, however nonblocking it is, and a program that has
//! the kernel copy straight into its output (`sendfile`, `splice`) holds that lock until the bytes
//! are there. The bytes may be those of a directory that this very agent relays, or of a peer that
//! never sends any. So the agent's own thread only asks whether a pipe is ready, and each pipe has a
//! thread of its own that reads or writes it.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use rustix::{
    buffer::spare_capacity,
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::oneshot,
    time::sleep,
};

use super::stdio::empty_frame;
use crate::watch::watch;

/// Bytes of the stack of a pipe's thread, which calls next to nothing.
const STACK: usize = 64 * 1024;
/// The time until a thread is tried for again that could not be made.
const PAUSE: Duration = Duration::from_millis(200);

type Job = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after the other. It is made for the first, as many pipes are never
/// used, and ends after its last when this is dropped.
#[derive(Debug, Default)]
struct Worker(Option<mpsc::Sender<Job>>);

impl Worker {
    fn start() -> io::Result<mpsc::Sender<Job>> {
        #[cfg(test)]
        if tests::NO_THREADS.get() > 0 {
            tests::NO_THREADS.set(tests::NO_THREADS.get() - 1);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let (sender, jobs) = mpsc::channel::<Job>();
        let thread = thread::Builder::new().name("pipe".into()).stack_size(STACK);
        thread.spawn(move || jobs.into_iter().for_each(|job| job()))?;
        Ok(sender)
    }

    /// A thread, as soon as there can be one: what a program writes is no end of its output while the
    /// machine has no room for it.
    async fn started() -> mpsc::Sender<Job> {
        let mut told = false;
        loop {
            match Self::start() {
                Ok(jobs) => return jobs,
                Err(error) if !told => {
                    eprintln!("vdkr-agent: a container's pipe waits for a thread: {error}");
                    told = true;
                }
                Err(_) => {}
            }
            sleep(PAUSE).await;
        }
    }

    async fn run<T: Send + 'static>(
        &mut self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        let jobs = match &mut self.0 {
            Some(jobs) => jobs,
            none => none.insert(Self::started().await),
        };
        let (sender, result) = oneshot::channel();
        let job = move || drop(sender.send(work()));
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        jobs.send(Box::new(job)).map_err(|_| gone())?;
        result.await.map_err(|_| gone())
    }
}

/// A container's end of output.
#[derive(Debug)]
pub struct Reader {
    pipe: Arc<AsyncFd<OwnedFd>>,
    worker: Worker,
    /// Whether something is known to be there.
    ready: bool,
}

impl Reader {
    /// Takes a pipe's reading side. Must be called inside a tokio runtime.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self {
            pipe: Arc::new(watch(pipe, Interest::READABLE)?),
            worker: Worker::default(),
            ready: false,
        })
    }

    /// What comes next, about `most` bytes at most, behind room for a frame's header; `None` at the
    /// end.
    pub async fn read_frame(&mut self, most: usize) -> Option<Vec<u8>> {
        loop {
            if !self.ready {
                // What comes from here on makes it ready anew.
                self.pipe.readable().await.ok()?.clear_ready();
                if has_ended(&self.pipe) {
                    return None;
                }
            }
            let pipe = self.pipe.clone();
            let read = self.worker.run(move || {
                let mut frame = empty_frame(most);
                let length =
                    again(|| rustix::io::read(pipe.get_ref(), spare_capacity(&mut frame)))?;
                Ok::<_, Errno>((frame, length, is_ready(&pipe, PollFlags::IN)))
            });
            let (frame, length, ready) = read.await.ok()?.ok()?;
            self.ready = ready;
            match length {
                Some(0) => return None,
                Some(_) => return Some(frame),
                None => {}
            }
        }
    }
}

/// A container's input.
#[derive(Debug)]
pub struct Writer {
    pipe: Arc<AsyncFd<OwnedFd>>,
    worker: Worker,
}

impl Writer {
    /// Takes a pipe's writing side. Must be called inside a tokio runtime.
    pub fn new(pipe: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&pipe, true)?;
        Ok(Self {
            pipe: Arc::new(watch(pipe, Interest::WRITABLE)?),
            worker: Worker::default(),
        })
    }

    /// Writes everything, or fails when nobody reads any more.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let bytes: Arc<[u8]> = bytes.into();
        let mut from = 0;
        while from < bytes.len() {
            if !is_ready(&self.pipe, PollFlags::OUT) {
                self.pipe.writable().await?.clear_ready();
            }
            let (pipe, part) = (self.pipe.clone(), bytes.clone());
            let written = self.worker.run(move || {
                let rest = part.get(from..).unwrap_or_default();
                again(|| rustix::io::write(pipe.get_ref(), rest))
            });
            from += written.await??.unwrap_or(0);
        }
        Ok(())
    }
}

/// Does it again when a signal came between; `None` when it would have to wait.
fn again(mut work: impl FnMut() -> rustix::io::Result<usize>) -> rustix::io::Result<Option<usize>> {
    loop {
        match work() {
            Ok(length) => return Ok(Some(length)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// Whether a pipe has something, room, or an end.
fn is_ready(pipe: &AsyncFd<OwnedFd>, wanted: PollFlags) -> bool {
    !state(pipe, wanted).is_empty()
}

/// Whether nobody writes to a pipe any more and nothing is left in it.
fn has_ended(pipe: &AsyncFd<OwnedFd>) -> bool {
    state(pipe, PollFlags::IN) == PollFlags::HUP
}

/// What is to be said of a pipe now. Takes no lock.
fn state(pipe: &AsyncFd<OwnedFd>, wanted: PollFlags) -> PollFlags {
    let mut set = [PollFd::from_borrowed_fd(pipe.get_ref().as_fd(), wanted)];
    match poll(&mut set, Some(&Timespec::default())) {
        Ok(1..) => set[0].revents(),
        _ => PollFlags::empty(),
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, io::Write as _, os::unix::net::UnixStream};

    use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
    use tokio::{runtime::Builder, time::timeout};
    use vdkr_core::channel::HEADER_LEN;

    use super::*;

    thread_local! {
        /// So many threads cannot be made.
        pub(super) static NO_THREADS: Cell<u32> = const { Cell::new(0) };
    }

    #[test]
    fn a_pipe_waits_for_its_thread() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (mut reader, mut writer) =
                (Reader::new(ours).unwrap(), Writer::new(theirs).unwrap());
            NO_THREADS.set(2);
            writer.write_all(b"a").await.unwrap();
            assert_eq!(NO_THREADS.get(), 0);
            NO_THREADS.set(1);
            let frame = reader.read_frame(16).await.unwrap();
            assert_eq!(&frame[HEADER_LEN..], b"a");
            assert_eq!(NO_THREADS.get(), 0);
        });
    }

    #[test]
    fn a_program_that_holds_a_pipe_holds_nobody_up() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let mut reader = Reader::new(ours).unwrap();
            let (mut far, near) = UnixStream::pair().unwrap();
            // The kernel waits for the peer's bytes with the pipe in its hands.
            let program = thread::spawn(move || {
                rustix::io::write(&theirs, b"a").unwrap();
                splice(near, None, &theirs, None, 1, SpliceFlags::empty()).unwrap();
            });
            tokio::time::sleep(PAUSE).await;
            let all = async {
                let mut all = Vec::new();
                while let Some(frame) = reader.read_frame(16).await {
                    all.extend_from_slice(&frame[HEADER_LEN..]);
                }
                all
            };
            tokio::pin!(all);
            assert!(timeout(PAUSE, &mut all).await.is_err());
            far.write_all(b"b").unwrap();
            assert_eq!(all.await, b"ab");
            program.join().unwrap();
        });
    }

    #[test]
    fn everything_comes_through() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let (mut reader, mut writer) =
                (Reader::new(ours).unwrap(), Writer::new(theirs).unwrap());
            let sent: Vec<u8> = (0..1_000_000_u32).map(|number| number as u8).collect();
            let write = async {
                writer.write_all(&sent).await.unwrap();
                drop(writer);
            };
            let read = async {
                let mut all = Vec::new();
                while let Some(frame) = reader.read_frame(3000).await {
                    all.extend_from_slice(&frame[HEADER_LEN..]);
                }
                all
            };
            let ((), came) = tokio::join!(write, read);
            assert!(came == sent);

            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).unwrap();
            let mut writer = Writer::new(theirs).unwrap();
            drop(ours);
            assert!(writer.write_all(b"nobody reads").await.is_err());
        });
    }
}
