//! Certificates: what other verifiers say, renewal under a running server, a foreign authority.

use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use vdkr_tests::peers::curl_status;
use vdkr_tests::process::{free_port, run, run_tool, run_within, tool, wait_until};
use vdkr_tests::registry::Registry;

use crate::{Bench, SECURE};

#[test]
fn certificates_pass_the_verifiers_of_others() {
    let bench = Bench::start(&[
        SECURE,
        (
            "CONTAINER_REGISTRY_CERT_SAN",
            "DNS:lab.example,IP:10.77.0.1",
        ),
    ]);
    let server = bench.file("pki/server.crt").display().to_string();
    for check in [
        ["-verify_hostname", "localhost"],
        ["-verify_hostname", "lab.example"],
        ["-verify_ip", "127.0.0.1"],
        ["-verify_ip", "::1"],
        ["-verify_ip", "10.0.2.2"],
        ["-verify_ip", "10.77.0.1"],
    ] {
        let mut args = vec!["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"];
        let ca = bench.ca();
        args.push(&ca);
        args.extend(check);
        args.push(&server);
        run_tool("openssl", args).expect(0);
    }
    let host = bench.registry.host();
    let ca = bench.ca();
    let session = run_within(
        tool("openssl").args([
            "s_client",
            "-connect",
            &host,
            "-CAfile",
            &ca,
            "-verify_return_error",
            "-verify_hostname",
            "localhost",
        ]),
        b"Q\n",
        Duration::from_secs(20),
    )
    .expect(0);
    assert!(
        session.text().contains("Verify return code: 0 (ok)"),
        "{}",
        session.text()
    );
    // IPv4 and a client that asks for an address and not a name.
    let by_address = format!("https://127.0.0.1:{}/v2/", bench.registry.port());
    assert_eq!(curl_status(&["--cacert", &ca, &by_address]), 401);
    // Python's library, as strict as it can be told to be.
    let script = format!(
        "import socket, ssl\n\
         context = ssl.create_default_context(cafile={ca:?})\n\
         context.verify_flags |= ssl.VERIFY_X509_STRICT\n\
         with socket.create_connection(('localhost', {})) as plain:\n    \
             context.wrap_socket(plain, server_hostname='localhost').close()\n",
        bench.registry.port()
    );
    run_tool("python3", ["-c", &script]).expect(0);
}

#[test]
fn an_ending_certificate_is_renewed_under_the_running_server() {
    let bench = Bench::start(&[SECURE]);
    let first = bench.shown();
    // A certificate of the same CA and key that ends tomorrow.
    let pki = bench.file("pki");
    std::fs::write(
        pki.join("ext"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\n",
    )
    .unwrap();
    for arguments in [
        "req -new -key server.key -subj /CN=localhost -out server.csr",
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 1 -extfile ext -out ending.crt",
    ] {
        run(tool("openssl").args(arguments.split(' ')).current_dir(&pki)).expect(0);
    }
    std::fs::rename(pki.join("ending.crt"), pki.join("server.crt")).unwrap();
    wait_until(
        "the server shows the new file",
        Duration::from_secs(10),
        || bench.shown() != first,
    );
    let ending = bench.shown();
    bench.hang_up();
    wait_until("it is renewed", Duration::from_secs(20), || {
        bench.shown() != ending
    });
    let shown: Value = serde_json::from_slice(
        &bench
            .registry
            .run(["pki", "show", "--json"])
            .expect(0)
            .stdout,
    )
    .unwrap();
    assert_eq!(shown["server"]["fingerprint"], bench.shown());
    // Whole days: one less as soon as a second has passed.
    let days = shown["server"]["days_left"].as_u64();
    assert!(matches!(days, Some(364 | 365)), "{days:?}");
    bench.registry.run(["status"]).expect(0);

    // As asked, with a new key, and with a new CA: the running server takes each up.
    for options in [
        &["pki", "renew"][..],
        &["pki", "renew", "--new-key"],
        &["pki", "renew", "--ca"],
    ] {
        let before = bench.shown();
        bench.registry.run(options.iter().copied()).expect(0);
        wait_until("the renewed one is shown", Duration::from_secs(10), || {
            bench.shown() != before
        });
        bench.registry.run(["status"]).expect(0);
    }
}

#[test]
fn a_new_name_is_taken_into_the_certificate_by_the_same_ca() {
    let dir = TempDir::new().unwrap();
    let storage = dir.path().join("storage");
    let port = free_port();
    let names = |registry: &Registry| {
        let shown = registry.run(["pki", "show", "--json"]).expect(0);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        (
            shown["ca"]["fingerprint"].to_string(),
            shown["server"]["names"].to_string(),
        )
    };
    let registry = Registry::start_with(&storage, port, &[SECURE]);
    let (ca, before) = names(&registry);
    assert!(
        before.contains("IP:10.0.2.2") && !before.contains("DNS:extra"),
        "{before}"
    );
    drop(registry);
    let registry = Registry::start_with(
        &storage,
        port,
        &[SECURE, ("CONTAINER_REGISTRY_CERT_SAN", "extra")],
    );
    let (same, after) = names(&registry);
    assert_eq!(same, ca);
    assert!(after.contains("DNS:extra"), "{after}");
    registry.run(["status"]).expect(0);
}

#[test]
fn another_ca_is_a_clear_error_and_no_password_is_sent() {
    let bench = Bench::start(&[SECURE]);
    let other = TempDir::new().unwrap();
    let with = |args: &[&str]| {
        run(bench
            .registry
            .command()
            .env("CONTAINER_REGISTRY_STORAGE", other.path())
            .args(args))
    };
    // A storage that knows no CA, then one with a CA of its own.
    for _ in 0..2 {
        let refused = with(&["catalog"]).expect(3);
        assert!(refused.stderr.contains("ca.crt"), "{}", refused.stderr);
        assert!(
            refused.stderr.contains("UnknownIssuer"),
            "{}",
            refused.stderr
        );
        with(&["pki", "init"]).expect(0);
    }
}
