//! Containers on a user's terminal.

use std::fs;
use std::process::Command;

use vdkr_tests::fixtures::layout;
use vdkr_tests::process::wait_until;
use vdkr_tests::pty::Terminal;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "base:1";

/// Shows a word once the terminal has this size. The word is split, so that its echo is not it.
fn when_size(rows: u16, columns: u16, word: &str) -> String {
    let (begin, end) = word.split_at(2);
    format!(
        "until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.1; done; echo {begin}''{end}\n"
    )
}

fn on_terminal(user: &User, words: &[&str]) -> Terminal {
    let mut command: Command = user.command();
    command.args(words);
    Terminal::start(&command, 30, 100)
}

#[test]
fn a_container_has_the_users_terminal() {
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let image = layout("qemux86-64", "container-base-latest-oci");
    user.run(["vimport", image.to_str().unwrap(), IMAGE])
        .expect(0);

    // Size at the start and later, keys as they are, the end.
    let mut terminal = on_terminal(&user, &["run", "-it", "--rm", IMAGE, "sh"]);
    terminal.keys(&when_size(30, 100, "started"));
    terminal.until("started");
    assert!(terminal.is_raw());
    terminal.resize(40, 120);
    terminal.keys(&when_size(40, 120, "resized"));
    terminal.until("resized");
    let trap = "sh -c 'trap \"echo cau\"ght\"; exit 0\" INT; echo rea\"\"dy; while :; do sleep 0.1; done'\n";
    terminal.keys(trap);
    terminal.until("ready");
    terminal.keys("\x03");
    terminal.until("caught");
    terminal.keys("\x04");
    assert_eq!(terminal.ended().code(), Some(0));

    // Its status is the command's; the terminal comes back when somebody else ends it, too.
    let mut terminal = on_terminal(&user, &["run", "-it", "--name", "one", IMAGE, "sh"]);
    terminal.keys("echo he''re\n");
    terminal.until("here");
    user.run(["kill", "one"]).expect(0);
    assert_eq!(terminal.ended().code(), Some(137));

    // Left alone, it goes on, and is come back to.
    let mut terminal = on_terminal(&user, &["run", "-it", "--name", "two", IMAGE, "sh"]);
    terminal.keys("word=ki''ss; echo he''re\n");
    terminal.until("here");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.ended().code(), Some(0));
    let running = || user.run(["ps", "--format", "{{.Names}}"]).expect(0).text();
    assert_eq!(running(), "two\n");
    let mut terminal = on_terminal(&user, &["attach", "--detach-keys", "ctrl-a,d", "two"]);
    // What is typed before anybody listens waits in the terminal.
    terminal.keys("echo $word-\n");
    terminal.until("kiss-");
    terminal.keys("\x01d");
    assert_eq!(terminal.ended().code(), Some(0));

    // One more process: its size, the keys in it; it goes on too.
    let mut terminal = on_terminal(&user, &["exec", "-it", "two", "sh"]);
    terminal.keys(&when_size(30, 100, "within"));
    terminal.until("within");
    terminal.keys("sleep 4321 & echo sl''ept\n");
    terminal.until("slept");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.ended().code(), Some(0));
    let processes = user.run(["top", "two"]).expect(0).text();
    assert!(processes.contains("sleep 4321"), "{processes}");
    let mut terminal = on_terminal(&user, &["exec", "-it", "two", "sh"]);
    terminal.keys("exit 7\n");
    assert_eq!(terminal.ended().code(), Some(7));

    // Started again, with the user at it.
    user.run(["kill", "two"]).expect(0);
    wait_until("the container has ended", PATIENCE, || running().is_empty());
    let mut terminal = on_terminal(&user, &["start", "-a", "-i", "two"]);
    terminal.keys("echo ag''ain\n");
    terminal.until("again");
    terminal.keys("\x10\x11");
    assert_eq!(terminal.ended().code(), Some(0));
    assert_eq!(running(), "two\n");

    // With a directory of this computer, on a machine that is kept and on one that is not.
    let dir = tempfile::tempdir().unwrap();
    let volume = format!("{}:/data", dir.path().display());
    for (kept, options) in [(true, &[][..]), (false, &["--accel", "tcg"])] {
        if !kept {
            user.run(["memres", "stop"]).expect(0);
        }
        fs::write(dir.path().join("in"), "from here\n").unwrap();
        let run = ["run", "-it", "--rm", "-v", &volume, IMAGE, "sh"];
        let mut terminal = on_terminal(&user, &[options, &run].concat());
        terminal.keys("cat /data/in\n");
        terminal.until("from here");
        terminal.keys("echo from there > /data/out; rm /data/in; echo do''ne\n");
        terminal.until("done");
        // It is there at once, while the container runs.
        let out = fs::read_to_string(dir.path().join("out")).unwrap();
        assert_eq!(out, "from there\n", "kept: {kept}");
        assert!(!dir.path().join("in").exists(), "kept: {kept}");
        terminal.keys("exit 3\n");
        assert_eq!(terminal.ended().code(), Some(3), "kept: {kept}");
        fs::remove_file(dir.path().join("out")).unwrap();
    }

    // Keys that are none.
    let wrong = user.run(["attach", "--detach-keys", "ctrl-", "two"]);
    assert!(wrong.expect(2).stderr.contains("ctrl-"));
}
