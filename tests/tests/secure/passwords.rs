//! Users and passwords: Apache's files, a given password, and where none may be seen.

use std::time::Duration;

use vdkr_tests::process::{run, run_tool, run_within, tool, wait_until};

use crate::{Bench, SECURE};

#[test]
fn htpasswd_files_are_exchanged_with_apache() {
    let bench = Bench::start(&[SECURE]);
    let file = bench.file("auth/htpasswd").display().to_string();
    // Apache's program takes ours…
    run_tool("htpasswd", ["-vb", &file, "yocto", &bench.password()]).expect(0);
    run_tool("htpasswd", ["-vb", &file, "yocto", "wrong"]).expect(3);
    // … and we take its bcrypt hashes, while the server runs.
    run_tool(
        "htpasswd",
        ["-B", "-C", "5", "-b", &file, "ci", "pass word"],
    )
    .expect(0);
    wait_until("the new user is let in", Duration::from_secs(10), || {
        bench.status("/v2/", &["-u", "ci:pass word"]) == 200
    });
    // Another kind of hash is refused as a whole, with its line, and the old users stay.
    run_tool("htpasswd", ["-m", "-b", &file, "old", "md5"]).expect(0);
    std::thread::sleep(Duration::from_millis(3500));
    assert_eq!(bench.status("/v2/", &["-u", "old:md5"]), 401);
    assert_eq!(bench.status("/v2/", &["-u", "ci:pass word"]), 200);
    bench.registry.stop();
    let refused = bench.registry.run(["start"]).expect(1);
    assert!(refused.stderr.contains("line 3"), "{}", refused.stderr);
    run_tool("htpasswd", ["-D", &file, "old"]).expect(0);
    bench.registry.run(["start"]).expect(0);
    assert_eq!(bench.status("/v2/", &["-u", "ci:pass word"]), 200);
}

#[test]
fn weakness_4b_21_a_given_password_counts_and_auth_alone_is_secure() {
    let password = "p w$(id)'\"*";
    let bench = Bench::start(&[
        ("CONTAINER_REGISTRY_AUTH", "1"),
        ("CONTAINER_REGISTRY_USERNAME", "builder"),
        ("CONTAINER_REGISTRY_PASSWORD", password),
    ]);
    assert_eq!(bench.password(), password);
    assert_eq!(
        bench.status("/v2/", &["-u", &format!("builder:{password}")]),
        200
    );
    assert_eq!(bench.status("/v2/", &["-u", "docker:docker"]), 401);
    let status = bench.registry.run(["status"]).expect(0);
    assert!(
        status.stderr.contains("CONTAINER_REGISTRY_AUTH=1 without"),
        "{}",
        status.stderr
    );
    let config = bench.registry.run(["config"]).expect(0).text();
    assert!(
        config.contains("CONTAINER_REGISTRY_USERNAME") && !config.contains(password),
        "{config}"
    );
    bench
        .registry
        .run(["push", bench.layout("app").to_str().unwrap()])
        .expect(0);
    // The file keeps it: the next start needs no variable.
    bench.restart();
    bench.registry.run(["catalog"]).expect(0);
}

#[test]
fn no_password_is_in_a_command_line_or_a_log() {
    let password = "Sup3rSecretWord";
    let bench = Bench::start(&[
        SECURE,
        ("CONTAINER_REGISTRY_PASSWORD", password),
        ("CONTAINER_REGISTRY_LOG", "trace"),
    ]);
    bench.status("/v2/", &["-u", &format!("yocto:{password}x")]);
    let push = run(bench
        .registry
        .command()
        .args(["push", bench.layout("app").to_str().unwrap()]))
    .expect(0);
    assert!(!push.stderr.contains(password) && !push.text().contains(password));
    let line = std::fs::read(format!("/proc/{}/cmdline", bench.pid())).unwrap();
    assert!(!String::from_utf8_lossy(&line).contains(password));
    let log = bench.text(&format!("run/registry-{}.log", bench.registry.port()));
    assert!(!log.contains(password), "{log}");
    // Nor is what stands for it in a request.
    let encoded = run_within(
        tool("openssl").args(["base64", "-A"]),
        format!("yocto:{password}").as_bytes(),
        Duration::from_secs(10),
    );
    assert!(!log.contains(encoded.text().trim()), "{log}");
}
