//! A machine without state beside one that is kept, and ports that are there with the very first
//! container: what the first command of a day does, and what one command must not do to another.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{Ran, free_port, run_within, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "base:1";

fn answers(port: u16, word: &str) -> bool {
    let Ok(mut stream) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else {
        return false;
    };
    let limit = Some(Duration::from_secs(20));
    stream.set_read_timeout(limit).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).is_ok() && answer.trim_end() == word
}

fn server(word: &str) -> String {
    format!("while :; do echo {word} | nc -l -p 80; done")
}

/// `vdkr` as somebody uses it who has set nothing.
fn plainly(user: &User, args: &[&str]) -> Ran {
    let mut command = user.command();
    command.env_remove("VDKR_AUTO_DAEMON").args(args);
    run_within(&mut command, b"", PATIENCE)
}

#[test]
fn ports_of_the_first_container_are_open() {
    let user = User::new("x86_64");
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    let image = layout("qemux86-64", "container-base-latest-oci");
    user.run(["vimport", image.to_str().unwrap(), IMAGE])
        .expect(0);
    // Nothing runs, neither with the setting that keeps machines nor without it.
    for (keeps, form) in [
        (true, "-p"),
        (false, "--publish="),
        (true, "-p="),
        (false, "-p"),
    ] {
        assert!(user.processes().is_empty());
        let port = free_port();
        let publish = match form.strip_suffix('=') {
            Some(_) => vec![format!("{form}{port}:80")],
            None => vec![form.to_owned(), format!("127.0.0.1:{port}:80")],
        };
        let script = server("here");
        let mut line = vec!["run", "-d", "--name", "web"];
        line.extend(publish.iter().map(String::as_str));
        line.extend([IMAGE, "sh", "-c", &script]);
        let id = if keeps {
            plainly(&user, &line)
        } else {
            user.run(line)
        };
        assert_eq!(id.expect(0).text().trim().len(), 64);
        wait_until("the container answers", PATIENCE, || answers(port, "here"));
        let shown = user.run(["ps", "--format", "{{.Ports}}"]).expect(0).text();
        assert_eq!(shown.trim(), format!("127.0.0.1:{port}->80/tcp"));
        user.run(["rm", "-f", "web"]).expect(0);
        user.run(["memres", "stop"]).expect(0);
        wait_until("no process is left", PATIENCE, || {
            user.processes().is_empty()
        });
    }
}

#[test]
fn a_machine_without_state_leaves_the_kept_one_alone() {
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    let image = image.to_str().unwrap();
    registry.run(["push", image, "--tag", "latest"]).expect(0);
    let user = User::new("x86_64");
    user.run(["vconfig", "accel", "tcg"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    user.run(["vconfig", "registry", &prefix]).expect(0);
    user.run(["memres", "start"]).expect(0);
    user.run(["vimport", image, IMAGE]).expect(0);
    user.run(["run", "-d", "--name", "stays", IMAGE, "sleep", "1000"])
        .expect(0);
    let state = || {
        let status = user.run(["memres", "status", "--json"]).expect(0).text();
        let status: Value = serde_json::from_str(&status).unwrap();
        let one = |line: &[&str]| user.run(line.iter().copied()).expect(0).text();
        (
            status["machine_id"].clone(),
            status["monitor"].clone(),
            one(&["images", "-q", "--no-trunc"]),
            one(&["ps", "-aq", "--no-trunc"]),
            one(&["volume", "ls", "-q"]),
        )
    };
    let before = state();
    for plain in [false, true] {
        let without = |line: &[&str]| {
            let line = [&["--stateless"], line].concat();
            if plain {
                plainly(&user, &line)
            } else {
                user.run(line)
            }
        };
        assert_eq!(without(&["images", "-q"]).expect(0).text(), "");
        assert_eq!(without(&["ps", "-aq"]).expect(0).text(), "");
        without(&["run", "--rm", "--pull", "never", IMAGE, "true"]).expect(125);
        // It pulls for itself, and what it has goes with it.
        for place in ["host", "guest"] {
            let run = ["--pull-in", place, "run", "--name", "stays", "-v", "vol:/v"];
            let hello = [
                "container-base",
                "sh",
                "-c",
                "cat /proc/sys/kernel/random/boot_id",
            ];
            let said = without(&[&run[..], &hello].concat()).expect(0).text();
            assert_eq!(said.trim().len(), 36, "{said}");
        }
        let start = without(&["memres", "start"]).expect(2);
        assert!(start.stderr.contains("without state"), "{}", start.stderr);
        let detached = without(&["run", "-d", "container-base", "true"]);
        assert_ne!(detached.code(), 0, "{}", detached.text());
        assert_eq!(state(), before, "plain: {plain}");
        assert_eq!(user.processes().len(), 2, "{:?}", user.processes());
    }
    // It is the other way round as well: what runs is not in the way of one who wants no state.
    user.run(["exec", "stays", "true"]).expect(0);
    user.run(["rm", "-f", "stays"]).expect(0);
}
