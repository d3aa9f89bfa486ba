//! What a pull and a run do, and say, for everything that a registry may answer, whoever pulls: the
//! machine or this computer. Docker Hub is asked after a 404 and never else.

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, free_port};
use vdkr_tests::registry::Registry;
use vdkr_tests::scripted::{Counter, Script, serve};
use vdkr_tests::vm::User;

/// Everything that a row needs: registries, Docker Hub's stand-in, and a user whose machine runs.
struct Place {
    user: User,
    own: Registry,
    hub: Counter,
    _hub: Registry,
}

/// What a registry that is no help makes of a pull.
struct Row<'a> {
    name: &'a str,
    /// The registry as the user names it.
    registry: String,
    options: &'a [&'a str],
    /// Status of a pull; that of a run is docker's 125.
    status: i32,
    /// How the error goes on after `cannot pull REFERENCE: `. The port of the registry is `PORT` in it.
    words: &'a str,
}

impl Place {
    /// `pull_in` is where layers are pulled, as `vconfig` takes it.
    fn new(pull_in: &str) -> Self {
        let image = layout("qemux86-64", "container-base-latest-oci");
        let image = image.to_str().unwrap();
        let [own, hub] = ["ns", "library"].map(|namespace| {
            let registry = Registry::start();
            let push = ["--namespace", namespace, "push", image, "--tag", "1"];
            registry.run(push).expect(0);
            let from = format!("{}/{namespace}/container-base:1", registry.host());
            let to = format!("{namespace}/public:1");
            registry.run(["import", &from, &to]).expect(0);
            registry
        });
        let counter = Counter::before(hub.port());
        let user = User::new("x86_64");
        for setting in [
            &["mirror", "docker.io", &counter.url()][..],
            &["pull-in", pull_in],
            // How long a silent registry is waited for, each time that it is asked.
            &["timeout", "1"],
        ] {
            user.run([&["vconfig"], setting].concat()).expect(0);
        }
        user.run(["--accel", "tcg", "memres", "start"]).expect(0);
        Self {
            user,
            own,
            hub: counter,
            _hub: hub,
        }
    }

    /// Pulls and runs from a registry; both must say these words and keep to the registry.
    fn refused(&self, row: &Row<'_>) {
        let before = self.hub.count();
        let port = row.registry.split([':', '/']).nth(1).unwrap();
        let seen = row.registry.replace("localhost", "10.0.2.2");
        for (command, status) in [
            (&["pull", "public:1"][..], row.status),
            (&["run", "--rm", "public:1", "true"], 125),
        ] {
            let what = format!("{}, {}", row.name, command[0]);
            let settings = ["--progress", "plain", "--registry", &row.registry];
            let ran: Ran = self
                .user
                .run([&settings[..], row.options, command].concat());
            let said = ran.stderr.replace(port, "PORT");
            assert_eq!(ran.code(), status, "{what}: {said}");
            let error = format!("cannot pull {}/public:1: ", seen.replace(port, "PORT"));
            let error = said
                .lines()
                .find_map(|line| Some(line.split_once(&error)?.1))
                .unwrap_or_else(|| panic!("{what} does not say {error:?}: {said}"));
            if row.name == "DNS" {
                assert!(error.starts_with(row.words), "{what}: {error}");
            } else {
                assert_eq!(error, row.words, "{what}");
            }
            let hint = format!(
                "{} is the configured registry; bypass it with --no-registry, or forget it with \
                 `vconfig registry --reset`",
                seen.replace(port, "PORT")
            );
            assert!(said.contains(&hint), "{what}, no word of {hint:?}: {said}");
            assert!(!said.contains("docker.io"), "{what}: {said}");
            assert_eq!(ran.text(), "", "{what}");
            assert_eq!(
                self.hub.count(),
                before,
                "{what}: Docker Hub was asked, though the registry did not say that it does not \
                 know the name"
            );
        }
        let stored = self.user.run(["images", "-q"]).expect(0);
        assert_eq!(stored.text(), "", "{}", row.name);
    }

    /// Pulls, and once more runs what is not there; both from `registry`, and stored as `name`.
    fn pulled(&self, row: &str, registry: &str, name: &str) {
        let pull = ["--registry", registry, "pull", "-q", "public:1"];
        let pulled = self.user.run(pull).expect(0);
        assert_eq!(pulled.text(), format!("{name}\n"), "{row}, pull");
        self.user.run(["rmi", name]).expect(0);
        let run = ["run", "--rm", "public:1", "echo", row];
        let ran = self
            .user
            .run([&["--registry", registry][..], &run].concat());
        assert_eq!(ran.expect(0).text(), format!("{row}\n"), "{row}, run");
        self.user.run(["rmi", name]).expect(0);
    }

    /// Found: the registry's own, and nobody else is asked.
    fn found(&self) {
        let before = self.hub.count();
        let stored = format!("10.0.2.2:{}/ns/public:1", self.own.port());
        self.pulled("found", &at(self.own.port()), &stored);
        assert_eq!(self.hub.count(), before, "found");
    }

    /// 404: Docker Hub, by its own name; but a name that states its registry means that one alone.
    fn unknown(&self) {
        let registry = at(serve(Script::Status(404, "MANIFEST_UNKNOWN")));
        let before = self.hub.count();
        self.pulled("404", &registry, "docker.io/library/public:1");
        assert!(
            self.hub.count() > before,
            "Docker Hub was not asked after a 404"
        );
        let before = self.hub.count();
        let named = format!("{registry}/public:1");
        let seen = named.replace("localhost", "10.0.2.2");
        let refused = self.user.run(["pull", &named]).expect(5);
        let said = format!("no image {seen:?}: {seen} not found");
        assert!(refused.stderr.contains(&said), "{}", refused.stderr);
        let refused = self.user.run(["run", "--rm", &named, "true"]).expect(125);
        assert!(refused.stderr.contains(&said), "{}", refused.stderr);
        assert_eq!(self.hub.count(), before, "404 of a name with a registry");
    }
}

/// The registry at a port of this computer.
fn at(port: u16) -> String {
    format!("localhost:{port}/ns")
}

/// Every row for pulls in one place. What differs between the places is the name that they have for
/// this computer, and what their name servers say.
fn every_answer(pull_in: &str, here: &str, nameless: &str) {
    let place = Place::new(pull_in);
    let storage = tempfile::tempdir().unwrap();
    let secure = Registry::start_with(
        &storage.path().join("storage"),
        free_port(),
        &[("CONTAINER_REGISTRY_SECURE", "1")],
    );
    let status = |status, words| at(serve(Script::Status(status, words)));
    let verified = &["--secure-registry"][..];
    let denied = "http://HERE:PORT/v2/ns/public/manifests/1 refused access (HTTP STATUS: said so); \
                  no credentials are set for HERE:PORT";
    let failed = "GET http://HERE:PORT/v2/ns/public/manifests/1 was answered with HTTP 500: \
                  UNKNOWN: said so";
    let untrusted = "TLS with https://HERE:PORT/v2/ns/public/manifests/1 failed: invalid peer \
                     certificate: UnknownIssuer";
    let no_tls = "TLS with https://HERE:PORT/v2/ns/public/manifests/1 failed: received corrupt \
                  message of type InvalidContentType";
    let refused = "cannot reach http://HERE:PORT/v2/: Connection refused (os error 111)";
    let silent = "cannot reach http://HERE:PORT/v2/: no data for 1 s";
    let nowhere =
        "cannot reach https://no-such-host.invalid:PORT/v2/ns/public/manifests/1: NAMELESS";
    for (name, registry, options, status, words) in [
        ("401", status(401, "UNAUTHORIZED"), &[][..], 4, denied),
        ("403", status(403, "DENIED"), &[], 4, denied),
        ("500", status(500, "UNKNOWN"), &[], 1, failed),
        ("untrusted TLS", at(secure.port()), verified, 3, untrusted),
        ("no TLS", at(serve(Script::Garbage)), verified, 3, no_tls),
        ("refused", at(free_port()), &[], 3, refused),
        ("time-out", at(serve(Script::Silence)), &[], 3, silent),
        (
            "DNS",
            "no-such-host.invalid:5000/ns".into(),
            &[],
            3,
            nowhere,
        ),
    ] {
        place.refused(&Row {
            name,
            registry,
            options,
            status,
            words: &words
                .replace("HERE", here)
                .replace(
                    "STATUS",
                    if name == "401" {
                        "401: UNAUTHORIZED"
                    } else {
                        "403: DENIED"
                    },
                )
                .replace("NAMELESS", nameless),
        });
    }
    place.found();
    place.unknown();
}

#[test]
fn every_answer_of_a_registry_to_the_machine() {
    every_answer(
        "guest",
        "10.0.2.2",
        "the name servers know no address of no-such-host.invalid",
    );
}

#[test]
fn every_answer_of_a_registry_to_this_computer() {
    // What follows are this computer's own words.
    every_answer(
        "host",
        "localhost",
        "failed to lookup address information: ",
    );
}
