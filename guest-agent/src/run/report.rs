//! What `container-init` tells the agent, one message a datagram on their socket.

use std::{
    io::{IoSlice, IoSliceMut},
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::{
    cmsg_space,
    errno::Errno,
    sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg},
};
use serde::{Deserialize, Serialize};

/// Longest message in bytes; longer error texts are cut.
const MAX_REPORT: usize = 16 * 1024;
/// Most file descriptors in one message.
pub const MAX_FDS: usize = 5;

/// One step in the life of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Report {
    /// The first process exists; with it comes a pidfd. It has not executed anything.
    Created {
        /// Its number in the agent's namespace.
        pid: u32,
    },
    /// The container's terminal; with it comes the master side.
    Terminal,
    /// The command was executed.
    Started,
    /// The set-up or the execution failed; nothing follows.
    Failed {
        /// 125, 126 or 127.
        status: i32,
        /// What failed.
        message: String,
    },
    /// The first process ended; nothing follows.
    Exited {
        /// Its exit status, or 128 + the signal that killed it.
        status: i32,
    },
}

impl Report {
    /// Sends the message with file descriptors beside it.
    pub fn send(&self, socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let bytes = serde_json::to_vec(&self.bounded()).map_err(|_| Errno::EINVAL)?;
        send_with_fds(socket, &bytes, fds)
    }

    /// Receives a message; `None` at the end of the connection.
    pub fn receive(socket: BorrowedFd<'_>) -> Result<Option<(Self, Vec<OwnedFd>)>, Errno> {
        let (bytes, fds) = receive_with_fds(socket)?;
        if bytes.is_empty() {
            return Ok(None);
        }
        let report = serde_json::from_slice(&bytes).map_err(|_| Errno::EBADMSG)?;
        Ok(Some((report, fds)))
    }

    fn bounded(&self) -> Self {
        match self {
            Self::Failed { status, message } if message.len() > MAX_REPORT / 8 => {
                // A control character takes six bytes in JSON.
                let message = message.chars().take(MAX_REPORT / 32).collect();
                Self::Failed {
                    status: *status,
                    message,
                }
            }
            other => other.clone(),
        }
    }
}

/// Sends one datagram with file descriptors beside it.
pub fn send_with_fds(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<(), Errno> {
    let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() {
        &rights[..0]
    } else {
        &rights[..]
    };
    let slices = [IoSlice::new(bytes)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &slices, control, flags, None).map(drop)
}

/// Receives one datagram and the file descriptors beside it, close-on-exec. An empty one means the
/// end of the connection.
pub fn receive_with_fds(socket: BorrowedFd<'_>) -> Result<(Vec<u8>, Vec<OwnedFd>), Errno> {
    let mut bytes = vec![0; MAX_REPORT];
    let mut space = cmsg_space!([std::os::fd::RawFd; MAX_FDS]);
    let (length, fds) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                fds.extend(raw.into_iter().map(own));
            }
        }
        if message.flags.contains(MsgFlags::MSG_TRUNC) {
            return Err(Errno::EMSGSIZE);
        }
        (message.bytes, fds)
    };
    bytes.truncate(length);
    Ok((bytes, fds))
}

#[allow(unsafe_code, reason = "recvmsg hands over plain numbers")]
fn own(fd: std::os::fd::RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for this process; nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Borrows owned descriptors, for [`Report::send`].
pub fn borrow(fds: &[OwnedFd]) -> Vec<BorrowedFd<'_>> {
    fds.iter().map(AsFd::as_fd).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap()
    }

    #[test]
    fn messages_keep_their_boundaries_and_descriptors() {
        let (ours, theirs) = pair();
        let (reader, writer) = nix::unistd::pipe().unwrap();
        Report::Created { pid: 7 }
            .send(theirs.as_fd(), &[writer.as_fd()])
            .unwrap();
        Report::Exited { status: 3 }
            .send(theirs.as_fd(), &[])
            .unwrap();
        drop((writer, theirs));

        let (first, mut fds) = Report::receive(ours.as_fd()).unwrap().unwrap();
        assert_eq!((first, fds.len()), (Report::Created { pid: 7 }, 1));
        std::fs::File::from(fds.remove(0))
            .write_all(b"through")
            .unwrap();
        let mut text = String::new();
        std::fs::File::from(reader)
            .read_to_string(&mut text)
            .unwrap();
        assert_eq!(text, "through");
        let (second, fds) = Report::receive(ours.as_fd()).unwrap().unwrap();
        assert_eq!((second, fds.len()), (Report::Exited { status: 3 }, 0));
        assert!(Report::receive(ours.as_fd()).unwrap().is_none());
    }

    #[test]
    fn a_long_error_is_cut_not_lost() {
        let (ours, theirs) = pair();
        let long = Report::Failed {
            status: 127,
            message: "\u{1}".repeat(1 << 20),
        };
        long.send(theirs.as_fd(), &[]).unwrap();
        let (got, _) = Report::receive(ours.as_fd()).unwrap().unwrap();
        assert!(matches!(got, Report::Failed { status: 127, message } if !message.is_empty()));
    }
}
