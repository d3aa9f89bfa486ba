//! A machine of the other architecture, under emulation: images pulled on this computer and in the
//! machine, directories and ports. What its containers do otherwise is in `containers.rs`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::{free_port, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

fn answer(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"x\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

#[test]
fn images_directories_and_ports() {
    let registry = Registry::start();
    let image = layout("qemuarm64", "container-base-latest-oci");
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    let user = User::new("aarch64");
    let prefix = format!("{}/yocto", registry.host());
    user.run(["vconfig", "registry", &prefix]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);

    // Pulled by a run, on this computer; then in the machine; the same image both times.
    let uname = ["run", "--rm", "container-base", "uname", "-m"];
    let layers =
        || fs::read_dir(user.home().join(".vdkr/layers/sha256")).map_or(0, Iterator::count);
    let [here, there] = ["host", "guest"].map(|place| {
        let options = ["--pull-in", place];
        let ran = user.run([&options[..], &uname].concat()).expect(0);
        assert_eq!(ran.text(), "aarch64\n", "{place}");
        let id = user.run(["images", "-q", "--no-trunc"]).expect(0).text();
        if place == "host" {
            assert!(layers() > 0);
            user.run(["rmi", "container-base"]).expect(0);
        }
        id
    });
    assert_eq!(here, there);
    user.run(["rmi", "container-base"]).expect(0);
    user.run(["pull", "container-base"]).expect(0);

    // A directory, live both ways, and a port, of a container in the background.
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("in"), "from here\n").unwrap();
    let volume = format!("{}:/v", place.path().display());
    let port = free_port();
    let publish = format!("{port}:80");
    let script = "cat /v/in > /v/out; while true; do cat /v/in | nc -l -p 80; done";
    let run = ["run", "-d", "--name", "web"];
    let options = ["-v", &volume, "-p", &publish];
    let command = ["container-base", "sh", "-c", script];
    user.run([&run[..], &options, &command].concat()).expect(0);
    wait_until("the container's file", PATIENCE, || {
        fs::read_to_string(place.path().join("out")).is_ok_and(|text| text == "from here\n")
    });
    fs::write(place.path().join("in"), "changed\n").unwrap();
    wait_until("the container's answer", PATIENCE, || {
        answer(port).as_deref() == Some("changed\n")
    });
    let limits = [
        "run",
        "--rm",
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--cap-drop",
        "ALL",
    ];
    let script = "cat /sys/fs/cgroup/memory.max; grep CapEff /proc/self/status; grep Seccomp: /proc/self/status";
    let seen = user
        .run([&limits[..], &["container-base", "sh", "-c", script]].concat())
        .expect(0);
    assert_eq!(
        seen.text(),
        "67108864\nCapEff:\t0000000000000000\nSeccomp:\t2\n"
    );

    let read = user.run(["exec", "web", "cat", "/v/in"]).expect(0);
    assert_eq!(read.text(), "changed\n");
    user.run(["rm", "-f", "web"]).expect(0);
    wait_until("the port's end", PATIENCE, || answer(port).is_none());

    // A machine that starts anew is handed the layers again.
    user.run(["memres", "restart"]).expect(0);
    let cat = ["run", "--rm", "--pull", "never", "-v", &volume];
    let command = ["container-base", "cat", "/v/in"];
    let read = user.run([&cat[..], &command].concat()).expect(0);
    assert_eq!(read.text(), "changed\n");
}
