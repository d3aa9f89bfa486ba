//! `serve` on sockets that somebody else has opened, as systemd does (sd_listen_fds(3)).

mod rig;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use rig::User;

/// A socket that listens, where it does, and whether anybody takes connections from it.
struct Socket {
    listener: TcpListener,
    address: SocketAddr,
}

impl Socket {
    fn new() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        Self { listener, address }
    }

    fn handed(&self) -> Stdio {
        OwnedFd::from(self.listener.try_clone().unwrap()).into()
    }
}

/// A server in the foreground, killed when it goes.
struct Serving {
    child: Child,
    words: BufReader<ChildStderr>,
}

impl Serving {
    /// Starts `serve` with two descriptors, which the shell's redirections make 3 and up, and with
    /// variables that the shell sets where its own process number, `$$`, is the server's.
    fn start(user: &User, variables: &str, redirections: &str, handed: [Stdio; 2]) -> Self {
        let plain = user.command(["serve"]);
        let script = format!(
            "{variables}; export LISTEN_PID LISTEN_FDS; \
             exec \"$0\" serve {redirections} 0</dev/null 1>/dev/null"
        );
        let [first, second] = handed;
        let mut child = Command::new("/bin/sh")
            .args(["-c", &script])
            .arg(plain.get_program())
            .env_clear()
            .envs(
                plain
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .stdin(first)
            .stdout(second)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let words = BufReader::new(child.stderr.take().unwrap());
        Self { child, words }
    }

    /// The addresses that it says it listens on; it must say this many.
    #[track_caller]
    fn addresses(&mut self, count: usize) -> Vec<SocketAddr> {
        let mut said = String::new();
        let mut addresses = Vec::new();
        while addresses.len() < count {
            let mut line = String::new();
            let length = self.words.read_line(&mut line).unwrap();
            said += &line;
            assert!(length > 0, "the server ended: {said}");
            if let Some(address) = line.strip_prefix("listening on http://") {
                addresses.push(address.trim_end().parse().unwrap());
            }
        }
        addresses
    }

    /// What it says until it ends, and its status.
    fn ended(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.words.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }

    /// Ends it as a supervisor does.
    fn stop(self) -> (Option<i32>, String) {
        let pid = i32::try_from(self.child.id()).unwrap();
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        )
        .unwrap();
        self.ended()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first line of the answer to `GET /v2/`.
fn asked(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    stream
        .write_all(b"GET /v2/ HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line
}

fn is_closed(port: u16) -> bool {
    TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err()
}

#[test]
fn handed_sockets_are_served_and_no_others() {
    let user = User::new();
    for (variables, redirections, count) in [
        ("LISTEN_PID=$$ LISTEN_FDS=1", "3<&0", 1),
        ("LISTEN_PID=$$ LISTEN_FDS=2", "3<&0 4<&1", 2),
    ] {
        let sockets = [Socket::new(), Socket::new()];
        let handed = [sockets[0].handed(), sockets[1].handed()];
        let mut serving = Serving::start(&user, variables, redirections, handed);
        let wanted: Vec<_> = sockets.iter().take(count).map(|one| one.address).collect();
        assert_eq!(serving.addresses(count), wanted);
        for address in wanted {
            assert_eq!(asked(address), "HTTP/1.1 200 OK\r\n");
        }
        assert!(is_closed(user.port), "its own port is open too");
        let (status, said) = serving.stop();
        assert_eq!(status, Some(0), "{said}");
        assert!(!said.contains("listening"), "{said}");
    }
}

#[test]
fn what_is_meant_for_another_process_is_left_alone() {
    let user = User::new();
    for variables in [
        // A child of the one that it was meant for has its variables too.
        "LISTEN_PID=$PPID LISTEN_FDS=1",
        "LISTEN_PID= LISTEN_FDS=1",
        "LISTEN_PID=$$ LISTEN_FDS=0",
        "LISTEN_PID=$$ LISTEN_FDS=-3",
        "LISTEN_PID=$$ LISTEN_FDS=many",
    ] {
        let socket = Socket::new();
        let handed = [socket.handed(), Stdio::null()];
        let mut serving = Serving::start(&user, variables, "3<&0", handed);
        let own = SocketAddr::from((Ipv4Addr::LOCALHOST, user.port));
        assert_eq!(serving.addresses(1), [own], "{variables}");
        assert_eq!(asked(own), "HTTP/1.1 200 OK\r\n", "{variables}");
        // Nobody takes what comes there: it is here still.
        let sent = TcpStream::connect(socket.address).unwrap();
        let (taken, _) = socket.listener.accept().unwrap();
        assert_eq!(taken.peer_addr().unwrap(), sent.local_addr().unwrap());
        assert_eq!(serving.stop().0, Some(0), "{variables}");
    }
}

#[test]
fn what_is_no_listening_socket_is_refused() {
    let user = User::new();
    let place = user.path("socket");
    let (tcp, unix) = (Socket::new(), UnixListener::bind(&place).unwrap());
    let connected = TcpStream::connect(tcp.address).unwrap();
    let cases = [
        (
            "LISTEN_FDS=1",
            "3<&-",
            Stdio::null(),
            "descriptor 3 is none",
        ),
        (
            "LISTEN_FDS=1",
            "3<&0",
            Stdio::null(),
            "descriptor 3 is none",
        ),
        (
            "LISTEN_FDS=1",
            "3<&0",
            OwnedFd::from(connected).into(),
            "descriptor 3 is none",
        ),
        (
            "LISTEN_FDS=2",
            "3<&0 4<&-",
            tcp.handed(),
            "descriptor 4 is none",
        ),
        (
            "LISTEN_FDS=1",
            "3<&0",
            OwnedFd::from(unix).into(),
            "does not listen for TCP",
        ),
    ];
    for (count, redirections, handed, words) in cases {
        let variables = format!("LISTEN_PID=$$ {count}");
        let serving = Serving::start(&user, &variables, redirections, [handed, Stdio::null()]);
        let (status, said) = serving.ended();
        assert_eq!(status, Some(1), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(is_closed(user.port));
    }
}
