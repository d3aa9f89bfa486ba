//! Host directories, volumes and memory in containers, in a real machine.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use vdkr_tests::fixtures::layout;
use vdkr_tests::layout::noise;
use vdkr_tests::process::{Ran, run_within, wait_until};
use vdkr_tests::registry::Registry;
use vdkr_tests::vm::{PATIENCE, User};

const IMAGE: &str = "container-base";

/// A registry with one image.
fn registry() -> Registry {
    let registry = Registry::start();
    let image = layout("qemux86-64", "container-base-latest-oci");
    registry
        .run(["push", image.to_str().unwrap(), "--tag", "latest"])
        .expect(0);
    registry
}

fn pull(user: &User, registry: &Registry) {
    let prefix = format!("{}/yocto", registry.host());
    user.run(["--registry", &prefix, "pull", IMAGE]).expect(0);
}

/// A user with a machine that runs and has the image.
fn user_with_vm(registry: &Registry) -> User {
    let user = User::new("x86_64");
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    pull(&user, registry);
    user
}

/// Runs a script with a directory at `/v`; `mode` is `""` or `":ro"`.
#[track_caller]
fn script(user: &User, dir: &Path, mode: &str, script: &str) -> Ran {
    script_within(user, dir, mode, script, PATIENCE)
}

/// The same, with so much time for it.
#[track_caller]
fn script_within(user: &User, dir: &Path, mode: &str, script: &str, patience: Duration) -> Ran {
    let volume = format!("{}:/v{mode}", dir.display());
    let run = ["run", "--rm", "-v", &volume, "-w", "/v", IMAGE];
    let mut command = user.command();
    command.args(run).args(["sh", "-c", script]);
    run_within(&mut command, b"", patience)
}

/// A container in the background whose lines are read one by one.
struct Background {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Background {
    fn start(user: &User, dir: &Path, script: &str) -> Self {
        let volume = format!("{}:/v", dir.display());
        let mut child = user
            .command()
            .args(["run", "--rm", "-v", &volume, "-w", "/v", IMAGE])
            .args(["sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_host_directory_is_live_both_ways() {
    let registry = registry();
    let user = user_with_vm(&registry);
    let place = tempfile::tempdir().unwrap();
    let dir = &place.path().join("dir with a space, a comma");
    fs::create_dir(dir).unwrap();
    fs::write(place.path().join("secret"), "secret").unwrap();

    // Dotfiles, and who owns what.
    fs::create_dir(dir.join(".git")).unwrap();
    fs::write(dir.join(".git/config"), "[core]\n").unwrap();
    fs::write(dir.join(".env"), "A=1\n").unwrap();
    let made = "cat .git/config .env && echo from the guest > .guest && mkdir -p new/deep && \
                echo x > new/deep/file && stat -c %u:%g .env .guest && ls -a | wc -l";
    let seen = script(&user, dir, "", made).expect(0).text();
    assert_eq!(seen, "[core]\nA=1\n0:0\n0:0\n6\n");
    assert_eq!(read(dir.join(".guest")), "from the guest\n");
    assert_eq!(read(dir.join("new/deep/file")), "x\n");
    assert_eq!(read(dir.join(".git/config")), "[core]\n");
    let owner = fs::metadata(dir.join(".guest")).unwrap().uid();
    assert_eq!(owner, nix::unistd::geteuid().as_raw());

    // While the container runs: changes of either side are seen by the other.
    let both = "echo ready; while [ ! -e go ]; do sleep 0.1; done; cat go; echo answer > came; \
                while [ \"$(cat go)\" != again ]; do sleep 0.1; done; echo seen; \
                while [ -e go ]; do sleep 0.1; done; echo gone";
    let mut running = Background::start(&user, dir, both);
    assert_eq!(running.line(), "ready\n");
    fs::write(dir.join("go"), "now\n").unwrap();
    assert_eq!(running.line(), "now\n");
    wait_until("the answer", PATIENCE, || dir.join("came").exists());
    wait_until("its content", PATIENCE, || {
        read(dir.join("came")) == "answer\n"
    });
    fs::write(dir.join("go"), "again\n").unwrap();
    assert_eq!(running.line(), "seen\n");
    fs::remove_file(dir.join("go")).unwrap();
    assert_eq!(running.line(), "gone\n");
    assert!(running.child.wait().unwrap().success());

    // Links are the container's to follow: those that lead out lead into its own files.
    symlink("new/deep/file", dir.join("inside")).unwrap();
    symlink("../secret", dir.join("up")).unwrap();
    symlink(place.path().join("secret"), dir.join("out")).unwrap();
    symlink("/etc/hostname", dir.join("name")).unwrap();
    let links = "cat inside; cat name > /tmp/n && cmp /tmp/n /etc/hostname && echo own; \
                 cat up out; ls ../secret; ln -s /nowhere made; readlink made";
    let seen = script(&user, dir, "", links);
    assert_eq!(seen.text(), "x\nown\n/nowhere\n", "{}", seen.stderr);
    assert!(!seen.text().contains("secret"));
    assert_eq!(
        fs::read_link(dir.join("made")).unwrap(),
        Path::new("/nowhere")
    );

    // Renaming, appending on both sides, syncing, programs and libraries from the share, a file
    // that is deleted while it is open, permissions, hard links, holes.
    fs::write(dir.join("log"), "host 1\n").unwrap();
    let work = "set -e; echo guest 1 >> log; mv new moved; mv -f log log2; \
                dd if=/dev/zero of=synced bs=64k count=20 conv=fsync 2>/dev/null; sync synced; \
                cp /bin/busybox prog 2>/dev/null || cp $(readlink -f /bin/sh) prog; chmod 755 prog; \
                ln -s prog sh; ./sh -c 'echo runs'; \
                echo open > open; exec 3<open; rm open; cat <&3; \
                chmod 640 synced; stat -c %a synced; ln synced linked; stat -c %h linked; \
                touch -d '2020-01-02 03:04:05' synced; truncate -s 5 linked; stat -c %s synced; \
                rm moved/deep/file; rmdir moved/deep; mkfifo pipe; \
                (echo through > pipe &) ; cat pipe";
    let seen = script(&user, dir, "", work).expect(0).text();
    assert_eq!(seen, "runs\nopen\n640\n2\n5\nthrough\n");
    fs::File::options()
        .append(true)
        .open(dir.join("log2"))
        .unwrap()
        .write_all(b"host 2\n")
        .unwrap();
    let seen = script(&user, dir, "", "echo guest 2 >> log2; cat log2").expect(0);
    assert_eq!(seen.text(), "host 1\nguest 1\nhost 2\nguest 2\n");
    assert_eq!(read(dir.join("log2")), seen.text());
    assert!(dir.join("moved").is_dir() && !dir.join("moved/deep").exists());
    let synced = fs::metadata(dir.join("synced")).unwrap();
    assert_eq!(
        (synced.len(), synced.mode() & 0o7777, synced.nlink()),
        (5, 0o640, 2)
    );

    // Nobody in the container is refused, and no bit gives anybody the user's rights.
    let other = format!("{}:/v", dir.display());
    let as_other = "umask 077; echo x > /v/others && cp /v/prog /v/suid && chmod 6755 /v/suid";
    user.run([
        "run",
        "--rm",
        "-u",
        "1000:1000",
        "-v",
        &other,
        IMAGE,
        "sh",
        "-c",
        as_other,
    ])
    .expect(0);
    assert_eq!(
        fs::metadata(dir.join("others")).unwrap().mode() & 0o777,
        0o600
    );
    assert_eq!(
        fs::metadata(dir.join("suid")).unwrap().mode() & 0o7777,
        0o755
    );
    script(
        &user,
        dir,
        "",
        "chown 1000:1000 others && tar cf t.tar others && tar xf t.tar",
    )
    .expect(0);

    // Read-only, on both ways of writing it.
    let refused = script(
        &user,
        dir,
        ":ro",
        "cat log2 > /dev/null || exit 9; touch log2 new x; rm log2; echo y > log2",
    );
    assert_ne!(refused.code(), 9, "{}", refused.stderr);
    refused.expect(1);
    let mount = format!(
        "\"type=bind\",\"source={}\",target=/m,readonly",
        dir.display()
    );
    let both = [
        "run", "--rm", "--mount", &mount, "-v", &other, IMAGE, "sh", "-c",
    ];
    let seen = user.run(
        both.into_iter()
            .chain(["echo through the other > /v/way && cat /m/way && ! touch /m/way"]),
    );
    assert_eq!(seen.expect(0).text(), "through the other\n");
    assert!(read(dir.join("log2")).starts_with("host 1\n") && !dir.join("x").exists());

    // One file; and mounts on mounts.
    let file = format!("{}:/etc/motd", dir.join("log2").display());
    let nested = format!(
        "{}:/v/moved",
        place.path().join("secret").parent().unwrap().display()
    );
    let seen = user.run([
        "run",
        "--rm",
        "-v",
        &file,
        "-v",
        &nested,
        "-v",
        &other,
        "--mount",
        "type=tmpfs,target=/scratch,tmpfs-size=1m",
        IMAGE,
        "sh",
        "-c",
        "head -n 1 /etc/motd; echo end >> /etc/motd; cat /v/moved/secret; \
         dd if=/dev/zero of=/scratch/x bs=1M count=2 2>/dev/null || echo full",
    ]);
    assert_eq!(seen.expect(0).text(), "host 1\nsecretfull\n");
    assert!(read(dir.join("log2")).ends_with("guest 2\nend\n"));

    // What is not there is not made.
    let typo = dir.join("typo");
    for words in [
        ["-v".to_owned(), format!("{}:/v", typo.display())],
        [
            "--mount".to_owned(),
            format!("type=bind,target=/v,\"source={}\"", typo.display()),
        ],
    ] {
        let missing = user
            .run(["run", "--rm", &words[0], &words[1], IMAGE, "true"])
            .expect(125);
        let told = format!("volume source not found: {}", typo.display());
        assert!(missing.stderr.contains(&told), "{}", missing.stderr);
        assert!(missing.stderr.contains("mkdir -p"), "{}", missing.stderr);
        assert!(!typo.exists());
    }

    // A client that is killed takes its container along, and nothing else.
    let endless = "echo started; while :; do echo more >> endless; done";
    let mut killed = Background::start(&user, dir, endless);
    assert_eq!(killed.line(), "started\n");
    wait_until("some of it", PATIENCE, || {
        fs::metadata(dir.join("endless")).is_ok_and(|meta| meta.len() > 0)
    });
    killed.child.kill().unwrap();
    let mut rest = String::new();
    killed.lines.read_to_string(&mut rest).unwrap();
    wait_until("the container's end", PATIENCE, || {
        user.run(["ps", "-q"]).expect(0).text().is_empty()
    });
    assert_eq!(read(dir.join("endless")).replace("more\n", ""), "");
    script(&user, dir, "", "rm endless").expect(0);
    assert!(!dir.join("endless").exists());

    // A detached container keeps its directory when the command that started it has gone.
    let detached = "while [ ! -e stop ]; do sleep 0.1; done; echo stopped > stopped";
    user.run([
        "run", "-d", "--name", "kept", "-v", &other, "-w", "/v", IMAGE, "sh", "-c", detached,
    ])
    .expect(0);
    fs::write(dir.join("stop"), "").unwrap();
    assert_eq!(user.run(["wait", "kept"]).expect(0).text(), "0\n");
    assert_eq!(read(dir.join("stopped")), "stopped\n");
    fs::remove_file(dir.join("stopped")).unwrap();
    user.run(["start", "kept"]).expect(0);
    user.run(["wait", "kept"]).expect(0);
    assert_eq!(read(dir.join("stopped")), "stopped\n");
    let inspected = user.run(["inspect", "kept"]).expect(0).text();
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected[0]["Mounts"][0]["Source"], dir.to_str().unwrap());
    assert_eq!(inspected[0]["Mounts"][0]["Destination"], "/v");
    user.run(["rm", "kept"]).expect(0);
    // Nothing is left mounted in the machine.
    let mounted = "grep -c fuse /proc/mounts";
    assert_eq!(
        user.run(["run", "--rm", IMAGE, "sh", "-c", mounted]).text(),
        "0\n"
    );
}

#[test]
fn many_files_and_large_ones_pass() {
    let registry = registry();
    let user = user_with_vm(&registry);
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();

    // A gigabyte in and out again, no piece of it like another.
    let mut big = fs::File::create(dir.join("big")).unwrap();
    let mut piece = noise(3, 1 << 20);
    for number in 0..1024_u64 {
        for part in piece.chunks_mut(4096) {
            part[..8].copy_from_slice(&number.to_le_bytes());
        }
        big.write_all(&piece).unwrap();
    }
    drop(big);
    script_within(&user, dir, "", "cat big > copy", 5 * PATIENCE).expect(0);
    assert!(same(&dir.join("big"), &dir.join("copy")));
    fs::remove_file(dir.join("big")).unwrap();
    script(
        &user,
        dir,
        "",
        "test ! -e big && mv copy /v/moved && rm moved",
    )
    .expect(0);
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);

    // Ten thousand small files are listed with their sizes; a thousand are copied and removed.
    fs::create_dir_all(dir.join("host/some")).unwrap();
    for i in 0..10_000 {
        let place = if i < 1000 { "host/some" } else { "host" };
        fs::write(dir.join(format!("{place}/f{i}")), format!("{i}\n")).unwrap();
    }
    let work = "find host -type f | wc -l; ls -l host | wc -l; \
                cp -r host/some guest; cat guest/* | sort -n | tail -n 1; rm -r host/some";
    let mut command = user.command();
    let volume = format!("{}:/v", dir.display());
    command.args([
        "run", "--rm", "-v", &volume, "-w", "/v", IMAGE, "sh", "-c", work,
    ]);
    let seen = run_within(&mut command, b"", 2 * PATIENCE).expect(0);
    assert_eq!(seen.text(), "10000\n9002\n999\n");
    assert!(!dir.join("host/some").exists());
    for i in 0..1000 {
        let content = read(dir.join(format!("guest/f{i}")));
        assert_eq!(content, format!("{i}\n"));
    }
    assert_eq!(fs::read_dir(dir.join("guest")).unwrap().count(), 1000);
    assert_eq!(fs::read_dir(dir.join("host")).unwrap().count(), 9000);
}

fn same(left: &Path, right: &Path) -> bool {
    let open = |path| BufReader::with_capacity(1 << 20, fs::File::open(path).unwrap());
    let (mut left, mut right) = (open(left), open(right));
    loop {
        let (a, b) = (left.fill_buf().unwrap(), right.fill_buf().unwrap());
        let length = a.len().min(b.len());
        if a[..length] != b[..length] {
            return false;
        }
        if length == 0 {
            return a.is_empty() && b.is_empty();
        }
        left.consume(length);
        right.consume(length);
    }
}

/// A program that has the kernel copy a file into its output holds the pipe until the host has
/// answered; the agent that waited for the pipe could not ask the host.
#[test]
fn a_shared_file_is_copied_straight_into_the_output() {
    let registry = registry();
    let user = user_with_vm(&registry);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let big = noise(3, 3 << 20);
    for (name, content) in [("a line", &b"shared\n"[..]), ("big ü", &big)] {
        fs::write(dir.path().join(name), content).expect("write a file");
        let file = dir.path().join(name);
        let volume = format!("{}:/f", file.display());
        for attempt in 0..3 {
            let ran = user.run(["run", "--rm", "-v", &volume, IMAGE, "cat", "/f"]);
            assert!(ran.expect(0).stdout == content, "{name}, {attempt}");
        }
    }
    let volume = format!("{}:/v", dir.path().display());
    let args = ["run", "-d", "--name", "kept", "-v", &volume, IMAGE];
    user.run(args.into_iter().chain(["sleep", "600"])).expect(0);
    let ran = user.run(["exec", "kept", "cat", "/v/big ü"]);
    assert!(ran.expect(0).stdout == big);
    user.run(["rm", "-f", "kept"]).expect(0);
}

#[test]
fn volumes_keep_what_containers_leave() {
    let registry = registry();
    let user = user_with_vm(&registry);
    let run = |args: &[&str]| user.run(["run", "--rm"].into_iter().chain(args.iter().copied()));
    run(&["-v", "data:/d", IMAGE, "sh", "-c", "echo kept > /d/.file"]).expect(0);
    let seen = run(&[
        "-v",
        "data:/other:ro",
        IMAGE,
        "sh",
        "-c",
        "cat /other/.file; touch /other/x",
    ]);
    assert_eq!(seen.expect(1).text(), "kept\n");
    // A new volume gets what the image has in its place, an old one stays as it is.
    let listed = run(&[
        "-v",
        "etc:/etc",
        IMAGE,
        "sh",
        "-c",
        "ls /etc/passwd && rm /etc/passwd",
    ]);
    assert_eq!(listed.expect(0).text(), "/etc/passwd\n");
    run(&["-v", "etc:/etc", IMAGE, "test", "!", "-e", "/etc/passwd"]).expect(0);
    run(&[
        "-v",
        "bare:/etc:nocopy",
        IMAGE,
        "test",
        "!",
        "-e",
        "/etc/passwd",
    ])
    .expect(0);

    assert_eq!(
        user.run(["volume", "create", "--label", "a=b", "made"])
            .expect(0)
            .text(),
        "made\n"
    );
    // Without a name it goes with its container.
    run(&["-v", "/anonymous", IMAGE, "touch", "/anonymous/x"]).expect(0);
    wait_until("the nameless one's end", PATIENCE, || {
        let listed = user.run(["volume", "ls", "-q"]).expect(0).text();
        listed == "bare\ndata\netc\nmade\n"
    });
    let shown = user.run(["volume", "inspect", "made"]).expect(0).text();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(
        (&shown[0]["Name"], &shown[0]["Labels"]["a"]),
        (&"made".into(), &"b".into())
    );

    // What a container has is not removed, whether it runs or not.
    user.run([
        "create", "--name", "holder", "-v", "data:/d", "-v", "/own", IMAGE, "true",
    ])
    .expect(0);
    let refused = user.run(["volume", "rm", "data"]).expect(1);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    let own = user.run(["volume", "ls", "-q"]).expect(0).text();
    assert_eq!(own.lines().filter(|name| name.len() == 64).count(), 1);
    user.run(["rm", "-v", "holder"]).expect(0);
    assert!(
        user.run(["volume", "ls", "-q"])
            .expect(0)
            .text()
            .lines()
            .all(|name| name.len() < 64)
    );
    user.run(["volume", "rm", "nothing"]).expect(5);

    // They outlive the machine.
    user.run(["memres", "stop"]).expect(0);
    user.run(["--accel", "tcg", "memres", "start"]).expect(0);
    let seen = run(&["-v", "data:/d", IMAGE, "cat", "/d/.file"]).expect(0);
    assert_eq!(seen.text(), "kept\n");
    user.run(["volume", "prune", "--force"]).expect(0);
    assert_eq!(
        user.run(["volume", "ls", "-q"]).expect(0).text(),
        "bare\ndata\netc\nmade\n"
    );
    user.run(["volume", "rm", "made", "bare"]).expect(0);
    let pruned = user
        .run(["volume", "prune", "--all", "--force"])
        .expect(0)
        .text();
    let deleted = "Deleted Volumes:\ndata\netc\n\nTotal reclaimed space: ";
    assert!(pruned.starts_with(deleted), "{pruned}");
    assert_eq!(user.run(["volume", "ls", "-q"]).expect(0).text(), "");
}

#[test]
fn a_command_with_a_machine_of_its_own_shares_too() {
    let registry = registry();
    let user = User::new("x86_64");
    pull(&user, &registry);
    let place = tempfile::tempdir().unwrap();
    fs::create_dir(place.path().join("sub")).unwrap();
    fs::write(place.path().join("sub/in"), "content").unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let mut command = user.command();
    command.current_dir(place.path().join("sub")).args([
        "--accel",
        "tcg",
        "run",
        "--rm",
        "-v",
        ".:/here",
        "-v",
        "../:/up:ro",
        IMAGE,
        "sh",
        "-c",
        "cp /here/in /here/out && cmp /up/sub/out /here/in && ! touch /up/x && echo fine",
    ]);
    assert_eq!(
        run_within(&mut command, b"", PATIENCE).expect(0).text(),
        "fine\n"
    );
    assert_eq!(read(place.path().join("sub/out")), "content");
}
