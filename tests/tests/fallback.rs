//! What a pull and a run do, and say, for everything that a registry may answer, whoever pulls: the
//! machine or this computer. Docker Hub is asked after a 404 and never else.

use std::sync::{Mutex, OnceLock, PoisonError};

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, free_port};
use vdkr_tests::registry::Registry;
use vdkr_tests::scripted::{Counter, Script, serve};
use vdkr_tests::shared::Caretaker;
use vdkr_tests::vm::User;

/// Where layers are pulled. What differs is the name that this computer has there, and what the name
/// servers say.
struct Way {
    /// As `vconfig` takes it.
    pull_in: &'static str,
    here: &'static str,
    nameless: &'static str,
    place: OnceLock<Place>,
}

static IN_THE_MACHINE: Way = Way {
    pull_in: "guest",
    here: "10.0.2.2",
    nameless: "cannot reach https://no-such-host.invalid:PORT/v2/ns/public/manifests/1: the name \
               servers know no address of no-such-host.invalid",
    place: OnceLock::new(),
};

static ON_THIS_COMPUTER: Way = Way {
    pull_in: "host",
    here: "localhost",
    nameless: "cannot reach https://no-such-host.invalid:PORT/v2/ns/public/manifests/1: failed to \
               lookup address information: ",
    place: OnceLock::new(),
};

impl Way {
    /// Runs a row when it is its turn, on a machine that all rows share.
    fn run(&'static self, row: fn(&Place)) {
        let place = self.place.get_or_init(|| Place::new(self));
        let _turn = place.turn.lock().unwrap_or_else(PoisonError::into_inner);
        place.clear();
        row(place);
    }
}

/// Everything that a row needs: registries, Docker Hub's stand-in, and a user whose machine runs.
struct Place {
    _caretaker: Caretaker,
    way: &'static Way,
    /// One row at a time.
    turn: Mutex<()>,
    user: User,
    own: Registry,
    hub: Counter,
    _hub: Registry,
}

/// What a registry that is no help makes of a pull.
struct Row {
    /// The registry as the user names it.
    registry: String,
    options: &'static [&'static str],
    /// Status of a pull; that of a run is docker's 125.
    status: i32,
    /// How the error goes on after `cannot pull REFERENCE: `. The port of the registry is `PORT` in
    /// it, and this computer `HERE`.
    words: &'static str,
    /// More follows, in the system's own words.
    goes_on: bool,
}

impl Place {
    fn new(way: &'static Way) -> Self {
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
            &["pull-in", way.pull_in],
            &["accel", "tcg"],
            // How long a silent registry is waited for, each time that it is asked.
            &["timeout", "1"],
        ] {
            user.run([&["vconfig"], setting].concat()).expect(0);
        }
        user.run(["memres", "start"]).expect(0);
        Self {
            _caretaker: Caretaker::of(&[&user], &[&own, &hub]),
            way,
            turn: Mutex::default(),
            user,
            own,
            hub: counter,
            _hub: hub,
        }
    }

    /// Takes away what a row has left that failed.
    fn clear(&self) {
        self.user.run(["memres", "start"]).expect(0);
        let stored = self.user.run(["images", "-q"]).expect(0).text();
        for id in stored.lines() {
            self.user.run(["rmi", "-f", id]);
        }
    }

    /// Pulls and runs from a registry; both must say these words and keep to the registry.
    fn refused(&self, row: &Row) {
        let before = self.hub.count();
        let words = row.words.replace("HERE", self.way.here);
        let port = row.registry.split([':', '/']).nth(1).unwrap();
        let seen = row.registry.replace("localhost", "10.0.2.2");
        for (command, status) in [
            (&["pull", "public:1"][..], row.status),
            (&["run", "--rm", "public:1", "true"], 125),
        ] {
            let what = command[0];
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
            if row.goes_on {
                assert!(error.starts_with(&words), "{what}: {error}");
            } else {
                assert_eq!(error, words, "{what}");
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
        assert_eq!(stored.text(), "");
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

    /// The registry's own, and nobody else is asked.
    fn found(&self) {
        let before = self.hub.count();
        let stored = format!("10.0.2.2:{}/ns/public:1", self.own.port());
        self.pulled("found", &at(self.own.port()), &stored);
        assert_eq!(self.hub.count(), before, "found");
    }

    /// Docker Hub, by its own name; but a name that states its registry means that one alone.
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

/// One test for each row and way.
macro_rules! rows {
    ($($row:ident),* $(,)?) => {
        mod in_the_machine {
            $(#[test] fn $row() { super::IN_THE_MACHINE.run(super::$row); })*
        }
        mod on_this_computer {
            $(#[test] fn $row() { super::ON_THIS_COMPUTER.run(super::$row); })*
        }
    };
}

rows![
    found,
    status_401,
    status_403,
    status_404,
    status_500,
    untrusted_tls,
    no_tls,
    connection_refused,
    time_out,
    no_address,
];

fn found(place: &Place) {
    place.found();
}

fn status_404(place: &Place) {
    place.unknown();
}

fn denied(place: &Place, status: u16, error: &'static str, words: &'static str) {
    place.refused(&Row {
        registry: at(serve(Script::Status(status, error))),
        options: &[],
        status: 4,
        words,
        goes_on: false,
    });
}

fn status_401(place: &Place) {
    let words = "http://HERE:PORT/v2/ns/public/manifests/1 refused access (HTTP 401: UNAUTHORIZED: \
                 said so); no credentials are set for HERE:PORT";
    denied(place, 401, "UNAUTHORIZED", words);
}

fn status_403(place: &Place) {
    let words = "http://HERE:PORT/v2/ns/public/manifests/1 refused access (HTTP 403: DENIED: said \
                 so); no credentials are set for HERE:PORT";
    denied(place, 403, "DENIED", words);
}

fn status_500(place: &Place) {
    place.refused(&Row {
        registry: at(serve(Script::Status(500, "UNKNOWN"))),
        options: &[],
        status: 1,
        words: "GET http://HERE:PORT/v2/ns/public/manifests/1 was answered with HTTP 500: UNKNOWN: \
                said so",
        goes_on: false,
    });
}

fn untrusted_tls(place: &Place) {
    let storage = tempfile::tempdir().unwrap();
    let secure = Registry::start_with(
        &storage.path().join("storage"),
        free_port(),
        &[("CONTAINER_REGISTRY_SECURE", "1")],
    );
    place.refused(&Row {
        registry: at(secure.port()),
        options: &["--secure-registry"],
        status: 3,
        words: "TLS with https://HERE:PORT/v2/ns/public/manifests/1 failed: invalid peer \
                certificate: UnknownIssuer",
        goes_on: false,
    });
}

fn no_tls(place: &Place) {
    place.refused(&Row {
        registry: at(serve(Script::Garbage)),
        options: &["--secure-registry"],
        status: 3,
        words: "TLS with https://HERE:PORT/v2/ns/public/manifests/1 failed: received corrupt \
                message of type InvalidContentType",
        goes_on: false,
    });
}

fn connection_refused(place: &Place) {
    place.refused(&Row {
        registry: at(free_port()),
        options: &[],
        status: 3,
        words: "cannot reach http://HERE:PORT/v2/: Connection refused (os error 111)",
        goes_on: false,
    });
}

fn time_out(place: &Place) {
    place.refused(&Row {
        registry: at(serve(Script::Silence)),
        options: &[],
        status: 3,
        words: "cannot reach http://HERE:PORT/v2/: no data for 1 s",
        goes_on: false,
    });
}

fn no_address(place: &Place) {
    place.refused(&Row {
        registry: "no-such-host.invalid:5000/ns".to_owned(),
        options: &[],
        status: 3,
        words: place.way.nameless,
        goes_on: true,
    });
}
