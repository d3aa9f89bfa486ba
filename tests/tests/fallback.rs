//! What a pull and a run do, and say, for everything that a registry may answer: Docker Hub is asked
//! after a 404 and never else. One VM for all of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, free_port};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::User;

/// What a scripted registry does.
#[derive(Clone, Copy)]
enum Script {
    /// Answers everything with this status, and with these words in its error.
    Status(u16, &'static str),
    /// Takes connections and says nothing.
    Silence,
    /// Speaks no protocol that anybody knows.
    Garbage,
}

/// A server on this host; its port.
fn server(script: Script) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
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
    let mut writer = connection.try_clone().unwrap();
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

/// Counts who comes, and hands them on to a registry.
fn counted(registry: &Registry) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let url = format!("http://localhost:{}", listener.local_addr().unwrap().port());
    let count = Arc::new(AtomicUsize::new(0));
    let (counter, target) = (Arc::clone(&count), registry.port());
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            counter.fetch_add(1, Ordering::SeqCst);
            let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else {
                continue;
            };
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
    (url, count)
}

struct Place {
    user: User,
    hub: Arc<AtomicUsize>,
}

impl Place {
    /// Pulls and runs from a registry; both must say these words, with these statuses.
    #[track_caller]
    fn refused(&self, row: &str, registry: &str, options: &[&str], status: i32, words: &[&str]) {
        let before = self.hub.load(Ordering::SeqCst);
        let settings = ["--registry", registry];
        for (command, status) in [
            (&["pull", "public:1"][..], status),
            (&["run", "--rm", "public:1", "true"], 125),
        ] {
            let line = settings.iter().chain(options).chain(command).copied();
            let ran: Ran = self.user.run(line);
            let said = &ran.stderr;
            assert_eq!(ran.code(), status, "{row} {command:?}: {said}");
            for word in words.iter().chain(&["public"]) {
                assert!(
                    said.contains(word),
                    "{row} {command:?} does not say {word:?}: {said}"
                );
            }
            assert_eq!(ran.text(), "", "{row} {command:?}");
        }
        assert_eq!(
            self.hub.load(Ordering::SeqCst),
            before,
            "{row}: Docker Hub was asked, though the registry did not say that it does not know the name"
        );
        let stored = self.user.run(["images", "-q"]).expect(0);
        assert_eq!(stored.text(), "", "{row}");
    }
}

#[test]
fn every_answer_of_a_registry() {
    let image = layout("qemux86-64", "container-base-latest-oci");
    let image = image.to_str().unwrap();
    let own = Registry::start();
    own.run(["--namespace", "ns", "push", image, "--tag", "1"])
        .expect(0);
    let own_public = format!("{}/ns/container-base:1", own.host());
    own.run(["--namespace", "ns", "import", &own_public, "ns/public:1"])
        .expect(0);
    let hub = Registry::start();
    hub.run(["--namespace", "library", "push", image, "--tag", "1"])
        .expect(0);
    let hub_public = format!("{}/library/container-base:1", hub.host());
    hub.run(["import", &hub_public, "library/public:1"])
        .expect(0);
    let (hub_url, asked) = counted(&hub);
    let secure_storage = tempfile::tempdir().unwrap();
    let secure = Registry::start_with(
        &secure_storage.path().join("storage"),
        free_port(),
        &[("CONTAINER_REGISTRY_SECURE", "1")],
    );

    let user = User::new("x86_64");
    user.run(["vconfig", "mirror", "docker.io", &hub_url])
        .expect(0);
    user.run(["vconfig", "pull-in", "guest"]).expect(0);
    // How long a silent registry is waited for; with all tries.
    user.run(["vconfig", "timeout", "1"]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let place = Place { user, hub: asked };

    let at = |port: u16| format!("localhost:{port}/ns");
    let bypass = "--no-registry";
    let status = |status, words| at(server(Script::Status(status, words)));
    place.refused(
        "401",
        &status(401, "UNAUTHORIZED"),
        &[],
        4,
        &[bypass, "401"],
    );
    place.refused("403", &status(403, "DENIED"), &[], 4, &[bypass, "403"]);
    place.refused("500", &status(500, "UNKNOWN"), &[], 1, &[bypass, "500"]);
    let unverified = &["--secure-registry"];
    let untrusted = at(secure.port());
    place.refused("TLS", &untrusted, unverified, 3, &[bypass, "certificate"]);
    let garbage = at(server(Script::Garbage));
    place.refused("no TLS", &garbage, unverified, 3, &[bypass]);
    place.refused("refused", &at(free_port()), &[], 3, &[bypass, "10.0.2.2"]);
    place.refused(
        "time-out",
        &at(server(Script::Silence)),
        &[],
        3,
        &[bypass, "10.0.2.2"],
    );
    let nowhere = "no-such-host.invalid:5000/ns";
    place.refused("DNS", nowhere, &[], 3, &[bypass, "no-such-host.invalid"]);

    // Found: the registry's own, and nobody else is asked.
    let before = place.hub.load(Ordering::SeqCst);
    let found = at(own.port());
    let stored = format!("10.0.2.2:{}/ns/public:1", own.port());
    let pulled = place
        .user
        .run(["--registry", &found, "pull", "-q", "public:1"])
        .expect(0);
    assert_eq!(pulled.text(), format!("{stored}\n"));
    let ran = place.user.run([
        "--registry",
        &found,
        "run",
        "--rm",
        "public:1",
        "echo",
        "own",
    ]);
    assert_eq!(ran.expect(0).text(), "own\n");
    assert_eq!(place.hub.load(Ordering::SeqCst), before);
    place.user.run(["rmi", &stored]).expect(0);
    let ran = place.user.run([
        "--registry",
        &found,
        "run",
        "--rm",
        "public:1",
        "echo",
        "own",
    ]);
    assert_eq!(ran.expect(0).text(), "own\n");
    assert_eq!(place.hub.load(Ordering::SeqCst), before);
    place.user.run(["rmi", &stored]).expect(0);

    // 404: Docker Hub, by its own name; for a pull and for a run.
    let unknown = status(404, "MANIFEST_UNKNOWN");
    let pulled = place
        .user
        .run(["--registry", &unknown, "pull", "-q", "public:1"])
        .expect(0);
    assert_eq!(pulled.text(), "docker.io/library/public:1\n");
    assert!(
        place.hub.load(Ordering::SeqCst) > before,
        "Docker Hub was not asked after a 404"
    );
    place.user.run(["rmi", "public:1"]).expect(0);
    let ran = place.user.run([
        "--registry",
        &unknown,
        "run",
        "--rm",
        "public:1",
        "echo",
        "hub",
    ]);
    assert_eq!(ran.expect(0).text(), "hub\n");
    place.user.run(["rmi", "public:1"]).expect(0);
    // A name that states the registry means that registry alone.
    let before = place.hub.load(Ordering::SeqCst);
    let named = format!("{unknown}/public:1");
    let refused = place.user.run(["pull", &named]).expect(5);
    assert!(refused.stderr.contains("not found"), "{}", refused.stderr);
    place.user.run(["run", "--rm", &named, "true"]).expect(125);
    assert_eq!(place.hub.load(Ordering::SeqCst), before);
}
