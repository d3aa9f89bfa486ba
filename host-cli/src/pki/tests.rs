//! Keys and certificates over their life.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use super::*;

const NOW: i64 = 1_800_000_000;

struct Bench {
    dir: tempfile::TempDir,
    pki: Pki,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pki = Pki::new(dir.path());
        Self { dir, pki }
    }

    fn ensure(&self, names: &str, now: i64) -> Standing {
        self.pki.ensure(&wanted(names), now).unwrap()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("pki").join(name)
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.file(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }

    /// Runs openssl in the directory; the arguments are separated by blanks.
    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(self.dir.path().join("pki"))
            .output()
            .unwrap();
        assert!(
            done.status.success(),
            "openssl {arguments}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
}

fn wanted(names: &str) -> Wanted {
    Wanted {
        host: "localhost".into(),
        names: AltName::parse_list(names).unwrap(),
        server_days: 365,
        ca_days: 3650,
    }
}

#[test]
fn made_once_and_then_left_alone() {
    let bench = Bench::new();
    let first = bench.ensure("localhost 10.0.2.2 ::1", NOW);
    assert_eq!(first.made.len(), 2, "{:?}", first.made);
    assert!(first.warnings.is_empty(), "{:?}", first.warnings);
    assert!(first.ca.is_ca && !first.server.is_ca);
    assert!(first.server.is_issued_by(&first.ca));
    assert!(!first.ca.is_issued_by(&first.server));
    assert_eq!(first.ca.validity.days_left(NOW), 3650);
    assert_eq!(first.server.validity.days_left(NOW), 365);
    assert_eq!(
        first.server.names,
        AltName::parse_list("localhost 10.0.2.2 ::1").unwrap()
    );
    for (name, mode) in [("ca.key", 0o600), ("server.key", 0o600)] {
        assert_eq!(bench.mode(name), mode, "{name}");
    }
    assert_eq!(
        std::fs::read(bench.file("ca.crt")).unwrap(),
        std::fs::read(bench.dir.path().join("certs/ca.crt")).unwrap()
    );
    let again = bench.ensure("localhost", NOW + DAY);
    assert!(again.made.is_empty(), "{:?}", again.made);
    assert_eq!(again.server.fingerprint, first.server.fingerprint);
    let (ca, server) = bench.pki.show().unwrap();
    assert_eq!(
        (ca.fingerprint, server.fingerprint),
        (first.ca.fingerprint, first.server.fingerprint)
    );
}

#[test]
fn issued_again_near_its_end_and_for_a_new_name_by_the_same_ca() {
    let bench = Bench::new();
    let first = bench.ensure("localhost", NOW);
    let named = bench.ensure("localhost 192.168.7.1", NOW + DAY);
    assert_eq!(
        named.made,
        ["a server certificate (the old one lacks IP:192.168.7.1)"]
    );
    let late = bench.ensure("localhost", NOW + 350 * DAY);
    assert_eq!(late.made.len(), 1, "{:?}", late.made);
    assert_eq!(late.server.validity.days_left(NOW + 350 * DAY), 365);
    for standing in [&named, &late] {
        assert_eq!(standing.ca.fingerprint, first.ca.fingerprint);
        assert_eq!(standing.server.public_key(), first.server.public_key());
        assert!(standing.server.is_issued_by(&first.ca));
    }
    assert_ne!(late.server.fingerprint, named.server.fingerprint);
}

#[test]
fn a_server_certificate_ends_with_its_ca_and_is_not_issued_without_end() {
    let bench = Bench::new();
    let first = bench.ensure("localhost", NOW);
    let end = first.ca.validity.not_after;
    let late = bench.ensure("localhost", end - 20 * DAY);
    assert_eq!(late.server.validity.not_after, end);
    assert!(late.warnings[0].contains("20 days"), "{:?}", late.warnings);
    assert!(bench.ensure("localhost", end - DAY / 4).made.is_empty());
    let error = bench.pki.ensure(&wanted("localhost"), end + 1).unwrap_err();
    assert!(error.to_string().contains("pki renew --ca"), "{error}");
    let error = bench
        .pki
        .ensure(&wanted("localhost"), NOW - 9 * DAY)
        .unwrap_err();
    assert!(error.to_string().contains("clock"), "{error}");
    let renewed = bench
        .pki
        .renew(&wanted("localhost"), Renew::Ca, end + 1)
        .unwrap();
    assert_ne!(renewed.ca.fingerprint, first.ca.fingerprint);
    assert!(renewed.server.is_issued_by(&renewed.ca));
}

#[test]
fn renewing_keeps_the_key_unless_told() {
    let bench = Bench::new();
    let first = bench.ensure("localhost", NOW);
    let renew = |what| bench.pki.renew(&wanted("localhost"), what, NOW).unwrap();
    let server = renew(Renew::Server);
    assert_ne!(server.server.fingerprint, first.server.fingerprint);
    assert_eq!(server.server.public_key(), first.server.public_key());
    let key = renew(Renew::ServerKey);
    assert_ne!(key.server.public_key(), first.server.public_key());
    assert_eq!(key.ca.fingerprint, first.ca.fingerprint);
    assert_eq!(bench.mode("server.key"), 0o600);
    assert!(bench.ensure("localhost", NOW).made.is_empty());
}

#[test]
fn what_a_crash_leaves_is_put_right() {
    let bench = Bench::new();
    bench.ensure("localhost", NOW);
    // Killed between key and certificate, at first and when a key was renewed.
    std::fs::remove_file(bench.file("server.crt")).unwrap();
    assert_eq!(bench.ensure("localhost", NOW).made.len(), 1);
    let other = Key::generate().unwrap().to_pem().unwrap();
    std::fs::write(bench.file("server.key"), &other).unwrap();
    assert_eq!(bench.ensure("localhost", NOW).made.len(), 1);
    for name in ["server.crt", "server.key"] {
        std::fs::write(bench.file(name), "torn").unwrap();
        let standing = bench.ensure("localhost", NOW);
        assert_eq!(standing.made.len(), 1, "{name}");
        assert!(bench.ensure("localhost", NOW).made.is_empty());
    }
    // A CA whose certificate was not written yet: nobody knows it, its key will do.
    std::fs::remove_file(bench.file("ca.crt")).unwrap();
    let standing = bench.ensure("localhost", NOW);
    assert!(standing.server.is_issued_by(&standing.ca));
    std::fs::write(bench.file("ca.key"), &other).unwrap();
    let error = bench.pki.ensure(&wanted("localhost"), NOW).unwrap_err();
    assert!(
        error.to_string().contains("ca.key is not its key"),
        "{error}"
    );
    for torn in ["ca.key", "ca.crt"] {
        std::fs::write(bench.file(torn), "torn").unwrap();
        let error = bench.pki.ensure(&wanted("localhost"), NOW).unwrap_err();
        assert!(error.to_string().contains(torn), "{error}");
    }
}

#[test]
fn the_ca_key_may_be_kept_elsewhere() {
    let bench = Bench::new();
    let first = bench.ensure("localhost", NOW);
    std::fs::remove_file(bench.file("ca.key")).unwrap();
    let without = bench.ensure("localhost newname", NOW);
    assert_eq!(without.server.fingerprint, first.server.fingerprint);
    assert!(
        without.warnings[0].contains("newname"),
        "{:?}",
        without.warnings
    );
    std::fs::remove_file(bench.file("server.crt")).unwrap();
    let error = bench.pki.ensure(&wanted("localhost"), NOW).unwrap_err();
    assert!(matches!(error, PkiError::NoCaKey(_)), "{error}");
}

#[test]
fn keys_that_others_can_read_are_told_about_and_protected() {
    let bench = Bench::new();
    bench.ensure("localhost", NOW);
    let open = std::fs::Permissions::from_mode(0o644);
    std::fs::set_permissions(bench.file("ca.key"), open).unwrap();
    let standing = bench.ensure("localhost", NOW);
    assert!(
        standing.warnings[0].contains("could be read by others"),
        "{:?}",
        standing.warnings
    );
    let mode = std::fs::metadata(bench.file("ca.key"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(bench.ensure("localhost", NOW).warnings.is_empty());
}

#[test]
fn two_starters_make_one_ca() {
    let bench = Bench::new();
    let fingerprints: Vec<_> = std::thread::scope(|scope| {
        let starters: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let standing = bench.ensure("localhost", NOW);
                    (standing.ca.fingerprint, standing.server.fingerprint)
                })
            })
            .collect();
        starters.into_iter().map(|s| s.join().unwrap()).collect()
    });
    assert!(
        fingerprints.iter().all(|one| *one == fingerprints[0]),
        "{fingerprints:?}"
    );
}

/// What the generated script makes: an RSA CA without key usages, a server certificate with few names.
fn todays_system(bench: &Bench, pkcs1: bool) {
    std::fs::create_dir_all(bench.dir.path().join("pki")).unwrap();
    bench.openssl("genrsa -out ca.key 2048");
    bench.openssl("req -new -x509 -days 3650 -key ca.key -out ca.crt -subj /C=US/O=Yocto/CN=Container-Registry-CA");
    bench.openssl("genrsa -out server.key 2048");
    bench.openssl("req -new -key server.key -out server.csr -subj /CN=localhost/O=Yocto/C=US");
    std::fs::write(
        bench.file("san"),
        "subjectAltName=DNS:localhost,DNS:localhost,IP:127.0.0.1,IP:10.0.2.2\n",
    )
    .unwrap();
    bench.openssl("x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 365 -extfile san");
    if pkcs1 {
        for key in ["ca.key", "server.key"] {
            bench.openssl(&format!("rsa -in {key} -traditional -out {key}"));
            let text = std::fs::read_to_string(bench.file(key)).unwrap();
            assert!(text.contains("BEGIN RSA PRIVATE KEY"), "{text}");
        }
    }
}

fn now() -> i64 {
    jiff::Timestamp::now().as_second()
}

#[test]
fn weakness_4b_20_certificates_of_todays_system_are_used_and_renewed_by_their_own_ca() {
    for pkcs1 in [false, true] {
        let bench = Bench::new();
        todays_system(&bench, pkcs1);
        let before = std::fs::read(bench.file("server.crt")).unwrap();
        let same = bench.ensure("localhost 127.0.0.1 10.0.2.2", now());
        assert!(same.made.is_empty(), "{:?}", same.made);
        assert_eq!(std::fs::read(bench.file("server.crt")).unwrap(), before);
        let more = bench.ensure("localhost 127.0.0.1 10.0.2.2 ::1", now());
        assert_eq!(more.made.len(), 1, "{:?}", more.made);
        assert_eq!(more.ca.fingerprint, same.ca.fingerprint);
        assert_eq!(more.server.public_key(), same.server.public_key());
        assert!(more.server.is_issued_by(&more.ca));
        bench.openssl("verify -CAfile ca.crt -purpose sslserver -verify_hostname localhost -verify_ip ::1 server.crt");
    }
}

#[test]
fn made_certificates_pass_openssl_at_its_strictest() {
    let bench = Bench::new();
    bench.ensure("localhost 10.0.2.2 ::1 *.lab.example", now());
    for check in [
        "-verify_hostname localhost",
        "-verify_hostname a.lab.example",
        "-verify_ip 10.0.2.2",
        "-verify_ip ::1",
    ] {
        bench.openssl(&format!(
            "verify -x509_strict -CAfile ca.crt -purpose sslserver {check} server.crt"
        ));
    }
}

#[test]
fn somebody_elses_certificate_is_used_and_never_replaced() {
    let bench = Bench::new();
    std::fs::create_dir_all(bench.dir.path().join("pki")).unwrap();
    bench.openssl("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 5 -keyout server.key -out server.crt -subj /CN=corp -addext subjectAltName=DNS:corp.example");
    let before = std::fs::read(bench.file("server.crt")).unwrap();
    let standing = bench.ensure("localhost 10.0.2.2", now());
    assert_eq!(std::fs::read(bench.file("server.crt")).unwrap(), before);
    assert!(
        standing.warnings.iter().any(|w| w.contains("localhost")),
        "{:?}",
        standing.warnings
    );
    for what in [Renew::Server, Renew::ServerKey] {
        let error = bench
            .pki
            .renew(&wanted("localhost"), what, now())
            .unwrap_err();
        assert!(matches!(error, PkiError::Foreign { .. }), "{error}");
    }
    let other = Key::generate().unwrap().to_pem().unwrap();
    std::fs::write(bench.file("server.key"), &other).unwrap();
    let error = bench.pki.ensure(&wanted("localhost"), now()).unwrap_err();
    assert!(matches!(error, PkiError::Foreign { .. }), "{error}");
    assert_eq!(std::fs::read(bench.file("server.crt")).unwrap(), before);
}
