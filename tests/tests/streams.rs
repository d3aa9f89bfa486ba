//! What containers say and hear when it is much, when it takes long, and when it is nothing at all.
//! One VM for all of it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::{digest, noise};
use vdkr_tests::process::run_within;
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

/// How long one container is silent, and another one talks.
const LONG: Duration = Duration::from_secs(90);
/// Bytes that a container prints.
const MUCH: usize = 100 << 20;

fn start(user: &User, args: &[&str]) -> Child {
    user.command()
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn much_for_long_and_nothing_for_long() {
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    registry.run(["push", image.to_str().unwrap()]).expect(0);
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let prefix = format!("{}/yocto", registry.host());
    user.run(["--registry", &prefix, "pull", "container-base"])
        .expect(0);
    user.run(["tag", "container-base", "box"]).expect(0);

    // One says nothing between its first and its last word; one counts all the time, and is followed.
    let begun = Instant::now();
    let seconds = LONG.as_secs();
    let silent = format!("echo first; sleep {seconds}; echo last; exit 9");
    let silent = start(&user, &["run", "--rm", "box", "sh", "-c", &silent]);
    let counting = "i=0; while [ ! -e /stop ]; do echo $i; i=$((i+1)); sleep 0.02; done";
    user.run(["run", "-d", "--name", "count", "box", "sh", "-c", counting])
        .expect(0);
    let mut follower = start(&user, &["logs", "-f", "count"]);
    let lines = BufReader::new(follower.stdout.take().unwrap());
    let counted = std::thread::spawn(move || {
        let mut next = 0_u64;
        for line in lines.lines() {
            assert_eq!(line.unwrap(), next.to_string(), "a line is lost");
            next += 1;
        }
        next
    });

    // Meanwhile 100 MB come out of another one, every byte of them.
    let print = format!("yes 0123456 | head -c {MUCH}");
    let mut printing = start(&user, &["run", "--rm", "box", "sh", "-c", &print]);
    let mut out = printing.stdout.take().unwrap();
    let (mut count, mut buffer) = (0, vec![0; 1 << 20]);
    loop {
        let length = out.read(&mut buffer).unwrap();
        if length == 0 {
            break;
        }
        for (at, byte) in buffer[..length].iter().enumerate() {
            assert_eq!(*byte, b"0123456\n"[(count + at) % 8], "byte {}", count + at);
        }
        count += length;
    }
    assert_eq!(count, MUCH);
    assert!(printing.wait().unwrap().success());

    // And bytes of every kind go in and come back.
    let input = noise(7, 16 << 20);
    let cat = ["run", "--rm", "-i", "box", "cat"];
    let back = run_within(user.command().args(cat), &input, PATIENCE).expect(0);
    assert_eq!(digest(&back.stdout), digest(&input));
    // With words on stderr between them.
    let both = "head -c 3000000 | tee /dev/stderr; cat >/dev/null";
    let mut child = user
        .command()
        .args(["run", "--rm", "-i", "box", "sh", "-c", both])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = input.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&sent).is_ok());
    let output = child.wait_with_output().unwrap();
    assert!(writer.join().unwrap() && output.status.success());
    assert_eq!(digest(&output.stdout), digest(&input[..3_000_000]));
    assert_eq!(digest(&output.stderr), digest(&input[..3_000_000]));

    // The silent one is still heard, and the counting one has lost nothing.
    let heard = silent.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&heard.stdout), "first\nlast\n");
    assert_eq!(heard.status.code(), Some(9));
    assert!(begun.elapsed() >= LONG);
    user.run(["exec", "count", "touch", "/stop"]).expect(0);
    assert_eq!(user.run(["wait", "count"]).expect(0).text(), "0\n");
    assert!(follower.wait().unwrap().success());
    let counted = counted.join().unwrap();
    assert!(counted > 100, "it counted to {counted} only");
    let logged = user.run(["logs", "-n", "1", "count"]).expect(0).text();
    assert_eq!(logged, format!("{}\n", counted - 1));
    user.run(["rm", "count"]).expect(0);
}
