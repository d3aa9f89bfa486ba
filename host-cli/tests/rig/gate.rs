//! A doorkeeper before a registry: it lets through who shows the right `Authorization`, and keeps
//! a record of what was shown. With nothing behind it, it answers `GET /v2/` itself.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

/// A listening doorkeeper; it ends with the test's process.
pub(crate) struct Gate {
    pub(crate) port: u16,
    shown: Arc<Mutex<Vec<Option<String>>>>,
}

impl Gate {
    /// Wants this header, and hands requests on to the port behind it.
    pub(crate) fn open(wanted: &str, behind: Option<u16>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            shown: Arc::default(),
        };
        let (wanted, shown) = (wanted.to_owned(), Arc::clone(&gate.shown));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (wanted, shown) = (wanted.clone(), Arc::clone(&shown));
                thread::spawn(move || {
                    // A client that goes away is not the doorkeeper's matter.
                    let _ = serve(stream, &wanted, behind, &shown);
                });
            }
        });
        gate
    }

    pub(crate) fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// Every `Authorization` that came, `None` for requests without.
    pub(crate) fn shown(&self) -> Vec<Option<String>> {
        self.shown
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// One request for each connection.
fn serve(
    mut stream: TcpStream,
    wanted: &str,
    behind: Option<u16>,
    shown: &Mutex<Vec<Option<String>>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut head = String::new();
    let mut authorization = None;
    let mut length: u64 = 0;
    let mut chunked = false;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line == "\r\n" {
            break;
        }
        let (name, value) = line.split_once(':').unwrap_or((&line, ""));
        match name.to_ascii_lowercase().as_str() {
            "authorization" => {
                authorization = Some(value.trim().to_owned());
                continue;
            }
            "connection" => continue,
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "transfer-encoding" => chunked = true,
            _ => {}
        }
        head.push_str(&line);
    }
    let right = authorization.as_deref() == Some(wanted);
    shown
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(authorization);
    if !right {
        stream.write_all(
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"gate\"\r\n\
              Content-Length: 0\r\nConnection: close\r\n\r\n",
        )?;
        // Read what still comes, so that closing does not throw the answer away.
        stream.shutdown(Shutdown::Write)?;
        std::io::copy(&mut reader, &mut std::io::sink())?;
        return Ok(());
    }
    let Some(behind) = behind else {
        return stream.write_all(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\
              Connection: close\r\n\r\n{}",
        );
    };
    let mut registry = TcpStream::connect(("127.0.0.1", behind))?;
    registry.write_all(format!("{head}Connection: close\r\n\r\n").as_bytes())?;
    let mut answer = registry.try_clone()?;
    let back = thread::spawn(move || -> std::io::Result<()> {
        std::io::copy(&mut answer, &mut stream)?;
        stream.shutdown(Shutdown::Both)
    });
    // A chunked body ends by its own form, which the registry reads: hand on until it is done.
    if chunked {
        let _ = std::io::copy(&mut reader, &mut registry);
    } else {
        std::io::copy(&mut reader.take(length), &mut registry)?;
    }
    back.join().unwrap_or(Ok(()))
}
