//! Registries that answer as a test wants them to, on ports of this machine, for as long as the test
//! runs.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// What a scripted registry does.
#[derive(Clone, Copy, Debug)]
pub enum Script {
    /// Answers everything with this status, and with these words in its error.
    Status(u16, &'static str),
    /// Takes connections and says nothing.
    Silence,
    /// Speaks no protocol that anybody knows.
    Garbage,
}

/// Starts a scripted registry; its port.
pub fn serve(script: Script) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for connection in listener.incoming().flatten() {
            match script {
                Script::Silence => kept.push(connection),
                Script::Garbage => {
                    let mut connection = connection;
                    let mut first = [0; 1];
                    let _ = connection.read(&mut first);
                    let _ = connection.write_all(b"\x00\x01 no such protocol\r\n\r\n");
                }
                Script::Status(status, words) => {
                    std::thread::spawn(move || answer(connection, status, words));
                }
            }
        }
    });
    port
}

fn answer(connection: TcpStream, status: u16, words: &str) {
    let Ok(mut writer) = connection.try_clone() else {
        return;
    };
    let mut lines = BufReader::new(connection).lines();
    // Requests without a body, one after the other.
    while let Some(Ok(first)) = lines.next() {
        while let Some(Ok(line)) = lines.next() {
            if line.is_empty() {
                break;
            }
        }
        let body = format!(r#"{{"errors":[{{"code":"{words}","message":"said so"}}]}}"#);
        let challenge = match status {
            401 => "WWW-Authenticate: Basic realm=\"test\"\r\n",
            _ => "",
        };
        let sent = if first.starts_with("HEAD") { "" } else { &body };
        let answer = format!(
            "HTTP/1.1 {status} Scripted\r\n{challenge}Docker-Distribution-Api-Version: \
             registry/2.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{sent}",
            body.len()
        );
        if writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// Counts who comes to a port, and hands them on to another one.
#[derive(Debug)]
pub struct Counter {
    port: u16,
    count: Arc<AtomicUsize>,
}

impl Counter {
    /// Before the server at `target` on this machine.
    pub fn before(target: u16) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = listener.local_addr().expect("its address").port();
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                counter.fetch_add(1, Ordering::SeqCst);
                pass_on(client, target);
            }
        });
        Self { port, count }
    }

    /// `http://localhost:PORT`.
    pub fn url(&self) -> String {
        format!("http://localhost:{}", self.port)
    }

    /// Connections so far.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

fn pass_on(client: TcpStream, target: u16) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
        return;
    };
    let (Ok(to_client), Ok(to_server)) = (client.try_clone(), server.try_clone()) else {
        return;
    };
    for (mut from, mut to) in [(client, to_server), (server, to_client)] {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

/// A narrow way to a server at `target` on this machine, for so many bytes a second and connection;
/// its port.
pub fn narrow(target: u16, bytes_a_second: usize) -> u16 {
    const PIECES: u16 = 20;
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                return;
            };
            let (Ok(mut to_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone())
            else {
                return;
            };
            let (mut client, mut server) = (client, server);
            std::thread::spawn(move || {
                let mut piece = vec![0; bytes_a_second / usize::from(PIECES)];
                while let Ok(length @ 1..) = client.read(&mut piece) {
                    if to_server.write_all(&piece[..length]).is_err() {
                        break;
                    }
                    std::thread::sleep(Duration::from_secs(1) / u32::from(PIECES));
                }
                let _ = to_server.shutdown(Shutdown::Write);
            });
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut server, &mut to_client);
                let _ = to_client.shutdown(Shutdown::Write);
            });
        }
    });
    port
}
